"""Runs whose recipe leaves out small images or shows some more often: notes, restarts, and that it acts."""

import json
from pathlib import Path

import pytest
import tiny_distillation as tiny
from photographs import picture

from modeling_radio.data import training_images as view_images
from modeling_radio.training.distillation import inputs


pytestmark = pytest.mark.usefixtures("one_thread", "tiny_world")


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder of real files, of which some are small."""
    monkeypatch.setattr(inputs, "build_training_images", view_images.build_training_images)
    folder = Path("photographs")
    folder.mkdir()
    for number in range(20):
        picture(number).save(folder / f"{number:02}.png")
    for number, image in enumerate([picture(0, 90, 40), picture(1, 48, 40), picture(30, 400, 44)]):
        image.save(folder / f"small-{number}.png")
    return str(folder)


LARGE = "data.min_side_ratio=1"


def settings(source: str, *more: str) -> list[str]:
    return [f"data={{source: {source}, num_images: null, image_size_px: 48, num_workers: 0}}", *more]


@pytest.mark.parametrize("views", ["views.teachers=online", "views={teachers: cached, cache_dir: cache}"])
def test_small_images_are_left_out_told_and_stay_out_after_a_restart(
    recipe_file: str, source: str, views: str, capsys: pytest.CaptureFixture[str]
) -> None:
    filtered = settings(source, LARGE, views)
    tiny.distil(recipe_file, "whole", *filtered)
    told = capsys.readouterr().out
    record = json.loads(Path("whole/data.json").read_text())
    assert 1 <= record["left_out"]["too small"] <= 3
    assert record["min_side_ratio"] == 1
    assert f"; {record['images']} images stay." in told
    assert "left out" in told
    tiny.distil(recipe_file, "parts", *filtered, stop_at=5)
    tiny.distil(recipe_file, "parts", *filtered)
    tiny.assert_same_tensors(tiny.last_state("whole"), tiny.last_state("parts"))
    tiny.distil(recipe_file, "all", *settings(source, views.replace("cache_dir: cache", "cache_dir: all-cached")))
    assert not Path("all/data.json").exists()
    different = tiny.last_state("all")
    assert any(not value.equal(different[key]) for key, value in tiny.last_state("whole").items())


@pytest.mark.parametrize("is_streamed", [False, True], ids=["folder", "stream"])
def test_weights_act_and_survive_a_restart(recipe_file: str, source: str, is_streamed: bool) -> None:
    import pyarrow
    from pyarrow import parquet

    names = sorted(path.name for path in Path(source).iterdir())
    weights = [8 if name.startswith("small") else 1 for name in names]
    options = [f"data.streaming={str(is_streamed).lower()}", "data.shuffle_buffer=7"]
    if is_streamed:
        images = [Path("photographs", name).read_bytes() for name in names]
        source = "shards"
        Path(source).mkdir()
        parquet.write_table(pyarrow.table({"image": images, "w": weights}), "shards/0.parquet")
    else:
        rows = [f"{name},{weight}" for name, weight in zip(names, weights, strict=True)]
        Path(source, "metadata.csv").write_text("\n".join(["file_name,w", *rows]))
    weighted = settings(source, "data.weights=w", *options)
    tiny.distil(recipe_file, "whole", *weighted)
    tiny.distil(recipe_file, "parts", *weighted, stop_at=5)
    tiny.distil(recipe_file, "parts", *weighted)
    tiny.assert_same_tensors(tiny.last_state("whole"), tiny.last_state("parts"))
    tiny.distil(recipe_file, "plain", *settings(source, *options))
    different = tiny.last_state("plain")
    assert any(not value.equal(different[key]) for key, value in tiny.last_state("whole").items())


def test_partitions_see_what_is_large_enough_for_each(recipe_file: str, source: str) -> None:
    picture(40, 200, 160).save(Path(source) / "large.png")
    picture(41, 220, 180).save(Path(source) / "larger.png")
    partitions = "partitions=[{name: low, sizes_px: [32], batch_size: 3}, {name: high, sizes_px: [128], batch_size: 2}]"
    tiny.distil(recipe_file, "run", *settings(source, LARGE, partitions, "schedule.num_steps=2"))
    record = json.loads(Path("run/data.json").read_text())
    assert 19 <= record["images"] - record["too_small_for_partition"]["high"] + 18 <= 21
    assert set(record["too_small_for_partition"]) == {"high"}


def test_streams_note_what_they_left_out(recipe_file: str, source: str) -> None:
    import datasets

    rows = [{"bytes": path.read_bytes(), "path": None} for path in sorted(Path(source).iterdir())]
    features = datasets.Features({"image": datasets.Image(decode=False)})
    datasets.Dataset.from_dict({"image": rows}, features=features).to_parquet("shards/0.parquet")
    streamed = [
        "data={source: shards, num_images: null, streaming: true, shuffle_buffer: 5, num_workers: 0}",
        LARGE,
    ]
    tiny.distil(recipe_file, "whole", *streamed)
    record = json.loads(Path("whole/data.json").read_text())
    assert record["left_out_so_far"]["low"] == {"too small": 3}
    tiny.distil(recipe_file, "parts", *streamed, stop_at=5)
    tiny.distil(recipe_file, "parts", *streamed)
    tiny.assert_same_tensors(tiny.last_state("whole"), tiny.last_state("parts"))
    assert json.loads(Path("parts/data.json").read_text()) == record
