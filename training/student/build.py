"""Builds the student that a recipe and its teachers describe."""

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch._dynamo
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from core.seeds import derive_seed
from core.timing import fastest_seconds
from modeling_radio import RadioAdaptorConfig, RadioConfig, RadioModel
from modeling_radio.checks_radio import did_you_mean
from modeling_radio.layers_radio import AttentionLayout, RadioBlock, Segments
from training.recipe import Recipe, RecipeError, TeacherRecipe
from training.student.packing import check_merging
from training.student.parameters import freeze_projection_of_clips
from training.student.regularizers import add_damp, add_spectral_scales
from training.teachers.outputs import TeacherShape
from training.views.crops import check_other_windows
from training.views.plan import Grid, check_windows, extreme_grids, fitting_windows


_SHAPE = (4096, 768, 768)  # our choice: rows, inputs and outputs of a linear layer large enough for its full speed
_RUNS = 5  # our choice: the fastest of a few calls is stable enough to tell factors of two apart


@torch.no_grad()
def is_bfloat16_faster() -> bool:
    """Time one linear layer on this machine's CPU in both precisions, for some tens of milliseconds."""
    layers = {dtype: _linear(dtype) for dtype in (torch.float32, torch.bfloat16)}
    seconds = fastest_seconds(layers, min_rounds=_RUNS)
    return seconds[torch.bfloat16] < seconds[torch.float32]


def _linear(dtype: torch.dtype) -> Callable[[], Tensor]:
    rows, inputs, outputs = _SHAPE
    return partial(F.linear, torch.ones(rows, inputs, dtype=dtype), torch.ones(outputs, inputs, dtype=dtype))


def in_faster_precision(recipe: Recipe) -> Recipe:
    """Return the recipe with student and teachers in float32 if this machine has a CPU only that is faster so."""
    if torch.accelerator.is_available() or is_bfloat16_faster():
        return recipe
    teachers = [entry.replace(precision="float32") for entry in recipe.teachers]
    return recipe.replace(mixed_precision="no", teachers=teachers)


def build_student(recipe: Recipe, teachers: Mapping[str, TeacherShape]) -> RadioModel:
    """Return a student with fresh weights, the same for the same seed; it learns from images, nothing of clips.

    Args:
        recipe: The recipe.
        teachers: By name; each has an adaptor and a class token of its own, in the recipe's order.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(recipe.seed, "weights"))
        student = RadioModel(student_config(recipe, teachers))
    student.set_attn_implementation(recipe.student.attention)
    freeze_projection_of_clips(student)
    if recipe.student.positions == "sincos":
        table = student.radio_model.model.patch_generator.pos_embed
        with torch.no_grad():
            table.copy_(sincos_positions(student.config.position_grid_size, student.config.hidden_size))
    return student


def regularize(student: RadioModel, recipe: Recipe) -> None:
    """Add in place what acts on the student's weights in training only: noise and spectral reparametrization."""
    if recipe.damp.sigma:
        add_damp(student, recipe.damp.sigma)
    if recipe.spectral.is_used:
        add_spectral_scales(student)


def checkpoint_blocks(student: RadioModel) -> None:
    """Let each transformer block keep only its input for the backward pass, and compute the rest again then.

    Sets the attributes of transformers' `GradientCheckpointingLayer`, since the method that does was renamed in 5.x.
    """
    recompute = functools.partial(checkpoint, use_reentrant=False)
    blocks = [module for module in student.radio_model.model.modules() if isinstance(module, RadioBlock)]
    for block in blocks:
        block.gradient_checkpointing = True
        block._gradient_checkpointing_func = recompute  # pyrefly: ignore[bad-argument-type]


def compile_blocks(student: RadioModel, recipe: Recipe, backend: str | Callable = "inductor") -> int:
    """Compile each transformer block in place, which leaves the keys of the state alone.

    Block by block, as all are alike: they share their graphs, and FSDP can shard what is compiled. Where resolutions
    or windows change, their sizes are symbols. Another graph is needed for each pattern of windows (global, equal
    ones, ragged ones; a single one or a single token has its own), and for blocks with and without dropped paths.

    Args:
        student: The student.
        recipe: Says which grids and windows it will see.
        backend: Of `torch.compile`.

    Returns:
        How many graphs there will be at most; twice that where batches of one image and of more meet. PyTorch's limit,
        after which blocks would silently run uncompiled, is raised to it.

    Raises:
        RecipeError: If images of several shapes are packed: each step would need another graph.
    """
    packed = next((partition.name for partition in recipe.partitions if partition.token_budget is not None), None)
    if packed is not None:
        raise RecipeError(
            f"`student.compile` must be false with `partitions.{packed}.token_budget`, got true. Packed images have "
            "another pattern at every step."
        )
    segments = _all_segments(student.config, recipe)
    patterns = {tuple((count == 1, length == 1) for count, length in runs) for runs in segments}
    drops_paths = {rate > 0 for rate in student.radio_model.model.drop_path_rates}
    num_graphs = len(patterns) * len(drops_paths)
    dynamo = torch._dynamo.config
    dynamo.cache_size_limit = max(dynamo.cache_size_limit, 2 * num_graphs)  # its name in PyTorch 2.6, an alias later
    for block in student.radio_model.model.blocks:
        block.compile(backend=backend, dynamic=len(segments) > 1 or None)
    return num_graphs


