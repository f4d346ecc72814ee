"""Facts of images, the filters' choice, and whole data sets filtered as a recipe opens them."""

import random
from pathlib import Path

import numpy as np
import pytest
from photographs import Rows, encode, flat, picture
from PIL import Image, ImageEnhance

from modeling_radio.data import filters
from modeling_radio.data.decoding import EncodedImage, UnusableImageError, decode_rgb
from modeling_radio.data.filters import (
    ImageFacts,
    choose_images,
    difference_hash,
    fault_of,
    measure,
    near_duplicates,
    scan,
)
from modeling_radio.data.image_table import Images
from modeling_radio.data.training_images import build_training_images
from modeling_radio.training.recipes.recipe import DataRecipe, RecipeError
from modeling_radio.training.recipes.sections import FiltersRecipe, SourceRecipe


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("RADIO_CACHE", str(tmp_path / "own-cache"))


def distance(first: int, second: int) -> int:
    return ((first ^ second) & (2**64 - 1)).bit_count()


def test_facts_are_the_upright_size_and_the_largest_deviation_of_a_color() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert measure(encode(picture(0), "JPEG", exif=exif), with_pixels=False) == (96, 64, 0.0, 0)
    ramp = np.zeros((64, 64, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 255, 64)  # red from row to row, no other color
    deviations = [measure(encode(each), with_pixels=True).deviation for each in (flat(128), Image.fromarray(ramp))]
    assert deviations[0] < 0.5
    assert deviations[1] == pytest.approx(255 / 12**0.5, rel=0.03)
    large, small = (measure(encode(picture(2, 12 * n, 8 * n), "JPEG"), with_pixels=True) for n in (160, 20))
    assert (large.height, large.width) == (1280, 1920)
    assert large.deviation == pytest.approx(small.deviation, rel=0.02)
    assert distance(large.hash, small.hash) <= 1
    for image in (EncodedImage("text", b"no image"), encode(picture(0, 31, 64))):
        with pytest.raises(UnusableImageError):
            measure(image, with_pixels=False)


def test_hash_stays_when_an_image_is_copied_in_another_size_quality_or_brightness() -> None:
    image = picture(1, 960, 640)
    copies = [
        picture(1, 480, 320),
        decode_rgb(encode(image, "JPEG", quality=20)),
        ImageEnhance.Brightness(image).enhance(0.7),
        image.convert("L").convert("RGB"),
    ]
    others = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), *(picture(seed) for seed in range(2, 30))]
    own = difference_hash(image)
    assert max(distance(own, difference_hash(copy)) for copy in copies) <= 3
    assert min(distance(own, difference_hash(other)) for other in others) > 10


def test_images_are_measured_once_by_any_workers_and_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filters, "IMAGES_PER_BATCH", 2)
    good = [encode(picture(number, 96 + number)) for number in range(4)]
    rows = Rows([*good, EncodedImage("text", b"no image"), encode(flat(7))])
    facts = scan(rows, with_pixels=True, num_workers=0)
    assert facts[4] is None
    assert facts[:4] + facts[5:] == [measure(rows.images[number], with_pixels=True) for number in (0, 1, 2, 3, 5)]
    was = rows.num_read
    assert scan(rows, with_pixels=True, num_workers=0) == facts
    assert rows.num_read == was
    (path,) = (tmp_path / "own-cache" / "image_facts").iterdir()
    for content in (b"", b"x" * 100):  # what was remembered is damaged
        path.write_bytes(content)
        assert scan(rows, with_pixels=True, num_workers=2) == facts
    assert scan(rows, with_pixels=False, num_workers=0)[0] == (64, 96, 0.0, 0)
    rows.images[0] = encode(picture(9))
    assert scan(rows, with_pixels=True, num_workers=0)[0] != facts[0]


@pytest.mark.parametrize("max_distance", range(8))
def test_bands_find_what_comparing_all_pairs_finds(max_distance: int) -> None:
    draw = random.Random(max_distance)
    centers = [draw.getrandbits(64) for _ in range(12)]
    hashes = {}
    for number in range(150):
        bits = centers[draw.randrange(12)]
        for place in draw.sample(range(64), draw.randrange(max_distance + 3)):
            bits ^= 1 << place
        hashes[number] = bits - 2**64 if bits >= 2**63 else bits  # signed, as tensors hold them
    order = draw.sample(range(150), 150)
    kept, expected = [], []
    for image in order:
        is_near = any(distance(hashes[image], hashes[other]) <= max_distance for other in kept)
        (expected if is_near else kept).append(image)
    assert near_duplicates(hashes, order, max_distance) == expected
    assert 0 < len(expected) < 150


