"""Losses by size, shares of time, skipped steps."""

from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Literal

import pytest
import tiny_distillation as tiny
import torch
from PIL import Image
from small_recipes import small_recipe
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.core.interruption import TrainingDivergedError
from modeling_radio.training.distillation import monitoring
from modeling_radio.training.distillation.monitoring import (
    PARTS,
    LossesBySize,
    SkippedSteps,
    StepProfile,
    measure_block_norms,
)
from modeling_radio.training.targets.examples import Example
from modeling_radio.training.views.plan import BatchPlan


def test_too_many_in_a_row_end_the_run() -> None:
    skipped = SkippedSteps(max_in_a_row=2)
    assert skipped.add(3, ["loss", "gradient"]) == "Step 3 skipped: not finite: loss; gradient (1 in a row)."
    skipped.reset_streak()
    assert skipped.add(5, ["loss"]).endswith("(1 in a row).")
    with pytest.raises(TrainingDivergedError, match=r"\(2 in a row\)"):
        skipped.add(6, ["loss"])


def test_a_run_most_of_whose_steps_were_skipped_is_no_success() -> None:
    skipped = SkippedSteps(max_in_a_row=10)
    assert skipped.summary(8) == ""
    for step in range(4):
        skipped.add(step, ["loss"])
    assert skipped.summary(8) == "4 of 8 steps were skipped as not finite."
    resumed = SkippedSteps(max_in_a_row=10)
    resumed.load_state_dict(skipped.state_dict())
    resumed.add(4, ["loss"])
    with pytest.raises(TrainingDivergedError, match=r"^5 of 8 steps"):
        resumed.summary(8)


NOTHING = Example([], {})


def test_means_are_by_size_over_steps_and_parts() -> None:
    recipe = small_recipe("a", "b", partitions=[{"sizes_px": [32, 64], "batch_size": 4, "accumulation_steps": 2}])
    losses = LossesBySize(recipe.partitions, torch.device("cpu"))
    part = BatchPlan(recipe, 100, patch_size=16).step(0)[0]
    for size, step in ((32, 1.0), (32, 5.0), (64, 9.0)):
        for shift in (0.0, 1.0):  # two parts of two images
            values = {"loss": torch.zeros(()), "features/a": torch.tensor(step + shift), "mesa": torch.tensor(shift)}
            seen = replace(part, size_px=size, teachers=("a",))
            losses.see(seen, NOTHING, {**values, "features/b": torch.zeros(())})
        losses.end_step({}, is_skipped=False)
        losses.see(replace(part, size_px=size), NOTHING, {"features/a": torch.tensor(float("nan"))})
        losses.end_step({}, is_skipped=True)
    expected = {"features@32px/a": 3.5, "features@64px/a": 9.5, "mesa@32px": 0.5, "mesa@64px": 0.5}
    assert losses.scalars() == pytest.approx(expected)
    assert losses.scalars() == {}


def test_ranks_may_know_different_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a rank is bound to a partition: all must exchange the same numbers."""
    monkeypatch.setattr(monitoring, "of_all_ranks", lambda own: [own, ["features/b"]])
    recipe = small_recipe("a", "b", partitions=[{"sizes_px": [32, 64], "batch_size": 4}])
    exchanged: list[tuple[int, ...]] = []
    monkeypatch.setattr(monitoring, "sum_over_ranks", lambda own: exchanged.append(tuple(own.shape)) or own)
    (part,) = BatchPlan(recipe, 100, patch_size=16).step(0)
    for losses in ({"features/a": torch.ones(())}, {}):
        known = LossesBySize(recipe.partitions, torch.device("cpu"))
        known.see(part, NOTHING, losses)
        known.end_step({}, is_skipped=False)
        known.scalars()
    assert exchanged == [(2, 4), (2, 2)]


pytestmark = pytest.mark.usefixtures("one_thread", "tiny_world")

CPU = torch.device("cpu")


# Parts of a step


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


class SlowTeacher(nn.Module):
    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def forward(self, pixel_values: Tensor) -> Tensor:
        self.clock.now += self.seconds
        return pixel_values


def run_step(watch: StepProfile, clock: Clock, teachers: dict[str, nn.Module]) -> None:
    """One second before the batch, 3 for reading, the teachers' own, 2 afterwards."""
    clock.now += 1
    watch.enter("data")
    clock.now += 3
    for teacher in teachers.values():
        teacher(torch.zeros(1))
    watch.enter("student")
    watch.see(torch.ones(12, 3, 2, 2))
    clock.now += 2
    watch.end_step()


