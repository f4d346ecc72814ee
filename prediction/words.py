"""The work of `radio label`: objects of words, found by RADIO's maps of words or by SAM3."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedConfig, Sam3Model, Sam3Processor

from modeling_radio.core.command_line import recorded_command
from modeling_radio.core.hub import find_folder
from modeling_radio.core.machine import find_device
from modeling_radio.core.opening import DTYPES, Opened, open_model
from modeling_radio.figures.predictions import is_finite
from modeling_radio.pipelines_radio import RadioZeroShotObjectDetectionPipeline
from modeling_radio.prediction.answers import (
    NOT_FINITE,
    OBJECTS,
    Answer,
    FiniteAnswers,
    identity_of,
    read_objects,
)
from modeling_radio.prediction.run import Predicted, answer_all, check_output
from modeling_radio.prediction.settings import LabelSettings, PredictSettings
from modeling_radio.prediction.writers import COCO, LINES, TABLE


NAME = "radio label"
FILES, IMAGES = {LINES: LINES, TABLE: TABLE, COCO: "annotations.json"}, "images"
"""Files of objects that the folder has; the last and the link have the names that `radio finetune` looks for."""
SAM3_TYPES = ("sam3", "sam3_video")
SAM3_THRESHOLD = 0.5
"""Least score of an object; as in SAM 3's code."""
RADIO_THRESHOLD = 0.1
"""Least score of a region; as of transformers' `zero-shot-object-detection`."""


def label_all(settings: LabelSettings) -> Predicted:
    """Label all images of a folder; `images` in the folder of the labels is a link to them.

    Raises:
        ValueError: If model, images or settings do not fit, or the folder holds labels of others.
        WriteError: If something cannot be written.
    """
    data, output = Path(settings.data).expanduser(), settings.output
    if not data.is_dir():
        raise ValueError(f"`data` must be a folder of images, got {settings.data!r}.")
    _check_words(settings)
    check_output(settings.data, output, NAME)
    link = output / IMAGES
    if link.exists() and not link.is_symlink():
        raise ValueError(f"`output` must have no {IMAGES!r} but the link to `data`, got {str(link)!r}: move it away.")
    finder = _open(settings)
    shared = (LabelSettings.model_fields.keys() & PredictSettings.model_fields.keys()) - {"threshold"}
    images = PredictSettings(
        **{name: getattr(settings, name) for name in shared}, classes=settings.words, threshold=finder.threshold
    )
    command = recorded_command(NAME, settings, ["data"])
    found = answer_all(images, finder, NAME, command, names=FILES, has_paths=True)
    if link.resolve() != data.resolve():  # of an earlier run, which the images have left since
        link.unlink(missing_ok=True)
        os.symlink(data.resolve(), link, target_is_directory=True)
    return found


def _check_words(settings: LabelSettings) -> None:
    """Refuse words that are empty or given twice: a place has one nearest word, and a class one name."""
    known: set[str] = set()
    for name, words in (("words", settings.words), ("around", settings.around)):
        for word in words:
            if not word or word != word.strip() or word in known:
                raise ValueError(
                    f"`{name}` must be words without spaces around them, none empty and none given before, got "
                    f"{word!r}. Name others; `words` and `around` share none."
                )
            known.add(word)


@dataclass
class _WordObjects(ABC):
    """Base of models that find the objects of words.

    Args:
        words: The words.
        threshold: Least score of an object.
    """

    words: Sequence[str]
    threshold: float

    kind = OBJECTS
    tiles = None

    @property
    def class_names(self) -> Mapping[int, str]:
        """The words by number."""
        return dict(enumerate(self.words))

    @abstractmethod
    def __call__(self, images: Sequence[Image.Image]) -> list[Answer]:
        """Return the objects of a batch of RGB images, the most certain first."""


class _FiniteRegions(FiniteAnswers, RadioZeroShotObjectDetectionPipeline):
    pass


