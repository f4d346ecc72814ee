"""Labels beside images: what COCO's annotations and label maps become, beside transformers' own processors."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from processor_cases import make_pixels
from transformers import DetrImageProcessor, Mask2FormerImageProcessor
from tuning_fixtures import run_lengths

from modeling_radio import RadioImageProcessor
from modeling_radio.post_processing_radio import IGNORED_CLASS, mask_boxes


SQUARE = {"height": 96, "width": 128}
POLYGON = [[8.0, 8.0, 40.0, 8.0, 40.0, 24.0, 8.0, 24.0]]


@pytest.fixture
def processor():
    return RadioImageProcessor(size=SQUARE)


def objects(**fields):
    """One image's annotation: two objects, one that lies outside, and a crowd."""
    entry = {"image_id": 7, "area": 9.0, "iscrowd": 0, "segmentation": POLYGON}
    return {
        "image_id": 7,
        "annotations": [
            {**entry, "category_id": 2, "bbox": [8.0, 8.0, 32.0, 16.0], **fields},
            {**entry, "category_id": 0, "bbox": [50, 40, 90, 90]},
            {**entry, "category_id": 1, "bbox": [64.0, 10.0, 5.0, 5.0]},
            {**entry, "category_id": 1, "bbox": [0.0, 0.0, 9.0, 9.0], "iscrowd": 1},
        ],
    }


def test_objects_are_as_transformers_has_them(processor):
    image = make_pixels()
    (labels,) = processor(images=[image], annotations=[objects()], return_tensors="pt")["labels"]
    detr = DetrImageProcessor(size=SQUARE, do_pad=False)
    (expected,) = detr(images=[image], annotations=[objects()], return_tensors="pt")["labels"]
    assert labels.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(labels[name], torch.as_tensor(values), msg=name)


def test_outlines_are_as_transformers_has_them_but_for_crowds(processor):
    image, annotation = make_pixels(), objects()
    annotation["annotations"].pop()  # transformers 5.24 fails on a crowd's mask
    options = {"annotations": annotation, "return_segmentation_masks": True, "return_tensors": "pt"}
    (labels,) = processor(images=image, **options)["labels"]
    (expected,) = DetrImageProcessor(size=SQUARE, do_pad=False)(images=image, **options)["labels"]
    assert torch.equal(labels["masks"].bool(), expected["masks"].bool())
    assert labels["masks"].shape == (2, 96, 128)
    with_crowd = processor(images=image, **{**options, "annotations": objects()})["labels"][0]
    assert torch.equal(with_crowd["masks"], labels["masks"])


def numbers_of_numpy(counts):
    return tuple(map(np.int64, counts))


@pytest.mark.parametrize("spelling", [str, bytes, list, np.array, numbers_of_numpy])
def test_run_lengths_are_outlines(processor, spelling):
    image, options = make_pixels(), {"return_segmentation_masks": True, "return_tensors": "pt"}
    mask = np.zeros(image.shape[:2], dtype=np.uint8)
    mask[8:24, 8:40] = 1  # the polygon
    outline = run_lengths(mask, compressed=spelling in (str, bytes))
    outline["counts"] = outline["counts"].encode() if spelling is bytes else spelling(outline["counts"])
    found, expected = (
        processor(image, annotations=annotation, **options)["labels"][0]
        for annotation in (objects(segmentation=outline), objects())
    )
    assert found["masks"].dtype == expected["masks"].dtype
    assert torch.equal(found["masks"], expected["masks"])


@pytest.mark.parametrize(
    "outline",
    [
        {"size": [7, 9], "counts": [63]},
        {"size": [48, 64], "counts": [63]},
        {"size": [48, 64], "counts": "PP"},
        {"size": [48, 64], "counts": None},
        {"counts": [63]},
    ],
)
def test_run_lengths_that_do_not_fill_the_image_are_refused(processor, outline):
    message = r"`segmentation` of entry 0 of `annotations\[0\]` must be polygons or run lengths that fill the image, 48"
    with pytest.raises(ValueError, match=message):
        processor(make_pixels(48, 64), annotations=objects(segmentation=outline), return_segmentation_masks=True)


def test_boxes_are_shares_of_the_image_without_padding(processor):
    padded = processor(
        images=[make_pixels(48, 64), make_pixels(64, 48)],
        annotations=[objects(), {"image_id": 8, "annotations": []}],
        size={"max_height": 64, "max_width": 64},
        do_pad=True,
        pad_size={"height": 64, "width": 80},
        return_segmentation_masks=True,
        return_tensors="pt",
    )
    assert padded["pixel_values"].shape == (2, 3, 64, 80)
    labels, empty = padded["labels"]
    assert labels["size"].tolist() == [48, 64]
    torch.testing.assert_close(labels["boxes"][0], torch.tensor([24 / 64, 16 / 48, 32 / 64, 16 / 48]))
    assert labels["masks"].shape == (2, 64, 80)
    assert not labels["masks"][:, 48:].any()
    assert empty["boxes"].shape == (0, 4)
    assert empty["masks"].shape == (0, 64, 80)


