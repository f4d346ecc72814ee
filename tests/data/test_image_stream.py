import errno
import io
import itertools
import json
import tarfile
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from photographs import encode, flat, picture
from pyarrow import parquet, table

from modeling_radio.core.errors import UserError
from modeling_radio.data import image_stream
from modeling_radio.data.decoding import SkippedImages, decode_rgb
from modeling_radio.data.image_stream import ImageStream, open_image_stream
from modeling_radio.data.sources import read_rows, stream_fingerprint
from modeling_radio.training.recipes.recipe import DataRecipe
from modeling_radio.training.recipes.sections import FiltersRecipe, SourceRecipe


def streamed(source: str, **options: Any) -> DataRecipe:
    return DataRecipe(**{"source": source, "streaming": True, "shuffle_buffer": 1, **options})


def open_numbers(data: DataRecipe, rank: int = 0, num_ranks: int = 1, *, seed: int = 0) -> ImageStream:
    return open_image_stream(data, seed, rank, num_ranks, SkippedImages())


def take(stream: ImageStream, number: int) -> list[int]:
    return [decode_rgb(image).getpixel((0, 0))[0] for image in stream.take(number)]


def restarted(stream: ImageStream, *where: Any, **options: Any) -> ImageStream:
    """Another stream that goes on where one was, as after a checkpoint."""
    other = open_numbers(*where, **options)
    other.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    return other


@pytest.mark.parametrize("kind", ["folder", "parquet", "webdataset"])
def test_passes_show_every_image_once_in_another_order_and_are_resumed(write_source, kind: str) -> None:
    data = streamed(write_source(kind, 12, num_shards=3), shuffle_buffer=4)
    numbers = take(open_numbers(data), 36)
    passes = [numbers[start : start + 12] for start in (0, 12, 24)]
    assert all(sorted(each) == list(range(12)) for each in passes)
    assert len({tuple(each) for each in passes}) == 3
    assert take(open_numbers(data, seed=1), 36) != numbers
    other = SourceRecipe(source=write_source("parquet", 5, num_shards=1, first=100), weight=0.3)
    data = data.replace(mixed_in=[other], shuffle_buffer=6)
    numbers, stream = take(open_numbers(data), 60), open_numbers(data)
    for start in range(60):
        if start in (0, 1, 5, 6, 7, 12, 40):
            again = restarted(stream, data)
            for _ in range(2):
                assert take(again, 60 - start) == numbers[start:]
                again.load_state_dict(stream.state_dict())  # back again
        stream.take(1)


@pytest.mark.parametrize("num_shards", [1, 2, 5, 8], ids="{} shards".format)
def test_ranks_see_disjoint_images_that_cover_the_pass(write_source: Callable[..., str], num_shards: int) -> None:
    data = streamed(write_source("parquet", 40, num_shards=num_shards))
    streams = [open_numbers(data, place, 2) for place in range(2)]
    num_first = 24 if num_shards == 5 else 20  # three of the five shards, or half of the images
    seen = [take(streams[0], num_first), take(streams[1], 40 - num_first)]
    assert sorted(seen[0] + seen[1]) == list(range(40))
    assert set(take(streams[0], 3 * num_first)) == set(seen[0])


def test_parts_that_wait_after_a_restart_keep_their_places(write_source: Callable[..., str]) -> None:
    data = streamed(write_source("parquet", 40, num_shards=4))  # a block reads one of four parts
    found, stream = [], open_numbers(data)
    for _ in range(20):
        stream = restarted(stream, data)
        found += take(stream, 2)
    assert found == take(open_numbers(data), 40)


@pytest.mark.parametrize(("num_images", "num_shards", "num_ranks", "seed"), [(9, 3, 8, 0), (7, 2, 3, 1), (8, 6, 7, 0)])
def test_ranks_that_share_shards_take_turns_over_all(
    write_source: Callable[..., str], num_images: int, num_shards: int, num_ranks: int, seed: int
) -> None:
    data = streamed(write_source("parquet", num_images, num_shards=num_shards))
    seen = []
    for rank in range(num_ranks):
        number = num_images // num_ranks + (rank < num_images % num_ranks)
        numbers = take(open_numbers(data, rank, num_ranks, seed=seed), 3 * number + 2)
        seen += numbers[:number]
        for stop in {1, number, 3 * number - 1}:
            first = open_numbers(data, rank, num_ranks, seed=seed)
            first.take(stop)
            second = restarted(first, data, rank, num_ranks, seed=seed)
            assert take(second, 3 * number + 2 - stop) == numbers[stop:]
    assert sorted(seen) == list(range(num_images))


