"""What a run learns from, opened as its recipe says."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from deep_teacher import DeepTeacher
from pyarrow import parquet, table
from tiny_adaptors import build_model_with_adaptors
from tiny_distillation import NoiseImages, TinyTeacher
from torch import distributed
from torchvision.io import encode_png
from two_forks import run_two_forks

import modeling_radio.training.teachers.registry
from modeling_radio.core.interruption import Interrupted, OutOfTime, StopRequest
from modeling_radio.core.ranks import set_timeout
from modeling_radio.data import training_images
from modeling_radio.training.distillation import inputs
from modeling_radio.training.distillation.inputs import (
    check_image_sizes,
    ends_on_all_ranks,
    fingerprint_of,
    load_teachers,
    open_images,
    open_targets,
    plan_batches,
    shard_teachers,
    widths_of_teachers,
)
from modeling_radio.training.recipes.recipe import RecipeError, load_recipe
from modeling_radio.training.teachers.base import Teacher
from modeling_radio.training.teachers.outputs import TeacherWidths
from modeling_radio.training.views.plan import BatchPlan


pytestmark = pytest.mark.usefixtures("tiny_world")

CPU = torch.device("cpu")


class Small(TinyTeacher):
    """Takes small images only."""

    def check_size(self, height: int, width: int) -> None:
        super().check_size(height, width)
        if max(height, width) > 160:
            raise self._error(f"too large: {height} x {width}")


def test_sizes_that_a_teacher_cannot_answer_are_found_at_the_start(recipe_file: str) -> None:
    partitions = "partitions=[{name: low, sizes_px: [32, 48], teachers: [semantic]}, {name: high, sizes_px: [128]}]"
    recipe = load_recipe(recipe_file, [partitions])
    teachers = load_teachers(recipe, CPU)
    recipe.partitions[0].sizes_px = [32, 100]
    message = r"^`partitions.low.sizes_px`: Teacher 'semantic': .* multiples of 16 px, got 100 x 100"
    with pytest.raises(RecipeError, match=message):
        check_image_sizes(recipe, teachers)
    recipe.views.teachers, recipe.data.image_size_px = "cached", 96
    check_image_sizes(recipe, teachers)


def test_all_ranks_end_where_one_does(tmp_path: Path) -> None:
    def check() -> None:
        is_late = distributed.get_rank() == 1

        def work(*, is_stopped: bool) -> None:
            with ends_on_all_ranks(SimpleNamespace(device=CPU)):
                if is_stopped:
                    raise Interrupted("Stopped.")

        with pytest.raises(OutOfTime):
            work(is_stopped=is_late)
        work(is_stopped=False)

    run_two_forks(check, tmp_path)


def test_aspect_ratios_that_a_teacher_cannot_answer_are_found_at_the_start(
    recipe_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(modeling_radio.training.teachers.registry.TEACHER_KINDS, "small", Small)
    settings = ["teachers.segmenter.kind=small", "partitions=[{name: high, sizes_px: [128], batch_size: 4}]"]
    load_teachers(load_recipe(recipe_file, settings), CPU)
    with pytest.raises(ValueError, match="Teacher 'segmenter': too large: 176 x 96"):
        load_teachers(load_recipe(recipe_file, [*settings, "views={is_square: false, crop_aspect: [0.5, 2]}"]), CPU)


def test_a_rank_loads_the_teachers_that_it_runs_and_knows_the_widths_of_all(recipe_file: str, tmp_path: Path) -> None:
    parts = [
        f"{{name: {name}, sizes_px: [32], teachers: [{name}], rank_share: 1}}" for name in ("semantic", "segmenter")
    ]
    recipe = load_recipe(recipe_file, [f"partitions=[{', '.join(parts)}]"])

    def check() -> None:
        rank = distributed.get_rank()
        teachers = load_teachers(recipe, CPU)
        assert list(teachers) == [["semantic", "segmenter"], ["segmenter"]][rank]
        widths = widths_of_teachers(teachers)
        assert {name: (each.summary_dim, each.feature_dim) for name, each in widths.items()} == {
            "semantic": (10, 12),
            "segmenter": (None, 9),
        }
        ranks = SimpleNamespace(process_index=rank, num_processes=2, device=CPU)
        images = NoiseImages(recipe.data, is_square=False)
        source = open_targets(recipe, ranks, images, teachers, StopRequest())
        assert list(source.teachers) == [["semantic"], ["segmenter"]][rank]

    run_two_forks(check, tmp_path)


def test_teachers_of_one_network_are_loaded_as_such(recipe_file: str, tmp_path: Path) -> None:
    build_model_with_adaptors("segmenter").save_pretrained(tmp_path / "radio")
    options = ["{}", "{adaptor_name: segmenter}"]
    teachers = [f"{{name: t{place}, kind: radio, source: radio, options: {own}}}" for place, own in enumerate(options)]
    loaded = load_teachers(load_recipe(recipe_file, [f"teachers=[{', '.join(teachers)}]"]), CPU)
    assert [teacher.network_of for teacher in loaded.values()] == ["t0", "t0"]


def test_ranks_that_share_a_sharded_teacher_must_call_it_in_one_order(
    recipe_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    low, high = (
        f"{{name: {name}, sizes_px: [32], rank_share: 1, accumulation_steps: {n}}}"
        for name, n in (("low", 1), ("high", 2))
    )
    recipe = load_recipe(recipe_file, [f"partitions=[{low}, {high}]", "teachers.segmenter.shard=true"])
    teachers = load_teachers(recipe, CPU)
    shard_teachers(recipe, teachers)  # nothing in a single process
    monkeypatch.setattr(inputs, "rank_and_count", lambda: (0, 2))
    with pytest.raises(RecipeError, match=r"teachers\.segmenter\.shard=false"):
        shard_teachers(recipe, teachers)


def test_auto_fits_the_smallest_gpu_of_all_ranks_and_is_one_part_elsewhere(
    recipe_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(recipe_file, ["partitions=[{name: low, batch_size: 8, accumulation_steps: auto}]"])
    images, widths = NoiseImages(recipe.data, is_square=False), {"semantic": (10, 12), "segmenter": (None, 9)}
    widths = {name: TeacherWidths(*each) for name, each in widths.items()}
    told: list[str] = []

    def parts_on(device: str, *memory_gib: float | None) -> list[int | str]:
        monkeypatch.setattr(inputs, "of_all_ranks", lambda own: [own, *memory_gib])
        accelerator = SimpleNamespace(
            device=torch.device(device),
            process_index=0,
            num_processes=1,
            is_main_process=True,
            distributed_type="NO",
            print=lambda line, **_: told.append(line),
        )
        plan = plan_batches(recipe, accelerator, images, widths, tmp_path)
        return [each.accumulation_steps for each in plan.recipe.partitions]

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 * 2**30))
    assert parts_on("cuda") == [1]
    assert parts_on("cuda", 1e-6) == [8]
    assert parts_on("cpu", None) == [1]
    assert len(told) == 2  # lines, of the GPUs


def test_ranks_open_weighted_and_large_enough_images_together(
    recipe_file: str, write_source: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes are read by one rank and kept for the others, which wait."""
    monkeypatch.setattr(inputs, "build_training_images", training_images.build_training_images)
    monkeypatch.setenv("RADIO_CACHE", str(tmp_path / "own_cache"))
    source = write_source("folder", 8)
    names = [path.relative_to(source).as_posix() for path in sorted(Path(source).rglob("*.*"))]
    rows = [f"{name},{9 if number == 3 else 1}" for number, name in enumerate(names)]
    (Path(source) / "metadata.csv").write_text("\n".join(["file_name,w", *rows]))
    data = f"{{source: {source}, num_images: null, weights: w, min_side_ratio: 0.5}}"
    recipe = load_recipe(recipe_file, [f"data={data}"])

    def check() -> None:
        set_timeout(timedelta(seconds=30))
        assert len(open_images(recipe)) > len(names)

    check()
    (tmp_path / "own_cache").rename(tmp_path / "removed")
    run_two_forks(check, tmp_path)


