"""Every setting of a recipe has a value to be tried, acts, and gives on two processes what it gives on one.

A new setting joins by its type, or by a line of `tried_settings.py`.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from tried_settings import (
    ALSO,
    AS_DEFAULT,
    BASE,
    CONTEXTS,
    EXCEPTIONS,
    ON_RANKS,
    TOLERANCES,
    VALUES,
    WATCHED,
    Observation,
    Trial,
    all_paths,
    all_trials,
    count_calls,
    install,
    make_folder,
    observe,
    pack,
    run_in,
    settings_of,
    tensors,
    tolerance_of,
    values_of,
    write_world,
)
from two_processes import ranks_at_work, read_logs

from modeling_radio.core.files import write_text
from modeling_radio.training.recipes.sections import RecipeError


SECONDS = 120
"""A run of two steps on two ranks takes a few; one that hangs is ended after this time."""


@pytest.fixture
def _base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base.yaml").write_text(BASE)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_base")
def test_every_setting_has_values_that_can_be_tried() -> None:
    tried, known = all_trials(), {path for path, _ in all_paths()}
    assert [path for path, trials in tried.items() if not trials] == [], "give a value in `tried_settings.VALUES`"
    for trial in (trial for trials in tried.values() for trial in trials):
        assert values_of(trial.before | trial.changes) != values_of(trial.before), trial.name
    assert EXCEPTIONS.keys() | VALUES.keys() | AS_DEFAULT.keys() | WATCHED.keys() | TOLERANCES.keys() <= known
    sections = {".".join(path.split(".")[:end]) for path in known for end in range(1, 6)}
    assert CONTEXTS.keys() | {path.partition("=")[0] for path in ALSO} <= sections
    assert len(EXCEPTIONS) <= 10


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what the trials read."""
    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    (folder / "start").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        install(patch, folder)
        patch.chdir(folder)
        run = make_folder(folder / "first", folder)
        run_in(run, {})
        shutil.copytree(run / "runs/tried/final", folder / "start", dirs_exist_ok=True)
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def effects(world: Path, tmp_path_factory: pytest.TempPathFactory):
    """A function that returns the effects of a run; of runs with the same settings always the same."""
    known: dict[str, Observation] = {}

    def of(settings: dict, *, with_calls: bool) -> Observation:
        key = json.dumps([settings, with_calls], sort_keys=True)
        if key not in known:
            folder = make_folder(tmp_path_factory.mktemp("run") / "in", world)
            known[key] = observe(folder, settings, with_calls=with_calls)
            os.chdir(world)
            shutil.rmtree(folder)
        return known[key]

    of({}, with_calls=True)  # what only happens in the first run of a process
    return of


PATHS = [path for path, _ in all_paths() if path not in EXCEPTIONS]


