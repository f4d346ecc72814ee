"""What the licenses of teachers ask of a student; which teacher has which, the catalog of published teachers says.

This is not advice: whether weights have a say in what is learned from answers is settled nowhere that we know, and none
of these licenses says what the images allow that a teacher was trained on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from model_cards.licenses import OPEN_MODEL_LICENSE, PERMISSIVE, SOURCE_CODE_LICENSE
from model_cards.results import Source


Asks = Literal["nothing", "naming", "own terms", "no commerce", "unknown"]

WORDS: dict[Asks, str] = {
    "nothing": "asks for its notice with copies of the weights",
    "naming": "asks that its makers are named wherever what is made of it is shared",
    "own terms": "has terms of its own, which may bind who uses its weights or outputs: read them",
    "no commerce": "is for research or non-commercial use: a student of it should not be sold or used in a product",
    "unknown": "is not known here: ask its makers",
}
"""What a license asks, after its name."""

DOUBT = "in doubt: "
"""Begins the part of `Source.license`, after a semicolon, that says what its sources leave open."""


class Terms(NamedTuple):
    """What a license asks of who learns from the answers.

    Attributes:
        asks: In a word.
        link: Its text.
        date: Of that text, or of when it was read.
        is_gated: Whether the Hub gives weights under it only to who accepts it.
    """

    asks: Asks
    link: str
    date: str
    is_gated: bool = False


_HUB = "https://huggingface.co"

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
"""By the license's name in lower case, as the Hub writes it; the permissive ones are `PERMISSIVE`."""


def what_it_asks(license: str) -> Asks:
    """Return what a license asks, also of several things: "MIT; the base is Apache-2.0"."""
    parts = [part.rpartition(" is ")[2].strip() for part in license.partition(DOUBT)[0].rstrip("; ").split(";")]
    if len(parts) == 1 and parts[0].lower() in TERMS:
        return TERMS[parts[0].lower()].asks
    return "nothing" if all(PERMISSIVE.fullmatch(part) for part in parts) else "unknown"


def warnings_of(sources: Iterable[Source]) -> list[str]:
    """Return a sentence for each source whose license asks for something, or whose license is in doubt."""
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
