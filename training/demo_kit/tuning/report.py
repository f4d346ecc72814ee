"""What the comparison says: `FINETUNING.md`, a table for each task, from the raw results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from foundation.tables import markdown
from training.demo_kit.tuning.cells import difference, spread
from training.demo_kit.tuning.experiments import EXPERIMENTS, HEAD, Experiment, arms_of
from training.demo_kit.tuning.raw_results import TuningResult, load_results
from training.demo_kit.tuning.test_time.report import build_section
from training.finetuning.tasks.classification import MultiLabelTask
from training.finetuning.tasks.registry import TASK_CLASSES


CONCLUSIONS = "conclusions.md"
SCORES, PREDICTIONS, LOSSES, STEPS = "scores.png", "predictions.webp", "losses.png", "steps.png"
"""Pictures among the raw results: the first beside the tasks' folders, the others in each."""

HEADER = """# Tuning compared

Written by `python -m training.demo_kit.finetune_grid` from the raw results below `studies/tuning/`; only the
conclusions are by hand.

```bash
python -m training.demo_kit.finetune_grid                                       # runs what has no raw result yet
python -m training.demo_kit.finetune_grid --tasks object-detection --seeds 0    # one task, one seed
python -m training.demo_kit.finetune_grid --no-train                            # this page alone
```

All ways of tuning start from the student of `make demo` (for words, from what `python -m training.demo_kit.add_words`
makes of it), and for one seed have the same images, order and number of steps unless their name says otherwise. They
are measured once, after the last step, on images whose objects and photographs (or digits) no training image shows. All
compute in bfloat16.

"Full from random weights" is a ViT of the student's shape, which is timm's `VisionTransformer` in all but its class
tokens, that was never trained; for words it stands beside the same text tower. A teacher has one linear layer on its
frozen answers, for depth too, where the others have a decoder. For boxes, instances and DPT none was measured.

A cell is the mean over seeds and their standard deviation. "To head" is the mean difference to the head alone over the
seeds that both have, with its standard error; what has one seed has none, and differs by chance as much as seeds do.
"Training images" is the same metric on as many images of the training. Seconds are those of one thread while another
run, and at times more, was at work beside it: compare them roughly. Memory is the largest of the whole process, with
PyTorch and the images.

The pictures show Tux Paint's stamps and photographs of the demo's packages, some of them GPL-2+
([sources](../docs/guides/train/demo.md#what-the-demo-fetches)), and UCI's digits (CC-BY-4.0).
"""


def build_report(folder: Path) -> str:
    """Return the text of `FINETUNING.md`.

    Args:
        folder: Of the raw results; `TASK/conclusions.md` may lie beside them, and those of the options at test time.

    Raises:
        RawResultError: If one is damaged.
    """
    sections = [f"## {name}\n\n{_section(name, folder)}\n" for name in EXPERIMENTS]
    sections.append(f"## Test-time options\n\n{build_section(folder, CONCLUSIONS)}\n")
    pictures = [f"{line}\n" for line in _pictures(folder, ".", {SCORES: "Scores of every task"})]
    return "\n".join([HEADER, *pictures, *sections])


def _section(name: str, folder: Path) -> str:
    experiment, results = EXPERIMENTS[name], load_results(folder, name)
    steps, size = experiment.options["steps"], experiment.size
    parts = [f"{steps:,} steps of {experiment.options['batch_size']} images at {size} px; head: {experiment.frozen}."]
    planned = arms_of(experiment)
    if results:
        parts.append(build_table(name, results))
    missing = [arm for arm in planned if not any(run == arm for run, _ in results)]
    if missing:
        rows = [[arm, planned[arm].reason] for arm in missing]
        parts += ["Not run yet:", markdown(["arm", "what it is, or what would explain its winning"], rows)]
    shown = {
        PREDICTIONS: f"What models of {name} make of held-out images",
        LOSSES: f"Training losses of {name}",
        STEPS: f"Scores of {name} after runs of several lengths",
    }
    parts += _pictures(folder, name, shown)
    conclusions = folder / name / CONCLUSIONS
    text = conclusions.read_text(encoding="utf-8").strip() if conclusions.is_file() else "Not drawn yet."
    return "\n\n".join([*parts, f"**Conclusions.** {text}"])


def _pictures(folder: Path, name: str, titles: Mapping[str, str]) -> list[str]:
    """Return the lines that show those pictures of a task that were drawn."""
    place = Path("studies", "tuning", name)
    return [f"![{title}]({place / file})" for file, title in titles.items() if (folder / name / file).is_file()]


def build_table(name: str, results: Mapping[tuple[str, int], TuningResult]) -> str:
    """Return a Markdown table with a row for each arm that was run."""
    experiment = EXPERIMENTS[name]
    order = [arm for arm in arms_of(experiment) if any(run == arm for run, _ in results)]
    by_arm = {arm: {seed: result for (run, seed), result in results.items() if run == arm} for arm in order}
    metrics = list(dict.fromkeys(metric for result in results.values() for metric in result.metrics))
    best = best_metric(experiment, metrics)
    columns = [best, *(metric for metric in metrics if metric != best)]
    costs = ["trained", "share", "seconds", "MB"]
    seen = f"{best}, training images"
    header = ["", "seeds", *costs, f"{best}, to head{_lower(experiment)}", columns[0], seen, *columns[1:]]
    rows = []
    for arm, runs in by_arm.items():
        first = next(iter(runs.values()))
        rows.append(
            [
                arm,
                ", ".join(map(str, sorted(runs))),
                f"{first.trainable_parameters:,}",
                f"{first.trainable_parameters / first.parameters:.1%}",
                f"{mean(run.seconds for run in runs.values()):.0f}",
                f"{mean(run.peak_memory_mb for run in runs.values()):,.0f}",
                "" if arm == HEAD else _difference(runs, by_arm.get(HEAD, {}), best),
                *_spreads([run.metrics for run in runs.values()], columns[:1]),
                *_spreads([run.training_metrics for run in runs.values()], columns[:1]),
                *_spreads([run.metrics for run in runs.values()], columns[1:]),
            ]
        )
    return markdown(header, rows)


def _lower(experiment: Experiment) -> str:
    return "" if TASK_CLASSES[experiment.task].greater_is_better else " (lower is better)"


def best_metric(experiment: Experiment, metrics: Sequence[str]) -> str:
    """Return the metric that decides."""
    best = TASK_CLASSES[experiment.task].best_metric
    return best if best in metrics else MultiLabelTask.best_metric


def _difference(runs: Mapping[int, TuningResult], others: Mapping[int, TuningResult], metric: str) -> str:
    seeds = sorted(runs.keys() & others.keys())
    return difference([runs[seed].metrics[metric] - others[seed].metrics[metric] for seed in seeds])


def _spreads(runs: Sequence[Mapping[str, float]], metrics: Sequence[str]) -> list[str]:
    return [spread([run[metric] for run in runs if metric in run]) for metric in metrics]
