"""Pictures of the comparison: all scores at a glance, and what tuned models make of held-out images."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from foundation.files import write_file
from training.demo_kit.tuning.experiments import EXPERIMENTS, FULL, HEAD, LORA, METHODS, Experiment, arms_of
from training.demo_kit.tuning.raw_results import TuningResult, load_results
from training.demo_kit.tuning.report import LOSSES, PREDICTIONS, SCORES, STEPS, best_metric
from training.demo_kit.tuning.runs import Grid
from training.demo_kit.tuning.saved import reopen
from training.finetuning.checkpoints import last_checkpoint
from training.finetuning.data.sources import load_images
from training.finetuning.pictures import draw_predictions, predict_examples
from training.finetuning.run import FINAL
from training.finetuning.tasks.examples import build_examples
from training.finetuning.tasks.registry import TASK_CLASSES, build_task
from training.pictures.curves import Curve, draw_curves, label_panel
from training.pictures.features import DPI


PICTURED = (HEAD, LORA, FULL)
LENGTHS = (" for half the steps", "", " for twice the steps")
NUM_PICTURED = 8  # our choice
SMOOTHING_RECORDS = 5  # our choice: the loss is recorded every ten steps, and its picture shows means over 50
COLUMNS = 2


def draw_scores(folder: Path) -> None:
    """Draw what every task's methods score, each seed as a dot and their mean as a bar, into the folder of raw results.

    Args:
        folder: Of the raw results; a task without any has no panel.

    Raises:
        RawResultError: If one is damaged.
    """
    known = {name: load_results(folder, name) for name in EXPERIMENTS}
    panels = {name: results for name, results in known.items() if results}
    if not panels:
        return
    num_rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(4.6 * COLUMNS, 2.3 * num_rows), dpi=DPI, facecolor="white", layout="constrained")
    grid = figure.subplots(num_rows, COLUMNS, squeeze=False).flatten()
    for axes, (name, results) in zip(grid, panels.items(), strict=False):
        _draw_panel(axes, name, results)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    write_file(folder / SCORES, figure.savefig)


def draw_lengths(folder: Path, name: str) -> None:
    """Draw what the head alone and LoRA score after more and more steps, on held-out images and those of the training.

    Each length is a run of its own, whose learning rate falls to 0, so that none is a stop on the way of another. The
    points are means over the seeds that all lengths have; nothing is drawn of a single length.

    Args:
        folder: Of the raw results.
        name: Of `EXPERIMENTS`.

    Raises:
        RawResultError: If a raw result is damaged.
    """
    results, experiment = load_results(folder, name), EXPERIMENTS[name]
    metric = best_metric(experiment, [metric for result in results.values() for metric in result.metrics])
    known = {length: _common_seeds(results, [f"{start}{length}" for start in (HEAD, LORA)]) for length in LENGTHS}
    lengths = [length for length in LENGTHS if known[length]]
    seeds = sorted(set.intersection(*(known[length] for length in lengths))) if lengths else []
    if len(lengths) < 2 or not seeds:
        return
    figure = Figure(figsize=(5.2, 3.2), dpi=DPI, facecolor="white", layout="constrained")
    axes = figure.subplots()
    for color, start in zip(("0.4", "C0"), (HEAD, LORA), strict=True):
        found = [[results[f"{start}{length}", seed] for seed in seeds] for length in lengths]
        steps = [each[0].settings["steps"] for each in found]
        for label, style, key in (("held out", "o-", "metrics"), ("training images", "s--", "training_metrics")):
            values = [statistics.mean(getattr(run, key)[metric] for run in each) for each in found]
            axes.plot(steps, values, style, color=color, label=f"{start}, {label}", linewidth=1.2, markersize=4)
    of_seeds = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    label_panel(axes, f"{name}: {metric}, {of_seeds}", "steps of a run", font_size=9)
    write_file(folder / name / STEPS, figure.savefig)


def _common_seeds(results: Mapping[tuple[str, int], TuningResult], arms: Sequence[str]) -> set[int]:
    """Return the seeds with which all of some arms were run."""
    return set.intersection(*({seed for run, seed in results if run == arm} for arm in arms))


def _draw_panel(axes: Axes, name: str, results: Mapping[tuple[str, int], TuningResult]) -> None:
    experiment = EXPERIMENTS[name]
    metric = best_metric(experiment, [metric for result in results.values() for metric in result.metrics])
    scores: dict[str, list[float]] = {}
    arms = arms_of(experiment)
    for arm in arms:
        if arm in METHODS or arms[arm].teacher is not None:
            found = [result.metrics[metric] for (run, _), result in results.items() if run == arm]
            scores |= {arm: found} if found else {}
    for row, (arm, values) in enumerate(scores.items()):
        color = "C2" if arms[arm].teacher is not None else "0.5" if arm == HEAD else "C0"
        axes.barh(row, statistics.mean(values), height=0.6, color=color, alpha=0.35)
        axes.scatter(values, [row] * len(values), s=9, color=color)
    axes.set_yticks(range(len(scores)), list(scores))
    axes.set_ylim(len(scores) - 0.5, -0.5)
    axes.tick_params(labelsize=7)
    axes.grid(axis="x", alpha=0.25)
    better = "higher" if TASK_CLASSES[experiment.task].greater_is_better else "lower"
    axes.set_title(f"{name}: {metric} ({better} is better)", fontsize=8)


def draw_runs(grid: Grid, name: str, seed: int) -> None:
    """Draw what models make of held-out images, and their training losses, into a task's folder of raw results.

    Nothing is drawn where a model does not lie in the grid's output, because it was tuned elsewhere.

    Args:
        grid: Where the runs lie.
        name: Of `EXPERIMENTS`.
        seed: Of the runs.
    """
    settings = {arm: grid.settings(name, arm, seed) for arm in PICTURED}
    if not all((each.output / FINAL).is_dir() for each in settings.values()):
        return
    experiment, folder = EXPERIMENTS[name], grid.results / name
    task = build_task(settings[HEAD], load_images(settings[HEAD]))
    examples = build_examples(task, task.images.validation, "validation image", is_training=False)
    predicted = {
        _title(experiment, arm): predict_examples(task, reopen(task, each), examples, NUM_PICTURED)
        for arm, each in settings.items()
    }
    first = next(iter(predicted.values()))
    rows = {title: found.predictions for title, found in predicted.items()}
    figure = draw_predictions(task, first.images, first.references, rows)
    write_file(folder / PREDICTIONS, figure.savefig)
    losses = {_title(experiment, arm): _read_losses(each.output) for arm, each in settings.items()}
    draw_curves({f"{name}: training loss": losses}, folder / LOSSES)


def _title(experiment: Experiment, arm: str) -> str:
    return experiment.frozen if arm == HEAD else arm


def _read_losses(run: Path) -> Curve:
    """Return the recorded training losses of a finished run, as running means."""
    checkpoint = last_checkpoint(run)
    assert checkpoint is not None
    history = json.loads((Path(checkpoint) / "trainer_state.json").read_text())["log_history"]
    records = [(record["step"], record["loss"]) for record in history if "loss" in record]
    groups = [records[start : start + SMOOTHING_RECORDS] for start in range(0, len(records), SMOOTHING_RECORDS)]
    return [group[-1][0] for group in groups], [statistics.mean(loss for _, loss in group) for group in groups]
