"""Segments: how masks that overlap share the pixels, and how segments are described."""

import torch

from modeling_radio.post_processing_radio import NO_SEGMENT, describe_segments, divide_pixels, segments_of_classes


def stripes(*spans):
    """Return masks of one row of 10 pixels from the first pixel of each to the one behind its last."""
    masks = torch.zeros(len(spans), 1, 10, dtype=torch.bool)
    for mask, (start, stop) in zip(masks, spans, strict=True):
        mask[0, start:stop] = True
    return masks


def test_pixels_go_to_the_most_certain_object():
    divided = divide_pixels(stripes((0, 6), (4, 10)), least_share=0.5)
    assert torch.equal(divided, stripes((0, 6), (6, 10)))


def test_objects_of_which_little_is_left_are_dropped_and_free_their_pixels():
    divided = divide_pixels(stripes((0, 6), (4, 8), (6, 10)), least_share=0.5)
    assert torch.equal(divided, stripes((0, 6), (0, 0), (6, 10)))
    assert divide_pixels(stripes(), 0.5).shape == (0, 1, 10)


def test_empty_masks_are_no_segments():
    masks, scores, labels = stripes((0, 3), (0, 0), (5, 8)), torch.tensor([0.9, 0.8, 0.5]), torch.tensor([4, 5, 4])
    result = describe_segments(masks, scores, labels, as_masks=False)
    assert result["segmentation"].tolist() == [[0, 0, 0, NO_SEGMENT, NO_SEGMENT, 1, 1, 1, NO_SEGMENT, NO_SEGMENT]]
    assert [segment["id"] for segment in result["segments_info"]] == [0, 1]
    assert [segment["label_id"] for segment in result["segments_info"]] == [4, 4]
    assert [round(segment["score"], 3) for segment in result["segments_info"]] == [0.9, 0.5]
    assert torch.equal(describe_segments(masks, scores, labels, as_masks=True)["segmentation"], masks[[0, 2]])


def test_classes_are_segments_by_their_own_numbers():
    result = segments_of_classes(torch.tensor([[2, 2, 0]]))
    assert result["segmentation"].tolist() == [[2, 2, 0]]
    assert result["segments_info"] == [
        {"id": label, "label_id": label, "was_fused": False, "score": None} for label in (0, 2)
    ]