@dataclass
class _OfRadio(_WordObjects):
    """Connected regions of RADIO's map of words.

    Args:
        opened: A model with a text tower.
        around: Words whose regions are left out.
    """

    opened: Opened
    around: Sequence[str]

    def __post_init__(self) -> None:
        opened = self.opened
        parts = {"image_processor": opened.processor, "tokenizer": opened.tokenizer, "device": opened.model.device}
        self._finder = _FiniteRegions(model=opened.model, **parts)

    def __call__(self, images: Sequence[Image.Image]) -> list[Answer]:
        words = [*self.words, *self.around]
        options: dict[str, Any] = {"threshold": self.threshold, "return_masks": True, "batch_size": len(images)}
        found = self._finder(list(images), words, **options)
        return [
            NOT_FINITE if objects is None else read_objects([each for each in objects if each["label"] in self.words])
            for objects in found
        ]

    def identity(self) -> dict[str, Any]:
        """Return hashes of the model and of how it is asked."""
        opened = self.opened
        return {**identity_of(opened.model, opened.processor, opened.tokenizer), "around": list(self.around)}


@dataclass
class _OfSam3(_WordObjects):
    """Objects that SAM3 finds, on its own trunk or on RADIO.

    Args:
        model: The model.
        processor: Its processor.
    """

    model: Any
    processor: Any

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> list[Answer]:
        found = map(self._objects, images)
        return [NOT_FINITE if objects is None else read_objects(objects) for objects in found]

    def _objects(self, image: Image.Image) -> list[dict[str, Any]] | None:
        """Return the objects of all words, the most certain first; None if an output is not finite."""
        side = self.model.config.vision_config.image_size
        inputs = self.processor(image, size={"height": side, "width": side}, return_tensors="pt")
        seen = self.model.get_vision_features(inputs["pixel_values"].to(self.model.device, self.model.dtype))
        found = [self._of_word(seen, word, image) for word in self.words]
        objects = [each for of_word in found for each in of_word or ()]
        return None if None in found else sorted(objects, key=lambda each: -each["score"])

    def _of_word(self, seen: Any, word: str, image: Image.Image) -> list[dict[str, Any]] | None:
        texts = self.processor(text=word, return_tensors="pt").to(self.model.device)
        output = self.model(vision_embeds=seen, input_ids=texts["input_ids"], attention_mask=texts["attention_mask"])
        if not is_finite({name: output[name] for name in ("pred_logits", "pred_boxes", "pred_masks")}):
            return None
        (found,) = self.processor.post_process_instance_segmentation(
            output, threshold=self.threshold, target_sizes=[(image.height, image.width)]
        )
        pairs = zip(found["scores"].float().tolist(), (found["masks"] > 0).cpu(), strict=True)
        return [{"label": word, "score": score, "mask": mask} for score, mask in pairs if mask.any()]

    def identity(self) -> dict[str, Any]:
        """Return hashes of the model and of how it is asked."""
        return identity_of(self.model, self.processor.image_processor, self.processor.tokenizer)


def _open(settings: LabelSettings) -> _OfRadio | _OfSam3:
    is_sam3 = PreTrainedConfig.get_config_dict(settings.checkpoint)[0].get("model_type") in SAM3_TYPES
    usual = SAM3_THRESHOLD if is_sam3 else RADIO_THRESHOLD
    threshold = usual if settings.threshold is None else settings.threshold
    if is_sam3:
        folder, device = find_folder(settings.checkpoint, "checkpoint"), find_device(settings.device)
        model = Sam3Model.from_pretrained(folder, dtype=DTYPES[settings.dtype]).eval().to(device)  # pyrefly: ignore
        return _OfSam3(settings.words, threshold, model, Sam3Processor.from_pretrained(folder))
    opened = open_model(settings.checkpoint, device=settings.device, dtype=settings.dtype)
    if opened.zero_shot is None:
        raise ValueError(
            f"`checkpoint` must be SAM3, or a RADIO model with a text tower, got {settings.checkpoint!r} without: "
            "`radio convert --text-tower` and `radio add-words` add one."
        )
    return _OfRadio(settings.words, threshold, opened, settings.around)
