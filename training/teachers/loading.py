"""Load a pretrained model of transformers, or say in one line why it does not load."""

from __future__ import annotations

from typing import Any


def load_pretrained(model_class: type, source: str, name: str, **arguments: Any) -> Any:
    """Return `model_class.from_pretrained(source)`, refusing a checkpoint that lacks some weights.

    Raises:
        ValueError: If the checkpoint is not that model, is incomplete, or cannot be reached: one line.
    """
    try:
        model, report = model_class.from_pretrained(source, output_loading_info=True, **arguments)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"teacher {name!r}: {source!r} does not load as {model_class.__name__}: {reason}") from error
    problems = sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
    if problems:
        shown = ", ".join(problems[:3])
        raise ValueError(
            f"teacher {name!r}: {source!r} is not a {model_class.__name__}: {len(problems)} weights are "
            f"missing or of another shape, the first are {shown}"
        )
    return model
