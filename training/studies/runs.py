"""The runs of a study: those that have no raw result yet, one after the other or several side by side."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from core.errors import UserError
from core.files import hash_file
from core.interruption import StopRequest, TrainingDivergedError, prepare_stoppable, run_stoppable
from core.settings import hash_of
from core.timing import Clock
from modeling_radio import RadioModel
from training.distillation.stages import run_recipe
from training.evaluation.provenance import describe_run
from training.recipe import Recipe, RecipeError, decisive_part
from training.studies.held_out import HeldOut
from training.studies.raw_results import RunResult, add_run, claim, load_results
from training.studies.study import SUMMARY, WORST, OpenedStudy, open_study
from training.teachers.featsharp import load_upsampler


POLL_SECONDS = 1.0
"""How long Ctrl-C may wait while runs stand side by side; our choice."""


@dataclass
class Runner:
    """Runs of a study in one process.

    Attributes:
        opened: The study.
        held_out: What all runs are measured on.
        output: Folder of the runs, each `ARM/seed-N`.
    """

    opened: OpenedStudy
    held_out: HeldOut
    output: Path

    def run(self, arm: str, seed: int) -> None:
        """Distill a student, go on with it or take it as it is, measure it, and add its raw result.

        The result of a run that diverges is that it did.

        Raises:
            Interrupted: If it was asked to stop, with a checkpoint.
        """
        folder, recipe = self.output / arm / f"seed-{seed}", self.opened.recipe(arm, seed)
        clock, failure = Clock(report=lambda line: None), ""
        try:
            with clock.phase("distil"):
                checkpoint = run_recipe(recipe, folder)
            assert checkpoint is not None  # only a run that was told to stop early has none
            with clock.phase("measure"):
                sums, numbers = self.held_out.measure(RadioModel.from_pretrained(checkpoint), recipe)
        except TrainingDivergedError as error:
            sums, numbers, failure = {}, {}, str(error)
        result = RunResult(
            arm,
            seed,
            decisive_part(recipe.to_dict()),
            sums,
            numbers,
            describe_run(f"python -m training.studies {self.opened.name}", clock),
            failure,
            hash_folders(recipe),
        )
        add_run(self.opened.raw_results, result)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # the student itself stays


def run_study(opened: OpenedStudy, output: Path, num_jobs: int) -> None:
    """Make the runs that have no raw result yet, all arms of the first seed, then of the next.

    Args:
        opened: The study.
        output: Folder of the runs; what was stopped there goes on.
        num_jobs: Runs side by side, each in a process of its own with one thread.

    Raises:
        RecipeError: If raw results that are there are of other recipes or images.
        Interrupted: If it was asked to stop; the same command goes on.
    """
    missing = missing_runs(opened)
    if not missing:
        return
    for arm, _ in missing:
        _check_sources(arm, opened.recipes[arm])  # now, not hours later when its turn comes
    _check_folders(opened)
    held_out = HeldOut.load(opened)
    references = held_out.references()
    _check_primary(opened.study.primary, [name for name in references.weights if name.startswith(SUMMARY)])
    claim(opened.raw_results, references)
    bar = tqdm(total=len(missing), desc=opened.name, unit="run")
    with bar:
        if num_jobs == 1:
            runner = Runner(opened, held_out, output)
            for arm, seed in missing:
                runner.run(arm, seed)
                bar.update()
        else:
            for _ in _run_side_by_side(opened, output, missing, num_jobs):
                bar.update()


def _check_sources(arm: str, recipe: Recipe) -> None:
    """Refuse a teacher from a folder that is not there, and an upsampler that cannot be opened."""
    for entry in recipe.teachers:
        if entry.upsampler is not None:
            try:
                load_upsampler(entry.upsampler)
            except ValueError as error:
                raise RecipeError(f"`teachers.{entry.name}` of arm {arm!r}: {error}") from error
        is_repository = entry.source is None or re.fullmatch(r"[\w.-]+(/[\w.-]+)?", entry.source) is not None
        if not is_repository and not Path(str(entry.source)).is_dir():
            raise RecipeError(
                f"`teachers.{entry.name}.source` of arm {arm!r} must be a folder that is there, got {entry.source!r}. "
                "Make it first; the study's file says what it is."
            )


def _check_folders(opened: OpenedStudy) -> None:
    """Refuse weights in a folder that are not those which a result learned from, before anything runs."""
    now = {name: weights for recipe in opened.recipes.values() for name, weights in hash_folders(recipe).items()}
    results = load_results(opened) if now else None
    learned_from = [] if results is None else [run.folders for run in results.results.values()]
    for name, weights in now.items():
        if any(folders.get(name, weights) != weights for folders in learned_from):
            raise RecipeError(
                f"{name!r} must have the weights that results in {str(opened.raw_results)!r} learned from, got others. "
                "Bring them back, or delete that file to run all of it with these."
            )


def hash_folders(recipe: Recipe) -> dict[str, str]:
    """Return by path a hash of the weights in each folder that a recipe names: a student, an upsampler, a start."""
    paths = [path for entry in recipe.teachers for path in (entry.source, entry.upsampler)]
    named = {str(path) for path in (*paths, recipe.student.init_from) if path is not None}
    weights = {name: sorted(Path(name).expanduser().glob("*.safetensors")) for name in sorted(named)}
    return {name: hash_of({path.name: hash_file(path) for path in files}) for name, files in weights.items() if files}


def _check_primary(primary: str, of_summaries: list[str]) -> None:
    """Refuse a primary measure of a summary that its teacher does not have."""
    known = [*of_summaries, *([f"{SUMMARY}/{WORST}"] if of_summaries else [])]
    if primary.startswith(SUMMARY) and primary not in known:
        raise RecipeError(f"`primary` {primary!r} is of a teacher without a summary. Measures of summaries: {known}.")


def missing_runs(opened: OpenedStudy) -> list[tuple[str, int]]:
    """Return arms and seeds without a raw result, those of one seed together.

    Raises:
        RecipeError: If raw results that are there are of other recipes or images.
    """
    results = load_results(opened)
    done = {} if results is None else results.results
    return [(arm, seed) for seed in opened.study.seeds for arm in opened.recipes if (arm, seed) not in done]


_runner: Runner | None = None
"""Of a process of its own."""


def _prepare(source: str, study_seeds: list[int], output: Path, start_method: str) -> None:
    """Set a process up: with one thread, and deaf to Ctrl-C in the terminal, which the first process passes on."""
    global _runner
    os.setsid()
    # Else data workers would be started as this process was, which takes seconds and a copy of all images.
    multiprocessing.set_start_method(start_method, force=True)
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    opened = with_seeds(open_study(source), study_seeds)
    _runner = Runner(opened, HeldOut.load(opened), output)


def _run(arm: str, seed: int) -> None:
    assert _runner is not None  # `_prepare` came first
    _runner.run(arm, seed)


def with_seeds(opened: OpenedStudy, seeds: list[int]) -> OpenedStudy:
    """Return a study with other seeds."""
    return opened._replace(study=opened.study.replace(seeds=seeds))


def _run_side_by_side(
    opened: OpenedStudy, output: Path, missing: list[tuple[str, int]], num_jobs: int
) -> Iterator[None]:
    """Yield once for each run that is done."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(
        min(num_jobs, len(missing)),
        context,
        prepare_stoppable,
        (stop, _prepare, opened.source, opened.study.seeds, output, multiprocessing.get_start_method()),
    )
    left = iter(missing)
    with StopRequest() as request, pool:
        # No run waits in the pool: after a stop none must begin.
        running = {pool.submit(run_stoppable, _run, *run) for run in itertools.islice(left, num_jobs)}
        try:
            while running:
                done, running = wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                    yield
                if request.is_set:
                    raise request.interrupted("Stopped: the same command goes on.")
                running |= {pool.submit(run_stoppable, _run, *run) for run in itertools.islice(left, len(done))}
        except BrokenProcessPool as error:
            raise UserError(
                "A run was killed by the system, most often for want of memory. The same command goes on; with a lower "
                "`--jobs` it needs less."
            ) from error
        except BaseException:
            stop.set()
            for process in multiprocessing.active_children():
                process.terminate()  # a run writes a checkpoint, and ends; the pool waits for it
            raise
