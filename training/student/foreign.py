"""Students that are no ViT of ours: E-RADIO, a network of timm or transformers, a class of the user's.

`student.architecture` names them. What they cannot do is refused here, before anything is built.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.core.imports import import_object, is_import_path
from modeling_radio.eradio_radio import eradio_fields
from modeling_radio.training.recipes.recipe import Recipe, RecipeError
from modeling_radio.training.recipes.sections import OWN_ARCHITECTURE, StudentRecipe
from modeling_radio.wrapped_radio import WrappedTrunk, Wrapping, check_sides, register_network, wrapped_fields


E_RADIO = "e_radio"
E_RADIO_PRESET = "e-radio_v2"
FREE_FIELDS = (
    *("hidden_size", "num_attention_heads", "norm_mean", "norm_std", "layer_norm_eps", "initializer_range"),
    *("image_size", "max_img_size", "max_resolution", "preferred_resolution"),
)
"""Fields of `student.config` that say something of such a network; all others follow from it, or have no effect."""


def foreign_config(student: StudentRecipe, fields: Mapping[str, Any]) -> RadioConfig:
    """Return the configuration of a student of `student.architecture`.

    Args:
        student: The recipe's section.
        fields: Fields of `RadioConfig` besides those that follow from the architecture: `student.config` and, where the
            teachers are known, those of class tokens and adaptors.

    Raises:
        ValueError: If the architecture is unknown or does not fit, or a field contradicts it.
    """
    others = [name for name in student.config if name not in FREE_FIELDS]
    if others:
        raise ValueError(
            f"`config` must be of {', '.join(FREE_FIELDS)} for the architecture {student.architecture!r}, got "
            f"{', '.join(others)}. `student.config` null clears those of a base."
        )
    own = _architecture_fields(student)
    merged = {**own, **fields}
    if own.get("num_cls_tokens") == 1:  # one token, which every head reads
        merged |= {"num_cls_tokens": 1, "summary_idxs": [0]}
        merged["adaptors"] = [{**adaptor, "token_index": 0} for adaptor in merged.get("adaptors", [])]
    return RadioConfig(**merged)


def _architecture_fields(student: StudentRecipe) -> dict[str, Any]:
    if student.architecture == E_RADIO:
        published = RadioConfig.from_preset(E_RADIO_PRESET).eradio or {}
        return eradio_fields({**published, **student.arguments})
    library, _, name = student.architecture.partition(":")
    arguments, width = student.arguments, student.config.get("hidden_size")
    if library == "timm":
        return wrapped_fields("timm", name.partition(".")[0], arguments, student.levels, width)
    if library == "transformers":
        kind, described = _of_transformers(name)
        return wrapped_fields("transformers", kind, {**described, **arguments}, student.levels, width)
    if not is_import_path(student.architecture):
        raise ValueError(
            f"`architecture` must be '{OWN_ARCHITECTURE}', 'navit_SIZE', '{E_RADIO}', 'timm:NAME', 'transformers:NAME' "
            f"or 'my_package.my_module:MyNetwork', got {student.architecture!r}."
        )
    found = import_object(student.architecture, "student.architecture")
    register_network(student.architecture, found)
    return wrapped_fields("class", student.architecture, arguments, student.levels, width)


def _of_transformers(name: str) -> tuple[str, dict[str, Any]]:
    """Return the type of a network and the fields of its configuration, which are empty for a mere type."""
    from transformers import CONFIG_MAPPING, AutoConfig

    if name in CONFIG_MAPPING:
        return name, {}
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"`architecture` 'transformers:{name}' has no configuration: {reason:.200}") from error
    described = json.loads(config.to_json_string(use_diff=True))
    for key in ("architectures", "transformers_version", "model_type", "dtype", "id2label", "label2id"):
        described.pop(key, None)
    return config.model_type, described


def check_foreign(recipe: Recipe, config: RadioConfig) -> None:
    """Refuse what a student without our blocks cannot do.

    Args:
        recipe: The recipe.
        config: The student's configuration.

    Raises:
        RecipeError: It names the setting, its value and what to do.
    """
    if not config.is_foreign:
        return
    student = recipe.student
    name = student.architecture if student.architecture != OWN_ARCHITECTURE else student.preset
    needs_sdpa = config.wrapped is None or config.wrapped["source"] != "transformers"
    settings: dict[str, tuple[Any, Any, str]] = {
        "student.positions": (student.positions, "normal", "it has no table of positions"),
        "student.gradient_checkpointing": (student.gradient_checkpointing, False, "batch norms would count twice"),
        "student.compile": (student.compile, False, "it has no blocks that are alike"),
        "student.passes_at_once": (student.passes_at_once, 1, "passes would change one running statistic at once"),
        "student.init_blocks": (student.init_blocks, None, "it has no blocks of ours"),
        "student.num_tokens": (student.num_tokens, None, "it has no global tokens"),
        "views.is_square": (recipe.views.is_square, True, "images of several shapes would be packed"),
    }
    if needs_sdpa:
        settings["student.attention"] = (student.attention, "sdpa", "its library chooses its attention itself")
    if config.eradio is not None:
        reason = "only a library's network has them"
        settings["student.frozen_stages"] = (student.frozen_stages, 0, reason)
        settings["student.frozen_statistics"] = (student.frozen_statistics, False, reason)
    for partition in recipe.partitions:
        path = f"partitions.{partition.name}"
        settings[f"{path}.vitdet_windows"] = (partition.vitdet_windows, None, "it has no ViTDet windows")
        settings[f"{path}.token_budget"] = (partition.token_budget, None, "its images are not packed; use `batch_size`")
    for path, (value, only, reason) in settings.items():
        if value != only:
            raise RecipeError(f"`{path}` must be {only!r} for the student {name!r}, got {value!r}: {reason}.")
    recipe.refuse_inner_heads(f"for the student {name!r}, which has no blocks of one width")
    _check_sizes(recipe, config, name)


def _check_sizes(recipe: Recipe, config: RadioConfig, name: str | None) -> None:
    step = config.resolution_step
    for partition in recipe.partitions:
        path = f"partitions.{partition.name}.sizes_px"
        wrong = [size for size in partition.sizes_px if size % step]
        if wrong:
            raise RecipeError(f"`{path}` must be multiples of {step} px for the student {name!r}, got {wrong}.")
        if config.wrapped is not None:
            try:
                check_sides(Wrapping.of(config.wrapped), partition.sizes_px)
            except ValueError as error:
                raise RecipeError(f"`{path}`: {error}") from error


def freeze_parts(student: RadioModel, recipe: StudentRecipe, side: int) -> None:
    """Freeze what the recipe says of a library's network, and weights that no output reads, such as its own head's.

    DDP would wait for gradients of the latter.

    Args:
        student: On the CPU, changed in place.
        recipe: The stages to freeze, and whether running statistics are frozen.
        side: Pixels along a side of an image that the student takes.

    Raises:
        RecipeError: If it has fewer stages.
    """
    trunk = student.radio_model.model
    if recipe.frozen_stages:
        assert isinstance(trunk, WrappedTrunk)  # `check_foreign`
        try:
            trunk.freeze_stages(recipe.frozen_stages)
        except ValueError as error:
            raise RecipeError(f"`student.frozen_stages`: {error}.") from error
    if recipe.frozen_statistics:
        assert isinstance(trunk, WrappedTrunk)  # `check_foreign`
        trunk.freeze_statistics()
    was_training = student.training
    student.eval()
    output = student(torch.zeros(1, 3, side, side), return_dict=True)
    student.train(was_training)
    outputs = [tensor for each in output.adaptors.values() for tensor in (each.summary, each.features)]
    total = torch.stack([tensor.sum() for tensor in (output.summary, output.features, *outputs) if tensor is not None])
    trained = [parameter for parameter in trunk.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(total.sum(), trained, allow_unused=True)
    for parameter, gradient in zip(trained, gradients, strict=True):
        if gradient is None:
            parameter.requires_grad_(False)


def global_window(config: RadioConfig) -> str | None:
    """Return the `window_size` of calls without ViTDet windows; E-RADIO has its own ones and takes none."""
    return None if config.eradio is not None else "global"


def linear_layers(student: RadioModel) -> list[tuple[str, nn.Linear]]:
    """Return the linear layers of a student's network by name, without those of its heads and of its pool.

    Raises:
        RecipeError: If it has no linear layers.
    """
    trunk: Any = student.radio_model.model
    network = trunk.network if isinstance(trunk, WrappedTrunk) else trunk
    found = [(name, module) for name, module in network.named_modules() if type(module) is nn.Linear]
    if not found:
        raise RecipeError(
            "`damp.sigma` must be 0 and `spectral.is_used` false for a student without linear layers, such as "
            f"{student.config.wrapped and student.config.wrapped['name']!r}: both act on linear layers."
        )
    return found
