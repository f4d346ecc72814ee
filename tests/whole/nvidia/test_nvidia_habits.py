"""Code written for NVIDIA's repositories, in our own words, on a folder converted with `--nvidia-outputs`.

What it gets are the outputs that NVIDIA's code gives for the same weights.
"""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from reference_cases import REFERENCE, write_hub_folder
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, pipeline
from transformers.models.radio import RadioModel as NativeRadioModel

from modeling_radio import RadioForImageClassification, RadioImageProcessor, RadioModel
from modeling_radio.conversion.convert import main
from modeling_radio.conversion.to_nvidia import open_model, training_file_content


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
    assert "`summary, features = model(pixel_values)`. Adaptors run where they are asked for" in card
    assert "opens as transformers' native `RadioModel`" in card


def test_the_code_on_the_card_runs(folder, monkeypatch, capsys):
    Image.new("RGB", (96, 64), (200, 120, 40)).save(folder.parent / "photo.jpg")
    monkeypatch.chdir(folder.parent)
    blocks = (folder / "README.md").read_text().replace("ORG/NAME", folder.name).split("```python\n")[1:]
    exec("\n".join(block.split("```")[0] for block in blocks), {})
    printed = capsys.readouterr().out
    assert "torch.Size([1, 128]) torch.Size([1, 64, 32, 48])" in printed
    assert "sam3 torch.Size([1, 32]) torch.Size([1, 6144, 32])" in printed


def test_nearest_size_and_the_pair(model, stored, images):
    nearest = model.get_nearest_supported_resolution(*images.shape[-2:])
    summary, features = model(F.interpolate(images, nearest, mode="bilinear", align_corners=False))
    assert_stored(stored, "backbone", summary, features)


def test_maps_on_request(model, stored, images):
    summary, maps = model(images, feature_fmt="NCHW")
    assert maps.shape == (1, model.embed_dim, 8, 12)
    assert_stored(stored, "backbone", summary, maps.flatten(2).transpose(1, 2))


def test_autocast(model, stored, images):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        summary, features = model(images)
    expected = stored[f"{SIZE}/global/backbone/features"]
    assert F.cosine_similarity(features.float(), expected, dim=-1).min() > 0.999
    assert F.cosine_similarity(summary.float(), stored[f"{SIZE}/global/backbone/summary"]).min() > 0.999


def test_pixels_normalized_outside(model, stored, images):
    conditioner = model.make_preprocessor_external()
    summary, features = model(conditioner(images))
    assert_stored(stored, "backbone", summary, features)


def test_adaptors_named_while_opening(folder, stored, images):
    model = AutoModel.from_pretrained(folder, adaptor_names=["siglip2-g"], **TRUST).eval()
    answers = model(images)
    assert set(answers) == {"backbone", "siglip2-g"}
    for name in answers:
        summary, features = answers[name]
        assert_stored(stored, name, summary, features)


def test_adaptors_named_in_the_configuration(folder, stored, images):
    config = AutoConfig.from_pretrained(folder, **TRUST)
    config.adaptor_names = ["dino_v3", "sam3"]
    model = AutoModel.from_pretrained(folder, config=config, **TRUST).eval()
    for name in config.adaptor_names:
        assert_stored(stored, name, model(images)[name].summary, model(images)[name].features)
    assert list(model.adaptors) == ["siglip2-g", "dino_v3", "sam3"]


def test_nvidias_own_folder_gives_pairs_when_asked(tmp_path, stored, images):
    model = RadioModel.from_pretrained(write_hub_folder(CASE.name, tmp_path / "hub"), return_dict=False).eval()
    answers = model(images)
    assert list(answers) == ["backbone", "dino_v3", "sam3"]
    for name, (summary, features) in answers.items():
        assert_stored(stored, name, summary, features)


def test_without_our_code_it_opens_as_any_other(folder, stored, images):
    native = NativeRadioModel.from_pretrained(folder).eval()(images)
    assert_stored(stored, "backbone", native.summary, native.features)


def test_embeddings_for_benchmarks(model, stored, images):
    """The calls of mteb's class for RADIO: preferred size, nearest valid size, and the summary of a batch."""
    height, width = model.preferred_resolution
    assert (height, width) == (512, 512)  # which a training file does not tell
    resolution = model.get_nearest_supported_resolution(height=images.shape[-2] + 3, width=images.shape[-1] - 3)
    size = (int(resolution.height), int(resolution.width))
    assert size == tuple(images.shape[-2:])
    with torch.inference_mode():
        batch = torch.cat(
            [F.interpolate(image[None], size=size, mode="bilinear") for image in images.repeat(2, 1, 1, 1)]
        )
        summary, _features = model(batch)
    expected = stored[f"{SIZE}/global/backbone/summary"].expand(2, -1)
    assert (summary.float().cpu() - expected).abs().max() <= TOLERANCE


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


def test_a_head_on_such_a_folder_answers_by_name(folder, images):
    head = RadioForImageClassification.from_pretrained(folder, num_labels=3).eval()
    assert head(images).logits.shape == (1, 3)


def test_the_folder_goes_back_to_nvidias_format_in_full(folder):
    content = training_file_content(open_model(folder))
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
