from pathlib import Path
from typing import get_args, get_origin

import pytest
from torch import nn

from core.settings import differences, hash_of, item_kinds_of, kinds_of, list_settings, load
from training.distillation.optimizers import OPTIMIZERS
from training.recipe import (
    DataRecipe,
    OptimizerRecipe,
    Recipe,
    RecipeCommand,
    RecipeError,
    StandardizationRecipe,
    decisive_part,
    list_recipes,
    load_recipe,
    save_recipe,
    stage_recipes,
)
from training.targets.phi_s import STANDARDIZERS


# What a recipe that names no images needs from the command line.
SOURCE = "data.source=images"


OWN_TEACHER = """
base: demo
teachers: [{name: own, kind: "package.module:Class"}]
"""


@pytest.fixture
def write(tmp_path: Path):
    def write_recipe(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return str(path)

    return write_recipe


def test_the_published_recipes_are_there() -> None:
    assert {"demo", "c_radio_v4_so400m", "c_radio_v4_h"} <= set(list_recipes())


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_survives_the_round_trip(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, [SOURCE])
    assert recipe.name == name
    path = tmp_path / "recipe.yaml"
    save_recipe(recipe, path)
    assert load_recipe(str(path)) == recipe


@pytest.mark.parametrize("name", list_recipes())
def test_teachers_of_every_recipe_have_roles(name: str) -> None:
    load_recipe(name, [SOURCE, "balancing.method=adaptive", "taps.weight=0.25", "taps.scheme=strict"])


@pytest.mark.parametrize("name", ["c_radio_v4_so400m", "c_radio_v4_h"])
def test_roles_are_those_of_the_founding_article(name: str) -> None:
    roles = {teacher.name: teacher.role for teacher in load_recipe(name, [SOURCE]).teachers}
    assert [next(role for own, role in roles.items() if part in own) for part in ("dino", "siglip", "sam")] == [
        "basic",
        "semantic",
        "task",
    ]


def test_missing_value_is_named() -> None:
    with pytest.raises(RecipeError, match=r"`data.source` has no value: add data.source=\.\.\."):
        load_recipe("c_radio_v4_h")


def test_base_is_read_first() -> None:
    huge, small = (load_recipe(name, [SOURCE]) for name in ("c_radio_v4_h", "c_radio_v4_so400m"))
    assert huge.student.preset == "c-radio_v4-h"
    assert huge.teachers == small.teachers


def test_own_file_with_a_base(write) -> None:
    recipe = load_recipe(write("base: demo\nseed: 3\noptimizer: {learning_rate: 2e-3}\n"))
    demo = load_recipe("demo")
    assert (recipe.name, recipe.seed, recipe.optimizer.learning_rate) == ("mine", 3, 2e-3)
    assert recipe.optimizer.betas == demo.optimizer.betas


def test_overrides_reach_sections_entries_and_free_fields() -> None:
    overrides = [
        "optimizer.learning_rate=2e-4",
        "teachers.nanodet-g.feature_weight=0.5",
        "teachers.0.summary_weight=2",
        "teachers.nanodet-g.options.level=2",
        "partitions.low.sizes_px=[64,96,128]",
        "student.config.hidden_size=96",
        "data.num_images=null",
    ]
    recipe = load_recipe("demo", overrides)
    assert recipe.optimizer.learning_rate == 2e-4
    assert recipe.teachers[2].feature_weight == 0.5
    assert recipe.teachers[0].summary_weight == 2
    assert recipe.teachers[2].options["level"] == 2
    assert recipe.partitions[0].sizes_px == [64, 96, 128]
    assert recipe.student.config["hidden_size"] == 96
    assert recipe.data.num_images is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.learning_rat=1", r"Unknown key 'optimizer.learning_rat'.*Did you mean 'learning_rate'"),
        ("optmizer.learning_rate=1", r"Unknown key 'optmizer'.*Did you mean 'optimizer'"),
        ("teachers.nanodet-g.knd=x", r"Unknown key 'teachers\.nanodet-g\.knd'.*Did you mean 'kind'"),
        ("teachers.nanodt-g.kind=x", r"Unknown entry 'nanodt-g' of 'teachers'. Did you mean 'nanodet-g'"),
        ("teachers.7.kind=x", "Unknown entry '7' of 'teachers'"),
        ("optimizer.learning_rate=fast", "`optimizer.learning_rate` must be a number above 0, got 'fast'"),
        ("optimizer.learning_rate", "must have the form .*section.field=value"),
        ("optimizer.learning_rate=-1", "`optimizer.learning_rate` must be a number above 0, got -1"),
        ("views.teachers=cache", "`views.teachers` must be one of .*, got 'cache'. Did you mean 'cached'"),
        ("views.crop_scale=[1, 0.5]", "`views.crop_scale` must be two numbers"),
        ("partitions.low.sizes_px=[]", "`partitions.low.sizes_px` must be at least one size"),
        ("partitions.low.probabilities=[1]", "`partitions.low.probabilities` must be one number"),
        ("teachers=[]", r"`teachers \(names\)` must be at least one"),
        ("ema.decay=1", "`ema.decay` must be a number in"),
        ("mixed_precision=fp8", "`mixed_precision` must be one of"),
        ("views.cache_dir=None", "`views.cache_dir` must be a text, or null, got 'None'. Write null for no value"),
        ("data.num_images=None", "`data.num_images` must be an integer above 0, or null, got 'None'. Write null"),
        ("partitions.low.sizes_px=[64, true]", r"`partitions.low.sizes_px` must be \[an integer above 0, ...\], got"),
        ("views.crop_scale=[true, 1]", r"`views.crop_scale` must be \[a number, a number\], got \[True, 1\]"),
        ("partitions.low.crop_scale=[0.5, 0.2]", "`partitions.low.crop_scale` must be two numbers above 0"),
        (
            "partitions.low.crop_scale=[0.5, 1]",
            "`partitions.low.crop_scale` must be null with `views.teachers: cached`",
        ),
        ("partitions.low.windows_px=[]", "`partitions.low.windows_px` must be at least one size, or null"),
        ("loss.features={mse: 1}", r"`loss.features` must be one of \['mse', .*\], got '{mse: 1}'"),
        ("loss.features=cosin", "got 'cosin'. Did you mean 'cosine'"),
        ("name=../x", "`name` must be the name of a folder below `runs`, without '/', got '../x'"),
        ("name=''", "`name` must be the name of a folder"),
    ],
)
def test_bad_override_is_one_clear_line(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as error:
        load_recipe("demo", [override])
    assert "\n" not in str(error.value)


# Thirty lines that stand for thousands of millions of values.
LAUGHS = "l0: &l0 [ha]\n" + "".join(f"l{n + 1}: &l{n + 1} [*l{n}, *l{n}]\n" for n in range(30))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: demo\noptimizer: {lerning_rate: 1}\n", "Unknown key .*lerning_rate.* Did you mean 'learning_rate'"),
        ("base: demo\nteachers: [{name: a, kind: b, sauce: c}]\n", "Unknown key .*sauce.*Did you mean 'source'"),
        ("base: dem\n", "Unknown recipe 'dem'. Did you mean 'demo'"),
        ("optimizer: [1, 2\n", "is not YAML"),
        ("- a\n- b\n", r"must hold a mapping of sections, got \['a', 'b'\]"),
        ("", "must hold a mapping of sections, got None"),
        ("base: mine.yaml\n", r"`base` must be another recipe, got a loop: .*mine.yaml -> .*mine.yaml"),
        ("base: 5\n", "`base` must be the name of a recipe or a file that ends in .yaml, got 5"),
        ("base: [demo]\n", r"`base` must be the name of a recipe .*, got \['demo'\]"),
        ("base: there/is/none.yaml\n", "`base` 'there/is/none.yaml' cannot be read.*does not exist"),
        ("seed: 1\nseed: 2\n", "the key 'seed' stands twice"),
        ("base: demo\nname: !!python/object/apply:os.getcwd []\n", "is not YAML: .*python/object/apply:os.getcwd"),
        ("base: demo\nname: !!timestamp x\n", "is not YAML: .*timestamp"),
        ("base: demo\nseed: !!int x\n", "is not YAML: 'x' is no value of the type 'int'"),
        ("base: demo\nstudent: {config: &a {b: *a}}\n", "is nested deeper than 50 levels"),
        (f"base: demo\nstudent: {{config: {'{a: ' * 60}1{'}' * 60}}}\n", "is nested deeper than 50 levels"),
        (f"a: {'[' * 5000}", "is nested deeper than 50 levels"),
        (LAUGHS, "stands for more than 100,000 values"),
        ("data: {source: x}\nteachers: [{name: a, kind: k}, {name: a, kind: k}]\n", "all different"),
    ],
)
def test_bad_file_is_one_clear_line(text: str, message: str, write, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = write(text)
    with pytest.raises(RecipeError, match=message) as error:
        load_recipe(file)
    assert "\n" not in str(error.value)
    assert "mine.yaml" in str(error.value)


def test_bases_in_a_loop_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, base in (("a", "b"), ("b", "c"), ("c", "./b")):
        Path(f"{name}.yaml").write_text(f"base: {base}.yaml\n")
    with pytest.raises(RecipeError, match=r"'c.yaml'.*got a loop: a.yaml -> b.yaml -> c.yaml -> b.yaml\."):
        load_recipe("a.yaml")


def test_base_elsewhere(tmp_path: Path, write) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "other.yaml").write_text("base: demo\nseed: 4\n")
    assert load_recipe(write(f"base: {tmp_path}/far/other.yaml\n")).seed == 4