def test_sources_are_mixed_by_weight(write_source: Callable[..., str]) -> None:
    other = SourceRecipe(source=write_source("parquet", 5, first=100), weight=0.2)
    data = streamed(write_source("webdataset", 50), shuffle_buffer=400, mixed_in=[other])
    counts = Counter(number >= 100 for number in take(open_numbers(data), 400))
    assert 48 < counts[True] < 112  # four standard deviations about 80


def test_spares_do_not_move_the_stream(write_source: Callable[..., str]) -> None:
    data = streamed(write_source("parquet", 12), shuffle_buffer=6)
    stream, undisturbed = open_numbers(data), open_numbers(data)
    stream.take(4)
    assert [image.name for image in stream.spares(2)] == [image.name for image in undisturbed.take(6)[4:]]
    assert len(stream.spares(20)) == 20
    assert take(stream, 2) == take(open_numbers(data), 6)[4:]


@pytest.mark.parametrize("kind", ["folder", "parquet", "webdataset"])
def test_faulty_headers_are_left_out_counted_and_named(write_source: Callable[..., str], kind: str, caplog) -> None:
    source, skipped = write_source(kind, 6, faults=["broken", "tiny"]), SkippedImages()
    stream = open_image_stream(streamed(source, shuffle_buffer=6), 0, 0, 1, skipped)
    assert sorted(take(stream, 6)) == list(range(6))
    take(stream, 6)  # the next pass begins with what was left of the first one
    assert f"skipping image {source}" in caplog.text
    assert 2 <= len(skipped) <= 4
    if kind != "parquet":  # whose rows have no names here
        assert "broken.png: unreadable" in caplog.text
        assert "tiny.png: too small: 200 x 9 px" in caplog.text


