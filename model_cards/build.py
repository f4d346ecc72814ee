"""Builds the model card of a checkpoint or adapter folder from its configuration and measured results."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

from huggingface_hub import CardData, ModelCard

from modeling_radio import RadioConfig
from modeling_radio.core.files import write_text
from modeling_radio.core.ids import name_of_folder
from modeling_radio.core.opening import check_weights
from modeling_radio.core.tables import markdown
from modeling_radio.core.trust import check_named_code
from modeling_radio.metrics.results import STUDENT, Results, Source, build_tables, class_tables
from modeling_radio.model_cards.kinds import (
    Conversion,
    build_adapter_card,
    build_converted_card,
    build_tuned_card,
    is_adapter,
)
from modeling_radio.model_cards.licenses import License, binding_teachers, warnings_of
from modeling_radio.model_cards.lineage import Lineage
from modeling_radio.model_cards.metadata import ABOUT_TRAINING, auto_class_of, card_data, write_eval_results
from modeling_radio.model_cards.parity import find_parity
from modeling_radio.model_cards.rendering import PLACEHOLDER, Raw, escaped, read_card, render_card, signed
from modeling_radio.zero_shot_radio import SentenceTowerConfig


FEATURES_FIGURE = "features.png"
"""An image of this name in the checkpoint folder is shown in the card."""
RESULTS = "results.json"
"""File of results beside a card, from which it can be written again with another license or name."""
_MODEL_ID = re.compile(r"(?=.{3,96}$)(?!.*(?:--|\.\.))[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*(?<![-.])", re.ASCII)
COST = ("seconds", "energy_kwh", "energy_of")
"""Entries of a run about its time and energy."""
MAKING = ("distil", "training")
"""Beginnings of the names of a run's training phase; a run without such a phase is an evaluation."""
BACKBONES = ("AutoModel", "AutoBackbone", "AutoModelForZeroShotImageClassification")
"""Auto classes of folders whose card is a backbone's, with or without a text tower."""
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def build_card(
    checkpoint: Path,
    results: Results | None = None,
    *,
    model_id: str | None = None,
    name: str | None = None,
    license: License | None = None,
    trusts_remote_code: bool = False,
) -> ModelCard:
    """Return the card of a checkpoint, a converted or an adapter folder; nothing is written.

    Args:
        checkpoint: Folder with `config.json` and safetensors weights.
        results: Measurements and sources; None leaves these sections out.
        model_id: `ORG/NAME` on the Hub, for the usage code; None leaves these words, which publishing replaces.
        name: Name of the model; None takes it from `model_id`, the configuration's version, or the folder.
        license: License of the weights; None leaves it open, and the card is not complete.
        trusts_remote_code: Whether the folder may name code of others; it is not run.

    Returns:
        The card with its metadata.

    Raises:
        ValueError: If the folder is no RADIO checkpoint, or names code of others.
    """
    config = _read_config(checkpoint, trusts_remote_code=trusts_remote_code)
    results, lineage = with_lineage(results or Results(measurements=[]), checkpoint)
    is_made_by_run = _is_made_by(results.run)
    results = replace(results, run=_with_own_cost(results.run))
    title = name or (model_id or config.version or name_of_folder(checkpoint)).rpartition("/")[2]
    source, tables = model_id or PLACEHOLDER, build_tables(results.measurements)
    shown: dict[str, Any] = {
        "title": title,
        "license": license,
        "results": results,
        "tables": tables,
        "class_tables": class_tables(results),
        "student": STUDENT,
        "num_seeds": len({measurement.seed for measurement in results.measurements} - {None}),
        "has_intervals": any("[" in cell for table in tables for _, cells in table.rows for cell in cells),
    }
    about_sources = {
        "started_from": lineage.weights,
        "warnings": warnings_of([*results.teachers, *lineage.weights]),
        "sources": _sources_table,
        "flat": _flat,
    }
    if is_adapter(checkpoint):
        return build_adapter_card(checkpoint, config, source, {**shown, **about_sources})
    conversion = Conversion.find(checkpoint)
    if conversion is None and auto_class_of(config) not in BACKBONES:
        return build_tuned_card(config, source, {**shown, **about_sources})
    shown["parity"] = find_parity(checkpoint)
    if conversion is not None:
        return build_converted_card(config, conversion, source, shown)
    teachers = [teacher.hub_id for teacher in results.teachers if teacher.hub_id]
    bases = teachers or [weights.hub_id for weights in lineage.weights[:1] if weights.hub_id]
    tags = ["feature-extraction", *(["distillation"] if results.teachers else [])]
    data = card_data(config, title, license, tags=tags, base_models=bases, relation="finetune", results=results)
    return render_card(
        "checkpoint.md",
        config,
        data,
        source,
        **shown,
        **about_sources,
        teacher_names=[teacher.name for teacher in results.teachers],
        binding=[f"{teacher.name} ({teacher.license})" for teacher in binding_teachers(results.teachers)],
        picture=FEATURES_FIGURE if (checkpoint / FEATURES_FIGURE).is_file() else None,
        **_texts(config),
        is_made_by_run=is_made_by_run,
        cost=_cost(results.run) if is_made_by_run else {},
    )


def write_card(
    checkpoint: Path,
    results: Results | None = None,
    *,
    model_id: str | None = None,
    name: str | None = None,
    license: License | None = None,
    trusts_remote_code: bool = False,
) -> Path:
    """Write `README.md`, its results as `results.json`, and `.eval_results/` for data sets of the Hub.

    Arguments are those of `build_card`; without `results` the card shows those in the folder.

    Raises:
        ValueError: If the folder is no RADIO checkpoint, its `results.json` holds something else, or weights are not
            finite or no floating-point numbers.
    """
    kept = results_of(checkpoint)
    results = results or kept
    card = build_card(
        checkpoint, results, model_id=model_id, name=name, license=license, trusts_remote_code=trusts_remote_code
    )
    check_weights(checkpoint)
    write_text(checkpoint / "README.md", signed(str(card)))
    if results is not None:
        numbers = [each for each in results.measurements if isfinite(each.value)]  # the file holds no others
        replace(results, measurements=numbers).save(checkpoint / RESULTS)
    write_eval_results(checkpoint, results or Results([]))
    return checkpoint / "README.md"