def test_numbers_of_numpy_are_numbers(processor):
    plain = objects()
    strange = objects(bbox=np.array([8.0, 8.0, 32.0, 16.0]), category_id=np.int64(2), area=np.float32(9))
    strange["image_id"] = np.int64(7)
    images = make_pixels()
    (first,), (second,) = (processor(images, annotations=entry)["labels"] for entry in (plain, strange))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ([], r"`annotations` must have one entry for each of the 1 images, got 0 in a list"),
        ("x", r"`annotations` must have one entry"),
        ([5], r"`annotations\[0\]` must be a dictionary .* got 5"),
        ([{"image_id": 1, "objects": []}], r"`annotations\[0\]` must be .* got a dict with \['image_id', 'objects'\]"),
        ([{"image_id": "a", "annotations": []}], r"`image_id` of entry 0 .* must be a finite number, got 'a'"),
        ([objects(bbox=[1, 2, 3])], r"`bbox` of entry 0 of `annotations\[0\]` must be 4 finite numbers"),
        ([objects(bbox=[1, 2, 3, math.nan])], r"`bbox` of entry 0 .* must be 4 finite numbers, got \[1, 2, 3, nan\]"),
        ([objects(bbox=None)], r"`bbox` of entry 0 .* got None"),
        ([objects(category_id="cat")], r"`category_id` of entry 0 .* must be a finite number, got 'cat'"),
        ([objects(category_id=1.5)], r"`category_id` of entry 0 .* must be an integer, got 1\.5"),
        ([objects(area=math.inf)], r"`area` of entry 0 .* got inf"),
        ([{"image_id": 1, "segments_info": [], "file_name": "a.png"}], r"`masks_path` must be the folder .* got None"),
    ],
)
def test_annotations_that_cannot_be_right_are_refused(processor, annotations, message):
    with pytest.raises(ValueError, match=message):
        processor(images=[make_pixels()], annotations=annotations)


def test_masks_without_outlines_are_refused(processor):
    with pytest.raises(ValueError, match=r"`segmentation` of entry 0 of `annotations\[0\]` must be there"):
        processor(make_pixels(), annotations=objects(segmentation=[]), return_segmentation_masks=True)


# Panoptic annotations


@pytest.fixture
def panoptic(tmp_path):
    """A panoptic annotation with two segments, whose numbers need more than a byte, and its folder."""
    colors = np.zeros((48, 64, 3), np.uint8)
    colors[:24, :32] = (1, 2, 0)
    colors[24:, 32:] = (5, 0, 3)
    (tmp_path / "masks").mkdir()
    Image.fromarray(colors).save(tmp_path / "masks" / "7.png")
    segments = [
        {"id": 1 + 2 * 256, "category_id": 3, "iscrowd": 0, "area": 768},
        {"id": 5 + 3 * 65536, "category_id": 1, "iscrowd": 0, "area": 768},
    ]
    return {"image_id": 7, "file_name": "7.png", "segments_info": segments}, tmp_path / "masks"


def test_panoptic_segments_become_objects_with_masks(processor, panoptic):
    annotation, folder = panoptic
    inputs = processor(make_pixels(), annotations=annotation, masks_path=folder, size=(96, 128), return_tensors="pt")
    (labels,) = inputs["labels"]
    assert labels["class_labels"].tolist() == [3, 1]
    torch.testing.assert_close(labels["boxes"], torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.75, 0.75, 0.5, 0.5]]))
    assert labels["masks"].shape == (2, 96, 128)
    assert labels["masks"][0, :48, :64].all()
    assert labels["masks"][0].sum() == 48 * 64


def test_panoptic_crowds_are_left_out(processor, panoptic):
    annotation, folder = panoptic
    annotation["segments_info"][0]["iscrowd"] = 1
    (labels,) = processor(make_pixels(), annotations=annotation, masks_path=folder, return_tensors="pt")["labels"]
    assert labels["class_labels"].tolist() == [1]
    assert labels["iscrowd"].tolist() == [0]
    assert len(labels["masks"]) == 1


@pytest.mark.parametrize("name", ["../secret.png", "missing.png", None])
def test_panoptic_maps_must_lie_in_their_folder(processor, panoptic, name):
    annotation, folder = panoptic
    Image.new("RGB", (64, 48)).save(folder.parent / "secret.png")
    with pytest.raises(ValueError, match=r"`file_name` of `annotations\[0\]` must be a file in `masks_path`"):
        processor(make_pixels(), annotations={**annotation, "file_name": name}, masks_path=folder)


def test_panoptic_maps_must_have_the_size_of_the_image(processor, panoptic):
    annotation, folder = panoptic
    with pytest.raises(ValueError, match=r"The map '7.png' .* must be of the image's size \(32, 64\), got \(48, 64\)"):
        processor(make_pixels(32, 64), annotations=annotation, masks_path=folder)


# Label maps


def quarters():
    """A map of 48 x 64 with the numbers 0, 3, 5 and 255 in its quarters."""
    return np.kron(np.array([[0, 3], [5, 255]]), np.ones((24, 32), int))


