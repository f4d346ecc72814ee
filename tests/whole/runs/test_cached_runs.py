"""Runs on cached features: killed while they write them, and started again when what they come from has changed."""

import random
from pathlib import Path

import pytest
import tiny_distillation as tiny
from comparisons import assert_close_by_name
from killing import is_killed
from safetensors.torch import load_file

import modeling_radio.training.teachers.registry
from modeling_radio.core.checked_tensors import save_tensors
from modeling_radio.training.recipes.recipe import RecipeError
from modeling_radio.training.targets import feature_cache


pytestmark = pytest.mark.usefixtures("one_thread", "tiny_world")

CACHED = ("views={teachers: cached, cache_dir: DIR}", "data.num_images=24", "schedule.num_steps=4")


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve shards, each of which is half there for a moment."""
    monkeypatch.setattr(feature_cache, "IMAGES_PER_SHARD", 2)
    monkeypatch.setattr(feature_cache, "IMAGES_PER_FORWARD", 2)

    def save_in_two_parts(tensors: dict, path: Path, *facts: dict) -> None:
        path.write_bytes(b"half of a shard")
        save_tensors(tensors, path, *facts)

    monkeypatch.setattr(feature_cache, "save_tensors", save_in_two_parts)


def distil(recipe_file: str, name: str) -> None:
    tiny.distil(recipe_file, name, *(setting.replace("DIR", f"cache-{name}") for setting in CACHED))


def check_equal(recipe_file: str) -> None:
    """The killed run goes on to what an undisturbed one gives, and nothing of its sessions is left."""
    distil(recipe_file, "whole")
    distil(recipe_file, "killed")
    whole, killed = (load_file(Path(output) / "final/model.safetensors") for output in ("whole", "killed"))
    tiny.assert_same_tensors(whole, killed)
    whole, killed = (sorted(path.name for path in Path(f"cache-{name}").iterdir()) for name in ("whole", "killed"))
    assert killed == whole == ["cache.json", *(f"shard_{number:05d}.safetensors" for number in range(12))]
    for name in whole[1:]:
        tiny.assert_same_tensors(*(load_file(Path(f"cache-{run}", name)) for run in ("whole", "killed")))


def test_run_killed_while_it_writes_a_shard(recipe_file: str) -> None:
    cache = Path("cache-killed")
    assert is_killed(lambda: distil(recipe_file, "killed"), lambda: any(cache.glob(".partial-shard_00003*/*")))
    assert list(cache.glob(".partial-*"))
    check_equal(recipe_file)


@pytest.mark.slow
def test_run_killed_at_ten_random_moments_of_its_cache(recipe_file: str) -> None:
    draw = random.Random(0)
    cache = Path("cache-killed")
    for _ in range(10):
        before = set(cache.glob(".partial-*"))
        assert is_killed(
            lambda: distil(recipe_file, "killed"),
            lambda before=before: bool(set(cache.glob(".partial-*")) - before),
            draw.randrange(6),  # about as many as for one shard
        )
    check_equal(recipe_file)


def test_session_after_other_images_or_weights_is_refused(recipe_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [setting.replace("DIR", "cache") for setting in CACHED]
    tiny.distil(recipe_file, "run", *settings, stop_at=2)
    with monkeypatch.context() as patch:
        patch.setattr(tiny.NoiseImages, "fingerprint", lambda images: "others")
        with pytest.raises(RecipeError, match=r"'cache' is stale \(images: noise -> others\)"):
            tiny.distil(recipe_file, "run", *settings)

    class Other(tiny.TinyTeacher):
        def freeze(self) -> tiny.Teacher:
            self.weight.data *= 2
            return super().freeze()

    with monkeypatch.context() as patch:
        patch.setitem(modeling_radio.training.teachers.registry.TEACHER_KINDS, "tiny", Other)
        with pytest.raises(RecipeError, match=r"is stale \(weights.semantic: .*; weights.segmenter: .*\)"):
            tiny.distil(recipe_file, "run", *settings)
    assert tiny.distil(recipe_file, "run", *settings) == Path("run/final")


def test_accumulated_parts_equal_the_whole_batch(recipe_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.share_noise(monkeypatch)
    settings = [*tiny.SPLIT_SETTINGS, *tiny.REGULARIZED, *(setting.replace("DIR", "cache") for setting in CACHED)]
    tiny.distil(recipe_file, "whole", *settings)
    tiny.distil(recipe_file, "parts", *settings, "partitions.low.accumulation_steps=2")
    whole, parts = (tiny.last_state(output, 4) for output in ("whole", "parts"))
    assert_close_by_name(parts, whole, rtol=1e-4, atol=1e-6)