@pytest.mark.parametrize("change", ["name", "bytes", "number", "weight"])
@pytest.mark.parametrize("is_streamed", [False, True], ids=["table", "stream"])
def test_ranks_that_see_other_images_say_so(
    recipe_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, is_streamed: bool
) -> None:
    monkeypatch.setattr(inputs, "build_training_images", training_images.build_training_images)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("RADIO_CACHE", str(tmp_path / "own_cache"))
    torch.manual_seed(0)
    folders = [tmp_path / "same", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
        is_other = folder.name == "other"
        count = 5 if is_other and change == "number" else 4
        side = 80 if is_other and change == "bytes" else 64
        pixels = [torch.full((3, side, side), number, dtype=torch.uint8) for number in range(count)]
        images = [encode_png(each).numpy().tobytes() for each in pixels]
        weights = [2 if is_other and change == "weight" and number == 0 else 1 for number in range(count)]
        name = "renamed" if is_other and change == "name" else "part"
        parquet.write_table(table({"image": images, "w": weights}), folder / f"{name}.parquet")

    def check(*places: Path) -> None:
        set_timeout(timedelta(seconds=30))
        place = places[distributed.get_rank() % len(places)]
        data = f"{{source: {place}, num_images: null, weights: w, streaming: {str(is_streamed).lower()}}}"
        recipe = load_recipe(recipe_file, [f"data={data}"])
        images = open_images(recipe)
        # A table knows the contents of its rows, and not the names of its files.
        if len(places) == 1 or (change == "name" and not is_streamed):
            assert fingerprint_of(images, recipe)
            return
        with pytest.raises(RecipeError, match=r"`data.source` .*rank 1 sees"):
            fingerprint_of(images, recipe)

    (tmp_path / "first").mkdir()
    run_two_forks(lambda: check(folders[0]), tmp_path / "first")
    run_two_forks(lambda: check(*folders), tmp_path)


class DeepOutput(DeepTeacher):
    """A `DeepTeacher` whose outputs could be several."""

    read_options = frozenset({"output"})

    def __init__(self, name: str, *, source: str | None = None, num_blocks: int = 4, output: int = 0) -> None:
        super().__init__("same weights", num_blocks=num_blocks)
        self.name = self.network_of = name
        self.output = output


ONE_IMAGE = "{name: low, sizes_px: [32], token_budget: 4, teachers: [b, a]}"
OTHER_ORDER = (
    "{name: low, sizes_px: [32], batch_size: 2, rank_share: 1, teachers: [a, b]},"
    "{name: high, sizes_px: [32], batch_size: 2, rank_share: 1, teachers: [b, a]}"
)
FIRST_READER_ELSEWHERE = OTHER_ORDER.replace("teachers: [b, a]", "teachers: [b, c]")


@pytest.mark.parametrize("partitions", [ONE_IMAGE, OTHER_ORDER, FIRST_READER_ELSEWHERE])
def test_ranks_call_sharded_teachers_in_one_order(
    recipe_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, partitions: str
) -> None:
    """Teachers `a` and `c` have one network."""
    monkeypatch.setitem(modeling_radio.training.teachers.registry.TEACHER_KINDS, "deep", DeepOutput)
    entries = [
        f"{{name: {name}, kind: deep, shard: true, options: {options}}}"
        for name, options in (("a", "{}"), ("b", "{num_blocks: 2}"), ("c", "{output: 1}"))
        if name != "c" or "c]" in partitions
    ]
    recipe = load_recipe(recipe_file, [f"teachers=[{', '.join(entries)}]", f"partitions=[{partitions}]"])

    def targets_of(teachers: dict[str, Teacher]) -> list[dict[str, torch.Tensor]]:
        rank = distributed.get_rank()
        images = NoiseImages(recipe.data, is_square=False)
        accelerator = SimpleNamespace(process_index=rank, num_processes=2, device=CPU)
        source = open_targets(recipe, accelerator, images, teachers, StopRequest())
        plan = BatchPlan(recipe, len(images), rank, 2, patch_size=16)
        examples = source.examples(lambda: plan.steps(0, 2))
        return [{name: each.features[0] for name, each in example.targets.items()} for _, example in examples]

    def check() -> None:
        whole, sharded = load_teachers(recipe, CPU), load_teachers(recipe, CPU)
        shard_teachers(recipe, sharded)
        set_timeout(timedelta(seconds=20))
        for ours, expected in zip(targets_of(sharded), targets_of(whole), strict=True):
            assert ours.keys() == expected.keys()
            assert all(torch.equal(ours[name], expected[name]) for name in expected)

    run_two_forks(check, tmp_path)
