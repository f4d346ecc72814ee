from pathlib import Path

import pytest

from training.data.image_folder import MIN_IMAGES_PER_SHARD, find_shards


def fill(folder: Path, names: list[str], num_images: int) -> Path:
    for name in [*names, *(f"pictures/{number}.jfif" for number in range(num_images))]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("names", "num_images", "read"),
    [
        ([], 0, []),
        ([], 1, []),
        (["b.tar", "a/c.tar"], 0, ["a/c.tar", "b.tar"]),
        (["data/train-00000-of-00001.parquet"], 3, ["data/train-00000-of-00001.parquet"]),
        (["val_07.tar", "b.tar", "index.parquet"], 3, ["b.tar", "val_07.tar"]),
        (["VOCtrainval.tar"], MIN_IMAGES_PER_SHARD, []),
        (["metadata.parquet", ".cache/train-0.tar", "__MACOSX/a.tar", "._b.tar"], 1, []),
    ],
)
def test_what_is_read(tmp_path: Path, names: list[str], num_images: int, read: list[str]) -> None:
    folder = fill(tmp_path, names, num_images)
    assert find_shards(folder) == [folder / name for name in read]


@pytest.mark.parametrize(
    ("names", "num_images"),
    [
        (["a.parquet"], 1),
        (["train/a.parquet"], 1),  # as a class called "train"
        (["VOCtrainval.tar"], MIN_IMAGES_PER_SHARD - 1),
        (["train-00000-of-00001.parquet"], MIN_IMAGES_PER_SHARD),
        (["00000.tar", "00000.parquet"], 0),
        (["train-0.tar", "train-0.parquet"], 0),
    ],
)
def test_what_is_unclear_is_refused(tmp_path: Path, names: list[str], num_images: int) -> None:
    folder = fill(tmp_path, names, num_images)
    with pytest.raises(ValueError, match="has several kinds of files: ") as error:
        find_shards(folder)
    assert all(f"({name})" in str(error.value) and f"/**/*{Path(name).suffix}'" in str(error.value) for name in names)
    assert ("move the other files out of the folder" in str(error.value)) == (num_images > 0)
