"""Detection and instance segmentation: RF-DETR's decoder over RADIO's features."""

import functools

import pytest
import task_models
import torch
import torch.nn.functional as F
from comparisons import assert_same_weights
from PIL import Image
from processor_cases import detections
from task_models import images, tiny_config
from torch import nn
from torchvision.ops import box_convert
from transformers import AutoModelForUniversalSegmentation, BitsAndBytesConfig
from transformers.models.rf_detr.modeling_rf_detr import RfDetrInstanceSegmentationOutput
from transformers.utils.generic import ModelOutput

from modeling_radio import (
    RadioForInstanceSegmentation,
    RadioForObjectDetection,
    RadioForUniversalSegmentation,
    RadioImageProcessor,
    RadioModel,
)
from modeling_radio.pipelines_radio import RadioInstanceSegmentationPipeline


MODELS = (RadioForObjectDetection, RadioForInstanceSegmentation)
SIZE = (64, 96)
detection_images = functools.partial(task_models.images, size=SIZE)


def label(*objects, size=SIZE):
    """One image's labels from `(class, center x, center y, width, height)` each."""
    rows = torch.tensor(objects).reshape(-1, 5)
    masks = torch.zeros(len(rows), *size)
    for mask, (x, y, width, height) in zip(masks, rows[:, 1:].tolist(), strict=True):
        left, right = round((x - width / 2) * size[1]), round((x + width / 2) * size[1])
        top, bottom = round((y - height / 2) * size[0]), round((y + height / 2) * size[0])
        mask[top:bottom, left:right] = 1
    return {"class_labels": rows[:, 0].long(), "boxes": rows[:, 1:], "masks": masks, "image_id": torch.tensor(7)}


def some_labels():
    return [label((0, 0.5, 0.5, 0.5, 0.5), (2, 0.25, 0.5, 0.25, 0.5)), label()]


@pytest.fixture(params=MODELS, ids=["boxes", "masks"])
def model(request):
    return request.param(tiny_config()).eval()


# What comes out


def test_reads_the_last_block_without_the_final_norm():
    model = RadioForObjectDetection(tiny_config(detection_indices=[1, 3], use_final_norm=True)).eval()
    maps, batch = [], detection_images()
    model.detector.register_forward_pre_hook(lambda _module, inputs: maps.append(inputs[0]))
    with torch.no_grad():
        model(batch)
        states = model.radio_model(batch, output_hidden_states=True).hidden_states
    expected = torch.cat([states[2], states[4]], dim=2)[:, model.config.num_prefix_tokens :]
    assert torch.equal(maps[0].flatten(2).transpose(1, 2), expected)


def test_queries_start_from_the_patches_that_are_image(model):
    """The right half is padding: twelve queries take the twelve patches of the left half, as shares of that half."""
    mask = torch.ones(1, 4, 6)
    mask[:, :, 3:] = 0
    maps = torch.randn(1, len(model.config.detection_blocks) * 32, 4, 6)
    with torch.no_grad():
        start = model.detector(maps, pixel_mask=mask).init_reference_points[0, :, :2]
    grid = torch.cartesian_prod((torch.arange(3) + 0.5) / 3, (torch.arange(4) + 0.5) / 4)
    distances = torch.cdist(grid, start)
    assert distances.min(dim=1).values.max() < 0.01


def test_pixel_mask_reaches_the_detector(model):
    batch = detection_images()
    mask = torch.ones(2, *SIZE, dtype=torch.long)
    with torch.no_grad():
        plain, full = model(batch), model(batch, pixel_mask=mask)
        mask[:, :, 64:] = 0
        cut = model(batch, pixel_mask=mask)
    torch.testing.assert_close(full.pred_boxes, plain.pred_boxes, rtol=0, atol=0)
    assert not torch.equal(cut.pred_boxes, plain.pred_boxes)


# Training


