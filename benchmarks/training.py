"""Steps of distillation compared with other trainers, with the same step with one option, and with other checkouts.

Other trainers: a ViT-Ti/16 (192 wide, 12 blocks) learns from DINOv2-S/14, both of random weights, from crops of 224 px
of one folder of JPEGs, in bfloat16 by autocast with AdamW, data decoded in the process that trains. Ours uses no option
that the others lack (MESA, DAMP). On a GPU batches are larger and other processes decode.

Options: each is compared with the demo's recipe without it, one thread, images of 128 px, a step's 64 in one pass, full
banks and windows in every step. "more CPU" is the median over the rounds of the increase over the plain step of the
same round; "memory" is the peak of the process in a step, teachers included. For Linux.

Checkouts: the demo's step, its parts and its data. On a busy machine CPU times are more reliable than the wall clock.
"""

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import steps
from benchmarks.data import draw_image
from benchmarks.measuring import (
    ROOT,
    MeasuringSettings,
    Row,
    StepProcess,
    Timing,
    Turns,
    peak_mb_of,
    report,
    take_step_turns,
)
from modeling_radio.training.teachers.featsharp import FeatSharp, UpsamplerConfig, save_upsampler


OURS = "ours"
SUBJECT = "vit-ti"
BATCH_SIZES = {"cpu": 16, "cuda": 256}
NUM_WORKERS = {"cpu": 0, "cuda": 4}
"""Our choice: three or four trainers take turns, and a machine has some 16 cores for each GPU."""
WARM_UP_STEPS = 2
DEMO_WARM_UP_STEPS = 10  # until kernels are set up and memory is allocated
SIDE_PX = 224
STORED_PX = 320
NUM_IMAGES = 512  # two of the larger batches
NUM_STEPS = 10**6  # length of the schedule, whose end no benchmark reaches
ROUNDS, STEPS, CHECKOUT_STEPS = 5, 3, 10
SMALL_TEACHER = {"run_mode": "fixed", "input_size_px": 64}  # a grid of 4 x 4 patches; the student has 8 x 8


def run(settings: MeasuringSettings) -> None:
    """Measure and report the step of all trainers, then, on a CPU, its options."""
    rounds, num_steps = (1, 1) if settings.quick else (ROUNDS, STEPS)
    batch_size = BATCH_SIZES[settings.device]
    rows = trainer_rows(time_trainers(settings, rounds, num_steps), batch_size)
    report(settings, "training", "training", SUBJECT, rows, {"batch_size": batch_size}, settings.device)
    if settings.on_gpu:
        return
    rows = measure_options(rounds, num_steps, is_quick=settings.quick)
    report(settings, "training", "training_options", "demo", rows, {"threads of a step": 1})


def run_checkouts(settings: MeasuringSettings) -> None:
    """Measure and report the demo's step of this checkout and another one."""
    roots = {f"present ({commit_of(ROOT)})": ROOT}
    if settings.against is not None:
        roots[f"other ({commit_of(settings.against)})"] = settings.against.resolve()
    rounds, num_steps = (1, 1) if settings.quick else (2 * ROUNDS, CHECKOUT_STEPS)
    rows = checkout_rows(time_checkouts(roots, rounds, num_steps, num_images=256 if settings.quick else 1024))
    report(settings, "checkouts", "checkouts", "demo", rows)


def recipe_changes(folder: Path, device: str = "cpu") -> list[str]:
    """Return the changes of the demo's recipe to the student, teacher and batch of the comparison."""
    return [
        f"data={{source: '{folder}', num_images: null, image_size_px: {STORED_PX}}}",
        f"data.num_workers={NUM_WORKERS[device]}",
        "views={teachers: online, brightness: 0.0, contrast: 0.0}",
        f"partitions=[{{name: all, sizes_px: [{SIDE_PX}], batch_size: {BATCH_SIZES[device]}}}]",
        "teachers=[{name: dinov2-s, kind: dinov2, source: facebook/dinov2-small, dtype: bfloat16,"
        " options: {weights: random}}]",
        f"student.config={{hidden_size: 192, num_hidden_layers: 12, num_attention_heads: 3, max_img_size: {SIDE_PX},"
        f" preferred_resolution: [{SIDE_PX}, {SIDE_PX}]}}",
        "student.passes_at_once=1",
        "student.attention=sdpa",
        "optimizer.name=adamw",
        "standardization.calibration_steps=1",
        f"schedule={{num_steps: {NUM_STEPS}, warmup_steps: 1}}",
    ]


