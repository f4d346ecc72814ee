"""Tasks on dense features beside torchmetrics, counts by hand and known answers."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchmetrics.classification import MulticlassJaccardIndex
from torchvision.transforms.v2.functional import center_crop

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.evaluation.data_tables import TableData
from modeling_radio.evaluation.models.pretrained import RawPixels
from modeling_radio.evaluation.models.radio import RadioFeatures
from modeling_radio.evaluation.tasks.base import Evaluation
from modeling_radio.evaluation.tasks.classification import measure_mode_switching
from modeling_radio.evaluation.tasks.dense_prediction import (
    correspondence_distances,
    fit_dense_probe,
    fit_probe,
    folds,
    log_depth_loss,
    masks_of,
    measure_depth_probe,
    measure_open_vocabulary,
    measure_patch_correspondence,
    measure_resolution_consistency,
    measure_segmentation_probe,
    measure_window_consistency,
    predict_with_probe,
    resized_to,
    segmentation_loss,
    upsampled,
)
from modeling_radio.evaluation.tasks.settings import RADSEG_STEPS, TaskSettings
from modeling_radio.metrics.dense import class_sums, mean_iou_of_sums
from modeling_radio.zero_shot_radio import PLAIN_TEMPLATES


def blocks(num_images: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """4x4 features that tell one of three classes with little noise, and masks of its 8 px blocks."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(3, (num_images, 4, 4), generator=generator)
    features = F.one_hot(classes, 3).movedim(-1, 1).float()
    features = features + 0.1 * torch.randn(features.shape, generator=generator)
    return features, classes.repeat_interleave(8, 1).repeat_interleave(8, 2)


def fit(features, masks, loss=segmentation_loss, device="cpu", **settings):
    read = lambda rows: (features[rows], masks[rows])  # noqa: E731
    return fit_dense_probe(read, len(features), 3, loss, TaskSettings(**settings), device=device)


def miou(train, test) -> float:
    probe = fit(*train, probe_steps=60)
    outputs = upsampled(probe(test[0]), test[1].shape[1:])
    return mean_iou_of_sums(class_sums(outputs.argmax(1), test[1], 3)).item()


def test_a_probe_depends_on_its_settings_and_not_on_the_global_state():
    features, masks = blocks(8, seed=0)
    weights = []
    options = [{}, {}, {"probe_schedule": "linear"}]
    for seed, settings in enumerate([*options, {"probe_warmup_steps": 3}, {"probe_learning_rate": 1e-3}]):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        weights.append(fit(features, masks, probe_steps=6, **settings)[1].weight)
        assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(weights[0], weights[1])
    assert len({str(each.tolist()) for each in weights}) == 4


def test_a_probe_and_its_batches_are_on_the_device():
    seen = []

    def loss(logits, targets):
        seen.append((logits.device.type, targets.device.type))
        return segmentation_loss(logits, targets)

    probe = fit(*blocks(8, seed=0), loss=loss, device="meta", probe_steps=1)
    assert seen == [("meta", "meta")]
    assert {each.device.type for each in probe.state_dict().values()} == {"meta"}


def test_losses_leave_out_unknown_pixels():
    logits, masks = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    torch.testing.assert_close(segmentation_loss(logits, masks), F.cross_entropy(logits, masks))
    half = masks.clone()
    half[1] = 255
    torch.testing.assert_close(segmentation_loss(logits, half), F.cross_entropy(logits[:1], masks[:1]))
    assert segmentation_loss(logits, torch.full((2, 4, 4), 255)) == 0
    depth = torch.tensor([[[1.0, 2.0], [0.0, 4.0]]])
    assert log_depth_loss(depth.log().clamp(min=-9)[:, None], depth) == pytest.approx(0)  # the unknown one is left out
    assert log_depth_loss(logits[:, :1], torch.zeros(2, 4, 4)) == pytest.approx(0)


def test_the_probe_and_its_miou_are_those_of_torchmetrics(scenes, pixels):
    evaluation = pixels(TableData(str(scenes)), probe_steps=40)
    found = {each.metric: each for each in measure_segmentation_probe(evaluation)}
    probe = fit_probe(evaluation, "masks", range(6), 2, segmentation_loss)
    metric = MulticlassJaccardIndex(2, ignore_index=255)
    for image in range(4):
        mask = masks_of(evaluation.part("masks").test)[image]
        outputs = resized_to(predict_with_probe(evaluation, "masks", probe, image), mask)
        metric.update(outputs.argmax(0)[None], mask[None])
    miou = found["mIoU"]
    assert miou.value == pytest.approx(metric.compute().item(), abs=1e-6)
    assert 0.7 < miou.value < 1
    assert miou.low < miou.value < miou.high
    assert found["pixel accuracy"].value > miou.value
    other = pixels(TableData(str(scenes)), probe_steps=40, window_px=24)
    assert measure_segmentation_probe(other)[0].value != miou.value


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_on_a_gpu_is_measured_there(scenes, pixels):
    evaluation, there = (pixels(TableData(str(scenes)), probe_steps=40) for _ in range(2))
    there.model.device = torch.device("cuda")
    probe = fit_probe(there, "masks", range(6), 2, segmentation_loss)
    assert {each.device.type for each in probe.parameters()} == {"cuda"}
    assert predict_with_probe(there, "masks", probe, 0).device.type == "cpu"
    values = [measure_segmentation_probe(each)[0].value for each in (evaluation, there)]
    assert values[1] == pytest.approx(values[0], abs=0.02)


