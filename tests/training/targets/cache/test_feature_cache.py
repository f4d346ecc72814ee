import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from mean_colors import CPU, NUM_IMAGES, PATCH, SIDE, TEACHERS, Images, MeanColor, contents_of, open_cache, recipe_with
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.interruption import Interrupted
from training.data.training_images import build_training_images
from training.recipe import RecipeError, ViewsRecipe
from training.targets.feature_cache import (
    CacheContents,
    FeatureCache,
    HalfPrecision,
    TeacherAnswers,
    check_shards,
    shard_paths,
    write_feature_cache,
)
from training.teachers.outputs import TeacherOutput


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three shards of two images."""
    monkeypatch.setattr("training.targets.feature_cache.IMAGES_PER_SHARD", 2)
    monkeypatch.setattr("training.targets.feature_cache.IMAGES_PER_FORWARD", 2)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


WHOLE = ["cache.json", *(f"shard_{number:05d}.safetensors" for number in range(3))]
CACHED = recipe_with(ViewsRecipe(teachers="cached"))


def test_grid_that_is_no_multiple_is_resampled() -> None:
    answers = TeacherAnswers({"odd": MeanColor(cell_px=27)}, SIDE // PATCH, CPU, HalfPrecision())  # 2 x 2 cells
    entries = answers(Images().images)
    assert entries["odd.features"].shape == (NUM_IMAGES, 5, 5, 3)
    assert entries["odd.features"].dtype == torch.float16


class Heard(MeanColor):
    """Notes the threads that call it; `meeting` lets them go on together."""

    def __init__(self, meeting: threading.Barrier | None = None) -> None:
        super().__init__()
        self.threads, self.meeting = [], meeting

    def answer(self, pixel_values: Tensor) -> TeacherOutput:
        self.threads.append(threading.current_thread().name)
        if self.meeting is not None:
            self.meeting.wait()
        return super().answer(pixel_values)


def test_threads_share_the_images_and_answer_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    teacher = Heard(threading.Barrier(3, timeout=20))  # which breaks if they come one after the other
    divided = TeacherAnswers({"color": teacher}, SIDE // PATCH, CPU, HalfPrecision())(Images().images)
    assert len(set(teacher.threads)) == 3
    monkeypatch.undo()
    whole = TeacherAnswers({"color": MeanColor()}, SIDE // PATCH, CPU, HalfPrecision())(Images().images)
    assert divided.keys() == whole.keys()
    assert all(torch.equal(divided[key], whole[key]) for key in whole)


def test_a_teacher_that_cannot_share_is_called_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    teacher = Heard()
    teacher.can_share_cores = False
    TeacherAnswers({"color": teacher, "other": MeanColor()}, SIDE // PATCH, CPU, HalfPrecision())(Images().images)
    assert teacher.threads == [threading.current_thread().name]  # whose CUDA device is the rank's


def test_missing_shards_are_computed_and_others_kept(tmp_path: Path, small_shards: None) -> None:
    recipe = recipe_with(ViewsRecipe(teachers="cached"))
    contents = contents_of(recipe)
    asked = iter([False, True])
    answers = TeacherAnswers(TEACHERS, SIDE // PATCH, CPU, HalfPrecision())
    with pytest.raises(Interrupted, match="the same command goes on"):
        write_feature_cache(tmp_path, contents, Images(), answers, should_stop=lambda: next(asked))
    first, *others = shard_paths(tmp_path, contents)
    assert first.is_file()
    assert not any(path.exists() for path in others)
    with pytest.raises(RecipeError, match="incomplete: shard_00001"):
        FeatureCache(tmp_path, contents)
    written_at = first.stat().st_mtime_ns
    cache = open_cache(recipe, tmp_path)
    assert first.stat().st_mtime_ns == written_at
    assert torch.equal(cache.images(range(NUM_IMAGES)), Images().images)


def test_a_complete_cache_starts_no_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents, answers = contents_of(CACHED), TeacherAnswers(TEACHERS, SIDE // PATCH, CPU, HalfPrecision())
    write_feature_cache(tmp_path, contents, Images(), answers)
    monkeypatch.setattr("training.targets.feature_cache.DataLoader", None)
    write_feature_cache(tmp_path, contents, Images(), answers, num_workers=2)


def test_full_disk_is_noticed_before_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 999})
    monkeypatch.setattr("training.targets.feature_cache.shutil.disk_usage", lambda folder: usage)
    with pytest.raises(RecipeError, match=r"needs \d+ kB more, but .* has 999 bytes free"):
        open_cache(recipe_with(ViewsRecipe(teachers="cached")), tmp_path)


def test_values_beyond_float16_are_refused() -> None:
    class Huge(MeanColor):
        def answer(self, pixel_values: Tensor) -> TeacherOutput:
            return TeacherOutput(None, super().answer(pixel_values).features * 1e6)

    with pytest.raises(RecipeError, match="Teacher 'huge' gives values that float16 cannot hold"):
        TeacherAnswers({"huge": Huge()}, SIDE // PATCH, CPU, HalfPrecision())(Images().images)


def test_ranks_write_their_shares_of_the_shards(tmp_path: Path, small_shards: None) -> None:
    recipe = recipe_with(ViewsRecipe(teachers="cached"))
    contents = contents_of(recipe)
    answers = TeacherAnswers(TEACHERS, SIDE // PATCH, CPU, HalfPrecision())
    written = []
    for rank in (0, 1):
        write_feature_cache(tmp_path, contents, Images(), answers, rank=rank, num_ranks=2)
        written.append([path.is_file() for path in shard_paths(tmp_path, contents)])
    assert written == [[True, False, True], [True, True, True]]
    assert torch.equal(FeatureCache(tmp_path, contents).images([5, 0]), Images().images[[5, 0]])


def test_answers_come_back_in_the_order_asked_for(tmp_path: Path) -> None:
    cache = open_cache(recipe_with(ViewsRecipe(teachers="cached")), tmp_path)
    whole = Images().images[[4, 1]].float() / 255
    for name, (summary, features) in cache.answers([4, 1]).items():
        expected = TEACHERS[name].answer(whole)
        torch.testing.assert_close(features.float(), expected.features, atol=1e-3, rtol=0)
        assert (summary is None) == (expected.summary is None)
    assert set(cache.answers([0])) == set(TEACHERS)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def lie(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[:8] = (2**40).to_bytes(8, "little")
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def shorten(path: Path) -> None:
    save_file({key: value[:1] for key, value in load_file(path).items()}, path)


def lose_a_summary(path: Path) -> None:
    save_file({key: value for key, value in load_file(path).items() if key != "coarse.summary"}, path)


def lose_features(path: Path) -> None:
    save_file({key: value for key, value in load_file(path).items() if key != "fine.features"}, path)


@pytest.mark.parametrize("damage", [cut, lie, empty, shorten, lose_a_summary, lose_features])
def test_damaged_shard_is_named_before_any_work(tmp_path: Path, small_shards: None, damage: Callable) -> None:
    open_cache(CACHED, tmp_path)
    (tmp_path / WHOLE[3]).unlink()
    damage(tmp_path / WHOLE[2])

    def answer(images: Tensor) -> NoReturn:
        raise AssertionError("computed before the damage was noticed")

    for run in (
        lambda: write_feature_cache(tmp_path, contents_of(CACHED), Images(), answer),
        lambda: check_shards(tmp_path, contents_of(CACHED)),
    ):
        with pytest.raises(RecipeError, match=r"shard_00001.*cannot be used: .*Delete it: the same command") as error:
            run()
        assert "\n" not in str(error.value)
    (tmp_path / WHOLE[2]).unlink()
    assert torch.equal(open_cache(CACHED, tmp_path).images(range(NUM_IMAGES)), Images().images)


def test_a_shard_with_another_number_is_refused(tmp_path: Path, small_shards: None) -> None:
    open_cache(CACHED, tmp_path)
    path = tmp_path / WHOLE[2]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"shard_00001.*Delete it: the same command"):
        open_cache(CACHED, tmp_path)
    path.unlink()
    assert torch.equal(open_cache(CACHED, tmp_path).images(range(NUM_IMAGES)), Images().images)


def test_what_killed_runs_left_is_removed(tmp_path: Path, small_shards: None) -> None:
    open_cache(CACHED, tmp_path)
    (tmp_path / WHOLE[2]).unlink()
    # One was killed while it wrote, one after its shard was in place.
    for name in (WHOLE[2], WHOLE[3]):
        (tmp_path / f".partial-{name}-x").mkdir()
        (tmp_path / f".partial-{name}-x" / name).write_bytes(b"half")
        (tmp_path / f"{name}.lock").touch()
    open_cache(CACHED, tmp_path)
    assert names(tmp_path) == WHOLE


def test_runs_that_build_one_cache_share_the_work(tmp_path: Path, small_shards: None) -> None:
    contents, seen, both = contents_of(CACHED), [], threading.Barrier(2, timeout=20)

    class Slow(TeacherAnswers):
        def __call__(self, images: Tensor) -> dict[str, Tensor]:
            seen.append(images)
            time.sleep(0.05)
            return super().__call__(images)

    def run() -> None:
        both.wait()
        write_feature_cache(tmp_path, contents, Images(), Slow(TEACHERS, SIDE // PATCH, CPU, HalfPrecision()))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(map(len, seen)) == NUM_IMAGES
    assert names(tmp_path) == WHOLE
    assert torch.equal(FeatureCache(tmp_path, contents).images(range(NUM_IMAGES)), Images().images)


def test_a_cache_of_one_form_of_data_serves_another_of_the_same_images(
    tmp_path: Path, write_source: Callable[..., str]
) -> None:
    """Images are known by content: of a Parquet file as of a webdataset shard."""
    data, folder = CACHED.data, tmp_path / "features"
    opened = {
        kind: build_training_images(data.replace(source=write_source(kind, 5, num_shards=1)), is_square=True)
        for kind in ("parquet", "webdataset")
    }
    contents = {kind: CacheContents.of(CACHED, PATCH, images, TEACHERS) for kind, images in opened.items()}
    answers = TeacherAnswers(TEACHERS, SIDE // PATCH, CPU, HalfPrecision())
    write_feature_cache(folder, contents["parquet"], opened["parquet"], answers)
    written = (folder / WHOLE[1]).stat().st_mtime_ns
    write_feature_cache(folder, contents["webdataset"], opened["webdataset"], answers)
    assert (folder / WHOLE[1]).stat().st_mtime_ns == written
    cache = FeatureCache(folder, contents["webdataset"])
    assert torch.equal(cache.images(range(5)), torch.stack([opened["webdataset"][index] for index in range(5)]))
