import sys
from pathlib import Path
from typing import get_args, get_origin

import pytest
from torch import nn

from modeling_radio.core.settings import (
    choices_of,
    differences,
    hash_of,
    kinds_of,
    list_settings,
    load,
    read_yaml,
    setting_paths,
)
from modeling_radio.data.settings import DataRecipe
from modeling_radio.training.distillation.optimizers import OPTIMIZERS
from modeling_radio.training.losses.features import FEATURE_LOSSES
from modeling_radio.training.losses.summaries import SUMMARY_LOSSES
from modeling_radio.training.recipes.recipe import (
    RECIPES_DIR,
    LossRecipe,
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
from modeling_radio.training.recipes.sections import ExportRecipe
from modeling_radio.training.targets.phi_s import STANDARDIZERS


# What a recipe that names no images needs from the command line.
SOURCE = "data.source=images"

OWN_TEACHER = """
base: demo
teachers: [{name: own, kind: "own_package.module:Class"}]
"""

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


def own_file(name: str) -> dict:
    """Return what a recipe says itself, without its base."""
    (path,) = RECIPES_DIR.rglob(f"{name}.yaml")
    return read_yaml(path.read_text())


@pytest.fixture
def write(tmp_path: Path):
    def write_recipe(text: str, name: str = "mine") -> str:
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        return str(path)

    return write_recipe


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_has_roles_and_survives_the_round_trip(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, [SOURCE])
    assert recipe.name == name
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(str(tmp_path / "recipe.yaml")) == recipe
    load_recipe(name, [SOURCE, "balancing.method=adaptive", "taps.weight=0.25"])


@pytest.mark.parametrize("name", [name for name in list_recipes() if "base" in own_file(name)])
def test_whatever_differs_from_the_base_is_said_in_the_file(name: str) -> None:
    """A list of teachers or partitions must not lose what the base says of them."""
    own = own_file(name)
    said = [*setting_paths(own), "name"]
    base, recipe = (load_recipe(each, [SOURCE]).to_dict() for each in (own["base"], name))
    for change in differences(base, recipe):
        path, _, values = change.partition(": ")
        section, entry = [*path.split("."), ""][:2]
        is_list = section in ("teachers", "partitions", "stages")
        is_gone = is_list and entry not in {each["name"] for each in recipe[section]}
        is_said = any(path == each or path.startswith(f"{each}.") for each in said)
        assert is_said or is_gone or values.startswith("(absent)"), change


def test_times_of_a_run_are_those_published_or_their_shares() -> None:
    for name in ("c_radio_v4_so400m", "radio_v2.5"):
        recipe = load_recipe(name, [SOURCE, "stages.low_432.schedule.num_steps=60000"])
        _, short, long = stage_recipes(recipe)
        for stage, warm, frozen, estimated in ((long, 500, 5000, 3000), (short, 100, 1000, 600)):
            part = decisive_part(stage.to_dict())
            assert part["schedule"]["warmup_steps"] == part["optimizer"]["trunk_warmup_steps"] == warm
            assert part["optimizer"]["trunk_frozen_steps"] == frozen
            assert part["standardization"]["estimation_steps"] == estimated
            if stage.mesa.weight:
                start = stage.schedule.num_steps // 4
                assert [stage.has_mesa(step) for step in (start - 1, start)] == [False, True]
    for value in ("1.5", "1e9999", "-0.1"):
        with pytest.raises(RecipeError, match=r"`mesa\.start_step`"):
            load_recipe("demo", [f"mesa.start_step={value}"])


def test_own_files_with_bases(write) -> None:
    base = write("base: demo\nseed: 4\n", "other")
    recipe = load_recipe(write(f"base: {base}\noptimizer: {{learning_rate: 2e-3}}\nmixed_precision: no\n"))
    assert (recipe.name, recipe.seed, recipe.optimizer.learning_rate) == ("mine", 4, 2e-3)
    assert recipe.optimizer.betas == load_recipe("demo").optimizer.betas
    assert recipe.mixed_precision == "no"  # which YAML reads as false


def test_overrides_reach_sections_entries_and_free_fields() -> None:
    overrides = [
        *("optimizer.learning_rate=2e-4", "teachers.nanodet-g.feature_weight=0.5", "teachers.0.summary_weight=2"),
        *("teachers.nanodet-g.options.level=2", "partitions.low.sizes_px=[64,96,128]"),
        *("student.config.hidden_size=96", "data.num_images=null", "seed=1"),
    ]
    recipe = load_recipe("demo", overrides)
    assert (recipe.optimizer.learning_rate, recipe.data.num_images) == (2e-4, None)
    assert (recipe.teachers[2].feature_weight, recipe.teachers[0].summary_weight) == (0.5, 2)
    assert (recipe.partitions[0].sizes_px, recipe.student.config["hidden_size"]) == ([64, 96, 128], 96)
    told = differences(load_recipe("demo").to_dict(), recipe.to_dict())
    assert "teachers.nanodet-g.options.level: (absent) -> 2" in told
    assert "seed: 0 -> 1" in told


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("optimizer.learning_rat=1", "'learning_rate'"),
        ("teachers.nanodet-g.knd=x", "'kind'"),
        ("optimizer.learning_rate=fast", "a number above 0, got 'fast'"),
        ("views.teachers=cache", "'cached'"),
        ("views.crop_scale=[1, 0.5]", "two numbers"),
        ("views.crop_scale=[true, 1]", "True"),
        ("views.cache_dir=None", "null"),
        ("partitions.low.sizes_px=[]", "at least one"),
        ("partitions.low.sizes_px=[64, true]", "True"),
        ("partitions.low.probabilities=[1]", "one number"),
        ("partitions.low.crop_scale=[0.5, 0.2]", "two numbers above 0"),
        ("partitions.low.crop_scale=[0.5, 1]", "null with `views.teachers: cached`"),
        ("partitions.low.windows_px=[]", "at least one"),
        ("partitions.low.teachers_per_image=3", "below 3"),
        ("partitions.low.teachers_per_image=1", "null with `views.teachers: cached`"),
        ("ema.decay=1", "a number in"),
        ("mixed_precision=fp8", "'bf16'"),
        ("loss.features=cosin", "'cosine'"),
        ("name=../x", "without '/'"),
        ("name=''", "the name of a folder"),
        ("views.flip_probability=7", r"in \[0, 1\]"),
        ("partitions.low.vitdet_probability=7", r"in \[0, 1\]"),
    ],
)
def test_a_refused_override_is_one_line_that_names_it(override: str, rule: str) -> None:
    with pytest.raises(RecipeError, match=rf"[`']{override.partition('=')[0]}[`'] .*{rule}") as error:
        load_recipe("demo", [override])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "conflict",
    [
        "contrastive.weight=0.1",
        "teachers.nanodet-g.shard=true",
    ],
)
def test_settings_that_need_all_teachers_of_an_image_are_refused(conflict: str) -> None:
    dealt = ["views.teachers=online", "partitions.low.teachers_per_image=1"]
    load_recipe("demo", dealt)
    with pytest.raises(RecipeError, match=r"`partitions\.low\.teachers_per_image` must be null with ") as error:
        load_recipe("demo", [*dealt, conflict])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["optmizer.learning_rate=1"], "'optimizer'"),
        (["teachers.nanodt-g.kind=x"], "'nanodet-g'"),
        (["teachers.7.kind=x"], "'7' of 'teachers'"),
        (["optimizer.learning_rate"], "section.field=value"),
        (["teachers=[]"], r"`teachers \(names\)`"),
        (["views.teachers=online", "partitions.low.windows_px=[64]"], "`partitions.low.windows_px` .*online"),
        (["balancing.method=adaptive", "balancing.start_step=12", "schedule.num_steps=12"], "balancing.start"),
    ],
)
def test_other_refused_overrides(overrides: list[str], named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        load_recipe("demo", overrides)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("base: demo\noptimizer: {lerning_rate: 1}\n", "lerning_rate.*'learning_rate'"),
        ("base: demo\nteachers: [{name: a, kind: b, sauce: c}]\n", "sauce.*'source'"),
        ("base: dem\n", "'dem'.*'demo'"),
        ("optimizer: [1, 2\n", "not YAML"),
        ("base: demo\nname: !!python/object/apply:os.getcwd []\n", "not YAML.*os.getcwd"),
        ("- a\n- b\n", r"a mapping of sections, got \['a', 'b'\]"),
        ("", "got None"),
        ("base: mine.yaml\n", r"`base` .*mine.yaml -> .*mine.yaml"),
        ("base: [demo]\n", r"`base` .*\['demo'\]"),
        ("base: there/is/none.yaml\n", "`base` .*does not exist"),
        ("data: {source: x}\nteachers: [{name: a, kind: k}, {name: a, kind: k}]\n", "all different"),
        ("base: c_radio_v4_h\n", r"`data.source` .*add data.source=\.\.\."),
        ("base: demo\nstages: [{name: a, schedule: {num_stps: 1}}]", "stages.a.schedule.num_stps.*'num_steps'"),
        ("base: demo\nstages: [{name: a, schedule: {num_steps: 0}}]", "`stages.a.schedule.num_steps`"),
        ("base: demo\nstages: [{name: a}, {name: a}]", r"`stages \(names\)`"),
        ("base: demo\nstages: [{schedule: {num_steps: 1}}]", r"`stages \(names\)` .*None"),
        ("base: demo\nstages: [{name: a/b}]", r"`stages \(names\)`"),
        ("base: demo\nstages: [{name: a, mixed_precision: bf16}]", "`stages.a.mixed_precision`"),
        ("base: demo\nstages: [{name: a, student: {init_from: x}}]", "`stages.a.student.init_from`"),
        ("base: demo\nname: caf\udce9\n", "UTF-8"),
    ],
)
def test_a_refused_file_is_one_line_that_names_it(text: str, named: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.yaml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(RecipeError, match=f"mine.yaml.*{named}") as error:
        load_recipe(str(path))
    assert "\n" not in str(error.value)


def fingerprint(*overrides: str, name: str = "demo") -> str:
    return hash_of(decisive_part(load_recipe(name, overrides).to_dict()))


def test_the_decisive_part_is_what_decides_the_weights() -> None:
    """Where it moves by more than a new field (other names or types), runs are refused their own checkpoints."""
    same = "views.parts_at_once=2 checkpoints.keep=5 data.num_workers=0 export.feature_normalizer=true"
    stored = "b9350969606465da2e3800c538c9aaffc98f6cd7504a70c7a857ae5785cbce77"
    assert fingerprint() == fingerprint(*same.split(), "optimizer.max_bad_steps=3") == stored
    assert stored not in (fingerprint("seed=1"), fingerprint("teachers.nanodet-g.feature_weight=2"))
    stored = "2fa6ca32219cf74c0c8b9cc06af0b1ad2aaf6d32694076d545cf0730f019bcef"
    assert fingerprint(SOURCE, name="c_radio_v4_h") == stored


def test_stages_are_the_recipe_with_their_changes(write) -> None:
    recipe = load_recipe(write(STAGED), ["stages.high.schedule.num_steps=25", "optimizer.learning_rate=3e-4"])
    low, high = stage_recipes(recipe)
    assert (low.name, high.name) == ("low", "high")
    assert (low.schedule.num_steps, high.schedule.num_steps, high.schedule.warmup_steps) == (30, 25, 2)
    assert low.schedule.warmup_steps == recipe.schedule.warmup_steps
    assert ([part.name for part in high.partitions], [each.name for each in high.teachers]) == (["big"], ["t"])
    assert low.teachers == recipe.teachers
    assert high.optimizer.learning_rate == 3e-4
    assert low.stages == high.stages == stage_recipes(load_recipe("demo")) == []
    folding = recipe.model_copy(update={"export": ExportRecipe(fold_layer_scale=True)})
    assert [stage.export.fold_layer_scale for stage in stage_recipes(folding)] == [False, True]
    assert len({recipe.seed, low.seed, high.seed}) == 3


@pytest.mark.parametrize("beside", ["config.json", "run.txt"])
@pytest.mark.parametrize("text", [OWN_TEACHER, STAGED.replace("kind: k", "kind: 'own_package.module:Class'")])
def test_a_recipe_of_a_checkpoint_imports_no_code_unasked(write, beside: str, text: str, tmp_path: Path) -> None:
    recipe = write(text)
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "module.py").write_text("class Class: ...\nclass Other: ...\n")  # found beside it
    RecipeCommand(recipe=recipe).load_recipe(SOURCE)
    assert sys.modules.pop("own_package.module").Class
    assert str(tmp_path) not in sys.path
    (tmp_path / beside).touch()
    with pytest.raises(RecipeError, match=r"`recipe`.*own_package.module:Class"):
        RecipeCommand(recipe=recipe).load_recipe(SOURCE)
    assert "own_package.module" not in sys.modules
    RecipeCommand(recipe=recipe, trust_remote_code=True).load_recipe(SOURCE)
    if text == OWN_TEACHER:  # a class that the user names is imported
        RecipeCommand(recipe=recipe, changes=["teachers.own.kind=own_package.module:Other"]).load_recipe(SOURCE)
    sys.modules.pop("own_package.module")