def test_images_without_objects_train(model):
    model.train()
    loss = model(detection_images(), labels=[label(), label()]).loss
    loss.backward()
    assert loss.ndim == 0
    assert torch.isfinite(loss)
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_images_without_objects_are_one_pass_of_the_detector():
    """FSDP gathers the weights of the whole for that pass."""
    model, passes = RadioForInstanceSegmentation(tiny_config()), []
    model.detector.register_forward_hook(lambda *_: passes.append("whole"))
    model.detector.model.register_forward_hook(lambda *_: passes.append("boxes"))
    model(detection_images(), labels=[label(), label()])
    assert passes == ["boxes", "whole"]


def test_training_without_labels_has_its_groups_after_an_evaluation_with_them(model):
    model.eval()
    model(detection_images(), labels=some_labels())
    assert model.detector.config.group_detr == 1
    model.train()
    model(detection_images())
    assert model.detector.config.group_detr == model.config.detection_num_groups > 1


def test_evaluation_loss_counts_one_group_of_queries():
    several = RadioForObjectDetection(tiny_config(detection_num_groups=3)).eval()
    one = RadioForObjectDetection(tiny_config(detection_num_groups=1)).eval()
    state = several.state_dict()
    one.load_state_dict(
        {name: state[name][: len(old)] if old.ndim else state[name] for name, old in one.state_dict().items()}
    )
    batch = detection_images()
    with torch.no_grad():
        expected = one(batch, labels=some_labels()).loss
        torch.testing.assert_close(several(batch, labels=some_labels()).loss, expected)


def test_autocast_leaves_the_detector_in_float32(model):
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(detection_images(), labels=some_labels())
    output.loss.backward()
    assert output.pred_boxes.dtype == torch.float32
    assert torch.isfinite(output.loss)


@pytest.mark.parametrize("options", [{"load_in_4bit": True}, {"load_in_8bit": True}], ids=["4 bits", "8 bits"])
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
def test_quantizers_leave_the_detector_in_float32(options, model, tmp_path):
    pytest.importorskip("bitsandbytes")
    model.save_pretrained(tmp_path)
    quantized = type(model).from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(**options))
    assert type(quantized.radio_model.model.blocks[0].mlp.fc1) is not nn.Linear
    assert_same_weights(quantized.detector, model.detector)
    assert torch.isfinite(quantized(detection_images(), labels=some_labels()).loss)


# Saving and opening


@pytest.mark.parametrize("model_class", MODELS)
def test_starting_values_are_those_of_rf_detr(model_class, tmp_path):
    """Deviations follow the width, and modules without weights of their own set theirs, also in remote code."""
    RadioModel(tiny_config()).save_pretrained(tmp_path)
    for model in (model_class(tiny_config()), model_class.from_pretrained(tmp_path)):
        detector = model.detector if model_class is RadioForObjectDetection else model.detector.model
        width = model.config.detection_hidden_size
        assert not detector.model.reference_point_embed.weight.any()
        assert detector.model.query_feat.weight.std().item() == pytest.approx(1, rel=0.2)
        for query in (detector.model.decoder.layers[0].self_attn.q_proj, detector.model.enc_output[0]):
            assert query.weight.std().item() == pytest.approx(width**-0.5, rel=0.1)  # Glorot's
        torch.testing.assert_close(detector.class_embed.bias.sigmoid(), torch.full((3,), 0.01))
        assert not detector.bbox_embed.layers[-1].weight.any()
        for layer in detector.model.decoder.layers:
            assert layer.cross_attn.sampling_offsets.bias.abs().max() == 4  # the fourth of four points
            assert not layer.cross_attn.sampling_offsets.weight.any()


