"""Images that are too small: found once, left out, and counted."""

from pathlib import Path

import pytest
from photographs import Rows, encode, flat, picture
from PIL import Image

from modeling_radio.core.settings import SettingsError
from modeling_radio.data import short_sides
from modeling_radio.data.decoding import EncodedImage
from modeling_radio.data.image_table import Images
from modeling_radio.data.settings import DataRecipe, SourceRecipe
from modeling_radio.data.short_sides import scan
from modeling_radio.data.training_images import build_training_images


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("RADIO_CACHE", str(tmp_path / "own-cache"))


def test_sides_are_read_once_by_any_workers_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(short_sides, "IMAGES_PER_BATCH", 2)
    rows = Rows([*(encode(picture(n, 96 + n, 64 + n)) for n in range(4)), EncodedImage("text", b"no"), encode(flat(7))])
    sides = scan(rows, num_workers=0)
    assert sides == [64, 65, 66, 67, 0, 64]
    was = rows.num_read
    assert scan(rows, num_workers=0) == sides
    assert rows.num_read == was
    (path,) = (tmp_path / "own-cache" / "short_sides").iterdir()
    for content in (b"", b"x" * 100):  # what was remembered is damaged
        path.write_bytes(content)
        assert scan(rows, num_workers=2) == sides
    rows.images[0] = encode(picture(9, 99, 40))
    assert scan(rows, num_workers=0)[0] == 40


def write_parquet(name: str, *images: Image.Image) -> str:
    import datasets

    Path(name).mkdir()
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": list(images)}, features=features).to_parquet(f"{name}/0.parquet")
    return name


def shapes(images: Images) -> list[tuple[int, ...]]:
    return [tuple(images[index].shape[1:]) for index in range(len(images))]


def test_left_out_images_are_counted() -> None:
    source = write_parquet("mine", picture(0), picture(3, 60, 40), picture(0, 90, 30), picture(1))
    data = DataRecipe(source=source, image_size_px=50, num_workers=0, min_side_ratio=1)
    images = build_training_images(data, is_square=False)
    assert shapes(images) == [(64, 96), (64, 96)]
    assert images.left_out == {"too small": 1, "unusable": 1}
    assert images.short_sides().tolist() == [64, 64]
    everything = build_training_images(data.replace(min_side_ratio=None), is_square=False)
    assert len(everything) == 4
    assert everything.fingerprint() in images.fingerprint() != everything.fingerprint()
    small = build_training_images(data, is_square=False, used_px=40)
    assert small.short_sides().tolist() == [64, 40, 64]
    assert build_training_images(data.replace(num_images=7), is_square=True).short_sides().tolist() == [64] * 7
    with pytest.raises(SettingsError, match=r"`data.min_side_ratio` must leave an image of 'mine'"):
        build_training_images(data, is_square=False, used_px=500)
    other = SourceRecipe(source=write_parquet("other", picture(1, 192, 128), picture(2, 60, 48)), weight=0.5)
    mixed = build_training_images(data.replace(mixed_in=[other]), is_square=False)
    assert shapes(mixed) == [(64, 96)] * 2 + [(128, 192)] * 2
    assert mixed.left_out == {"too small": 2, "unusable": 1}


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"source": "demo", "min_side_ratio": 1}, "min_side_ratio`"),
        ({"source": "x", "min_side_ratio": 0}, "min_side_ratio`"),
    ],
)
def test_ratios_that_cannot_work_are_refused(settings: dict, field: str) -> None:
    with pytest.raises(SettingsError, match=field):
        DataRecipe(**settings)