def _all_segments(config: RadioConfig, recipe: Recipe) -> set[Segments]:
    """Return the runs that blocks attend in, over all grids and windows of a recipe."""
    segments = set()
    for partition in recipe.partitions:
        for size_px in partition.sizes_px:
            for grid in _grids_between(extreme_grids(recipe, partition, size_px, config.patch_size)):
                for window in [None, *fitting_windows(partition, grid)]:
                    layout = AttentionLayout.for_grid(*grid, config.num_prefix_tokens, window, torch.device("cpu"))
                    segments.add(layout.global_segments if window is None else layout.window_segments)
    return segments


def _grids_between(extremes: Sequence[Grid]) -> list[Grid]:
    """Return all grids with no fewer and no more rows and columns than these."""
    rows, cols = ([grid[axis] for grid in extremes] for axis in (0, 1))
    return [Grid(row, col) for row in range(min(rows), max(rows) + 1) for col in range(min(cols), max(cols) + 1)]


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
    """Return the student's patch in pixels, which teachers must know before the student can be built."""
    return _config(recipe, recipe.student.config).patch_size


def check_student_views(recipe: Recipe) -> None:
    """Refuse images that the student cannot take, and windows that could not act, before anything is built.

    Raises:
        RecipeError: If a size of a partition is too large or no multiple of the patch, or as `check_windows` and
            `check_other_windows` do.
    """
    config = _config(recipe, recipe.student.config)
    check_merging(recipe, config)
    for partition in recipe.partitions:
        wrong = [size for size in partition.sizes_px if size % config.patch_size]
        if wrong:
            path = f"partitions.{partition.name}.sizes_px"
            raise RecipeError(f"`{path}` must be multiples of the patch, {config.patch_size} px, got {wrong}.")
        check_windows(recipe, partition, config)
        check_other_windows(recipe, partition, config.patch_size)
        for size in partition.sizes_px:
            grids = extreme_grids(recipe, partition, size, config.patch_size)
            side = max(max(grid) for grid in grids) * config.patch_size
            if side > config.largest_side:
                raise RecipeError(
                    f"`partitions.{partition.name}.sizes_px` must be such that no image has a side of more than "
                    f"{config.largest_side} px, the student's largest, got {size} (up to {side} px a side). "
                    "Raise `student.config.max_img_size`, or take out that size."
                )


def _config(recipe: Recipe, fields: dict[str, Any]) -> RadioConfig:
    _check_keys("student.config", recipe.student.config, RadioConfig)
    try:
        preset = recipe.student.preset
        start = {} if preset is None else {"eradio": _eradio_of(preset)}
        if {**start, **fields}.get("eradio") is not None:
            raise ValueError(f"`preset` must be a ViT's, got {preset!r}: an E-RADIO is not trained here.")
        return RadioConfig(**fields) if preset is None else RadioConfig.from_preset(preset, **fields)
    except ValueError as error:
        raise RecipeError(f"`student`: {error}") from error


@functools.cache
def _eradio_of(preset: str) -> dict[str, Any] | None:
    return RadioConfig.from_preset(preset).eradio


def _adaptors(recipe: Recipe, teachers: Mapping[str, TeacherShape]) -> list[dict[str, Any]]:
    widths = [width for teacher in teachers.values() for width in (teacher.summary_dim, teacher.feature_dim) if width]
    return [
        {
            "hidden_size": max(widths),  # AM-RADIO 3.2: as wide as the widest teacher
            "token_index": index,
            **_adaptor_fields(recipe, entry),
            "name": entry.name,
            "summary_dim": teachers[entry.name].summary_dim,
            "feature_dim": teachers[entry.name].feature_dim,
        }
        for index, entry in enumerate(recipe.teachers)
    ]


def _adaptor_fields(recipe: Recipe, entry: TeacherRecipe) -> dict[str, Any]:
    _check_keys("student.adaptor", recipe.student.adaptor, RadioAdaptorConfig)
    _check_keys(f"teachers.{entry.name}.adaptor", entry.adaptor, RadioAdaptorConfig)
    return {**recipe.student.adaptor, **entry.adaptor}


def _check_keys(section: str, values: dict[str, Any], config_class: type) -> None:
    valid = [field.name for field in dataclasses.fields(config_class)]
    for key in values:
        if key not in valid:
            raise RecipeError(f"Unknown key '{section}.{key}'.{did_you_mean(key, valid)}")