@pytest.fixture
def filtered(tmp_path: Path) -> DataRecipe:
    """Twelve images in two shards, of which each third is faulty in one of three ways."""
    faulty = [flat(100), picture(50, 400, 100), picture(51, 60, 40), flat(90)]
    images = [faulty[number // 3] if number % 3 == 2 else picture(number) for number in range(12)]
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as archive:
            for number, image in enumerate(images[shard::2]):
                content = encode(image).content
                member = tarfile.TarInfo(f"{number:03}.png")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(bytes(content)))
    filters = FiltersRecipe(min_side_ratio=1, max_aspect=3, min_deviation=2)
    return streamed(str(tmp_path), shuffle_buffer=4, filters=filters)


def test_streams_leave_out_what_filters_say_count_it_and_go_on_exactly(filtered: DataRecipe) -> None:
    def opened(used_px: int = 50) -> ImageStream:
        return open_image_stream(filtered, 0, 0, 1, SkippedImages(), used_px)

    whole = opened()
    images = whole.take(17)  # two passes of eight and more: the last image is read with what comes next
    assert {decode_rgb(image).size for image in images} == {(96, 64)}
    (state,) = [source["left_out"] for source in whole.state_dict()["sources"]]
    assert state == {"of one color": 3, "too narrow": 2, "too small": 2}
    for stop in (1, 4, 9, 13):
        first, second = opened(), opened()
        first.take(stop)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert second.take(17 - stop) == images[stop:]
        assert second.state_dict() == whole.state_dict()
    with pytest.raises(ValueError, match=r"no usable image .*{'too small': 12}.*`data.filters`"):
        opened(500).take(1)


IDS = {"folder": "{:03}.png", "parquet": "part-{1:02}/{2:09d}", "webdataset": "part-{1:02}/{0:03}"}


@pytest.fixture(params=[*IDS, "parquet caption", "webdataset txt"])
def balanced(request, write_source: Callable[..., str], tmp_path: Path, monkeypatch) -> tuple[DataRecipe, list[float]]:
    """Nine images in three files, each with its weight: in features that are found by name, or beside the images."""
    monkeypatch.setenv("RADIO_CACHE", str(tmp_path / "radio"))
    kind, _, weights = request.param.partition(" ")
    source = write_source(kind, 9, num_shards=3)
    if weights:  # image n has weight n
        return streamed(source, shuffle_buffer=4, balance={"weights": weights}), [*range(9)]
    ids = [IDS[kind].format(number, number % 3, number // 3) for number in range(9)]
    rows = table({"id": ids[::-1], "label": ["rare" if number < 2 else "frequent" for number in range(9)][::-1]})
    (tmp_path / "features/data").mkdir(parents=True)
    parquet.write_table(rows, tmp_path / "features/data/train-0.parquet")
    balance = {"features": str(tmp_path / "features"), "column": "label"}
    return streamed(source, shuffle_buffer=4, balance=balance), [9 / 4] * 2 + [9 / 14] * 7


def test_streams_show_images_by_weight_on_any_number_of_ranks(balanced) -> None:
    data, weights = balanced
    alone = count_shown(data, 0, 1)
    assert all(abs(alone[number] - 8 * weight) < 1 for number, weight in enumerate(weights)), alone
    for num_ranks in (2, 5):  # with files of their own, and with shares of all
        counts = [count_shown(data, rank, num_ranks) for rank in range(num_ranks)]
        assert sum(counts, Counter()) == +alone
    assert alone != count_shown(data, 0, 1, seed=1) or data.balance.weights


def count_shown(data: DataRecipe, rank: int, num_ranks: int, *, seed: int = 0) -> Counter[int]:
    """How often a rank sees each image in eight passes."""
    (source,) = open_numbers(data, rank, num_ranks, seed=seed).sources
    images = itertools.takewhile(lambda _: source.number_of_pass < 8, iter(lambda: next(source), None))
    return Counter(decode_rgb(image).getpixel((0, 0))[0] for image in images)


def test_balanced_streams_go_on_amid_the_copies_of_an_image(balanced) -> None:
    data, _ = balanced
    whole, first = open_numbers(data), open_numbers(data)
    numbers = take(whole, 40)
    for stop in (1, 4, 5, 13, 30):
        first = restarted(first, data)
        first.take(stop - first.state_dict()["block"] * 4 - first.state_dict()["place"])
        again = restarted(first, data)
        assert take(again, 40 - stop) == numbers[stop:]
        assert again.state_dict() == whole.state_dict()


def test_other_weights_after_a_restart_repeat_no_image_for_ever(balanced) -> None:
    data, _ = balanced
    stream = open_numbers(data)
    (source,) = stream.sources
    source.load_state_dict({**source.state_dict(), "copies": 99})
    assert len({decode_rgb(next(source)).getpixel((0, 0))[0] for _ in range(30)}) > 1


def test_images_without_features_are_left_out_and_counted(write_source, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RADIO_CACHE", str(tmp_path / "radio"))
    (tmp_path / "features/data").mkdir(parents=True)
    rows = table({"id": ["part-00/000", "part-01/001"], "label": ["a", "b"]})
    parquet.write_table(rows, tmp_path / "features/data/train-0.parquet")
    balance = {"features": str(tmp_path / "features"), "column": "label"}
    data = streamed(write_source("webdataset", 6), balance=balance)
    stream = open_numbers(data)
    assert set(take(stream, 4)) == {0, 1}
    before = stream_fingerprint(data)
    parquet.write_table(rows.slice(0, 1), tmp_path / "features/data/train-0.parquet")
    assert stream_fingerprint(data) != before
    assert stream.sources[0].left_out == {"not in `data.balance.features`": 4}
    with pytest.raises(ValueError, match=r"no usable image .*`data.balance.features`': 3"):
        take(open_numbers(streamed(write_source("webdataset", 3, first=20), balance=balance)), 1)
    with pytest.raises(ValueError, match=r"no column 'none'"):
        next(read_rows([str(tmp_path / "features/data/train-0.parquet")], "label", "none"))
    faulty = streamed(write_source("parquet", 3, first=30), balance={"weights": "image"})
    with pytest.raises(ValueError, match=r"`data.balance.weights` .* for part-0./000000000"):
        take(open_numbers(faulty), 1)


@pytest.mark.parametrize(("num_shards", "num_ranks"), [(44, 8), (21, 4)])
def test_ranks_differ_by_at_most_one_shard(write_source: Callable[..., str], num_shards: int, num_ranks: int) -> None:
    data = streamed(write_source("parquet", num_shards, num_shards=num_shards))
    streams = [open_numbers(data, rank, num_ranks) for rank in range(num_ranks)]
    counts = [sum(part.num_shards for part in stream.sources[0].parts) for stream in streams]
    assert sum(counts) == num_shards
    assert max(counts) - min(counts) <= 1


def damage(source: str, number: int, *, is_cut: bool = True) -> None:
    """Damage the header of an archive's seventh file, or cut it behind that, or a Parquet file in the middle."""
    path = sorted(path for path in Path(source).rglob("*") if path.is_file())[number]
    content = path.read_bytes()
    if path.suffix != ".tar":
        path.write_bytes(content[: len(content) // 2])
        return
    with tarfile.open(path) as archive:
        start = archive.getmembers()[6].offset
    path.write_bytes(content[: start + 512] if is_cut else content[:start] + b"?" * 512 + content[start + 512 :])


@pytest.mark.parametrize(
    ("kind", "is_cut", "lost"),
    [("parquet", True, {1, 4, 7, 10}), ("webdataset", True, {10}), ("webdataset", False, {7, 10})],
    ids=["parquet", "cut shard", "damaged header"],
)
def test_a_damaged_shard_is_left_and_the_next_one_read(write_source, monkeypatch, kind, is_cut, lost, caplog) -> None:
    monkeypatch.setattr(image_stream, "MAX_OPEN_SHARDS", 1)  # one after the other
    source = write_source(kind, 12, num_shards=3)
    damage(source, 1, is_cut=is_cut)
    num_left, data, skipped = 12 - len(lost), streamed(source), SkippedImages()
    numbers = take(open_image_stream(data, 0, 0, 1, skipped), 2 * num_left + 1)
    for start in (0, num_left):
        assert sorted(numbers[start : start + num_left]) == sorted(set(range(12)) - lost)
    assert 2 <= len(skipped) <= 3  # once in each pass
    assert f"skipping image {source}: image " in caplog.text
    if kind == "webdataset":
        assert f"what follows it in its shard: unreadable: {source}/part-01.tar: " in caplog.text
    first = open_numbers(data)
    for stop in range(1, num_left + 1):  # before, at and after the damaged place
        first.take(1)
        assert take(restarted(first, data), num_left + 1) == numbers[stop : stop + num_left + 1]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), ConnectionError("gone"), TimeoutError("slow")])
def test_a_store_that_fails_ends_the_stream_which_goes_on_later(write_source, monkeypatch, error, caplog) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    data = streamed(write_source("webdataset", 6, num_shards=2))
    numbers, stream = take(open_numbers(data), 12), open_numbers(data)
    stream.take(2)
    again = restarted(stream, data)
    with monkeypatch.context() as patch:
        patch.setattr("datasets.utils.file_utils.xopen", fail)
        with pytest.raises(UserError, match=rf"part-0\d\.tar: .*{error.args[-1]}"):
            again.take(1)
    assert take(restarted(stream, data), 10) == numbers[2:]
    assert not caplog.messages


def test_many_shards_are_read_in_groups(write_source: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_stream, "MAX_OPEN_SHARDS", 1)
    monkeypatch.setattr(image_stream, "MAX_PIECES", 2)
    data = streamed(write_source("folder", 7))
    numbers, stream = take(open_numbers(data), 14), open_numbers(data)
    assert sorted(numbers[:7]) == sorted(numbers[7:]) == list(range(7))
    assert all(following == number + 1 for number, following in pairwise(numbers[:7]) if number not in (3, 6))
    stream.take(5)
    assert take(restarted(stream, data), 9) == numbers[5:]


def test_ranks_that_share_shards_leave_a_damaged_one(write_source: Callable[..., str]) -> None:
    source = write_source("webdataset", 12, num_shards=2)
    damage(source, 0)
    seen = [set(take(open_numbers(streamed(source), rank, 3), 12)) for rank in range(3)]
    assert set().union(*seen) >= {1, 3, 5, 7, 9, 11}
    assert not seen[0] & seen[1] | seen[1] & seen[2] | seen[0] & seen[2]


def test_another_number_of_shards_begins_a_new_pass(write_source: Callable[..., str], caplog) -> None:
    source = write_source("parquet", 12, num_shards=4)
    before = open_numbers(streamed(source))
    before.take(5)
    (Path(source) / "part-03.parquet").unlink()
    after = restarted(before, streamed(source))
    assert f"{source}: the checkpoint knows other shards than the 3" in caplog.text
    numbers = take(after, 9)
    assert sorted(numbers) == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert after.state_dict()["sources"][0]["pass"] == 1
    assert take(restarted(before, streamed(source)), 9) == numbers


def test_sources_without_a_usable_image_end(write_source: Callable[..., str]) -> None:
    faulty = write_source("parquet", 0, num_shards=1, faults=["broken", "tiny"])
    cut = write_source("parquet", 4, num_shards=1, first=1)
    streams = [open_numbers(streamed(source)) for source in (faulty, cut)]
    damage(cut, 0)
    for stream in streams:
        with pytest.raises(ValueError, match="no usable image"):
            stream.take(1)