def with_lineage(results: Results, checkpoint: Path) -> tuple[Results, Lineage]:
    """Return results with the teachers and training images of the folder's lineage, and that lineage."""
    lineage = Lineage.find(checkpoint)
    names = {teacher.name for teacher in results.teachers}
    teachers = [teacher for teacher in lineage.teachers if teacher.name not in names]
    trained_on = {(images.name, images.origin) for images in results.datasets if ABOUT_TRAINING in images.role}
    datasets = [images for images in lineage.images if (images.name, images.origin) not in trained_on]
    found = replace(results, teachers=[*results.teachers, *teachers], datasets=[*datasets, *results.datasets])
    return found, lineage


def _read_config(checkpoint: Path, *, trusts_remote_code: bool) -> RadioConfig:
    if not is_adapter(checkpoint) and not any((checkpoint / name).is_file() for name in WEIGHTS):
        raise ValueError(f"{checkpoint} is no checkpoint folder: it has no {WEIGHTS[0]}.")
    try:
        content = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        model_type = content.get("model_type") if isinstance(content, dict) else content
        if model_type != RadioConfig.model_type:  # transformers would only warn
            raise ValueError(f"its model_type is {model_type!r:.60}, not {RadioConfig.model_type!r}")
        if not trusts_remote_code:
            check_named_code(checkpoint)
        return RadioConfig.from_pretrained(checkpoint)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{checkpoint} is no RADIO checkpoint folder: config.json: {error}") from error


def _texts(config: RadioConfig) -> dict[str, bool]:
    """Return whether a sentence encoder embeds the texts, and whether dense features are compared with them."""
    has_sentences = (config.text_tower or {}).get("model_type") == SentenceTowerConfig.model_type
    adaptor = config.adaptor(str(config.text_adaptor)) if has_sentences else None
    is_dense = adaptor is not None and adaptor.feature_dim == adaptor.summary_dim
    return {"has_sentences": has_sentences, "has_dense_texts": is_dense}


def _phases(run: dict[str, Any]) -> list[str]:
    seconds = run.get("seconds")
    return list(seconds) if isinstance(seconds, dict) else []


def _is_made_by(run: dict[str, Any]) -> bool:
    """Return whether a run trained the checkpoint; others evaluated it."""
    return any(phase.startswith(MAKING) for phase in _phases(run))


def _with_own_cost(run: dict[str, Any]) -> dict[str, Any]:
    """Return a run without time and energy that are not of this checkpoint: after a resume, or of several seeds."""
    seeds = run.get("seeds")
    is_resumed = any(phase.endswith("(resumed)") for phase in _phases(run))
    is_of_more = isinstance(seeds, list) and len(seeds) > 1
    return {key: value for key, value in run.items() if key not in COST} if is_resumed or is_of_more else run


def _cost(run: dict[str, Any]) -> dict[str, str]:
    """Return hardware, time and energy in words, if the run recorded them."""
    seconds, energy, cost = run.get("seconds"), run.get("energy_kwh"), {}
    if "machine" in run:
        cost["hardware"] = _flat(run["machine"])
    if isinstance(seconds, dict):
        cost["time"] = f"{sum(value for value in seconds.values() if _is_number(value)):.1f} s in all"
    if _is_number(energy):
        counted = f", counted by {_flat(run['energy_of'])}" if "energy_of" in run else ""
        cost["energy"] = f"{energy} kWh{counted}"
    return cost


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _sources_table(sources: Iterable[Source]) -> str:
    rows = [[escaped(text) for text in (s.name, s.role, s.size, s.license, s.origin)] for s in sources]
    return Raw(markdown(["name", "role", "size", "license", "origin"], rows) + "\n")


def _flat(value: Any) -> str:
    """Return one table cell: maps and lists are comma-separated, numbers that are not finite are dashes."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_flat(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return ", ".join(map(_flat, value))
    return "-" if isinstance(value, float) and not isfinite(value) else str(value)


def check_model_id(model_id: str | None) -> None:
    """Refuse a name that no repository on the Hub can have.

    Raises:
        ValueError: If it is given and not ORG/NAME in letters, digits, "-", "_" and ".".
    """
    if model_id is not None and not _MODEL_ID.fullmatch(model_id):
        raise ValueError(
            f"`model_id` must be ORG/NAME in letters, digits, '-', '_' and '.', at most 96 of them, got {model_id!r}."
        )


def results_of(folder: Path) -> Results | None:
    """Return the results beside the card in a folder; None where there are none.

    Raises:
        ValueError: If the file holds something else.
    """
    return Results.load(folder / RESULTS) if (folder / RESULTS).is_file() else None


def license_of(folder: Path) -> License | None:
    """Return the license that the card in a folder names; None where there is no card, or it names none.

    Raises:
        ValueError: If the card's metadata cannot be read.
    """
    data = metadata_of(folder)
    if data is None or not data.get("license"):
        return None
    return License(str(data.get("license")), data.get("license_name"), data.get("license_link"))


def metadata_of(folder: Path) -> CardData | None:
    """Return the metadata of the card in a folder, None where there is no card."""
    card = folder / "README.md"
    return read_card(card.read_text(encoding="utf-8")).data if card.is_file() else None
