"""Cards of other folders than students: tuned models, adapters, and converted checkpoints of NVIDIA's."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from pydantic import ConfigDict
from transformers.utils import ADAPTER_CONFIG_NAME

from modeling_radio import TASK_MODELS, RadioConfig
from modeling_radio.core.files import write_text
from modeling_radio.metrics.results import load_typed
from modeling_radio.model_cards.licenses import SOURCE_CODE_LICENSE, License, nvidia_license
from modeling_radio.model_cards.metadata import HUB_ID, auto_class_of, card_data, task_of_folder
from modeling_radio.model_cards.rendering import render_card
from modeling_radio.peft_radio import read_adapter_config
from modeling_radio.tasks_radio import TASKS


BASE_PLACEHOLDER = "ORG/BASE"
"""Stands for a base that is a local folder, until `radio publish --base` names its repository."""
MAX_CLASSES = 100
"""Our choice: a card lists no more classes."""
CONVERTED = ", converted"
"""End of the title."""
FILE = "conversion.json"
"""File of a converted folder, from which its card can be written again; later training does not copy it."""


RESULTS_OF_PIPELINES = {
    "image-classification": '[{"label": ..., "score": ...}, ...], the highest score first',
    "zero-shot-image-classification": '[{"label": ..., "score": ...}, ...], the highest score first',
    "image-segmentation": '[{"label": ..., "mask": a PIL image, ...}, ...]',
    "object-detection": '[{"label": ..., "score": ..., "box": {"xmin": ..., ...}}, ...]',
    "depth-estimation": '{"predicted_depth": meters for each pixel, "depth": a PIL image}',
}
"""Results of pipelines of transformers."""
ARGUMENTS_OF_PIPELINES = {"zero-shot-image-classification": ', candidate_labels=["a cat", "a dog"]'}
"""Further arguments of pipelines."""
READINGS = {
    "multi_label_classification": (
        "scores = output.logits[0].sigmoid().tolist()\nprint(dict(zip(model.config.id2label.values(), scores)))"
    ),
    "regression": "print(output.logits[0].tolist())",
}
"""Code that reads the scores of classifiers that do not choose one class, by problem type."""
KINDS_OF_CLASSIFIERS = {
    "multi_label_classification": "image classification with several labels an image,",
    "regression": "a number for each image,",
}
"""Tasks of such classifiers in words."""


@dataclass(frozen=True)
class TaskUsage:
    """Code of a task model's card.

    Attributes:
        result: Result of its pipeline; empty leaves this line out.
        reading: Lines that read the model's output without a pipeline; empty leaves this code out.
        arguments: Further arguments of the pipeline.
    """

    result: str
    reading: str
    arguments: str = ""


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter of peft."""
    return (folder / ADAPTER_CONFIG_NAME).is_file()


def build_adapter_card(folder: Path, config: RadioConfig, source: str, shown: dict[str, Any]) -> ModelCard:
    """Return the card of an adapter.

    Args:
        folder: Folder with peft's two files and the `config.json` of the task model.
        config: Configuration of the task model.
        source: Hub id that the code opens.
        shown: Title, license, results and lineage.
    """
    settings = read_adapter_config(folder)
    named = str(settings.get("base_model_name_or_path"))
    base = named if "/" in named and HUB_ID.fullmatch(named) else BASE_PLACEHOLDER
    kind = "DoRA" if settings.get("use_dora") else "rsLoRA" if settings.get("use_rslora") else "LoRA"
    data = card_data(
        config,
        shown["title"],
        shown["license"],
        tags=["lora", "peft"],
        base_models=[base],
        relation="adapter",
        results=shown["results"],
        library="peft",
    )
    return render_card(
        "adapter.md",
        config,
        data,
        source,
        **shown,
        base=base,
        kind=kind,
        rank=settings.get("r"),
        auto_class=auto_class_of(config),
        usage=_task_usage(config),
        **_classes(config),
    )


def build_tuned_card(config: RadioConfig, source: str, shown: dict[str, Any]) -> ModelCard:
    """Return the card of a model with a head for a task.

    Args:
        config: Its configuration.
        source: Hub id that the code opens.
        shown: Title, license, results and lineage.
    """
    base = next(iter(shown["started_from"]), None)
    data = card_data(
        config,
        shown["title"],
        shown["license"],
        tags=[],
        base_models=[base.hub_id] if base is not None and base.hub_id else [],
        relation="finetune",
        results=shown["results"],
    )
    values = {**shown, "base": base, "article": _article(config), "auto_class": auto_class_of(config)}
    return render_card("tuned.md", config, data, source, **values, usage=_task_usage(config), **_classes(config))


