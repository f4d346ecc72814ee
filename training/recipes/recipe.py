"""Recipes: everything that decides a distillation run, as typed settings read from YAML.

A recipe file may start from another one with `base: NAME`; `section.field=value` on the command line changes
it further (`teachers.NAME.field=value` for an entry of a list). A list of teachers, partitions or stages replaces the
base's list. An entry that has the name of an entry there keeps the settings that it does not give; null removes a
setting. A key that does not exist is an error that suggests the right one.
"""

import functools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BeforeValidator, Field, model_validator

from modeling_radio.checks_radio import check_choice, did_you_mean
from modeling_radio.core.imports import import_object, is_import_path, is_object_path
from modeling_radio.core.seeds import derive_seed
from modeling_radio.core.settings import (
    INDECISIVE,
    Settings,
    load,
    marked,
    merged,
    read_yaml,
    require,
    with_defaults,
    without,
)
from modeling_radio.data.settings import DataRecipe
from modeling_radio.training.recipes.sections import (
    STAGELESS,
    STEPS_OR_SHARE,
    BalancingRecipe,
    BalancingTimes,
    CheckpointsRecipe,
    ContrastiveRecipe,
    DampRecipe,
    EmaRecipe,
    ExportRecipe,
    LoggingRecipe,
    LossRecipe,
    MesaRecipe,
    OptimizerRecipe,
    PartitionRecipe,
    RecipeError,
    RecipeSection,
    Role,
    ScheduleRecipe,
    SpectralRecipe,
    StandardizationRecipe,
    StudentRecipe,
    TapsRecipe,
    TeacherRecipe,
    ViewsRecipe,
    in_steps,
)


RECIPES_DIR = Path(__file__).parent
RECIPE_FILE = "recipe.yaml"
"""The resolved recipe in the folder of a run."""
_OF_OTHERS = ("config.json", "adapter_config.json", "run.txt")
"""Files by which a folder of a checkpoint, an adapter or a run is known; it may be somebody else's."""


