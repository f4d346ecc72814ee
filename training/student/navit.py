"""Students that are a NaViT (`student.architecture: navit_small`), with matryoshka widths and cross-attention heads."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from modeling_radio import RadioConfig
from modeling_radio.checks_radio import Resolution, did_you_mean
from modeling_radio.navit_radio import SMALLEST_WIDTH, NavitOptions
from modeling_radio.presets_radio import NAVITS
from modeling_radio.training.recipes.recipe import Recipe, RecipeError
from modeling_radio.training.recipes.sections import StudentRecipe
from modeling_radio.training.targets.examples import Target
from modeling_radio.training.views.plan import PlannedBatch
from modeling_radio.xattn_radio import WANTED, HeadOptions, WantedAnswer, crop_warp


def navit_config(student: StudentRecipe, fields: Mapping[str, Any]) -> RadioConfig:
    """Return the configuration of a student of `student.architecture`.

    All class tokens make its summary; those of teachers with a summary that of a block.

    Args:
        student: The recipe's section.
        fields: Fields of `RadioConfig` besides those of the preset, `student.config` among them.

    Raises:
        ValueError: If an option or a field does not fit.
    """
    if "navit" in student.config:
        raise ValueError("`config` must be without `navit`: its options are `student.arguments`.")
    for name, default in (("levels", [-1]), ("frozen_stages", 0), ("frozen_statistics", False)):
        if getattr(student, name) != default:
            raise ValueError(f"`{name}` must be left out for NaViT: it is of networks of a library.")
    fields, options = dict(fields), dict(student.arguments)
    with_summary = fields.pop("summary_idxs", None)
    count = fields.get("num_cls_tokens", NAVITS[student.architecture]["num_cls_tokens"])
    if with_summary is not None and list(with_summary) != list(range(count)):
        options.setdefault("inner_summary_idxs", with_summary)
    if student.matryoshka:
        options["matryoshka"] = True
    fields |= {"summary_idxs": list(range(count)), "navit": options}
    config = RadioConfig.from_preset(student.architecture, **fields)
    heads = NavitOptions.of(config).heads
    if heads:
        options["heads"] = {name: _head_options(name, values, config.hidden_size) for name, values in heads.items()}
    return config


def _head_options(name: str, values: Any, width: int) -> dict[str, Any]:
    """Return checked options of a head: with a grid of its own, its cells divide the image, as in training."""
    if not isinstance(values, Mapping):
        raise ValueError(f"`navit.heads.{name}` must be a mapping of options, got {values!r}.")
    HeadOptions.of(name, values, width)
    return {**values} if values.get("target_grid") is None else {"align_corners": False, **values}


_READ_BY_HEADS = ("hidden_size", "token_index", "num_inner_blocks")
"""Settings of adaptors that heads with cross-attention have, too; inner blocks are of the others' MLPs."""


def cross_attention_heads(config: RadioConfig) -> Collection[str]:
    """Return the names of adaptors that cross-attend to the patches, and learn on their teachers' grids."""
    return (config.navit or {}).get("heads") or {}


@contextmanager
def answering(
    config: RadioConfig, batch: PlannedBatch, targets: Mapping[str, Target]
) -> Iterator[dict[str, list[Resolution]]]:
    """Let heads with cross-attention answer on the grids and for the crops of their teachers.

    Args:
        config: The student's.
        batch: The planned images.
        targets: The teachers' outputs for them.

    Yields:
        By head, the grid of its answer for each group of the batch.
    """
    wanted = {name: [*_answers(batch, targets.get(name))] for name in cross_attention_heads(config)}
    by_grid: dict[str, dict[tuple[int, int], WantedAnswer]] = {
        name: {shape.grid: answer for (shape, _), answer in zip(batch.groups, answers, strict=True)}
        for name, answers in wanted.items()
    }
    token = WANTED.set(by_grid)
    try:
        yield {name: [answer.grid for answer in answers] for name, answers in wanted.items()}
    finally:
        WANTED.reset(token)


def _answers(batch: PlannedBatch, target: Target | None) -> Iterator[WantedAnswer]:
    """Yield what a head is to answer for each group: its teacher's cells, or the patches where that sees nothing."""
    for index, (shape, group) in enumerate(batch.groups):
        grid = Resolution(*shape.grid)
        if target is None:
            yield WantedAnswer(grid, None)
            continue
        alignment, maps = target.alignments[index], target.features[index]
        shift = maps.new_zeros(group.stop - group.start, 2) if alignment.shift is None else alignment.shift
        cells = Resolution(*alignment.sides)
        yield WantedAnswer(cells, crop_warp(cells, grid, shift))


def check_navit(recipe: Recipe, config: RadioConfig) -> None:
    """Refuse what only a NaViT learns, and what it has not.

    Raises:
        RecipeError: It names the setting, its value and what to do.
    """
    student = recipe.student
    _check_heads(recipe, cross_attention_heads(config))
    if config.navit is None:
        if student.matryoshka:
            raise RecipeError("`student.matryoshka` must be false without `student.architecture` 'navit_*', got true.")
        return
    if student.positions != "normal":
        raise RecipeError(
            f"`student.positions` must be 'normal' for the student {student.architecture!r}, got "
            f"{student.positions!r}: it has no table of positions."
        )
    if config.navit.get("matryoshka") and config.hidden_size <= SMALLEST_WIDTH:
        raise RecipeError(
            f"`student.matryoshka` must be false for a width of {config.hidden_size}, got true: the smallest width "
            f"that it keeps is {SMALLEST_WIDTH}."
        )


def _check_heads(recipe: Recipe, heads: Collection[str]) -> None:
    names = [teacher.name for teacher in recipe.teachers]
    for name in heads:
        if name not in names:
            raise RecipeError(
                f"`student.arguments.heads` must have names of teachers, {names}, got {name!r}."
                f"{did_you_mean(name, names)}"
            )
        entry = recipe.teachers[names.index(name)]
        for section, adaptor in (("student", recipe.student.adaptor), (f"teachers.{name}", entry.adaptor)):
            for key in adaptor:
                if key not in _READ_BY_HEADS:
                    raise RecipeError(
                        f"`{section}.adaptor.{key}` must be left out with `student.arguments.heads.{name}`, got "
                        f"{adaptor[key]!r}: a head with cross-attention has no such setting."
                    )
    for partition in recipe.partitions if heads else []:
        if partition.teachers_per_image is not None:
            raise RecipeError(
                f"`partitions.{partition.name}.teachers_per_image` must be null with `student.arguments.heads`, got "
                f"{partition.teachers_per_image}: a head answers for all images of a grid."
            )
        if partition.token_budget is not None and len(partition.windows_px or []) > 1:
            raise RecipeError(
                f"`partitions.{partition.name}.windows_px` must be one size with `token_budget` and "
                f"`student.arguments.heads`, got {partition.windows_px}: images of one grid in a pack are answered for "
                "on one grid."
            )
