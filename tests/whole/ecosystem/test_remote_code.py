"""A saved folder works without this repository: with its own code, and natively in transformers."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from comparisons import assert_close_by_name
from PIL import Image
from reference_cases import REFERENCE
from safetensors.torch import load_file, save_file
from tiny_navit import build_navit
from tiny_radio1d import build_radio1d

from modeling_radio import (
    RadioConfig,
    RadioForImageClassification,
    RadioForObjectDetection,
    RadioModel,
    RadioVideoProcessor,
)
from modeling_radio.eradio_radio import eradio_fields
from modeling_radio.image_processing_radio import RadioImageProcessor


OPEN_CHECKPOINT = Path(__file__).with_name("open_checkpoint.py")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny backbone and detector beside a working folder with a picture and the outputs that belong to it."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("remote")
    checkpoint, work = root / "tiny-radio", root / "work"
    work.mkdir()
    head = {"summary_dim": 12, "feature_dim": 20, "hidden_size": 24}
    config = RadioConfig.from_preset(
        "radio-test",
        adaptors=[
            {"name": "siglip2-g", **head},
            {"name": "sam3", "token_index": 2, **head, "summary_dim": None, "upsample_factor": 2},
        ],
        detection_hidden_size=32,
        detection_num_queries=12,
    )
    model, detector = RadioModel(config).eval(), RadioForObjectDetection(config).eval()
    processor = RadioImageProcessor.from_model_config(config)
    model.save_pretrained(checkpoint)
    processor.save_pretrained(checkpoint)
    detector.save_pretrained(root / "detector")
    processor.save_pretrained(root / "detector")

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8))
    image.save(work / "picture.png")
    inputs = processor(image, return_tensors="pt")
    with torch.no_grad():
        out = model(**inputs)
        (found,) = processor.post_process_object_detection(detector(**inputs), threshold=0.0)
    expected = {**inputs, "summary": out.summary, "features": out.features}
    expected["last_hidden_state"] = out.last_hidden_state
    for name, adaptor in out.adaptors.items():
        expected |= {f"{name}_{key}": value for key, value in adaptor.items()}
    save_file({name: tensor.clone() for name, tensor in expected.items()}, work / "expected.safetensors")
    return SimpleNamespace(checkpoint=checkpoint, work=work, expected=expected, model=model, scores=found["scores"])


@pytest.fixture
def open_elsewhere(saved, run_elsewhere):
    """Return a function that runs `open_checkpoint.py` in a fresh process, and returns what it stored."""

    def open_in(mode):
        run_elsewhere(OPEN_CHECKPOINT.read_text(), saved.work, mode, saved.checkpoint, saved.work)
        return load_file(saved.work / f"{mode}.safetensors")

    return open_in


def assert_outputs_equal(actual, expected, prefix=""):
    assert_close_by_name({name: actual[prefix + name] for name in expected}, expected, atol=1e-5)


def assert_trusted_outputs_equal(saved, outputs):
    assert_outputs_equal(outputs, saved.expected)
    assert_outputs_equal(outputs, {k: v for k, v in saved.expected.items() if k != "pixel_values"}, "saved_again_")
    for pool, name in ((True, "summary"), (False, "features")):
        torch.testing.assert_close(outputs[f"pipeline_pool_{pool}"], saved.expected[name], atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs["pipeline_scores"], saved.scores, atol=1e-6, rtol=0)


def test_folder_opens_with_trust_in_a_fresh_process(saved, open_elsewhere):
    assert_trusted_outputs_equal(saved, open_elsewhere("trusted"))
    names = {path.name for path in saved.checkpoint.glob("*_radio.py")}
    assert {path.name for path in (saved.work / "saved_again").glob("*_radio.py")} == names


def test_folder_opens_natively_without_trust(saved, open_elsewhere):
    outputs = open_elsewhere("native")
    assert_outputs_equal(outputs, {name: saved.expected[name] for name in outputs})
    info = json.loads((saved.work / "loading_info.json").read_text())
    assert info["missing_keys"] == []
    assert info["mismatched_keys"] == []
    adaptor_keys = {name for name in saved.model.state_dict() if name.startswith("radio_model.adaptors.")}
    assert set(info["unexpected_keys"]) == adaptor_keys


@pytest.mark.slow
def test_folder_opens_in_an_environment_with_nothing_else(saved, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "clean")], check=True)
    python = str(tmp_path / "clean" / "bin" / "python")
    packages = ["torch", "torchvision", "transformers>=5.17,<6"]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    outputs = {}
    for mode in ("trusted", "native"):
        environment = {"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / f"cache-{mode}")}
        command = [python, "-I", str(OPEN_CHECKPOINT), mode, str(saved.checkpoint), str(saved.work)]
        result = subprocess.run(
            command, cwd=saved.work, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert result.returncode == 0, result.stderr
        outputs[mode] = load_file(saved.work / f"{mode}.safetensors")
    assert_trusted_outputs_equal(saved, outputs["trusted"])
    assert_outputs_equal(outputs["native"], {name: saved.expected[name] for name in outputs["native"]})


CLIPS_ELSEWHERE = """
import torch
from transformers import AutoVideoProcessor, pipeline

