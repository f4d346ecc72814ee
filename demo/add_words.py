"""Adds a text tower to the demo's student in a minute: `radio add-words`.

The student has an adaptor for EfficientNet-Lite0, a classifier of 1,000 named classes. A ridge regression from a small
sentence encoder's embeddings of these names to the rows of the classifier maps any other text to a class. The written
folder opens in the pipeline `zero-shot-image-classification` and segments by words.
"""

import copy
import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from modeling_radio import RadioForZeroShotImageClassification, RadioModel
from modeling_radio.core.checkpoints import MODEL_FOLDER
from modeling_radio.core.command_line import Command, recorded_command
from modeling_radio.core.files import check_output, write_folder
from modeling_radio.core.opening import open_model
from modeling_radio.core.timing import Clock, ProgressBar, describe_run
from modeling_radio.data.training_images import build_images, render
from modeling_radio.demo.teachers import EfficientNetLiteTeacher
from modeling_radio.evaluation.data_tables import imagenet_class_names
from modeling_radio.evaluation.models.pretrained import MAX_LENGTH, SENTENCE_PACKAGE, SentenceEncoder
from modeling_radio.metrics.results import Results, Source
from modeling_radio.model_cards.build import write_card
from modeling_radio.training.recipes.recipe import Recipe, RecipeCommand, RecipeError, TeacherRecipe
from modeling_radio.training.student.provenance import teacher_sources
from modeling_radio.training.teachers.registry import build_teachers
from modeling_radio.zero_shot_radio import PLAIN_TEMPLATES, SIMPLE_TEMPLATES, SentenceTower


TEACHER_KIND = "efficientnet-lite0"
NUM_UNLABELED = 512
"""Training images on which student and teacher are compared. Our choice: 384 do as well."""
BATCH_SIZE = 32
"""Images in a pass; our choice."""
PROMPTS = (*PLAIN_TEMPLATES, "This is a photo of {}.", *SIMPLE_TEMPLATES)
"""Prompts around each class name. Our choice: those of `embed_classes` and of the stock pipeline."""
TEXT_PENALTY = 0.01
"""Ridge penalty from texts to rows. Our choice: the best of 11 values in five-fold cross-validation over the names."""
DENSE_PENALTY = 0.1
"""Ridge penalty of the dense head, as a share of its inputs' variance. Our choice; a hundredth changed mIoU by .01."""
LOGIT_SCALES = tuple(math.log(scale) for scale in range(1, 101))
"""Logarithms of candidate logit scales; CLIP stops at 100 (https://arxiv.org/abs/2103.00020, section 2.5)."""


class AddWordsSettings(RecipeCommand):
    """The student, and the folder to write.

    Attributes:
        checkpoint: Folder of a student with an adaptor for EfficientNet-Lite0, by default that of `radio demo`.
        output: Folder to write.
        overwrite: Whether to replace an older one there.
        recipe: Recipe of the student, which names the teacher; or a file of your own that ends in .yaml.
    """

    checkpoint: Path = Path("runs/demo/final")
    output: Path = Path("runs/demo/words")
    overwrite: bool = False


COMMAND = Command(
    "radio add-words",
    "Give the demo's student a text tower, made of a sentence encoder and its teacher's class names.",
    AddWordsSettings,
    changes=Recipe,
    examples=("radio add-words",),
)


def _add_words(settings: AddWordsSettings) -> None:
    transformers_logging.disable_progress_bar()
    check_output(settings.output, overwrite=settings.overwrite, inputs=[settings.checkpoint], kind=MODEL_FOLDER)
    recipe = settings.load_recipe()
    opened = open_model(settings.checkpoint, device="cpu", dtype=None, as_backbone=True)
    entry, radio = _classifier(recipe), opened.backbone
    check_adaptor(radio, entry.name)
    clock = Clock()
    with clock.phase("fetch"):
        teacher = build_teachers([entry], radio.patch_size)[entry.name]
        assert isinstance(teacher, EfficientNetLiteTeacher)  # its kind says so
        encoder = SentenceEncoder()
        images = unlabeled_images(recipe.data.source, min(radio.preferred_resolution))
    with clock.phase("learn"):
        model = build_model(radio, entry.name, teacher, encoder, imagenet_class_names(), images)

    def write(folder: Path) -> None:
        for part in (model, opened.processor, _tokenizer(encoder)):
            part.save_pretrained(folder)
        package = SENTENCE_PACKAGE
        tower = Source("all-MiniLM-L6-v2", "text tower", package.license, f"{package.ecosystem} package {package.name}")
        sources = [*teacher_sources(radio.config, recipe), tower]
        results = Results([], sources, [], describe_run(recorded_command(COMMAND.name, settings), clock))
        write_card(folder, results, name=f"radio-{recipe.name}-words")

    write_folder(settings.output, write, overwrite=settings.overwrite)
    print(
        f"Wrote {settings.output}: it opens in the pipeline zero-shot-image-classification. Measure it by "
        f"radio evaluate {settings.output.as_posix()} --data {recipe.data.source} --tasks zero_shot,open_vocabulary "
        "--dense-source features --templates simple"
    )


