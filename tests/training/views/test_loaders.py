"""Images that reach a step: the same whatever the workers, after any restart, and other ones on every rank."""

import json
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_recipes import small_recipe

from modeling_radio.data.training_images import build_training_images
from modeling_radio.training.recipes.recipe import Recipe, RecipeError
from modeling_radio.training.views.crops import STUDENT, Crops, CropSpec, cut_crops, least_scale
from modeling_radio.training.views.loaders import PartitionStreams, ViewLoader, build_view_loader
from modeling_radio.training.views.plan import BatchPlan, PlannedBatch


def recipe_with(source: str, *partitions: dict, **data: Any) -> Recipe:
    data = {"source": source, "num_workers": 0, "shuffle_buffer": 5, **data}
    partitions = partitions or ({"sizes_px": [16, 32], "batch_size": 5},)
    return small_recipe(data=data, views={"crop_scale": [0.5, 1.0]}, partitions=list(partitions))


def open_loader(recipe: Recipe, rank: int = 0, num_ranks: int = 1) -> tuple[ViewLoader, BatchPlan]:
    if recipe.data.streaming:
        images, number = PartitionStreams.open(recipe, rank, num_ranks), None
    else:
        images = build_training_images(recipe.data, is_square=False)
        number = len(images)
    return build_view_loader(images, recipe), BatchPlan(recipe, number, rank, num_ranks, patch_size=16)


def crop_specs(batch: PlannedBatch) -> list[CropSpec]:
    """One consumer, which gets every image unshifted at the batch's size."""
    grid = batch.shapes[0].grid
    size = (grid.rows * 16, grid.cols * 16)
    return [
        CropSpec(tuple(numbers), (0.5, 1.0), grid, False, {STUDENT: (0, 0)}, {STUDENT: (size,)})
        for numbers in batch.uniform("region", 4).tolist()
    ]


def views_of(loader: ViewLoader, plan: BatchPlan, start: int, stop: int) -> Iterator[tuple[PlannedBatch, torch.Tensor]]:
    """Yield each batch of some steps with its views; the plan is read once."""
    plans = iter([plan.steps(start, stop)])
    for batch, (crops,) in loader.views(lambda: next(plans), crop_specs):
        yield batch, crops.pixels[STUDENT][0]


def run(
    recipe: Recipe, start: int, stop: int, states: list[str] | None = None, rank: int = 0, num_ranks: int = 1
) -> Iterator[tuple[PlannedBatch, torch.Tensor, str]]:
    """Yield each batch of some steps with its views and the state after it, as a checkpoint would hold it."""
    loader, plan = open_loader(recipe, rank, num_ranks)
    if states is not None:
        loader.load_state_dict([json.loads(state) for state in states])
    for batch, views in views_of(loader, plan, start, stop):
        yield batch, views, json.dumps(loader.state_dict())


def numbers(views: torch.Tensor) -> list[int]:
    """Return which image each view shows."""
    return views.flatten(1).float().mean(1).round().int().tolist()


@pytest.fixture(params=["map", "stream"])
def recipe(request: pytest.FixtureRequest, write_source: Callable[..., str]) -> Recipe:
    other = {"source": write_source("parquet", 8, first=100), "weight": 0.25}
    source = write_source("webdataset", 20, num_shards=3, faults=["tiny", "truncated"])
    high = {"name": "high", "sizes_px": [48], "batch_size": 3, "accumulation_steps": 2}
    data = {"streaming": request.param == "stream", "shuffle_buffer": 7, "mixed_in": [other]}
    return recipe_with(source, {"sizes_px": [16, 32], "batch_size": 5}, high, **data)


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0)], ids="{}".format)
def test_a_run_restarted_in_mid_epoch_sees_the_same_pixels(recipe: Recipe, before: int, after: int) -> None:
    undisturbed = [(batch, views) for batch, views, _ in run(recipe, 0, 6)]
    recipe.data.num_workers = before
    stopped = list(islice(run(recipe, 0, 6), 3 * 2))  # three batches a step
    recipe.data.num_workers = after
    resumed = run(recipe, 2, 6, [stopped[-1][2]])
    found = [(batch, views) for batch, views, _ in chain(stopped, resumed)]
    assert len(found) == len(undisturbed) == 18
    for (batch, views), (expected_batch, expected_views) in zip(found, undisturbed, strict=True):
        assert batch == expected_batch
        assert torch.equal(views, expected_views)


