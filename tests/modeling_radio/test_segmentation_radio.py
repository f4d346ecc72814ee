"""Semantic segmentation: both heads, the loss and its labels."""

import pytest
import torch
import torch.nn.functional as F
from task_models import SIZE, images, tiny_config

from modeling_radio import RadioConfig, RadioForSemanticSegmentation, RadioImageProcessor, RadioModel


def build(**overrides):
    return RadioForSemanticSegmentation(tiny_config(**overrides)).eval()


def test_linear_head_is_batch_norm_and_one_linear_layer_on_the_features():
    model, batch = build(), images()
    norm, classifier = model.decode_head.norm, model.decode_head.classifier
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    radio = RadioModel(model.config).eval()
    radio.radio_model = model.radio_model
    with torch.no_grad():
        features = radio(batch).features
        normed = (features - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
        expected = F.linear(normed, classifier.weight[:, :, 0, 0], classifier.bias)
        logits = model(batch).logits
    assert logits.shape == (2, 3, 3, 5)
    torch.testing.assert_close(logits.flatten(2).transpose(1, 2), expected, rtol=0, atol=1e-5)


def test_dpt_head_reads_the_chosen_blocks():
    model, batch = build(segmentation_head="dpt", dpt_indices=[0, 1, 1, 2]), images()
    with torch.no_grad():
        before = model(batch).logits
        model.radio_model.model.blocks[3].mlp.fc2.weight.normal_()
        torch.testing.assert_close(model(batch).logits, before, rtol=0, atol=0)
        model.radio_model.model.blocks[2].mlp.fc2.weight.normal_()
        assert not torch.equal(model(batch).logits, before)
    assert before.shape == (2, 3, 64, 96)  # 16 for each patch, the 3 x 5 patches rounded up to even


def test_loss_is_the_cross_entropy_of_resized_logits_without_ignored_pixels():
    model, batch, labels = build(), images(), torch.randint(0, 3, (2, *SIZE))
    labels[:, :20] = 255
    out = model(batch, labels=labels)
    logits = F.interpolate(out.logits, SIZE, mode="bilinear")
    torch.testing.assert_close(out.loss, F.cross_entropy(logits, labels, ignore_index=255))
    small = model(batch, labels=labels.to(torch.uint8)).loss
    torch.testing.assert_close(small, out.loss)


def test_another_label_can_be_the_ignored_one():
    model, batch, labels = build(semantic_loss_ignore_index=0), images(), torch.randint(0, 3, (2, *SIZE))
    out = model(batch, labels=labels)
    logits = F.interpolate(out.logits, SIZE, mode="bilinear")
    torch.testing.assert_close(out.loss, F.cross_entropy(logits, labels, ignore_index=0))


def test_masks_without_any_class_train_to_nothing():
    model = build()
    loss = model(images(), labels=torch.full((2, *SIZE), 255)).loss
    loss.backward()
    assert loss.item() == 0


def test_the_processor_labels_each_pixel_of_the_original():
    model = build()
    processor = RadioImageProcessor.from_model_config(model.config)
    picture = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)
    with torch.no_grad():
        outputs = model(**processor(picture, return_tensors="pt"))
    (segmentation,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(50, 70)])
    assert segmentation.shape == (50, 70)
    assert set(segmentation.unique().tolist()) <= {0, 1, 2}


@pytest.mark.parametrize("label", [3, -1, 254])
def test_labels_outside_the_classes(label):
    labels = torch.zeros(2, *SIZE, dtype=torch.long)
    labels[1, 7, 9] = label
    with pytest.raises(
        ValueError, match=rf"`labels` must lie in \[0, 3\), .* or be 255, which is ignored, got {label}"
    ):
        build()(images(), labels=labels)


def test_labels_may_have_a_size_of_their_own():
    model, batch, labels = build(), images(), torch.randint(0, 3, (2, 30, 61))
    out = model(batch, labels=labels)
    logits = F.interpolate(out.logits, (30, 61), mode="bilinear", align_corners=False)
    torch.testing.assert_close(out.loss, F.cross_entropy(logits, labels))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(1, *SIZE).long(), r"`labels` must have the shape \(2, height, width\), .* got \(1, 48, 80\)"),
        (torch.zeros(2, 1, *SIZE).long(), r"`labels` must have the shape .* got \(2, 1, 48, 80\)"),
        (torch.zeros(2, 0, 80).long(), r"`labels` must have the shape .* got \(2, 0, 80\)"),
        (torch.zeros(2, *SIZE), "`labels` must be integers, the class of each pixel, got torch.float32"),
    ],
)
def test_masks_of_another_shape_or_type(labels, message):
    with pytest.raises(ValueError, match=message):
        build()(images(), labels=labels)


def test_the_ignored_label_is_no_class():
    config = RadioConfig.from_preset("radio-test", num_labels=300)
    with pytest.raises(ValueError, match="`semantic_loss_ignore_index` must not be its default, 255, with 300"):
        RadioForSemanticSegmentation(config)
    config.semantic_loss_ignore_index = -100
    RadioForSemanticSegmentation(config)