class Recipe(RecipeSection):
    """A complete distillation run.

    Attributes:
        name: Name of the run; by default that of the file. The output folder is `runs/NAME` by default.
        seed: Decides all random numbers, except those of `data.seed`.
        mixed_precision: "no" or "bf16", as in Accelerate. Losses and statistics stay in float32 and float64.
        student: The network.
        teachers: At least one. Their order decides the order of class tokens.
        data: The images.
        views: Crops of the images.
        partitions: Resolutions and batch sizes.
        standardization: Standardization of the dense targets.
        loss: Kinds of losses.
        contrastive: Experimental. A loss between images.
        balancing: Experimental. Weights of teachers that change during the run.
        taps: Experimental. Losses on inner blocks.
        hooks: Import paths of classes that act on each step, "my_package.my_module:MyHook", as `StepHook` of
            `modeling_radio.training.hooks.base` does; each is called with recipe and student.
        optimizer: The optimizer.
        schedule: Steps and learning rate.
        ema: Moving average.
        mesa: Consistency with the moving average.
        damp: Noise on the weights.
        spectral: Reparametrization of the weights.
        stages: Runs one after the other, each starting from the weights of the one before: `name`, and the sections and
            fields that differ from the rest of the recipe (on the command line `stages.NAME.section.field=value`).
            Empty for a single run.
        checkpoints: When to save.
        export: Changes of the student when it is exported.
        logging: Logs, figures and measurements.
    """

    name: Annotated[str, INDECISIVE]
    seed: int = Field(0, ge=0)
    # Accelerate has one precision per process. YAML reads a bare `no` as false.
    mixed_precision: Annotated[
        Literal["no", "bf16"], STAGELESS, BeforeValidator(lambda value: "no" if value is False else value)
    ] = "bf16"
    student: StudentRecipe = StudentRecipe()
    teachers: list[TeacherRecipe] = []
    data: DataRecipe
    views: ViewsRecipe = ViewsRecipe()
    partitions: list[PartitionRecipe] = [PartitionRecipe()]
    standardization: StandardizationRecipe = StandardizationRecipe()
    loss: LossRecipe = LossRecipe()
    contrastive: ContrastiveRecipe = ContrastiveRecipe()
    balancing: BalancingRecipe = BalancingRecipe()
    taps: TapsRecipe = TapsRecipe()
    hooks: list[str] = []
    optimizer: OptimizerRecipe = OptimizerRecipe()
    schedule: ScheduleRecipe = ScheduleRecipe()
    ema: EmaRecipe = EmaRecipe()
    mesa: MesaRecipe = MesaRecipe()
    damp: DampRecipe = DampRecipe()
    spectral: SpectralRecipe = SpectralRecipe()
    stages: Annotated[list[dict[str, Any]], STAGELESS] = []
    checkpoints: Annotated[CheckpointsRecipe, INDECISIVE] = CheckpointsRecipe()
    export: Annotated[ExportRecipe, INDECISIVE] = ExportRecipe()
    logging: Annotated[LoggingRecipe, INDECISIVE] = LoggingRecipe()

    @model_validator(mode="after")
    def _check(self) -> "Recipe":
        is_name = re.fullmatch(r"[^/\0]+", self.name) is not None and self.name not in (".", "..")
        require(is_name, "name", self.name, "the name of a folder below `runs`, without '/'")
        for section, entries in (("teachers", self.teachers), ("partitions", self.partitions)):
            names = [entry.name for entry in entries]
            is_valid = bool(names) and len(set(names)) == len(names)
            require(is_valid, f"{section} (names)", names, "at least one, all different")
        self._check_teachers_of_partitions()
        if self.taps.weight > 0:
            self._check_roles("taps", "leave `taps` out")
        is_valid = all(map(is_import_path, self.hooks)) and len(self.own_hooks()) == len(self.hooks)
        require(is_valid, "hooks", self.hooks, "import paths 'my_package.my_module:MyHook', with different names")
        if self.balancing.method == "adaptive":
            self._check_roles("`balancing.method: adaptive`", "set it to 'fixed'")
        can_cache = not (self.data.streaming and self.views.teachers == "cached")
        rule = "false with `views.teachers: cached`, which needs images by number (or set `views.teachers: online`)"
        require(can_cache, "data.streaming", self.data.streaming, rule)
        weights = next((each.weights for each in self.data.sources() if each.weights is not None), None)
        rule = "null with `views.teachers: cached`, which would keep an image for each time that it is shown"
        require(weights is None or self.views.teachers != "cached", "data.weights", weights, rule)
        are_rgb = self.views.teachers == "cached" or self.logging.picture_source or self.logging.knn_data
        rule = "null with `views.teachers: cached`, `logging.picture_source` and `logging.knn_data`, which are for RGB"
        require(self.data.num_channels is None or not are_rgb, "data.num_channels", self.data.num_channels, rule)
        start, num_steps = self.balancing_times().start_step, self.schedule.num_steps
        is_reached = self.balancing.method == "fixed" or start < num_steps
        rule = f"below `schedule.num_steps`, {num_steps}, or no weight ever moves"
        require(is_reached, "balancing.start_step", start, rule)
        for partition in self.partitions:
            path, is_cached = f"partitions.{partition.name}", self.views.teachers == "cached"
            rule = "null with `views.teachers: online`, whose views are cut by `crop_scale`"
            require(partition.windows_px is None or is_cached, f"{path}.windows_px", partition.windows_px, rule)
            rule = "null with `views.teachers: cached`, whose views are cut by `windows_px`"
            require(partition.crop_scale is None or not is_cached, f"{path}.crop_scale", partition.crop_scale, rule)
            if partition.teachers_per_image is not None:
                self._check_teachers_per_image(partition, partition.teachers_per_image)
        return self

    def balancing_times(self) -> BalancingTimes:
        """Return when the weights of teachers move; what is not set is a share of the run, of 12 steps as well.

        A hundredth and a tenth of the run are our choice: of 10,000 steps the period is AdaLoss's 100.
        """
        own, schedule, num_steps = self.balancing, self.schedule, self.schedule.num_steps
        frozen_steps = schedule.in_steps(self.optimizer.trunk_frozen_steps)
        warm = min(schedule.in_steps(schedule.warmup_steps), num_steps // 4)
        start = warm if frozen_steps >= num_steps else max(warm, frozen_steps)  # a thawed trunk changes every rate
        return BalancingTimes(
            start if own.start_step is None else schedule.in_steps(own.start_step),
            max(1, num_steps // 100) if own.period_steps is None else own.period_steps,
            max(1, num_steps // 10) if own.ramp_steps is None else schedule.in_steps(own.ramp_steps),
        )

    def has_mesa(self, step: int) -> bool:
        """Return whether MESA's loss counts at a step."""
        return self.mesa.weight > 0 and step >= self.schedule.in_steps(self.mesa.start_step)

    def settings_without_effect(self) -> list[str]:
        """Return a line for each part that begins when the run is over, as of published recipes in a short run."""
        num_steps, starts = self.schedule.num_steps, {}
        if self.mesa.weight > 0:
            starts["mesa.start_step"] = (self.mesa.start_step, "MESA does nothing")
        starts["optimizer.trunk_frozen_steps"] = (self.optimizer.trunk_frozen_steps, "the trunk stays as it begins")
        return [
            f"`{name}` is {start} and the run has {num_steps} steps: {what}. Lower it, or give the run more steps."
            for name, (start, what) in starts.items()
            if start >= num_steps
        ]

    def own_hooks(self) -> dict[str, str]:
        """Return the import paths of `hooks` by the name of the class."""
        return {path.rpartition(":")[2]: path for path in self.hooks}

    def dense_factors(self, teacher: str) -> tuple[int, ...]:
        """Return how many positions along a patch the student's dense heads for a teacher have; those of taps: 1."""
        (entry,) = [entry for entry in self.teachers if entry.name == teacher]
        factor = {**self.student.adaptor, **entry.adaptor}.get("upsample_factor", 1)
        return tuple(dict.fromkeys((factor, 1)))

    def share_of_images(self, partition: PartitionRecipe) -> float:
        """Return the share of a partition's images that each of its teachers sees."""
        number = partition.teachers_per_image
        return 1.0 if number is None else number / len(partition.teachers or self.teachers)

    def _check_teachers_per_image(self, partition: PartitionRecipe, number: int) -> None:
        path = f"partitions.{partition.name}.teachers_per_image"
        own = [entry for entry in self.teachers if partition.teachers is None or entry.name in partition.teachers]
        rule = f"below {len(own)}, the number of the partition's teachers, or null for all"
        require(self.share_of_images(partition) < 1, path, number, rule)
        for use, is_used in (
            ("`views.teachers: cached`, which runs all teachers once for each image", self.views.teachers == "cached"),
            ("`contrastive.weight` above 0, which compares all images", self.contrastive.weight > 0),
            ("`shard: true` of a teacher, which all ranks must call equally often", any(each.shard for each in own)),
        ):
            require(not is_used, path, number, f"null with {use}")

    def refuse_inner_heads(self, where: str) -> None:
        """Refuse losses on inner blocks for a student whose blocks no head can read.

        Args:
            where: End of the rule, for the message.

        Raises:
            RecipeError: If the recipe has taps.
        """
        if self.taps.weight > 0:
            raise RecipeError(f"`taps.weight` must be 0 {where}, got {self.taps.weight}.")

    def _check_roles(self, use: str, way_out: str) -> None:
        for entry in self.teachers:
            if entry.role is None:
                raise RecipeError(
                    f"`teachers.{entry.name}.role` must be one of {list(get_args(Role))} with {use}, got None. "
                    f"Say what the teacher is learned for, or {way_out}."
                )

    def _check_teachers_of_partitions(self) -> None:
        names = [teacher.name for teacher in self.teachers]
        covered: set[str] = set()
        for partition in self.partitions:
            own = names if partition.teachers is None else partition.teachers
            path = f"partitions.{partition.name}.teachers"
            for name in own:
                check_choice(path, name, names, error=RecipeError)
            require(bool(own), path, own, "at least one name, or null for all")
            covered.update(own)
        uncovered = [name for name in names if name not in covered]
        if uncovered:
            raise RecipeError(
                f"`partitions (teachers)` must be such that each teacher sees one, got none of {uncovered}."
            )


def _as_words(changes: Any) -> Any:
    """Return the changes of a mapping as words of a command line: JSON is YAML."""
    if not isinstance(changes, Mapping):
        return changes
    return [f"{path}={json.dumps(value, default=str, ensure_ascii=False)}" for path, value in changes.items()]


class RecipeOptions(Settings):
    """Base of the options of a command with a field `recipe`, the name or file of a recipe.

    Attributes:
        trust_remote_code: Allow a recipe that lies anywhere in the folder of a checkpoint, an adapter or a run, or has
            such a `base`, to import Python code by "module:name" (teachers, losses, hooks, images, a student). Other
            recipes may always do so: from installed modules, the working directory, or the recipe's folder.
        changes: Changes of the recipe, "section.field=value"; in Python also a mapping with such paths or sections as
            keys.
    """

    trust_remote_code: bool = False
    changes: Annotated[list[str] | dict[str, Any], BeforeValidator(_as_words)] = []

    @classmethod
    def unchanged(cls, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the unchecked plain data of the recipe that the options name; empty where they must and do not."""
        source = options.get("recipe", cls.model_fields["recipe"].default)
        if not isinstance(source, str):
            return {}
        path = _find_recipe(source)
        return with_defaults(Recipe, functools.reduce(merged, _read_layers([path]).values(), {"name": path.stem}))

    def read_recipe(self, source: str, *first: str) -> Recipe:
        """Return a recipe with the changes.

        Args:
            source: Its name or file.
            first: Changes that are made before those of the options.

        Raises:
            RecipeError: As `load_recipe`, or if a recipe that came with a checkpoint names classes to import.
        """
        recipe, folder = load_recipe(source, [*first, *self.changes]), _find_recipe(source).parent
        if not self.trust_remote_code:
            refuse_code_of_others(source, recipe, [*self.changes])
        for name, argument in _all_named_code(recipe).items():  # now, since nothing else knows the recipe's folder
            import_object(name, argument, beside=folder, error=RecipeError)
        return recipe


class RecipeCommand(RecipeOptions):
    """Base of the options of a command that always takes a recipe.

    Attributes:
        recipe: Name of a recipe, or a file of your own that ends in .yaml.
    """

    recipe: str = "demo"

    def load_recipe(self, *first: str) -> Recipe:
        """Return the recipe with the changes; others may be made before them. Errors are those of `read_recipe`."""
        return self.read_recipe(self.recipe, *first)


def refuse_code_of_others(source: str, recipe: Recipe, changes: Sequence[str] = ()) -> None:
    """Refuse a recipe that names Python to import, if its file or a `base` of it came with a checkpoint or a run.

    Args:
        source: Name or file of the recipe, as for `load_recipe`.
        recipe: The recipe read from it.
        changes: Changes by the user, who may name code.

    Raises:
        RecipeError: The message names file and code.
    """
    named = [name for name in _all_named_code(recipe) if not any(name in change for change in changes)]
    foreign = [path for path in _read_layers([_find_recipe(source)]) if _came_with_others(path)] if named else []
    if foreign:
        raise RecipeError(
            f"`recipe` {source!r} names Python to import, {named[0]!r}, and {str(foreign[0])!r} came with a "
            "checkpoint, an adapter or a run. Read that code, then give --trust-remote-code, or copy recipe and code "
            "to a folder of your own."
        )


def _came_with_others(path: Path) -> bool:
    """Return whether a file, or the target of a link, lies in or below a folder with a file of `_OF_OTHERS`."""
    resolved = path.resolve()
    if RECIPES_DIR.resolve() in resolved.parents:
        return False
    folders = {*resolved.parents, *Path(os.path.abspath(path)).parents}
    return any((folder / name).exists() for folder in folders for name in _OF_OTHERS)


def _all_named_code(recipe: Recipe) -> dict[str, str]:
    """Return the import paths of a recipe and its stages, each with the setting that names it."""
    return dict(each for part in (recipe, *stage_recipes(recipe)) for each in _named_code(part))


def _named_code(recipe: Recipe) -> list[tuple[str, str]]:
    """Return the import paths of a recipe, each with the setting that names it."""
    named = [(entry.kind, f"teachers.{entry.name}.kind") for entry in recipe.teachers]
    named += [(recipe.loss.features, "loss.features"), (recipe.loss.summary, "loss.summary")]
    named += [(recipe.student.preset or "", "student.preset"), *((path, "hooks") for path in recipe.hooks)]
    if not recipe.student.architecture.startswith(("timm:", "transformers:")):
        named += [(recipe.student.architecture, "student.architecture")]
    named = [(name, argument) for name, argument in named if is_import_path(name)]
    images = [(each.source, "data.source") for each in (recipe.data, *recipe.data.mixed_in)]
    images += [(recipe.logging.picture_source or "", "logging.picture_source")]
    return [*named, *((name, argument) for name, argument in images if is_object_path(name))]


def load_recipe(source: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply the command line's changes.

    Args:
        source: Name of a file in `training/recipes`, without folder and `.yaml`, or a path ending in `.yaml` or `.yml`.
        overrides: `"section.field=value"` texts, values in YAML.

    Returns:
        The resolved recipe.

    Raises:
        RecipeError: If there is no such recipe, a key is unknown, or a value has the wrong type or is out of
            range.
    """
    path = _find_recipe(source)
    layers = [{"name": path.stem}, *_read_layers([path]).values()]
    try:
        recipe = load(Recipe, layers, overrides)
        stage_recipes(recipe)  # checked now, so that a run does not fail when the stage starts
    except RecipeError as error:
        raise RecipeError(f"Recipe {source!r}: {error}") from error
    return recipe


def stage_recipes(recipe: Recipe) -> list[Recipe]:
    """Return a recipe for each stage: the recipe with the stage's changes, its name and a seed of its own.

    `core.settings.merged` puts them together: mappings field by field, lists of entries by their names.

    Args:
        recipe: The recipe; nothing is returned for one without stages.

    Raises:
        RecipeError: If a stage has no name or the same as another, changes what only the whole run has, or has an
            unknown key or a bad value.
    """
    names = [stage.get("name") for stage in recipe.stages]
    is_valid = all(isinstance(name, str) and re.fullmatch(r"[\w.-]+", name) for name in names)
    rule = "all different, of letters, digits and any of '_', '-' and '.'"
    if not is_valid or len(set(names)) < len(names):
        raise RecipeError(f"`stages (names)` must be {rule}, got {names}.")
    # A stage starts from the weights of the one before, with its LayerScale.
    unfolded = recipe.model_copy(update={"export": recipe.export.model_copy(update={"fold_layer_scale": False})})
    return [_stage_recipe(recipe if stage is recipe.stages[-1] else unfolded, stage) for stage in recipe.stages]


def _stage_recipe(recipe: Recipe, stage: dict[str, Any]) -> Recipe:
    where = ("stages", stage["name"])
    for path in marked(Recipe, STAGELESS):
        value: Any = stage
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is not None:
            key = ".".join((*where, *path))
            raise RecipeError(f"`{key}` must be left to the recipe itself, got {value!r}. It {STAGELESS}.")
    own = {"stages": [], "seed": derive_seed(recipe.seed, "stage", stage["name"])}
    try:
        return Recipe(**merged(recipe.to_dict() | own, stage))
    except RecipeError as error:
        raise RecipeError(*error.below(*where)) from error


def list_recipes() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(_shipped_recipes())


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe as YAML that `load_recipe` reads back to an equal one."""
    path.write_text(yaml.safe_dump(recipe.to_dict(), sort_keys=False), encoding="utf-8")


def unchangeable(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Return the settings, or sections, that stay as they are in a run.

    They say which network is trained and what its optimizer, losses and hooks remember.

    Args:
        first: A recipe, as mappings of all its settings.
        second: Another one: teachers, and losses with a memory, that only one of the two has are among the settings.
    """
    before, after = ({f"teachers.{entry['name']}" for entry in part["teachers"]} for part in (first, second))
    is_switched = bool(first["contrastive"]["weight"]) != bool(second["contrastive"]["weight"])
    return [
        *("student.architecture", "student.arguments", "student.levels", "student.frozen_stages"),
        "student.frozen_statistics",
        *("student.preset", "student.config", "student.adaptor", "spectral", "taps", "hooks", "optimizer.name"),
        *("balancing.method", "contrastive.bank_size", *sorted(before ^ after)),
        *(["contrastive"] if is_switched else []),
    ]


def decisive_part(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a resolved recipe without what cannot change the weights but for rounding, and with shares in steps."""
    part = without(recipe, list(marked(Recipe, INDECISIVE)))
    for section, name in marked(Recipe, STEPS_OR_SHARE):
        value = part.get(section, {}).get(name)
        if value is not None:
            part[section] = {**part[section], name: in_steps(value, part["schedule"]["num_steps"])}
    return part


def _find_recipe(source: str) -> Path:
    if source.endswith((".yaml", ".yml")):
        path = Path(source)
        if not path.is_file():
            raise RecipeError(f"Recipe file {source!r} does not exist.")
        return path
    shipped = _shipped_recipes()
    if source not in shipped:
        raise RecipeError(
            f"Unknown recipe {source!r}.{did_you_mean(source, list_recipes())} Recipes: {', '.join(list_recipes())}; "
            "a file of your own must end in .yaml."
        )
    return shipped[source]


def _shipped_recipes() -> dict[str, Path]:
    """Return the files of the recipes that come with the package, in folders or not, by their names."""
    return {path.stem: path for path in RECIPES_DIR.rglob("*.yaml")}


def _read_layers(paths: list[Path]) -> dict[Path, dict[str, Any]]:
    """Return the contents of the last file, those of its `base` before it; it is the base of the file before it."""
    path = paths[-1]
    try:
        layer = read_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise RecipeError(f"Recipe file {str(path)!r} is not text in UTF-8: {error.reason}.") from error
    except ValueError as error:
        raise RecipeError(f"Recipe file {str(path)!r} is {error}") from error
    if not isinstance(layer, dict):
        raise RecipeError(f"Recipe file {str(path)!r} must hold a mapping of sections, got {shorten(repr(layer), 80)}.")
    base = layer.pop("base", None)
    if base is None:
        return {path: layer}
    own_name = f"Recipe file {str(path)!r}: `base`"
    if not isinstance(base, str):
        raise RecipeError(f"{own_name} must be the name of a recipe or a file that ends in .yaml, got {base!r}.")
    try:
        base_path = _find_recipe(base)
    except RecipeError as error:
        raise RecipeError(f"{own_name} {base!r} cannot be read. {error}") from error
    if any(base_path.samefile(each) for each in paths):
        loop = " -> ".join(str(each) for each in (*paths, base_path))
        raise RecipeError(f"{own_name} must be another recipe, got a loop: {loop}.")
    return {**_read_layers([*paths, base_path]), path: layer}