@pytest.mark.parametrize(
    ("settings", "facts", "fault"),
    [
        ({}, None, "unusable"),
        ({}, ImageFacts(1, 1000), None),
        ({"min_side_ratio": 1}, ImageFacts(224, 900), None),
        ({"min_side_ratio": 1}, ImageFacts(900, 223), "too small"),
        ({"min_side_ratio": 0.5}, ImageFacts(112, 112), None),
        ({"max_aspect": 3}, ImageFacts(100, 300), None),
        ({"max_aspect": 3}, ImageFacts(301, 100), "too narrow"),
        ({"min_deviation": 2}, ImageFacts(224, 224, 2.0), None),
        ({"min_deviation": 2}, ImageFacts(224, 224, 1.9), "of one color"),
    ],
)
def test_an_image_by_itself(settings: dict, facts: ImageFacts | None, fault: str | None) -> None:
    assert fault_of(facts, FiltersRecipe(**settings), 224) == fault


def test_of_near_duplicates_the_largest_usable_one_stays() -> None:
    facts = [
        ImageFacts(100, 100, 50, 0b1),
        ImageFacts(200, 100, 50, 0b1),
        ImageFacts(900, 100, 50, 0b1),  # the largest, but too narrow
        ImageFacts(200, 100, 50, 0b0),  # as large as number 1, and later
        None,
        ImageFacts(50, 50, 50, -1),
        ImageFacts(50, 50, 50, -4),  # not near
    ]
    numbers, counts = choose_images(facts, FiltersRecipe(max_distance=1, max_aspect=4), 224)
    assert numbers == [1, 5, 6]
    assert counts == {"too narrow": 1, "near duplicate": 2, "unusable": 1}
    assert choose_images(facts, FiltersRecipe(max_aspect=4), 224)[0] == [0, 1, 3, 5, 6]


def write_parquet(name: str, *images: Image.Image) -> str:
    import datasets

    Path(name).mkdir()
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": list(images)}, features=features).to_parquet(f"{name}/0.parquet")
    return name


def shapes(images: Images) -> list[tuple[int, ...]]:
    return [tuple(images[index].shape[1:]) for index in range(len(images))]


FILTERS = FiltersRecipe(min_side_ratio=1, max_aspect=3, min_deviation=2, max_distance=3)


def test_left_out_images_are_counted() -> None:
    faulty = [flat(100), picture(2, 400, 100), picture(3, 60, 40), picture(0, 90, 60)]
    source = write_parquet("mine", picture(0), *faulty, picture(1))
    data = DataRecipe(source=source, image_size_px=50, num_workers=0, filters=FILTERS)
    images = build_training_images(data, is_square=False)
    assert shapes(images) == [(64, 96), (64, 96)]
    assert images.left_out == {"of one color": 1, "too narrow": 1, "too small": 1, "near duplicate": 1}
    assert images.short_sides().tolist() == [64, 64]
    everything = build_training_images(data.replace(filters=FiltersRecipe()), is_square=False)
    assert len(everything) == 6
    assert everything.fingerprint() in images.fingerprint() != everything.fingerprint()
    small = build_training_images(data, is_square=False, used_px=40)
    assert small.short_sides().tolist() == [64, 40, 64]
    assert build_training_images(data.replace(num_images=7), is_square=True).short_sides().tolist() == [64] * 7
    with pytest.raises(RecipeError, match=r"`data.filters` must leave an image of 'mine', .*: all 6 .*too small"):
        build_training_images(data, is_square=False, used_px=500)


def test_near_duplicates_are_found_across_sources() -> None:
    first = write_parquet("first", picture(0), picture(1))
    second = SourceRecipe(source=write_parquet("second", picture(1, 192, 128), picture(2), picture(3)), weight=0.5)
    data = DataRecipe(source=first, mixed_in=[second], num_workers=0, filters=FiltersRecipe(max_distance=3))
    images = build_training_images(data, is_square=False)
    assert shapes(images) == [(64, 96)] * 3 + [(128, 192)] + [(64, 96)] * 2
    assert images.left_out == {"near duplicate": 1}
    assert images.short_sides().tolist() == [64, 64, 64, 128, 64, 64]


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"source": "demo", "filters": {"max_aspect": 2}}, "filters`"),
        ({"source": "x", "streaming": True, "filters": {"max_distance": 2}}, "filters.max_distance`"),
        ({"source": "x", "filters": {"max_distance": 8}}, "max_distance"),
        ({"source": "x", "filters": {"max_aspect": 0.5}}, "max_aspect"),
    ],
)
def test_filters_that_cannot_work_are_refused(settings: dict, field: str) -> None:
    with pytest.raises(RecipeError, match=field):
        DataRecipe(**settings)
