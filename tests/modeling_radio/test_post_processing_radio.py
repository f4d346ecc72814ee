"""Post-processing: maps, labels, boxes and masks in the original images; and annotations for training."""

import math
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from PIL import Image
from processor_cases import detections, make_pixels
from task_models import build, tiny_config
from transformers import DetrImageProcessor, ImageClassificationPipeline, Mask2FormerImageProcessor
from tuning_fixtures import run_lengths

from modeling_radio import RadioConfig, RadioImageProcessor, RadioModel
from modeling_radio.heads_radio import ProblemType
from modeling_radio.pipelines_radio import RadioImageClassificationPipeline
from modeling_radio.post_processing_radio import IGNORED_CLASS, class_scores, divide_pixels


@pytest.fixture
def processor():
    return RadioImageProcessor(size={"max_pixels": 256 * 256}, max_img_size=256)


def plane(height, width):
    """A map linear in the position, (1, 2, height, width): x and y of pixel centers in [0, 1]."""
    y, x = ((torch.arange(n) + 0.5) / n for n in (height, width))
    return torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1])[None]


def test_feature_maps_return_to_the_image(processor):
    (restored,) = processor.post_process_features(plane(6, 8), [(90, 130)])
    assert restored.shape == (2, 90, 130)
    inner = (slice(None), slice(10, -10), slice(10, -10))  # outermost half patches stay constant
    torch.testing.assert_close(restored[inner], plane(90, 130)[0][inner], atol=1e-5, rtol=0)


def test_padding_is_cut_off_feature_maps(processor):
    originals = [(48, 64), (80, 32)]
    inputs = processor([make_pixels(*size) for size in originals], do_pad=True, return_tensors="pt")
    maps = torch.full((2, 2, 5, 4), 99.0)
    maps[:1, :, :3, :4] = plane(3, 4)
    maps[1:, :, :5, :2] = plane(5, 2)
    restored = processor.post_process_features(maps, originals, pixel_mask=inputs["pixel_mask"])
    assert [tuple(feature_map.shape) for feature_map in restored] == [(2, 48, 64), (2, 80, 32)]
    assert all(feature_map.max() < 1 for feature_map in restored)


def test_packed_features_come_apart_as_they_are():
    torch.manual_seed(0)
    upsampling = {"name": "sam", "hidden_size": 8, "feature_dim": 4, "token_index": 0, "upsample_factor": 2}
    model = RadioModel(RadioConfig.from_preset("radio-test", adaptors=[upsampling])).eval()
    processor = RadioImageProcessor.from_model_config(model.config)
    step = model.config.patch_size
    images = [make_pixels(2 * step, 3 * step), make_pixels(4 * step, 2 * step), make_pixels(2 * step, 3 * step)]
    packed = processor(images, do_resize=False, do_pack=True, return_tensors="pt")
    with torch.no_grad():
        out = model(**packed)
        alone = [
            model(**processor([each], do_resize=False, return_tensors="pt"), feature_format="NCHW") for each in images
        ]
    for features, of_alone in (
        (out.features, [each.features for each in alone]),
        (out.adaptors["sam"].features, [each.adaptors["sam"].features for each in alone]),
    ):
        maps = processor.post_process_features(features, image_grid_hw=packed.image_grid_hw)
        for found, (expected,) in zip(maps, of_alone, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="`features`"):
        processor.post_process_features(out.features[1:], image_grid_hw=packed.image_grid_hw)


def test_semantic_segmentation_labels_each_pixel(processor):
    logits = torch.zeros(1, 3, 4, 4)
    logits[:, 1, :, :2] = 1
    logits[:, 2, :, 2:] = 1
    outputs = SimpleNamespace(logits=logits)
    (labels,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(20, 40)])
    assert labels.shape == (20, 40)
    assert (labels[:, :20] == 1).all()
    assert (labels[:, 20:] == 2).all()
    assert processor.post_process_semantic_segmentation(outputs)[0].shape == (4, 4)