def test_a_second_reading_goes_on_where_the_first_one_ended(recipe: Recipe) -> None:
    """As calibration does before the first step."""
    loader, plan = open_loader(recipe)
    found = [views for start in (0, 2) for _, views in views_of(loader, plan, start, start + 2)]
    whole = [views for _, views in views_of(*open_loader(recipe), 0, 4)]
    assert all(torch.equal(*pair) for pair in zip(found, whole, strict=True))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("is_streaming", [False, True], ids=["map", "stream"])
def test_two_ranks_see_disjoint_images_that_cover_the_epoch(write_source, is_streaming: bool, num_workers: int) -> None:
    source = write_source("parquet", 40, num_shards=4)
    data = {"streaming": is_streaming, "num_workers": num_workers}
    recipe = recipe_with(source, {"sizes_px": [32], "batch_size": 10}, **data)
    batches = [numbers(views) for rank in range(2) for _, views, _ in run(recipe, 0, 4, rank=rank, num_ranks=2)]
    assert [len(batch) for batch in batches] == [5] * 8
    assert sorted(chain(*batches)) == list(range(40))


def test_bound_partitions_share_the_images_among_their_own_ranks(write_source: Callable[..., str]) -> None:
    low = {"name": "low", "sizes_px": [32], "batch_size": 10, "rank_share": 2}
    high = {"name": "high", "sizes_px": [48], "batch_size": 5, "rank_share": 1}
    recipe = recipe_with(write_source("parquet", 20, num_shards=2), low, high, streaming=True, shuffle_buffer=1)
    batches = [list(run(recipe, 0, 2, rank=rank, num_ranks=3)) for rank in range(3)]
    crops = [list(chain(*(numbers(views) for _, views, _ in of_rank))) for of_rank in batches]
    assert sorted(crops[0] + crops[1]) == list(range(20))
    assert len(set(crops[2])) == 10
    assert json.loads(batches[2][0][2]).keys() == {"high"}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_image_that_cannot_be_decoded_is_replaced_and_counted(write_source, num_workers: int, caplog) -> None:
    source = write_source("webdataset", 5, num_shards=1, faults=["truncated"])
    data = {"streaming": True, "shuffle_buffer": 6, "num_workers": num_workers}
    recipe = recipe_with(source, {"sizes_px": [32], "batch_size": 1}, **data)  # nothing else in its batch
    streams = PartitionStreams.open(recipe)
    loader, plan = build_view_loader(streams, recipe), BatchPlan(recipe, None, patch_size=16)
    crops = [numbers(views)[0] for _, views in views_of(loader, plan, 0, 6)]
    assert (len(crops), set(crops), len(streams.skipped)) == (6, set(range(5)), 1)
    if num_workers == 0:  # workers write to the terminal
        assert f"skipping image {source}/part-00.tar: truncated.png: unreadable" in caplog.text


def test_a_rank_without_images_takes_none_from_its_stream(write_source: Callable[..., str]) -> None:
    source = write_source("parquet", 20, num_shards=2)
    recipe = recipe_with(source, {"sizes_px": [32], "batch_size": 1}, streaming=True, shuffle_buffer=5)  # two a shard
    batches = [each for rank in range(2) for each in run(recipe, 0, 20, rank=rank, num_ranks=2)]
    assert [len(views) for _, views, _ in batches] == [1] * 40
    seen = [number for batch, views, _ in batches if batch.weight for number in numbers(views)]
    assert sorted(seen) == list(range(20))


def test_a_stream_of_nothing_but_broken_images_ends(write_source: Callable[..., str]) -> None:
    source = write_source("parquet", 0, num_shards=1, faults=["truncated"])
    with pytest.raises(ValueError, match="could not be decoded"):
        next(run(recipe_with(source, streaming=True, shuffle_buffer=2), 0, 1))


def test_other_ranks_or_sources_begin_a_new_pass(write_source: Callable[..., str], caplog) -> None:
    """As a recipe may have where its change is allowed."""
    source = write_source("parquet", 20, num_shards=2)
    recipe = recipe_with(source, streaming=True)
    *_, (_, _, state) = run(recipe, 0, 6)  # 30 images: in the second pass
    _, views, after = next(run(recipe, 6, 7, [state], num_ranks=2))
    assert "checkpoint has 1 ranks and this run 2" in caplog.text
    assert json.loads(after)["low"]["sources"][0]["pass"] == 2
    assert len(views) == 2
    mixed = recipe_with(source, streaming=True, mixed_in=[{"source": source, "weight": 0.5}])
    _, _, after = next(run(mixed, 6, 7, [state]))
    assert "checkpoint has another number of sources" in caplog.text
    assert [source["pass"] for source in json.loads(after)["low"]["sources"]] == [2, 2]


