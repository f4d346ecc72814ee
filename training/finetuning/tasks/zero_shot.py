"""How a model that compares images with texts learns from labels: the texts stay, the images move among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from modeling_radio import RadioConfig, RadioForZeroShotImageClassification, RadioPreTrainedModel
from modeling_radio.tokenizer import open_tokenizer
from training.finetuning.data.sources import LabeledImages
from training.finetuning.settings import FinetuneSettings
from training.finetuning.tasks.base import Batch
from training.finetuning.tasks.classification import ClassificationTask


def cross_entropy_of_texts(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Return the mean cross-entropy over the classes' texts, or the sum divided by `num_items_in_batch`."""
    logits = outputs.logits_per_image.float()
    if num_items_in_batch is None:
        return F.cross_entropy(logits, labels)
    return F.cross_entropy(logits, labels, reduction="sum") / num_items_in_batch


class ZeroShotTask(ClassificationTask):
    """One class an image, told by a text of it; the tuned model still answers to any other texts.

    The texts are those of `embed_classes` and are encoded once: the text tower learns nothing. The head is the last
    layer of the adaptor's summary head, a projection into the space of the texts, as in CLIP-Adapter
    (https://arxiv.org/abs/2110.04544), but in place and not beside.

    Raises:
        ValueError: If images have several labels, or numbers.
    """

    model_class = RadioForZeroShotImageClassification
    loss_function = staticmethod(cross_entropy_of_texts)
    head_learning_rate = 1e-4  # our choice: the projection is good already

    text_embeds: Tensor
    tokenizer: PreTrainedTokenizerBase

    def __init__(self, settings: FinetuneSettings, images: LabeledImages):
        super().__init__(settings, images)
        if images.problem_type != self.problem_type:
            raise ValueError(f"The labels of {settings.data!r} must be one class an image for {settings.task}.")

    @classmethod
    def has_linear_head(cls, config: RadioConfig) -> bool:
        return False  # a projection of the adaptor

    def config_fields(self) -> dict[str, Any]:
        return {}

    def prepare(self, model: RadioPreTrainedModel) -> None:
        """Encode the classes' texts with the checkpoint's tokenizer.

        Raises:
            ValueError: If the checkpoint has none.
        """
        self.tokenizer = open_tokenizer(self.settings.checkpoint)
        zero_shot = cast(RadioForZeroShotImageClassification, model)
        self.text_embeds = zero_shot.embed_classes(self.tokenizer, self.class_names).float().cpu()

    def extras(self) -> list[PreTrainedTokenizerBase]:
        return [self.tokenizer]

    def collate(self, examples: Sequence[Batch]) -> Batch:
        return {**super().collate(examples), "text_embeds": self.text_embeds}

    def compare(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        return outputs.logits_per_image.float(), batch["labels"]
