import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from mean_colors import CPU, NUM_IMAGES, PATCH, SIDE, TEACHERS, contents_of, open_cache, recipe_with
from PIL import Image
from torch import nn

from training.data.image_folder import ImageFolder
from training.recipe import DataRecipe, Recipe, RecipeError, TeacherRecipe, ViewsRecipe
from training.targets.feature_cache import (
    CacheContents,
    FeatureCache,
    HalfPrecision,
    TeacherAnswers,
    check_contents,
    weights_fingerprint,
    write_feature_cache,
)


@pytest.fixture
def recipe() -> Recipe:
    return recipe_with(ViewsRecipe(teachers="cached"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": DataRecipe(source="s", image_size_px=SIDE, seed=1)}, "data.seed: 0 -> 1"),
        ({"teachers": [TeacherRecipe(name="coarse", kind="k", options={"layer": 3})]}, "teachers.coarse.options"),
        (
            {"views": ViewsRecipe(teachers="cached", cache_format="int8")},
            "views.cache_format: float16 -> int8",
        ),
    ],
)
def test_stale_cache_is_refused(tmp_path: Path, recipe: Recipe, change: dict, message: str) -> None:
    open_cache(recipe, tmp_path)
    for name, value in change.items():
        setattr(recipe, name, value)
    with pytest.raises(RecipeError, match=f"is stale .*{message}.*Delete it, or give another `views.cache_dir`"):
        open_cache(recipe, tmp_path)


def test_student_may_change_under_a_cache(tmp_path: Path, recipe: Recipe) -> None:
    open_cache(recipe, tmp_path)
    recipe.seed, recipe.optimizer.learning_rate = 7, 1.0
    assert len(open_cache(recipe, tmp_path)) == NUM_IMAGES


@pytest.mark.parametrize("text", [None, "", "{", "[]", "5", '{"teachers": 5, "data": []}', "\xff"])
def test_folder_without_a_whole_description_is_refused(tmp_path: Path, recipe: Recipe, text: str | None) -> None:
    if text is not None:
        (tmp_path / "cache.json").write_text(text, encoding="latin-1")
    with pytest.raises(RecipeError, match=r"is no feature cache|is stale") as error:
        FeatureCache(tmp_path, contents_of(recipe))
    assert "`views.cache_dir`" in str(error.value)