def test_pipeline_of_instances(monkeypatch):
    model = RadioForInstanceSegmentation(tiny_config(id2label={0: "cat", 1: "dog", 2: "bird"})).eval()
    segment = RadioInstanceSegmentationPipeline(model=model, image_processor=RadioImageProcessor())
    outputs = detections((0, 0.6, 0.5, 0.5, 0.5, 0.5), (2, 0.9, 0.25, 0.5, 0.5, 1.0))
    outputs.pred_masks = torch.full((1, 2, 16, 16), -5.0)
    outputs.pred_masks[0, 1, :, :8] = torch.tensor(0.7).logit()
    monkeypatch.setattr(segment, "forward", lambda _inputs: ModelOutput(**vars(outputs), target_size=[(20, 40)]))
    found = segment(Image.new("RGB", (40, 20)))
    assert [(part["label"], round(part["score"], 3)) for part in found] == [("bird", 0.9), ("cat", 0.6)]
    assert [part["mask"].getextrema() for part in found] == [(0, 255), (0, 0)]
    assert found[0]["mask"].size == (40, 20)
    assert segment(Image.new("RGB", (40, 20)), threshold=0.5, mask_threshold=0.8)[0]["mask"].getextrema() == (0, 0)
    with pytest.raises(ValueError, match="`subtask`"):
        segment(Image.new("RGB", (40, 20)), subtask="panoptic")


# Bad input


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([label((3, 0.5, 0.5, 0.1, 0.1)), label()], "`class_labels`"),
        ([label(), label((-1, 0.5, 0.5, 0.1, 0.1))], "`class_labels`"),
        ([label((0, 0.9, 0.5, 0.3, 0.1)), label()], "`boxes`"),
        ([{**label((0, 0.5, 0.5, 0.1, 0.1)), "boxes": torch.tensor([[30.0, 20, 8, 8]])}, label()], "Divide pixels by"),
        ([label((0, 0.5, 0.5, 0.0, 0.1)), label()], "not empty"),
        ([{**label((0, 0.5, 0.5, 0.1, 0.1)), "boxes": torch.full((1, 4), torch.nan)}, label()], "not empty, got .nan"),
        ([label()], "`labels`"),
        (label(), "`labels`"),
        ([{**label(), "boxes": torch.tensor([])}, label()], r"torch.zeros\(0, 4\)"),
        ([{**label(), "class_labels": torch.tensor([1])}, label()], "`class_labels`"),
        ([label(*[(0, 0.5, 0.5, 0.1, 0.1)] * 13), label()], "`boxes`"),
    ],
)
def test_wrong_labels(labels, message):
    model = RadioForObjectDetection(tiny_config())
    with pytest.raises(ValueError, match=message):
        model(detection_images(), labels=labels)


@pytest.mark.parametrize("masks", [torch.zeros(1, 32, 96), torch.zeros(2, *SIZE)])
def test_wrong_masks(masks):
    model = RadioForInstanceSegmentation(tiny_config())
    with pytest.raises(ValueError, match="`masks`"):
        model(detection_images(1), labels=[{**label((0, 0.5, 0.5, 0.1, 0.1)), "masks": masks}])


def test_wrong_images():
    model = RadioForObjectDetection(tiny_config())
    with pytest.raises(ValueError, match="`detection_num_queries`"):
        model(detection_images(size=(32, 48)))
    with pytest.raises(ValueError, match="`pixel_mask`"):
        model(detection_images(), pixel_mask=torch.ones(2, 4, 6))
    with pytest.raises(ValueError, match="`window_size`"):
        model(detection_images(), window_size="wide")
    small = RadioForInstanceSegmentation(tiny_config(patch_size=1, max_img_size=8, detection_num_queries=1))
    with pytest.raises(ValueError, match="`pixel_values`"):
        small(detection_images(size=(2, 3)))


# Learning