@pytest.mark.parametrize("target_sizes", [None, [(20, 40)]])
def test_semantic_segmentation_with_scores(processor, target_sizes):
    outputs = SimpleNamespace(logits=torch.rand(1, 3, 4, 4))
    (labels,) = processor.post_process_semantic_segmentation(outputs, target_sizes)
    (scored,) = processor.post_process_semantic_segmentation(outputs, target_sizes, return_segmentation_scores=True)
    assert torch.equal(scored.segmentation, labels)
    assert torch.equal(scored.segmentation_scores.argmax(0), labels)
    assert scored.segmentation_scores.shape == (3, *labels.shape)


def test_masks_belong_to_their_boxes(processor):
    """Each object's mask fills its box, though objects are ranked by score and a query may stand for two classes."""
    outputs = detections((0, 0.6, 0.25, 0.5, 0.5, 1.0), (2, 0.9, 0.75, 0.5, 0.5, 1.0))
    outputs.logits[0, 0, 1] = 1
    outputs.pred_masks = torch.full((1, 2, 4, 4), -1.0)
    outputs.pred_masks[0, 0, :, :2] = 1
    outputs.pred_masks[0, 1, :, 2:] = 1
    (found,) = processor.post_process_instances(outputs, [(8, 16)])
    assert found["labels"].tolist() == [2, 1]
    for (left, _, right, _), mask in zip(found["boxes"].int().tolist(), found["masks"], strict=True):
        assert mask[:, left:right].all()
        assert mask.sum() == 8 * (right - left)


def test_boxes_return_to_the_image_and_stay_inside(processor):
    original = (300, 500)
    resized = processor.get_output_size(*original)
    box = torch.tensor([[0.1, 0.2, 0.7, 1.1]])
    in_pixels = [box * torch.tensor([resized[1], resized[0]] * 2)]
    (restored,) = processor.post_process_boxes(in_pixels, [original], [resized])
    torch.testing.assert_close(restored, torch.tensor([[50.0, 60.0, 350.0, 300.0]]))


def test_post_process_object_detection():
    outputs = detections((0, 0.6, 0.5, 0.5, 0.5, 0.5), (2, 0.9, 0.1, 0.5, 0.4, 1.0), (1, 0.3, 0.5, 0.5, 0.1, 0.1))
    processor = RadioImageProcessor()
    (found,) = processor.post_process_object_detection(outputs, threshold=0.5, target_sizes=torch.tensor([[100, 200]]))
    torch.testing.assert_close(found["scores"], torch.tensor([0.9, 0.6]))
    assert found["labels"].tolist() == [2, 0]
    torch.testing.assert_close(found["boxes"], torch.tensor([[0.0, 0, 60, 100], [50, 25, 150, 75]]))  # first: clipped
    (shares,) = processor.post_process_object_detection(outputs, threshold=0.5)
    torch.testing.assert_close(shares["boxes"], torch.tensor([[0.0, 0, 0.3, 1], [0.25, 0.25, 0.75, 0.75]]))
    with pytest.raises(ValueError, match="`target_sizes`"):
        processor.post_process_object_detection(outputs, target_sizes=[(1, 1), (2, 2)])


def test_post_process_instances_undoes_padding():
    outputs = detections((0, 0.6, 0.5, 0.5, 0.5, 0.5), (2, 0.9, 0.25, 0.5, 0.5, 1.0))
    pixel_mask = torch.zeros(1, 64, 64, dtype=torch.long)
    pixel_mask[:, :32, :] = 1  # the lower half is padding
    outputs.pred_masks = torch.full((1, 2, 16, 16), -5.0)
    outputs.pred_masks[0, 1, :, :8] = 5  # the left half
    (found,) = RadioImageProcessor().post_process_instances(outputs, [(20, 40)], 0.5, pixel_mask=pixel_mask)
    assert found["masks"].shape == (2, 20, 40)
    assert found["masks"][0, :, :19].all()
    assert not found["masks"][0, :, 21:].any()
    assert not found["masks"][1].any()
    torch.testing.assert_close(found["boxes"][0], torch.tensor([0.0, 0, 20, 20]))


# As transformers' processors do


def stripes(*spans, **fields):
    """Outputs of one image of 16 x 16: queries that see upright stripes from one column to before another."""
    masks = torch.full((1, len(spans), 16, 16), -9.0)
    for mask, (start, stop) in zip(masks[0], spans, strict=True):
        mask[:, start:stop] = 9.0
    return SimpleNamespace(pred_masks=masks, **fields)


