"""Connected regions beside SciPy's, and outlines by a SAM that answers what is asked of it."""

from types import SimpleNamespace

import pytest
import torch
from scipy import ndimage
from tiny_sam3 import build_tracker

from modeling_radio.regions_radio import connected_parts, find_regions, refine_by_sam


def serpentine(side):
    """One long path of ones."""
    path = torch.zeros(side, side, dtype=torch.long)
    path[::2] = 1
    path[1::4, -1], path[3::4, 0] = 1, 1
    return path


MAPS = {
    "noise": lambda: torch.randint(0, 3, (40, 57)),
    "rare": lambda: (torch.rand(64, 33) > 0.6).long(),
    "checkers": lambda: (torch.arange(12)[:, None] + torch.arange(9)) % 2,
    "path": lambda: serpentine(31),
    "row": lambda: torch.tensor([[0, 1, 1, 0, 1]]),
    "column": lambda: torch.tensor([[2], [2], [0]]),
    "place": lambda: torch.tensor([[5]]),
    "edges": lambda: torch.tensor([[1, 0, 1], [0, 0, 0], [1, 0, 1]]),
}


@pytest.mark.parametrize("name", MAPS)
def test_parts_are_scipys(name):
    labels = MAPS[name]()
    found, number = connected_parts(labels), 0
    for label in labels.unique().tolist():
        expected, count = ndimage.label((labels == label).numpy(), structure=torch.ones(3, 3).numpy())
        number += count
        pairs = {pair for pair in zip(found.flatten().tolist(), expected.flatten().tolist(), strict=True) if pair[1]}
        assert len(pairs) == len(dict(pairs)) == count
    assert found.unique().tolist() == list(range(number))


def test_regions_have_boxes_areas_and_mean_probabilities():
    probabilities = torch.full((3, 6, 8), 0.2)
    probabilities[1, 1:3, 2:5] = 0.9
    probabilities[1, 2, 4] = 0.6
    probabilities[2, 5, 7] = 0.8
    regions = find_regions(probabilities, least=0.5)
    by_label = {label: index for index, label in enumerate(regions.labels.tolist())}
    assert sorted(by_label) == [1, 2]
    one, two = by_label[1], by_label[2]
    assert regions.boxes[[one, two]].tolist() == [[2, 1, 5, 3], [7, 5, 8, 6]]
    assert regions.areas[[one, two]].tolist() == [6, 1]
    torch.testing.assert_close(regions.scores[[one, two]], torch.tensor([(5 * 0.9 + 0.6) / 6, 0.8]))
    assert torch.equal(regions.numbers == one, probabilities[1] > 0.5)
    assert (regions.numbers >= 0).sum() == 7
    assert find_regions(probabilities, least=0.5, least_area=2).labels.tolist() == [1]
    nothing = find_regions(probabilities, least=0.95)
    assert [len(part) for part in nothing[1:]] == [0] * 4
    assert (nothing.numbers == -1).all()


class Drawing:
    """A SAM that draws each box, 16 pixels larger to each side, and rates all masks alike."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, rating, side=64):
        vision = SimpleNamespace(image_size=side)
        self.config = SimpleNamespace(model_type="sam3_tracker", vision_config=vision)
        self.prompt_encoder = SimpleNamespace(mask_input_size=(16, 16))
        self.rating, self.side, self.asked = rating, side, []

    def get_image_embeddings(self, image):
        assert image.shape == (1, 3, self.side, self.side)
        self.image = image
        return [image]

    def __call__(self, **prompts):
        self.asked.append(prompts)
        places = torch.arange(16) * self.side / 16
        masks = []
        for left, top, right, bottom in prompts["input_boxes"][0].tolist():
            rows = (places >= top - 16) & (places < bottom + 16)
            cols = (places >= left - 16) & (places < right + 16)
            masks.append(torch.where(rows[:, None] & cols, 2.0, -2.0))
        ratings = torch.full((1, len(masks), 1), self.rating)
        return SimpleNamespace(pred_masks=torch.stack(masks)[None, :, None], iou_scores=ratings)


def two_halves():
    """Probabilities of three classes: the second has a square in the middle, the third nothing."""
    probabilities = torch.zeros(1, 3, 16, 16)
    probabilities[:, 0] = 0.6
    probabilities[:, 1, 4:12, 4:12] = 0.9
    return probabilities


def test_a_mask_that_sam_trusts_takes_the_place_of_the_region():
    sam, before, image = Drawing(0.95), two_halves(), torch.rand(1, 3, 128, 128)
    after = refine_by_sam(sam, image, before)
    assert after.shape == (1, 3, 128, 128)
    torch.testing.assert_close(sam.image.mean(), (2 * image - 1).mean(), atol=0.02, rtol=0)
    first, second = sam.asked
    assert first["multimask_output"] is False
    left, top, right, bottom = second["input_boxes"][0, 0].tolist()
    assert (left, top, right, bottom) == pytest.approx((15.5, 15.5, 47.5, 47.5), abs=1.1)
    col, row = second["input_points"][0, 0, 0].tolist()
    assert 15 < col < 48
    assert 15 < row < 48
    assert second["input_masks"].max().item() == pytest.approx(0.005 * 0.9, rel=1e-3)
    assert second["input_masks"].min() == 0
    # The larger mask has no more than the class's own probability, which is 0 beyond the square.
    inside = after[0, 1, 40:88, 40:88]
    likely = 0.9 * torch.tensor(2.0).sigmoid().item()
    torch.testing.assert_close(inside, torch.full_like(inside, likely), atol=1e-4, rtol=0)
    assert after[0, 2].max() == 0
    assert (after[0].argmax(0)[44:84, 44:84] == 1).all()


def test_masks_that_sam_does_not_trust_change_nothing():
    before = two_halves()
    enlarged = torch.nn.functional.interpolate(before, (128, 128), mode="bilinear")
    after = refine_by_sam(Drawing(0.5), torch.rand(1, 3, 128, 128), before)
    assert torch.equal(after.argmax(1), enlarged.argmax(1))
    trusted = refine_by_sam(Drawing(0.5), torch.rand(1, 3, 128, 128), before, least_iou=0.4)
    assert not torch.equal(trusted, after)


def test_small_and_unlikely_regions_are_not_asked_for():
    sam, before = Drawing(0.95), torch.full((1, 2, 16, 16), 0.05)
    before[0, 1, 3, 3] = 0.9
    after = refine_by_sam(sam, torch.rand(1, 3, 64, 64), before)
    assert sam.asked == []
    torch.testing.assert_close(after, torch.nn.functional.interpolate(before, (64, 64), mode="bilinear"))


@torch.no_grad()
def test_transformers_own_tracker_takes_the_prompts():
    sam, image = build_tracker(), torch.rand(2, 3, 96, 128)
    before = torch.rand(2, 3, 3, 4).softmax(dim=1)
    own = torch.nn.functional.interpolate(before, (96, 128), mode="bilinear")
    after = refine_by_sam(sam, image, before, least_iou=-10.0)
    assert after.shape == own.shape
    assert after.isfinite().all()
    assert not torch.allclose(after, own, atol=1e-3)
    alone = torch.cat([refine_by_sam(sam, image[[index]], before[[index]], -10.0) for index in range(2)])
    torch.testing.assert_close(after, alone, atol=1e-5, rtol=0)


def test_another_model_is_refused():
    with pytest.raises(ValueError, match="`sam`"):
        refine_by_sam(SimpleNamespace(config=SimpleNamespace(model_type="sam")), torch.rand(1, 3, 32, 32), two_halves())