def test_without_a_split_each_half_predicts_the_other(scenes, pixels):
    evaluation = pixels(TableData(str(scenes / "train")), probe_steps=30)
    (first, second), (third, fourth) = folds(evaluation, "masks")
    assert (first, second) == (fourth, third)
    assert sorted([*first, *second]) == list(range(6))
    assert measure_segmentation_probe(evaluation)[0].value > 0.7
    object.__setattr__(evaluation.part("masks").test, "groups", torch.zeros(6, dtype=torch.long))
    with pytest.raises(ValueError, match="`data`"):
        list(folds(evaluation, "masks"))


def test_depth_is_read_from_brightness(tmp_path, pixels):
    for split in ("train", "val"):
        for number in range(6):
            shade = np.random.default_rng([number, len(split)]).uniform(0, 1, (2, 2)).repeat(8, 0).repeat(8, 1)
            for folder in ("images", "depth"):
                (tmp_path / split / folder).mkdir(parents=True, exist_ok=True)
            image = np.stack([shade * 255] * 3, axis=-1).astype(np.uint8)
            Image.fromarray(image).save(tmp_path / split / "images" / f"{number}.png")
            np.save(tmp_path / split / "depth" / f"{number}.npy", np.exp(shade).astype(np.float32))
    first, last = (
        {each.metric: each for each in measure_depth_probe(pixels(TableData(str(tmp_path)), probe_steps=steps))}
        for steps in (1, 200)
    )
    assert last["abs_rel"].value < 0.15 < first["abs_rel"].value
    assert last["delta1"].value > 0.8
    assert last["rmse"].low < last["rmse"].value < last["rmse"].high


NONE = dict.fromkeys(RADSEG_STEPS)


@torch.no_grad()
def scored_by_hand(evaluation, texts, as_whole):
    """Yield scores of each text at each pixel of the four scenes, `(texts, height, width)`, and the scene's mask."""
    model, windows, part = evaluation.model, evaluation.windows("masks"), evaluation.part("masks").test
    segment = model._text_tower()[0].segment
    for image in range(4):
        mask = masks_of(part)[image]
        if as_whole:
            yield resized_to(segment(model.preprocess(part.images[image])[None], texts).logits[0], mask), mask
            continue
        maps = []
        for window in windows.of_image(image):
            logits = segment(model.preprocess(windows[window])[None], texts, **NONE).logits
            maps.append(F.interpolate(logits, (32, 32), mode="bilinear")[0])
        yield resized_to(windows.merged(image, maps), mask), mask


def test_open_vocabulary_compares_patches_with_names(text_folder, scenes, pixels):
    (scenes / "classes.txt").write_text("cat\ndog\n")
    model, data, values = RadioFeatures.open(text_folder), TableData(str(scenes)), {}
    texts = model.embed_classes(["cat", "dog"], PLAIN_TEMPLATES)
    for name, steps in (("whole", None), ("none", []), ("scga", ["scga"])):
        evaluation = Evaluation(model, data, TaskSettings(templates="plain", radseg=steps))
        values[name] = [found.value for found in measure_open_vocabulary(evaluation)]
        if name != "scga":
            metric = MulticlassJaccardIndex(2, ignore_index=255)
            for scores, mask in scored_by_hand(evaluation, texts, as_whole=steps is None):
                metric.update(scores.argmax(0)[None], mask[None])
            assert values[name][0] == pytest.approx(metric.compute().item(), abs=1e-6)
    assert values["scga"] != values["none"] != values["whole"]
    with pytest.raises(ValueError, match=r"`open_vocabulary` .* 'raw pixels'"):
        measure_open_vocabulary(pixels())


