"""LoRA against a frozen backbone on real labels, in minutes on a CPU: `python -m training.demo_kit.finetune_demo`.

The images are handwritten digits (UCI), and real cut-outs (Tux Paint's stamps) on photographs with exact masks or exact
boxes; what the validation images show is held out. Each method runs once for every seed with equal steps and
augmentation, and is measured after the last step, on images on which no setting was chosen: every seed has scenes of
its own, or holds out other digits (docs/guides/tune.md says what was tried on which).
"""

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from torch import nn

from foundation.command_line import Command
from foundation.fields import OneOf
from foundation.files import write_file, write_text
from foundation.settings import Settings
from model_cards.results import Table
from modeling_radio import RadioConfig
from training.demo_kit.tuning.experiments import EXPERIMENTS, HEAD, LORA, UNTRAINED
from training.finetuning.adapters import open_adapter
from training.finetuning.checkpoints import last_checkpoint
from training.finetuning.data.sources import load_images
from training.finetuning.models import open_task_model
from training.finetuning.pictures import draw_predictions, predict_examples
from training.finetuning.run import FINAL, RESULTS, FinetuningRun, write_results
from training.finetuning.settings import FinetuneSettings
from training.finetuning.tasks.base import FinetuningTask
from training.finetuning.tasks.examples import build_examples
from training.finetuning.tasks.registry import build_task
from training.pictures.curves import Curve, draw_curves


NUM_PICTURED = 8  # our choice
SMOOTHING_RECORDS = 5  # our choice: the loss is recorded every ten steps, and its picture shows means over 50


class Comparison:
    """All methods on one task.

    Args:
        task: Of `EXPERIMENTS`.
        checkpoint: Folder of the backbone.
        output: Folder of the comparison; what is finished there is not repeated.
    """

    def __init__(self, task: str, checkpoint: Path, output: Path):
        self.task, self.checkpoint, self.output = task, checkpoint, output
        self.experiment = EXPERIMENTS[task]

    def run(self, seeds: Sequence[int]) -> Table:
        """Run each method for every seed; return the metrics, mean and standard deviation over the seeds.

        Raises:
            ValueError: If the checkpoint cannot be used.
            PackageError: If the images cannot be fetched.
        """
        names = self.experiment.method_names
        results = {method: [self._measure(method, seed) for seed in seeds] for method in names}
        metrics = list(results[HEAD][0]["metrics"])
        rows = [(names[method], _row(runs, metrics)) for method, runs in results.items()]
        return Table(self.task, ["trained parameters", "seconds", *metrics], rows)

    def draw(self, seed: int) -> None:
        """Write `predictions.png`, what each method makes of a few validation images, and `losses.png`."""
        settings = self._settings(HEAD, seed)
        task = build_task(settings, load_images(settings))
        examples = build_examples(task, task.images.validation, "validation image", is_training=False)
        names = {method: self.experiment.method_names[method] for method in (HEAD, LORA)}
        predicted = {
            name: predict_examples(task, self._reopen(task, method, seed), examples, NUM_PICTURED)
            for method, name in names.items()
        }
        first = next(iter(predicted.values()))
        rows = {name: found.predictions for name, found in predicted.items()}
        figure = draw_predictions(task, first.images, first.references, rows)
        write_file(self.output / "predictions.png", figure.savefig)
        curves = {name: _read_losses(self._folder(method, seed)) for method, name in names.items()}
        draw_curves({f"{self.task}: training loss": curves}, self.output / "losses.png")

    def _measure(self, method: str, seed: int) -> dict[str, Any]:
        """Return what one run measured."""
        results = self._folder(method, seed) / RESULTS
        if not results.is_file():
            settings = self._settings(method, seed)
            self.experiment.write_data(settings)
            run = FinetuningRun(settings)
            if method == UNTRAINED:
                run.trainer.evaluate()
                untrained = {"metrics": run.trainer.metrics.latest, "trainable_parameters": 0, "seconds": 0.0}
                write_results(results.parent, untrained)
            else:
                run.run()
        return json.loads(results.read_text())

    def _settings(self, method: str, seed: int) -> FinetuneSettings:
        return self.experiment.settings(
            seed,
            checkpoint=str(self.checkpoint),
            data=str(self.output / f"data-{seed}"),
            output=self._folder(method, seed),
            tune=HEAD if method == UNTRAINED else method,
        )

    def _reopen(self, task: FinetuningTask, method: str, seed: int) -> nn.Module:
        """Open what a run saved, as a user would."""
        final = self._folder(method, seed) / FINAL
        if method == HEAD:
            return open_task_model(task, str(final))
        base = open_task_model(task, str(self.checkpoint), config=RadioConfig.from_pretrained(final))
        return open_adapter(base, final)

    def _folder(self, method: str, seed: int) -> Path:
        return self.output / f"{method}-{seed}"


def _read_losses(run: Path) -> Curve:
    """Return the recorded training losses of a finished run, as running means."""
    checkpoint = last_checkpoint(run)
    assert checkpoint is not None
    history = json.loads((Path(checkpoint) / "trainer_state.json").read_text())["log_history"]
    records = [(record["step"], record["loss"]) for record in history if "loss" in record]
    groups = [records[start : start + SMOOTHING_RECORDS] for start in range(0, len(records), SMOOTHING_RECORDS)]
    return [group[-1][0] for group in groups], [statistics.mean(loss for _, loss in group) for group in groups]


def _row(runs: list[dict[str, Any]], names: list[str]) -> list[str]:
    seconds = statistics.mean(run["seconds"] for run in runs)
    cells = [f"{runs[0]['trainable_parameters']:,}", f"{seconds:.0f}"]
    for name in names:
        values = [run["metrics"][name] for run in runs]
        spread = f" +- {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.3f}{spread}")
    return cells


class FinetuneDemoSettings(Settings):
    """What shall be compared.

    Attributes:
        task: On which labels.
        checkpoint: Folder of the backbone, by default that of `make demo`.
        output: Folder for everything.
        seeds: One run of each method for each.
    """

    task: Annotated[str, OneOf(EXPERIMENTS)]
    checkpoint: Path = Path("runs/demo/final")
    output: Path = Path("runs/finetune-demo")
    seeds: list[int] = [0, 1, 2]


COMMAND = Command(
    "training.demo_kit.finetune_demo",
    "Compare LoRA with a frozen backbone on the demo's student and real labels.",
    FinetuneDemoSettings,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return COMMAND.run(_compare, arguments, interrupted="interrupted; the same command goes on")


def _compare(settings: FinetuneDemoSettings) -> None:
    output = settings.output / settings.task
    comparison = Comparison(settings.task, settings.checkpoint, output)
    table = comparison.run(settings.seeds).to_markdown()
    write_text(output / "table.md", table + "\n")
    comparison.draw(settings.seeds[0])
    print(f"\n{table}\n\nWrote {output}: table.md, predictions.png, losses.png, and a folder for each run.")


if __name__ == "__main__":
    sys.exit(main())