def test_time_is_shared_among_data_teachers_and_student(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(monitoring, "time", clock)
    teachers: dict[str, nn.Module] = {"a": SlowTeacher(clock, 4), "b": SlowTeacher(clock, 6)}
    watch = StepProfile(teachers, CPU)
    teachers["a"](torch.zeros(1))  # as when a cache is filled: nothing is watched yet
    watch.begin_step()
    run_step(watch, clock, teachers)
    expected = {"time_share/data": 3 / 16, "time_share/teachers": 10 / 16, "time_share/student": 3 / 16}
    assert watch.shares() == pytest.approx(expected)
    assert watch.own_seconds() == 13  # data and teachers
    run_step(watch, clock, teachers)  # not watched: what was measured stays
    assert watch.shares() == pytest.approx(expected)
    assert watch.take_data_seconds() == 6  # of both steps
    watch.begin_step()
    clock.now += 7
    watch.meet()
    run_step(watch, clock, teachers)
    assert watch.own_seconds() == 7


# Norms


def norms_of_hidden_states(model: RadioModel, images: Tensor, window_size: int | Literal["global"]) -> dict[str, float]:
    """Return the norms with attention in windows of a size, each image by itself."""
    norms: dict[str, float] = {}
    hidden_states = [
        model(image[None], window_size=window_size, output_hidden_states=True).hidden_states for image in images
    ]
    for index, of_images in enumerate(list(zip(*hidden_states, strict=True))[1:]):
        lengths = torch.cat(of_images)[:, model.config.num_prefix_tokens :].norm(dim=-1)
        assert lengths.shape == (2, 16)
        norms[f"block_norm_mean/{index:02}"] = lengths.mean().item()
        norms[f"block_norm_max/{index:02}"] = lengths.max().item()
    return norms


@torch.no_grad()
def test_norms_are_of_the_patches_after_each_block_with_the_model_s_own_windows() -> None:
    """As those of `radio evaluate`: what is exported attends so by default."""
    torch.manual_seed(0)
    config = RadioConfig.from_preset("radio-test", num_hidden_layers=2, vitdet_num_global=1, vitdet_window_size=2)
    model = RadioModel(config).eval()
    images = torch.rand(2, 3, 64, 64)
    norms = measure_block_norms(model, images)
    assert list(norms) == ["block_norm_mean/00", "block_norm_max/00", "block_norm_mean/01", "block_norm_max/01"]
    assert norms == pytest.approx(norms_of_hidden_states(model, images, window_size=2), rel=1e-5)
    assert norms != pytest.approx(norms_of_hidden_states(model, images, window_size="global"), rel=1e-4)


# Whole runs


def scalars_of(run: str) -> dict[str, dict[int, float]]:
    accumulator = EventAccumulator(f"{run}/logs").Reload()
    # Files of one second are read in the order of their names, which is not that of their numbers.
    events = {
        tag: sorted(accumulator.Scalars(tag), key=attrgetter("wall_time")) for tag in accumulator.Tags()["scalars"]
    }
    return {tag: {event.step: event.value for event in of_tag} for tag, of_tag in events.items()}


def test_records_say_where_the_time_goes_and_how_large_features_are(recipe_file: str) -> None:
    tiny.distil(recipe_file, "run", "logging.trackers=[tensorboard]")
    scalars = scalars_of("run")
    steps = [2, 4, 6, 8]
    for part in PARTS:
        assert list(scalars[f"time_share/{part}"]) == steps
        assert all(share > 0 for share in scalars[f"time_share/{part}"].values())
    for step in steps:
        assert sum(scalars[f"time_share/{part}"][step] for part in PARTS) == pytest.approx(1, abs=1e-5)
        for block in ("00", "01"):
            assert scalars[f"block_norm_max/{block}"][step] >= scalars[f"block_norm_mean/{block}"][step] > 0
    assert {"gradient_norm", "images_per_second", "features/semantic", "summary/semantic"} <= scalars.keys()
    assert all(scalars["tokens_per_second"][step] > 0 for step in steps)
    assert {"data_seconds", "memory_gib"} <= scalars.keys()
    assert not {"mfu", "slowest_rank"} & scalars.keys()


def test_watching_changes_no_weight(recipe_file: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where dropped paths, noisy weights and a restart depend on the state of random generators."""
    monkeypatch.setattr("modeling_radio.training.distillation.held_out.MEASUREMENTS_PER_FIGURE", 1)
    settings = [*tiny.REGULARIZED, "schedule.num_steps=4"]
    tiny.distil(recipe_file, "blind", *settings, "logging.every_steps=100")
    watched = [*settings, "logging.every_steps=1", "logging.metrics_every_steps=2", f"logging.picture_source={folder}"]
    tiny.distil(recipe_file, "watched", *watched, stop_at=2)
    tiny.distil(recipe_file, "watched", *watched)
    tiny.assert_same_tensors(tiny.last_state("blind", 4), tiny.last_state("watched", 4))
    assert not Path("blind/pictures").exists()
    assert {path.name for path in Path("watched/pictures").iterdir()} == {"step-2.png", "step-4.png", "progress.png"}


def test_pictures_are_files_and_in_tensorboard(recipe_file: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modeling_radio.training.distillation.held_out.MEASUREMENTS_PER_FIGURE", 1)
    drawn = ["logging.metrics_every_steps=8", f"logging.picture_source={folder}", "logging.trackers=[tensorboard]"]
    tiny.distil(recipe_file, "run", *drawn)
    assert {path.name for path in Path("run/pictures").iterdir()} == {"step-8.png", "progress.png"}
    accumulator = EventAccumulator("run/logs").Reload()
    (tag,) = accumulator.Tags()["images"]
    (event,) = accumulator.Images(tag)
    assert (tag, event.step) == ("held_out", 8)
    with Image.open("run/pictures/step-8.png") as picture:
        assert (event.width, event.height) == picture.size
        assert picture.height > picture.width  # five rows, two photographs


def test_devices_are_waited_for_on_watched_steps_only(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[torch.device] = []
    monkeypatch.setattr("torch.accelerator.synchronize", waits.append)
    clock = Clock()
    watch = StepProfile({}, torch.device("cuda:0"))
    run_step(watch, clock, {})
    assert waits == []
    watch.begin_step()
    run_step(watch, clock, {})
    assert waits == [torch.device("cuda:0")] * 4  # the begin, and the end of each of three parts