@pytest.mark.parametrize(
    "convert",
    [
        lambda values: values,
        lambda values: values.astype(np.uint16),
        lambda values: [torch.from_numpy(values)],
        lambda values: values[None],
        lambda values: Image.fromarray(values.astype(np.uint8)),
        lambda values: Image.fromarray(values.astype(np.uint16)),
        lambda values: Image.fromarray(values.astype(np.uint8)).convert("P"),
    ],
    ids=["array", "uint16", "tensors", "batch", "gray", "gray16", "palette"],
)
def test_maps_of_classes_are_resized_without_mixing_them(processor, convert):
    inputs = processor(make_pixels(), convert(quarters()), return_tensors="pt")
    assert inputs["labels"].dtype == torch.long
    assert torch.equal(inputs["labels"][0], torch.from_numpy(np.kron(quarters(), np.ones((2, 2), int))))


def test_background_is_ignored_where_labels_are_reduced(processor):
    inputs = processor(make_pixels(), segmentation_maps=quarters(), do_reduce_labels=True, return_tensors="pt")
    assert inputs["labels"].unique().tolist() == [2, 4, IGNORED_CLASS]
    assert (inputs["labels"][0, :48, :64] == IGNORED_CLASS).all()


def test_padding_of_maps_is_ignored(processor):
    inputs = processor(
        [make_pixels(), make_pixels(64, 48)],
        segmentation_maps=[np.ones((48, 64), int), np.ones((64, 48), int)],
        size={"longest_edge": 64},
        do_pad=True,
        return_tensors="pt",
    )
    assert torch.equal(inputs["labels"] == 1, inputs["pixel_mask"].bool())
    assert (inputs["labels"][inputs["pixel_mask"] == 0] == IGNORED_CLASS).all()


@pytest.mark.parametrize("reduce", [False, True])
def test_instances_are_as_transformers_has_them(reduce):
    maps = quarters()
    classes = {0: 0, 3: 2, 5: 1, 255: 1}
    options = {"segmentation_maps": [maps], "instance_id_to_semantic_id": classes, "return_tensors": "pt"}
    size = {"height": 96, "width": 128}
    inputs = RadioImageProcessor(size=size, do_reduce_labels=reduce)([make_pixels()], **options)
    theirs = Mask2FormerImageProcessor(size=size, do_reduce_labels=reduce, ignore_index=9999)
    expected = theirs([make_pixels()], **options)
    assert torch.equal(inputs["mask_labels"][0], expected["mask_labels"][0])
    assert torch.equal(inputs["class_labels"][0], expected["class_labels"][0])


@pytest.mark.parametrize(
    ("maps", "options", "message"),
    [
        (make_pixels(), {}, r"`segmentation_maps` must have one entry for each of the 1 images, got 48 in a list"),
        (Image.fromarray(make_pixels()), {}, r"must each be \(height, width\) integers.* \(48, 64, 3\)"),
        (quarters() / 2, {}, r"must each be \(height, width\) integers.*float64"),
        ("map.png", {}, "must be PIL images, numpy arrays or torch tensors, got str"),
        (quarters()[:24], {}, r"`segmentation_maps\[0\]` must be of its image's size \(48, 64\), got \(24, 64\)"),
        (quarters(), {"instance_id_to_semantic_id": {0: 0, 3: 1, 5: 1}}, "must have a class for each .* none for 255"),
        (quarters(), {"instance_id_to_semantic_id": [{}, {}]}, "must have one entry for each of the 1 images, got 2"),
        (quarters(), {"annotations": objects()}, "`annotations` must be None with `segmentation_maps`"),
        (quarters(), {"do_pack": True}, "`do_pack` must be False with labels"),
        (None, {"instance_id_to_semantic_id": {}}, "`segmentation_maps` must be given"),
    ],
)
def test_maps_that_cannot_be_right_are_refused(processor, maps, options, message):
    with pytest.raises(ValueError, match=message):
        processor(make_pixels(), segmentation_maps=maps, **options)


def test_labels_in_numpy_and_in_lists(processor):
    options = {"segmentation_maps": quarters(), "instance_id_to_semantic_id": {0: 0, 3: 1, 5: 1, 255: 1}}
    inputs = processor(make_pixels(), return_tensors="np", **options)
    assert isinstance(inputs["mask_labels"][0], np.ndarray)
    assert isinstance(processor(make_pixels(), quarters(), return_tensors="np")["labels"], np.ndarray)
    assert isinstance(processor(make_pixels(), quarters())["labels"], list)
    labels = processor(make_pixels(), annotations=objects(), return_tensors="np")["labels"]
    assert isinstance(labels[0]["boxes"], np.ndarray)


def test_boxes_end_behind_the_last_pixel():
    masks = torch.zeros(2, 4, 6, dtype=torch.bool)
    masks[0, 1, 2] = True
    masks[1, :, 3:] = True
    assert mask_boxes(masks).tolist() == [[2, 1, 3, 2], [3, 0, 6, 4]]
    assert mask_boxes(masks[:0]).shape == (0, 4)