processor = AutoVideoProcessor.from_pretrained("clips", trust_remote_code=True)
assert type(processor).__module__.startswith("transformers_modules."), type(processor).__module__
frames = torch.load("frames.pt")
pixels = processor(frames, return_tensors="pt")["pixel_values_videos"]
classify = pipeline("video-classification", model="clips", trust_remote_code=True)
for part in (classify, classify.model):
    assert type(part).__module__.startswith("transformers_modules."), type(part).__module__
scores = {entry["label"]: entry["score"] for entry in classify(frames, num_frames=len(frames))}
torch.save({"pixels": pixels, "scores": torch.tensor([scores[f"LABEL_{index}"] for index in range(3)])}, "outputs.pt")
"""


def test_clips_are_read_and_classified_with_trust_in_a_fresh_process(tmp_path, run_elsewhere):
    config = RadioConfig.from_preset("radio-test", video_temporal_patch_size=2, num_labels=3, num_hidden_layers=2)
    model, processor = RadioForImageClassification(config).eval(), RadioVideoProcessor.from_model_config(config)
    model.save_pretrained(tmp_path / "clips")
    processor.save_pretrained(tmp_path / "clips")
    frames = torch.randint(0, 256, (5, 80, 100, 3), dtype=torch.uint8)
    torch.save(frames, tmp_path / "frames.pt")
    run_elsewhere(CLIPS_ELSEWHERE, tmp_path)
    outputs = torch.load(tmp_path / "outputs.pt", weights_only=True)
    inputs = processor(frames, return_tensors="pt")
    assert torch.equal(outputs["pixels"], inputs["pixel_values_videos"])
    with torch.no_grad():
        expected = model(**inputs).logits.softmax(dim=-1)[0]
    torch.testing.assert_close(outputs["scores"], expected, rtol=0, atol=1e-6)


FOUR_NETWORKS_ELSEWHERE = """
import sys
import torch
import transformers

images, outputs = torch.load("images.pt"), {}
for name in ("plain", "radio1d", "navit", "eradio", "plain"):
    folder = f"{name}/final"
    for auto_class in ("AutoModel", "AutoModelForImageClassification", "AutoModelForSemanticSegmentation"):
        model = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True).eval()
        assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
        with torch.no_grad():
            found = model(images)
        outputs[name, auto_class] = found.features if auto_class == "AutoModel" else found.logits
    if name == "eradio":
        continue  # whose backbone gives its final features alone
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert len(transformers.AutoBackbone.from_config(config, trust_remote_code=True)(images).feature_maps) == 1
torch.save({name: outputs[name, "AutoModel"] for name in ("plain", "radio1d", "navit", "eradio")}, "outputs.pt")
"""


def test_networks_of_all_kinds_open_side_by_side_from_folders_of_one_name(tmp_path, run_elsewhere):
    eradio = json.loads((REFERENCE / "e_radio_tiny" / "eradio_arguments.json").read_text())
    models = {
        "plain": RadioModel(RadioConfig.from_preset("radio-test")).eval(),
        "radio1d": build_radio1d(),
        "navit": build_navit({"pool_type": "attn"}),
        "eradio": RadioModel(RadioConfig(**eradio_fields(eradio), max_img_size=128)).eval(),
    }
    for name, model in models.items():
        model.save_pretrained(tmp_path / name / "final")
    images = torch.rand(1, 3, 64, 96)
    torch.save(images, tmp_path / "images.pt")
    run_elsewhere(FOUR_NETWORKS_ELSEWHERE, tmp_path)
    outputs = torch.load(tmp_path / "outputs.pt", weights_only=True)
    for name, model in models.items():
        with torch.no_grad():
            torch.testing.assert_close(outputs[name], model(images).features, rtol=0, atol=1e-6)


GIVEN_CONFIGURATION = """
import torch
from transformers import AutoConfig, AutoModel

config = AutoConfig.from_pretrained("plain", trust_remote_code=True)
model = AutoModel.from_pretrained("plain", config=config).eval()
assert type(model).__module__.startswith("transformers_modules."), type(model)
with torch.no_grad():
    torch.save(model(torch.rand(1, 3, 64, 96)).summary, "summary.pt")
"""


def test_a_configuration_of_remote_code_chooses_the_class(tmp_path, run_elsewhere):
    model = RadioModel(RadioConfig.from_preset("radio-test")).eval()
    model.save_pretrained(tmp_path / "plain")
    run_elsewhere(GIVEN_CONFIGURATION, tmp_path)
    assert torch.load(tmp_path / "summary.pt", weights_only=True).shape == (1, 64)
