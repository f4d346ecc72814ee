"""A student with words: its adaptor's dense head in the space of summaries, the text tower, and how sure it is."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from foundation.machine.timing import ProgressBar
from modeling_radio import RadioForZeroShotImageClassification, RadioImageProcessor, RadioModel
from modeling_radio.sentences_radio import SentenceTower
from training.evaluation.models.sentences import MAX_LENGTH, SentenceEncoder
from training.teachers.embedded.efficientnet_lite import EfficientNetLiteTeacher
from training.words.names import LearnedMap
from training.words.ridge import Regression, embed_variants, without_direction


BATCH_SIZE = 32
"""Images a pass; our choice."""
DENSE_PENALTY = 0.1
"""Of the dense head, as a share of its inputs' variance. Our choice; a hundredth of it changed the mIoU by .01."""
LOGIT_SCALES = tuple(math.log(scale) for scale in range(1, 101))
"""Logarithms of what cosines may be multiplied by; 100 is where CLIP stops (https://arxiv.org/abs/2103.00020, 2.5)."""


@dataclass(frozen=True)
class Answers:
    """What a student and its teacher say of unlabeled images.

    Attributes:
        summaries: The adaptor's, `(num_images, summary_dim)`.
        probabilities: The teacher's classifier's, `(num_images, num_classes)`.
        regression: Of the teacher's last map on what the last layer of the adaptor's dense head sees.
    """

    summaries: Tensor
    probabilities: Tensor
    regression: Regression


