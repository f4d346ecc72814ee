from pathlib import Path

import pytest

from training.distillation.tracking import RunHistory


def test_series_by_name(tmp_path: Path) -> None:
    history = RunHistory(tmp_path / "run" / "history.jsonl", 0)
    history.add(2, {"loss": 1.0})
    history.add(2, {"rank/32px": 5.0})
    history.add(4, {"loss": 0.5})
    assert history.series() == {"loss": ([2, 4], [1.0, 0.5]), "rank/32px": ([2], [5.0])}


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


def test_what_is_not_a_number_comes_back(tmp_path: Path) -> None:
    RunHistory(tmp_path / "history.jsonl", 0).add(1, {"rank": float("nan")})
    ((_, (value,)),) = RunHistory(tmp_path / "history.jsonl", 1).series().values()
    assert value != value
