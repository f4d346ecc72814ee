import logging
from pathlib import Path

import pytest
from filelock import FileLock

from core.interruption import Interrupted
from training.targets.feature_cache import clear_up, writing_turn


def go_on() -> bool:
    return False


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.targets.feature_cache.SECONDS_BETWEEN_LOOKS", 0.01)


def test_lock_stays_until_the_file_is_there(tmp_path: Path) -> None:
    path, lock = tmp_path / "shard", tmp_path / "shard.lock"
    with pytest.raises(ZeroDivisionError), writing_turn(path, go_on):
        _ = 1 / 0
    assert lock.is_file()
    with writing_turn(path, go_on):
        path.touch()
    assert list(tmp_path.iterdir()) == [path]


def test_who_waits_says_so_once_and_can_be_stopped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked = iter([False, False, True])
    with (
        FileLock(tmp_path / "shard.lock"),
        caplog.at_level(logging.WARNING),
        pytest.raises(Interrupted, match="while another run writes"),
        writing_turn(tmp_path / "shard", lambda: next(asked)),
    ):
        raise AssertionError("two runs write at once")
    assert [record.message for record in caplog.records] == [
        f"Another run is writing {tmp_path / 'shard'}: waiting for it."
    ]


def test_what_others_are_writing_is_left_alone(tmp_path: Path) -> None:
    for name in ("at_work", "killed"):
        (tmp_path / name).touch()
        (tmp_path / f"{name}.lock").touch()
        (tmp_path / f".partial-{name}-1").mkdir()
    with FileLock(tmp_path / "at_work.lock"):
        clear_up(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            ".partial-at_work-1",
            "at_work",
            "at_work.lock",
            "killed",
        ]