def _classifier(recipe: Recipe) -> TeacherRecipe:
    """Return the recipe's teacher whose classes have names."""
    for entry in recipe.teachers:
        if entry.kind == TEACHER_KIND:
            return entry
    kinds = ", ".join(entry.kind for entry in recipe.teachers)
    raise RecipeError(
        f"`teachers` of recipe {recipe.name!r} must include one of the kind {TEACHER_KIND}, which knows class names, "
        f"got {kinds or 'none'}. Give the --recipe that the student was trained with."
    )


def check_adaptor(radio: RadioModel, adaptor: str) -> None:
    """Refuse a student whose adaptor cannot be given a text tower.

    Raises:
        ValueError: If there is no such adaptor, or it is not as wide as the classifier's rows, or has no dense head.
    """
    found, width = radio.config.adaptor(adaptor), EfficientNetLiteTeacher.SUMMARY_DIM
    if found.summary_dim != width or found.feature_dim is None or found.upsample_factor != 1:
        raise ValueError(
            f"Adaptor {adaptor!r} must have `summary_dim` {width}, a `feature_dim` and `upsample_factor` 1, got "
            f"{found.summary_dim}, {found.feature_dim} and {found.upsample_factor}. Take a student that learned "
            "summaries and dense features of this teacher."
        )


def unlabeled_images(source: str, size_px: int) -> Tensor:
    """Return images of the training's kind, uint8 `(NUM_UNLABELED, 3, size_px, size_px)`."""
    images = build_images(source, size=size_px, num_images=NUM_UNLABELED, split="train")
    return render(images, range(NUM_UNLABELED), num_workers=0, show_progress=False)


def _tokenizer(encoder: SentenceEncoder) -> PreTrainedTokenizerBase:
    """Return the encoder's tokenizer without token types, which models with an image tower do not take."""
    backend = Tokenizer.from_str(encoder.tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
        **encoder.tokenizer.special_tokens_map,
    )


def ridge(sources: Tensor, targets: Tensor, penalty: float) -> nn.Linear:
    """Return the affine map with the least mean squared error plus `penalty` times the squared weights.

    Args:
        sources: `(num_pairs, source_dim)`.
        targets: `(num_pairs, target_dim)`.
        penalty: Above 0, in units of the sources' variance.
    """
    sources, targets = sources.double(), targets.double()
    mean, target_mean = sources.mean(dim=0), targets.mean(dim=0)
    centered = sources - mean
    covariance = centered.T @ centered / len(sources)
    penalized = covariance + penalty * torch.eye(len(covariance), dtype=torch.float64)
    weight = torch.linalg.solve(penalized, centered.T @ (targets - target_mean) / len(sources))
    return _as_layer(weight, target_mean - mean @ weight)


