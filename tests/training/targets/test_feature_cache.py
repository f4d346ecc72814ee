import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
import torch
from filelock import FileLock
from mean_colors import CPU, NUM_IMAGES, PATCH, SIDE, TEACHERS, Images, MeanColor, contents_of, open_cache, recipe_with
from PIL import Image
from torch import Tensor, nn

from modeling_radio.core.checked_tensors import DamagedFileError
from modeling_radio.core.interruption import Interrupted
from modeling_radio.data.image_folder import ImageFolder
from modeling_radio.data.settings import DataRecipe
from modeling_radio.data.training_images import build_training_images
from modeling_radio.training.recipes.recipe import Recipe, RecipeError, TeacherRecipe, ViewsRecipe
from modeling_radio.training.targets import feature_cache
from modeling_radio.training.targets.feature_cache import (
    CacheContents,
    FeatureCache,
    TeacherOutputs,
    check_contents,
    clear_up,
    shard_paths,
    weights_fingerprint,
    write_feature_cache,
    writing_turn,
)
from modeling_radio.training.teachers.outputs import TeacherOutput


WHOLE = ["cache.json", *(f"shard_{number:05d}.safetensors" for number in range(3))]


def cached_recipe() -> Recipe:
    return recipe_with(ViewsRecipe(teachers="cached"))