@pytest.mark.parametrize("change", ["loss.features=own:fn", "loss.summary=own:fn", "student.preset=own:fn"])
def test_losses_and_students_of_a_checkpoint_are_not_imported_either(write, change: str, tmp_path: Path) -> None:
    section, _, field = change.partition("=")[0].partition(".")
    recipe = write(f"base: demo\n{section}: {{{field}: 'own:fn'}}\n")
    with pytest.raises(RecipeError, match=f"`{section}.{field}` 'own:fn' cannot be imported"):
        RecipeCommand(recipe=recipe).load_recipe(SOURCE)
    (tmp_path / "run.txt").touch()
    with pytest.raises(RecipeError, match="--trust-remote-code"):
        RecipeCommand(recipe=recipe).load_recipe(SOURCE)


@pytest.mark.parametrize(
    ("mark", "file"),
    [
        ("config.json", "recipes/own.yaml"),
        ("adapter_config.json", "own.yaml"),
        ("run.txt", "stages/low/own.yaml"),
    ],
)
@pytest.mark.parametrize("by", ["itself", "base", "base of a base", "link", "linked folder"])
def test_no_way_to_a_recipe_of_others_imports_its_code(mark: str, file: str, by: str, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs" / file
    theirs.parent.mkdir(parents=True)
    (tmp_path / "theirs" / mark).touch()
    theirs.write_text(OWN_TEACHER)
    mine = tmp_path / "mine" / "own.yaml"
    mine.parent.mkdir()
    if by == "itself":
        mine = theirs
    elif by == "linked folder":
        mine.parent.rmdir()
        mine.parent.symlink_to(theirs.parent)
    elif by == "link":
        mine.symlink_to(theirs)
    else:
        mine.write_text(f"base: {theirs}")
    if by == "base of a base":
        mine, between = mine.with_name("last.yaml"), mine
        mine.write_text(f"base: {between}")
    with pytest.raises(RecipeError, match=r"`recipe`.*own_package.module:Class"):
        RecipeCommand(recipe=str(mine)).load_recipe(SOURCE)


def test_a_link_in_a_folder_of_others_leads_to_their_modules(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(OWN_TEACHER)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "config.json").touch()
    (theirs / "own.yaml").symlink_to(tmp_path / "mine.yaml")
    with pytest.raises(RecipeError, match="`recipe`"):
        RecipeCommand(recipe=str(theirs / "own.yaml")).load_recipe(SOURCE)


def test_choices_of_a_recipe_are_those_of_the_registries() -> None:
    for section, name, registry in (
        (OptimizerRecipe, "name", OPTIMIZERS),
        (StandardizationRecipe, "method", STANDARDIZERS),
        (LossRecipe, "features", FEATURE_LOSSES),
        (LossRecipe, "summary", SUMMARY_LOSSES),
    ):
        assert choices_of(section.model_fields[name]) == list(registry)
    assert Recipe(name="x", teachers=load_recipe("demo").teachers, data=DataRecipe(source="x")).seed == 0


NUMBERS = {
    setting.path: setting.field
    for setting in list_settings(Recipe)
    if kinds_of(setting.field.annotation, with_items=True) & {int, float}
}
PARTS = {
    "teachers.NAME": "teachers.nanodet-g",
    "partitions.NAME": "partitions.low",
    "data.mixed_in.NUMBER": "data.mixed_in.0",
}
MIXED = load_recipe("demo", ["data.mixed_in=[{source: x, weight: 0.5}]", "data.num_images=null"]).to_dict()


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "-1", "true"])
def test_numbers_are_finite_and_not_negative_everywhere(value: str) -> None:
    """All are set at once, and the error names each."""
    changes = {}
    for path, field in NUMBERS.items():
        label = next((label for label in PARTS if path.startswith(label)), "")
        count = len(get_args(field.annotation)) if get_origin(field.annotation) is tuple else 1
        is_list = kinds_of(field.annotation) & {list, tuple}
        changes[path.replace(label, PARTS.get(label, ""))] = f"[{', '.join([value] * count)}]" if is_list else value
    if value == "-1":
        del changes["student.levels"]  # counted from the last one
    while changes:  # once more for the rules of pairs, which are only checked where all fields are valid
        with pytest.raises(RecipeError) as raised:
            load(Recipe, [MIXED], [f"{place}={bad}" for place, bad in changes.items()])
        left = {place: bad for place, bad in changes.items() if f"`{place}`" not in str(raised.value)}
        assert len(left) < len(changes), left
        changes = left


