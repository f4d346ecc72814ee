"""Cosines tell how near features stay."""

from pathlib import Path

import pytest
import torch
from torchvision.io import write_jpeg

from benchmarks.inference_parts.fidelity import measure_fidelity, square
from modeling_radio import RadioConfig, RadioModel


@pytest.fixture
def photographs(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.jpg" for number in range(2)]
    for number, path in enumerate(paths):
        generator = torch.Generator().manual_seed(number)
        write_jpeg(torch.randint(0, 255, (3, 200, 260), dtype=torch.uint8, generator=generator), str(path))
    return paths


def test_each_way_is_beside_float32(tmp_path: Path, photographs: list[Path]) -> None:
    torch.manual_seed(0)
    RadioModel(RadioConfig.from_preset("radio-test")).save_pretrained(tmp_path / "student")
    rows = measure_fidelity(tmp_path / "student", photographs, [64, 192], "cpu")
    assert [(row["size_px"], row["way"]) for row in rows] == [(64, "bfloat16"), (192, "bfloat16"), (192, "window 8")]
    assert all(0.99 < float(str(row["cosine"])) < 1 for row in rows if row["way"] == "bfloat16")
    assert -1 < float(str(rows[2]["cosine"])) < 1
    assert {row["photographs"] for row in rows} == {2}


def test_sizes_end_with_the_students_own(tmp_path: Path, photographs: list[Path]) -> None:
    RadioModel(RadioConfig.from_preset("radio-test", max_img_size=64)).save_pretrained(tmp_path / "student")
    rows = measure_fidelity(tmp_path / "student", photographs[:1], [32, 512, 1024], "cpu")
    assert [(row["size_px"], row["way"]) for row in rows] == [(32, "bfloat16"), (64, "bfloat16")]


def test_the_square_in_the_middle_is_taken(photographs: list[Path]) -> None:
    image = square(photographs[0], 64)
    assert image.shape == (1, 3, 64, 64)
    assert 0 <= image.min() < image.max() <= 1