def test_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"base: demo\nname: caf\xe9\n")
    with pytest.raises(RecipeError, match=r"^Recipe file '.*mine.yaml' is not text in UTF-8"):
        load_recipe(str(path))


def test_missing_file_and_unknown_name() -> None:
    with pytest.raises(RecipeError, match="does not exist"):
        load_recipe("nowhere/mine.yaml")
    with pytest.raises(RecipeError, match=r"Unknown recipe 'dmeo'. Did you mean 'demo'"):
        load_recipe("dmeo")


def fingerprint(*overrides: str, name: str = "demo") -> str:
    return hash_of(decisive_part(load_recipe(name, overrides).to_dict()))


def test_the_decisive_part_is_what_decides_the_weights() -> None:
    assert fingerprint() == fingerprint("checkpoints.keep=5", "logging.every_steps=1", "data.num_workers=0")
    assert fingerprint() == fingerprint("export.feature_normalizer=true", "optimizer.max_bad_steps=3")
    assert fingerprint() != fingerprint("seed=1")
    assert fingerprint() != fingerprint("teachers.nanodet-g.feature_weight=2")


@pytest.mark.parametrize(
    ("name", "overrides", "stored"),
    [
        ("demo", [], "398da4ef6553d17d2b9ad6a788359cbcf734ae3aff7056c8a33263ebf4b67a06"),
        ("c_radio_v4_h", [SOURCE], "1f5429dfc79ca29417dfb42d89e55c6c933290d944139288787ce9d2ffb7ee6e"),
    ],
)
def test_the_decisive_part_is_the_stored_one(name: str, overrides: list[str], stored: str) -> None:
    """Where it moves by more than a new field (other names or types), runs are refused their own checkpoints."""
    assert fingerprint(*overrides, name=name) == stored


