"""Times distillation steps beside other trainers at equal student, teacher and batch, and the student's part of them.

    python -m benchmarks.training [--peer-python PYTHON] [--batch-size 16] [--rounds 5] [--steps 4]

A ViT-Ti/16 (192 wide, 12 blocks) learns from DINOv2-S/14, both of random weights, from crops of 224 px of one folder of
JPEGs, in bfloat16 by autocast with AdamW, data decoded in the process that trains. The contenders are ours without what
the others lack (MESA, DAMP), a plain loop after UNIC (`benchmarks/peers/plain_loop.py`) and, where a Python that has it
is given, lightly-train's distillation; each is a process of its own, and they take turns of a few steps.

The student's part of a step is all of it but data and teachers: passes, losses, clipping, optimizer, moving average.
Beside it stands the bare forward and backward pass of the same network on the same images, of this recipe and of the
demo's. How a step grows with ranks is on paper: gradients of all weights averaged in a ring, nothing of it hidden.
"""

import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measuring import steps
from benchmarks.measuring.limits import measure_limits
from benchmarks.measuring.new_process import ROOT, run_anew
from benchmarks.measuring.results import report
from benchmarks.measuring.step_process import StepProcess, Timing, take_step_turns
from benchmarks.measuring.steps import StepTimer
from benchmarks.measuring.turns import Turns, spread_of, take_turns
from benchmarks.preprocessing import draw_picture
from foundation.command_line import Command
from foundation.settings import Settings, require
from training.distillation.trainer import Distiller
from training.recipe import load_recipe
from training.student.packing import answer_groups


OURS = "ours"
SUBJECT = "vit-ti"
WARM_UP_STEPS = 2
SIDE_PX = 224
STORED_PX = 320
NUM_PICTURES = 128
NUM_STEPS = 10**6  # of the schedule, whose end no benchmark reaches
LINK_BYTES_PER_SECOND = 12.5e9
"""Between two ranks: Ethernet of 100 Gbit/s. Our choice: what rented machines with one GPU have at most."""
RANKS = (1, 2, 8, 64)
FLOAT_BYTES = 4


def recipe_changes(folder: Path, batch_size: int) -> list[str]:
    """Return the changes of the demo's recipe that make it the student, teacher and batch of the comparison."""
    return [
        f"data={{source: '{folder}', num_images: null, image_size_px: {STORED_PX}, num_workers: 0}}",
        "views={teachers: online, brightness: 0.0, contrast: 0.0}",
        f"partitions=[{{name: all, sizes_px: [{SIDE_PX}], batch_size: {batch_size}}}]",
        "teachers=[{name: dinov2-s, kind: dinov2, source: facebook/dinov2-small, precision: bfloat16,"
        " options: {weights: random}}]",
        f"student.config={{hidden_size: 192, num_hidden_layers: 12, num_attention_heads: 3, max_img_size: {SIDE_PX},"
        f" preferred_resolution: [{SIDE_PX}, {SIDE_PX}]}}",
        "student.passes_at_once=1",
        "student.attention=sdpa",
        "optimizer.name=adamw",
        "standardization.calibration_steps=1",
        f"schedule={{num_steps: {NUM_STEPS}, warmup_steps: 1}}",
    ]


def draw_pictures(folder: Path, number: int = NUM_PICTURES) -> None:
    """Write smooth pictures of noise as JPEGs."""
    for each in range(number):
        draw_picture(STORED_PX, STORED_PX, each).save(folder / f"{each:04d}.jpg", quality=90)


def commands(folder: Path, scratch: Path, batch_size: int, peer_python: str | None) -> dict[str, list[str]]:
    """Return by name the programs that take turns."""
    common = [str(folder), str(batch_size), str(WARM_UP_STEPS)]
    found = {
        OURS: [sys.executable, steps.__file__, str(scratch / "run"), *recipe_changes(folder, batch_size)],
        "plain loop": [sys.executable, "-m", "benchmarks.peers.plain_loop", *common],
    }
    if peer_python is not None:
        lightly = ["-m", "benchmarks.peers.lightly_loop", *common, str(scratch / "lightly")]
        found["lightly-train"] = [peer_python, *lightly]
    return found


