"""What filters measure of images, which they leave out, and whole data sets filtered as a recipe opens them."""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from photographs import Rows, encode, flat, picture
from PIL import Image, ImageEnhance

from training.data import filters
from training.data.decoding import EncodedImage, UnusableImageError, decode_rgb
from training.data.filters import ImageFacts, choose_images, difference_hash, fault_of, measure, near_duplicates, scan
from training.data.image_table import Images
from training.data.training_images import build_training_images
from training.recipe import DataRecipe, RecipeError
from training.recipe_sections import FiltersRecipe, SourceRecipe


FILTERS = FiltersRecipe(min_side_ratio=1, max_aspect=3, min_deviation=2, max_distance=3)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def distance(first: Image.Image, second: Image.Image) -> int:
    return ((difference_hash(first) ^ difference_hash(second)) & (2**64 - 1)).bit_count()


def test_header_alone_tells_the_upright_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert measure(encode(picture(0), "JPEG", exif=exif), with_pixels=False) == (96, 64, 0.0, 0)
    assert measure(encode(picture(0)), with_pixels=False) == (64, 96, 0.0, 0)


def test_deviation_tells_one_color_from_many() -> None:
    deviations = [measure(encode(each), with_pixels=True).deviation for each in (flat(128), flat(3), picture(0))]
    assert max(deviations[:2]) < 0.5
    assert deviations[2] > 20
    ramp = np.zeros((64, 64, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 255, 64)  # red from row to row, no other color
    assert measure(encode(Image.fromarray(ramp)), with_pixels=True).deviation == pytest.approx(255 / 12**0.5, rel=0.03)


def test_hash_stays_when_an_image_is_copied_in_another_size_quality_or_brightness() -> None:
    image = picture(1, 960, 640)
    copies = [
        picture(1, 480, 320),
        decode_rgb(encode(image, "JPEG", quality=20)),
        ImageEnhance.Brightness(image).enhance(0.7),
        image.convert("L").convert("RGB"),
    ]
    assert max(distance(image, copy) for copy in copies) <= 3
    assert min(distance(image, picture(seed)) for seed in range(2, 30)) > 10
    assert distance(image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) > 10


def test_a_large_jpeg_has_the_facts_of_its_small_copy() -> None:
    large, small = (measure(encode(picture(2, 12 * n, 8 * n), "JPEG"), with_pixels=True) for n in (160, 20))
    assert (large.height, large.width) == (1280, 1920)
    assert large.deviation == pytest.approx(small.deviation, rel=0.02)
    assert ((large.hash ^ small.hash) & (2**64 - 1)).bit_count() <= 1


@pytest.mark.parametrize("image", [EncodedImage("text", b"no image"), encode(picture(0, 31, 64))])
def test_unusable_images_have_no_facts(image: EncodedImage) -> None:
    with pytest.raises(UnusableImageError):
        measure(image, with_pixels=False)


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
    monkeypatch.setattr(filters, "IMAGES_PER_BATCH", 2)
    facts = scan(rows, with_pixels=True, num_workers=0)
    next(filters.ROOT.iterdir()).unlink()
    assert scan(rows, with_pixels=True, num_workers=2) == facts
    rows.images[0] = encode(picture(9))
    assert scan(rows, with_pixels=True, num_workers=0)[0] != facts[0]


@pytest.mark.parametrize("content", [b"", b"x" * 100])
def test_broken_memory_is_made_again(rows: Rows, content: bytes) -> None:
    facts = scan(rows, with_pixels=True, num_workers=0)
    (path,) = filters.ROOT.iterdir()
    path.write_bytes(content)
    assert scan(rows, with_pixels=True, num_workers=0) == facts


def one_by_one(hashes: dict[int, int], order: list[int], max_distance: int) -> list[int]:
    kept, duplicates = [], []
    for image in order:
        is_near = any(((hashes[image] ^ hashes[other]) & (2**64 - 1)).bit_count() <= max_distance for other in kept)
        (duplicates if is_near else kept).append(image)
    return duplicates


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
    found = near_duplicates(hashes, order, max_distance)
    assert found == one_by_one(hashes, order, max_distance)
    assert 0 < len(found) < 150


def test_the_first_in_order_stays() -> None:
    hashes = {0: 0b1, 1: 0b11, 2: 0b111, 3: -1}
    assert near_duplicates(hashes, [0, 1, 2, 3], 1) == [1]  # 2 is near 1, which is gone
    assert near_duplicates(hashes, [1, 2, 3, 0], 1) == [2, 0]
    assert near_duplicates(hashes, [0, 1, 2, 3], 0) == []


@pytest.mark.parametrize(
    ("settings", "facts", "fault"),
    [
        ({}, None, "unusable"),
        ({}, ImageFacts(1, 1000), None),
        ({"min_side_ratio": 1}, ImageFacts(224, 900), None),
        ({"min_side_ratio": 1}, ImageFacts(900, 223), "too small"),
        ({"min_side_ratio": 0.5}, ImageFacts(112, 112), None),
        ({"min_side_ratio": 1.5}, ImageFacts(335, 400), "too small"),
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
    ]
    numbers, counts = choose_images(facts, FiltersRecipe(max_distance=1, max_aspect=4), 224)
    assert numbers == [1, 5]
    assert counts == {"too narrow": 1, "near duplicate": 2, "unusable": 1}
    assert choose_images(facts, FiltersRecipe(max_aspect=4), 224)[0] == [0, 1, 3, 5]


def test_filters_say_whether_they_are_used_and_look_at_pixels() -> None:
    assert not FiltersRecipe().is_used
    assert FiltersRecipe(max_distance=0).is_used
    settings = ({"max_aspect": 2}, {"min_side_ratio": 1}, {"max_distance": 0}, {"min_deviation": 1})
    assert [FiltersRecipe(**each).needs_pixels for each in settings] == [False, False, True, True]


def write_parquet(name: str, images: Sequence[Image.Image]) -> str:
    import datasets

    Path(name).mkdir()
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": list(images)}, features=features).to_parquet(f"{name}/0.parquet")
    return name


def shapes(images: Images) -> list[tuple[int, ...]]:
    return [tuple(images[index].shape[1:]) for index in range(len(images))]


def test_what_is_left_out_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    faulty = [flat(100), picture(2, 400, 100), picture(3, 60, 40), picture(0, 90, 60)]
    source = write_parquet("mine", [picture(0), *faulty, picture(1)])
    data = DataRecipe(source=source, image_size_px=50, num_workers=0, filters=FILTERS)
    images = build_training_images(data, is_square=False)
    assert len(images) == 2
    assert shapes(images) == [(64, 96), (64, 96)]
    assert images.left_out == {"of one color": 1, "too narrow": 1, "too small": 1, "near duplicate": 1}
    assert images.short_sides().tolist() == [64, 64]
    everything = build_training_images(data.replace(filters=FiltersRecipe()), is_square=False)
    assert len(everything) == 6
    assert everything.fingerprint() in images.fingerprint() != everything.fingerprint()
    small = build_training_images(data, is_square=False, used_px=40)
    assert small.short_sides().tolist() == [64, 40, 64]
    assert build_training_images(data.replace(num_images=7), is_square=True).short_sides().tolist() == [64] * 7


def test_near_duplicates_are_found_across_sources() -> None:
    first = write_parquet("first", [picture(0), picture(1)])
    second = write_parquet("second", [picture(1, 192, 128), picture(2), picture(3)])
    data = DataRecipe(
        source=first,
        mixed_in=[SourceRecipe(source=second, weight=0.5)],
        num_workers=0,
        filters=FiltersRecipe(max_distance=3),
    )
    images = build_training_images(data, is_square=False)
    assert shapes(images) == [(64, 96)] * 3 + [(128, 192)] + [(64, 96)] * 2
    assert images.left_out == {"near duplicate": 1}
    assert images.short_sides().tolist() == [64, 64, 64, 128, 64, 64]


def test_a_source_without_an_image_left_is_an_error() -> None:
    data = DataRecipe(source=write_parquet("mine", [flat(9), flat(10)]), num_workers=0, filters=FILTERS)
    with pytest.raises(RecipeError, match=r"must leave an image of 'mine', .*: all 2 are left out \(2 too small"):
        build_training_images(data, is_square=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"source": "demo", "filters": {"max_aspect": 2}},
            "`filters` must be left out, all null, with images of the",
        ),
        (
            {"source": "x", "streaming": True, "filters": {"max_distance": 2}},
            "`filters.max_distance` must be null with `data.streaming`",
        ),
        ({"source": "x", "filters": {"max_distance": 8}}, "max_distance"),
        ({"source": "x", "filters": {"max_aspect": 0.5}}, "max_aspect"),
    ],
)
def test_filters_that_cannot_work_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        DataRecipe(**settings)
