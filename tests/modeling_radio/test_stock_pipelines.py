"""transformers' own pipelines run on saved folders, in a process that does not know this repository."""

import functools
import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import pipeline

from modeling_radio import (
    RadioConfig,
    RadioForDepthEstimation,
    RadioForImageClassification,
    RadioForSemanticSegmentation,
    RadioImageProcessor,
    RadioModel,
)


PHOTOGRAPH = Path(__file__).parents[2] / "docs" / "photograph.jpg"
RUN_STOCK_PIPELINES = Path(__file__).with_name("run_stock_pipelines.py")
MODELS = {
    "image-feature-extraction": RadioModel,
    "image-classification": RadioForImageClassification,
    "image-segmentation": RadioForSemanticSegmentation,
    "depth-estimation": RadioForDepthEstimation,
}
ADAPTORS = [{"name": "sam3", "feature_dim": 8, "hidden_size": 8, "upsample_factor": 2}]

# An installed modeling_radio must not be what makes the folder work: its import fails.
RUN_BLOCKED = """
import runpy, sys
sys.modules["modeling_radio"] = None
runpy.run_path(sys.argv[1], run_name="__main__")
"""


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.fixture(scope="module")
def url():
    """The photograph's address on a server of our own."""
    handler = functools.partial(QuietHandler, directory=str(PHOTOGRAPH.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/{PHOTOGRAPH.name}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def stock(tmp_path_factory, url):
    """The models of all tasks, and what the pipelines of a fresh process made of their folders."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("pipelines")
    work = root / "work"
    work.mkdir()
    names = {0: "cat", 1: "dog", 2: "bird"}
    config = RadioConfig.from_preset("radio-test", adaptors=ADAPTORS, dpt_hidden_size=16)
    config.id2label, config.label2id = names, {name: number for number, name in names.items()}
    processor = RadioImageProcessor.from_model_config(config, size={"height": 48, "width": 80})
    models = {task: model_class(config).eval() for task, model_class in MODELS.items()}
    for parameter in models["depth-estimation"].depth_head.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # as it starts, so narrow a head sees hardly anything
    for task, model in models.items():
        model.save_pretrained(root / task)
        processor.save_pretrained(root / task)
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT") if name in os.environ}
    env = {**kept, "HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "cache"), "OMP_NUM_THREADS": "1", "NO_PROXY": "*"}
    arguments = [str(RUN_STOCK_PIPELINES), str(root), str(PHOTOGRAPH), url, str(work / "outputs.pt")]
    result = subprocess.run(
        [sys.executable, "-c", RUN_BLOCKED, *arguments],
        cwd=work,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    outputs = torch.load(work / "outputs.pt", weights_only=True)
    return SimpleNamespace(models=models, processor=processor, outputs=outputs)


def expected(stock, task, image):
    """What the task's pipeline should say of one image, from the model itself."""
    model = stock.models["image-feature-extraction" if task == "pooled" else task]
    size = [(image.height, image.width)]
    with torch.no_grad():
        out = model(**stock.processor(image, return_tensors="pt"))
    if task in ("image-feature-extraction", "pooled"):
        return out.summary
    if task == "image-classification":
        return out.logits.softmax(dim=1)[0]
    if task == "image-segmentation":
        return stock.processor.post_process_semantic_segmentation(out, size)[0]
    return stock.processor.post_process_depth_estimation(out, size)[0]["predicted_depth"]


@pytest.mark.parametrize("task", [*MODELS, "pooled"])
def test_every_kind_of_input(stock, task):
    with Image.open(PHOTOGRAPH) as image:
        first = expected(stock, task, image)
        second = expected(stock, task, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    difference = (first - second).abs().max().item()
    assert difference > 5e-4
    outputs = stock.outputs[task]
    for kind in ("path", "url", "image"):
        torch.testing.assert_close(outputs[kind], first[None], rtol=0, atol=0.01 * difference)
    for kind in ("list", "batches", "generator"):
        torch.testing.assert_close(outputs[kind], torch.stack([first, second, first]), rtol=0, atol=0.01 * difference)


def test_batches_of_a_model_without_adaptors():
    config = RadioConfig.from_preset("radio-test")
    model, processor = RadioModel(config).eval(), RadioImageProcessor.from_model_config(config)
    extract = pipeline("image-feature-extraction", model=model, image_processor=processor)
    single, batched = extract(str(PHOTOGRAPH)), extract([str(PHOTOGRAPH)] * 3, batch_size=2)
    torch.testing.assert_close(torch.tensor(batched), torch.tensor([single] * 3), rtol=0, atol=1e-5)
