"""The commands as functions: `from modeling_radio.api import distill, finetune, evaluate, predict, label, extract`.

Each takes the settings of its command as keyword arguments, which are checked in the same way, and does the same work:
it goes on with a run that was stopped, locks its output folder, and shares the work where a launcher started several
processes. Wrong settings are a `ValueError`. `Embedder` is what `extract` computes with, for batches of other
libraries. `builtin` returns the folder of a model in this package, and `PHOTOGRAPH` is the path of a photograph for
examples.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from modeling_radio.checks_radio import find_builtin
from modeling_radio.core.files import PHOTOGRAPH
from modeling_radio.core.settings import Settings, describe_type, list_settings
from modeling_radio.evaluation.settings import EvaluationSettings
from modeling_radio.extraction.embedder import Embedder
from modeling_radio.extraction.settings import ExtractionSettings, SearchSettings
from modeling_radio.metrics.results import STUDENT, Results, build_tables
from modeling_radio.prediction.settings import LabelSettings, PredictSettings
from modeling_radio.training.distill import DistillSettings
from modeling_radio.tuning.settings import FinetuneSettings


if TYPE_CHECKING:
    from datasets import DatasetDict

    from modeling_radio import RadioModel, RadioPreTrainedModel
    from modeling_radio.extraction.nearest import Hit
    from modeling_radio.extraction.run import Written
    from modeling_radio.prediction.run import Predicted

__all__ = [
    "PHOTOGRAPH",
    "Distilled",
    "Embedder",
    "Evaluated",
    "Extracted",
    "Finetuned",
    "builtin",
    "distill",
    "evaluate",
    "extract",
    "finetune",
    "label",
    "predict",
    "search",
]

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound=Settings)


def builtin(name: str) -> str:
    """Return the folder of a model in this package, for libraries that open a folder: `builtin("lite")`.

    The folder has no code: `modeling_radio` must be imported before an Auto class opens it. Our own classes and
    commands also take `builtin:lite`.

    Args:
        name: Name of the model.

    Raises:
        ValueError: If there is no such model.
    """
    return find_builtin(f"builtin:{name}")


def _with_fields_of(settings: Callable[P, S]) -> Callable[[Callable[[S], R]], Callable[P, R]]:
    """Let a function of settings take their fields as keyword arguments; its help explains each of them."""

    def decorate(run: Callable[[S], R]) -> Callable[P, R]:
        @functools.wraps(run)
        def call(*arguments: P.args, **fields: P.kwargs) -> R:
            texts: Any = {name: str(value) if isinstance(value, Path) else value for name, value in fields.items()}
            return run(settings(*arguments, **texts))

        described: Any = call
        described.__signature__ = inspect.signature(settings).replace(return_annotation=run.__annotations__["return"])
        assert isinstance(settings, type)
        assert issubclass(settings, Settings)
        lines = [f"    {path}: {text} ({describe_type(setting)})" for path, setting, text in list_settings(settings)]
        described.__doc__ = "\n".join([inspect.cleandoc(run.__doc__ or ""), "\nArguments:", *lines])
        return call

    return decorate


@dataclass(frozen=True)
class Distilled:
    """A distillation.

    Attributes:
        output: Folder of the run, with its curves and pictures in `pictures/`.
        final: Folder of the student; None if the run stopped before its end, as `stop_at` or `max_minutes` asked.
        scores: Last value of each number that the run recorded, such as the loss of a teacher's features, by name.
    """

    output: Path
    final: Path | None
    scores: dict[str, float]

    def model(self) -> RadioModel:
        """Open the student, in evaluation mode.

        Raises:
            ValueError: If the run stopped before its end.
        """
        if self.final is None:
            raise ValueError(f"`final` is None: the run in {str(self.output)!r} stopped before its end. Call it again.")
        return _open_backbone(self.final)


@_with_fields_of(DistillSettings)
def distill(settings: DistillSettings) -> Distilled:
    """Distill one student from several teachers, as `radio distill`.

    `changes` are changes of the recipe: `{"schedule": {"num_steps": 100}}`, `{"schedule.num_steps": 100}` or the words
    of the command, `["schedule.num_steps=100"]`.

    Raises:
        ValueError: If settings or recipe cannot be used, or the recipe does not fit what `output` holds.
        UserError: If another run is at work in `output`, or none of its checkpoints is intact.
        Interrupted: After Ctrl-C or a signal, once the state is saved; the same call goes on.
        TrainingDivergedError: If losses or weights are not finite.
    """
    from accelerate.state import AcceleratorState

    from modeling_radio.core.interruption import OutOfTime
    from modeling_radio.training.distill import folder_of, run
    from modeling_radio.training.distillation.tracking import read_series

    recipe = settings.load_recipe()
    AcceleratorState._reset_state()  # an earlier run of this process may have had another precision
    try:
        final = run(settings, recipe)
    except OutOfTime:
        final = None
    output = folder_of(settings, recipe)
    last = output / "stages" / recipe.stages[-1]["name"] if recipe.stages else output
    series = read_series(last / "history.jsonl")
    return Distilled(output, final, {name: values[-1] for name, (_, values) in series.items()})


@dataclass(frozen=True)
class Finetuned:
    """A tuned model.

    Attributes:
        output: Folder of the run, with pictures of the errors in `pictures/`.
        final: Folder of the best state: an adapter where one was trained, else a whole model.
        merged: Folder of the whole model with its adapter merged; None without `merge`.
        scores: Metrics on the validation images by name.
        task: Its task.
    """

    output: Path
    final: Path
    merged: Path | None
    scores: dict[str, float]
    task: str

    def model(self) -> RadioPreTrainedModel:
        """Open the tuned model, in evaluation mode; an adapter that was not merged is put onto its base."""
        from modeling_radio.tuning.tasks import find_task

        return find_task(self.task).model_class.from_pretrained(self.merged or self.final).eval()


@_with_fields_of(FinetuneSettings)
def finetune(settings: FinetuneSettings) -> Finetuned:
    """Tune a checkpoint for a task on labeled images, as `radio finetune`.

    Raises:
        ValueError: If settings, checkpoint or data do not fit, or `output` holds a run with other settings.
        UserError: If another run is at work in `output`.
        TrainingDivergedError: If losses or weights are not finite.
    """
    from modeling_radio.tuning.finetune import run
    from modeling_radio.tuning.run import FINAL, MERGED

    scores, output = run(settings), settings.output
    return Finetuned(output, output / FINAL, output / MERGED if settings.merge else None, scores, settings.task)


@dataclass(frozen=True)
class Evaluated:
    """Measurements of a checkpoint. A notebook shows them as tables.

    Attributes:
        checkpoint: The measured checkpoint.
        results: All measurements with their intervals, also those of baselines and of other models.
        scores: Values of the checkpoint by task and metric, such as "knn accuracy".
        written: Files that were written; none without `output`.
    """

    checkpoint: Path
    results: Results = field(repr=False)
    scores: dict[str, float]
    written: list[Path]

    def model(self) -> RadioModel:
        """Open the measured checkpoint's backbone and adaptors, in evaluation mode."""
        return _open_backbone(self.checkpoint)

    def __str__(self) -> str:
        tables = [table.to_markdown() for table in build_tables(self.results.measurements)]
        return "\n\n".join([*tables, *self.results.remarks])

    def _repr_markdown_(self) -> str:
        return str(self)


