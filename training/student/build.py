"""The student for a recipe and its teachers: configuration, fresh weights, checkpointed or compiled blocks."""

import copy
import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from modeling_radio import RadioAdaptorConfig, RadioConfig, RadioModel
from modeling_radio.checks_radio import did_you_mean
from modeling_radio.core.imports import find_function, is_import_path
from modeling_radio.core.seeds import derive_seed
from modeling_radio.core.timing import fastest_seconds
from modeling_radio.data.arrays import ArrayFolder, measure_channels
from modeling_radio.data.settings import RGB
from modeling_radio.layers_radio import AttentionLayout, RadioBlock, Segments
from modeling_radio.presets_radio import NAVITS
from modeling_radio.training.recipes.recipe import Recipe, RecipeError
from modeling_radio.training.recipes.sections import OWN_ARCHITECTURE, StudentRecipe
from modeling_radio.training.student.foreign import check_foreign, foreign_config, freeze_parts
from modeling_radio.training.student.navit import check_navit, navit_config
from modeling_radio.training.student.packing import check_packing
from modeling_radio.training.student.parameters import freeze_projection_of_clips
from modeling_radio.training.student.regularizers import add_damp, add_spectral_scales
from modeling_radio.training.teachers.outputs import TeacherShape
from modeling_radio.training.views.crops import check_other_windows
from modeling_radio.training.views.dealing import check_teachers_per_image
from modeling_radio.training.views.shapes import Grid, extreme_grids
from modeling_radio.training.views.windows import check_windows, fitting_windows


_SHAPE = (4096, 768, 768)  # our choice: rows, inputs and outputs of a linear layer large enough for its full speed
_RUNS = 5  # our choice: the fastest of a few calls is stable enough to tell factors of two apart
NORMALIZATION = ("norm_mean", "norm_std")
"""Fields of the configuration."""


