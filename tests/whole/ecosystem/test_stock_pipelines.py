"""transformers' own pipelines run on saved folders, in a process that does not know this repository."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import pipeline

from modeling_radio import (
    RadioConfig,
    RadioForDepthEstimation,
    RadioForImageClassification,
    RadioForInstanceSegmentation,
    RadioForObjectDetection,
    RadioForSemanticSegmentation,
    RadioImageProcessor,
    RadioModel,
)


PHOTOGRAPH = Path(__file__).parents[3] / "docs" / "photograph.jpg"
RUN_STOCK_PIPELINES = Path(__file__).with_name("run_stock_pipelines.py")
MODELS = {
    "backbone": RadioModel,
    "classifier": RadioForImageClassification,
    "segmenter": RadioForSemanticSegmentation,
    "depth": RadioForDepthEstimation,
    "detector": RadioForObjectDetection,
    "instances": RadioForInstanceSegmentation,
}
RUNS = {
    "image-feature-extraction": "backbone",
    "pooled": "backbone",
    "image-classification": "classifier",
    "image-segmentation": "segmenter",
    "depth-estimation": "depth",
    "object-detection": "detector",
    "boxes of instances": "instances",
    "masks of instances": "instances",
}
DETECTION = {"detection_hidden_size": 32, "detection_num_queries": 12, "detection_num_layers": 2}
ADAPTORS = [{"name": "sam3", "feature_dim": 8, "hidden_size": 8, "upsample_factor": 2}]


@pytest.fixture(scope="module")
def stock(tmp_path_factory, url, elsewhere):
    """Models of all kinds, and what the pipelines of a fresh process made of their folders."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("pipelines")
    work = root / "work"
    work.mkdir()
    names = {0: "cat", 1: "dog", 2: "bird"}
    config = RadioConfig.from_preset("radio-test", adaptors=ADAPTORS, dpt_hidden_size=16, **DETECTION)
    config.id2label, config.label2id = names, {name: number for number, name in names.items()}
    processor = RadioImageProcessor.from_model_config(config, size={"height": 48, "width": 80})
    models = {name: model_class(config).eval() for name, model_class in MODELS.items()}
    for head in (models["depth"].depth_head, models["detector"].detector, models["instances"].detector):
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter, std=0.2)  # as they start, so narrow heads see hardly anything
    for name, model in models.items():
        model.save_pretrained(root / name)
        processor.save_pretrained(root / name)
    result = elsewhere.run(RUN_STOCK_PIPELINES.read_text(), work, root, PHOTOGRAPH, url, work / "outputs.pt")
    assert result.returncode == 0, result.stderr
    outputs = torch.load(work / "outputs.pt", weights_only=True)
    return SimpleNamespace(models=models, processor=processor, outputs=outputs)


def expected(stock, name, image):
    """Return the result that the pipeline should have for one image, from the model itself."""
    size = [(image.height, image.width)]
    with torch.no_grad():
        out = stock.models[RUNS[name]](**stock.processor(image, return_tensors="pt"))
    if name in ("image-feature-extraction", "pooled"):
        return out.summary
    if name == "image-classification":
        return out.logits.softmax(dim=1)[0]
    if name == "image-segmentation":
        return stock.processor.post_process_semantic_segmentation(out, size)[0]
    if name in ("object-detection", "boxes of instances"):
        found = stock.processor.post_process_object_detection(out, 0.0, size)[0]
        return torch.cat([found["scores"][:, None], found["boxes"] / 640], dim=1)
    if name == "masks of instances":
        found = stock.processor.post_process_instances(out, size, 0.0)[0]
        quarters = F.adaptive_avg_pool2d(found["masks"].float(), 2).flatten(1)
        return torch.cat([found["scores"][:, None], quarters], dim=1)
    return stock.processor.post_process_depth_estimation(out, size)[0]["predicted_depth"]


@pytest.mark.parametrize("name", RUNS)
def test_every_kind_of_input(stock, name):
    with Image.open(PHOTOGRAPH) as image:
        first = expected(stock, name, image)
        second = expected(stock, name, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    difference = (first - second).abs().max().item()
    assert difference > 5e-4
    outputs = stock.outputs[name]
    for kind in ("path", "url", "image"):
        torch.testing.assert_close(outputs[kind], first[None], rtol=0, atol=0.01 * difference)
    for kind in ("list", "batches", "generator"):
        torch.testing.assert_close(outputs[kind], torch.stack([first, second, first]), rtol=0, atol=0.01 * difference)


@pytest.mark.parametrize("name", RUNS)
def test_batches_of_different_sizes_give_what_each_image_gives_alone(stock, name):
    outputs = stock.outputs[f"{name}, unequal"]
    assert len(outputs["batches"]) == 4
    for together, alone in zip(outputs["batches"], outputs["alone"], strict=True):
        assert together.shape == alone.shape
        if alone.is_floating_point():
            torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
        else:
            assert (together == alone).float().mean() > 0.9999  # two classes of equal logits
    first, second, third, _ = outputs["alone"]
    assert torch.equal(first, third)
    assert first.shape != second.shape or (first - second).abs().max() > 5e-4


@pytest.fixture(scope="module")
def instances():
    return RadioForInstanceSegmentation(RadioConfig.from_preset("radio-test", **DETECTION)).eval()


def test_instances_in_transformers_own_pipeline(instances):
    processor = RadioImageProcessor.from_model_config(instances.config, size={"height": 48, "width": 80})
    segment = pipeline("image-segmentation", instances, image_processor=processor)
    found = segment(str(PHOTOGRAPH), threshold=0.0, overlap_mask_area_threshold=0.0)
    scores = [part["score"] for part in found]
    assert scores == sorted(scores, reverse=True)
    assert {part["mask"].size for part in found} == {(640, 360)}
    assert sum((np.array(part["mask"]) > 0).astype(int) for part in found).max() == 1  # they share the pixels
    with pytest.raises(ValueError, match="`pipeline_class=RadioInstanceSegmentationPipeline`"):
        segment(str(PHOTOGRAPH), subtask="semantic")
