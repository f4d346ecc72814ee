"""What undoes the processor's geometry: maps, labels, depths, boxes and masks in the original images."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from processor_cases import detections, make_pixels

from modeling_radio import post_processing_radio
from modeling_radio.image_processing_radio import RadioImageProcessor


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
    inner = (
        slice(None),
        slice(10, -10),
        slice(10, -10),
    )  # outermost half patches stay constant
    torch.testing.assert_close(restored[inner], plane(90, 130)[0][inner], atol=1e-5, rtol=0)


@pytest.mark.parametrize("empty", [False, True])
def test_equal_changes_of_size_run_at_once_with_the_same_values(monkeypatch, empty):
    maps = [torch.randn(0 if empty else 3, *grid) for grid in [(3, 4), (5, 2), (3, 4), (3, 4)]]
    sizes = [(48, 64), (80, 32), (48, 64), (96, 128)]
    alone = [
        F.interpolate(image_map.unsqueeze(1), size=size, mode="bilinear", align_corners=False).squeeze(1)
        for image_map, size in zip(maps, sizes, strict=True)
    ]
    calls = []
    interpolate = F.interpolate

    def count(joined, **options):
        calls.append(options["size"])
        return interpolate(joined, **options)

    monkeypatch.setattr(post_processing_radio.F, "interpolate", count)
    together = post_processing_radio._resize_maps(maps, sizes)
    assert calls == [(48, 64), (80, 32), (96, 128)]
    assert all(torch.equal(first, second) for first, second in zip(together, alone, strict=True))


def test_padding_is_cut_off_feature_maps(processor):
    originals = [(48, 64), (80, 32)]
    inputs = processor([make_pixels(*size) for size in originals], do_pad=True, return_tensors="pt")
    maps = torch.full((2, 2, 5, 4), 99.0)
    maps[:1, :, :3, :4] = plane(3, 4)
    maps[1:, :, :5, :2] = plane(5, 2)
    restored = processor.post_process_features(maps, originals, pixel_mask=inputs["pixel_mask"])
    assert [tuple(feature_map.shape) for feature_map in restored] == [(2, 48, 64), (2, 80, 32)]
    assert all(feature_map.max() < 1 for feature_map in restored)


def test_packed_features_return_to_the_image(processor):
    grids = torch.tensor([[3, 4], [5, 2]])
    packed = torch.cat([plane(*grid)[0].flatten(1).T for grid in grids.tolist()])
    restored = processor.post_process_features(packed, [(48, 64), (80, 32)], image_grid_hw=grids)
    (expected,) = processor.post_process_features(plane(5, 2), [(80, 32)])
    torch.testing.assert_close(restored[1], expected)


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


def test_masks_return_to_the_image(processor):
    outputs = detections((0, 0.9, 0.5, 0.5, 1.0, 1.0))
    outputs.pred_masks = torch.full((1, 1, 4, 4), -1.0)
    outputs.pred_masks[..., :2] = 1
    (found,) = processor.post_process_instances(outputs, [(20, 40)])
    mask = found["masks"]
    assert mask.shape == (1, 20, 40)
    assert mask.dtype == torch.bool
    assert mask[..., :20].all()
    assert not mask[..., 20:].any()


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


def test_objects_are_ranked_once_for_boxes_and_masks(processor, monkeypatch):
    ranked = []

    def rank(logits, threshold):
        ranked.append(len(logits))
        return rank_objects(logits, threshold)

    rank_objects = post_processing_radio._rank_objects
    monkeypatch.setattr(post_processing_radio, "_rank_objects", rank)
    outputs = detections((0, 0.9, 0.5, 0.5, 1.0, 1.0))
    outputs.pred_masks = torch.ones(1, 1, 4, 4)
    processor.post_process_instances(outputs, [(8, 16)])
    assert ranked == [1]


def test_boxes_return_to_the_image_and_stay_inside(processor):
    original = (300, 500)
    resized = processor.get_output_size(*original)
    box = torch.tensor([[0.1, 0.2, 0.7, 1.1]])
    in_pixels = [box * torch.tensor([resized[1], resized[0]] * 2)]
    (restored,) = processor.post_process_boxes(in_pixels, [original], [resized])
    torch.testing.assert_close(restored, torch.tensor([[50.0, 60.0, 350.0, 300.0]]))


def test_target_sizes_must_match_the_batch(processor):
    with pytest.raises(ValueError, match="each of the 1 images, got 2"):
        processor.post_process_features(plane(3, 4), [(48, 64), (48, 64)])


def test_post_process_object_detection():
    outputs = detections((0, 0.6, 0.5, 0.5, 0.5, 0.5), (2, 0.9, 0.1, 0.5, 0.4, 1.0), (1, 0.3, 0.5, 0.5, 0.1, 0.1))
    processor = RadioImageProcessor()
    (found,) = processor.post_process_object_detection(outputs, threshold=0.5, target_sizes=torch.tensor([[100, 200]]))
    torch.testing.assert_close(found["scores"], torch.tensor([0.9, 0.6]))
    assert found["labels"].tolist() == [2, 0]
    torch.testing.assert_close(found["boxes"], torch.tensor([[0.0, 0, 60, 100], [50, 25, 150, 75]]))  # first: clipped
    (shares,) = processor.post_process_object_detection(outputs, threshold=0.5)
    torch.testing.assert_close(shares["boxes"], torch.tensor([[0.0, 0, 0.3, 1], [0.25, 0.25, 0.75, 0.75]]))
    with pytest.raises(ValueError, match="`target_sizes` must have one"):
        processor.post_process_object_detection(outputs, target_sizes=[(1, 1), (2, 2)])


def test_one_query_may_be_two_classes():
    outputs = detections((0, 0.6, 0.5, 0.5, 0.5, 0.5), (1, 0.1, 0.5, 0.5, 0.1, 0.1))
    outputs.logits[0, 0, 2] = 3
    (found,) = RadioImageProcessor().post_process_object_detection(outputs)
    assert found["labels"].tolist() == [2, 0]
    torch.testing.assert_close(found["boxes"][0], found["boxes"][1])


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


def test_images_without_objects_have_no_masks():
    outputs = detections((0, 0.6, 0.5, 0.5, 0.5, 0.5))
    outputs.pred_masks = torch.zeros(1, 1, 16, 16)
    (found,) = RadioImageProcessor().post_process_instances(outputs, [(20, 40)], threshold=0.9)
    assert found["masks"].shape == (0, 20, 40)


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


def test_outputs_of_universal_segmentation_are_the_same(processor):
    outputs = overlapping()
    universal = SimpleNamespace(class_queries_logits=outputs.logits, masks_queries_logits=outputs.pred_masks)
    for options in ({}, {"return_binary_maps": True}):
        (expected,) = processor.post_process_instance_segmentation(outputs, **options)
        (found,) = processor.post_process_instance_segmentation(universal, **options)
        assert torch.equal(found["segmentation"], expected["segmentation"])
        assert found["segments_info"] == expected["segments_info"]


def test_images_without_instances_have_an_empty_map(processor):
    (found,) = processor.post_process_instance_segmentation(overlapping(), threshold=0.95)
    assert found["segments_info"] == []
    assert (found["segmentation"] == -1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_threshold": 1.5}, r"`mask_threshold` must be in \[0, 1\], got 1\.5"),
        ({"overlap_mask_area_threshold": float("nan")}, r"`overlap_mask_area_threshold` must be in \[0, 1\], got nan"),
        ({"return_coco_annotation": True, "return_binary_maps": True}, "`return_binary_maps` must be False"),
        ({"target_sizes": []}, "`target_sizes` must have one"),
    ],
)
def test_instances_refuse_options_that_cannot_be_right(processor, options, message):
    with pytest.raises(ValueError, match=message):
        processor.post_process_instance_segmentation(overlapping(), **options)


def test_outputs_of_instances_are_no_maps_of_classes(processor):
    with pytest.raises(ValueError, match=r"must be maps .* got \(1, 3, 3\).*`pipeline_class=RadioInstanceSegm"):
        processor.post_process_semantic_segmentation(overlapping())