@torch.no_grad()
def is_bfloat16_faster() -> bool:
    """Time one linear layer on this machine's CPU in both precisions, for some tens of milliseconds."""
    rows, inputs, outputs = _SHAPE
    layers = {
        dtype: partial(F.linear, torch.ones(rows, inputs, dtype=dtype), torch.ones(outputs, inputs, dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16)
    }
    seconds = fastest_seconds(layers, num_rounds=_RUNS)
    return seconds[torch.bfloat16] < seconds[torch.float32]


def in_faster_precision(recipe: Recipe) -> Recipe:
    """Return the recipe with student and teachers in float32 if this machine has only a CPU that is faster with it."""
    if torch.accelerator.is_available() or is_bfloat16_faster():
        return recipe
    teachers = [entry.replace(dtype="float32") for entry in recipe.teachers]
    return recipe.replace(mixed_precision="no", teachers=teachers)


def build_student(recipe: Recipe, teachers: Mapping[str, TeacherShape]) -> RadioModel:
    """Return a student with fresh weights, the same for the same seed; its projection of clips is frozen.

    Of a library's network `student.frozen_stages`, and parts that no output reads, are frozen too.

    Args:
        recipe: The recipe.
        teachers: By name; each has an adaptor and a class token of its own, in the recipe's order.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(recipe.seed, "weights"))
        student = RadioModel(student_config(recipe, teachers))
    # A library builds its networks with "sdpa" where they have it; those without attention refuse the word.
    if not student.config.is_foreign or recipe.student.attention != StudentRecipe.model_fields["attention"].default:
        student.set_attn_implementation(recipe.student.attention)
    freeze_projection_of_clips(student)
    if student.config.is_foreign:
        smallest = min(size for partition in recipe.partitions for size in partition.sizes_px)
        freeze_parts(student, recipe.student, smallest)
    if recipe.student.positions == "sincos":
        table = student.radio_model.model.patch_generator.pos_embed
        with torch.no_grad():
            table.copy_(sincos_positions(student.config.position_grid_size, student.config.hidden_size))
    return student


def regularize(student: RadioModel, recipe: Recipe) -> None:
    """Add the regularizers of the student's weights in place: noise and spectral reparametrization."""
    if recipe.damp.sigma:
        add_damp(student, recipe.damp.sigma)
    if recipe.spectral.is_used:
        add_spectral_scales(student)


def checkpoint_blocks(student: RadioModel) -> None:
    """Let each transformer block keep only its input for the backward pass, and recompute the rest then.

    Sets the attributes of transformers' `GradientCheckpointingLayer`: the method that sets them was renamed in 5.x.
    """
    recompute = partial(checkpoint, use_reentrant=False)
    blocks = [module for module in student.radio_model.model.modules() if isinstance(module, RadioBlock)]
    for block in blocks:
        block.gradient_checkpointing = True
        block._gradient_checkpointing_func = recompute  # pyrefly: ignore[bad-argument-type]


def compile_blocks(student: RadioModel, recipe: Recipe, backend: str | Callable = "inductor") -> int:
    """Compile each transformer block in place; the keys of the state stay the same.

    Blocks are compiled one by one, since they are alike and share their graphs, and since FSDP can shard compiled
    blocks. If resolutions or windows change, their sizes are symbols. Each pattern of windows (global, equal, ragged;
    a single window or a single token has its own) needs another graph, and so do blocks with dropped paths.

    Args:
        student: The student.
        recipe: The grids and windows of its images.
        backend: Backend of `torch.compile`.

    Returns:
        The largest number of graphs; twice that if there are batches of one image and of more. PyTorch's limit is
        raised to it, because blocks would silently run uncompiled after it.
    """
    segments = _all_segments(student.config, recipe)
    patterns = {tuple((count == 1, length == 1) for count, length in runs) for runs in segments}
    drops_paths = {rate > 0 for rate in student.radio_model.model.drop_path_rates}
    num_graphs = len(patterns) * len(drops_paths)
    dynamo = torch._dynamo.config
    dynamo.cache_size_limit = max(dynamo.cache_size_limit, 2 * num_graphs)  # the name in PyTorch 2.6, an alias later
    for block in student.radio_model.model.blocks:
        block.compile(backend=backend, dynamic=len(segments) > 1 or None)
    return num_graphs


def _all_segments(config: RadioConfig, recipe: Recipe) -> set[Segments]:
    """Return the sequences that blocks attend within, over all grids and windows of a recipe."""
    segments = set()
    for partition in recipe.partitions:
        for size_px in partition.sizes_px:
            extremes = zip(*extreme_grids(recipe, partition, size_px, config.patch_size), strict=True)
            rows, cols = (range(min(side), max(side) + 1) for side in extremes)
            for grid in itertools.starmap(Grid, itertools.product(rows, cols)):
                for window in [None, *fitting_windows(partition, grid)]:
                    layout = AttentionLayout.for_grid(*grid, config.num_prefix_tokens, window, torch.device("cpu"))
                    segments.add(layout.global_segments if window is None else layout.window_segments)
    return segments


def sincos_positions(side: int, width: int) -> Tensor:
    """Return a position table of sines and cosines of the column, then of the row, `(1, side * side, width)`.

    Half the usual amplitude (our choice), so that it does not drown the patches of a new network.

    References:
        MoCo v3, section 4. https://arxiv.org/abs/2104.02057
    """
    frequencies = 10_000.0 ** -torch.linspace(0, 1, width // 4)
    steps = torch.arange(side)[:, None] * frequencies
    waves = torch.cat([steps.sin(), steps.cos()], dim=1)  # (side, width / 2)
    columns, rows = waves.expand(side, -1, -1), waves[:, None].expand(-1, side, -1)
    return 0.5 * torch.cat([columns, rows], dim=-1).flatten(0, 1).unsqueeze(0)


def student_config(recipe: Recipe, teachers: Mapping[str, TeacherShape]) -> RadioConfig:
    """Return the student's configuration.

    Raises:
        RecipeError: If a key of `student.config`, `student.adaptor` or a teacher's `adaptor` is unknown, or a
            value does not fit.
    """
    with_summary = [index for index, teacher in enumerate(teachers.values()) if teacher.summary_dim is not None]
    fields: dict[str, Any] = {
        "num_cls_tokens": len(teachers),
        "summary_idxs": with_summary or [0],
        **copy.deepcopy(recipe.student.config),
        "adaptors": _adaptors(recipe, teachers),
    }
    return _config(recipe, fields)


def student_patch_size(recipe: Recipe) -> int:
    """Return the student's patch in pixels: teachers need it before the student can be built."""
    key = repr(recipe.student)
    if key not in _patch_sizes:
        _patch_sizes[key] = _config(recipe, recipe.student.config).patch_size
    return _patch_sizes[key]


_patch_sizes: dict[str, int] = {}
"""Those that were asked for: the parts of a run ask for it several times, and a configuration takes milliseconds."""


def check_student_views(recipe: Recipe) -> None:
    """Refuse images that the student cannot take, and windows without effect, before anything is built.

    Raises:
        RecipeError: If a size of a partition is too large or no multiple of the patch, or as `check_windows`,
            `check_other_windows` and `check_teachers_per_image` do.
    """
    count = recipe.data.num_channels
    if count is not None and recipe.student.architecture != OWN_ARCHITECTURE:
        raise RecipeError(f"`data.num_channels` must be null with this `student.architecture`, got {count}.")
    config = _config(recipe, recipe.student.config)
    if config.num_channels != (count or len(RGB)):
        raise RecipeError(
            f"`student.config.num_channels` must be left out, got {config.num_channels}: set `data.num_channels`."
        )
    check_packing(recipe, config)
    check_foreign(recipe, config)
    check_navit(recipe, config)
    for partition in recipe.partitions:
        wrong = [size for size in partition.sizes_px if size % config.patch_size]
        if wrong:
            path = f"partitions.{partition.name}.sizes_px"
            raise RecipeError(f"`{path}` must be multiples of the patch, {config.patch_size} px, got {wrong}.")
        check_windows(recipe, partition, config)
        check_other_windows(recipe, partition, config.patch_size)
        check_teachers_per_image(recipe, partition, config.patch_size)
        for size in partition.sizes_px:
            grids = extreme_grids(recipe, partition, size, config.patch_size)
            side = max(max(grid) for grid in grids) * config.patch_size
            if side > config.largest_side:
                raise RecipeError(
                    f"`partitions.{partition.name}.sizes_px` must be such that no image has a side of more than "
                    f"{config.largest_side} px, the student's largest, got {size} (up to {side} px a side). "
                    "Raise `student.config.max_img_size`, or take out that size."
                )


def with_measured_channels(recipe: Recipe, saved: Mapping[str, Any] | None) -> Recipe:
    """Return a recipe whose student has the mean and the deviation of the channels of `data.num_channels`.

    Args:
        recipe: The recipe. What its `student.config` says stays.
        saved: The checkpoint's recipe with a run's numbers; None measures the training images.

    Raises:
        ValueError: If images cannot be read, or have other channels.
    """
    count, own = recipe.data.num_channels, recipe.student.config
    if count is None or {*NORMALIZATION} <= own.keys():
        return recipe
    known = {} if saved is None else saved["student"]["config"]
    if not {*NORMALIZATION} <= known.keys():
        folders = [ArrayFolder(Path(each.source).expanduser(), count) for each in recipe.data.sources()]
        files = [path for folder in folders for path in folder.files]
        known = dict(zip(NORMALIZATION, measure_channels(files, count), strict=True))
    numbers = {name: known[name] for name in NORMALIZATION}
    return recipe.replace(student=recipe.student.replace(config={**numbers, **own}))


def _config(recipe: Recipe, fields: dict[str, Any]) -> RadioConfig:
    _check_keys("student.config", recipe.student.config, RadioConfig)
    count = recipe.data.num_channels
    if count is not None:  # a run measures the normalization before it builds a student
        fields = {"num_channels": count, **dict.fromkeys(NORMALIZATION, count * [0.5]), **fields}
    try:
        preset = recipe.student.preset
        if recipe.student.architecture in NAVITS:
            return navit_config(recipe.student, fields)
        if recipe.student.architecture != OWN_ARCHITECTURE:
            return foreign_config(recipe.student, fields)
        if preset is not None and is_import_path(preset):
            return _own_config(preset, fields)
        if preset in NAVITS:
            raise ValueError(f"`preset` must be a ViT's with positions, got {preset!r}. Set `student.architecture`.")
        start = {} if preset is None else {"eradio": _eradio_of(preset)}
        if {**start, **fields}.get("eradio") is not None:
            raise ValueError(f"`preset` must be a ViT's, got {preset!r}. Set `student.architecture` to 'e_radio'.")
        return RadioConfig(**fields) if preset is None else RadioConfig.from_preset(preset, **fields)
    except ValueError as error:
        raise RecipeError(f"`student`: {error}") from error


def _own_config(preset: str, fields: Mapping[str, Any]) -> RadioConfig:
    """Return the configuration that a function of the user's makes."""
    config = find_function(preset, {}, "student.preset")(**fields)
    if not isinstance(config, RadioConfig) or config.is_foreign:
        raise ValueError(f"`preset` {preset!r} must return a `RadioConfig` of a ViT, got {type(config).__name__}.")
    return config


@functools.cache
def _eradio_of(preset: str) -> dict[str, Any] | None:
    return RadioConfig.from_preset(preset).eradio


def _adaptors(recipe: Recipe, teachers: Mapping[str, TeacherShape]) -> list[dict[str, Any]]:
    _check_keys("student.adaptor", recipe.student.adaptor, RadioAdaptorConfig)
    for entry in recipe.teachers:
        _check_keys(f"teachers.{entry.name}.adaptor", entry.adaptor, RadioAdaptorConfig)
    widths = [width for teacher in teachers.values() for width in (teacher.summary_dim, teacher.feature_dim) if width]
    return [
        {
            "hidden_size": max(widths),  # AM-RADIO 3.2: as wide as the widest teacher
            "token_index": index,
            **recipe.student.adaptor,
            **entry.adaptor,
            "name": entry.name,
            "summary_dim": teachers[entry.name].summary_dim,
            "feature_dim": teachers[entry.name].feature_dim,
        }
        for index, entry in enumerate(recipe.teachers)
    ]


def _check_keys(section: str, values: dict[str, Any], config_class: type) -> None:
    valid = [field.name for field in dataclasses.fields(config_class)]
    for key in values:
        if key not in valid:
            raise RecipeError(f"Unknown key '{section}.{key}'.{did_you_mean(key, valid)}")
