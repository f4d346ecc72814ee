"""Probes and texts for pixels: what is measured is what by-hand counts and torchmetrics say."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.classification import MulticlassJaccardIndex

from conversion.text_tower import canonicalizing
from modeling_radio import RadioConfig, RadioForZeroShotImageClassification, RadioModel
from modeling_radio.zero_shot_radio import PLAIN_TEMPLATES
from training.evaluation.data_tables import TableData
from training.evaluation.metrics.dense import segmentation_loss
from training.evaluation.models.radio import open_radio
from training.evaluation.tasks import dense_prediction
from training.evaluation.tasks.base import Evaluation, TaskSettings, dense
from training.evaluation.tasks.dense_prediction import (
    fit_probe,
    folds,
    gather_alike,
    masks_of,
    measure_depth_probe,
    measure_open_vocabulary,
    measure_segmentation_probe,
    probed,
    resized_to,
)


def scored_by_hand(evaluation, model, texts):
    """Yield scores of each text at each pixel of the four scenes, `(texts, height, width)`, and the scene's mask."""
    windows, tower = evaluation.windows("masks"), model._text_tower()[0]
    for image in range(4):
        maps = []
        for window in windows.of_image(image):
            logits = tower.segment(model.preprocess(windows[window])[None], texts).logits
            maps.append(torch.nn.functional.interpolate(logits, (32, 32), mode="bilinear")[0])
        mask = masks_of(evaluation.part("masks").test)[image]
        yield resized_to(windows.merged(image, maps), mask), mask


