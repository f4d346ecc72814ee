"""Records of a run: history, log line, trackers."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from accelerate import Accelerator

from modeling_radio.training.distillation import tracking
from modeling_radio.training.distillation.tracking import RunHistory, check_trackers
from modeling_radio.training.recipes.recipe import RecipeError, load_recipe


def test_a_restart_goes_on_after_the_steps_that_it_has(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    before = RunHistory(path, 0)
    for step in (1, 2, 3):
        before.add(step, {"loss": step / 2})
    after = RunHistory(path, 2)  # step 3 is done again
    after.add(3, {"loss": 9.0})
    for history in (after, RunHistory(path, 3)):
        assert history.series() == {"loss": ([1, 2, 3], [0.5, 1.0, 9.0])}


def test_a_line_that_a_kill_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    RunHistory(path, 0).add(1, {"loss": 2.0})
    with path.open("a", encoding="utf-8") as file:
        file.write('{"step": 2, "val')
    history = RunHistory(path, 5)
    history.add(3, {"loss": 1.0})
    assert RunHistory(path, 5).series() == {"loss": ([1, 3], [2.0, 1.0])}


@pytest.mark.parametrize(
    "damaged",
    [
        b'{"step": 2, "values": {"l\xefss": 1.0}}',
        b'{"step": 2, "values": null}',
        b'{"step": 2, "values": [1.0]}',
        b'{"step": 2, "values": {"loss": "1"}}',
        b'{"step": "2", "values": {"loss": 1.0}}',
        b'{"step": 2}',
        b"[2, 1.0]",
        b"7",
        bytes(50),
    ],
)
def test_a_damaged_line_is_left_out_with_a_word(
    damaged: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "history.jsonl"
    for step in (1, 3):
        RunHistory(path, 0 if step == 1 else 3).add(step, {"loss": 2.0})
    first, last = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([first, damaged, last, b""]))
    assert RunHistory(path, 5).series() == {"loss": ([1, 3], [2.0, 2.0])}
    assert f"{path}: 1 of 3 lines" in caplog.text
    assert path.read_bytes() == b"\n".join([first, last, b""])


@pytest.mark.parametrize(
    ("name", "message"),
    [("tensorbord", "Did you mean 'tensorboard'"), ("wandb", "'wandb' needs a package .*run `pip install wandb`")],
)
def test_unusable_trackers_are_refused(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: ["tensorboard"])
    check_trackers(["tensorboard"])
    with pytest.raises(RecipeError, match=message):
        check_trackers(["tensorboard", name])


def logged(
    monkeypatch: pytest.MonkeyPatch, folder: Path, every_steps: int
) -> tuple[tracking.ProgressLog, list[dict], SimpleNamespace]:
    """Return a log of one process, the records that it will hand to trackers, and its clock."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(tracking, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    records: list[dict] = []
    accelerator = SimpleNamespace(
        trackers=[],
        is_main_process=True,
        reduce=lambda values, reduction: values,
        log=lambda values, step: records.append(values),
    )
    recipe = load_recipe("demo", [f"logging.every_steps={every_steps}"]).logging
    return tracking.ProgressLog(cast(Accelerator, accelerator), recipe, 0, 10, 4, folder), records, clock


def test_a_skipped_step_has_no_part_in_the_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, records, clock = logged(monkeypatch, tmp_path, 3)
    for step, loss in ((1, 2.0), (2, None), (3, 4.0), (4, None), (5, None), (6, None)):
        clock.now += 1
        log.record(step, {} if loss is None else {"loss": torch.tensor(loss)}, lambda: {"learning_rate": 0.1})
    log.close()
    rest = {"learning_rate": 0.1, "images_per_second": 4}
    assert records == [{"loss": 3.0, **rest}, rest]


def test_time_that_is_spent_apart_does_not_slow_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, records, clock = logged(monkeypatch, tmp_path, 1)
    with log.apart():
        clock.now += 100
    clock.now += 2
    losses = {"loss": torch.ones(()), "features/a": torch.ones(())}
    log.record(1, losses, lambda: {"features@32px/a": 0.5, "learning_rate": 0.1})
    log.close()
    assert records[0]["images_per_second"] == 2
    assert log.history is not None
    one = ([1], [1.0])
    assert log.history.series() == {"loss": one, "features/a": one, "features@32px/a": ([1], [0.5])}
