"""transformers' `Trainer` with learning rates by depth, frozen parts in evaluation mode, and figures."""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalPrediction

from modeling_radio import RadioConfig
from modeling_radio.core.files import WriteError, one_line_errors, scratch_folder, write_file, write_through
from modeling_radio.core.interruption import TrainingDivergedError
from modeling_radio.core.manifests import MANIFEST, CheckpointError, find_damage, write_manifest
from modeling_radio.core.ranks import any_rank, fsdp_plugin, mean_over_ranks, wait_for_ranks
from modeling_radio.modeling_radio import ADAPTORS, RadioNetwork
from modeling_radio.training.student.parameters import decayed_parameters
from modeling_radio.tuning.adapters import BACKBONE
from modeling_radio.tuning.error_analysis import draw_predictions, predict_examples
from modeling_radio.tuning.models import TRUNK
from modeling_radio.tuning.settings import FinetuneSettings
from modeling_radio.tuning.tasks import find_task
from modeling_radio.tuning.tasks.base import FinetuningTask, Score, StreamedExamples, TableExamples
from modeling_radio.wrapped_radio import WrappedTrunk


logger = logging.getLogger(__name__)

REFERENCE_WIDTH = 768
"""Channels of a ViT-B, the model of the tasks' learning rates."""

_BLOCK = re.compile(rf"{re.escape(TRUNK)}\.(?:blocks|levels)\.(\d+)\.")
_MERGING = re.compile(rf"{re.escape(TRUNK)}\.(?:downscale_blocks|prefix_proj_blocks)\.(\d+)\.")
_ABOVE_BLOCKS = re.compile(rf"{re.escape(TRUNK)}\.(?:norm|norm_post|attn_pool|decoder|high_res_neck)\.")


class SealCheckpoints(TrainerCallback):
    """Writes a manifest into each checkpoint after all ranks have written their parts and these are on the disk."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        wait_for_ranks()
        if state.is_world_process_zero:
            folder = _checkpoint_path(args, state.global_step)
            write_through(folder)
            write_manifest(folder)


class BestThatIsLeft(TrainerCallback):
    """Finds the best checkpoint in the run's folder, which may have been moved.

    If it was damaged and removed, the checkpoint from which the run goes on replaces it. `Trainer` would compare with
    the metric of the lost one, and save the last state in the end.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.best_metric is None:
            return
        best = _checkpoint_path(args, state.best_global_step)
        if best.is_dir():
            state.best_model_checkpoint = str(best)
            return
        name = f"eval_{args.metric_for_best_model}"
        found = [record for record in state.log_history if name in record and record["step"] == state.global_step]
        state.best_metric, state.best_global_step = (found[-1][name], state.global_step) if found else (None, None)
        state.best_model_checkpoint = str(_checkpoint_path(args, state.global_step)) if found else None


def _checkpoint_path(args: TrainingArguments, step: int | None) -> Path:
    return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def sealed_checkpoints(output: Path) -> list[Path]:
    """Return the checkpoints of a run that were written to their end, oldest first, whether intact or not."""
    return [path for path in _all_checkpoints(output) if (path / MANIFEST).is_file()]


def last_checkpoint(output: Path) -> str | None:
    """Return the newest intact checkpoint of a run, or None if the run has no checkpoint.

    Half written and half removed checkpoints of a killed run are removed, and damaged ones with a line in the log.

    Raises:
        CheckpointError: If all checkpoints are damaged. They stay as they are.
    """

    def remove(path: Path) -> None:
        with scratch_folder(output) as scratch:  # so that no half removed folder has the name of a checkpoint
            os.replace(path, scratch / path.name)

    sealed = sealed_checkpoints(output)
    for path in set(_all_checkpoints(output)).difference(sealed):
        remove(path)
    damages = {path: damage for path in sealed if (damage := find_damage(path)) is not None}
    intact = [path for path in sealed if path not in damages]
    if damages and not intact:
        raise CheckpointError.of_all(output, damages.values())
    for path, damage in damages.items():
        logger.warning("%s: %s is removed, and the run goes on from %s", damage, path.name, intact[-1].name)
        remove(path)
    return str(intact[-1]) if intact else None


