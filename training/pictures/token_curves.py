"""What is measured over the number of global tokens of RADIO1D, as curves."""

from __future__ import annotations

import re
from collections.abc import Sequence

from model_cards.results import Measurement
from training.pictures.curves import ValuesByCount


TOKEN_TASKS = ("knn_over_tokens", "segmentation_over_tokens", "fidelity_over_tokens")
AXIS = "global tokens"
_METRIC = re.compile(r"(?P<count>\d+) tokens, (?P<metric>.+)")


def values_by_tokens(measurements: Sequence[Measurement]) -> dict[str, dict[str, ValuesByCount]]:
    """Return the values by metric, model and number of tokens."""
    panels: dict[str, dict[str, ValuesByCount]] = {}
    for measurement in measurements:
        match = _METRIC.fullmatch(measurement.metric) if measurement.task in TOKEN_TASKS else None
        if match is not None:
            by_count = panels.setdefault(match["metric"], {}).setdefault(measurement.model, {})
            by_count.setdefault(int(match["count"]), []).append(measurement.value)
    return panels
