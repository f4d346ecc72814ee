import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from modeling_radio.data.settings import DataRecipe
from modeling_radio.data.training_images import build_training_images


KINDS = pytest.mark.parametrize("kind", ["folder", "parquet", "webdataset"])


def number_of(image: torch.Tensor) -> int:
    return int(image[0, 0, 0])


@KINDS
def test_images_are_whole_or_squares_and_the_fingerprint_follows_their_files(write_source, kind: str) -> None:
    source = write_source(kind, 10)
    data = DataRecipe(source=source, image_size_px=32)
    whole, square = (build_training_images(data, is_square=is_square) for is_square in (False, True))
    assert len(whole) == len(square) == (9 if kind == "folder" else 10)  # a tenth of a folder is held out
    assert (whole[3].shape, square[3].shape, whole[3].dtype) == ((3, 36, 48), (3, 32, 32), torch.uint8)
    assert number_of(whole[3]) == number_of(square[3])
    for path in Path(source).iterdir():
        os.utime(path, ns=(0, 1))
    assert build_training_images(data, is_square=False).fingerprint() == whole.fingerprint()
    other = build_training_images(data.replace(source=write_source(kind, 10, first=1)), is_square=False)
    assert other.fingerprint() != whole.fingerprint()


@KINDS
def test_faulty_images_are_replaced_by_the_next_counted_and_named(write_source, kind: str, caplog) -> None:
    source = write_source(kind, 6, num_shards=1, faults=["broken", "tiny", "truncated"])
    images = build_training_images(DataRecipe(source=source), is_square=False)
    numbers = [number_of(images[index]) for index in range(len(images))]
    assert set(numbers) <= set(range(6))
    if kind != "folder":
        assert numbers == [0, 0, 0, 0, 1, 2, 3, 4, 5]
    assert "(3 skipped so far)" in caplog.text
    names = {"folder": "truncated.png", "parquet": f"{source}: row 2", "webdataset": "part-00.tar: truncated.png"}
    assert names[kind] in caplog.text
    assert [number_of(images[index]) for index in range(len(images))] == numbers
    assert len(images.skipped) == 3  # each counts once


def test_nothing_but_faulty_images(write_source: Callable[..., str]) -> None:
    source = write_source("parquet", 0, faults=["broken", "tiny"])
    with pytest.raises(ValueError, match=r"2 images in a row .*row 0"):
        build_training_images(DataRecipe(source=source), is_square=False)[0]


def test_sources_are_mixed_by_weight_and_none_is_cut_short(write_source: Callable[..., str]) -> None:
    others = (write_source("parquet", 3, first=100), write_source("folder", 20, first=200))
    mixed_in = [{"source": source, "weight": 0.25} for source in others]
    data = DataRecipe(source=write_source("webdataset", 5), mixed_in=mixed_in)
    images = build_training_images(data, is_square=False)
    counts = Counter(number_of(images[index]) for index in range(len(images)))
    assert len(images) == 72  # 18 files of the folder, none of them held out, are a quarter
    assert sum(number for value, number in counts.items() if value < 100) == 36
    assert len(counts) == 5 + 3 + 18
    assert {counts[100], counts[101], counts[102]} == {6}
    assert len(set(images.fingerprint().split("; "))) == 3
    with pytest.raises(IndexError):
        images[72]
