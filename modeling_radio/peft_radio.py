"""Adapters of peft: the base that one names, and what is refused where it is put on a model."""

import importlib.metadata
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import transformers
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    find_adapter_config_file,
    is_peft_available,
    is_peft_greater_or_equal,
)

from .checks_radio import read_json
from .loading_radio import HUB_ID, is_radio_folder


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Return the content of `adapter_config.json`.

    Raises:
        ValueError: If it has a configuration inside, such as `megatron_config`: some of them name modules that peft
            imports, or files that it reads.
    """
    path = folder / ADAPTER_CONFIG_NAME
    values = read_json(path)
    if nested := [name for name, value in values.items() if name.endswith("_config") and value]:
        raise ValueError(f"{str(path)!r} must be one of plain LoRA, DoRA or rsLoRA: set `{nested[0]}` to null.")
    return values


def named_base(folder: Path) -> str:
    """Return the base that the description of an adapter in `folder` names; errors are those of `find_adapter_base`."""
    if not is_peft_available():
        raise ValueError(f"{str(folder)!r} is an adapter folder, which peft opens: `pip install peft`.")
    path = folder / ADAPTER_CONFIG_NAME
    base = read_adapter_config(folder).get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        problem = "names no base"
    elif found := [local for local in (folder / base, Path(base)) if local.is_dir()]:
        if is_radio_folder(found[0]):
            return str(found[0])
        problem = "is no folder of a RADIO model"
    elif HUB_ID.fullmatch(base):
        return base
    else:
        problem = "is no folder on this machine"
    raise ValueError(
        f"`base_model_name_or_path` in {str(path)!r} must be the folder or Hub id of the model that the adapter was "
        f"trained on, got {base!r}, which {problem}."
    )


def check_adapter_versions(adapter: str | Path | None, **download_options: Any) -> None:
    """Raise a `ValueError` if an adapter has a head that the installed transformers and peft would leave out.

    Args:
        adapter: Folder or Hub id; `None` if there is neither.
        download_options: Download options of transformers' `find_adapter_config_file`.
    """
    release = tuple(int(number) for number in transformers.__version__.split(".")[:2])
    is_recent = release >= (5, 18) and is_peft_greater_or_equal("0.20")
    if adapter is None or is_recent or not is_peft_available():
        return
    path = find_adapter_config_file(str(adapter), **download_options)
    if path is not None and json.loads(Path(path).read_text()).get("modules_to_save"):
        raise ValueError(
            f"The adapter in {str(adapter)!r} has a head, which takes transformers 5.18 and peft 0.20 or newer; "
            f"installed are transformers {transformers.__version__} and peft {importlib.metadata.version('peft')}: "
            "upgrade, or open the base and put the adapter on it by `peft.PeftModel.from_pretrained`."
        )


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
        remark: Further facts about the difference, a sentence.
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
