"""Adapter folders of peft: finding the base of one, and refusing one that was made for another model."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME, is_peft_available


def find_adapter_base(folder: str | Path | None) -> str | None:
    """Return the base that a local adapter folder names; `None` if it is no such folder.

    A folder that also holds a whole model is none: transformers opens both by itself. Without a `config.json` it does
    the same with the base.

    Raises:
        ValueError: If peft is not installed.
    """
    if folder is None or not all((Path(folder) / name).is_file() for name in (ADAPTER_CONFIG_NAME, CONFIG_NAME)):
        return None
    if any(Path(folder).glob("model*.safetensors")):
        return None
    if not is_peft_available():
        raise ValueError(f"{str(folder)!r} is an adapter folder, which peft opens: `pip install peft`.")
    return json.loads((Path(folder) / ADAPTER_CONFIG_NAME).read_text())["base_model_name_or_path"]


def check_adapter_weights(
    adapter: str | Path | None,
    missing: Iterable[str],
    unexpected: Iterable[str],
    mismatched: Iterable[tuple[str, Sequence[int], Sequence[int]]],
    remark: str = "",
) -> None:
    """Raise a `ValueError` unless an adapter has the weights that a model needs, and no others.

    Args:
        adapter: Folder or Hub id.
        missing: Names of weights that the adapter lacks.
        unexpected: Names of weights that the model has no place for.
        mismatched: Names of weights with their shapes in the adapter and in the model.
        remark: What else is known about the difference, a sentence.
    """
    differences = [
        f"`{name}` has the shape {tuple(there)} in the adapter and {tuple(here)} in the model"
        for name, there, here in sorted(mismatched)[:1]
    ]
    differences += [f"the model has no `{name}`" for name in sorted(unexpected)[:1]]
    differences += [f"the adapter has no `{name}`" for name in sorted(missing)[:1]]
    if differences:
        raise ValueError(
            f"The adapter in {str(adapter)!r} is for another model: {', '.join(differences)}. {remark}".rstrip()
            + " Open the base that it was trained on, with the head that the adapter's config.json describes."
        )
