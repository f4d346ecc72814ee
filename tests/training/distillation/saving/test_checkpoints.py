from pathlib import Path

import pytest
import torch
from saved_steps import save
from small_recipes import small_recipe

from training.distillation.checkpoints import (
    CheckpointError,
    check_allowed_changes,
    check_fits,
    check_same_recipe,
    list_checkpoints,
    newest_checkpoint,
    read_state,
    warn_of_other_data,
)
from training.recipe import Recipe, RecipeError, load_recipe


def test_newest_is_found_and_oldest_are_removed(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    for step in (5, 90, 100):
        save(tmp_path, step)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000090", "step_00000100"]
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert read_state(newest) == {"step": 100}


def test_other_recipe_is_refused_with_what_differs(tmp_path: Path) -> None:
    recipe = load_recipe("demo")
    saved = recipe.to_dict()
    check_same_recipe(tmp_path, saved, recipe)
    check_same_recipe(tmp_path, saved, load_recipe("demo", ["checkpoints.every_steps=7", "logging.every_steps=1"]))
    with pytest.raises(RecipeError, match=r"belongs to another recipe \(optimizer.learning_rate: .* -> 1.0\)"):
        check_same_recipe(tmp_path, saved, load_recipe("demo", ["optimizer.learning_rate=1"]))


def test_changes_that_are_allowed_are_returned(tmp_path: Path) -> None:
    saved = load_recipe("demo").to_dict()
    recipe = load_recipe("demo", ["optimizer.learning_rate=1", "data.source=demo-pypi", "data.num_images=7"])
    with pytest.raises(RecipeError, match=r"`training.distill --allow-changes data.source,data.num_images` goes on"):
        check_same_recipe(tmp_path, saved, recipe, ["optimizer.learning_rate"])
    accepted = check_same_recipe(tmp_path, saved, recipe, ["optimizer.learning_rate", "data", "mesa"])
    assert [change.partition(":")[0] for change in accepted] == [
        "data.source",
        "data.num_images",
        "optimizer.learning_rate",
    ]
    assert check_same_recipe(tmp_path, recipe.to_dict(), recipe, ["data"]) == []


@pytest.mark.parametrize(
    "change",
    [
        "student.config.hidden_size=96",
        "optimizer.name=lamb",
        "spectral.is_used=true",
        "balancing.method=adaptive",
        "contrastive.weight=0.1",
    ],
)
def test_what_a_checkpoint_cannot_hold_is_never_allowed(tmp_path: Path, change: str) -> None:
    path = change.partition("=")[0]
    with pytest.raises(RecipeError, match=rf"orders cannot be changed in a run \({path}\)\.$"):
        check_same_recipe(tmp_path, load_recipe("demo").to_dict(), load_recipe("demo", [change]), [path])


def test_what_is_allowed_must_be_a_setting() -> None:
    check_allowed_changes(["data.source", "teachers.nanodet-g.kind", "mesa"], [load_recipe("demo")])
    with pytest.raises(RecipeError, match=r"^`allow_changes` must name .*'data.sorce'\. Did you mean 'data.source'\?"):
        check_allowed_changes(["data.sorce"], [load_recipe("demo")])


def test_weight_of_contrasts_may_change_but_not_begin(tmp_path: Path) -> None:
    saved = load_recipe("demo", ["contrastive.weight=0.1"]).to_dict()
    for weight, is_accepted in ((0.2, True), (0, False)):
        recipe = load_recipe("demo", [f"contrastive.weight={weight}"])
        if is_accepted:
            assert len(check_same_recipe(tmp_path, saved, recipe, ["contrastive"])) == 1
        else:
            with pytest.raises(RecipeError, match=r"cannot be changed in a run \(contrastive.weight\)\.$"):
                check_same_recipe(tmp_path, saved, recipe, ["contrastive"])


@pytest.mark.parametrize("names", [("semantic",), ("semantic", "segmenter", "newcomer"), ("semantic", "renamed")])
def test_other_teachers_are_never_allowed(tmp_path: Path, names: tuple[str, ...]) -> None:
    saved = small_recipe("semantic", "segmenter").to_dict()
    with pytest.raises(RecipeError, match=r"cannot be changed in a run \(teachers\.(segmenter|newcomer)\.\w+\)\.$"):
        check_same_recipe(tmp_path, saved, small_recipe(*names), ["teachers"])


@pytest.mark.parametrize("change", ["partitions.low.name=renamed", "loss.features=cosine"])
def test_what_is_advised_can_be_followed(tmp_path: Path, change: str) -> None:
    """Also where only one of the two recipes has the setting."""
    plain, changed = load_recipe("demo"), load_recipe("demo", [change])
    for saved, recipe in ((plain, changed), (changed, plain)):
        with pytest.raises(RecipeError, match=r"`training.distill --allow-changes .*` goes on") as refused:
            check_same_recipe(tmp_path, saved.to_dict(), recipe)
        names = str(refused.value).partition("--allow-changes ")[2].partition("`")[0].split(",")
        check_allowed_changes(names, [recipe])
        assert check_same_recipe(tmp_path, saved.to_dict(), recipe, names)


def test_teachers_in_another_order_are_refused(tmp_path: Path) -> None:
    saved = small_recipe("semantic", "segmenter").to_dict()
    with pytest.raises(RecipeError, match=r"\(order of teachers: semantic, segmenter -> segmenter, semantic\): resume"):
        check_same_recipe(tmp_path, saved, small_recipe("segmenter", "semantic"))


def test_a_setting_that_is_newer_than_the_checkpoint_had_its_default(tmp_path: Path) -> None:
    recipe = small_recipe("semantic")
    saved = recipe.to_dict()
    del saved["mesa"], saved["optimizer"]["clip_norm"], saved["teachers"][0]["summary_weight"]
    check_same_recipe(tmp_path, saved, recipe)
    changed = Recipe(**recipe.to_dict() | {"mesa": {"weight": 0.5}})
    with pytest.raises(RecipeError, match=r"\(mesa.weight: 0.0 -> 0.5\)"):
        check_same_recipe(tmp_path, saved, changed)


def damage(path: Path, kind: str) -> None:
    content = path.read_bytes()
    changed = {"cut": content[:-1], "emptied": b"", "garbage": bytes(len(content)), "gone": None}[kind]
    path.unlink() if changed is None else path.write_bytes(changed)


@pytest.mark.parametrize("name", ["weights", "state.json", "manifest.json"])
@pytest.mark.parametrize("kind", ["cut", "emptied", "garbage", "gone"])
def test_a_damaged_checkpoint_is_passed_over_in_one_line(
    tmp_path: Path, name: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    older, newest = (save(tmp_path, step) for step in (3, 6))
    damage(newest / name, kind)
    assert newest_checkpoint(tmp_path) == older
    (line,) = caplog.messages
    assert line.startswith(f"'{newest / name}' ")
    assert line.endswith(f"the run goes on from '{older}' instead")
    assert newest.is_dir()


def test_without_an_intact_checkpoint_one_line_names_all_and_nothing_goes(tmp_path: Path) -> None:
    checkpoints = [save(tmp_path, step) for step in (3, 6)]
    damage(checkpoints[0] / "weights", "garbage")
    damage(checkpoints[1] / "state.json", "cut")
    with pytest.raises(CheckpointError, match="has no intact checkpoint") as raised:
        newest_checkpoint(tmp_path)
    message = str(raised.value)
    size = (checkpoints[1] / "state.json").stat().st_size
    assert f"'{checkpoints[1] / 'state.json'}' has {size} bytes instead of {size + 1}; " in message
    assert f"'{checkpoints[0] / 'weights'}' has another content than was written. Restore" in message
    assert "\n" not in message
    assert list_checkpoints(tmp_path) == checkpoints


@pytest.mark.parametrize("changed", [{"head": (9,)}, {}, {"head": (12,), "other": (1,)}])
def test_tensors_of_another_network_are_refused(changed: dict[str, tuple[int]]) -> None:
    path = Path("step_00000001/student.safetensors")
    wanted = {"head": torch.zeros(12)}
    check_fits(path, {"head": (12,)}, wanted)
    with pytest.raises(CheckpointError, match=r"^'.*student.safetensors' is of another network \((head|other): .* -> "):
        check_fits(path, changed, wanted)


def test_other_data_are_told_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_other_data(Path("step_00000003"), "24 files, 9 bytes", "24 files, 9 bytes")
    assert caplog.messages == []
    warn_of_other_data(Path("step_00000003"), "24 files, 9 bytes", "14 files, 5 bytes")
    (line,) = caplog.messages
    assert line.startswith("'step_00000003' was trained on other data (24 files, 9 bytes -> 14 files, 5 bytes; names")
