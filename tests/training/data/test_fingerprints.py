from collections.abc import Sequence
from pathlib import Path

import pytest

from training.data import decoding
from training.data.decoding import EncodedImage, content_fingerprint


def fingerprint(contents: list[bytes], names: Sequence[str] = ()) -> str:
    sizes = [len(each) for each in contents]
    return content_fingerprint(lambda place: EncodedImage("x", contents[place]), sizes, names)


def test_every_change_of_few_images_is_seen() -> None:
    images = [bytes([number]) * 50 for number in range(4)]
    same_size = [*images[:2], b"\x02" * 49 + b"\x09", images[3]]
    different = [images, images[::-1], images[:3], [*images, b""], same_size]
    assert len({fingerprint(each) for each in different}) == len(different)
    assert fingerprint(images, ["a", "b", "c", "d"]) != fingerprint(images, ["a", "b", "c", "e"])
    assert fingerprint(images) == fingerprint(list(images))


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 15, 16, 17, 40])
def test_bytes_and_a_file_of_them_are_the_same(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "SAMPLE_BYTES", 8)
    content = bytes(range(size))
    (tmp_path / "image").write_bytes(content)
    of_file = content_fingerprint(lambda place: EncodedImage("x", tmp_path / "image"), [size])
    assert of_file == fingerprint([content])
    if size:
        assert fingerprint([content[:-1] + b"\xff"]) != of_file
        assert fingerprint([b"\xff" + content[1:]]) != of_file


def test_of_many_images_some_are_looked_at_and_all_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MAX_SAMPLES", 3)
    images = [b"a"] * 10
    before = fingerprint(images)
    changed = [place for place in range(10) if fingerprint([*images[:place], b"b", *images[place + 1 :]]) != before]
    assert changed == [0, 3, 6]
    assert all(fingerprint([*images[:place], b"bb", *images[place + 1 :]]) != before for place in range(10))
