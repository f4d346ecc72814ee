"""Configurations of networks of transformers, which a stranger's folder may contain and which must not fetch code."""

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from .configuration_radio import check_file


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
