"""What the training arguments and the `config.json` of NVIDIA's files must look like as far as they are read."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)


Name = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,200}$")]
"""One line."""


class _Part(BaseModel):
    """A mapping of which only some entries are read; numbers are numbers and never text or truth values."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, protected_namespaces=())


class _Spectral(_Part):
    eps: PositiveFloat = 1e-12


def _check_spectral(value: Any) -> Any:
    return _Spectral.model_validate(value) if isinstance(value, dict) else value


class _Teacher(_Part):
    name: Name
    use_summary: bool = True
    fd_upsample_factor: NonNegativeInt | None = None
    token_slot: NonNegativeInt | None = None


class _ArchitectureOptions(_Part):
    embed_dim: PositiveInt = 1
    depth: PositiveInt = 1
    num_heads: PositiveInt = 1
    mlp_ratio: PositiveFloat = 1.0


class _Arguments(_Part):
    model: Name | None = None
    model_kwargs: _ArchitectureOptions | None = None
    teachers: list[_Teacher] = Field(min_length=1)
    cls_token_per_teacher: bool = True
    register_multiple: NonNegativeInt | None = None
    cpe_num_registers: NonNegativeInt | None = None
    cpe_max_size: PositiveInt | None = None
    mlp_version: Name | None = None
    spectral_reparam: Annotated[Any, AfterValidator(_check_spectral)] = None


class _Head(_Part):
    upsample_factor: NonNegativeInt | None = None


class _Heads(_Part):
    feature: _Head
    head_idx: NonNegativeInt | None = None


class _HubConfig(_Part):
    version: Name | None = None
    max_resolution: PositiveInt | None = None
    preferred_resolution: Annotated[list[PositiveInt], Field(min_length=2, max_length=2)] | None = None
    vitdet_window_size: PositiveInt | None = None
    adaptor_names: list[Name] | None = None
    adaptor_configs: dict[str, _Heads] | None = None


def check_arguments(args: Mapping[str, Any], file: Path) -> None:
    """Refuse training arguments of types or values that no run can have had.

    Args:
        args: As plain JSON values.
        file: Where they come from, for the message.

    Raises:
        ValueError: If any is not what it must be; all are named.
    """
    _check(_Arguments, args, file, "args.")


def check_hub_config(config: Mapping[str, Any], file: Path) -> None:
    """Refuse what a `config.json` of NVIDIA's cannot say beside the training arguments; see `check_arguments`."""
    _check(_HubConfig, config, file, "")


def _check(model: type[_Part], values: Mapping[str, Any], file: Path, prefix: str) -> None:
    try:
        model.model_validate(values)
    except ValidationError as error:
        problems = [_sentence(prefix, entry["loc"], entry["msg"], entry["input"]) for entry in error.errors()]
        raise ValueError(
            f"{str(file)!r} is damaged, or no checkpoint of NVIDIA's that we know: {'; '.join(problems)}."
        ) from error


def _sentence(prefix: str, location: tuple[int | str, ...], message: str, value: Any) -> str:
    name = prefix + ".".join(map(str, location))
    if message == "Field required":
        return f"`{name}` must be given"
    return f"`{name}` {re.sub(r'^[A-Z][a-z]+ should', 'must', message)}, got {value!r:.60}"