@pytest.mark.parametrize("steps", [None, []])
def test_a_second_number_leaves_out_the_background(text_folder, scenes, steps):
    (scenes / "classes.txt").write_text("background\ndog\ncat\n")
    model = RadioFeatures.open(text_folder)
    evaluation = Evaluation(model, TableData(str(scenes)), TaskSettings(templates="plain", radseg=steps))
    found = {each.metric: each.value for each in measure_open_vocabulary(evaluation)}
    assert list(found) == ["mIoU", "pixel accuracy", "mIoU, no background"]
    right = wrong = 0
    texts = model.embed_classes(["dog", "cat"], PLAIN_TEMPLATES)
    for scores, mask in scored_by_hand(evaluation, texts, as_whole=steps is None):
        is_dog = scores.argmax(0) == 0
        right, wrong = right + (is_dog & (mask == 1)).sum(), wrong + (~is_dog & (mask == 1)).sum()
    iou_of_dogs, iou_of_cats = right / (right + wrong), 0.0  # no pixel is a cat's
    share = (iou_of_dogs + iou_of_cats) / (2 if wrong else 1)
    assert found["mIoU, no background"] == pytest.approx(share.item(), abs=1e-6)


class Blind(RawPixels):
    """The same features everywhere."""

    def encode(self, pixels, adaptors=()):
        encoding = super().encode(pixels)
        return encoding._replace(features=encoding.features * 0 + 1)


class Cropping(RawPixels):
    """Cuts off borders unless a size is given, as many a published preprocessing does."""

    def preprocessing(self, size_px=None):
        whole = super().preprocessing(size_px)
        return whole if size_px else lambda image: whole(center_crop(image, [min(image.shape[1:]) // 2] * 2))


def test_patches_are_found_in_whole_views(noisy_folders):
    data = TableData(str(noisy_folders))
    seeing, blind, cropping = (
        {each.metric: each.value for each in measure_patch_correspondence(Evaluation(kind(4, 24), data))}
        for kind in (RawPixels, Blind, Cropping)
    )
    assert blind["within 1 patch"] + 0.05 < seeing["within 1 patch"] < seeing["within 2 patches"]
    assert seeing == cropping


def test_a_crop_of_whole_patches_is_found_where_it_was():
    features = torch.randn(16, 8, 8)
    crop = features[:, 2:6, 4:8]
    assert correspondence_distances(features, crop, top=0.25, left=0.5, side=0.5).tolist() == [0.0] * 16
    assert correspondence_distances(features, crop, top=0.0, left=0.5, side=0.5).tolist() == [2.0] * 16


CONFIG = {"hidden_size": 16, "num_attention_heads": 2, "patch_size": 8}


@pytest.fixture
def student(tiny_model, noisy_folders):
    """Build the evaluation of a model on noisy images."""

    def build(model=tiny_model, **settings):
        return Evaluation(RadioFeatures(model, size_px=32), TableData(str(noisy_folders)), TaskSettings(**settings))

    return build


def test_consistency_is_measured_at_sizes_that_the_model_takes(student):
    found = {each.metric: each for each in measure_resolution_consistency(student(consistency_sizes_px=[14, 64, 512]))}
    assert list(found) == ["16 to 64 px", "16 to 64 px, centered"]
    assert all(each.low < each.value < each.high < 1 for each in found.values())
    with pytest.raises(ValueError, match=r"`consistency_sizes_px` \[31, 32\]"):
        measure_resolution_consistency(student(consistency_sizes_px=[31, 32]))


def test_sizes_differ_where_the_longer_side_is_bounded(tmp_path):
    """Whole images twice as wide as high would fill the longer side of this model at 16 px and above."""
    for number in range(6):
        folder = tmp_path / "wide" / ("ant" if number % 2 else "bee")
        folder.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (32, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    model = RadioModel(RadioConfig(**CONFIG, num_hidden_layers=1, max_img_size=32)).eval()
    settings = TaskSettings(consistency_sizes_px=[16, 32], switching_sizes_px=[16, 32], neighbors=1)
    evaluation = Evaluation(RadioFeatures(model, size_px=16), TableData(str(tmp_path / "wide")), settings)
    assert all(each.value < 0.999 for each in measure_resolution_consistency(evaluation))
    cosines = {each.metric: each.value for each in measure_mode_switching(evaluation)}
    assert cosines["16 px, centered cosine with 16 px"] == pytest.approx(1, abs=1e-5)
    assert cosines["32 px, centered cosine with 16 px"] < 0.999


def test_windows_change_features_and_their_size_matters(student, tiny_model):
    def windowed(window):
        options = {"max_img_size": 64, "vitdet_num_global": 1, "vitdet_window_size": window}
        torch.manual_seed(0)
        return student(
            RadioModel(RadioConfig(**CONFIG, num_hidden_layers=2, **options)).eval(), switching_sizes_px=[16, 64]
        )

    values = []
    for window in (2, 4):
        plain, centered = measure_window_consistency(windowed(window))
        assert plain.metric == f"window {window} at 64 px"
        assert centered.value < plain.value < 1
        values.append(centered.value)
    assert values[0] != values[1]
    with pytest.raises(ValueError, match="`switching_sizes_px`"):
        measure_window_consistency(windowed(8))
    with pytest.raises(ValueError, match="`window_consistency`"):
        measure_window_consistency(student(tiny_model))
