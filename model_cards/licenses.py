"""Licenses in the Hub's terms, those of NVIDIA's checkpoints, and the conditions of teachers' licenses.

This is not legal advice: we know of no settled rule on whether a teacher's license covers a student that learned from
its outputs, and none of these licenses covers the images that a teacher was trained on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from modeling_radio.checks_radio import did_you_mean
from modeling_radio.metrics.results import Source


OTHER = "other"
HUB_LICENSES = (
    *("apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "bigcode-openrail-m"),
    *("bigscience-bloom-rail-1.0", "openrail++", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd", "bsd-2-clause"),
    *("bsd-3-clause", "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0"),
    *("cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0"),
    *("cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"),
    *("cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0"),
    *("eupl-1.1", "eupl-1.2", "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "isc"),
    *("lppl-1.3c", "ms-pl", "mpl-2.0", "odc-by", "odbl", "osl-3.0", "postgresql", "ofl-1.1", "ncsa", "unlicense"),
    *(
        "zlib",
        "pddl",
        "wtfpl",
        "apple-ascl",
        "apple-amlr",
        "h-research",
        "intel-research",
        "lgpl-lr",
        "llama2",
        "gemma",
    ),
    *("deepfloyd-if-license", OTHER),
)
"""Identifiers of https://huggingface.co/docs/hub/repositories-licenses except "unknown", which allows nothing."""
PERMISSIVE = re.compile(r"(?i)mit(-0)?|apache-2\.0|bsd(-[\w-]+)?|isc|zlib|unlicense|cc0-1\.0|ncsa|postgresql|bsl-1\.0")
"""Permissive licenses by their SPDX names: they ask for their notice with copies, and nothing of a student."""
_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_LINK = re.compile(r"https?://[^\s<>\"'|`()\[\]\\]+|LICENSE(\.md|\.txt)?")
Asks = Literal["nothing", "naming", "own terms", "no commerce", "unknown"]
WORDS: dict[Asks, str] = {
    "nothing": "asks for its notice with copies of the weights",
    "naming": "asks that its makers are named wherever what is made of it is shared",
    "own terms": "has terms of its own, which may bind who uses its weights or outputs: read them",
    "no commerce": "is for research or non-commercial use: a student of it should not be sold or used in a product",
    "unknown": "is not known here: ask its makers",
}
"""Conditions in words, which follow the license's name."""
DOUBT = "in doubt: "
"""Begins the part of `Source.license`, after a semicolon, that names open questions."""
_HUB = "https://huggingface.co"


@dataclass(frozen=True)
class License:
    """The license of weights or features.

    Attributes:
        id: Identifier of the Hub.
        name: Name of an "other" license: lower-case letters, digits and hyphens.
        link: Text of an "other" license: an address, or `LICENSE` in the repository.
    """

    id: str
    name: str | None = None
    link: str | None = None

    def __post_init__(self) -> None:
        if self.id not in HUB_LICENSES:
            raise ValueError(
                "`license` must be one of the Hub's, https://huggingface.co/docs/hub/repositories-licenses, or "
                f"{OTHER!r}, got {self.id!r}.{did_you_mean(self.id.lower(), HUB_LICENSES)}"
            )
        if (self.id == OTHER) != (self.name is not None and self.link is not None):
            raise ValueError(
                f"`license_name` and `license_link` must be given where the license is {OTHER!r}, and only there, got "
                f"{self.id!r} with {self.name!r} and {self.link!r}."
            )
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise ValueError(f"`license_name` must be lower-case letters, digits and hyphens, got {self.name!r}.")
        if self.link is not None and not _LINK.fullmatch(self.link):
            raise ValueError(f"`license_link` must be an address or LICENSE in the repository, got {self.link!r}.")

    def metadata(self) -> dict[str, Any]:
        """Return the entries for a card's metadata."""
        entries = {"license": self.id, "license_name": self.name, "license_link": self.link}
        return {name: value for name, value in entries.items() if value is not None}


OPEN_MODEL_LICENSE = License(
    OTHER,
    "nvidia-open-model-license",
    "https://www.nvidia.com/en-us/agreements/enterprise-software/nvidia-open-model-license/",
)
SOURCE_CODE_LICENSE = License(
    OTHER, "nvidia-source-code-license-nc", "https://github.com/NVlabs/RADIO/blob/main/LICENSE"
)


