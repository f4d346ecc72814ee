"""Depth estimation: the head, the scale-invariant loss and its labels."""

import math

import pytest
import torch
from task_models import SIZE, images, tiny_config

from modeling_radio import RadioForDepthEstimation, RadioImageProcessor
from modeling_radio.heads_radio import scale_invariant_loss


def build(**overrides):
    return RadioForDepthEstimation(tiny_config(**overrides)).eval()


@pytest.mark.parametrize("fields", [{}, {"patch_size": 14, "max_img_size": 224}])
def test_one_positive_depth_for_each_pixel(fields):
    model = build(**fields)
    batch = torch.rand(2, 3, 3 * model.patch_size, 4 * model.patch_size)
    depth = model(batch).predicted_depth
    assert depth.shape == (2, *batch.shape[-2:])
    assert (depth > 0).all()


def test_pixels_that_start_at_depth_zero_still_learn():
    model = build()
    with torch.no_grad():
        model.depth_head.head.head[-2].bias.fill_(-30)
    out = model(images(), labels=torch.ones(2, *SIZE))
    out.loss.backward()
    assert out.loss.isfinite()
    assert model.depth_head.head.head[-2].bias.grad.abs().item() > 0


def test_loss_by_hand():
    predicted = torch.tensor([[[math.e, math.e**3], [1.0, 7.0]]])
    true = torch.tensor([[[1.0, 1.0], [1.0, 0.0]]])
    # log differences 1, 3, 0: mean square 10 / 3, half the squared mean 8 / 9
    assert scale_invariant_loss(predicted, true).item() == pytest.approx(10 / 3 - 8 / 9, abs=1e-5)


def test_loss_is_zero_at_the_truth_and_half_forgives_a_common_factor():
    true = torch.rand(2, 4, 4) + 0.5
    assert scale_invariant_loss(true, true).item() == 0
    assert scale_invariant_loss(2 * true, true).item() == pytest.approx(0.5 * math.log(2) ** 2, abs=1e-5)


@pytest.mark.parametrize("unknown", [0.0, -1.0, math.nan, math.inf])
def test_pixels_of_unknown_depth_do_not_count(unknown):
    predicted, true = torch.rand(2, 4, 4) + 0.5, torch.rand(2, 4, 4) + 0.5
    predicted.requires_grad_()
    true[:, 2:] = unknown
    loss = scale_invariant_loss(predicted, true)
    torch.testing.assert_close(loss, scale_invariant_loss(predicted[:, :2], true[:, :2]))
    (gradient,) = torch.autograd.grad(loss, predicted)
    assert gradient.isfinite().all()
    assert (gradient[:, 2:] == 0).all()


def test_images_without_any_depth_leave_the_others_loss_alone():
    predicted, true = torch.rand(2, 4, 4) + 0.5, torch.rand(2, 4, 4) + 0.5
    true[1] = 0
    torch.testing.assert_close(scale_invariant_loss(predicted, true), scale_invariant_loss(predicted[:1], true[:1]))
    assert scale_invariant_loss(predicted, torch.zeros(2, 4, 4)).item() == 0


def test_the_processor_resizes_depth_to_the_original():
    model = build().to(torch.bfloat16)
    processor = RadioImageProcessor.from_model_config(model.config)
    picture = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)
    inputs = processor(picture, return_tensors="pt").to(torch.bfloat16)
    with torch.no_grad():
        outputs = model(**inputs)
    (resized,) = processor.post_process_depth_estimation(outputs, target_sizes=[(50, 70)])
    assert resized["predicted_depth"].shape == (50, 70)
    assert resized["predicted_depth"].dtype == torch.float32
    (own,) = processor.post_process_depth_estimation(outputs)
    torch.testing.assert_close(own["predicted_depth"], outputs.predicted_depth[0].float(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.rand(2, 24, 40), r"`labels` must have the shape \(2, 48, 80\).* got \(2, 24, 40\). Resize the maps"),
        (torch.ones(2, *SIZE).int(), "`labels` must be floating point, .* got torch.int32. Divide 16-bit depth by its"),
    ],
)
def test_labels_of_another_shape_or_type(labels, message):
    with pytest.raises(ValueError, match=message):
        build()(images(), labels=labels)
