"""Opening of checkpoints and of peft's adapters: where files are found, what is refused, what is reported."""

import contextlib
import gc
import importlib.metadata
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    CONFIG_NAME,
    cached_file,
    find_adapter_config_file,
    is_peft_available,
    is_peft_greater_or_equal,
    logging,
)
from transformers.utils.loading_report import LoadStateDictInfo

from .checks_radio import read_json
from .configuration_radio import FOREIGN_LAYOUTS
from .hub_radio import DOWNLOAD_OPTIONS


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


_BACKBONE = "radio_model"
_LOGGER = logging.get_logger("transformers.modeling_utils")  # which logs the table: one verbosity for both


class NewHeadReport(PreTrainedModel):
    """A model whose head may be new: it is then named in one line, and not weight by weight.

    A head of which the folder has a part is none that is expected to be new. It is reported in full, as are weights of
    the backbone that are missing, unknown weights, and those of another shape.
    """

    def _adjust_missing_and_unexpected_keys(self, loading_info: LoadStateDictInfo) -> None:
        """Adjust what transformers is about to report; `output_loading_info=True` still gives every key."""
        super()._adjust_missing_and_unexpected_keys(loading_info)
        missing = loading_info.missing_keys
        new = {name: {key for key in missing if key.startswith(f"{name}.")} for name in self._unfilled_heads(missing)}
        if not new:
            return
        keys = set().union(*new.values())
        _LOGGER.warning(f"{type(self).__name__}: {len(keys)} new weights to train: {', '.join(new)}.")
        loading_info.create_loading_report = replace(loading_info, missing_keys=missing - keys).create_loading_report

    def _unfilled_heads(self, missing: set[str]) -> list[str]:
        """Return the parts beside the backbone none of whose parameters were there."""
        parameters = {
            name: {key for key, _ in module.named_parameters(prefix=name)}
            for name, module in self.named_children()
            if name != _BACKBONE
        }
        return [name for name, keys in parameters.items() if keys and keys <= missing]


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
    if not is_peft_available():
        raise ValueError(f"{str(folder)!r} is an adapter folder, which peft opens: `pip install peft`.")
    path = folder / ADAPTER_CONFIG_NAME
    base = read_adapter_config(folder).get("base_model_name_or_path")
    if not base:
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
    if is_base or not is_peft_available() or Path(name, CONFIG_NAME).exists():
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
        config_class: Of the model.
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


def check_adapter_versions(adapter: str | Path | None, **download_options: Any) -> None:
    """Raise a `ValueError` if an adapter has a head that the installed transformers and peft would leave out.

    Args:
        adapter: Folder or Hub id; `None` if there is neither.
        download_options: Of transformers' `find_adapter_config_file`.
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