@torch.no_grad()
def ask(radio: RadioModel, adaptor: str, teacher: EfficientNetLiteTeacher, images: Tensor) -> Answers:
    """Run student and teacher over unlabeled images.

    Args:
        radio: The student.
        adaptor: For that teacher.
        teacher: With its classifier.
        images: uint8 RGB, `(num_images, 3, height, width)`.
    """
    layer = radio.radio_model.adaptor(adaptor).last_dense_linear
    regression = Regression(layer.in_features, teacher.rows.shape[1])
    summaries, probabilities = [], []
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        for batch in _batches(images):
            output = radio(batch, adaptor_names=[adaptor], return_dict=True)
            rows, cols = (side // radio.patch_size for side in batch.shape[-2:])
            last = teacher.last_map(batch, rows, cols)
            regression.add(seen.pop().flatten(0, 1), last.flatten(2).transpose(1, 2).flatten(0, 1))
            summaries.append(output.adaptors[adaptor].summary)
            probabilities.append(teacher.classify(last.mean(dim=(2, 3))).softmax(dim=1))
    finally:
        handle.remove()
    return Answers(torch.cat(summaries), torch.cat(probabilities), regression)


def _batches(images: Tensor) -> Iterator[Tensor]:
    for batch in ProgressBar(images.split(BATCH_SIZE), desc="unlabeled images", leave=False, disable=None):
        yield batch.float() / 255


def check_adaptor(radio: RadioModel, adaptor: str, summary_dim: int) -> None:
    """Refuse a student whose adaptor cannot be given words.

    Raises:
        ValueError: If there is no such adaptor, or it is not as wide as the classifier's rows, or has no dense head.
    """
    found = radio.config.adaptor(adaptor)
    if found.summary_dim != summary_dim:
        raise ValueError(
            f"`summary_dim` of adaptor {adaptor!r} must be {summary_dim}, the width of the classifier's rows, got "
            f"{found.summary_dim}. Take a student that learned from this teacher."
        )
    if found.feature_dim is None or found.upsample_factor != 1:
        raise ValueError(
            f"Adaptor {adaptor!r} must have a dense head of one answer a patch, got `feature_dim` {found.feature_dim} "
            f"and `upsample_factor` {found.upsample_factor}. Take a student with dense features of this teacher."
        )


def with_dense_summaries(radio: RadioModel, adaptor: str, regression: Regression) -> RadioModel:
    """Return the student with one more adaptor, `ADAPTOR-words`, whose patches live where the summaries do.

    A classifier's dense features are no summaries of patches: what lies in the space of its rows is its last map alone.
    The new adaptor is the old one but for the last layer of its dense head, a ridge regression of that map. It runs
    where it is asked for.

    Args:
        radio: The student; it stays as it is.
        adaptor: That `check_adaptor` accepts.
        regression: As of `Answers`.
    """
    name = f"{adaptor}-words"
    config = copy.deepcopy(radio.config)
    entry = next(each for each in config.adaptors if each["name"] == adaptor)
    default_names = config.adaptor_names
    config.adaptors = [*config.adaptors, {**entry, "name": name, "feature_dim": entry["summary_dim"]}]
    config.adaptor_names = default_names
    wider = RadioModel(config).eval()
    old, new = (f"radio_model.adaptors.{each}." for each in (adaptor, name))
    state = radio.state_dict()
    state |= {key.replace(old, new): value for key, value in state.items() if key.startswith(old)}
    (layer,) = regression.fit([DENSE_PENALTY * regression.variance])
    last = wider.radio_model.adaptor(name).last_dense_linear
    (prefix,) = [key for key, module in wider.named_modules() if module is last]
    state |= {f"{prefix}.weight": layer.weight.data, f"{prefix}.bias": layer.bias.data}
    wider.load_state_dict(state)
    return wider


def fit_logit_scale(summaries: Tensor, classes: Tensor, probabilities: Tensor) -> float:
    """Return the logarithm of the scale with which a student comes nearest to what its teacher says of images.

    Args:
        summaries: Of unlabeled images, `(num_images, summary_dim)`.
        classes: Embeddings of the names, `(num_classes, summary_dim)`.
        probabilities: What the teacher's classifier says of the images, `(num_images, num_classes)`.
    """
    cosines = F.normalize(summaries, dim=1) @ F.normalize(classes, dim=1).T
    losses = [-(probabilities * (math.exp(scale) * cosines).log_softmax(1)).sum(1).mean() for scale in LOGIT_SCALES]
    return LOGIT_SCALES[int(torch.stack(losses).argmin())]


def build_words(
    radio: RadioModel, adaptor: str, encoder: SentenceEncoder, learned: LearnedMap, answers: Answers
) -> tuple[RadioForZeroShotImageClassification, PreTrainedTokenizerBase]:
    """Join a student with the sentence encoder and the map.

    What all summaries share tells no classes apart, and a class that lies nearer to it than others would win
    everywhere: the map answers at right angles to the mean summary.

    Args:
        radio: The student.
        adaptor: That `check_adaptor` accepts.
        encoder: Of the texts.
        learned: The map.
        answers: To unlabeled images.

    Returns:
        The model, and the tokenizer that belongs to it.
    """
    layer = without_direction(learned.layer, answers.summaries.mean(dim=0))
    classes = embed_variants(layer, learned.pairs.sources)
    scale = fit_logit_scale(answers.summaries, classes, answers.probabilities)
    tower = SentenceTower.from_parts(encoder.model, layer, max_length=MAX_LENGTH, logit_scale=scale)
    wider = with_dense_summaries(radio, adaptor, answers.regression)
    model = RadioForZeroShotImageClassification.from_parts(wider, tower, f"{adaptor}-words")
    return model, without_token_types(encoder.tokenizer)


def without_token_types(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a tokenizer that gives tokens and their mask alone, also once it is saved and opened again.

    BERT's own class gives the types of tokens too, whatever its file says. In single sentences they say nothing, and
    models with an image tower do not take them.
    """
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
        **tokenizer.special_tokens_map,
    )


def save_words(
    model: RadioForZeroShotImageClassification,
    tokenizer: PreTrainedTokenizerBase,
    processor: RadioImageProcessor,
    folder: Path,
) -> None:
    """Write a folder that opens elsewhere: weights, remote code, processor and tokenizer."""
    for part in (model, processor, tokenizer):
        part.save_pretrained(folder)
