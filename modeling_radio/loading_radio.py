"""Opening of checkpoints and of peft's adapters: where files are found, what is refused, what is reported."""

import contextlib
import gc
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    CONFIG_NAME,
    cached_file,
    find_adapter_config_file,
    is_peft_available,
)

from .checks_radio import read_json
from .configuration_radio import FOREIGN_LAYOUTS, check_file
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


_FETCHING = ("backbone", "use_pretrained", "use_timm", "auto_map", "quantization")
"""Beginnings of fields by which configurations of transformers make it fetch something else."""


def library_config(model_type: str, fields: Mapping[str, Any]) -> PreTrainedConfig:
    """Return the configuration of a network of transformers; refuse fields of a stranger that would fetch or run code.

    Args:
        model_type: As `AutoConfig` knows it.
        fields: Fields of its class; those of a part are a mapping in them.

    Raises:
        ValueError: If a field makes transformers fetch something, or a part is built by timm from its name, which may
            be a repository, a folder or a file.
    """
    refused = fetching_fields(fields)
    if refused:
        raise ValueError(f"Fields of transformers:{model_type} must be of its architecture alone, got {refused}.")
    config = AutoConfig.for_model(model_type, **fields)
    for part in _types_of_parts(config):
        if part == "radio" or "Timm" in str(MODEL_MAPPING_NAMES.get(part)):
            raise ValueError(
                f"A network of transformers must not be, or contain, one of type radio or one of timm, got {part!r} in "
                f"{model_type!r}."
            )
    return config


def fetching_fields(values: Any) -> list[str]:
    """Return the fields, at any depth, by which transformers fetches something.

    Raises:
        ValueError: If a field is one that `check_file` refuses.
    """
    if isinstance(values, (list, tuple)):
        return [name for value in values for name in fetching_fields(value)]
    if not isinstance(values, Mapping):
        return []
    named = {str(name): value for name, value in values.items()}
    check_file(named)
    found = [name for name, value in named.items() if name.startswith(_FETCHING) and value not in (None, False)]
    return [*found, *(name for value in named.values() for name in fetching_fields(value))]


def _types_of_parts(value: Any) -> Iterator[str]:
    """Yield the types of a configuration and of those inside of it."""
    if isinstance(value, PreTrainedConfig):
        yield value.model_type
        value = vars(value)
    elif isinstance(value, Mapping) and "model_type" in value:
        yield str(value["model_type"])
    if isinstance(value, (Mapping, list, tuple)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _types_of_parts(part)