def overlapping():
    """A certain object on the left half, a less certain one on the right three quarters, and an uncertain one."""
    found = detections(
        (1, 0.9, 0.25, 0.5, 0.5, 1), (2, 0.7, 0.625, 0.5, 0.75, 1), (0, 0.2, 0.5, 0.5, 1, 1), num_classes=3
    )
    return stripes((0, 8), (4, 16), (0, 16), logits=found.logits, pred_boxes=found.pred_boxes)


def test_instances_share_a_map(processor):
    (found,) = processor.post_process_instance_segmentation(
        overlapping(), overlap_mask_area_threshold=0.5, target_sizes=[(32, 32)]
    )
    assert found["segmentation"].shape == (32, 32)
    assert found["segmentation"][0].unique_consecutive().tolist() == [0, 1]
    assert (found["segmentation"][:, :16] == 0).all()
    assert [(segment["id"], segment["label_id"]) for segment in found["segments_info"]] == [(0, 1), (1, 2)]
    torch.testing.assert_close([segment["score"] for segment in found["segments_info"]], [0.9, 0.7])


def test_instances_that_are_mostly_hidden_are_dropped(processor):
    (found,) = processor.post_process_instance_segmentation(overlapping())
    assert [segment["label_id"] for segment in found["segments_info"]] == [1]
    assert found["segmentation"].shape == (16, 16)
    assert (found["segmentation"][:, 8:] == -1).all()


def test_instances_as_masks_and_as_run_lengths(processor):
    (masks,) = processor.post_process_instance_segmentation(overlapping(), return_binary_maps=True)
    assert masks["segmentation"].shape == (2, 16, 16)
    assert masks["segmentation"][1, :, 4:].all()
    (lengths,) = processor.post_process_instance_segmentation(overlapping(), return_coco_annotation=True)
    assert lengths["segmentation"][1][:2] == [1, 8]  # the object's first run; before it stands the background's


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_threshold": 1.5}, "`mask_threshold`"),
        ({"overlap_mask_area_threshold": float("nan")}, "`overlap_mask_area_threshold`"),
        ({"return_coco_annotation": True, "return_binary_maps": True}, "`return_binary_maps`"),
        ({"target_sizes": []}, "`target_sizes`"),
    ],
)
def test_instances_refuse_options_that_cannot_be_right(processor, options, message):
    with pytest.raises(ValueError, match=message):
        processor.post_process_instance_segmentation(overlapping(), **options)


def segments_stripes(*spans):
    """Return masks of one row of 10 pixels from the first pixel of each to the one behind its last."""
    masks = torch.zeros(len(spans), 1, 10, dtype=torch.bool)
    for mask, (start, stop) in zip(masks, spans, strict=True):
        mask[0, start:stop] = True
    return masks


def test_objects_of_which_little_is_left_are_dropped_and_free_their_pixels():
    divided = divide_pixels(segments_stripes((0, 6), (4, 8), (6, 10)), least_share=0.5)
    assert torch.equal(divided, segments_stripes((0, 6), (0, 0), (6, 10)))
    assert divide_pixels(segments_stripes(), 0.5).shape == (0, 1, 10)


KNOWS_REGRESSION = Version(transformers.__version__) >= Version("5.18")


def answer(pipeline_class, config, logits):
    """Return a pipeline's scores for the logits of one image, in the order of the labels."""
    model = build("classifier")
    model.config = config
    pipe = pipeline_class(model=model, image_processor=RadioImageProcessor())
    scores = {each["label"]: each["score"] for each in pipe.postprocess({"logits": logits[None]})}
    return torch.tensor([scores[config.id2label[index]] for index in range(config.num_labels)])


@pytest.mark.parametrize(
    ("problem_type", "num_labels"),
    [
        *((kind, 3) for kind in (None, *get_args(ProblemType))),
        *((kind, 1) for kind in (None, "multi_label_classification", "regression")),
    ],
)
def test_scores_are_those_of_pipelines(problem_type, num_labels):
    config = tiny_config(num_labels=num_labels, problem_type=problem_type, temperature=2.0)
    logits = torch.tensor([1.0, -2.0, 4.0])[:num_labels]
    scores = class_scores(logits, config)
    torch.testing.assert_close(scores, answer(RadioImageClassificationPipeline, config, logits))
    if problem_type != "regression" or KNOWS_REGRESSION:
        of_transformers = logits if problem_type == "regression" else logits / 2
        torch.testing.assert_close(scores, answer(ImageClassificationPipeline, config, of_transformers))