@pytest.mark.slow
def test_learns_a_few_images():
    from torchmetrics.detection import MeanAveragePrecision

    scenes, labels = [], []
    for index in range(6):
        scene, one = torch.full((3, 128, 128), 0.5), []
        for class_index, side in ((index % 3, 48), ((index + 1) % 3, 32))[: index % 3]:
            left, top = torch.randint(0, 128 - side, (2,)).tolist()
            scene[:, top : top + side, left : left + side] = (
                F.one_hot(torch.tensor(class_index), 3).view(3, 1, 1).float()
            )
            one.append((class_index, (left + side / 2) / 128, (top + side / 2) / 128, side / 128, side / 128))
        scenes.append(scene)
        labels.append(label(*one, size=(128, 128)))
    batch = torch.stack(scenes)
    model = RadioForObjectDetection(tiny_config(hidden_size=64, detection_hidden_size=64, detection_num_queries=20))
    processor = RadioImageProcessor()

    def mean_average_precision():
        model.eval()
        with torch.no_grad():
            found = processor.post_process_object_detection(model(batch), 0.0)
        boxes = [one["boxes"] for one in labels]
        corners = [box_convert(box, "cxcywh", "xyxy") for box in boxes]
        truth = [{"boxes": box, "labels": one["class_labels"]} for box, one in zip(corners, labels, strict=True)]
        metric = MeanAveragePrecision(backend="pycocotools")
        metric.update(found, truth)
        model.train()
        return metric.compute()["map_50"].item()

    assert mean_average_precision() < 0.1
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(120):
        loss = model(batch, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert mean_average_precision() > 0.5


# By the names of universal segmentation


@pytest.fixture(scope="module")
def universal():
    torch.manual_seed(0)
    return RadioForUniversalSegmentation(tiny_config(detection_num_queries=6)).eval()


def squares(*corners):
    """Return masks `(n, height, width)` of squares of 16 pixels at these corners (top, left)."""
    masks = torch.zeros(len(corners), *SIZE)
    for mask, (top, left) in zip(masks, corners, strict=True):
        mask[top : top + 16, left : left + 16] = 1
    return masks


def test_labels_and_outputs_are_those_of_instance_segmentation(universal):
    other = RadioForInstanceSegmentation(universal.config).eval()
    other.load_state_dict(universal.state_dict())
    pixel_values = detection_images(2)
    masks, classes = [squares((0, 0), (32, 48)), squares()], [torch.tensor([2, 0]), torch.tensor([], dtype=torch.long)]
    boxes = torch.tensor([[8 / 96, 8 / 64, 16 / 96, 16 / 64], [56 / 96, 40 / 64, 16 / 96, 16 / 64]])
    labels = [
        {"class_labels": classes[0], "boxes": boxes, "masks": masks[0]},
        {"class_labels": classes[1], "boxes": torch.zeros(0, 4), "masks": masks[1]},
    ]
    with torch.no_grad():
        torch.manual_seed(1)  # the mask loss draws points
        expected = other(pixel_values, labels=labels)
        torch.manual_seed(1)
        found = universal(pixel_values, mask_labels=masks, class_labels=classes)
    torch.testing.assert_close(found.class_queries_logits, expected.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.masks_queries_logits, expected.pred_masks, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.loss, expected.loss)
    assert list(found)[:3] == ["loss", "class_queries_logits", "masks_queries_logits"]


def test_boxes_are_shares_of_the_image_without_padding(universal, monkeypatch):
    pixel_values, masks = detection_images(1), squares((0, 0), (16, 16))
    pixel_mask = torch.zeros(1, *SIZE, dtype=torch.long)
    pixel_mask[:, :32, :48] = 1
    seen = []
    monkeypatch.setattr(
        universal,
        "detect",
        lambda _pixels, _mask, labels, *_: seen.append(labels[0]["boxes"]) or RfDetrInstanceSegmentationOutput(),
    )
    universal(pixel_values, mask_labels=[masks], class_labels=[torch.tensor([0, 1])], pixel_mask=pixel_mask)
    expected = torch.tensor([[8 / 48, 8 / 32, 1 / 3, 1 / 2], [24 / 48, 24 / 32, 1 / 3, 1 / 2]])
    torch.testing.assert_close(seen[0], expected)


@pytest.mark.parametrize(
    ("masks", "classes", "message"),
    [
        ([squares((0, 0))], None, "`class_labels`"),
        ([squares((0, 0))], [torch.tensor([0, 1])], r"`class_labels` \(num_boxes,\), got \(1, 4\) and \(2,\)"),
        ([0 * squares((0, 0))], [torch.tensor([0])], "at least one pixel in each mask"),
        ([squares((0, 0))], [torch.tensor([3])], "`class_labels`"),
    ],
)
def test_labels_that_cannot_be_right_are_refused(universal, masks, classes, message):
    with pytest.raises(ValueError, match=message):
        universal(detection_images(1), mask_labels=masks, class_labels=classes)


def test_folders_of_either_model_open_as_the_other(universal, tmp_path):
    universal.save_pretrained(tmp_path)
    opened = RadioForInstanceSegmentation.from_pretrained(tmp_path)
    assert all(torch.equal(weight, universal.state_dict()[name]) for name, weight in opened.state_dict().items())
    opened.save_pretrained(tmp_path / "again")
    again = AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "again", trust_remote_code=True).eval()
    assert type(again).__name__ == "RadioForUniversalSegmentation"
    pixel_values = detection_images(1)
    with torch.no_grad():
        expected = universal(pixel_values).masks_queries_logits
        torch.testing.assert_close(again(pixel_values).masks_queries_logits, expected, rtol=0, atol=1e-5)