@pytest.mark.tour
@pytest.mark.parametrize("path", PATHS)
def test_a_setting_acts(path: str, world: Path, effects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it decides the weights, on them; else on what is written, or on which functions are called."""
    for trial in all_trials_in(world, monkeypatch)[path]:
        if path in ON_RANKS:
            pair = [[trial._replace(changes={})], [trial]]
            assert run_on_two_ranks(pair, tmp_path, world, with_calls=True) == ["", ""]
            without, with_it = ((tmp_path / f"two-{number}/done-0").read_text() for number in range(2))
            assert with_it != without, trial.name
            continue
        before = trial.before | WATCHED.get(path, {})
        without, with_it = (
            effects(settings, with_calls=not trial.is_decisive) for settings in (before, before | trial.changes)
        )
        if trial.is_decisive:
            assert with_it.weights != without.weights, trial.name
        else:
            assert (with_it.written, with_it.calls) != (without.written, without.calls), trial.name


def all_trials_in(world: Path, patch: pytest.MonkeyPatch) -> dict[str, list[Trial]]:
    patch.chdir(world)
    return all_trials()


def run_on_two_ranks(
    packs: Sequence[Sequence[Trial]], folder: Path, world: Path, *, with_calls: bool = False
) -> list[str]:
    """Run packs, one after the other, in a pair of processes, and in a new pair after one that failed or hung.

    Args:
        packs: Trials that are in one run.
        folder: Gets a folder for each, with a file of each rank that has ended: which functions it called.
        world: What the trials read.
        with_calls: Whether to note these.

    Returns:
        For each pack what went wrong; nothing for one that ended.
    """
    found: list[str] = []
    for number in range(len(packs)):
        make_folder(folder / f"two-{number}", world)

    def done(number: int) -> bool:
        return all((folder / f"two-{number}" / f"done-{rank}").exists() for rank in range(2))

    def work() -> None:
        for number in range(len(found), len(packs)):
            calls = count_calls(folder / f"two-{number}", settings_of(packs[number]), with_calls=with_calls)
            write_text(Path(f"done-{os.environ['RANK']}"), json.dumps(calls, sort_keys=True))

    while len(found) < len(packs):
        with ranks_at_work(work, folder, 2) as ranks:
            while len(found) < len(packs):
                number, end = len(found), time.monotonic() + SECONDS
                while not done(number) and all(rank.is_alive() for rank in ranks) and time.monotonic() < end:
                    time.sleep(0.05)
                if not done(number):
                    how = "hangs" if all(rank.is_alive() for rank in ranks) else "fails"
                    found.append(f"{how}:\n{read_logs(folder)}")
                    break
                found.append("")
    return found


def difference(trials: Sequence[Trial], folder: Path, world: Path, number: int) -> str:
    """Run a pack in this process too; return the first tensor that differs from that of two ranks, empty if none."""
    one = make_folder(folder / f"one-{number}", world)
    run_in(one, settings_of(trials))
    expected, found = tensors(one), tensors(folder / f"two-{number}")
    if expected.keys() != found.keys():
        return f"other tensors: {sorted(expected.keys() ^ found.keys())[:3]}"
    tolerance = tolerance_of(trials)
    for name, tensor in expected.items():
        if not torch.allclose(found[name], tensor, rtol=tolerance, atol=tolerance) and not is_rotated(name, trials):
            return f"{name} differs by {(found[name] - tensor).abs().max():.1e}"
    return ""


def is_rotated(name: str, trials: Sequence[Trial]) -> bool:
    """Return whether a tensor depends on axes of nearly equal variances, which may turn with rounding.

    Exported normalizers do, and the heads behind them. `test_distributed.py` compares what they do.
    """
    is_turned = any(
        path.startswith("export.") and value not in (False, "none") for path, value in settings_of(trials).items()
    )
    return is_turned and name.startswith("final/")


def faults(packs: Sequence[Sequence[Trial]], folder: Path, world: Path) -> list[str]:
    """Return for each pack what is wrong with two ranks, or nothing."""
    folder.mkdir()
    found = run_on_two_ranks(packs, folder, world)
    return [
        fault or difference(trials, folder, world, number)
        for number, (trials, fault) in enumerate(zip(packs, found, strict=True))
    ]


def blamed(trials: Sequence[Trial], fault: str, folder: Path, world: Path) -> list[str]:
    """Return the settings of a pack that are to blame for its fault: by halves.

    None is, where the recipe refuses them together and each half has run.
    """
    if len(trials) == 1:
        return [f"{trials[0].name}: {fault}"]
    middle = len(trials) // 2
    halves = trials[:middle], trials[middle:]
    found = [
        line
        for half, own in zip(halves, faults(halves, folder, world), strict=True)
        for line in (blamed(half, own, folder / half[0].path, world) if own else [])
    ]
    if found or RecipeError.__name__ in fault:
        return found
    return [f"{' '.join(trial.name for trial in trials)}, together: {fault}"]


@pytest.mark.tour
@pytest.mark.timeout(0)
def test_two_processes_give_what_one_gives(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packs = pack([trial for trials in all_trials_in(world, monkeypatch).values() for trial in trials])
    found = faults(packs, tmp_path / "packs", world)
    wrong = [
        line
        for number, (trials, fault) in enumerate(zip(packs, found, strict=True))
        if fault
        for line in blamed(trials, fault, tmp_path / f"parts-{number}", world)
    ]
    assert wrong == [], "\n".join(wrong)
