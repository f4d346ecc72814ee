import errno
import io
import itertools
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from photographs import encode, flat, picture
from pyarrow import parquet, table

from modeling_radio.core.errors import UserError
from modeling_radio.data import image_stream
from modeling_radio.data.decoding import SkippedImages, decode_rgb
from modeling_radio.data.image_stream import ImageStream, open_image_stream
from modeling_radio.data.settings import DataRecipe, SourceRecipe
from modeling_radio.data.sources import ImageColumn, OpenedSource, open_stream, read_rows


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
    seen = [take(stream, 20) for stream in streams]
    assert sorted(seen[0] + seen[1]) == list(range(40))
    others = set(take(streams[0], 60)) - set(seen[0])
    assert len(others) <= (4 if num_shards == 5 else 0)  # the fifth file is read by both


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
def with_small(tmp_path: Path) -> DataRecipe:
    """Twelve images in two shards, of which each third is too small."""
    images = [picture(number, 60, 40) if number % 3 == 2 else picture(number) for number in range(12)]
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as archive:
            for number, image in enumerate(images[shard::2]):
                content = encode(image).content
                member = tarfile.TarInfo(f"{number:03}.png")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(bytes(content)))
    return streamed(str(tmp_path), shuffle_buffer=4, min_side_ratio=1)


def test_streams_leave_out_small_images_count_them_and_go_on_exactly(with_small: DataRecipe) -> None:
    def opened(used_px: int = 50) -> ImageStream:
        return open_image_stream(with_small, 0, 0, 1, SkippedImages(), used_px)

    whole = opened()
    images = whole.take(17)  # two passes of eight and more: the last image is read with what comes next
    assert {decode_rgb(image).size for image in images} == {(96, 64)}
    (state,) = [source["left_out"] for source in whole.state_dict()["sources"]]
    assert set(state) == {"too small"}
    assert state["too small"] == 7
    for stop in (1, 4, 9, 13):
        first, second = opened(), opened()
        first.take(stop)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert second.take(17 - stop) == images[stop:]
        assert second.state_dict() == whole.state_dict()
    with pytest.raises(ValueError, match=r"no usable image .*{'too small': 12}.*`data.min_side_ratio`"):
        opened(500).take(1)


@pytest.fixture(params=["parquet caption", "webdataset txt"])
def weighted(request, write_source: Callable[..., str]) -> DataRecipe:
    """Nine images in three files; image n has weight n, which is 4 on average."""
    kind, _, weights = request.param.partition(" ")
    return streamed(write_source(kind, 9, num_shards=3), shuffle_buffer=4, weights=weights)


def test_streams_show_images_by_weight_on_any_number_of_ranks(weighted: DataRecipe) -> None:
    alone = count_shown(weighted, 0, 1)
    assert all(abs(alone[number] - 8 * number / 4) < 1 for number in range(9)), alone
    for num_ranks in (2, 5):
        counts = [count_shown(weighted, rank, num_ranks) for rank in range(num_ranks)]
        assert sum(counts, Counter()) == +alone


def count_shown(data: DataRecipe, rank: int, num_ranks: int, *, seed: int = 0) -> Counter[int]:
    """How often a rank sees each image in eight passes."""
    (source,) = open_numbers(data, rank, num_ranks, seed=seed).sources
    images = itertools.takewhile(lambda _: source.number_of_pass < 8, iter(lambda: next(source), None))
    return Counter(decode_rgb(image).getpixel((0, 0))[0] for image in images)


def test_weighted_streams_go_on_amid_the_copies_of_an_image(weighted: DataRecipe) -> None:
    whole, first = open_numbers(weighted), open_numbers(weighted)
    numbers = take(whole, 40)
    for stop in (1, 4, 5, 13, 30):
        first = restarted(first, weighted)
        first.take(stop - first.state_dict()["block"] * 4 - first.state_dict()["place"])
        again = restarted(first, weighted)
        assert take(again, 40 - stop) == numbers[stop:]
        assert again.state_dict() == whole.state_dict()


def test_other_weights_after_a_restart_repeat_no_image_for_ever(weighted: DataRecipe) -> None:
    (source,) = open_numbers(weighted).sources
    source.load_state_dict({**source.state_dict(), "copies": 99})
    assert len({decode_rgb(next(source)).getpixel((0, 0))[0] for _ in range(30)}) > 1


