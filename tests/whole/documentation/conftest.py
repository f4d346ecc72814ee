"""A world for the code of README and docs: tiny random models where readers have theirs."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from local_hub import LocalHub, local_hub
from nvidia_twin import serve_twin
from onnx import TensorProto, helper, save
from tiny_folders import save_images, save_with_processor
from tiny_sam3 import TRUNK_WIDTH
from tiny_texts import build_dual_encoder, build_word_tokenizer

from modeling_radio import (
    RadioConfig,
    RadioForDepthEstimation,
    RadioForImageClassification,
    RadioForInstanceSegmentation,
    RadioForObjectDetection,
    RadioForSemanticSegmentation,
    RadioForZeroShotImageClassification,
    RadioModel,
)
from modeling_radio.api import PHOTOGRAPH
from modeling_radio.conversion.text_tower import canonicalizing


TEXT_WIDTH = 12
HEAD = {"summary_dim": TEXT_WIDTH, "feature_dim": TEXT_WIDTH, "hidden_size": 24}
SMALL_DETECTOR = {"detection_hidden_size": 32, "detection_num_queries": 12, "detection_num_layers": 2}
TUNED = {
    "pets": RadioForImageClassification,
    "voc": RadioForSemanticSegmentation,
    "nyu": RadioForDepthEstimation,
    "coco": RadioForObjectDetection,
    "objects": RadioForInstanceSegmentation,
}
DEMO_TEACHERS = ("efficientnet-lite0", "dinov2-s-saliency", "nanodet-g")


@dataclass(frozen=True)
class World:
    """A working folder with what readers have by then, and a Hub.

    Attributes:
        folder: Where code runs.
        hub: Serves the names of others' repositories.
    """

    folder: Path
    hub: LocalHub


def write_graph(path: Path) -> None:
    """Write the smallest graph with an exported model's names; `tests/conversion` exports real ones."""
    pixels = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, "height", "width"])
    summary = helper.make_tensor_value_info("summary", TensorProto.FLOAT, ["batch", 3])
    node = helper.make_node("ReduceMean", ["pixel_values", "axes"], ["summary"], keepdims=0)
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
    graph = helper.make_graph([node], "radio", [pixels], [summary], [axes])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("world")
    shutil.copy(PHOTOGRAPH, folder / "photo.jpg")
    fields = {"adaptors": [{"name": name, **HEAD} for name in DEMO_TEACHERS], "id2label": {0: "blue", 1: "red"}}
    demo = RadioConfig.from_preset("radio-test", num_hidden_layers=6, **fields, **SMALL_DETECTOR)
    save_with_processor(RadioModel(demo), folder / "runs" / "demo" / "final")
    for name, model_class in TUNED.items():
        save_with_processor(model_class(demo), folder / "runs" / name / "merged")
    save_with_processor(RadioForImageClassification.from_pretrained("builtin:lite"), folder / "saved")
    save_converted(folder)
    save_images(folder / "pets")
    write_graph(folder / "model.onnx")
    with local_hub() as hub:
        serve_twin(hub)
        yield World(folder, hub)


def save_converted(folder: Path) -> None:
    """Save what conversion makes of C-RADIOv4 with its teacher's text tower, and what `--nvidia-outputs` makes."""
    adaptors = [{"name": "siglip2-g", **HEAD}, {"name": "sam3", "feature_dim": TRUNK_WIDTH, "hidden_size": 24}]
    radio = RadioModel(RadioConfig.from_preset("radio-test", adaptors=adaptors))
    zero_shot = RadioForZeroShotImageClassification.from_parts(radio, build_dual_encoder("siglip2", TEXT_WIDTH))
    canonicalizing(build_word_tokenizer(), 16).save_pretrained(save_with_processor(zero_shot, folder / "my-folder"))
    radio.config.nvidia_outputs, radio.config.adaptor_names = True, []
    save_with_processor(radio, folder / "with-nvidia-outputs" / "my-folder")