def test_differences_name_the_entry() -> None:
    old, new = load_recipe("demo"), load_recipe("demo", ["teachers.nanodet-g.options.level=2", "seed=1"])
    assert differences(old.to_dict(), new.to_dict()) == [
        "seed: 0 -> 1",
        "teachers.nanodet-g.options.level: (absent) -> 2",
    ]


def test_defaults_are_valid() -> None:
    recipe = Recipe(name="x", teachers=load_recipe("demo").teachers, data=DataRecipe(source="x"))
    assert recipe.optimizer.name == "adamw"


def test_a_bare_no_is_a_precision():
    assert load_recipe("demo", ["mixed_precision=no"]).mixed_precision == "no"


STAGED = """
base: demo
seed: 4
stages:
  - {name: low, schedule: {num_steps: 30}}
  - name: high
    schedule: {num_steps: 20, warmup_steps: 2}
    partitions: [{name: big, sizes_px: [64]}]
    teachers: [{name: t, kind: k}]
"""


def test_stages_are_the_recipe_with_their_changes(write) -> None:
    recipe = load_recipe(write(STAGED), ["stages.high.schedule.num_steps=25", "optimizer.learning_rate=3e-4"])
    low, high = stage_recipes(recipe)
    assert (low.name, high.name) == ("low", "high")
    assert (low.schedule.num_steps, high.schedule.num_steps, high.schedule.warmup_steps) == (30, 25, 2)
    assert low.schedule.warmup_steps == recipe.schedule.warmup_steps
    assert [partition.name for partition in high.partitions] == ["big"]
    assert [teacher.name for teacher in high.teachers] == ["t"]
    assert low.teachers == recipe.teachers
    assert high.optimizer.learning_rate == 3e-4
    assert low.stages == high.stages == []
    assert len({recipe.seed, low.seed, high.seed}) == 3
    assert stage_recipes(load_recipe("demo")) == []