def time_trainers(settings: "TrainingBenchmark") -> dict[str, list[Timing]]:
    """Return what a step took of each trainer in each round."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "pictures")
        folder.mkdir()
        draw_pictures(folder)
        programs = commands(folder, Path(scratch), settings.batch_size, settings.peer_python)
        trainers = {name: StepProcess(name, command, ROOT) for name, command in programs.items()}
        trainers[OURS].time(WARM_UP_STEPS)  # the others have done so
        return take_step_turns(trainers, settings.rounds, settings.steps)


def summarize(rounds: Mapping[str, Sequence[Timing]], batch_size: int) -> list[dict[str, object]]:
    """Return one row for each trainer; ours says also what its parts took."""
    turns = Turns({name: [timing["wall"] for timing in timings] for name, timings in rounds.items()})
    rows = []
    for name, timings in rounds.items():
        row: dict[str, object] = {
            "trainer": name,
            "step, ms": turns.milliseconds(name),
            "images per second": round(1000 * batch_size / turns.milliseconds(name), 1),
            "ours is times as fast": str(turns.times_as_fast(OURS, name)),
        }
        for part in timings[0]:
            if part not in ("wall", "cpu"):
                row[f"{part}, ms"] = round(1000 * statistics.median(timing[part] for timing in timings), 1)
        rows.append(row)
    return rows


def student_share(name: str, recipe: str, changes: Sequence[str], num_rounds: int, run_dir: str) -> dict[str, Any]:
    """Return what the student's part of a step takes beside the bare passes of its network on the same images.

    Args:
        name: For the table.
        recipe: Name or file.
        changes: Of the recipe.
        num_rounds: Turns of both.
        run_dir: Folder of the run.
    """
    distiller = Distiller(load_recipe(recipe, changes), Path(run_dir))
    distiller._build()
    timer = StepTimer(distiller)
    parts = [next(timer.examples) for _ in range(distiller.plan.batches_per_step)]
    with FlopCounterMode(display=False) as counter:
        run_bare(distiller, parts, in_threads=False)  # it counts those of its own thread
    dtype = torch.bfloat16 if distiller.recipe.mixed_precision == "bf16" else torch.float32
    peak = measure_limits("cpu", dtype).gflops
    steps: list[Timing] = []
    calls: dict[str, Callable[[], object]] = {
        "step": lambda: steps.append(timer.run(1)),
        "bare": lambda: run_bare(distiller, parts),
    }
    turns = take_turns(calls, min_rounds=num_rounds, budget_seconds=0)
    student = [timing["wall"] - timing["data"] for timing in steps[1:]]  # the first one is not timed
    both = Turns({"student": student, "bare": turns.seconds["bare"]})
    row: dict[str, Any] = {
        "recipe": name,
        "trained weights": sum(each.numel() for each in distiller.student.parameters() if each.requires_grad),
        "student's part, ms": both.milliseconds("student"),
        "bare passes, ms": both.milliseconds("bare"),
        "share": str(spread_of([bare / own for own, bare in zip(*both.seconds.values(), strict=True)])),
    }
    for part in ("passes", "optimizer", "average"):
        row[f"{part}, ms"] = round(1000 * statistics.median(timing[part] for timing in steps[1:]), 1)
    gflop = counter.get_total_flops() / 1e9
    return row | {"GFLOP": round(gflop, 3), "at the measured peak, ms": round(1000 * gflop / peak, 1)}


def run_bare(distiller: Distiller, parts: Sequence[Any], in_threads: bool = True) -> None:
    """Run the student forward and backward on what a step sees, each answer's mean being the loss, and nothing else.

    Args:
        distiller: Whose student it is.
        parts: The batches of a step.
        in_threads: Whether parts may run side by side as the recipe says.
    """
    parameters = [each for each in distiller.student.parameters() if each.requires_grad]
    for each in parameters:
        each.grad = None

    def work(part: Any) -> tuple[Tensor, dict[str, Tensor]]:
        batch, example = part
        draws = batch.uniform("student", distiller.model.num_draws)
        with distiller.accelerator.autocast():
            answer = answer_groups(
                distiller.student, example.pixel_values, distiller.model.patch_size, window_size="global", draws=draws
            )
        heads = answer.adaptors.values()
        answers = [each for head in heads for each in (*head.features, head.summary) if each is not None]
        return torch.stack([each.float().mean() for each in answers]).sum(), {}

    if in_threads and distiller.parallel_passes is not None:
        list(distiller.parallel_passes.run(parts, work, parameters))
        return
    for part in parts:
        work(part)[0].backward()


def measure_shares(settings: "TrainingBenchmark") -> list[dict[str, Any]]:
    """Return the rows of `student_share`, each measured in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "pictures")
        folder.mkdir()
        draw_pictures(folder)
        small = ["data.num_images=256", f"schedule={{num_steps: {NUM_STEPS}, warmup_steps: 1}}"]
        small += [f"views.cache_dir={scratch}/cache", "data.num_workers=0", "standardization.calibration_steps=2"]
        recipes = {"demo": small, OURS: recipe_changes(folder, settings.batch_size)}
        return [
            run_anew(student_share, name, "demo", changes, settings.rounds * settings.steps, f"{scratch}/{name}").value
            for name, changes in recipes.items()
        ]


