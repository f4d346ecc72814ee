"""One file, one picture: all readers see the same pixels, refuse the same damage, and run no Ghostscript."""

import numpy as np
import pytest
from image_files import FILES, PICTURE, damaged_files, encode
from image_readers import READERS, pixels_of, readers_of

from modeling_radio.data.decoding import EncodedImage, image_size
from modeling_radio.data.labeled.labels import read_depth


@pytest.mark.parametrize("name", FILES)
def test_all_readers_see_the_same_pixels(name, tmp_path):
    content, expected = FILES[name]
    path = tmp_path / "picture.img"
    path.write_bytes(content)
    found = {key: pixels_of(read(path, content)) for key, (read, _) in readers_of(content).items()}
    expected = found["processor, PIL"] if expected is None else expected
    wrong = [key for key, seen in found.items() if not np.array_equal(seen, np.broadcast_to(expected, seen.shape))]
    assert wrong == []
    assert image_size(EncodedImage("x", path)) == found["processor, path"].shape[:2]


OURS = [name for name in READERS if name != "processor, PIL"]  # which Pillow opens for the caller


@pytest.mark.parametrize("reader", OURS)
def test_damaged_files_count_as_damaged(reader, tmp_path):
    read, error = READERS[reader]
    path, read_anyway = tmp_path / "picture.img", []
    for name, content in damaged_files().items():
        path.write_bytes(content)
        try:
            read(path, content)
        except error:
            continue
        read_anyway.append(name)
    assert read_anyway == []


@pytest.mark.parametrize("reader", OURS)
def test_no_reader_runs_ghostscript(reader, tmp_path, monkeypatch):
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path / 'has_run'}\nexit 1\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    path = tmp_path / "photograph.jpg"
    path.write_bytes(encode(PICTURE, "EPS"))
    read, error = READERS[reader]
    with pytest.raises(error):
        read(path, path.read_bytes())
    with pytest.raises(ValueError, match="depth map"):
        read_depth(str(path), "image 0")
    assert not (tmp_path / "has_run").exists()
