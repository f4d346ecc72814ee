"""Annotations, outlines, masks and depth files with anything in them: read, or refused by our own error with a name."""

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_tuning import build_task, mask_rows, picture
from tuning_fixtures import HEIGHT, RECTANGLE, WIDTH, run_lengths, save_image

from modeling_radio.training.data.labeled.coco import read_coco
from modeling_radio.training.data.labeled.folders import read_mask_folder
from modeling_radio.training.data.labeled.tables import read_row
from modeling_radio.tuning.tasks.dense import DepthTask, SegmentationTask
from modeling_radio.tuning.tasks.detection import DetectionTask, InstanceSegmentationTask, decode_mask


pytestmark = pytest.mark.fuzz

CONTENT = {
    "images": [{"id": 10 + number, "file_name": f"{number}.png"} for number in range(2)],
    "categories": [{"id": 9, "name": "person"}, {"id": 4, "name": "bus"}],
    "annotations": [
        {"image_id": 10, "category_id": 9, "bbox": [4, 6, 20, 12], "segmentation": [[12, 10, 30, 10, 30, 18]]},
        {
            "image_id": 11,
            "category_id": 4,
            "bbox": [0, 0, 48, 36],
            "segmentation": {"size": [36, 48], "counts": [1728]},
        },
        {"image_id": 11, "category_id": 4, "bbox": [0, 0, 4, 4], "segmentation": [[1, 1, 5, 5, 1, 5]], "iscrowd": 1},
    ],
}

numbers = st.one_of(st.integers(-3, 60), st.integers(), st.floats(), st.sampled_from([10**400, 2**63, 1e39, -0.0]))
words = st.one_of(
    st.sampled_from(["0.png", "../0.png", "/etc/passwd", "person", "counts", "a\0b", "\ud800"]), st.text()
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, words),
    lambda parts: st.one_of(st.lists(parts, max_size=4), st.dictionaries(words, parts, max_size=3)),
    max_leaves=8,
)


def places(content: Any) -> list[tuple[Any, Any]]:
    """Return all containers with a key or an index in them."""
    if not isinstance(content, (dict, list)):
        return []
    keys = list(content) if isinstance(content, dict) else list(range(len(content)))
    return [(content, key) for key in keys] + [place for key in keys for place in places(content[key])]


@st.composite
def annotations(draw: st.DrawFn) -> Any:
    """Draw a COCO json in which some things are others, missing or there twice."""
    content = copy.deepcopy(CONTENT)
    for _ in range(draw(st.integers(1, 3))):
        found = places(content)
        if not found:
            break
        container, key = found[draw(st.integers(0, len(found) - 1))]
        change = draw(st.sampled_from(["replace", "remove", "repeat"]))
        if change == "replace":
            container[key] = draw(values)
        elif change == "remove":
            del container[key]
        elif isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
    return content


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("coco")
    for number in range(2):
        save_image(folder / "images" / f"{number}.png", number)
    return folder


def attempt(work: Callable[[], Any], *names: str) -> Any:
    """Return what some work returns, or None where it raises our own error, which names what is wrong."""
    try:
        return work()
    except ValueError as error:
        if type(error) is not ValueError or not any(
            name in str(error) for name in names
        ):  # a codec's, or a nameless one
            raise
    return None