class ImagesInAFolder:
    """Files of images that change while a cache of them stays."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder, self.recipe = folder / "images", recipe
        self.cache = folder / "cache"
        self.folder.mkdir()
        for number in range(4):
            self.draw(number, number)

    def draw(self, number: int, color: int) -> Path:
        path = self.folder / f"{number}.bmp"  # all of one size
        Image.new("RGB", (SIDE, SIDE), (color, 0, 0)).save(path)
        return path

    def build(self) -> None:
        images = ImageFolder(self.folder, size=SIDE)
        contents = CacheContents.of(self.recipe, PATCH, images, TEACHERS)
        write_feature_cache(self.cache, contents, images, TeacherAnswers(TEACHERS, SIDE // PATCH, CPU, HalfPrecision()))


def draw_again(world: ImagesInAFolder) -> None:
    for path in world.folder.iterdir():
        was = path.stat().st_mtime_ns
        world.draw(int(path.stem), 200)
        os.utime(path, ns=(was + 1, was + 1))


def rename(world: ImagesInAFolder) -> None:
    for path in world.folder.iterdir():
        path.rename(path.with_stem(f"x{path.stem}"))


@pytest.mark.parametrize("change", [draw_again, rename])
@pytest.mark.parametrize("is_half_written", [False, True])
def test_changed_images_are_noticed(tmp_path: Path, recipe: Recipe, change, is_half_written: bool) -> None:
    world = ImagesInAFolder(tmp_path, recipe)
    world.build()
    world.build()
    if is_half_written:
        (world.cache / "shard_00000.safetensors").unlink()
    before = sorted(path.name for path in world.cache.iterdir())
    change(world)
    with pytest.raises(
        RecipeError, match=r"is stale \(images: 3 files, \d+ bytes, names \w+, state \w+ -> 3 files.*Delete it"
    ):
        world.build()
    assert sorted(path.name for path in world.cache.iterdir()) == before


def test_changed_weights_are_noticed(tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TEACHERS["coarse"], "layer", nn.Linear(2, 1), raising=False)
    open_cache(recipe, tmp_path)
    open_cache(recipe, tmp_path)
    with torch.no_grad():
        TEACHERS["coarse"].layer.weight[0, 1] += 1
    with pytest.raises(RecipeError, match=r"is stale \(weights.coarse: 3 numbers, state \w+ -> 3 numbers, state \w+\)"):
        open_cache(recipe, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_fingerprint_of_weights_follows_every_bit_and_name(dtype: torch.dtype) -> None:
    def fingerprint(name: str, *shape: int, last: int = 0) -> str:
        network, tensor = nn.Module(), torch.zeros(shape, dtype=dtype)
        tensor.view(-1)[-1] = last
        network.register_buffer(name, tensor)
        return weights_fingerprint(network)

    assert fingerprint("a", 2, 3) == fingerprint("a", 2, 3)
    different = {fingerprint("a", 2, 3), fingerprint("b", 2, 3), fingerprint("a", 3, 2), fingerprint("a", 2, 3, last=1)}
    assert len(different) == 4
    assert fingerprint("a").startswith("1 numbers")  # a scalar


def test_setting_that_came_later_makes_no_cache_stale(tmp_path: Path, recipe: Recipe) -> None:
    contents = contents_of(recipe)
    old = json.loads(json.dumps(contents.settings))
    for entry in old["teachers"]:
        del entry["upsample"]
    del old["data"]["seed"], old["views"]
    (tmp_path / "cache.json").write_text(json.dumps(old | contents.state))
    check_contents(tmp_path, contents)
    assert (
        CacheContents({**contents.settings, "teachers": old["teachers"]}, {}, contents.places).default_folder()
        == contents.default_folder()
    )
    recipe.teachers[0].upsample = "tiles"
    with pytest.raises(RecipeError, match=r"teachers.coarse.upsample: bilinear -> tiles"):
        check_contents(tmp_path, contents_of(recipe))


def test_contents_decide_the_default_folder(recipe: Recipe) -> None:
    contents = contents_of(recipe)
    recipe.optimizer.learning_rate = 1.0
    assert contents_of(recipe).default_folder() == contents.default_folder()
    more = CacheContents({**contents.settings, "num_images": NUM_IMAGES + 1}, contents.state, contents.places)
    assert more.default_folder() != contents.default_folder()
    # Where images or weights were changed the old cache must be found, to be refused.
    assert CacheContents(contents.settings, {}, contents.places).default_folder() == contents.default_folder()


def test_a_cache_can_be_copied_to_a_machine_where_all_lies_elsewhere(tmp_path: Path, recipe: Recipe) -> None:
    recipe.teachers[0].source, recipe.data.source = str(tmp_path / "weights"), str(tmp_path / "first/images")
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    world = ImagesInAFolder(tmp_path / "first", recipe)
    world.build()
    assert str(tmp_path) not in (world.cache / "cache.json").read_text()
    for what in ("images", "cache"):
        shutil.copytree(tmp_path / "first" / what, tmp_path / "second" / what)  # with new times
    for path in (tmp_path / "second/images").iterdir():
        os.utime(path, ns=(1, 1))
    images = ImageFolder(tmp_path / "second/images", size=SIDE)
    elsewhere = recipe_with(ViewsRecipe(teachers="cached"))
    contents = CacheContents.of(elsewhere, PATCH, images, TEACHERS)
    cache = FeatureCache(tmp_path / "second/cache", contents)
    assert torch.equal(cache.images([0]), images[0][None])
    assert contents.default_folder() != CacheContents.of(recipe, PATCH, images, TEACHERS).default_folder()