def answers_of(teachers=TEACHERS) -> TeacherOutputs:
    return TeacherOutputs(teachers, SIDE // PATCH, CPU)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three shards of two images."""
    monkeypatch.setattr(feature_cache, "IMAGES_PER_SHARD", 2)
    monkeypatch.setattr(feature_cache, "IMAGES_PER_FORWARD", 2)


class TestContents:
    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"data": DataRecipe(source="s", image_size_px=SIDE, seed=1)}, "data.seed"),
            ({"teachers": [TeacherRecipe(name="coarse", kind="k", options={"layer": 3})]}, "teachers.coarse.options"),
            ({"teachers": [TeacherRecipe(name="coarse", kind="k", dtype="bfloat16")]}, "teachers.coarse.dtype"),
            ({"seed": 7, "optimizer": {"learning_rate": 1.0}}, None),  # the student may change
        ],
    )
    def test_stale_cache_is_refused(self, tmp_path: Path, change: dict, named: str | None) -> None:
        recipe = cached_recipe()
        open_cache(recipe, tmp_path)
        changed = recipe.replace(**change)
        if named is None:
            assert len(open_cache(changed, tmp_path)) == NUM_IMAGES
            return
        with pytest.raises(RecipeError, match=rf"{named}.*`views\.cache_dir`"):
            open_cache(changed, tmp_path)

    @pytest.mark.parametrize("text", [None, "", "{", "[]", "5", '{"teachers": 5, "data": []}', "\xff"])
    def test_folder_without_a_whole_description_is_refused(self, tmp_path: Path, text: str | None) -> None:
        if text is not None:
            (tmp_path / "cache.json").write_text(text, encoding="latin-1")
        with pytest.raises(RecipeError, match=r"`views\.cache_dir`"):
            FeatureCache(tmp_path, contents_of(cached_recipe()))

    @pytest.mark.parametrize("is_renamed", [False, True])
    def test_changed_images_are_noticed_even_by_a_half_written_cache(self, tmp_path: Path, is_renamed: bool) -> None:
        folder, cache = image_folder(tmp_path), tmp_path / "cache"
        for _ in range(2):
            build_cache(cached_recipe(), folder, cache)
        (cache / WHOLE[1]).unlink()
        for path in list(folder.iterdir()):
            if is_renamed:
                path.rename(path.with_stem(f"x{path.stem}"))
            else:
                was = path.stat().st_mtime_ns
                draw(path, 200)
                os.utime(path, ns=(was + 1, was + 1))
        with pytest.raises(RecipeError, match=r"is stale .*images: "):
            build_cache(cached_recipe(), folder, cache)
        assert names_in(cache) == WHOLE[:1]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
    def test_fingerprint_of_weights_follows_every_bit_and_name(self, dtype: torch.dtype) -> None:
        def fingerprint(name: str, *shape: int, last: int = 0) -> str:
            network, tensor = nn.Module(), torch.zeros(shape, dtype=dtype)
            tensor.view(-1)[-1] = last
            network.register_buffer(name, tensor)
            return weights_fingerprint(network)

        first = fingerprint("a", 2, 3)
        assert first == fingerprint("a", 2, 3)
        assert len({first, fingerprint("b", 2, 3), fingerprint("a", 3, 2), fingerprint("a", 2, 3, last=1)}) == 4
        assert fingerprint("a").startswith("1 numbers")  # a scalar

    def test_setting_of_a_later_version_makes_no_cache_stale_nor_moves_it(self, tmp_path: Path) -> None:
        recipe = cached_recipe()
        contents = contents_of(recipe)
        old = json.loads(json.dumps(contents.settings))
        for entry in old["teachers"]:
            del entry["upsample"]
        of_old = CacheContents({**contents.settings, "teachers": old["teachers"]}, contents.state)
        assert of_old.default_folder() == contents.default_folder()
        del old["data"]["seed"]
        (tmp_path / "cache.json").write_text(json.dumps(old | contents.state))
        check_contents(tmp_path, contents)
        recipe.teachers[0].upsample = "tiles"
        with pytest.raises(RecipeError, match=r"teachers\.coarse\.upsample: bilinear -> tiles"):
            check_contents(tmp_path, contents_of(recipe))

    def test_cache_can_be_copied_to_another_machine(self, tmp_path: Path) -> None:
        recipe = cached_recipe()
        recipe.teachers[0].source, recipe.data.source = str(tmp_path / "weights"), str(tmp_path / "first/images")
        (tmp_path / "first").mkdir()
        build_cache(recipe, image_folder(tmp_path / "first"), tmp_path / "first/cache")
        assert str(tmp_path) not in (tmp_path / "first/cache/cache.json").read_text()
        shutil.copytree(tmp_path / "first", tmp_path / "second")
        for path in (tmp_path / "second/images").iterdir():
            os.utime(path, ns=(1, 1))
        images = ImageFolder(tmp_path / "second/images", size=SIDE)
        contents = CacheContents.of(cached_recipe(), PATCH, images, TEACHERS)
        assert torch.equal(FeatureCache(tmp_path / "second/cache", contents).images([0]), images[0][None])

    def test_default_folder_follows_the_contents_wherever_they_are(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RADIO_CACHE", str(tmp_path / "cache"))
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
        first, second = (image_folder(tmp_path / name) for name in ("first", "second"))

        def folder_of(path: Path, **data: object) -> Path:
            recipe = cached_recipe()
            recipe.data = recipe.data.replace(source=str(path), **data)
            images = ImageFolder(path, size=SIDE)
            return CacheContents.of(recipe, PATCH, images, TEACHERS).default_folder()

        before = folder_of(first)
        assert before.is_relative_to(tmp_path / "cache")
        assert folder_of(second) == before != folder_of(first, seed=1)
        draw(second / "0.bmp", 200)
        assert folder_of(second) != before

    def test_cache_of_one_form_of_data_serves_another_of_the_same_images(
        self, tmp_path: Path, write_source: Callable[..., str]
    ) -> None:
        """Images are known by their content: in a Parquet file as in a webdataset shard."""
        data, folder = cached_recipe().data, tmp_path / "features"
        for kind in ("parquet", "webdataset"):
            source = write_source(kind, 5, num_shards=1)
            images = build_training_images(data.replace(source=source), is_square=True)
            contents = CacheContents.of(cached_recipe(), PATCH, images, TEACHERS)
            write_feature_cache(folder, contents, images, answers_of() if kind == "parquet" else never)
        expected = torch.stack([images[index] for index in range(5)])
        assert torch.equal(FeatureCache(folder, contents).images(range(5)), expected)


def draw(path: Path, color: int) -> None:
    Image.new("RGB", (SIDE, SIDE), (color, 0, 0)).save(path)


def image_folder(folder: Path) -> Path:
    """Return a folder with four images, files of one size."""
    (folder / "images").mkdir()
    for number in range(4):
        draw(folder / f"images/{number}.bmp", number)
    return folder / "images"


def build_cache(recipe: Recipe, folder: Path, cache: Path) -> None:
    images = ImageFolder(folder, size=SIDE)
    write_feature_cache(cache, CacheContents.of(recipe, PATCH, images, TEACHERS), images, answers_of())


def never(images: Tensor) -> NoReturn:
    raise AssertionError("features were computed")


class TestFormat:
    @pytest.mark.parametrize("factor", [1e6, float("nan"), float("inf")])
    def test_values_that_float16_cannot_hold_are_refused(self, factor: float) -> None:
        class Scaled(MeanColor):
            def extract_features(self, pixel_values: Tensor) -> TeacherOutput:
                return TeacherOutput(None, super().extract_features(pixel_values).features * factor)

        with pytest.raises(RecipeError, match="'huge'.*" + ("float16" if factor == 1e6 else "finite")):
            answers_of({"huge": Scaled()})(Images().images)

    def test_cache_is_read_back_in_any_order(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(feature_cache, "IMAGES_PER_SHARD", 4)
        monkeypatch.setattr(feature_cache, "IMAGES_PER_FORWARD", 2)
        cache, indices = open_cache(cached_recipe(), tmp_path), [5, 0, 3]
        assert names_in(tmp_path) == WHOLE[:3]
        assert torch.equal(cache.images(indices), Images().images[indices])
        answers = cache.outputs(indices)
        assert answers.keys() == TEACHERS.keys()
        for teacher, (summary, features) in answers.items():
            expected = TEACHERS[teacher].extract_features(Images().images[indices].float() / 255)
            error = (features.float() - expected.features).norm()
            assert 1e-3 < error / (expected.features - expected.features.mean()).norm() < 0.01
            assert (summary is None) == (expected.summary is None)
            if summary is not None:
                torch.testing.assert_close(summary.float(), expected.summary, atol=1e-3, rtol=0)


class TestAnswers:
    def test_grid_that_is_no_multiple_of_the_students_is_resampled(self) -> None:
        features = answers_of({"odd": MeanColor(patch_px=27)})(Images().images)["odd.features"]  # 2 x 2 positions
        assert features.shape == (NUM_IMAGES, 5, 5, 3)
        assert features.dtype == torch.float16

    @pytest.mark.parametrize("can_share", [True, False])
    def test_threads_share_the_images_and_answer_as_one(self, monkeypatch: pytest.MonkeyPatch, can_share: bool) -> None:
        meeting, threads = threading.Barrier(3, timeout=20), []  # which breaks if they come one after the other

        class Heard(MeanColor):
            can_share_cores = can_share

            def extract_features(self, pixel_values: Tensor) -> TeacherOutput:
                threads.append(threading.current_thread().name)
                if can_share:
                    meeting.wait()
                return super().extract_features(pixel_values)

        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
        divided = answers_of({"color": Heard()})(Images().images)
        assert len(set(threads)) == 3 if can_share else threads == [threading.current_thread().name]
        monkeypatch.undo()
        whole = answers_of({"color": MeanColor()})(Images().images)
        assert divided.keys() == whole.keys()
        assert all(torch.equal(divided[key], whole[key]) for key in whole)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[:-100],
    "lies": lambda content: (2**40).to_bytes(8, "little") + content[8:],
    "empty": lambda content: b"",
    "one bit": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
}


class TestWriting:
    def test_missing_shards_are_computed_and_others_kept(self, tmp_path: Path, small_shards: None) -> None:
        contents, asked = contents_of(cached_recipe()), iter([False, True])
        with pytest.raises(Interrupted):
            write_feature_cache(tmp_path, contents, Images(), answers_of(), should_stop=lambda: next(asked))
        first = shard_paths(tmp_path, contents)[0]
        assert names_in(tmp_path) == [*WHOLE[:2], "shard_00001.safetensors.lock"]
        with pytest.raises(RecipeError, match="shard_00001"):
            FeatureCache(tmp_path, contents)
        written_at = first.stat().st_mtime_ns
        cache = open_cache(cached_recipe(), tmp_path)
        assert first.stat().st_mtime_ns == written_at
        assert torch.equal(cache.images(range(NUM_IMAGES)), Images().images)

    def test_full_disk_is_noticed_before_it_is_full(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda folder: SimpleNamespace(free=999))
        with pytest.raises(RecipeError, match=r"needs \d+ kB more.*`data\.num_images`"):
            open_cache(cached_recipe(), tmp_path)

    def test_ranks_write_their_shares_of_the_shards(self, tmp_path: Path, small_shards: None) -> None:
        contents, written = contents_of(cached_recipe()), []
        for rank in (0, 1):
            write_feature_cache(tmp_path, contents, Images(), answers_of(), rank=rank, num_ranks=2)
            written.append([path.is_file() for path in shard_paths(tmp_path, contents)])
        assert written == [[True, False, True], [True, True, True]]
        assert torch.equal(FeatureCache(tmp_path, contents).images([5, 0]), Images().images[[5, 0]])

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_damaged_shard_is_named_and_computed_again(self, tmp_path: Path, small_shards: None, damage: str) -> None:
        open_cache(cached_recipe(), tmp_path)
        path = tmp_path / WHOLE[2]
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
        with pytest.raises(DamagedFileError, match=r"shard_00001[^\n]*Delete it[^\n]*$"):
            open_cache(cached_recipe(), tmp_path)
        path.unlink()
        cache = open_cache(cached_recipe(), tmp_path)
        assert torch.equal(cache.images(range(NUM_IMAGES)), Images().images)

    def test_runs_that_build_one_cache_share_the_work(self, tmp_path: Path, small_shards: None) -> None:
        contents, crops, both = contents_of(cached_recipe()), [], threading.Barrier(2, timeout=20)

        class Slow(TeacherOutputs):
            def __call__(self, images: Tensor) -> dict[str, Tensor]:
                crops.append(images)
                time.sleep(0.05)
                return super().__call__(images)

        def run() -> None:
            both.wait()
            write_feature_cache(tmp_path, contents, Images(), Slow(TEACHERS, SIDE // PATCH, CPU))

        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(map(len, crops)) == NUM_IMAGES
        assert names_in(tmp_path) == WHOLE
        assert torch.equal(FeatureCache(tmp_path, contents).images(range(NUM_IMAGES)), Images().images)


class TestTurns:
    def test_waiting_run_warns_once_and_can_be_stopped(self, tmp_path: Path, monkeypatch, caplog) -> None:
        monkeypatch.setattr(feature_cache, "POLL_SECONDS", 0.01)
        asked = iter([False, False, True])
        with (
            FileLock(tmp_path / "shard.lock"),
            caplog.at_level(logging.WARNING),
            pytest.raises(Interrupted),
            writing_turn(tmp_path / "shard", lambda: next(asked)),
        ):
            raise AssertionError("two runs write at once")
        (record,) = caplog.records
        assert str(tmp_path / "shard") in record.message

    def test_files_of_other_writers_are_left_alone(self, tmp_path: Path) -> None:
        for name in ("at_work", "killed"):
            (tmp_path / name).touch()
            (tmp_path / f"{name}.lock").touch()
            (tmp_path / f".partial-{name}-1").mkdir()
        with FileLock(tmp_path / "at_work.lock"):
            clear_up(tmp_path)
            assert names_in(tmp_path) == [".partial-at_work-1", "at_work", "at_work.lock", "killed"]