def growth_on_paper(step_seconds: float, num_parameters: int) -> list[dict[str, object]]:
    """Return by the number of ranks what is exchanged, and the share of a step that computes if none of it is hidden.

    A ring sends 2 (n - 1) / n of all gradients from each of n ranks.

    Args:
        step_seconds: Of one rank alone.
        num_parameters: That are trained, each with a gradient in float32.
    """
    rows = []
    for ranks in RANKS:
        sent = 2 * (ranks - 1) / ranks * num_parameters * FLOAT_BYTES
        share = step_seconds / (step_seconds + sent / LINK_BYTES_PER_SECOND)
        rows.append({"ranks, on paper": ranks, "sent by each, MB": round(sent / 1e6, 1), "computing": round(share, 3)})
    return rows


class TrainingBenchmark(Settings):
    """What takes turns.

    Attributes:
        peer_python: A Python that has lightly-train and timm; None leaves it out.
        batch_size: Images of a step.
        rounds: Turns of each trainer.
        steps: Steps of a turn.
    """

    peer_python: str | None = None
    batch_size: int = Field(16, gt=1)
    rounds: int = Field(5, gt=0)
    steps: int = Field(4, gt=0)

    @model_validator(mode="after")
    def _check(self) -> "TrainingBenchmark":
        rule = f"at most {NUM_PICTURES}, the number of pictures"
        require(self.batch_size <= NUM_PICTURES, "batch_size", self.batch_size, rule)
        return self

    def check_peer(self) -> None:
        """Refuse a peer's Python that is not there, before any long work."""
        is_there = self.peer_python is None or Path(self.peer_python).is_file()
        require(is_there, "peer_python", self.peer_python, "the path of a Python that has lightly-train and timm")


COMMAND = Command("benchmarks.training", __doc__.partition("\n")[0], TrainingBenchmark)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return COMMAND.run(_measure_and_report, arguments)


def _measure_and_report(settings: TrainingBenchmark) -> None:
    settings.check_peer()
    rounds = time_trainers(settings)
    seconds = statistics.median(timing["wall"] for timing in rounds[OURS])
    report("training", SUBJECT, summarize(rounds, settings.batch_size), facts={"batch_size": settings.batch_size})
    shares = measure_shares(settings)
    report("training_student", SUBJECT, shares)
    (num_parameters,) = (share["trained weights"] for share in shares if share["recipe"] == OURS)
    on_paper = growth_on_paper(seconds, num_parameters)
    report("training_ranks", SUBJECT, on_paper, facts={"bytes per second of a link": LINK_BYTES_PER_SECOND})


if __name__ == "__main__":
    sys.exit(main())
