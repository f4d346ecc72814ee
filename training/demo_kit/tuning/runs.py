"""The runs of the comparison, each in a process of its own, so that its memory is its own."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from filelock import FileLock
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_NAME
from transformers.utils import logging as transformers_logging

from foundation.files import write_folder
from foundation.machine.memory import peak_memory_mb
from foundation.machine.timing import Clock
from modeling_radio import RadioConfig, RadioForZeroShotImageClassification, RadioModel
from training.demo_kit.tuning.experiments import EXPERIMENTS, Arm, Experiment, arms_of
from training.demo_kit.tuning.raw_results import (
    RawResultError,
    TuningResult,
    load_results,
    result_path,
    save_result,
    slug,
)
from training.demo_kit.tuning.saved import measure_training_images
from training.demo_kit.tuning.teacher_probe import probe_teacher
from training.evaluation.provenance import describe_run
from training.finetuning.run import FINAL, RESULTS, FinetuningRun
from training.finetuning.settings import FinetuneSettings


PLACES = ("checkpoint", "data", "output", "num_workers", "seed")
"""Settings that decide nothing, or are said elsewhere."""
LOCK = ".lock"
DIGEST_LENGTH = 12


@dataclass(frozen=True)
class Grid:
    """Where the comparison takes place.

    Attributes:
        checkpoint: Folder of the student.
        words: Folder of the student with words.
        output: Folder of the runs.
        results: Folder of the raw results.
    """

    checkpoint: Path
    words: Path
    output: Path
    results: Path

    def settings(self, name: str, arm_name: str, seed: int) -> FinetuneSettings:
        """Return the settings of a run.

        Args:
            name: Of `EXPERIMENTS`.
            arm_name: Of `arms_of` that experiment.
            seed: Of the run.
        """
        experiment = EXPERIMENTS[name]
        arm = arms_of(experiment)[arm_name]
        height, _ = arm.options.get("size", (experiment.size, experiment.size))
        fewer = "" if arm.every == 1 else f"-every-{arm.every}"
        return experiment.settings(
            seed,
            checkpoint=str(self._checkpoint(name, arm, seed)),
            data=str(self.output / name / f"data-{seed}-{height}{fewer}"),
            output=self.output / name / f"{slug(arm_name)}-{seed}",
            **arm.options,
        )

    def _checkpoint(self, name: str, arm: Arm, seed: int) -> Path:
        if arm.is_random:
            return self.output / "random" / f"{'words' if EXPERIMENTS[name].has_words else 'seed'}-{seed}"
        if arm.after is not None:
            return self.output / name / f"{slug(arm.after)}-{seed}" / FINAL
        return self._student_folder(EXPERIMENTS[name])

    def _student_folder(self, experiment: Experiment) -> Path:
        return self.words if experiment.has_words else self.checkpoint

    def student(self, name: str) -> dict[str, Any]:
        """Return what tells an experiment's student apart from others: its shape, a part of the weights' digest."""
        folder = self._student_folder(EXPERIMENTS[name])
        config = RadioConfig.from_pretrained(folder)
        shape = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size")
        weights = (folder / SAFE_WEIGHTS_NAME).read_bytes()
        digest = hashlib.sha256(weights).hexdigest()[:DIGEST_LENGTH]
        return {**{name: getattr(config, name) for name in shape}, "weights": digest}

    def missing(self, names: Sequence[str], arms: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, str, int]]:
        """Return the runs without a raw result, those of one seed together, what others go on with first.

        Args:
            names: Tasks.
            arms: Ways of tuning; of none of them, all that a task has for a seed.
            seeds: Seeds.

        Raises:
            RawResultError: If a raw result is damaged, or of other settings.
        """
        missing = []
        for seed in seeds:
            for name in names:
                done, experiment = load_results(self.results, name), EXPERIMENTS[name]
                planned = [arm for arm in arms_of(experiment) if seed == 0 or arm not in experiment.seed_0_alone]
                for arm in [arm for arm in arms_of(experiment) if arm in (arms or planned)]:
                    if (arm, seed) not in done:
                        missing.append((name, arm, seed))
                    elif _decisive_of(FinetuneSettings.with_newer(done[arm, seed].settings)) != self._decisive(
                        name, arm, seed
                    ):
                        path = result_path(self.results, name, arm, seed)
                        raise RawResultError(f"{str(path)!r} is of other settings. Delete it to run it again.")
        return missing

    def _decisive(self, name: str, arm: str, seed: int) -> dict[str, Any]:
        return _decisive_of(json.loads(json.dumps(self.settings(name, arm, seed).to_dict())))

    def run(self, name: str, arm_name: str, seed: int) -> None:
        """Make one run and write its raw result."""
        experiment, settings = EXPERIMENTS[name], self.settings(name, arm_name, seed)
        arm = arms_of(experiment)[arm_name]
        if arm.after is not None and not Path(settings.checkpoint).is_dir():
            self.run(name, arm.after, seed)
        self.prepare(name, arm_name, seed)
        clock = Clock(report=lambda line: None)
        with clock.phase("run"):
            if arm.teacher is not None:
                found = probe_teacher(arm.teacher, settings)
            else:
                FinetuningRun(settings).run()
                found = json.loads((settings.output / RESULTS).read_text())
        memory_mb = peak_memory_mb()
        with clock.phase("training images"):
            training_metrics = {} if arm.teacher is not None else measure_training_images(settings)
        command = "python -m training.demo_kit.finetune_grid"
        save_result(
            self.results,
            TuningResult(
                name,
                arm_name,
                seed,
                self.student(name),
                self._decisive(name, arm_name, seed),
                found["metrics"],
                training_metrics,
                found["trainable_parameters"],
                found["parameters"],
                found["seconds"],
                memory_mb,
                describe_run(command, clock),
            ),
        )

    def prepare(self, name: str, arm_name: str, seed: int) -> None:
        """Write a run's images and random weights if they are not there yet."""
        experiment, settings = EXPERIMENTS[name], self.settings(name, arm_name, seed)
        arm = arms_of(experiment)[arm_name]
        Path(settings.data).parent.mkdir(parents=True, exist_ok=True)
        with FileLock(settings.data + LOCK):  # runs side by side share them
            experiment.write_data(settings, arm.every)
        if arm.is_random:
            folder = Path(settings.checkpoint)
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}{LOCK}"):
                if not folder.is_dir():
                    torch.manual_seed(settings.seed)
                    write_folder(folder, self._write_random_words if experiment.has_words else self._write_random)

    def _write_random(self, folder: Path) -> None:
        RadioModel(RadioConfig.from_pretrained(self.checkpoint).without_adaptors()).save_pretrained(folder)

    def _write_random_words(self, folder: Path) -> None:
        """Write random weights beside the student's text tower, which stays."""
        model = RadioForZeroShotImageClassification.from_pretrained(self.words)
        model.radio_model.load_state_dict(RadioModel(model.config).radio_model.state_dict())
        model.save_pretrained(folder)
        cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(self.words)).save_pretrained(folder)


