from pathlib import Path

import pytest
from photographs import Rows, encode, flat, picture

from training.data.decoding import EncodedImage
from training.data.filters import scan as scanning
from training.data.filters.facts import measure
from training.data.filters.scan import scan


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def rows() -> Rows:
    good = [encode(picture(number, 96 + number)) for number in range(5)]
    return Rows([*good, EncodedImage("text", b"no image"), encode(flat(7))])


def test_all_images_are_measured_once_and_remembered(rows: Rows) -> None:
    facts = scan(rows, with_pixels=True, num_workers=0)
    assert facts[5] is None
    expected = [measure(rows.images[number], with_pixels=True) for number in (0, 1, 2, 3, 4, 6)]
    assert facts[:5] + facts[6:] == expected
    was = rows.num_read
    assert scan(rows, with_pixels=True, num_workers=0) == facts
    assert rows.num_read == was
    assert scan(rows, with_pixels=False, num_workers=0)[0] == (64, 96, 0.0, 0)


def test_workers_change_nothing_and_other_images_are_looked_at_again(
    rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanning, "IMAGES_PER_BATCH", 2)
    facts = scan(rows, with_pixels=True, num_workers=0)
    next(scanning.ROOT.iterdir()).unlink()
    assert scan(rows, with_pixels=True, num_workers=2) == facts
    rows.images[0] = encode(picture(9))
    assert scan(rows, with_pixels=True, num_workers=0)[0] != facts[0]


@pytest.mark.parametrize("content", [b"", b"x" * 100])
def test_broken_memory_is_made_again(rows: Rows, content: bytes) -> None:
    facts = scan(rows, with_pixels=True, num_workers=0)
    (path,) = scanning.ROOT.iterdir()
    path.write_bytes(content)
    assert scan(rows, with_pixels=True, num_workers=0) == facts