@pytest.mark.parametrize("beside", ["config.json", "run.txt"])
@pytest.mark.parametrize("text", [OWN_TEACHER, STAGED.replace("kind: k", "kind: 'package.module:Class'")])
def test_a_recipe_of_a_checkpoint_imports_no_code_unasked(write, beside: str, text: str, tmp_path: Path) -> None:
    recipe = write(text)
    RecipeCommand(recipe=recipe).load_recipe(SOURCE)
    (tmp_path / beside).touch()
    with pytest.raises(RecipeError, match=r"`recipe`.*package.module:Class"):
        RecipeCommand(recipe=recipe).load_recipe(SOURCE)
    RecipeCommand(recipe=recipe, trust_remote_code=True).load_recipe(SOURCE)


def test_a_class_that_the_user_names_is_imported(write, tmp_path: Path) -> None:
    (tmp_path / "run.txt").touch()
    RecipeCommand(recipe=write(OWN_TEACHER), changes=["teachers.own.kind=package.module:Other"]).load_recipe(SOURCE)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            "[{name: a, schedule: {num_stps: 1}}]",
            "Unknown key 'stages.a.schedule.num_stps'.*Did you mean 'num_steps'",
        ),
        ("[{name: a, schedule: {num_steps: 0}}]", "`stages.a.schedule.num_steps` must be an integer above 0, got 0"),
        ("[{name: a}, {name: a}]", r"`stages \(names\)` must be all different"),
        ("[{schedule: {num_steps: 1}}]", r"`stages \(names\)` must be all different, .*, got \[None\]"),
        ("[{name: a/b}]", r"`stages \(names\)` must be all different, of letters"),
        ("[{name: a, mixed_precision: bf16}]", "`stages.a.mixed_precision` must be left to the recipe itself"),
        ("[{name: a, student: {init_from: x}}]", "`stages.a.student.init_from` must be left to the recipe itself"),
    ],
)
def test_bad_stage_is_one_clear_line(stages: str, message: str, write) -> None:
    with pytest.raises(RecipeError, match=message) as error:
        load_recipe(write(f"base: demo\nstages: {stages}\n"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("override", ["damp.sigma=-1", "mesa.weight=-1"])
def test_negative_strengths_are_refused(override: str) -> None:
    with pytest.raises(RecipeError, match=f"`{override[:-3]}` must be a number of at least 0, got -1"):
        load_recipe("demo", [override])


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ("schedule.warmup_steps=-5", "at least 0"),
        ("views.flip_probability=7", r"a number in \[0, 1\]"),
        ("views.brightness=-3", "at least 0"),
        ("schedule.final_fraction=9", r"a number in \[0, 1\]"),
        ("teachers.nanodet-g.feature_weight=-1", "at least 0"),
        ("partitions.low.vitdet_probability=7", r"a number in \[0, 1\]"),
        ("optimizer.name=adamv", "Did you mean 'adamw'"),
        ("standardization.method=phis", "Did you mean 'phi_s'"),
    ],
)
def test_values_that_make_no_sense_are_refused_when_the_recipe_is_read(change: str, rule: str) -> None:
    with pytest.raises(RecipeError, match=f"`{change.partition('=')[0]}` must be .*{rule}"):
        load_recipe("demo", [change])