@pytest.fixture
def scenes(tmp_path):
    """Images of several shapes, whose right part is green on red, with masks, in two splits."""
    for split, count in (("train", 6), ("val", 4)):
        for number in range(count):
            width = 32 + 4 * number
            mask = np.zeros((24, width), np.uint8)
            mask[:, width // 2 :] = 1
            mask[0] = 255
            noise = np.random.default_rng(number).normal(0, 40, (24, width, 3))
            image = np.where(mask[..., None] == 1, [40, 200, 40], [200, 40, 40]) + noise
            for folder, array in (("images", image.clip(0, 255).astype(np.uint8)), ("masks", mask)):
                path = tmp_path / "scenes" / split / folder / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    return tmp_path / "scenes"


def test_the_probe_and_its_miou_are_those_of_torchmetrics(scenes, pixels):
    evaluation = pixels(TableData(str(scenes)), probe_steps=40)
    found = {each.metric: each for each in measure_segmentation_probe(evaluation)}
    probe = fit_probe(evaluation, "masks", range(6), 2, segmentation_loss)
    metric = MulticlassJaccardIndex(2, ignore_index=255)
    for image in range(4):
        mask = masks_of(evaluation.part("masks").test)[image]
        metric.update(resized_to(probed(evaluation, "masks", probe, image), mask).argmax(0)[None], mask[None])
    miou = found["mIoU"]
    assert miou.value == pytest.approx(metric.compute().item(), abs=1e-6)
    assert 0.7 < miou.value < 1
    assert miou.low < miou.value < miou.high
    assert found["pixel accuracy"].value > miou.value


def test_the_probe_is_on_the_models_device(scenes, pixels, monkeypatch):
    evaluation = pixels(TableData(str(scenes)))
    for split in ("gallery", "test"):  # kept features are on the CPU, wherever they were computed
        evaluation.features("masks", split, wanted=dense(evaluation.model))
    evaluation.model.device = torch.device("meta")
    seen = []
    monkeypatch.setattr(dense_prediction, "fit_dense_probe", lambda *_, device: seen.append(device))
    fit_probe(evaluation, "masks", range(6), 2, segmentation_loss)

    def probe(maps):
        seen.append(maps.device)
        return torch.zeros(len(maps), 2, 2, 2)

    assert probed(evaluation, "masks", probe, 0).device.type == "cpu"
    assert [device.type for device in seen] == ["meta", "meta"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_on_a_gpu_is_measured_there(scenes, pixels):
    evaluation, there = (pixels(TableData(str(scenes)), probe_steps=40) for _ in range(2))
    there.model.device = torch.device("cuda")
    probe = fit_probe(there, "masks", range(6), 2, segmentation_loss)
    assert {each.device.type for each in probe.parameters()} == {"cuda"}
    assert probed(there, "masks", probe, 0).device.type == "cpu"
    values = [measure_segmentation_probe(each)[0].value for each in (evaluation, there)]
    assert values[1] == pytest.approx(values[0], abs=0.02)


def test_without_a_split_each_half_measures_the_other(scenes, pixels):
    evaluation = pixels(TableData(str(scenes / "train")), probe_steps=30)
    (first, second), (third, fourth) = folds(evaluation, "masks")
    assert (first, second) == (fourth, third)
    assert sorted([*first, *second]) == list(range(6))
    assert measure_segmentation_probe(evaluation)[0].value > 0.7


def test_windows_are_as_large_as_asked(scenes, pixels):
    values = []
    for window_px in (16, 24):
        evaluation = pixels(TableData(str(scenes)), probe_steps=30, window_px=window_px)
        assert evaluation.windows("masks").window_px == window_px
        values.append(measure_segmentation_probe(evaluation)[0].value)
    assert values[0] != values[1]


def test_one_image_cannot_be_divided(pixels, data):
    evaluation = pixels()
    part = evaluation.part("masks")
    object.__setattr__(part, "train", None)
    object.__setattr__(part.test, "groups", torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match="must have a train split or several images for a probe of masks, got one"):
        list(folds(evaluation, "masks"))


@pytest.fixture
def packed(build_dual_encoder, word_tokenizer, tmp_path):
    """A folder with a text tower."""
    adaptor = {"name": "siglip2-g", "summary_dim": 12, "feature_dim": 10, "hidden_size": 16}
    config = RadioConfig.from_preset("radio-test", adaptors=[adaptor], preferred_resolution=[32, 32])
    model = RadioForZeroShotImageClassification.from_parts(RadioModel(config).eval(), build_dual_encoder("siglip", 12))
    model.save_pretrained(tmp_path / "packed")
    canonicalizing(word_tokenizer, 16).save_pretrained(tmp_path / "packed")
    return tmp_path / "packed"


def test_open_vocabulary_compares_patches_with_names(packed, scenes):
    (scenes / "classes.txt").write_text("cat\ndog\n")
    model, data = open_radio(packed), TableData(str(scenes))
    values = {}
    for refinement in ("none", "correlation"):
        settings = TaskSettings(templates="plain", refinement=refinement)
        evaluation = Evaluation(model, data, settings)
        values[refinement] = [found.value for found in measure_open_vocabulary(evaluation)]
    texts = model.embed_classes(["cat", "dog"], PLAIN_TEMPLATES)
    metric = MulticlassJaccardIndex(2, ignore_index=255)
    with torch.no_grad():
        for scores, mask in scored_by_hand(evaluation, model, texts):
            metric.update(scores.argmax(0)[None], mask[None])
    assert values["none"][0] == pytest.approx(metric.compute().item(), abs=1e-6)
    assert values["correlation"] != values["none"]


def test_background_is_left_out_besides(packed, scenes):
    (scenes / "classes.txt").write_text("background\ndog\ncat\n")
    model = open_radio(packed)
    evaluation = Evaluation(model, TableData(str(scenes)), TaskSettings(templates="plain"))
    found = {each.metric: each.value for each in measure_open_vocabulary(evaluation)}
    assert list(found) == ["mIoU", "pixel accuracy", "mIoU, no background"]
    texts = model.embed_classes(["dog", "cat"], PLAIN_TEMPLATES)
    right = wrong = 0
    with torch.no_grad():
        for scores, mask in scored_by_hand(evaluation, model, texts):
            is_dog = scores.argmax(0) == 0
            right, wrong = right + (is_dog & (mask == 1)).sum(), wrong + (~is_dog & (mask == 1)).sum()
    iou_of_dogs, iou_of_cats = right / (right + wrong), 0.0  # no pixel is a cat's
    share = (iou_of_dogs + iou_of_cats) / (2 if wrong else 1)
    assert found["mIoU, no background"] == pytest.approx(share.item(), abs=1e-6)


def test_open_vocabulary_needs_texts(pixels):
    with pytest.raises(ValueError, match=r"`open_vocabulary` needs a text tower .* which 'raw pixels' does not have"):
        measure_open_vocabulary(pixels())


def test_noise_within_alike_patches_is_averaged_out():
    is_right = (torch.arange(8) >= 4).expand(8, 8)
    features = torch.stack([is_right, ~is_right]).float()[None]
    values = torch.stack([is_right, ~is_right]).float()[None] + 0.5 * torch.randn(1, 2, 8, 8)
    gathered = gather_alike(values, features)
    for side in (is_right, ~is_right):
        torch.testing.assert_close(gathered[0][:, side].std(1), torch.zeros(2), atol=1e-4, rtol=0)
        torch.testing.assert_close(gathered[0][:, side].mean(1), values[0][:, side].mean(1), atol=1e-3, rtol=0)


def test_other_grids_are_refused():
    with pytest.raises(ValueError, match=r"`features` must have the grid of `values`, \(4, 4\), got \(2, 4\)"):
        gather_alike(torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 2, 4))


def test_depth_is_read_from_brightness(tmp_path, pixels):
    for split in ("train", "val"):
        for number in range(6):
            shade = np.random.default_rng([number, len(split)]).uniform(0, 1, (2, 2)).repeat(8, 0).repeat(8, 1)
            for folder in ("images", "depth"):
                (tmp_path / split / folder).mkdir(parents=True, exist_ok=True)
            picture = np.stack([shade * 255] * 3, axis=-1).astype(np.uint8)
            Image.fromarray(picture).save(tmp_path / split / "images" / f"{number}.png")
            np.save(tmp_path / split / "depth" / f"{number}.npy", np.exp(shade).astype(np.float32))
    found = {
        steps: {each.metric: each for each in measure_depth_probe(pixels(TableData(str(tmp_path)), probe_steps=steps))}
        for steps in (1, 200)
    }
    assert found[200]["abs_rel"].value < 0.15 < found[1]["abs_rel"].value
    assert found[200]["delta1"].value > 0.8
    assert found[200]["rmse"].low < found[200]["rmse"].value < found[200]["rmse"].high
