"""Opening of checkpoints and of peft's adapters: where files are found, what is refused, what is reported."""

import contextlib
import gc
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    CONFIG_NAME,
    cached_file,
    find_adapter_config_file,
    is_peft_available,
)

from .checks_radio import read_json
from .configuration_radio import FOREIGN_LAYOUTS
from .hub_radio import DOWNLOAD_OPTIONS, import_sibling, remember_folder


@contextlib.contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """Keep Python from looking for garbage meanwhile; it goes on afterwards if it was on.

    Opening a folder makes thousands of small objects, and each few hundred of them make the collector walk through
    those of torch and transformers: more than half of the processor time of opening C-RADIOv4-H, weights apart.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


WHOLE_MODELS = ("model*.safetensors", "pytorch_model*.bin")
HUB_ID = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*")
ODD_VALUES = (TypeError, KeyError, IndexError, AttributeError, ArithmeticError, RecursionError)
"""Errors that transformers and peft raise on values in a configuration that they do not expect.

A bare `LookupError` is our own error for a missing text tower, and must not become a `ValueError`: pipelines catch it.
"""


def find_adapter_base(folder: str | Path) -> str | None:
    """Return the base that a local adapter folder names; `None` if it is no such folder.

    None also for a folder with a whole model or without `config.json`: transformers opens those itself.

    Args:
        folder: Any name of a model. An adapter may name a base by its path from here, too.

    Raises:
        ValueError: If peft is not installed, or the folder names nothing that can be a base.
    """
    folder = Path(folder)
    if not _is_adapter(folder) or not (folder / CONFIG_NAME).is_file():
        return None
    remember_folder(folder, {})
    return import_sibling("peft_radio").named_base(folder)


def is_radio_folder(folder: str | Path) -> bool:
    """Return whether a folder holds a whole model in our layout or NVIDIA's, by its `config.json`."""
    config = Path(folder, CONFIG_NAME)
    if _is_adapter(Path(folder)) or not config.is_file():
        return False
    values = read_json(config)
    return values.get("model_type") == "radio" or any(layout.describes(values) for layout in FOREIGN_LAYOUTS)


def _is_adapter(folder: Path) -> bool:
    has_model = any(any(folder.glob(pattern)) for pattern in WHOLE_MODELS)
    return (folder / ADAPTER_CONFIG_NAME).is_file() and not has_model


def source_of_weights(name: str | Path, arguments: Mapping[str, Any]) -> str | Path:
    """Return where transformers takes a model's weights from: the base of an adapter, or what is opened itself.

    Args:
        name: First argument of `from_pretrained`.
        arguments: The others.
    """
    is_base = "_adapter_model_path" in (arguments.get("adapter_kwargs") or {})
    if is_base or not is_peft_available() or Path(name).is_file() or Path(name, CONFIG_NAME).exists():
        return name
    keys = (*DOWNLOAD_OPTIONS, "revision", "subfolder")
    options = {key: arguments[key] for key in keys if arguments.get(key) is not None}
    path = find_adapter_config_file(str(name), **options)
    return name if path is None else json.loads(Path(path).read_text()).get("base_model_name_or_path") or name


def config_of_hub_adapter(
    config_class: type[PreTrainedConfig], name: str | Path, arguments: Mapping[str, Any]
) -> PreTrainedConfig | None:
    """Return the configuration beside an adapter of the Hub; `None` where none is opened, or its caller chose one.

    transformers opens such an adapter with the `config.json` of its base, which knows nothing of the adapter's head.

    Args:
        config_class: Configuration class of the model.
        name: First argument of `from_pretrained`: the adapter, or from the Auto classes its base.
        arguments: The others. What a caller of the Auto classes changed in the base's configuration is changed here.
    """
    options = {key: arguments[key] for key in (*DOWNLOAD_OPTIONS, "revision") if arguments.get(key) is not None}
    of_adapter = dict(arguments.get("adapter_kwargs") or {})
    adapter, given = of_adapter.pop("_adapter_model_path", None), arguments.get("config")
    is_by_auto = adapter is not None
    if adapter is None and given is None and is_peft_available() and not Path(name).exists():
        adapter = name if find_adapter_config_file(str(name), **options) is not None else None
    if adapter is None or Path(adapter).exists():
        return None
    of_base = given if isinstance(given, PreTrainedConfig) and given.name_or_path == str(name) else None
    if is_by_auto and of_base is None:
        return None
    fetched = {**options, **of_adapter} if is_by_auto else options
    if cached_file(str(adapter), CONFIG_NAME, _raise_exceptions_for_missing_entries=False, **fetched) is None:
        return None
    config = config_class.from_pretrained(str(adapter), **fetched)
    if of_base is not None:
        stated = config_class.from_pretrained(str(name), **options).to_dict()
        for field, value in of_base.to_dict().items():
            if value != stated.get(field):
                setattr(config, field, value)
        config._attn_implementation = of_base._attn_implementation
    return config