def _all_checkpoints(output: Path) -> list[Path]:
    steps = {path: path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-") for path in output.glob("checkpoint-*")}
    found = [path for path, step in steps.items() if step.isdecimal() and path.is_dir()]
    return sorted(found, key=lambda path: int(steps[path]))


def ends_run(checkpoint: str | Path) -> bool:
    """Return whether a run ended with a checkpoint, after its last step or early, without a better metric.

    `Trainer` does not check it: it would go on training, by a step where the last one lies within an epoch, or for
    another time of patience.
    """
    state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
    callbacks: Any = state.stateful_callbacks  # those of a file are a dictionary
    control = callbacks.get(TrainerControl.__name__, {}).get("args", {})
    return state.global_step >= state.max_steps or control.get("should_training_stop", False)


class FinetuningTrainer(Trainer):
    """transformers' `Trainer` for a task model.

    Args:
        task: The task.
        learning_rates: Peaks of the backbone and of the head.
        layer_decay: Factor on the learning rate from each block to the one below it.
        figures: Folder of the figures.
        options: Options of `Trainer`.
    """

    def __init__(
        self,
        *,
        task: FinetuningTask,
        learning_rates: tuple[float, float],
        layer_decay: float,
        figures: Path,
        **options: Any,
    ):
        self.metrics = BatchMetrics(task.build_score())
        options |= {} if task.loss_function is None else {"compute_loss_func": task.loss_function}
        callbacks = [
            EpochOfExamples(),
            SealCheckpoints(),
            BestThatIsLeft(),
            LowerLossWins(),
            TrainingTime(),
            Baselines(),
        ]
        # pyrefly: ignore[bad-argument-type]  (`batch_eval_metrics` adds an argument to the call)
        super().__init__(compute_metrics=self.metrics, callbacks=callbacks, **options)
        self.task, self.learning_rates, self.layer_decay, self.figures = task, learning_rates, layer_decay, figures
        if self.pop_callback(ProgressCallback) is not None:  # a notebook has a table of its own
            self.add_callback(EvaluationTable(self.metrics))
        if self.is_fsdp_enabled:
            self.accelerator.state.fsdp_plugin = fsdp_plugin()

    @property
    def seconds_before(self) -> float:
        """Training time of the run before its last interruption, in seconds."""
        (timer,) = [each for each in self.callback_handler.callbacks if isinstance(each, TrainingTime)]
        return timer.seconds_before

    @property
    def baselines(self) -> Baselines:
        """Scores of what needs no tuning."""
        (found,) = [each for each in self.callback_handler.callbacks if isinstance(each, Baselines)]
        return found

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return AdamW (or the optimizer `args.optim`) over groups of one learning rate and weight decay each."""
        if self.optimizer is None:
            model = self.model if model is None else model
            assert model is not None
            groups = parameter_groups(model, self.learning_rates, self.layer_decay, self.args.weight_decay)
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def get_train_dataloader(self) -> DataLoader:
        """Return the training images in batches; the readers of a stream share it among the ranks themselves."""
        examples = self.train_dataset
        if not isinstance(examples, StreamedExamples):
            return super().get_train_dataloader()
        loader = DataLoader(
            examples,
            self.args.train_batch_size,
            collate_fn=self.data_collator,
            num_workers=min(self.args.dataloader_num_workers, examples.stream.num_readers),
            pin_memory=self.args.dataloader_pin_memory,
        )
        return prepare_data_loader(loader, self.args.device, num_processes=1, process_index=0, put_on_device=True)

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> AbstractContextManager:
        """Return autocast in the run's precision, also for sharded models, for which Accelerate leaves it out."""
        return self.accelerator.autocast()

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **options: Any) -> Any:
        """Return the loss, with frozen parts in evaluation mode, where random dropping and cropping are useless.

        The positions of a trained backbone are in evaluation mode, too: a run has one image size, and random crops of
        the table would only disturb.

        Raises:
            TrainingDivergedError: On all ranks, if the loss is not finite on one of them.
        """
        for part in frozen_parts(model):
            part.eval()
        when = f"in step {self.state.global_step + 1}" if model.training else f"after step {self.state.global_step}"
        try:
            result = super().compute_loss(model, dict(inputs), *args, **options)  # it may remove the labels
        except ValueError as error:  # transformers' loss of boxes cannot match boxes that are not finite
            if _has_finite_outputs(model, inputs):
                raise
            raise diverged(f"{when} the model's outputs are not finite") from error
        loss = result[0] if isinstance(result, tuple) else result
        if any_rank([~loss.isfinite().all()], loss.device)[0]:
            raise diverged(f"{when} the loss is {loss.mean().item()}")
        return result

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return loss, predictions and references of a batch; the base class pads their second axes over ranks."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        return loss.detach().mean(), *self.task.compare(outputs, inputs)

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        """Measure the validation set; before the first step (`eval_on_start`) also save a checkpoint.

        `Trainer` saves none there, and the run could not return to the head that it started from.
        """
        metrics = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        if self.state.global_step == 0:
            self._determine_best_metric(metrics, trial)
            self.state.best_model_checkpoint = str(_checkpoint_path(self.args, 0))
            self._save_checkpoint(self.model_wrapped, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        return metrics

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint; one that cannot be written is removed.

        Raises:
            WriteError: If it cannot be written.
        """
        path = _checkpoint_path(self.args, self.state.global_step)
        try:
            with one_line_errors(path):
                super()._save_checkpoint(model, trial)
        except WriteError:
            shutil.rmtree(path, ignore_errors=True)
            raise

    def measure_training(self, examples: TableExamples) -> dict[str, float]:
        """Return the metrics on training images that are not augmented."""
        latest = self.metrics.latest
        self.predict(examples, metric_key_prefix="train")
        measured, self.metrics.latest = self.metrics.latest, latest
        return measured

    def evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        """Measure the validation set and draw predictions beside the truth.

        Raises:
            ValueError: If the metric that chooses the best checkpoint cannot be measured.
        """
        model = self.model
        assert model is not None
        average_statistics(model)
        metrics = super().evaluate(*args, **options)
        best = self.metrics.latest.get(self.task.best_metric, math.nan)
        if not math.isfinite(best):
            raise ValueError(
                f"The metric `{self.task.best_metric}` of the validation images is {best}: no label counts. "
                "Hold out more images with `validation_share`, or mend the labels of the source's validation split."
            )
        assert isinstance(self.eval_dataset, TableExamples)
        # On every rank: a sharded model gathers its weights as it runs, and the loss of detection sums over all ranks.
        with self.compute_loss_context_manager():
            images, predictions, references = predict_examples(self.task, model, self.eval_dataset)
        if self.is_world_process_zero():
            figure = draw_predictions(self.task, images, references, {"prediction": predictions})
            write_file(self.figures / f"step-{self.state.global_step}.png", figure.savefig)
        return metrics


class BatchMetrics:
    """Metrics that are updated batch by batch, so that maps of a whole validation set need no memory.

    Attributes:
        latest: Metrics of the last whole evaluation.
    """

    def __init__(self, score: Score):
        self.score = score
        self.latest: dict[str, float] = {}

    def __call__(self, batch: EvalPrediction, compute_result: bool) -> dict[str, float]:
        """Add a gathered batch; return all metrics after the last one."""
        self.score.update(torch.as_tensor(batch.predictions).cpu(), torch.as_tensor(batch.label_ids).cpu())
        if not compute_result:
            return {}
        self.latest = {name: float(value) for name, value in self.score.compute().items()}
        self.score.reset()
        return dict(self.latest)


class LowerLossWins(TrainerCallback):
    """Makes the evaluation with the lowest loss the best of those with equally good metrics; it also ends no patience.

    `Trainer` keeps the first one: on a small validation set, where many are equal, a barely trained model.
    """

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        metrics: dict[str, float] = kwargs["metrics"]
        losses = [
            record["eval_loss"]
            for record in state.log_history
            if record.get("step") == state.best_global_step and "eval_loss" in record
        ]
        is_tie = metrics[f"eval_{args.metric_for_best_model}"] == state.best_metric
        if is_tie and losses and metrics["eval_loss"] < losses[0]:
            state.best_metric = None  # whatever follows is better than none, for `Trainer` and for its patience


class EvaluationTable(ProgressCallback):
    """Prints each evaluation as a line of a table, instead of `Trainer`'s dictionaries, above the bar of the steps.

    Args:
        metrics: The metrics of the evaluations.
    """

    def __init__(self, metrics: BatchMetrics):
        super().__init__()
        self.metrics = metrics
        self.columns: list[str] = []
        self._train_loss = math.nan

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._train_loss = (logs or {}).get("loss", self._train_loss)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        super().on_evaluate(args, state, control, **kwargs)
        if self.training_bar is None:  # of another rank, or after the training
            return
        measured = self.metrics.latest
        begun = {"step": str(state.global_step), "epoch": f"{state.epoch or 0:.2f}", "train loss": self._train_loss}
        self._train_loss = math.nan  # shown once: the next evaluation may come before the next logged step
        entries = {**begun, "loss": kwargs["metrics"]["eval_loss"], **measured}
        if not self.columns:
            self.columns = list(entries)
            self._write(self.columns)
        row = [entries.get(name, math.nan) for name in self.columns]
        best = [" best"] if is_better(kwargs["metrics"], args, state) else []
        self._write([*map(_cell, row), *best])

    def _write(self, entries: Sequence[str]) -> None:
        widths = [max(len(name), 6) for name in self.columns] + [0]
        assert self.training_bar is not None
        self.training_bar.write("  ".join(entry.rjust(width) for entry, width in zip(entries, widths, strict=False)))


def _cell(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.4f}" if math.isfinite(value) else "-"  # not measured, or no step is logged yet


def is_better(metrics: Mapping[str, float], args: TrainingArguments, state: TrainerState) -> bool:
    """Return whether an evaluation is better than all before it."""
    value, best = metrics[f"eval_{args.metric_for_best_model}"], state.best_metric
    return best is None or (value > best if args.greater_is_better else value < best)


class EpochOfExamples(TrainerCallback):
    """Sets the epoch of the training examples, on which augmentation depends."""

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        kwargs["train_dataloader"].dataset.epoch = int((state.epoch or 0) + 1e-6)


class Baselines(TrainerCallback, ExportableState):
    """Keeps the scores of what needs no tuning in each checkpoint.

    Args:
        scores: Values by name; empty where nothing was measured.
    """

    def __init__(self, scores: dict[str, float] | None = None):
        self.scores = scores or {}

    def state(self) -> dict[str, Any]:
        """Return the content for a checkpoint in the format of transformers."""
        return {"args": {"scores": self.scores}, "attributes": {}}


class TrainingTime(TrainerCallback, ExportableState):
    """Keeps the training time of the run over all interruptions in each checkpoint.

    Args:
        seconds_before: Training time of the checkpoint from which the run goes on.
    """

    def __init__(self, seconds_before: float = 0.0):
        self.seconds_before = seconds_before
        self._began = time.perf_counter()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._began = time.perf_counter()

    def state(self) -> dict[str, Any]:
        """Return the content for a checkpoint in the format of transformers."""
        seconds = self.seconds_before + time.perf_counter() - self._began
        return {"args": {"seconds_before": seconds}, "attributes": {}}


@torch.no_grad()
def _has_finite_outputs(model: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Return whether all outputs of a model without labels are finite."""
    outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
    return all(bool(value.isfinite().all()) for value in outputs.values() if isinstance(value, Tensor))


def diverged(what: str) -> TrainingDivergedError:
    """Return the error for values that are not finite; `what` names them."""
    return TrainingDivergedError(
        f"Training diverged: {what}. Nothing is exported, and the checkpoints from before are intact. Choose a lower "
        "`learning_rate` or `head_learning_rate`."
    )


def average_statistics(model: nn.Module) -> None:
    """Average the running statistics of all ranks, so that each rank measures the model that is saved."""
    norms = (module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    for statistic in (buffer for norm in norms for buffer in norm.buffers()):
        if statistic.is_floating_point():  # not the number of batches
            mean_over_ranks(statistic)


def trains_backbone(model: nn.Module) -> bool:
    """Return whether weights of the backbone, or adapters on it, are trained."""
    return any(parameter.requires_grad for parameter in _network_of(model).parameters())


def frozen_parts(model: nn.Module) -> list[nn.Module]:
    """Return the parts in evaluation mode: a backbone without trained weights, else its patch generator or batch norms.

    Batch norms keep the statistics of their many training images: the head was solved with these, and a small batch has
    others (docs/explanation/tuning_study.md). Their weights are trained.
    """
    network = _network_of(model)
    if not any(parameter.requires_grad for parameter in network.model.parameters()):
        return [network]
    norms = batch_norms(model)
    has_table = not network.config.is_foreign and network.config.navit is None
    return [*norms, network.model.patch_generator] if has_table else norms


def _network_of(model: nn.Module) -> RadioNetwork:
    return next(module for module in model.modules() if isinstance(module, RadioNetwork))


def learning_rates(
    settings: FinetuneSettings, config: RadioConfig, *, has_batch_norms: bool = False, is_solved: bool = False
) -> tuple[float, float]:
    """Return the peaks of the learning rate of the backbone (or its adapters) and of the head.

    Args:
        settings: Settings of the run; given rates are not scaled.
        config: Configuration of the run's model.
        has_batch_norms: Whether the backbone has batch norms, as convolutional networks do.
        is_solved: Whether the head starts from its optimum: it then learns no faster than the backbone.
    """
    backbone, head, task = settings.learning_rate, settings.head_learning_rate, find_task(settings.task)
    if backbone is None and has_batch_norms and task.convolutional_learning_rate is not None:
        backbone = task.convolutional_learning_rate
    elif backbone is None:
        backbone = task.adapter_learning_rate if settings.uses_adapter else task.full_learning_rate
        backbone = scaled_rate(backbone, config.hidden_size)
    if head is None and is_solved:
        head = backbone
    elif head is None:
        head = task.head_learning_rate
        head = scaled_rate(head, config.hidden_size) if task.has_linear_head(config) else head
    return backbone, head


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """Return the batch norms of the backbone."""
    return [module for module in _network_of(model).model.modules() if isinstance(module, nn.BatchNorm2d)]


def scaled_rate(rate: float, width: int) -> float:
    """Return the learning rate for matrices with `width` inputs that corresponds to `rate` in a ViT-B.

    Adam moves each weight by about the rate, whatever the gradient, and so the output of a matrix by the rate times the
    number of its inputs.

    References:
        Yang et al., Tensor Programs V, table 3. https://arxiv.org/abs/2203.03466
    """
    return rate * REFERENCE_WIDTH / width


def parameter_groups(
    model: nn.Module, learning_rates: tuple[float, float], layer_decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Return the trainable parameters in groups of equal learning rate and weight decay.

    Args:
        model: A task model, with or without adapters.
        learning_rates: Peaks of the backbone's last block and of the head.
        layer_decay: Factor from each block, of an E-RADIO from each level, to the one below it; positions, tokens and
            patch projection lie below the first block (BEiT, https://arxiv.org/abs/2106.08254).
        weight_decay: Weight decay of matrices; vectors, tokens and positions have none.
    """
    network, decayed = _network_of(model), decayed_parameters(model)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = learning_rates[1]
        if f"{BACKBONE}." in name and f"{ADAPTORS}." not in name:
            rate = learning_rates[0] * layer_decay ** _num_blocks_above(name, network)
        key = (rate, weight_decay if parameter in decayed else 0.0)
        group = groups.setdefault(key, {"params": [], "lr": key[0], "weight_decay": key[1]})
        group["params"].append(parameter)
    return list(groups.values())


def _num_blocks_above(name: str, network: RadioNetwork) -> int:
    """Return the number of blocks, of other networks levels, after the one that a weight of the backbone belongs to.

    It is 0 for the last norm, NaViT's pool, RADIO1D's decoder and E-RADIO's neck, which the head reads. A merging
    belongs to the block behind it, whose width it produces.
    """
    if isinstance(network.model, WrappedTrunk):
        return network.model.count_stages_above(name.partition(f"{TRUNK}.")[2])
    depth = len(network.blocks)
    if _ABOVE_BLOCKS.search(name):
        return 0
    if found := _BLOCK.search(name):
        return depth - 1 - int(found[1])
    if found := _MERGING.search(name):
        return depth - 1 - (network.config.downscale_levels or [])[int(found[1])]
    return depth
