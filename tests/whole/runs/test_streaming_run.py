"""Whole runs on streamed images, on the tiny student and teachers of `tiny_distillation.py`."""

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_distillation as tiny

from modeling_radio.training.distill import main
from modeling_radio.training.distillation.checkpoints import newest_checkpoint, read_state


pytestmark = pytest.mark.usefixtures("one_thread", "tiny_world")


@pytest.mark.parametrize(("num_workers", "stops"), [(0, (3, 7)), (2, (5,))])
def test_a_restarted_run_equals_an_undisturbed_one(
    recipe_file: str, write_source: Callable[..., str], num_workers: int, stops: tuple[int, ...]
) -> None:
    streamed = [
        "data={num_images: null, streaming: true, shuffle_buffer: 6}",
        f"data.source={write_source('webdataset', 10, num_shards=3, faults=['tiny', 'truncated'])}",
        f"data.mixed_in=[{{source: {write_source('parquet', 3, first=100)}, weight: 0.2}}]",
        f"data.num_workers={num_workers}",
    ]
    tiny.distil(recipe_file, "whole", *streamed)
    for stop_at in stops:
        assert tiny.distil(recipe_file, "parts", *streamed, stop_at=stop_at) is None
        (place,) = read_state(newest_checkpoint(Path("parts/checkpoints")))["places_in_data"]
        read = place["low"]["block"] * 6 + place["low"]["place"]
        assert read == 4 * (stop_at + 2)  # two steps of images went into the calibration
    tiny.distil(recipe_file, "parts", *streamed)
    tiny.assert_same_tensors(tiny.last_state("whole"), tiny.last_state("parts"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "data.source=missing/*.tar",
            "radio distill: error: Data source 'missing/*.tar': no file matches 'missing/*.tar'",
        ),
        ("views.teachers=cached", "`data.streaming` must be false with `views.teachers: cached`"),
    ],
)
def test_bad_streams_end_the_command_with_one_line(
    recipe_file: str, write_source: Callable[..., str], capsys: pytest.CaptureFixture[str], setting: str, message: str
) -> None:
    settings = ["data.num_images=null", "data.streaming=true", f"data.source={write_source('parquet', 4)}", setting]
    assert main(["--recipe", recipe_file, "--output", "run", *settings]) == 1
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
