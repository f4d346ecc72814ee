"""Adapters of peft: the base that one names, and what is refused where it is put on a model."""

import importlib.metadata
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import Tensor
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_SAFE_WEIGHTS_NAME,
    find_adapter_config_file,
    is_peft_available,
    is_peft_greater_or_equal,
    logging,
)

from .checks_radio import read_json
from .loading_radio import HUB_ID, ODD_VALUES, is_radio_folder


logger = logging.get_logger(__name__)

FINGERPRINT = "base_fingerprint"
"""Entry in the header of an adapter's weights: some values of its base."""
NUM_TENSORS, NUM_VALUES = 32, 8
"""Our choice: 256 values are a few kilobytes, and models that were trained apart differ in nearly all of them."""
_TRUNK = re.compile(r"(?:^|\.)radio_model\.model\.(.+)")
_OF_ADAPTERS = re.compile(r"\.(?:base_layer|original_module)\b")
_TOLERANCE = {"rtol": 2**-7, "atol": 1e-6}
"""Roundings of bfloat16, of which a conversion by way of float16 may add a second one, and small values of float16."""


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


def base_fingerprint(weights: Iterable[tuple[str, Tensor]]) -> dict[str, list[float]]:
    """Return some values of a base's trunk, by the name of the weight, that its dtype and quantization do not change.

    They are spread over the largest weights that are no matrices: biases, norms, positions, filters of convolutions.
    4 and 8 bits change the matrices of linear layers only. What an adapter trains is left out.

    Args:
        weights: Names and weights of a model with or without adapters; those of a sharded one gathered.
    """
    trunk = _trunk_weights(weights)
    largest = sorted(trunk, key=lambda name: (-trunk[name].numel(), name))[:NUM_TENSORS]
    return {name: _some_values(trunk[name], NUM_VALUES) for name in largest}


def _trunk_weights(weights: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Return a trunk's weights that are no matrices, by their names in a model without adapters."""
    trunk = {}
    for name, tensor in weights:
        found = _TRUNK.search(name)
        if found and "lora_" not in name and ".modules_to_save." not in name:
            is_sampled = tensor.is_floating_point() and tensor.ndim != 2 and not tensor.is_meta
            if is_sampled and tensor.numel():  # DeepSpeed's ZeRO-3 empties weights that are not in use
                trunk[_OF_ADAPTERS.sub("", found[1])] = tensor.detach()
    return trunk


def _some_values(tensor: Tensor, number: int) -> list[float]:
    """Return values of a tensor at equal distances, rounded to bfloat16."""
    if hasattr(tensor, "full_tensor"):
        tensor = tensor.full_tensor()
    places = torch.linspace(0, tensor.numel() - 1, min(number, tensor.numel()), dtype=torch.float64).long()
    return tensor.flatten()[places.to(tensor.device)].bfloat16().float().tolist()


def check_adapter_base(adapter: str | Path | None, model: torch.nn.Module, **download_options: Any) -> None:
    """Refuse an adapter that was trained on another base; log a warning if it does not say on which.

    Args:
        adapter: Folder or Hub id; `None` if there is neither.
        model: The model with or without the adapter. Weights that it does not hold yet are not compared.
        download_options: Download options of transformers' `find_adapter_config_file`.

    Raises:
        ValueError: If values of the base differ, or those of the adapter cannot be read.
    """
    path = None if adapter is None else find_adapter_config_file(str(adapter), **download_options)
    if path is None or not (file := Path(path).with_name(ADAPTER_SAFE_WEIGHTS_NAME)).is_file():
        return
    with safe_open(file, "pt") as weights:
        text = (weights.metadata() or {}).get(FINGERPRINT)
    if text is None:
        logger.warning("The adapter in %r does not say on which base it was trained: check it yourself.", str(adapter))
        return
    try:
        known = {name: [float(value) for value in values] for name, values in json.loads(text).items()}
    except (ValueError, *ODD_VALUES) as error:
        raise ValueError(f"`{FINGERPRINT}` in the header of {str(file)!r} must be numbers by name: {error}.") from error
    trunk = _trunk_weights(model.named_parameters())
    for name in sorted(known.keys() & trunk.keys()):
        here, there = torch.tensor(_some_values(trunk[name], NUM_VALUES)), torch.tensor(known[name])
        if here.shape != there.shape or not torch.allclose(here, there, **_TOLERANCE):
            raise ValueError(
                f"The adapter in {str(adapter)!r} was trained on another base: `{name}` has other values in this "
                "model. Open the base that the adapter's adapter_config.json names."
            )
