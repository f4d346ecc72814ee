"""Task on phrases: SAM3 on RADIO's features finds all objects that a phrase names."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Sam3Model, Sam3Processor

from modeling_radio import attach_to_sam3
from modeling_radio.core.hub import HUB_ERRORS, find_folder
from modeling_radio.core.timing import ProgressBar
from modeling_radio.evaluation.data import Phrase
from modeling_radio.evaluation.models.radio import RadioFeatures
from modeling_radio.evaluation.tasks.base import Evaluation, Task
from modeling_radio.metrics.concept_f1 import (
    NUM_SUMS,
    concept_counts,
    concept_f1,
    image_correlation,
    positive_f1,
)
from modeling_radio.metrics.results import Measurement
from modeling_radio.post_processing_radio import fill_run_lengths


SCORE = 0.5
"""Least score of a mask; as in SAM 3's code."""
SCORES = {"cgF1": concept_f1, "positive micro F1": positive_f1, "IL_MCC": image_correlation}


class ConceptSegmenter:
    """SAM3 whose trunk is a RADIO model.

    Args:
        model: RADIO with an adaptor "sam3".
        sam3: Folder of SAM3 or its name on the Hub.

    Raises:
        ValueError: If SAM3 does not open, or the model has no such adaptor.
    """

    def __init__(self, model: RadioFeatures, sam3: str) -> None:
        folder = find_folder(sam3, "sam3")
        try:
            network, self.processor = Sam3Model.from_pretrained(folder), Sam3Processor.from_pretrained(folder)
        except (*HUB_ERRORS, ValueError, KeyError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(f"`sam3` must be a folder of SAM3 with its processor, got {sam3!r}: {reason}") from error
        self.device, self.dtype = model.device, model.dtype
        self.network = attach_to_sam3(network.eval().to(model.device), model.model)  # pyrefly: ignore[bad-argument-type]

    @torch.no_grad()
    def masks(self, image: Tensor, phrases: Sequence[Phrase]) -> list[Tensor]:
        """Return the masks of each phrase, bool `(num_masks, height, width)`; the trunk runs once for all of them.

        Args:
            image: uint8 `(3, height, width)`.
            phrases: Phrases of this image.
        """
        side = self.network.config.vision_config.image_size
        pixels = self.processor(image, size={"height": side, "width": side}, return_tensors="pt")["pixel_values"]
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            seen = self.network.get_vision_features(pixels.to(self.device))
            return [self._masks(seen, phrase) for phrase in phrases]

    def _masks(self, seen: Any, phrase: Phrase) -> Tensor:
        texts = self.processor(text=phrase.text, return_tensors="pt").to(self.device)
        output = self.network(vision_embeds=seen, input_ids=texts["input_ids"], attention_mask=texts["attention_mask"])
        scores = output.pred_logits[0].float().sigmoid() * output.presence_logits[0].float().sigmoid()
        masks = output.pred_masks[:, scores >= SCORE].float()
        if not masks.shape[1]:
            return torch.zeros(0, *phrase.size, dtype=torch.bool)
        resized = [F.interpolate(each, phrase.size, mode="bilinear")[0].cpu() > 0 for each in masks.split(1, dim=1)]
        return torch.cat(resized)  # one at a time: two hundred masks of a photograph in float32 are gigabytes


def measure_concept_segmentation(evaluation: Evaluation) -> list[Measurement]:
    """Measure cgF1, its two factors, and cgF1 of each subset; the first three are means over subsets.

    Each phrase counts as by the annotator whose masks fit best.

    References:
        SAM 3, https://arxiv.org/abs/2511.16719; on RADIO: https://arxiv.org/abs/2601.17237, table 5.
    """
    model, sam3, examples = evaluation.model, evaluation.settings.sam3, evaluation.examples("phrases")
    if not isinstance(model, RadioFeatures):
        raise ValueError(
            f"`concept_segmentation` needs a RADIO model in the place of SAM3's trunk, got {model.name!r}."
        )
    assert examples.phrases is not None  # the part's kind says so
    segmenter, subsets = ConceptSegmenter(model, sam3), evaluation.part("phrases").class_names
    sums = torch.zeros(len(examples), len(subsets), NUM_SUMS, dtype=torch.float64)
    of_images = groupby(sorted(examples.phrases, key=lambda phrase: phrase.image), key=lambda phrase: phrase.image)
    for image, group in ProgressBar(of_images, desc="images", leave=False, disable=None, total=len(examples)):
        phrases = list(group)
        for phrase, masks in zip(phrases, segmenter.masks(examples.images[image], phrases), strict=True):
            sums[image, subsets.index(phrase.subset)] += counts_of(phrase, masks)
    whole = [(name, partial(_mean_over_subsets, score=score)) for name, score in SCORES.items()]
    single = [(f"cgF1, {name}", partial(_of_subset, row=row)) for row, name in enumerate(subsets)]
    return [
        evaluation.of_sums("concept_segmentation", name, sums.flatten(1), combine, "phrases")
        for name, combine in (*whole, *single)
    ]


def counts_of(phrase: Phrase, masks: Tensor) -> Tensor:
    """Return the counts of a phrase's predicted masks (see `concept_counts`).

    Raises:
        ValueError: If the phrase's masks are no run lengths.
    """
    try:
        true = [[encoded(fill_run_lengths(runs, phrase.size)) for runs in each] for each in phrase.masks]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`data` must have whole masks, {phrase.text!r} of {phrase.subset} has others: {error}."
        ) from error
    return concept_counts([encoded(mask) for mask in masks], true)


def encoded(mask: Tensor) -> Any:
    """Return COCO's run lengths of a mask `(height, width)`."""
    from pycocotools import mask as coco_mask

    return coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))


def _mean_over_subsets(sums: Tensor, score: Any) -> Tensor:
    return score(sums.unflatten(-1, (-1, NUM_SUMS))).mean(-1)


def _of_subset(sums: Tensor, row: int) -> Tensor:
    return concept_f1(sums.unflatten(-1, (-1, NUM_SUMS))[..., row, :])


CONCEPT_SEGMENTATION = Task(measure_concept_segmentation, "phrases")