def _decisive_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in PLACES}


def _prepare_process() -> None:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # what it cannot download
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()


def run_grid(grid: Grid, runs: Sequence[tuple[str, str, int]], jobs: int) -> Iterator[tuple[str, str, int]]:
    """Make runs, each in a process of its own with one thread, and yield each that is done.

    Args:
        grid: Where.
        runs: Task, arm and seed of each, as `Grid.missing` returns them.
        jobs: How many side by side.
    """
    # Those that go on with another one wait until all others are done.
    later = [run for run in runs if arms_of(EXPERIMENTS[run[0]])[run[1]].after is not None]
    context = multiprocessing.get_context("spawn")
    # Images are written by processes that make no run, whose memory would count them.
    writers = {grid.settings(*run).data: run for run in runs}
    with context.Pool(jobs, _prepare_process, maxtasksperchild=1) as pool:
        pool.map(partial(_prepare_one, grid), writers.values(), chunksize=1)
    for part in ([run for run in runs if run not in later], later):
        with context.Pool(jobs, _prepare_process, maxtasksperchild=1) as pool:
            yield from pool.imap_unordered(partial(_run_one, grid), part, chunksize=1)


def _prepare_one(grid: Grid, run: tuple[str, str, int]) -> None:
    grid.prepare(*run)


def _run_one(grid: Grid, run: tuple[str, str, int]) -> tuple[str, str, int]:
    grid.run(*run)
    return run