@_with_fields_of(EvaluationSettings)
def evaluate(settings: EvaluationSettings) -> Evaluated:
    """Measure a checkpoint on your images or the demo's, as `radio evaluate`.

    `changes` are those of the recipe, written as for `distill`.

    Raises:
        ValueError: If settings, checkpoint or data do not fit, or `output` holds something else than results.
        PackageError: If data or teachers cannot be fetched.
    """
    from modeling_radio.evaluation.evaluate import run

    results, written = run(settings)
    of_checkpoint = [each for each in results.measurements if each.model == STUDENT]
    scores = {f"{each.task} {each.metric}": each.value for each in of_checkpoint}
    return Evaluated(settings.checkpoint, results, scores, written)


@dataclass(frozen=True)
class Extracted:
    """A data set of features.

    Attributes:
        checkpoint: The checkpoint whose features they are.
        output: Folder or address of the data set.
        written: Numbers of rows, files and bytes.
    """

    checkpoint: Path
    output: Path | str
    written: Written

    def model(self) -> RadioModel:
        """Open the checkpoint's backbone and adaptors, in evaluation mode."""
        return _open_backbone(self.checkpoint)

    def dataset(self) -> DatasetDict:
        """Open the data set, by split."""
        from datasets import DatasetDict, load_dataset

        from modeling_radio.extraction.store import is_address

        if is_address(self.output):
            files = {split: f"{self.output}/data/{split}-*.parquet" for split in self.written.rows}
            data = load_dataset("parquet", data_files=files)
        else:
            data = load_dataset(str(self.output))
        assert isinstance(data, DatasetDict)
        return data


@_with_fields_of(ExtractionSettings)
def extract(settings: ExtractionSettings) -> Extracted:
    """Write the features of images as a data set, as `radio extract`.

    Raises:
        ValueError: If settings, checkpoint or data do not fit, or `output` holds another extraction.
        WriteError: If something cannot be written.
    """
    from modeling_radio.extraction.extract import run

    return Extracted(settings.checkpoint, settings.output, run(settings)[0])


@_with_fields_of(PredictSettings)
def predict(settings: PredictSettings) -> Predicted:
    """Write the answers of a tuned model for images, as `radio predict`.

    Raises:
        ValueError: If settings, checkpoint or data do not fit, or `output` holds other answers.
        UserError: If another run is at work in `output`.
        WriteError: If something cannot be written.
    """
    from modeling_radio.prediction.predict import run

    return run(settings)


@_with_fields_of(LabelSettings)
def label(settings: LabelSettings) -> Predicted:
    """Write boxes and masks of words in images as labels that `finetune` reads, as `radio label`.

    Raises:
        ValueError: If settings, checkpoint or data do not fit, or `output` holds other labels.
        UserError: If another run is at work in `output`.
        WriteError: If something cannot be written.
    """
    from modeling_radio.prediction.label import run

    return run(settings)


@_with_fields_of(SearchSettings)
def search(settings: SearchSettings) -> list[Hit]:
    """Find the images most similar to an image or a text, the best first, as `radio search`.

    Raises:
        ValueError: If settings, data set, checkpoint or query do not fit.
        WriteError: If the page cannot be written.
    """
    from modeling_radio.extraction.search import run

    return run(settings)


def _open_backbone(checkpoint: Path) -> RadioModel:
    from modeling_radio.core.opening import open_model

    return open_model(checkpoint, device="cpu", dtype=None, as_backbone=True).backbone
