"""Words beside photographs: which of them an image is, and where in it they are (open vocabulary)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import torch
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from modeling_radio.messages_radio import check_choice
from modeling_radio.zero_shot_radio import DenseSource
from training.app.answers import Report
from training.app.drawing import Picture, heat_picture, shown
from training.app.opening import Opened
from training.app.passes import make_pixels, read_window
from training.app.photographs import read_photograph


MAX_WORDS = 40
"""Our choice: more colors are not told apart, and each is nine prompts for the text tower."""
Annotated = tuple[Image.Image, list[tuple[Any, str]]]
"""A picture, and regions of it, as masks or boxes, with their labels."""


@dataclass(frozen=True)
class WordsFound:
    """What a photograph has of some words.

    Attributes:
        masks: The photograph with a region for each word that wins somewhere.
        scores: How well each word fits the photograph as a whole, in [0, 1].
        heats: How alike the patches are to each word, on one scale for all words.
        told: What was done.
    """

    masks: Annotated
    scores: dict[str, float]
    heats: list[Picture]
    told: str


def read_words(text: str) -> list[str]:
    """Return the words of a list with commas, each once."""
    return list(dict.fromkeys(filter(None, (" ".join(word.split()) for word in text.replace("\n", ",").split(",")))))


@torch.inference_mode()
def find_words(
    opened: Opened,
    image: str | None,
    words: str,
    others: str,
    source: DenseSource,
    resolution: int,
    windows: str,
    report: Report = lambda *_: None,
) -> WordsFound:
    """Return where in a photograph words are, and which fit it.

    Args:
        opened: A zero-shot model.
        image: File of a photograph.
        words: What is looked for, with commas between.
        others: What else may be there: competes for patches, but is not drawn.
        source: Where patches get their place among texts; see `RadioForZeroShotImageClassification.segment`.
        resolution: Shorter side for the network, in pixels.
        windows: As `read_window` takes them.
        report: Is told of progress.

    Raises:
        ValueError: On what cannot be; the message names it.
    """
    model, tokenizer = opened.zero_shot, opened.tokenizer
    if model is None or tokenizer is None:
        raise ValueError(f"`words` need a checkpoint with a text tower, which {opened.checkpoint!r} has not.")
    check_choice("source", source, get_args(DenseSource))
    wanted = read_words(words)
    names = list(dict.fromkeys([*wanted, *read_words(others)]))
    _check_words(wanted, names, words, others)
    photograph = read_photograph(image, opened.processor)
    pixels, window = make_pixels(opened, photograph, resolution), read_window(windows)
    report(0.1, "reading the words")
    embeds = model.embed_classes(tokenizer, names)
    report(0.4, "running the network")
    whole = model(pixel_values=pixels, text_embeds=embeds, window_size=window).logits_per_image
    outputs: Any = model.segment(pixels, embeds, source=source, window_size=window)
    outputs.logits = outputs.logits.float()
    report(0.8, "drawing")
    small = shown(photograph)
    height, width = small.shape[-2:]
    winners = opened.processor.post_process_semantic_segmentation(outputs, [(height, width)])[0].cpu()
    regions = [((winners == index).numpy(), word) for index, word in enumerate(wanted) if (winners == index).any()]
    logits = outputs.logits[0, : len(wanted)].cpu()
    low, high = float(logits.min()), float(logits.max())
    heat = (logits - low) / max(high - low, 1e-12)
    scores = model.probabilities(whole.float())[0].tolist()
    shares = ", ".join(f"{word} {100 * mask.mean():.0f} %" for mask, word in regions) or "none"
    return WordsFound(
        masks=(to_pil_image(small), regions),
        scores=dict(zip(names, scores, strict=True)),
        heats=[(heat_picture(each, (height, width)), word) for word, each in zip(wanted, heat, strict=True)],
        told=f"Share of the photograph: {shares}.",
    )


def _check_words(wanted: list[str], names: list[str], words: str, others: str) -> None:
    if not wanted:
        raise ValueError(f"`words` must be words with commas between, such as `otter, rock`, got {words!r}.")
    if len(names) < 2:
        raise ValueError(
            f"`others` must say what else may be there, such as `background`, where there is one word, got {others!r}: "
            "a patch is given to the word that it is most alike."
        )
    if len(names) > MAX_WORDS:
        raise ValueError(f"`words` must be at most {MAX_WORDS} with those of `others`, got {len(names)}.")
