"""Runs of a study that have no raw result yet, one after the other or several side by side."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from modeling_radio.core.errors import UserError
from modeling_radio.core.files import hash_file
from modeling_radio.core.interruption import StopRequest, TrainingDivergedError, prepare_stoppable, run_stoppable
from modeling_radio.core.opening import open_model
from modeling_radio.core.settings import hash_of
from modeling_radio.core.timing import Phase, WholeRun, describe_run
from modeling_radio.studies.held_out import HeldOut
from modeling_radio.studies.raw_results import RunResult, add_run, claim, load_results
from modeling_radio.studies.study import SUMMARY, WORST, OpenedStudy, open_study
from modeling_radio.training.distillation.stages import run_recipe
from modeling_radio.training.recipes.recipe import Recipe, RecipeError, decisive_part
from modeling_radio.training.teachers.featsharp import load_upsampler


PHASES = [Phase("distil", 100, "distill"), Phase("measure", 10, "measure")]
POLL_SECONDS = 1.0
"""Longest delay of Ctrl-C while runs stand side by side; our choice."""


def _make_run(opened: OpenedStudy, held_out: HeldOut, output: Path, device: str | None, arm: str, seed: int) -> None:
    """Distill a student, or resume it, measure it and add its raw result, also if it diverges.

    Raises:
        Interrupted: If it was asked to stop, with a checkpoint.
    """
    folder, recipe = output / arm / f"seed-{seed}", opened.recipe(arm, seed)
    failure = ""
    with WholeRun(PHASES, is_shown=False) as clock:  # runs side by side share a terminal
        try:
            with clock.phase("distil"):
                checkpoint = run_recipe(recipe, folder, device=device)
            assert checkpoint is not None  # only a run that was stopped early has none
            with clock.phase("measure"):
                sums, numbers = held_out.measure(open_model(checkpoint, device="cpu").backbone, recipe)
        except TrainingDivergedError as error:
            sums, numbers, failure = {}, {}, str(error)
    run, decisive = describe_run(f"radio study {opened.name}", clock), decisive_part(recipe.to_dict())
    result = RunResult(arm, seed, decisive, sums, numbers, run, failure, hash_folders(recipe))
    add_run(opened.raw_results, result)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # the student itself stays


def run_study(opened: OpenedStudy, output: Path, num_jobs: int, device: str | None = None) -> None:
    """Make the runs that have no raw result yet, all arms of the first seed, then of the next.

    Args:
        opened: The study.
        output: Folder of the runs, each `ARM/seed-N`; runs that were stopped there go on.
        num_jobs: Runs side by side, each in a process of its own with one thread.
        device: See `build_accelerator`; measured on the CPU.

    Raises:
        RecipeError: If existing raw results are of other recipes or images.
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
    primary, of_summaries = opened.study.primary, [name for name in references.weights if name.startswith(SUMMARY)]
    known = [*of_summaries, f"{SUMMARY}/{WORST}"] if of_summaries else []
    if primary.startswith(SUMMARY) and primary not in known:
        raise RecipeError(f"`primary` {primary!r} is of a teacher without a summary. Measures of summaries: {known}.")
    claim(opened.raw_results, references)
    with tqdm(total=len(missing), desc=opened.name, unit="run") as bar:
        if num_jobs == 1:
            for arm, seed in missing:
                _make_run(opened, held_out, output, device, arm, seed)
                bar.update()
        else:
            for _ in _run_side_by_side(opened, output, missing, num_jobs, device):
                bar.update()


def _check_sources(arm: str, recipe: Recipe) -> None:
    """Refuse a teacher whose folder does not exist, and an upsampler that cannot be opened."""
    for entry in recipe.teachers:
        if entry.upsampler is not None:
            try:
                load_upsampler(entry.upsampler)
            except ValueError as error:
                raise RecipeError(f"`teachers.{entry.name}` of arm {arm!r}: {error}") from error
        is_repository = entry.source is None or re.fullmatch(r"[\w.-]+(/[\w.-]+)?", entry.source) is not None
        if not is_repository and not Path(str(entry.source)).is_dir():
            raise RecipeError(
                f"`teachers.{entry.name}.source` of arm {arm!r} must be an existing folder, got {entry.source!r}. "
                "Make it first; the study's file tells how."
            )


def _check_folders(opened: OpenedStudy) -> None:
    """Refuse weights in a folder other than those that results learned from, before anything runs."""
    now = {name: weights for recipe in opened.recipes.values() for name, weights in hash_folders(recipe).items()}
    results = load_results(opened) if now else None
    done = {} if results is None else results.results
    for name, weights in now.items():
        if any(run.folders.get(name, weights) != weights for run in done.values()):
            raise RecipeError(
                f"{name!r} must have the weights that results in {str(opened.raw_results)!r} learned from, got others. "
                "Bring them back, or delete that file to run all of it with these."
            )


def hash_folders(recipe: Recipe) -> dict[str, str]:
    """Return a hash of the weights in the folders of a recipe: teachers, upsamplers, initial weights."""
    paths = [path for entry in recipe.teachers for path in (entry.source, entry.upsampler)]
    named = {str(path) for path in (*paths, recipe.student.init_from) if path is not None}
    weights = {name: sorted(Path(name).expanduser().glob("*.safetensors")) for name in sorted(named)}
    return {name: hash_of({path.name: hash_file(path) for path in files}) for name, files in weights.items() if files}


def missing_runs(opened: OpenedStudy) -> list[tuple[str, int]]:
    """Return arms and seeds without a raw result, those of one seed together.

    Raises:
        RecipeError: If existing raw results are of other recipes or images.
    """
    results = load_results(opened)
    done = {} if results is None else results.results
    return [(arm, seed) for seed in opened.study.seeds for arm in opened.recipes if (arm, seed) not in done]


_make_run_here: Callable[[str, int], None] | None = None
"""Makes a run in a process that `_prepare` set up."""


def _prepare(source: str, study_seeds: list[int], output: Path, start_method: str, device: str | None) -> None:
    """Set a process up: with one thread, and deaf to Ctrl-C in the terminal, which the first process passes on."""
    global _make_run_here
    if sys.platform != "win32":
        os.setsid()
    # With "spawn", as this process was started, data workers would take seconds and a copy of all images.
    multiprocessing.set_start_method(start_method, force=True)
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    opened = open_study(source).with_seeds(study_seeds)
    _make_run_here = partial(_make_run, opened, HeldOut.load(opened), output, device)


def _run(arm: str, seed: int) -> None:
    assert _make_run_here is not None  # `_prepare` came first
    _make_run_here(arm, seed)


def _run_side_by_side(
    opened: OpenedStudy, output: Path, missing: list[tuple[str, int]], num_jobs: int, device: str | None
) -> Iterator[None]:
    """Yield after each run."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(
        min(num_jobs, len(missing)),
        context,
        prepare_stoppable,
        (stop, _prepare, opened.source, opened.study.seeds, output, multiprocessing.get_start_method(), device),
    )
    left = iter(missing)
    with StopRequest() as request, pool:
        # No run waits in the pool: after a stop no run must begin.
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