def time_trainers(settings: MeasuringSettings, rounds: int, num_steps: int) -> dict[str, list[Timing]]:
    """Return the timings of each trainer in each round."""
    device, batch_size = settings.device, str(BATCH_SIZES[settings.device])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "pictures")
        folder.mkdir()
        for number in range(NUM_IMAGES):
            draw_image(STORED_PX, STORED_PX, number).save(folder / f"{number:04d}.jpg", quality=90)
        common, trainers = [str(folder), batch_size, str(WARM_UP_STEPS)], [sys.executable, "-m", "benchmarks.trainers"]
        ours = [sys.executable, steps.__file__, f"{scratch}/run", *recipe_changes(folder, device)]
        plain = [*trainers, "plain", *common, str(NUM_WORKERS[device])]
        commands = {OURS: ours, "plain loop": plain}
        hidden = {} if settings.on_gpu else {"CUDA_VISIBLE_DEVICES": ""}
        if settings.peer_python is not None and not settings.on_gpu:
            commands["lightly-train"] = [settings.peer_python, *trainers[1:], "lightly", *common, f"{scratch}/lightly"]
        processes = {name: StepProcess(name, command, ROOT, **hidden) for name, command in commands.items()}
        processes[OURS].time(WARM_UP_STEPS)  # the others have done so
        return take_step_turns(processes, rounds, num_steps)


def trainer_rows(rounds: Mapping[str, Sequence[Timing]], batch_size: int) -> list[Row]:
    """Return one row for each trainer, with the times of the parts for ours."""
    turns = Turns({name: [timing["wall"] for timing in timings] for name, timings in rounds.items()})
    rows = []
    for name, timings in rounds.items():
        row: Row = {
            "trainer": name,
            "step, ms": turns.milliseconds(name),
            "images per second": round(1000 * batch_size / turns.milliseconds(name), 1),
            "ours is times as fast": str(turns.times_as_fast(OURS, name)),
        }
        if steps.GPU_MEMORY in timings[-1]:
            row[steps.GPU_MEMORY] = round(timings[-1][steps.GPU_MEMORY])
        parts = [part for part in timings[0] if part not in ("wall", "cpu", steps.GPU_MEMORY)]
        rows.append(row | {f"{part}, ms": _milliseconds(timings, part) for part in parts})
    return rows


def _milliseconds(timings: Sequence[Timing], part: str) -> float:
    return round(1000 * statistics.median(timing[part] for timing in timings), 1)


class Group(NamedTuple):
    """Options that are compared with the same plain step.

    Attributes:
        plain: Changes of the plain step to the demo's recipe.
        options: Further changes of each option, by name.
    """

    plain: Sequence[str]
    options: Mapping[str, Sequence[str]]


def groups(upsampler: Path) -> dict[str, Group]:
    """Return all options by the name of their plain step.

    Args:
        upsampler: Folder of an upsampler for EfficientNet, see `save_untrained_upsampler`.
    """
    teacher = "teachers.efficientnet-lite0"
    weighed = "balancing={method: adaptive, start_step: 0, period_steps: 1, ramp_steps: 0}"
    return {
        "plain": Group(
            [],
            {
                "balancing adaptive": [weighed],
                "contrastive relational": ["contrastive.weight=0.1"],
                "taps": ["taps.weight=0.25"],
                "mesa": ["mesa.weight=0.5"],
                "damp": ["damp.sigma=0.1"],
                "spectral": ["spectral.is_used=true"],
            },
        ),
        "plain, two global blocks": Group(
            ["student.config.vitdet_num_global=2"],
            {"windows of 4": ["partitions.low.vitdet_windows=[4]", "partitions.low.vitdet_probability=1"]},
        ),
        "teachers online, EfficientNet at 64 px, bilinear": Group(
            ["views.teachers=online", *(f"{teacher}.{key}={value}" for key, value in SMALL_TEACHER.items())],
            {
                "tiles": [f"{teacher}.upsample=tiles"],
                "featsharp": [f"{teacher}={{upsample: featsharp, upsampler: {str(upsampler)!r}}}"],
            },
        ),
    }


