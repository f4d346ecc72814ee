"""Students that are a NaViT (`student.architecture: navit_small`), with matryoshka widths."""

from collections.abc import Mapping
from typing import Any

from modeling_radio import RadioConfig
from modeling_radio.navit_radio import SMALLEST_WIDTH, NavitOptions
from modeling_radio.presets_radio import NAVITS
from modeling_radio.training.recipes.recipe import Recipe, RecipeError
from modeling_radio.training.recipes.sections import StudentRecipe


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
    if "heads" in student.arguments:
        raise ValueError("`arguments` must be without `heads`: heads with cross-attention are not trained here.")
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
    NavitOptions.of(config)
    return config


def check_navit(recipe: Recipe, config: RadioConfig) -> None:
    """Refuse what only a NaViT learns, and what it has not.

    Raises:
        RecipeError: It names the setting, its value and what to do.
    """
    student = recipe.student
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