def test_weights_that_cannot_be_read_are_refused(write_source: Callable[..., str]) -> None:
    with pytest.raises(ValueError, match=r"no column 'none'"):
        next(read_rows([f"{write_source('parquet', 3)}/part-00.parquet"], "caption", "none"))
    for kind, weights in (("parquet", "image"), ("folder", "often"), ("parquet", "nothing")):
        source = write_source(kind, 3, first=len(weights))
        with pytest.raises(ValueError, match=r"`data.weights`"):
            take(open_numbers(streamed(source, weights=weights)), 1)


PLAIN = {"path": None, "bytes": bytes(encode(flat(7)).content)}


class Shards:
    """Some of the files of a made source, as `datasets` opens them: the images of file n are named n."""

    def __init__(self, sizes: Mapping[str, int], files: Sequence[str], weight: Callable[[int], float]) -> None:
        self.sizes, self.files, self.weight, self.num_shards = sizes, files, weight, len(files)

    def shard(self, num_shards: int, index: int) -> "Shards":
        return Shards(self.sizes, np.array_split(self.files, num_shards)[index], self.weight)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for file in self.files:
            for number in range(self.sizes[file]):
                yield {"image": PLAIN, "__url__": file, "__key__": number, "w": self.weight(self.sizes[file])}


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(
    ("sizes", "power"),
    [
        ((16, 1, 12, 1), 0.5),
        ((9, 1, 12, 1), 1.0),
        ((5, 5, 5), 0.5),
        ((5, 5, 5, 5), None),
        ((9, 1, 12, 1), None),
        ((30, 2, 2, 7, 7, 7, 1, 3, 11), None),
        ((30, 2, 2, 7, 7, 7, 1, 3, 11), 0.5),
    ],
)
def test_images_are_shown_as_often_on_any_number_of_ranks(
    sizes: tuple[int, ...], power: float | None, num_ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All ranks take as many images, as in a run; a restart in between changes nothing."""
    by_file = {str(number): size for number, size in enumerate(sizes)}
    monkeypatch.setattr(image_stream, "file_sizes", lambda files: [by_file[file] for file in files])
    read = partial(Shards, by_file, weight=lambda size: 100 * size ** -(power or 0.0))
    column = ImageColumn("made", "image", weights=None if power is None else "w")
    opened: Any = OpenedSource(read([*by_file]), column, [*by_file], read)
    options = {"num_shards": len(sizes), "scale": None if power is None else image_stream._scale_of(opened)}
    counts, number = Counter(), 16 * sum(sizes) // num_ranks
    for rank in range(num_ranks):
        parts, share = image_stream.deal(opened, rank, num_ranks)
        source = image_stream.EndlessSource(parts, column, 0, SkippedImages(), share=share, **options)
        for place in range(number):
            if place == number // 2:
                state = json.loads(json.dumps(source.state_dict()))
                source = image_stream.EndlessSource(parts, column, 0, SkippedImages(), share=share, **options)
                source.load_state_dict(state)
            counts[next(source).name.partition(":")[0]] += 1
    shares = np.array([counts[file] for file in by_file]) / counts.total()
    wanted = np.array(sizes) ** (1 - (power or 0.0))
    # A pass that is not whole may hold a file and not another, and each image comes as often as it should, up to one.
    np.testing.assert_allclose(shares, wanted / wanted.sum(), rtol=0.03, atol=0.6 * max(sizes) / counts.total())


def test_ranks_read_files_of_their_own_where_these_are_equal(tmp_path: Path) -> None:
    content = bytes(encode(flat(7)).content)

    def rows_read(sizes: Sequence[int], num_ranks: int, weights: str | None = None) -> list[list[int]]:
        """Rows of the parts that each rank reads, in files of so many."""
        folder = tmp_path / f"{sizes}{num_ranks}{weights}"
        folder.mkdir()
        for number, size in enumerate(sizes):
            parquet.write_table(table({"image": [content] * size, "w": [1] * size}), folder / f"{number}.parquet")
        opened = open_stream(SourceRecipe(source=str(folder), weight=1, weights=weights))
        dealt = [image_stream.deal(opened, rank, num_ranks)[0] for rank in range(num_ranks)]
        return [[len([*part]) for part in parts] for parts in dealt]

    assert rows_read((5, 5, 5, 5), 2) == [[5, 5], [5, 5]]
    assert rows_read((5, 5, 5, 4), 3) == [[5, 4], [5, 4], [5, 4]]  # the odd one is read by all
    assert rows_read((5, 1, 6, 9), 2) == [[21], [21]]  # no two are equal
    assert rows_read((5, 5), 2, "w") == [[10], [10]]


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