def nvidia_license(version: str | None) -> License | None:
    """Return the license of a version of NVIDIA's: that of C-RADIO, that of RADIO and E-RADIO, or None."""
    name = (version or "").lower()
    if name.startswith(("c-radio", "c_radio")):
        return OPEN_MODEL_LICENSE
    return SOURCE_CODE_LICENSE if name.startswith(("radio", "e-radio", "eradio")) else None


def binding_teachers(teachers: Iterable[Source]) -> list[Source]:
    """Return the teachers whose license may cover a student: all but those of a permissive license."""
    return [teacher for teacher in teachers if not all(map(_is_permissive, teacher.license.split(";")))]


def _is_permissive(part: str) -> bool:
    """Return whether a license is permissive, given as "MIT" or as "the base is Apache-2.0"."""
    return PERMISSIVE.fullmatch(part.rpartition(" is ")[2].strip()) is not None


class Terms(NamedTuple):
    """Conditions of a license for those who learn from a model's outputs.

    Attributes:
        asks: Kind of condition.
        link: Address of its text.
        date: Date of that text, or of its reading.
        is_gated: Whether the Hub requires its acceptance for weights under it.
    """

    asks: Asks
    link: str
    date: str
    is_gated: bool = False


TERMS = {
    "dinov3-license": Terms(
        "own terms",
        f"{_HUB}/facebook/dinov3-vitl16-pretrain-lvd1689m/blob/main/LICENSE.md",
        "of 2025-08-19",
        is_gated=True,
    ),
    "sam-license": Terms("own terms", f"{_HUB}/facebook/sam3/blob/main/LICENSE", "of 2025-11-19", is_gated=True),
    str(OPEN_MODEL_LICENSE.name): Terms("own terms", str(OPEN_MODEL_LICENSE.link), "read in November 2026"),
    str(SOURCE_CODE_LICENSE.name): Terms("no commerce", str(SOURCE_CODE_LICENSE.link), "read in November 2026"),
    "apple-ascl": Terms("own terms", f"{_HUB}/apple/DFN5B-CLIP-ViT-H-14-378/blob/main/LICENSE", "of 2023-10-30"),
    "apple-amlr": Terms("no commerce", f"{_HUB}/apple/DFN5B-CLIP-ViT-H-14-378/blob/main/LICENSE", "of 2025"),
    "fair-noncommercial-research-license": Terms(
        "no commerce", "https://github.com/facebookresearch/EUPE/blob/main/LICENSE.md", "of 2026-04-14"
    ),
    "cc-by-nc-4.0": Terms("no commerce", "https://creativecommons.org/licenses/by-nc/4.0/legalcode", "version 4.0"),
    "cc-by-nc-sa-4.0": Terms(
        "no commerce", "https://creativecommons.org/licenses/by-nc-sa/4.0/legalcode", "version 4.0"
    ),
    "cc-by-4.0": Terms("naming", "https://creativecommons.org/licenses/by/4.0/legalcode", "version 4.0"),
}
"""Terms by the license's name in lower case, as the Hub writes it; see `PERMISSIVE` for others."""


def what_it_asks(license: str) -> Asks:
    """Return the condition of a license, also of one for several parts: "MIT; the base is Apache-2.0"."""
    known = license.partition(DOUBT)[0].rstrip("; ")
    terms = TERMS.get(known.rpartition(" is ")[2].strip().lower())
    if terms is not None and ";" not in known:
        return terms.asks
    return "nothing" if all(map(_is_permissive, known.split(";"))) else "unknown"


def warnings_of(sources: Iterable[Source]) -> list[str]:
    """Return a sentence for each source whose license has conditions or is in doubt."""
    sentences = []
    for source in sources:
        asks, doubt = what_it_asks(source.license), source.license.partition(DOUBT)[2]
        name = source.license.partition(DOUBT)[0].rstrip("; ")
        if asks == "nothing" and not doubt:
            continue
        terms = TERMS.get(name.lower())
        sentence = f"{source.name}: the license ({name}) {WORDS[asks]}."
        if terms is not None:
            gate = " The Hub gives its weights only to who accepts it." if terms.is_gated else ""
            sentence += f"{gate} Its text: {terms.link} ({terms.date})."
        sentences.append(sentence + (f" In doubt: {doubt}." if doubt else ""))
    return sentences