def test_streams_begin_where_images_were_read_by_number(write_source: Callable[..., str]) -> None:
    source = write_source("parquet", 20, num_shards=2)
    *_, (_, _, state) = run(recipe_with(source), 0, 2)
    streamed = recipe_with(source, streaming=True)
    assert torch.equal(next(run(streamed, 2, 3, [state]))[1], next(run(streamed, 2, 3))[1])


@pytest.mark.parametrize("shares", [((2, 1), (1, 2)), ((2, 1), (None, None))], ids=str)
def test_another_rank_share_begins_a_new_pass(write_source: Callable[..., str], shares: tuple, caplog) -> None:
    source = write_source("parquet", 24, num_shards=2)
    before, after = (
        recipe_with(
            source,
            {"name": "low", "sizes_px": [32], "batch_size": 12, "rank_share": low},
            {"name": "high", "sizes_px": [48], "batch_size": 6, "rank_share": high},
            streaming=True,
            shuffle_buffer=1,
        )
        for low, high in shares
    )
    states = [[*run(before, 0, 1, rank=rank, num_ranks=3)][-1][2] for rank in range(3)]
    batches = [[*run(after, 1, 3, states, rank, 3)] for rank in range(3)]
    assert caplog.text.count("or another `rank_share`") == 3
    crops = [numbers(views) for rank in batches for batch, views, _ in rank if batch.partition == "low"]
    assert sorted(chain(*crops)) == list(range(24))  # a pass
    list(run(after, 3, 4, [rank[-1][2] for rank in batches], num_ranks=3))
    assert caplog.text.count("or another `rank_share`") == 3


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"streaming": True, "num_images": 5}, "data.num_images"),
        ({"shuffle_buffer": 0}, "data.shuffle_buffer"),
        ({"num_workers": -1}, "data.num_workers"),
        ({"mixed_in": [{"source": "a", "weight": 0.6}, {"source": "b", "weight": 0.4}]}, "data.mixed_in"),
        ({"streaming": True}, "data.streaming"),  # streams cannot be cached
    ],
)
def test_settings_that_do_not_fit_are_refused(options: dict[str, Any], field: str) -> None:
    with pytest.raises(RecipeError, match=f"`{field}"):
        small_recipe(data={"source": "images", **options}, views={"teachers": "cached"})


@pytest.fixture
def large_jpegs(tmp_path: Path) -> str:
    """Ten large files with detail, turned by their EXIF data or not."""
    folder = tmp_path / "large"
    folder.mkdir()
    for number in range(10):
        coarse = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        exif = Image.Exif()
        exif[0x0112] = 6 if number % 2 else 1
        Image.fromarray(coarse).resize((800, 600)).save(folder / f"{number}.jpg", exif=exif)
    return str(folder)


@pytest.mark.parametrize("is_streaming", [False, True])
def test_drafts_are_faster_to_decode_and_look_the_same(large_jpegs, is_streaming: bool, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    decoded: dict[bool, list[int]] = {False: [], True: []}
    crops = {}
    for drafts, sizes in decoded.items():

        def noting(image: torch.Tensor, *arguments: Any, sizes: list[int] = sizes) -> Crops:
            sizes.append(max(image.shape))
            return cut_crops(image, *arguments)

        monkeypatch.setattr("modeling_radio.training.views.loaders.cut_crops", noting)
        whole_or_less = least_scale if drafts else lambda *_: 1.0
        monkeypatch.setattr("modeling_radio.training.views.loaders.least_scale", whole_or_less)
        data = {"streaming": is_streaming, "shuffle_buffer": 10}
        recipe = recipe_with(large_jpegs, {"sizes_px": [64], "batch_size": 5}, **data)
        crops[drafts] = torch.cat([views for _, views in views_of(*open_loader(recipe), 0, 4)]).float()
    assert set(decoded[False]) == {800}
    assert set(decoded[True]) <= {200, 400}
    assert 0 < (crops[True] - crops[False]).abs().mean() < 1  # of 255
