import io
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from training.data.sources import first_fields, is_image, read_samples


def write_tar(path: Path, files: Mapping[str, bytes]) -> str:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return str(path)


def images_of(shard: str, column: str = "jpg", *, takes_others: bool = True) -> dict[str, bytes]:
    rows = list(read_samples([shard], column, takes_others=takes_others))
    assert {row["__url__"] for row in rows} == {shard}
    return {row["image"]["path"]: row["image"]["bytes"] for row in rows}


def test_sidecars_are_not_decoded(tmp_path: Path) -> None:
    files = {"a.cls": b"seven", "a.jpg": b"A", "a.json": b"{", "a.txt": b"\xff", "b.jpg": b"B", "b.npy": b""}
    shard = write_tar(tmp_path / "0.tar", files)
    assert first_fields([shard]) == ["cls", "jpg", "json", "txt", "npy"]
    assert images_of(shard) == {"a.jpg": b"A", "b.jpg": b"B"}


def test_samples_without_the_column_show_their_first_other_image(tmp_path: Path) -> None:
    files = {
        "./1/a.depth.png": b"depth",
        "./1/a.jpg": b"A",
        "./1/a.png": b"mask",
        "b.JPG": b"B",
        "c.txt": b"C",
        "__d.jpg": b"hidden",
        ".e.jpg": b"hidden",
        "f.json": b"F",
        "f.left.png": b"left",
        "f.right.png": b"right",
        "README": b"no field",
    }
    shard = write_tar(tmp_path / "0.tar", files)
    assert images_of(shard) == {"./1/a.jpg": b"A", "b.JPG": b"B", "c": b"", "f.left.png": b"left"}
    asked = images_of(shard, "right.png", takes_others=False)
    assert asked == {"./1/a": b"", "b": b"", "c": b"", "f.right.png": b"right"}


def test_folders_and_links_are_no_files(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for name, kind in (("folder.d", tarfile.DIRTYPE), ("link.jpg", tarfile.SYMTYPE), ("hard.jpg", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "a.jpg"
            archive.addfile(member)
    assert list(read_samples([str(tmp_path / "0.tar")], "jpg", takes_others=True)) == []


@pytest.mark.parametrize(
    ("start", "is_cut", "num_whole"),
    [(3700, True, 2), (3200, True, 1), (3072, False, 1), (0, False, 0), (0, True, 0)],
    ids=["cut in a file", "cut in a header", "damaged header", "no archive", "empty"],
)
def test_damage_is_an_error_that_names_the_shard(tmp_path: Path, start: int, is_cut: bool, num_whole: int) -> None:
    path = tmp_path / "0.tar"
    shard = write_tar(path, {f"{number}.jpg": b"A" * 600 for number in range(4)})  # one block of header, two of content
    content, names = path.read_bytes(), []
    path.write_bytes(content[:start] + (b"" if is_cut else b"?" * 512 + content[start + 512 :]))
    with pytest.raises(tarfile.ReadError, match=re.escape(f"{shard}: ")):
        names.extend(row["image"]["path"] for row in read_samples([shard], "jpg", takes_others=True))
    assert names == [f"{number}.jpg" for number in range(num_whole)]  # a damaged header may belong to the last sample


def test_fields_are_those_of_the_first_shard_with_a_sample(tmp_path: Path) -> None:
    bad = [write_tar(tmp_path / f"{number}.tar", {}) for number in range(2)]
    Path(bad[0]).write_bytes(b"")
    assert first_fields([*bad, write_tar(tmp_path / "2.tar", {"a.txt": b"A", "a.png": b"A"})]) == ["txt", "png"]
    with pytest.raises(ValueError, match=r"no sample can be read from any of its 2 shards: .*0\.tar: empty file"):
        first_fields(bad)


@pytest.mark.parametrize(
    ("field", "expected"),
    [("jpg", True), ("JPG", True), ("left.png", True), ("jfif", True), ("jp2", True)]
    + [(field, False) for field in ("json", "npy", "h5", "mpg", "ps", "depth.pfm", "pdf")],
)
def test_images_are_what_pillow_opens(field: str, expected: bool) -> None:
    assert is_image(field) is expected
