"""Licenses of published teachers' weights, each with where and when it was read, and what they ask of a student.

The one place where these facts stand. A license is not advice: whether weights have a say in what is learned from
answers is settled nowhere that we know, and none of these licenses says what its training images allow.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from model_cards.licenses import PERMISSIVE
from model_cards.results import Source


Asks = Literal["nothing", "naming", "own terms", "no commerce", "unknown"]

WORDS: dict[Asks, str] = {
    "naming": "asks that its makers are named wherever what is made of it is shared",
    "own terms": "has terms of its own, which bind who uses its weights or outputs: read them",
    "no commerce": "is for research or non-commercial use: a student of it should not be sold or used in a product",
    "unknown": "is not known here: ask its makers",
}
"""What a license that asks for something asks, after its name."""


@dataclass(frozen=True)
class TeacherLicense:
    """What is known of the license of some repositories on the Hub.

    Attributes:
        pattern: Of their ids, as `fnmatch` reads it.
        license: Of the weights: SPDX identifier or the license's name.
        asks: What it asks of who learns from the answers.
        source: Where it was read.
        date: Of what was read there: of the license's text, a commit, or the page as it was stored.
        is_gated: Whether the Hub gives the weights only to who accepts the license.
    """

    pattern: str
    license: str
    asks: Asks
    source: str
    date: str
    is_gated: bool = False


def _hub(repository: str) -> str:
    return f"https://huggingface.co/{repository}"


_AMLR = ("Apple ML Research Model License", "no commerce", _hub("apple/DFN5B-CLIP-ViT-H-14-378/blob/main/LICENSE"))
_DEPTH = "https://github.com/DepthAnything/Depth-Anything-V2"

TEACHER_LICENSES = (
    TeacherLicense(
        "google/siglip2-*", "Apache-2.0", "nothing", _hub("google/siglip2-giant-opt-patch16-384"), "2025-02"
    ),
    TeacherLicense("google/siglip-*", "Apache-2.0", "nothing", _hub("google/siglip-so400m-patch14-384"), "2024"),
    # Its code is Apache-2.0; "all other materials", so the weights, are not.
    TeacherLicense("google/tipsv2-*", "CC-BY-4.0", "naming", "https://github.com/google-deepmind/tips", "2026-06-01"),
    # CC-BY-NC-4.0 before.
    TeacherLicense(
        "facebook/dinov2-*", "Apache-2.0", "nothing", _hub("facebook/dinov2-base/commit/369b130"), "2023-09-06"
    ),
    TeacherLicense(
        "facebook/dinov3-*",
        "DINOv3 License",
        "own terms",
        _hub("facebook/dinov3-vitl16-pretrain-lvd1689m/blob/main/LICENSE.md"),
        "2025-08-19",
        is_gated=True,
    ),
    TeacherLicense("facebook/sam-vit-*", "Apache-2.0", "nothing", _hub("facebook/sam-vit-huge"), "2023-04"),
    TeacherLicense("facebook/sam2*hiera*", "Apache-2.0", "nothing", _hub("facebook/sam2-hiera-large-hf"), "2025"),
    TeacherLicense(
        "facebook/sam3*",
        "SAM License",
        "own terms",
        _hub("facebook/sam3/blob/main/LICENSE"),
        "2025-11-19",
        is_gated=True,
    ),
    TeacherLicense("apple/DFN*-CLIP-*", *_AMLR, "2025"),
    TeacherLicense("depth-anything/Depth-Anything-V2-Small*", "Apache-2.0", "nothing", _DEPTH, "2024-06-13"),
    TeacherLicense("depth-anything/Depth-Anything-V2-*", "CC-BY-NC-4.0", "no commerce", _DEPTH, "2024"),
    TeacherLicense(
        "facebook/EUPE-*",
        "FAIR Noncommercial Research License",
        "no commerce",
        "https://github.com/facebookresearch/EUPE/blob/main/LICENSE.md",
        "2026-04-14",
    ),
    TeacherLicense(
        "nvidia/C-RADIO*",
        "NVIDIA Open Model License",
        "own terms",
        "https://www.nvidia.com/en-us/agreements/enterprise-software/nvidia-open-model-license/",
        "2026-01-27",
    ),
    TeacherLicense(
        "nvidia/*RADIO*",
        "NVIDIA Source Code License-NC",
        "no commerce",
        "https://github.com/NVlabs/RADIO/blob/main/LICENSE",
        "2026-05-29",
    ),
)
"""The first whose pattern fits counts."""


def find_teacher_license(hub_id: str | None) -> TeacherLicense | None:
    """Return what is known of a repository's license; None where nothing is."""
    if hub_id is None:
        return None
    return next((each for each in TEACHER_LICENSES if fnmatchcase(hub_id, each.pattern)), None)


def what_it_asks(source: Source) -> Asks:
    """Return what the license of something that was learned from asks."""
    known = find_teacher_license(source.hub_id)
    if known is not None and known.license == source.license:
        return known.asks
    for each in TEACHER_LICENSES:
        if each.license == source.license:
            return each.asks
    parts = [part.rpartition(" is ")[2].strip() for part in source.license.split(";")]  # "MIT; the base is Apache-2.0"
    return "nothing" if all(PERMISSIVE.fullmatch(part) for part in parts) else "unknown"


def warnings_of(sources: list[Source]) -> list[str]:
    """Return a sentence for each source whose license asks for something, in Markdown's plain text."""
    sentences = []
    for source in sources:
        asks = what_it_asks(source)
        if asks != "nothing":
            known = find_teacher_license(source.hub_id)
            gate = " The Hub gives its weights only to who accepts it." if known is not None and known.is_gated else ""
            read = "" if known is None else f" Read at {known.source} ({known.date})."
            sentences.append(f"{source.name}: the license ({source.license}) {WORDS[asks]}.{gate}{read}")
    return sentences
