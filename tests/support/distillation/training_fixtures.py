"""Small data sets of every form that `data.source` takes, image number n being a plain gray; and a fresh Accelerate."""

import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image
from tiny_distillation import RECIPE, install_tiny_world


def encode(number: int) -> bytes:
    """Return a PNG of 48 x 36 px."""
    return _png(Image.new("RGB", (48, 36), (number, number, number)))


def encode_faulty(fault: str) -> bytes:
    """Return a file that is no image ("broken"), one that only its header calls one ("truncated"), or a "tiny" one."""
    if fault == "broken":
        return b"not a picture"
    if fault == "tiny":
        return _png(Image.new("RGB", (200, 9)))
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    return _png(Image.fromarray(noise))[:2000]


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _write_folder(folder: Path, images: dict[str, bytes]) -> None:
    for name, content in images.items():
        (folder / f"{name}.png").write_bytes(content)


def _write_parquet(path: Path, images: dict[str, bytes]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"caption": list(images), "image": list(images.values())}), path)


def _write_tar(path: Path, images: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in images.items():
            for suffix, data in (("txt", name.encode()), ("png", content)):
                member = tarfile.TarInfo(f"{name}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


@pytest.fixture
def far_shifts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let crops be displaced from the region by two patches on average, in place of a half."""
    monkeypatch.setattr("modeling_radio.training.views.crops.SHIFT_DEVIATION_PATCHES", 2.0)


@pytest.fixture(autouse=True)
def _own_accelerator() -> Iterator[None]:
    """Let every test choose its precision: Accelerate keeps the first one of a process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def write_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return a function that writes images as a folder, Parquet files or webdataset shards and returns the folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def write(kind: str, num_images: int, *, num_shards: int = 2, first: int = 0, faults: Sequence[str] = ()) -> str:
        folder = tmp_path / f"{kind}{first}"
        folder.mkdir()
        images = {f"{number:03}": encode(number) for number in range(first, first + num_images)}
        images = {fault: encode_faulty(fault) for fault in faults} | images
        if kind == "folder":
            _write_folder(folder, images)
            return str(folder)
        names = list(images)
        for shard in range(num_shards):
            part = {name: images[name] for name in names[shard::num_shards]}
            if kind == "parquet":
                _write_parquet(folder / f"part-{shard:02}.parquet", part)
            else:
                _write_tar(folder / f"part-{shard:02}.tar", part)
        return str(folder)

    return write


@pytest.fixture
def tiny_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let recipes name the tiny teachers and images, and write below a folder of the test's own."""
    install_tiny_world(monkeypatch)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def recipe_file(tmp_path: Path) -> str:
    """Return the path of the tiny recipe."""
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return str(path)