@settings(max_examples=settings.default.max_examples // 2)
@given(content=annotations(), with_masks=st.booleans())
@example(content=CONTENT, with_masks=True)
def test_annotations(folder, content, with_masks):
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    found = attempt(lambda: read_coco(path, with_masks=with_masks), "annotations.json")
    if found is None:
        return
    tables, names = found
    assert all(isinstance(name, str) for name in names)
    rows = list(tables["train"])
    assert len(rows) == len(content["images"])
    task_class, task = DetectionTask, "object-detection"
    if with_masks:
        task_class, task = InstanceSegmentationTask, "instance-segmentation"
    for row in rows:
        assert row["image"].size == (WIDTH, HEIGHT)
        read_objects(task_class, task, names, row)


def read_objects(task_class: type[DetectionTask], task: str, names: tuple[str, ...], row: dict[str, Any]) -> None:
    """Read an image with its objects, as training does."""
    whole = Dataset.from_list([{"target": {"bbox": [[4, 6, 20, 12]], "category": [0], "segmentation": ["[]"]}}])
    reader = build_task(task_class, task, names, whole)
    sample = attempt(lambda: reader.read({"image": row["image"], "target": row["objects"]}, "image 7"), "image 7")
    if sample is not None:
        assert sample["boxes"].isfinite().all()
        assert len(sample["boxes"]) == len(sample["labels"])


outlines = st.one_of(
    values,
    st.lists(st.lists(numbers, max_size=9), max_size=3),
    st.fixed_dictionaries(
        {
            "size": st.one_of(st.just([HEIGHT, WIDTH]), values),
            "counts": st.one_of(st.lists(st.integers(-5, 2000), max_size=5), st.text(), st.binary(), values),
        }
    ),
)


@given(outline=outlines)
@example(outline=run_lengths(RECTANGLE, compressed=True))
def test_outlines(outline):
    mask = attempt(lambda: decode_mask(outline, (HEIGHT, WIDTH), "image 7"), "image 7")
    if mask is not None:
        assert (mask.shape, mask.dtype) == ((HEIGHT, WIDTH), np.uint8)
        assert set(np.unique(mask)) <= {0, 1}


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """Draw a file that is cut, or of which some bytes are others."""
    changes = st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=4)
    heads = st.lists(st.tuples(st.integers(0, min(140, len(content)) - 1), st.integers(0, 255)), max_size=4)

    def apply(drawn: tuple[list[tuple[int, int]], int]) -> bytes:
        data = bytearray(content)
        for place, value in drawn[0]:
            data[place] = value
        return bytes(data[: drawn[1]])

    return st.tuples(st.one_of(changes, heads), st.integers(0, 2 * len(content))).map(apply)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


DEPTH = np.full((HEIGHT, WIDTH), 2.5, dtype=np.float32)
DEPTH_ROWS = Dataset.from_dict({"target": [[[2.5]]]})
DEPTH_FILES = {".npy": npy(DEPTH), ".png": png((DEPTH * 1000).astype(np.uint16))}
depth_files = st.sampled_from(sorted(DEPTH_FILES)).flatmap(
    lambda suffix: st.tuples(st.just(suffix), st.one_of(st.binary(), damaged(DEPTH_FILES[suffix])))
)


@given(file=depth_files)
def test_depth_files(folder, file):
    suffix, content = file
    path = folder / f"depth{suffix}"
    path.write_bytes(content)
    task = build_task(DepthTask, "depth-estimation", train=DEPTH_ROWS)
    sample = attempt(lambda: task.read({"image": picture(), "target": str(path)}, "image 7"), path.name)
    if sample is not None:
        assert sample["depth"].shape == (HEIGHT, WIDTH)
        assert (sample["depth"] > 0).any()
        assert sample["depth"].isfinite().all()


MASK = png(RECTANGLE)


@settings(max_examples=settings.default.max_examples // 2)
@given(content=st.one_of(st.binary(), damaged(MASK)))
@example(content=MASK)
def test_masks(folder, content):
    for name in ("images", "masks"):
        (folder / "pairs" / name).mkdir(parents=True, exist_ok=True)
    save_image(folder / "pairs" / "images" / "0.png", 0)
    path = folder / "pairs" / "masks" / "0.png"
    path.write_bytes(content)
    rows = read_mask_folder(folder / "pairs")["train"].rename_column("mask", "target")
    task = build_task(SegmentationTask, "semantic-segmentation", ("a", "b"), mask_rows([[0, 1]]))
    sample = attempt(lambda: task.read(read_row(rows, 0, "training image"), "training image 0"), str(path))
    if sample is not None:
        assert sample["mask"].shape == (HEIGHT, WIDTH)
        assert set(sample["mask"].unique().tolist()) <= {0, 1, 255}
