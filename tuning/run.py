"""One fine-tuning run from settings to a folder: data, model, training, saving."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import torch
from accelerate.utils import DynamoBackend, TorchDynamoPlugin, parse_flag_from_env
from torch import Tensor
from transformers import EarlyStoppingCallback, TrainingArguments, set_seed
from transformers.utils import logging as transformers_logging

from modeling_radio.checks_radio import read_json
from modeling_radio.core.files import check_run_folder, remove_partial, sole_run, write_text
from modeling_radio.core.ids import EXAMPLES, FINAL, MERGED, PICTURES
from modeling_radio.core.ranks import dead_ranks_named, fsdp_plugin, joining, on_first_rank, runs_on_cpu
from modeling_radio.core.timing import Clock
from modeling_radio.data.arrays import AS_ARRAYS
from modeling_radio.data.labeled.images import load_images
from modeling_radio.image_processing_radio import RadioImageProcessor
from modeling_radio.tuning.adapters import merge_adapter, save_adapter
from modeling_radio.tuning.channels import check_widening
from modeling_radio.tuning.error_analysis import draw_examination, fit_thresholds, gather_evidence, save_images
from modeling_radio.tuning.linear_head import fit_head, linear_head
from modeling_radio.tuning.models import (
    build_model,
    build_task_model,
    check_network,
    computes_in_bfloat16,
    configure,
    count_parameters,
    open_config,
    save_plain,
)
from modeling_radio.tuning.record import TuningRecord, record_run
from modeling_radio.tuning.settings import SETTINGS, FinetuneSettings
from modeling_radio.tuning.tasks import find_task
from modeling_radio.tuning.tasks.base import TableExamples, build_examples, training_images
from modeling_radio.tuning.trainer import (
    FinetuningTrainer,
    batch_norms,
    diverged,
    ends_run,
    last_checkpoint,
    learning_rates,
    sealed_checkpoints,
    trains_backbone,
)


RESULTS = "results.json"
NAME = "radio finetune"
NOT_DECISIVE = ("output", "merge", "device")
"""Settings that may differ between the sessions of a run."""
OF_STEPS = (
    "epochs",
    "steps",
    "accumulation",
    "learning_rate",
    "head_learning_rate",
    "weight_decay",
    "patience",
    "augment",
)
"""Settings without effect where a linear head is solved."""
KEPT_CHECKPOINTS = 2  # the best and the last
LOGGING_STEPS = 10  # our choice
WARMUP_SHARE = 0.1  # of the steps; our choice, a usual one


class FinetuningRun:
    """A run, built and checked; `run` trains.

    An interrupted run goes on with the same settings.

    Args:
        settings: Settings of the run.

    Raises:
        ValueError: If checkpoint, data or settings do not fit, or `output` holds a run with other settings.
    """

    def __init__(self, settings: FinetuneSettings):
        task_class = find_task(settings.task)
        task_class.check_settings(settings)
        checkpoint_config = open_config(settings.checkpoint)
        height, width = settings.size or checkpoint_config.preferred_resolution
        checkpoint_config.check_resolution(height, width, argument="size")
        check_network(checkpoint_config, settings)
        check_widening(settings, checkpoint_config)
        self.settings = settings.replace(size=(height, width))
        self._check_output()
        _check_launch(settings)
        with joining():  # so that one of the processes reports
            self.arguments = training_arguments(self.settings)
        if self.arguments.n_gpu > 1:
            # `Trainer` would use `nn.DataParallel`, which cuts every tensor along its first dimension, also the objects
            # of an image and the classes of a text tower, and multiplies the batch.
            self._report(f"One of {self.arguments.n_gpu} GPUs is used: start with `accelerate launch` to use all.")
            self.arguments._n_gpu = 1
        images = load_images(self.settings, task_class.targets)
        self._report(images.remark)
        self.task = task_class.for_labels(images.problem_type)(self.settings, images)
        self.config = configure(checkpoint_config, self.task)
        options = {} if settings.num_channels is None else AS_ARRAYS
        self.processor = RadioImageProcessor.from_model_config(
            self.config, size={"height": height, "width": width}, **options
        )
        transformers_logging.disable_progress_bar()  # models load in no time
        set_seed(self.settings.seed)
        self.model = build_model(self.config, self.task, self._report)
        self.num_trained, self.num_parameters = trained, total = count_parameters(self.model)
        self.linear_head = linear_head(self.model, self.task)
        self.learning_rates = backbone, head = learning_rates(
            self.settings,
            self.config,
            has_batch_norms=bool(batch_norms(self.model)),
            is_solved=self.linear_head is not None,
        )
        self.is_solved = self.linear_head is not None and not trains_backbone(self.model)
        rates = f"head {head:.2g}"
        if settings.tune != "head":
            rates = f"{'backbone' if settings.tune == 'full' else 'adapters'} {backbone:.2g}, {rates}"
        share = f"{trained:,} of {total:,} parameters ({trained / total:.2%})"
        if self.is_solved:
            fields = FinetuneSettings.model_fields
            unused = [f"`{name}`" for name in OF_STEPS if getattr(settings, name) != fields[name].default]
            ignored = f" It takes no steps: {', '.join(unused)} cannot change it." if unused else ""
            self._report(f"Solving the linear head, {share}, on frozen features.{ignored}")
        else:
            self._report(f"Training {share}; peaks of the learning rate: {rates}.")
        self.trainer = self._build_trainer()

    def run(self) -> dict[str, float]:
        """Train, keep the best state, save it and return its metrics on the validation set.

        Raises:
            CheckpointError: If all checkpoints are damaged.
            TrainingDivergedError: If numbers are not finite.
            UserError: If another run is at work in `output`, or another process of this run has ended.
            WriteError: If something cannot be written.
        """
        with dead_ranks_named(), sole_run(self.settings.output, NAME):
            return self._train_and_save()

    def _train_and_save(self) -> dict[str, float]:
        output, clock = self.settings.output, Clock(self._report)
        checkpoint = on_first_rank(self._prepare_output)
        if checkpoint is not None and ends_run(checkpoint):
            self._report(
                f"This run has ended before: its best state is measured and saved again, from {str(output)!r}."
            )
            self.arguments.max_steps, self.arguments.num_train_epochs = -1, 0  # not a step more
        with clock.phase("training"):
            self.train(checkpoint)
            self.trainer.evaluate()
        metrics = self.trainer.metrics.latest
        with clock.phase("examination"):
            examined = {**self._compare(metrics), **self._examine()}
        weights = self.trainer.accelerator.get_state_dict(self.trainer.model_wrapped)  # gathered from all ranks
        if self.trainer.is_world_process_zero():
            record = record_run(self.task, metrics, clock, self.trainer.seconds_before)
            with clock.phase("saving"):
                self.save(weights, record)
            results = {
                "metrics": metrics,
                **examined,
                "trainable_parameters": self.num_trained,
                "parameters": self.num_parameters,
                "seconds": self.trainer.seconds_before + clock.seconds["training"] + clock.seconds["saving"],
            }
            write_text(output / RESULTS, json.dumps(results, indent=2) + "\n")
        return metrics

    def train(self, checkpoint: str | None) -> None:
        """Solve a linear head, and train what is not solved.

        Args:
            checkpoint: The checkpoint to go on from, whose head started from the solved one; `None` for a new run.
        """
        if self.linear_head is not None and checkpoint is None:
            self.trainer.baselines.scores = fit_head(self.trainer, self.linear_head)
            self.arguments.eval_on_start = True
        if self.is_solved:
            self.arguments.max_steps, self.arguments.num_train_epochs = -1, 0
        self.trainer.train(resume_from_checkpoint=checkpoint)

    def _compare(self, metrics: dict[str, float]) -> dict[str, Any]:
        """Print and return the metrics on training images, and the scores of what needs no tuning."""
        trainer, images, best = self.trainer, self.task.images, self.task.best_metric
        baselines = dict(trainer.baselines.scores)
        of_training = baselines.pop("linear_head_on_training_images", None)
        trained: dict[str, float] = {best: of_training} if of_training is not None and self.is_solved else {}
        if not trained and images.stream is None:
            trained = trainer.measure_training(training_images(self.task, len(images.validation)))
        lines = {"training images": trained.get(best), **baselines}
        shown = [f"{name.replace('_', ' ')} {value:.4f}" for name, value in lines.items() if value is not None]
        if shown:
            self._report(f"{best} {metrics[best]:.4f}; beside it: {', '.join(shown)}.")
        if self.linear_head is not None and trainer.state.global_step and trainer.state.best_global_step == 0:
            self._report("No step was better than the linear head on the frozen features: that head is kept.")
        return {"training_metrics": trained, "baselines": baselines}

    def _examine(self) -> dict[str, Any]:
        """Draw the errors of the best state, and return thresholds of classes, which its configuration gets, too."""
        model, examples = self.trainer.model, self.trainer.eval_dataset
        assert model is not None
        assert isinstance(examples, TableExamples)
        with self.trainer.compute_loss_context_manager():
            evidence = gather_evidence(self.task, model, examples)
            draw_examination(self.task, model, examples, evidence, self.settings.output / PICTURES)
            if self.trainer.is_world_process_zero():
                save_images(examples, self.settings.output / PICTURES / EXAMPLES)
        fitted = fit_thresholds(self.task, evidence)
        if fitted:
            of_model: Any = self.trainer.accelerator.unwrap_model(model).config
            for config in (self.config, of_model):
                config.score_thresholds = list(fitted["thresholds"].values())
        return fitted

    def save(self, weights: dict[str, Tensor], record: TuningRecord) -> None:
        """Write `final`, an adapter or a plain folder, and with `merge` the merged model.

        Args:
            weights: All weights, gathered.
            record: Facts about the run for the cards of these folders.

        Raises:
            TrainingDivergedError: If a trained weight is not finite.
        """
        settings, final = self.settings, self.settings.output / FINAL
        model: Any = self.trainer.accelerator.unwrap_model(self.trainer.model)
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad and name in weights]
        broken = [name for name in trained if not weights[name].isfinite().all()]
        if broken:
            raise diverged(f"{len(broken)} of {len(trained)} trained weights are not finite, such as {broken[0]}")
        extras = [*self.task.extras(), record]
        if not settings.uses_adapter:
            save_plain(model, self.processor, final, weights, extras)
            return
        save_adapter(model, self.processor, final, settings.checkpoint, weights, extras)
        if settings.merge:
            base = build_task_model(self.task, settings.checkpoint, config=self.config, dtype=torch.float32)
            merged = merge_adapter(base, final)
            save_plain(merged, self.processor, settings.output / MERGED, extras=extras)

    def _report(self, line: str) -> None:
        """Print a line once, however many processes there are."""
        if self.arguments.process_index == 0:
            print(line, flush=True)

    def _check_output(self) -> None:
        output = self.settings.output
        check_run_folder(output, NAME)
        path = output / SETTINGS
        if not path.is_file() or not (sealed_checkpoints(output) or (output / RESULTS).is_file()):
            return
        try:
            before = FinetuneSettings.with_newer(read_json(path))
        except ValueError as error:
            raise ValueError(f"{error} Restore it from a copy, or give another --output.") from error
        now = self.settings.to_dict()
        changed = [name for name in now if name not in NOT_DECISIVE and before.get(name) != now[name]]
        if changed:
            raise ValueError(
                f"`output` {str(output)!r} holds a run with another {', '.join(changed)}: choose another "
                "folder, or remove that one."
            )

    def _prepare_output(self) -> str | None:
        """Remove leftovers of a killed run in the folder, and return the checkpoint to go on from."""
        output = self.settings.output
        for folder in (output, output / PICTURES):
            remove_partial(folder)
        checkpoint = last_checkpoint(output)
        self.settings.save(output / SETTINGS)
        return checkpoint

    def _build_trainer(self) -> FinetuningTrainer:
        settings = self.settings
        # Known only now: labels decide the kind of classification, and the model's width its learning rate.
        self.arguments.learning_rate = self.learning_rates[0]
        self.arguments.metric_for_best_model = self.task.best_metric
        self.arguments.greater_is_better = self.task.greater_is_better
        trainer = FinetuningTrainer(
            task=self.task,
            learning_rates=self.learning_rates,
            layer_decay=settings.layer_decay,
            figures=settings.output / PICTURES,
            model=self.model,
            args=self.arguments,
            train_dataset=build_examples(self.task, is_training=True),
            eval_dataset=build_examples(self.task, is_training=False),
            data_collator=self.task.collate,
        )
        if settings.patience is not None:
            trainer.add_callback(EarlyStoppingCallback(settings.patience))
        return trainer


def training_arguments(settings: FinetuneSettings) -> TrainingArguments:
    """Return the options of transformers' `Trainer`."""
    strategy = "epoch" if settings.evaluate_every is None else "steps"
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    task = find_task(settings.task)
    # transformers is renaming the option; the old name warns where the new one exists.
    checkpointing = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    renamed: dict[str, Any] = {checkpointing: settings.gradient_checkpointing}
    return TrainingArguments(
        output_dir=str(settings.output),
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        num_train_epochs=settings.epochs,
        max_steps=settings.steps or -1,
        lr_scheduler_type="cosine",
        warmup_steps=WARMUP_SHARE,  # below 1 it is a share of all steps
        weight_decay=settings.weight_decay,
        max_grad_norm=task.max_grad_norm,
        bf16=computes_in_bfloat16(settings),
        eval_strategy=strategy,
        eval_steps=settings.evaluate_every,
        save_strategy=strategy,
        save_steps=settings.evaluate_every or 500,
        save_total_limit=KEPT_CHECKPOINTS,
        load_best_model_at_end=True,
        restore_callback_states_from_checkpoint=True,  # among them the patience
        batch_eval_metrics=True,
        logging_steps=LOGGING_STEPS,
        logging_nan_inf_filter=False,  # values that are not finite end the run
        report_to=["tensorboard"],
        remove_unused_columns=False,
        dataloader_num_workers=settings.num_workers,
        seed=settings.seed,
        use_cpu=runs_on_cpu(settings.device),
        **renamed,
    )


def _check_launch(settings: FinetuneSettings) -> None:
    """Refuse DeepSpeed, FSDP 1, FSDP with quantization, and models compiled as a whole."""
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        raise ValueError("DeepSpeed is not supported: launch with DDP or FSDP, as in training/accelerate_configs.")
    if TorchDynamoPlugin().backend != DynamoBackend.NO:
        raise ValueError(
            "`dynamo_backend` of Accelerate, which compiles the whole model, is not supported: leave it out."
        )
    if fsdp_plugin() is not None and settings.quantize is not None:
        raise ValueError(
            f"`quantize` {settings.quantize} is not supported with FSDP: launch with DDP, or leave it out."
        )