def _as_layer(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Return the float32 linear layer of a weight `(source_dim, target_dim)`."""
    layer = nn.Linear(weight.shape[0], weight.shape[1])
    layer.weight.data, layer.bias.data = weight.T.float().contiguous(), bias.float()
    return layer


def without_direction(layer: nn.Linear, direction: Tensor) -> nn.Linear:
    """Return the map whose outputs are orthogonal to a direction `(target_dim,)`."""
    unit = F.normalize(direction.double(), dim=0)
    columns = torch.cat([layer.weight.detach(), layer.bias.detach()[:, None]], dim=1).double()
    columns -= torch.outer(unit, unit @ columns)
    return _as_layer(columns[:, :-1].T, columns[:, -1])


class ComparedOutputs(NamedTuple):
    """Outputs of student and teacher on unlabeled images.

    Attributes:
        summaries: The adaptor's, `(num_images, summary_dim)`.
        probabilities: Probabilities of the teacher's classes, `(num_images, num_classes)`.
        hidden_states: Inputs of the last layer of the adaptor's dense head, `(num_images * num_patches, hidden_size)`.
        last_maps: The teacher's last map on the student's grid, `(num_images * num_patches, summary_dim)`.
    """

    summaries: Tensor
    probabilities: Tensor
    hidden_states: Tensor
    last_maps: Tensor


@torch.no_grad()
def compare(radio: RadioModel, adaptor: str, teacher: EfficientNetLiteTeacher, images: Tensor) -> ComparedOutputs:
    """Run student and teacher on images, uint8 RGB `(num_images, 3, height, width)`."""
    inputs: list[Tensor] = []
    layer = radio.radio_model.adaptor(adaptor).last_dense_linear
    handle = layer.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0].flatten(0, 1)))
    summaries, probabilities, last_maps = [], [], []
    try:
        for batch in ProgressBar(images.split(BATCH_SIZE), desc="unlabeled images", leave=False, disable=None):
            pixels = batch.float() / 255
            output = radio(pixels, adaptor_names=[adaptor], return_dict=True)
            rows, cols = (side // radio.patch_size for side in pixels.shape[-2:])
            last_map = teacher.last_map(pixels, rows, cols)
            summaries.append(output.adaptors[adaptor].summary)
            probabilities.append(teacher.classify(last_map.mean(dim=(2, 3))).softmax(dim=1))
            last_maps.append(last_map.permute(0, 2, 3, 1).flatten(0, 2))
    finally:
        handle.remove()
    return ComparedOutputs(*(torch.cat(each) for each in (summaries, probabilities, inputs, last_maps)))


def with_dense_summaries(radio: RadioModel, adaptor: str, compared: ComparedOutputs) -> RadioModel:
    """Return the student with one more adaptor, `ADAPTOR-words`, whose patches lie in the space of the rows.

    The classifier's rows compare with its last map, not with its dense features. The new adaptor copies the old one,
    except for the last layer of its dense head: a ridge regression of that map.
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
    variance = compared.hidden_states.double().var(dim=0, correction=0).mean().item()
    layer = ridge(compared.hidden_states, compared.last_maps, DENSE_PENALTY * variance)
    last = wider.radio_model.adaptor(name).last_dense_linear
    (prefix,) = [key for key, module in wider.named_modules() if module is last]
    state |= {f"{prefix}.weight": layer.weight.data, f"{prefix}.bias": layer.bias.data}
    wider.load_state_dict(state)
    return wider


@torch.no_grad()
def build_model(
    radio: RadioModel,
    adaptor: str,
    teacher: EfficientNetLiteTeacher,
    encoder: SentenceEncoder,
    names: Sequence[str],
    images: Tensor,
) -> RadioForZeroShotImageClassification:
    """Join a student with a sentence encoder, and with a map from its embeddings to the rows of a classifier.

    The map is orthogonal to the mean summary: the component that all summaries share separates no classes, and a class
    closer to it than others would win everywhere (.28 instead of .42 on the demo's held-out objects, 2026-11-26).

    Args:
        radio: The student.
        adaptor: One that `check_adaptor` accepts.
        teacher: The classifier.
        encoder: Encoder of the texts.
        names: Names of the teacher's classes, in order.
        images: Unlabeled images, uint8 RGB `(num_images, 3, height, width)`.
    """
    compared = compare(radio, adaptor, teacher, images)
    prompts = [prompt.replace("{}", name) for name in names for prompt in PROMPTS]
    texts = encoder.encode(prompts)
    rows = (teacher.rows - teacher.rows.mean(dim=0)).repeat_interleave(len(PROMPTS), dim=0)
    layer = without_direction(ridge(texts, rows, TEXT_PENALTY), compared.summaries.mean(dim=0))
    classes = F.normalize(layer(texts), dim=1).unflatten(0, (len(names), len(PROMPTS))).mean(dim=1)
    cosines = F.normalize(compared.summaries, dim=1) @ F.normalize(classes, dim=1).T
    losses = [-(compared.probabilities * (math.exp(s) * cosines).log_softmax(1)).sum(1).mean() for s in LOGIT_SCALES]
    scale = LOGIT_SCALES[int(torch.stack(losses).argmin())]
    tower = SentenceTower.from_parts(encoder.model, layer, max_length=MAX_LENGTH, logit_scale=scale)
    wider = with_dense_summaries(radio, adaptor, compared)
    return RadioForZeroShotImageClassification.from_parts(wider, tower, f"{adaptor}-words")


main = partial(COMMAND.run, _add_words)


if __name__ == "__main__":
    sys.exit(main())
