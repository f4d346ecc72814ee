"""Code written for NVIDIA's repositories, in our own words, on a folder converted with `--nvidia-outputs`.

What it gets are the outputs that NVIDIA's code gives for the same weights.
"""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from reference_cases import REFERENCE
from safetensors.torch import load_file
from transformers import AutoModel, pipeline

from modeling_radio import RadioImageProcessor, RadioModel
from modeling_radio.conversion.convert import main
from modeling_radio.conversion.to_nvidia import training_file_content
from modeling_radio.core.opening import open_for_export


pytestmark = pytest.mark.usefixtures("one_thread")
CASE = REFERENCE / "c_radio_v4_tiny"
SIZE = "128x192"
TOLERANCE = 1e-5
TRUST = {"trust_remote_code": True}
PHOTOGRAPH = str(Path(__file__).parents[3] / "docs" / "photograph.jpg")


@pytest.fixture(scope="module")
def stored() -> dict[str, torch.Tensor]:
    return load_file(CASE / "expected.safetensors")


@pytest.fixture(scope="module")
def images(stored) -> torch.Tensor:
    return stored[f"{SIZE}/image_uint8"] / 255


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("nvidia") / "folder"
    source, expected = str(CASE / "checkpoint.pth.tar"), str(CASE / "expected.safetensors")
    assert main([source, str(path), "--nvidia-outputs", "--verify", expected]) == 0
    return path


@pytest.fixture
def model(folder):
    return AutoModel.from_pretrained(folder, **TRUST).eval()


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def assert_stored(stored, name, summary, features, tolerance=TOLERANCE):
    assert (summary - stored[f"{SIZE}/global/{name}/summary"]).abs().max() <= tolerance
    assert (features - stored[f"{SIZE}/global/{name}/features"]).abs().max() <= tolerance


def test_the_folder_says_what_its_model_answers(folder):
    config = json.loads((folder / "config.json").read_text())
    assert (config["nvidia_outputs"], config["adaptor_names"]) == (True, [])
    assert "return_dict" not in config  # with which transformers' own class stops
    assert [adaptor["name"] for adaptor in config["adaptors"]] == ["siglip2-g", "dino_v3", "sam3"]
    card = (folder / "README.md").read_text()
    assert "Adaptors: siglip2-g, dino_v3, sam3." in card
    assert "`summary, features = model(pixel_values)`. Adaptors only run if you name them" in card
    assert "opens as transformers' native `RadioModel`" in card


def test_the_code_on_the_card_runs(folder, monkeypatch, capsys):
    Image.new("RGB", (96, 64), (200, 120, 40)).save(folder.parent / "photo.jpg")
    monkeypatch.chdir(folder.parent)
    blocks = (folder / "README.md").read_text().replace("ORG/NAME", folder.name).split("```python\n")[1:]
    exec("\n".join(block.split("```")[0] for block in blocks), {})
    printed = capsys.readouterr().out
    assert "torch.Size([1, 128]) torch.Size([1, 64, 32, 48])" in printed
    assert "sam3 torch.Size([1, 32]) torch.Size([1, 6144, 32])" in printed


def test_adaptors_named_while_opening(folder, stored, images):
    model = AutoModel.from_pretrained(folder, adaptor_names=["siglip2-g"], **TRUST).eval()
    answers = model(images)
    assert set(answers) == {"backbone", "siglip2-g"}
    for name in answers:
        summary, features = answers[name]
        assert_stored(stored, name, summary, features)


def test_the_pipeline_runs_and_batches(folder):
    extract = pipeline("image-feature-extraction", model=str(folder), **TRUST)
    model, processor = RadioModel.from_pretrained(folder).eval(), RadioImageProcessor.from_pretrained(folder)
    with Image.open(PHOTOGRAPH) as image:
        summary, _ = model(**processor(image, return_tensors="pt"))
    one = extract(PHOTOGRAPH, return_tensors=True)
    pooled = extract(PHOTOGRAPH, return_tensors=True, pool=True)
    batched = extract([PHOTOGRAPH] * 3, batch_size=2)
    torch.testing.assert_close(one, summary)
    torch.testing.assert_close(pooled, summary)
    torch.testing.assert_close(torch.tensor(batched)[:, 0], summary.expand(3, -1), rtol=0, atol=1e-5)


def test_the_folder_goes_back_to_nvidias_format_in_full(folder):
    content = training_file_content(open_for_export(folder).backbone)
    original = torch.load(CASE / "checkpoint.pth.tar", weights_only=False)
    assert content["state_dict"].keys() == original["state_dict"].keys()


# vLLM, vllm/model_executor/models/radio.py (`RadioModel.load_weights`): it takes the trunk by these names, passes over
# summary and conditioner, and knows no others of the trunk.
VLLM_TRUNK = {"patch_generator.embedder.weight", "patch_generator.pos_embed", "patch_generator.cls_token.token"}
VLLM_BLOCK = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
PASSED_OVER = {"summary_idxs", "input_conditioner.norm_mean", "input_conditioner.norm_std"}


def test_weights_have_the_names_that_vllm_reads(folder):
    state = load_file(folder / "model.safetensors")
    assert all(name.startswith("radio_model.") for name in state)
    own = {name.removeprefix("radio_model.") for name in state}
    trunk = {name for name in own if name.startswith("model.")}
    depth = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
    blocks = {
        f"blocks.{block}.{layer}.{kind}"
        for block in range(depth)
        for layer in VLLM_BLOCK
        for kind in ("weight", "bias")
    }
    assert trunk == {f"model.{name}" for name in VLLM_TRUNK | blocks}
    assert {name for name in own - trunk if not name.startswith("adaptors.")} == PASSED_OVER


def test_weights_have_the_names_that_timm_reads(folder, stored, images):
    timm = pytest.importorskip("timm")
    vision_transformer = pytest.importorskip("timm.models.vision_transformer")
    name = "vit_so400m_patch16_radio_v4"
    if name not in timm.list_models("*radio*"):
        pytest.skip(f"this timm has no {name}")
    config = json.loads((folder / "config.json").read_text())
    theirs = timm.create_model(
        name,
        embed_dim=config["hidden_size"],
        depth=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        mlp_ratio=config["mlp_ratio"],
        reg_tokens=config["num_cls_tokens"] + config["num_registers"] - 1,
        img_size=tuple(images.shape[-2:]),
        num_classes=0,
    ).eval()
    state = load_file(folder / "model.safetensors")
    read = vision_transformer.checkpoint_filter_fn(
        state, theirs, interpolation="bilinear", antialias=False, align_corners=False
    )
    theirs.load_state_dict(read)
    mean, std = (state[f"radio_model.input_conditioner.norm_{kind}"] for kind in ("mean", "std"))
    tokens = theirs.forward_features((images - mean) / std)
    features = tokens[:, config["num_cls_tokens"] + config["num_registers"] :]
    assert (features - stored[f"{SIZE}/global/backbone/features"]).abs().max() <= 1e-4