def test_choices_of_a_recipe_are_those_of_the_registries() -> None:
    fields = {**OptimizerRecipe.model_fields, **StandardizationRecipe.model_fields}
    assert get_args(fields["name"].annotation) == tuple(OPTIMIZERS)
    assert get_args(fields["method"].annotation) == tuple(STANDARDIZERS)


NUMBERS = {
    setting.path: setting.field
    for setting in list_settings(Recipe)
    if (kinds_of(setting.field.annotation) | item_kinds_of(setting.field.annotation)) & {int, float}
}
PARTS = {
    "teachers.NAME": "teachers.nanodet-g",
    "partitions.NAME": "partitions.low",
    "data.mixed_in.NUMBER": "data.mixed_in.0",
}


MIXED = load_recipe("demo", ["data.mixed_in=[{source: x, weight: 0.5}]", "data.num_images=null"]).to_dict()


@pytest.mark.parametrize("path", NUMBERS)
@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "-1", "true"])
def test_numbers_are_finite_and_not_negative_everywhere(path: str, value: str) -> None:
    field = NUMBERS[path]
    label = next((label for label in PARTS if path.startswith(label)), "")
    place = path.replace(label, PARTS.get(label, ""))
    count = len(get_args(field.annotation)) if get_origin(field.annotation) is tuple else 1
    text = f"[{', '.join([value] * count)}]" if item_kinds_of(field.annotation) else value
    with pytest.raises(RecipeError, match=f"`{place}`"):
        load(Recipe, [MIXED], [f"{place}={text}"])


@pytest.mark.parametrize(
    "name", ["keys", "items", "train", "forward", "training", "", "a.b", "a/b", "..", "a b", "_modules"]
)
def test_teacher_name_that_pytorch_cannot_have_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=r"name` must be of letters.*no word of PyTorch's such as 'keys', got"):
        load_recipe("demo", [f"teachers.0.name={name!r}"])


@pytest.mark.parametrize("name", ["siglip2-g", "dino_v3", "7B", "hull_\u00e4"])
def test_teacher_names_that_can_be(name: str) -> None:
    assert load_recipe("demo", [f"teachers.0.name={name}"]).teachers[0].name == name
    nn.ModuleDict({name: nn.Identity()})


def test_windows_of_cached_images_are_refused_online() -> None:
    with pytest.raises(RecipeError, match=r"`partitions.low.windows_px` must be null with `views.teachers: online`"):
        load_recipe("demo", ["views.teachers=online", "partitions.low.windows_px=[64]"])


def test_a_run_says_what_begins_after_its_end() -> None:
    assert load_recipe("c_radio_v4_so400m", [SOURCE]).idle_parts() == []
    mesa, trunk = load_recipe("c_radio_v4_so400m", [SOURCE, "schedule.num_steps=3000"]).idle_parts()
    assert mesa.startswith("`mesa.start_step` is 75000 and the run has 3000 steps: MESA does nothing.")
    assert trunk.startswith("`optimizer.trunk_frozen_steps` is 5000 and the run has 3000 steps: the trunk stays")
    assert load_recipe("c_radio_v4_1d_h", [SOURCE]).optimizer.trunk_frozen_steps == 0