def open_on_a_backbone(model_class, folder):
    RadioModel(tiny_config()).save_pretrained(folder)
    return model_class.from_pretrained(folder, dtype=torch.bfloat16, num_labels=3)


IN_HALF_PRECISION = {
    "on a backbone": open_on_a_backbone,
    "from a configuration": lambda model_class, _: model_class._from_config(tiny_config(), dtype=torch.bfloat16),
    "cast": lambda model_class, _: model_class(tiny_config()).to(torch.bfloat16),
    "cast by name": lambda model_class, _: model_class(tiny_config()).bfloat16(),
}


@pytest.mark.parametrize("way", IN_HALF_PRECISION)
@pytest.mark.parametrize("model_class", MODELS)
def test_computes_in_float32_however_the_model_is_built(model_class, way, tmp_path):
    model = IN_HALF_PRECISION[way](model_class, tmp_path / "backbone").eval()
    assert {weight.dtype for weight in model.radio_model.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in model.detector.parameters()} == {torch.float32}
    batch = images().bfloat16()
    expected = model(batch)
    assert expected.pred_boxes.dtype == torch.float32
    model.save_pretrained(tmp_path / "detector")
    again = model_class.from_pretrained(tmp_path / "detector").eval()
    assert again.dtype == torch.bfloat16
    assert torch.equal(again(batch).pred_boxes, expected.pred_boxes)


def test_casts_lose_nothing_and_moves_still_move():
    model = RadioForObjectDetection(tiny_config())
    before = {name: weight.clone() for name, weight in model.detector.named_parameters()}
    model.half().to("cpu", torch.bfloat16)
    for name, weight in model.detector.named_parameters():
        assert torch.equal(weight, before[name])
    assert {weight.dtype for weight in model.double().detector.parameters()} == {torch.float64}
    moved = model.to("meta", torch.float16).detector
    assert {(weight.device.type, weight.dtype) for weight in moved.parameters()} == {("meta", torch.float64)}


@pytest.mark.parametrize("model_class", MODELS)
def test_attends_as_the_backbone_does(model_class, tmp_path):
    model_class(tiny_config()).save_pretrained(tmp_path)
    model = model_class.from_pretrained(tmp_path, attn_implementation="eager")
    assert model.detector.config._attn_implementation == "eager"
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        inner = model.detector.model.decoder if model_class is RadioForObjectDetection else model.detector.model.model
        assert inner.config._attn_implementation == implementation
    assert model_class(tiny_config()).detector.config._attn_implementation == "sdpa"


def test_flash_kernels_which_lack_float32_are_for_the_backbone_only():
    detector = RadioForObjectDetection(tiny_config()).detector
    assert detector.get_correct_attn_implementation("flash_attention_2") == "sdpa"