@pytest.mark.parametrize("name", ["keys", "train", "training", "", "a.b", "a/b", "..", "a b", "_modules"])
def test_teacher_names_that_pytorch_cannot_have_are_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="name` must be of letters"):
        load_recipe("demo", [f"teachers.0.name={name!r}"])
    for valid in ("siglip2-g", "7B", "hull_\u00e4"):
        assert load_recipe("demo", [f"teachers.0.name={valid}"]).teachers[0].name == valid
        nn.ModuleDict({valid: nn.Identity()})


def test_a_run_says_what_begins_after_its_end() -> None:
    short = [SOURCE, "schedule.num_steps=3000"]
    assert load_recipe("c_radio_v4_so400m", short).settings_without_effect() == []
    in_steps = [*short, "mesa.start_step=75000", "optimizer.trunk_frozen_steps=5000"]
    mesa, trunk = load_recipe("c_radio_v4_so400m", in_steps).settings_without_effect()
    assert [part in mesa for part in ("`mesa.start_step`", "75000", "3000")] == [True] * 3
    assert [part in trunk for part in ("`optimizer.trunk_frozen_steps`", "5000", "3000")] == [True] * 3


def test_help_starts_from_the_recipe_that_the_options_name(write) -> None:
    class Required(RecipeCommand):
        recipe: str

    assert RecipeCommand.unchanged({})["name"] == "demo"
    assert Required.unchanged({}) == {}
    values = Required.unchanged({"recipe": write("base: c_radio_v4_h\nseed: 5\n")})  # which names no images
    assert (values["name"], values["seed"], values["ema"]["decay"]) == (
        "mine",
        5,
        load_recipe("c_radio_v4_h", [SOURCE]).ema.decay,
    )


def test_bases_in_a_loop_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, base in (("a", "b"), ("b", "c"), ("c", "./b")):
        Path(f"{name}.yaml").write_text(f"base: {base}.yaml\n")
    with pytest.raises(RecipeError, match=r"'c.yaml'.*a.yaml -> b.yaml -> c.yaml -> b.yaml\."):
        load_recipe("a.yaml")