SQUARE = {"height": 96, "width": 128}
POLYGON = [[8.0, 8.0, 40.0, 8.0, 40.0, 24.0, 8.0, 24.0]]


@pytest.fixture
def annotations_processor():
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


def test_objects_are_as_transformers_has_them(annotations_processor):
    image = make_pixels()
    (labels,) = annotations_processor(images=[image], annotations=[objects()], return_tensors="pt")["labels"]
    detr = DetrImageProcessor(size=SQUARE, do_pad=False)
    (expected,) = detr(images=[image], annotations=[objects()], return_tensors="pt")["labels"]
    assert labels.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(labels[name], torch.as_tensor(values), msg=name)


def test_outlines_are_as_transformers_has_them_but_for_crowds(annotations_processor):
    image, annotation = make_pixels(), objects()
    annotation["annotations"].pop()  # transformers 5.24 fails on a crowd's mask
    options = {"annotations": annotation, "return_segmentation_masks": True, "return_tensors": "pt"}
    (labels,) = annotations_processor(images=image, **options)["labels"]
    (expected,) = DetrImageProcessor(size=SQUARE, do_pad=False)(images=image, **options)["labels"]
    assert torch.equal(labels["masks"].bool(), expected["masks"].bool())
    assert labels["masks"].shape == (2, 96, 128)
    with_crowd = annotations_processor(images=image, **{**options, "annotations": objects()})["labels"][0]
    assert torch.equal(with_crowd["masks"], labels["masks"])


def numbers_of_numpy(counts):
    return tuple(map(np.int64, counts))


@pytest.mark.parametrize("spelling", [str, bytes, list, np.array, numbers_of_numpy])
def test_run_lengths_are_outlines(annotations_processor, spelling):
    image, options = make_pixels(), {"return_segmentation_masks": True, "return_tensors": "pt"}
    mask = np.zeros(image.shape[:2], dtype=np.uint8)
    mask[8:24, 8:40] = 1  # the polygon
    outline = run_lengths(mask, compressed=spelling in (str, bytes))
    outline["counts"] = outline["counts"].encode() if spelling is bytes else spelling(outline["counts"])
    found, expected = (
        annotations_processor(image, annotations=annotation, **options)["labels"][0]
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
        [],
    ],
)
def test_run_lengths_that_do_not_fill_the_image_are_refused(annotations_processor, outline):
    with pytest.raises(ValueError, match=r"`segmentation` .*`annotations\[0\]`"):
        annotations_processor(
            make_pixels(48, 64), annotations=objects(segmentation=outline), return_segmentation_masks=True
        )


def test_boxes_are_shares_of_the_image_without_padding(annotations_processor):
    padded = annotations_processor(
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


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ([], "argument 2 is longer"),
        ([5], r"`annotations\[0\]` must be a dictionary .* got 5"),
        ([{"image_id": 1, "objects": []}], r"`annotations\[0\]` must be a dictionary"),
        ([{"image_id": 1, "segments_info": [], "file_name": "a.png"}], "`masks_path`"),
    ],
)
def test_annotations_that_are_none_are_refused(annotations_processor, annotations, message):
    with pytest.raises(ValueError, match=message):
        annotations_processor(images=[make_pixels()], annotations=annotations)


def test_a_box_that_is_no_number_is_not_dropped(annotations_processor):
    annotation = objects(bbox=[1, 2, 3, math.nan])
    (labels,) = annotations_processor(images=[make_pixels()], annotations=[annotation], return_tensors="pt")["labels"]
    assert labels["class_labels"].tolist() == [2, 0]
    assert labels["boxes"][0].isnan().any()


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