def _task_usage(config: RadioConfig) -> TaskUsage | None:
    """Return the code for a task model; None for other models."""
    task = task_of_folder(config)
    if task is None:
        return None if auto_class_of(config) in ("AutoModel", "AutoBackbone") else TaskUsage("", "print(output)")
    reading = ""
    if task.post_processing is not None:
        reading = (
            "size = inputs.pixel_values.shape[-2:]\n"
            f"print(processor.{task.post_processing}(output, target_sizes=[size])[0])"
        )
    elif task.has_classes:
        one = "print(model.config.id2label[output.logits.argmax().item()])"
        reading = READINGS.get(str(config.problem_type), one)
    name = task.pipeline
    return TaskUsage(RESULTS_OF_PIPELINES.get(name, ""), reading, ARGUMENTS_OF_PIPELINES.get(name, ""))


def _article(config: RadioConfig) -> str:
    """Return what a task model is, in words with an article."""
    task = task_of_folder(config)
    names = [name for name, each in TASKS.items() if each == task]
    kind = KINDS_OF_CLASSIFIERS.get(str(config.problem_type), " ".join(names).replace("-", " "))
    (own,) = (config.architectures or [""])[:1]
    model = "A model" if own in TASK_MODELS else f"A model with a head of its own, {own},"
    return f"{model} for {kind}" if kind else model


def _classes(config: RadioConfig) -> dict[str, Any]:
    """Return the names of classes for the template, no more than fit a card; none for measured numbers and depth."""
    task = task_of_folder(config)
    has_classes = config.problem_type != "regression" and task is not None and task.has_classes
    names = sorted((config.id2label or {}).items()) if has_classes else []
    return {"classes": names[:MAX_CLASSES], "num_more_classes": max(len(names) - MAX_CLASSES, 0)}


@dataclass(frozen=True)
class Conversion:
    """Origin of a converted folder.

    Attributes:
        source: Name of NVIDIA's checkpoint in the card; a Hub id is in the metadata too.
        text_source: Name of the checkpoint of a packed text tower.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    source: str
    text_source: str | None = None

    def save(self, folder: Path) -> None:
        """Write the file into a folder."""
        write_text(folder / FILE, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def find(cls, folder: Path) -> Conversion | None:
        """Return the origin of a folder if it was converted.

        Raises:
            ValueError: If the file holds something else.
        """
        return load_typed(cls, folder / FILE, "file of `radio convert`") if (folder / FILE).is_file() else None


def build_converted_card(config: RadioConfig, conversion: Conversion, source: str, shown: dict[str, Any]) -> ModelCard:
    """Return the card of a converted checkpoint, with origin and license of its weights.

    Args:
        config: The checkpoint's configuration.
        conversion: Its origin.
        source: Hub id that the code opens.
        shown: Title, license and results.

    Raises:
        ValueError: If NVIDIA's license is known and another one is given.
    """
    license = _license(config.version, shown["license"])
    bases = [name for name in (conversion.source, conversion.text_source) if name and "/" in name]
    title = f"{shown['title'].removesuffix(CONVERTED)}{CONVERTED}"
    data = card_data(
        config,
        title,
        license,
        tags=["feature-extraction"],
        base_models=bases,
        relation="quantized",
        results=shown["results"],
    )
    return render_card(
        "converted.md",
        config,
        data,
        source,
        **shown | {"title": title, "license": license},
        is_noncommercial=license == SOURCE_CODE_LICENSE,
        is_nvidias=nvidia_license(config.version) is not None,
        conversion=conversion,
    )


def _license(version: str | None, asked: License | None) -> License | None:
    """Return the license of the weights: NVIDIA's where it is known."""
    known = nvidia_license(version)
    if known is not None and asked is not None and asked != known:
        raise ValueError(
            f"`license` must be left out where weights of NVIDIA's were converted: they keep {known.name}, got "
            f"{asked.name or asked.id!r}."
        )
    return known or asked
