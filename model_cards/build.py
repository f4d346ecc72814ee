"""Writes the model card of a checkpoint folder from its configuration and measured results."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from foundation.command_line import Command
from foundation.files import write_text
from foundation.settings import Settings
from foundation.tables import markdown
from model_cards.rendering import Raw, code_span, escaped, render_card
from model_cards.results import STUDENT, Measurement, Results, Source, build_tables
from modeling_radio import RadioConfig, RadioModel


LICENSE = "other"
"""License identifier of the weights unless told otherwise: who publishes them decides, by teachers and images."""
PICTURE = "features.png"
"""A picture of this name in the checkpoint folder is shown in the card."""
_MODEL_ID = re.compile(r"(?=.{3,96}$)(?!.*(?:--|\.\.))[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*(?<![-.])", re.ASCII)
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
HUB_TASKS = {
    "knn": "image-classification",
    "zero_shot": "zero-shot-image-classification",
    "segmentation_probe": "image-segmentation",
}
"""Task identifiers of the Hub; everything else is filed under the pipeline's own task."""
PIPELINE_TAG = "image-feature-extraction"


@dataclass(frozen=True)
class ParameterCounts:
    """Learned numbers of a checkpoint, by part.

    Attributes:
        backbone: Without the position table, as the papers count.
        position_table: The position table alone.
        adaptors: Per adaptor name.
    """

    backbone: int
    position_table: int
    adaptors: dict[str, int]


def count_parameters(config: RadioConfig) -> ParameterCounts:
    """Count the parameters of the network that a configuration describes, without allocating it."""
    with torch.device("meta"):
        network = RadioModel(config).radio_model
    backbone = _num_parameters(network.model)
    position_table = network.model.patch_generator.pos_embed.numel()
    adaptors = {name: _num_parameters(network.adaptors[name]) for name in network.adaptors}
    return ParameterCounts(backbone - position_table, position_table, adaptors)


def _num_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def build_card(
    checkpoint: Path,
    results: Results | None = None,
    *,
    model_id: str | None = None,
    name: str | None = None,
    license: str = LICENSE,
) -> ModelCard:
    """Return the card of a checkpoint folder; nothing is written.

    Args:
        checkpoint: Folder with `config.json` and safetensors weights.
        results: What was measured and what it was made from; None leaves these sections out.
        model_id: `ORG/NAME` on the Hub, for the usage code; None uses the folder's path.
        name: Of the model; None takes it from `model_id`, the configuration's version, or the folder.
        license: License identifier of the weights for the Hub.

    Returns:
        The card with its metadata.

    Raises:
        ValueError: If the folder is no RADIO checkpoint.
    """
    config = _read_config(checkpoint)
    results = results or Results(measurements=[])
    height, width = config.preferred_resolution
    title = name or (model_id or config.version or checkpoint.resolve().name).rpartition("/")[2]
    return render_card(
        "checkpoint.md",
        config,
        _card_data(results, title, license),
        model_id or str(checkpoint),
        title=title,
        license=_license_sentence(license),
        parameters=count_parameters(config),
        results=results,
        teacher_names=[teacher.name for teacher in results.teachers],
        tables=build_tables(results.measurements),
        student=STUDENT,
        num_seeds=len({measurement.seed for measurement in results.measurements} - {None}),
        picture=PICTURE if (checkpoint / PICTURE).is_file() else None,
        height=height,
        width=width,
        rows=height // config.patch_size,
        cols=width // config.patch_size,
        sources=_sources_table,
        flat=_flat,
    )


def write_card(
    checkpoint: Path,
    results: Results | None = None,
    *,
    model_id: str | None = None,
    name: str | None = None,
    license: str = LICENSE,
) -> Path:
    """Write `README.md` into a checkpoint folder and return its path; arguments as in `build_card`."""
    card = build_card(checkpoint, results, model_id=model_id, name=name, license=license)
    write_text(checkpoint / "README.md", str(card))
    return checkpoint / "README.md"


def _read_config(checkpoint: Path) -> RadioConfig:
    if not any((checkpoint / name).is_file() for name in WEIGHTS):
        raise ValueError(f"{checkpoint} is no checkpoint folder: it has no {WEIGHTS[0]}.")
    try:
        content = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        model_type = content.get("model_type") if isinstance(content, dict) else content
        if model_type != RadioConfig.model_type:  # transformers would only warn
            raise ValueError(f"its model_type is {model_type!r:.60}, not {RadioConfig.model_type!r}")
        return RadioConfig.from_pretrained(checkpoint)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{checkpoint} is no RADIO checkpoint folder: config.json: {error}") from error


def _license_sentence(license: str) -> str:
    if license == LICENSE:
        return "No license has been chosen for these weights yet; whoever publishes them must."
    return Raw(f"The weights are released under {code_span(license)}.")


def _card_data(results: Results, title: str, license: str) -> ModelCardData:
    student = [measurement for measurement in results.measurements if measurement.model == STUDENT]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=PIPELINE_TAG,
        license=license,
        tags=["radio", "vision", "feature-extraction", "distillation", "custom_code"],
        base_model=[teacher.hub_id for teacher in results.teachers if teacher.hub_id] or None,
        model_name=title,
        eval_results=[_eval_result(measurement) for measurement in student] or None,
    )


def _eval_result(measurement: Measurement) -> EvalResult:
    return EvalResult(
        task_type=HUB_TASKS.get(measurement.task, PIPELINE_TAG),
        dataset_type=measurement.dataset.replace(" ", "-"),
        dataset_name=measurement.dataset,
        metric_type=measurement.metric.replace(" ", "_"),
        metric_name=f"{measurement.task} {measurement.metric}",
        metric_value=round(measurement.value, 4),
        metric_args=None if measurement.seed is None else {"seed": measurement.seed},
    )


def _sources_table(sources: Iterable[Source]) -> str:
    rows = [[escaped(text) for text in (s.name, s.role, s.size, s.license, s.origin)] for s in sources]
    return Raw(markdown(["name", "role", "size", "license", "origin"], rows) + "\n")


def _flat(value: Any) -> str:
    """Return one table cell: maps and lists become comma-separated."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_flat(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return ", ".join(map(_flat, value))
    return f"{value:.1f}" if isinstance(value, float) else str(value)


class CardSettings(Settings):
    """Whose card shall be written, and what it shall say.

    Attributes:
        checkpoint: Folder with config.json and model.safetensors.
        results: File that training.evaluate or training.demo wrote, results.json.
        model_id: ORG/NAME on the Hub; by default the folder's path.
        name: Of the model; by default from the id, the version, or the folder.
        license: Of the weights.
    """

    checkpoint: Path
    results: Path | None = None
    model_id: str | None = None
    name: str | None = None
    license: str = LICENSE


COMMAND = Command("model_cards.build", __doc__, CardSettings, positionals=("checkpoint",))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return COMMAND.run(_write, arguments, extra="commands")


def check_model_id(model_id: str | None) -> None:
    """Refuse what can be no repository on the Hub.

    Raises:
        ValueError: If it is given and not ORG/NAME in letters, digits, "-", "_" and ".".
    """
    if model_id is not None and not _MODEL_ID.fullmatch(model_id):
        raise ValueError(
            f"`model_id` must be ORG/NAME in letters, digits, '-', '_' and '.', at most 96 of them, got {model_id!r}."
        )


def _write(settings: CardSettings) -> None:
    check_model_id(settings.model_id)
    results = None if settings.results is None else Results.load(settings.results)
    path = write_card(
        settings.checkpoint, results, model_id=settings.model_id, name=settings.name, license=settings.license
    )
    print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