def test_panoptic_segments_become_objects_with_masks(annotations_processor, panoptic):
    annotation, folder = panoptic
    inputs = annotations_processor(
        make_pixels(), annotations=annotation, masks_path=folder, size=(96, 128), return_tensors="pt"
    )
    (labels,) = inputs["labels"]
    assert labels["class_labels"].tolist() == [3, 1]
    torch.testing.assert_close(labels["boxes"], torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.75, 0.75, 0.5, 0.5]]))
    assert labels["masks"].shape == (2, 96, 128)
    assert labels["masks"][0, :48, :64].all()
    assert labels["masks"][0].sum() == 48 * 64


def test_panoptic_crowds_are_left_out(annotations_processor, panoptic):
    annotation, folder = panoptic
    annotation["segments_info"][0]["iscrowd"] = 1
    (labels,) = annotations_processor(make_pixels(), annotations=annotation, masks_path=folder, return_tensors="pt")[
        "labels"
    ]
    assert labels["class_labels"].tolist() == [1]
    assert labels["iscrowd"].tolist() == [0]
    assert len(labels["masks"]) == 1


@pytest.mark.parametrize("name", ["../secret.png", "missing.png", None])
def test_panoptic_maps_must_lie_in_their_folder(annotations_processor, panoptic, name):
    annotation, folder = panoptic
    Image.new("RGB", (64, 48)).save(folder.parent / "secret.png")
    with pytest.raises(ValueError, match="`file_name`"):
        annotations_processor(make_pixels(), annotations={**annotation, "file_name": name}, masks_path=folder)


def test_panoptic_maps_must_have_the_size_of_the_image(annotations_processor, panoptic):
    annotation, folder = panoptic
    with pytest.raises(ValueError, match=r"'7.png' .*\(32, 64\), got \(48, 64\)"):
        annotations_processor(make_pixels(32, 64), annotations=annotation, masks_path=folder)


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
def test_maps_of_classes_are_resized_without_mixing_them(annotations_processor, convert):
    inputs = annotations_processor(make_pixels(), convert(quarters()), return_tensors="pt")
    assert inputs["labels"].dtype == torch.long
    assert torch.equal(inputs["labels"][0], torch.from_numpy(np.kron(quarters(), np.ones((2, 2), int))))


def test_background_is_ignored_where_labels_are_reduced(annotations_processor):
    inputs = annotations_processor(
        make_pixels(), segmentation_maps=quarters(), do_reduce_labels=True, return_tensors="pt"
    )
    assert inputs["labels"].unique().tolist() == [2, 4, IGNORED_CLASS]
    assert (inputs["labels"][0, :48, :64] == IGNORED_CLASS).all()


def test_padding_of_maps_is_ignored(annotations_processor):
    inputs = annotations_processor(
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
        (Image.fromarray(make_pixels()), {}, r"must each be \(height, width\) integers.* \(48, 64, 3\)"),
        (quarters() / 2, {}, r"must each be \(height, width\) integers.*float64"),
        ("map.png", {}, "must be PIL images, numpy arrays or torch tensors, got str"),
        (quarters()[:24], {}, r"`segmentation_maps\[0\]` must be of its image's size \(48, 64\), got \(24, 64\)"),
        (quarters(), {"annotations": objects()}, "`annotations`"),
        (quarters(), {"do_pack": True}, "`do_pack`"),
        (None, {"instance_id_to_semantic_id": {}}, "`segmentation_maps`"),
    ],
)
def test_maps_that_cannot_be_right_are_refused(annotations_processor, maps, options, message):
    with pytest.raises(ValueError, match=message):
        annotations_processor(make_pixels(), segmentation_maps=maps, **options)


def test_labels_in_numpy_and_in_lists(annotations_processor):
    options = {"segmentation_maps": quarters(), "instance_id_to_semantic_id": {0: 0, 3: 1, 5: 1, 255: 1}}
    inputs = annotations_processor(make_pixels(), return_tensors="np", **options)
    assert isinstance(inputs["mask_labels"][0], np.ndarray)
    assert isinstance(annotations_processor(make_pixels(), quarters(), return_tensors="np")["labels"], np.ndarray)
    assert isinstance(annotations_processor(make_pixels(), quarters())["labels"], list)
    labels = annotations_processor(make_pixels(), annotations=objects(), return_tensors="np")["labels"]
    assert isinstance(labels[0]["boxes"], np.ndarray)
