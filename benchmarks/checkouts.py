"""Times the demo's distillation step, its parts and its data, beside that of another checkout of this project.

    python -m benchmarks.checkouts [--against PATH] [--rounds 10] [--steps 10] [--num-images 1024]

Both run with this Python, each in a process of its own that computes its teachers' features first, and take turns of a
few steps in one run. Ratios are medians over the rounds. "wall, ms" and "CPU, ms" are those of one step, the latter of
all cores together; on a machine that does other work the latter tells more. Prints a table and writes it with date,
machine and versions to `benchmarks/results/`.
"""

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from benchmarks.measuring.results import report
from benchmarks.measuring.step_process import StepProcess, Timing, take_step_turns
from foundation.command_line import Command
from foundation.settings import Settings, require


HERE = Path(__file__).parents[1]
WORKER = HERE / "benchmarks" / "measuring" / "steps.py"
WARM_UP_STEPS = 10  # until kernels are set up and memory is there


def start(root: Path, scratch: Path, changes: Sequence[str]) -> StepProcess:
    """Return a process that runs the demo's steps of a checkout when asked.

    Args:
        root: The checkout.
        scratch: Folder for the run and its feature cache.
        changes: Of the demo's recipe.
    """
    command = [sys.executable, str(WORKER), str(scratch / "run"), f"views.cache_dir={scratch / 'cache'}", *changes]
    return StepProcess(str(root), command, root)


def measure(roots: dict[str, Path], settings: "CheckoutsBenchmark") -> dict[str, list[Timing]]:
    """Return the timings of every round by checkout, which took turns."""
    num_steps = WARM_UP_STEPS + settings.rounds * settings.steps
    changes = [f"data.num_images={settings.num_images}", f"schedule.num_steps={num_steps}", "schedule.warmup_steps=10"]
    with tempfile.TemporaryDirectory() as scratch:
        checkouts = {name: start(root, Path(scratch, name), changes) for name, root in roots.items()}
        for checkout in checkouts.values():
            checkout.time(WARM_UP_STEPS)
        return take_step_turns(checkouts, settings.rounds, settings.steps)


def summarize(rounds: dict[str, list[Timing]]) -> list[dict[str, object]]:
    """Return one row per checkout: medians of its timings in ms; how many times as fast the first one is.

    Args:
        rounds: By checkout, the present one first; those of one round stand at the same place.
    """
    present = next(iter(rounds.values()))
    rows = []
    for name, timings in rounds.items():
        row: dict[str, object] = {"checkout": name}
        for part in timings[0]:
            label = {"wall": "wall, ms", "cpu": "CPU, ms"}.get(part, f"{part}, ms")
            row[label] = round(1000 * statistics.median(timing[part] for timing in timings), 1)
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


class CheckoutsBenchmark(Settings):
    """What shall be timed.

    Attributes:
        against: Root of another checkout of this project; None times the present one alone.
        rounds: Turns of each checkout.
        steps: Steps of a turn.
        num_images: Images that the teachers answer before.
    """

    against: Path | None = None
    rounds: int = Field(10, gt=0)
    steps: int = Field(10, gt=0)
    num_images: int = Field(1024, gt=63)

    def check_against(self) -> None:
        """Refuse what is no checkout, before any long work.

        Raises:
            ValueError: If `against` is none.
        """
        is_checkout = self.against is None or (self.against / "training/recipes/demo.yaml").is_file()
        require(is_checkout, "against", str(self.against), "the root of a checkout of this project")


COMMAND = Command("benchmarks.checkouts", __doc__.partition("\n")[0], CheckoutsBenchmark)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return COMMAND.run(_measure_and_report, arguments)


def _measure_and_report(settings: CheckoutsBenchmark) -> None:
    settings.check_against()
    roots = {f"present ({commit_of(HERE)})": HERE}
    if settings.against is not None:
        roots[f"other ({commit_of(settings.against)})"] = settings.against.resolve()
    report("checkouts", "demo", summarize(measure(roots, settings)))


if __name__ == "__main__":
    sys.exit(main())
