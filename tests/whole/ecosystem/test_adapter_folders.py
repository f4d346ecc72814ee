"""Adapter folders of every task open by stock Auto classes and pipelines, in a process without this repository."""

import re

import pytest
import torch
import transformers
from comparisons import assert_close_by_name
from packaging.version import Version
from PIL import Image
from safetensors.torch import load_file
from tiny_tuning import TINY_DETECTOR, TINY_DPT, run_settings
from transformers import AutoTokenizer

from modeling_radio.model_cards.build import build_card
from modeling_radio.tuning.error_analysis import predict_examples
from modeling_radio.tuning.run import FINAL, FinetuningRun


pytestmark = [
    pytest.mark.tour,
    pytest.mark.usefixtures("one_thread", "own_datasets_cache", "one_figure_image"),
    # peft asks a model for `is_gradient_checkpointing`, which transformers is renaming.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]

IMAGES, BOXES, SEGMENTS, DEPTH = "image-classification", "object-detection", "image-segmentation", "depth-estimation"
MASKS, INSTANCES = "semantic-segmentation", "instance-segmentation"
ZERO_SHOT = "zero-shot-image-classification"
DPT = {"segmentation_head": "dpt", **TINY_DPT}
OF_MASKS = ["AutoModelForSemanticSegmentation", "AutoModelForImageSegmentation", SEGMENTS]
OF_INSTANCES = ["AutoModelForInstanceSegmentation", "AutoModelForObjectDetection", SEGMENTS]

CASES = {
    "classes": (IMAGES, "class_folders", {}, ["AutoModelForImageClassification", IMAGES]),
    "masks": (MASKS, "voc_folder", {}, OF_MASKS),
    "masks by DPT": (MASKS, "voc_folder", DPT, OF_MASKS),
    "boxes": (BOXES, "coco_folder", TINY_DETECTOR, ["AutoModelForObjectDetection", BOXES]),
    "instances": (INSTANCES, "outlines_folder", TINY_DETECTOR, OF_INSTANCES),
    "depth": (DEPTH, "depth_folder", TINY_DPT, ["AutoModelForDepthEstimation", DEPTH]),
    "words": (ZERO_SHOT, "class_folders", {}, ["AutoModelForZeroShotImageClassification", ZERO_SHOT]),
}
"""Task, data, fields of the configuration, and the Auto classes and pipelines that open what was tuned."""

OPEN_ELSEWHERE = """
import sys
import torch
import transformers
from PIL import Image

folder, *names = sys.argv[1:]
inputs, answers, trusted = torch.load("inputs.pt"), {}, {"trust_remote_code": True}
processor = transformers.AutoImageProcessor.from_pretrained(folder, **trusted)
pixels = processor(Image.new("RGB", (90, 60)), return_tensors="pt")["pixel_values"]
assert pixels.shape[-2:] == inputs["pixel_values"].shape[-2:], pixels.shape
if "input_ids" in inputs:
    texts = transformers.AutoTokenizer.from_pretrained(folder)(["cat", "dog"], padding="max_length")
    assert texts["input_ids"] == inputs["input_ids"].tolist()
for name in names:
    if name.startswith("Auto"):
        model = getattr(transformers, name).from_pretrained(folder, **trusted)
    else:
        model = transformers.pipeline(name, model=folder, **trusted).model
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    with torch.no_grad():
        found = model(**inputs)
    answers[name] = {key: value for key, value in found.items() if isinstance(value, torch.Tensor)}
torch.save(answers, "answers.pt")
"""


@pytest.mark.skipif(Version(transformers.__version__) < Version("5.18"), reason="transformers leaves out the head")
@pytest.mark.parametrize("case", CASES)
def test_an_adapter_folder_answers_as_its_run(case, base, tmp_path, request, elsewhere, run_elsewhere, monkeypatch):
    task, data, config, names = CASES[case]
    # transformers' loss of masks fails for a batch of one image and 6 queries: it compares at 6 * 4 / 16 points.
    monkeypatch.setattr("modeling_radio.tuning.trainer.predict_examples", predict_examples)
    monkeypatch.setattr("modeling_radio.tuning.run.WARMUP_SHARE", 0.0)
    folder = request.getfixturevalue("zero_shot_folder") if task == ZERO_SHOT else base
    options = {"tune": "lora", "config": config, "learning_rate": 0.01}
    run = FinetuningRun(run_settings(folder, request.getfixturevalue(data), tmp_path / "run", task, **options))
    run.linear_head = None  # a solved head could be better than every step, and its adapter is zero
    run.run()
    adapter = load_file(tmp_path / "run" / FINAL / "adapter_model.safetensors")
    assert any(weights.any() for name, weights in adapter.items() if "lora_B" in name)  # it starts at zero
    inputs = {"pixel_values": torch.rand(2, 3, *run.task.size)}
    if task == ZERO_SHOT:
        texts = AutoTokenizer.from_pretrained(folder)(["cat", "dog"], padding="max_length", return_tensors="pt")
        inputs["input_ids"] = texts["input_ids"]
    torch.save(inputs, tmp_path / "inputs.pt")
    opened = elsewhere.run(OPEN_ELSEWHERE, tmp_path, tmp_path / "run" / FINAL, *names)
    assert opened.returncode == 0, opened.stderr
    assert "new weights to train" not in opened.stderr  # the adapter brings them
    with torch.no_grad():
        output = run.trainer.model.eval()(**inputs)
    expected = {key: value for key, value in output.items() if isinstance(value, torch.Tensor)}
    answers = torch.load(tmp_path / "answers.pt")
    assert list(answers) == names
    for name, found in answers.items():
        assert_close_by_name(found, expected, atol=1e-5, rtol=1e-5, what=name)
    Image.new("RGB", (90, 60), (200, 120, 40)).save(tmp_path / "photo.jpg")
    card = build_card(tmp_path / "run" / FINAL).text.replace("ORG/NAME", f"run/{FINAL}")
    run_elsewhere("\n".join(re.findall(r"```python\n(.*?)```", card, re.DOTALL)), tmp_path)