def save_untrained_upsampler(folder: Path) -> None:
    """Write an untrained FeatSharp for the small EfficientNet: it costs the same as a trained one."""
    size = SMALL_TEACHER["input_size_px"]
    config = UpsamplerConfig(kind="efficientnet-lite0", feature_dim=112, input_size_px=size, grid=size // 16)
    save_upsampler(FeatSharp(config), folder)


def measure_options(rounds: int, num_steps: int, *, is_quick: bool = False) -> list[Row]:
    """Return one row for each plain step and each option; in quick runs for the first option of each."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        save_untrained_upsampler(Path(scratch, "upsampler"))
        common = [
            "data={num_images: 256, num_workers: 0}",
            f"views.cache_dir={scratch}/cache",
            f"schedule={{num_steps: {NUM_STEPS}, warmup_steps: 1}}",
            "partitions.low.sizes_px=[128]",
            "partitions.low.accumulation_steps=1",
            "student.passes_at_once=1",
            "standardization.calibration_steps=2",
        ]
        for plain, group in groups(Path(scratch, "upsampler")).items():
            changes = {plain: [], **(dict([*group.options.items()][:1]) if is_quick else group.options)}
            command = [sys.executable, "-m", "benchmarks.training"]
            workers, timings, memory = {}, {}, {}
            for name, own in changes.items():
                words = [*command, f"{scratch}/{plain}/{name}", *common, *group.plain, *own]
                workers[name] = StepProcess(name, words, ROOT, OMP_NUM_THREADS="1")
                memory[name] = workers[name].first_reply["memory_mb"]
                if name == plain:
                    continue
                pair = {each: workers[each] for each in (plain, name)}
                timings[name] = take_step_turns(pair, rounds, num_steps, stays=plain)
            workers[plain].close()
            rows += option_rows(plain, timings, memory)
    return rows


def option_rows(
    plain: str, timings: Mapping[str, Mapping[str, Sequence[Timing]]], memory: Mapping[str, float]
) -> list[Row]:
    """Return the plain step's row, and one for each option.

    Args:
        plain: Name of the plain step.
        timings: By option the timings of the plain step and of its own.
        memory: Memory of all steps by name, in MB.
    """
    of_plain = [timing for both in timings.values() for timing in both[plain]]
    rows = [_option_row(plain, of_plain, memory[plain])]
    for option, both in timings.items():
        pairs = zip(both[plain], both[option], strict=True)
        more = statistics.median(100 * (second["cpu"] / first["cpu"] - 1) for first, second in pairs)
        row = _option_row(option, both[option], memory[option])
        rows.append({**row, "more CPU": f"{more:+.0f} %", "more memory": f"{memory[option] - memory[plain]:+.0f} MB"})
    return rows


def _option_row(step: str, timings: Sequence[Timing], memory: float) -> Row:
    wall, cpu = (round(_milliseconds(timings, part)) for part in ("wall", "cpu"))
    row = {"step": step, "wall, ms": wall, "CPU, ms": cpu, "memory, MB": round(memory)}
    return {**row, "more CPU": "", "more memory": ""}


def build_option(run_dir: str, *changes: str) -> tuple[steps.StepTimer, dict[str, float]]:
    """In a new process: return a timer of the demo's steps with changes, and the memory of a step."""
    timer = steps.build(run_dir, *changes)
    if "contrasts" in timer.distiller.parts.hooks:
        for bank in timer.distiller.parts.hooks["contrasts"].banks.values():
            bank.add(torch.randn_like(bank.rows))
    timer.run(WARM_UP_STEPS)
    return timer, {"memory_mb": peak_mb_of(partial(timer.run, 1))}


def time_checkouts(roots: Mapping[str, Path], rounds: int, num_steps: int, num_images: int) -> dict[str, list[Timing]]:
    """Return the timings of every round by checkout; each computes its teachers' features first."""
    changes = [f"data.num_images={num_images}", f"schedule={{num_steps: {NUM_STEPS}, warmup_steps: 10}}"]
    with tempfile.TemporaryDirectory() as scratch:
        checkouts = {}
        for name, root in roots.items():
            folder = Path(scratch, name)
            command = [sys.executable, steps.__file__, str(folder / "run"), f"views.cache_dir={folder / 'cache'}"]
            checkouts[name] = StepProcess(str(root), [*command, *changes], root)
        for checkout in checkouts.values():
            checkout.time(DEMO_WARM_UP_STEPS)
        return take_step_turns(checkouts, rounds, num_steps)


def checkout_rows(rounds: Mapping[str, Sequence[Timing]]) -> list[Row]:
    """Return one row per checkout: medians of its timings in ms, and ratios to the first one.

    Args:
        rounds: Timings by checkout, the present one first; those of one round have the same index.
    """
    present = next(iter(rounds.values()))
    rows = []
    for name, timings in rounds.items():
        row: Row = {"checkout": name}
        for part in timings[0]:
            row[f"{ {'cpu': 'CPU'}.get(part, part) }, ms"] = _milliseconds(timings, part)
        for part, label in (("wall", "ratio of wall times"), ("cpu", "ratio of CPU times")):
            ratios = [theirs[part] / ours[part] for theirs, ours in zip(timings, present, strict=True)]
            row[label] = round(statistics.median(ratios), 2)
        rows.append(row)
    return rows


def commit_of(root: Path) -> str:
    """Return a checkout's commit, shortened, with a mark where files differ from it; "unknown" without git."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    steps.serve_steps(lambda: build_option(*sys.argv[1:]))
