"""Every kind of checkpoint opens by its class; damaged and foreign ones are refused, with heads, towers, adapters."""

import json
import shutil

import huggingface_hub
import pytest
import torch
from local_hub import Repository, hub_in_place
from reference_cases import write_hub_folder
from refusals import refused
from releases import needs_heads
from safetensors.torch import load_file, save_file
from tiny_tuning import tuning_settings

from modeling_radio import RadioConfig, RadioForImageClassification, RadioImageProcessor, RadioModel
from modeling_radio.core.opening import is_finite, open_model
from modeling_radio.tuning.adapters import add_adapter, save_adapter


@pytest.fixture
def backbone(tmp_path):
    torch.manual_seed(0)
    RadioModel(RadioConfig.from_preset("radio-test", num_hidden_layers=6)).save_pretrained(tmp_path / "backbone")
    return tmp_path / "backbone"


def test_a_backbone_needs_no_processor_and_no_code_of_its_own(backbone):
    for path in backbone.glob("*.py"):
        path.write_text("raise SystemExit('code of the checkpoint ran')")
    opened = open_model(str(backbone), device="cpu")
    assert opened.backbone is opened.model
    assert (opened.tokenizer, opened.zero_shot, opened.has_head, opened.dense_adaptors) == (None, None, False, [])
    assert opened.processor.patch_size == 16
    assert not opened.model.training
    assert open_model(str(backbone), device="cpu", dtype="bfloat16").dtype == "bfloat16"
    assert sum(open_model(str(backbone), device="cpu", num_global=1).backbone.radio_model.model.is_global) == 1


@needs_heads
def test_an_adapter_opens_with_its_base(backbone, tmp_path):
    model = RadioForImageClassification.from_pretrained(backbone, num_labels=5)
    adapted = add_adapter(model, tuning_settings(checkpoint=str(backbone), tune="lora"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    save_adapter(adapted, RadioImageProcessor(), tmp_path / "adapter", str(backbone))
    opened = open_model(tmp_path / "adapter", device="cpu", base=str(backbone))
    pixels = torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(opened.model(pixels).logits, adapted.eval()(pixel_values=pixels).logits)
        plain = open_model(str(backbone), device="cpu").backbone(pixels).features
        assert not torch.allclose(opened.backbone(pixels).features, plain), "the adapter acts on the features, too"


def test_checkpoints_of_the_hub_open_by_their_names(texts, tmp_path, monkeypatch):
    nvidia = write_hub_folder("c_radio_v4_tiny", tmp_path / "nvidia")
    with hub_in_place(monkeypatch) as server:
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        # The client by which transformers lists a tokenizer's files was made for the Hub that was asked first.
        monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)
        for folder, name in ((texts, "org/texts"), (nvidia, "nvidia/C-RADIOv4-H")):
            repository = server.repositories[f"models/{name}"] = Repository(private=False)
            repository.commit({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})
        opened = open_model("org/texts", device="cpu")
        assert opened.zero_shot is not None
        assert opened.tokenizer("cat").input_ids
        assert opened.processor.size == RadioImageProcessor.from_pretrained(texts).size
        assert type(open_model("nvidia/C-RADIOv4-H", device="cpu").model) is RadioModel
        with pytest.raises(ValueError, match="org/nothing"):
            open_model("org/nothing", device="cpu")
    opened = open_model(str(nvidia), device="cpu")
    assert opened.processor.patch_size == opened.model.config.patch_size


def edit_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


def test_checkpoints_that_cannot_be_opened_are_refused(backbone, texts, tmp_path):
    without_tokenizer = shutil.copytree(texts, tmp_path / "texts", ignore=shutil.ignore_patterns("*token*"))
    towerless = edit_config(shutil.copytree(texts, tmp_path / "towerless"), text_tower=None)
    other = edit_config(shutil.copytree(backbone, tmp_path / "other"), model_type="vit")
    deeper = edit_config(shutil.copytree(backbone, tmp_path / "deeper"), num_hidden_layers=7)
    for folder in (other, towerless, without_tokenizer):
        refused("checkpoint", lambda folder=folder: open_model(str(folder), device="cpu"))
    for number, classes in enumerate(([["x"]], {"x": 1}, 5)):
        strange = edit_config(shutil.copytree(backbone, tmp_path / f"strange{number}"), architectures=classes)
        refused("architectures", lambda strange=strange: open_model(str(strange), device="cpu"))
    refused("device", lambda: open_model(str(backbone), device="tpu"))
    refused("dtype", lambda: open_model(str(backbone), device="cpu", dtype="float8"))
    with pytest.raises(ValueError, match=r"radio_model\.model\.blocks\.6"):
        open_model(str(deeper), device="cpu")
    with pytest.raises(ValueError, match="nowhere"):
        open_model(str(tmp_path / "nowhere"), device="cpu")


def damage(folder, name, change, file="model.safetensors"):
    weights = load_file(folder / file)
    (key,) = [key for key in weights if name in key][:1]
    save_file({**weights, key: change(weights[key])}, folder / file, {"format": "pt"})


DAMAGES = {"finite": lambda weight: weight * torch.nan, "floating-point": lambda weight: weight.int()}


@pytest.mark.parametrize("rule", DAMAGES)
@pytest.mark.parametrize(
    ("kind", "name"), [("head", "blocks.0.attn.qkv.weight"), ("head", "classifier."), ("texts", "text_tower.")]
)
def test_damaged_weights_are_refused_wherever_they_are(backbone, texts, tmp_path, kind, name, rule):
    folder = tmp_path / "damaged"
    if kind == "head":
        RadioForImageClassification.from_pretrained(backbone, num_labels=3).save_pretrained(folder)
    else:
        shutil.copytree(texts, folder)
    open_model(str(folder), device="cpu")
    damage(folder, name, DAMAGES[rule])
    with pytest.raises(ValueError, match=f"{rule}.*{name}"):
        open_model(str(folder), device="cpu")


@needs_heads
@pytest.mark.parametrize("rule", DAMAGES)
@pytest.mark.parametrize("part", ["base", "adapter"])
def test_an_adapter_or_its_base_is_damaged(backbone, tmp_path, part, rule):
    model = RadioForImageClassification.from_pretrained(backbone, num_labels=3)
    adapted = add_adapter(model, tuning_settings(checkpoint=str(backbone), tune="lora"))
    save_adapter(adapted, RadioImageProcessor(), tmp_path / "adapter", str(backbone))
    if part == "base":
        damage(backbone, "blocks.0.attn.qkv.weight", DAMAGES[rule])
    else:
        damage(tmp_path / "adapter", "lora_A", DAMAGES[rule], "adapter_model.safetensors")
    with pytest.raises(ValueError, match=rule):
        open_model(tmp_path / "adapter", device="cpu", base=str(backbone))
    with pytest.raises(ValueError, match="`base`"):  # a path on this machine, which is not followed
        open_model(tmp_path / "adapter", device="cpu")


def test_numbers_of_eight_bits_and_tensors_without_values_are_looked_at():
    numbers = torch.tensor([1.0, torch.nan])
    assert not is_finite(numbers.to(torch.float8_e4m3fn))
    assert is_finite(numbers[:1].to(torch.float8_e4m3fn))
    assert is_finite(numbers.to("meta"))
    assert is_finite(torch.tensor([3]))
