"""Every kind of folder opens as what it is, and nothing else does."""

import json
import shutil

import huggingface_hub
import pytest
import torch
from local_hub import Repository, hub_in_place
from reference_cases import write_hub_folder
from releases import needs_heads
from tiny_tuning import tuning_settings

from modeling_radio import (
    RadioConfig,
    RadioForImageClassification,
    RadioForObjectDetection,
    RadioImageProcessor,
    RadioModel,
)
from training.app.opening import devices, open_model
from training.finetuning.adapters import add_adapter, save_adapter


@pytest.fixture
def backbone(tmp_path):
    torch.manual_seed(0)
    RadioModel(RadioConfig.from_preset("radio-test", num_hidden_layers=6)).save_pretrained(tmp_path / "backbone")
    return tmp_path / "backbone"


def test_a_model_with_texts_brings_its_tokenizer_and_its_spaces(opened):
    assert opened.zero_shot is opened.model
    assert opened.tokenizer("cat").input_ids
    assert opened.dense_adaptors == ["siglip2-g", "dino_v2"]
    assert not opened.has_head
    assert opened.backbone.radio_model is opened.model.radio_model


def test_a_plain_backbone_needs_no_processor_in_its_folder(backbone):
    opened = open_model(str(backbone), "cpu")
    assert opened.backbone is opened.model
    assert (opened.tokenizer, opened.zero_shot, opened.has_head, opened.dense_adaptors) == (None, None, False, [])
    assert opened.processor.patch_size == 16
    assert not opened.model.training


def test_a_tuned_model_opens_with_its_head_and_its_processor(save_tuned):
    folder = save_tuned(RadioForObjectDetection)
    RadioImageProcessor(size={"height": 32, "width": 48}).save_pretrained(folder)
    opened = open_model(str(folder), "cpu")
    assert type(opened.model) is RadioForObjectDetection
    assert opened.has_head
    assert opened.processor.size["width"] == 48
    pixels = torch.rand(1, 3, 32, 48)
    assert torch.equal(opened.backbone(pixels).features, opened.model.base_model(pixels).features)


@needs_heads
def test_an_adapter_opens_with_its_base(backbone, tmp_path):
    model = RadioForImageClassification.from_pretrained(backbone, num_labels=5)
    adapted = add_adapter(model, tuning_settings(checkpoint=str(backbone), tune="lora"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    save_adapter(adapted, RadioImageProcessor(), tmp_path / "adapter", str(backbone))
    opened = open_model(str(tmp_path / "adapter"), "cpu")
    pixels = torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(opened.model(pixels).logits, adapted.eval()(pixel_values=pixels).logits)
        plain = open_model(str(backbone), "cpu").backbone(pixels).features
        assert not torch.allclose(opened.backbone(pixels).features, plain), "the adapter acts on the features, too"


def test_a_folder_of_nvidias_opens(tmp_path):
    opened = open_model(str(write_hub_folder("c_radio_v4_tiny", tmp_path / "nvidia")), "cpu")
    assert type(opened.model) is RadioModel
    assert opened.processor.patch_size == opened.model.config.patch_size


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Return a Hub of our own, and a function that puts a folder there."""
    with hub_in_place(monkeypatch) as server:
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        # The client by which transformers lists a tokenizer's files was made for the Hub that was asked first.
        monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)

        def publish(folder, name):
            repository = server.repositories[f"models/{name}"] = Repository(private=False)
            repository.commit({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})

        yield publish


def test_checkpoints_of_the_hub_open_by_their_names(hub, texts, tmp_path):
    hub(texts, "org/texts")
    hub(write_hub_folder("c_radio_v4_tiny", tmp_path / "nvidia"), "nvidia/C-RADIOv4-H")
    opened = open_model("org/texts", "cpu")
    assert opened.zero_shot is not None
    assert opened.tokenizer("cat").input_ids
    assert opened.processor.size == RadioImageProcessor.from_pretrained(texts).size
    assert type(open_model("nvidia/C-RADIOv4-H", "cpu").model) is RadioModel
    with pytest.raises(OSError, match="org/nothing"):
        open_model("org/nothing", "cpu")


def test_types_and_global_blocks_are_as_asked_for(backbone):
    assert open_model(str(backbone), "cpu", "bfloat16").dtype == "bfloat16"
    assert sum(open_model(str(backbone), "cpu", num_global=1).backbone.radio_model.model.is_global) == 1


def test_no_code_of_a_checkpoint_runs(backbone):
    for path in backbone.glob("*.py"):
        path.write_text("raise SystemExit('code of the checkpoint ran')")
    open_model(str(backbone), "cpu")


def test_what_is_no_radio_model_is_refused(backbone, texts, tmp_path):
    config = json.loads((backbone / "config.json").read_text())
    (backbone / "config.json").write_text(json.dumps(config | {"model_type": "vit"}))
    with pytest.raises(ValueError, match=r"`checkpoint` must be a RADIO model, got .* with the `model_type` 'vit'"):
        open_model(str(backbone), "cpu")
    (backbone / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 7}))
    with pytest.raises(ValueError, match=r"missing: radio_model.model.blocks.6"):
        open_model(str(backbone), "cpu")
    with pytest.raises(OSError, match="nowhere"):
        open_model(str(tmp_path / "nowhere"), "cpu")
    without = shutil.copytree(texts, tmp_path / "without")
    for path in without.glob("*token*"):
        path.unlink()
    with pytest.raises(ValueError, match="has a text tower, but no tokenizer"):
        open_model(str(without), "cpu")


def test_devices_and_types_are_checked(backbone):
    assert devices()[-1] == "cpu"
    with pytest.raises(ValueError, match=r"`device` must be one of .*, got 'tpu'"):
        open_model(str(backbone), "tpu")
    with pytest.raises(ValueError, match=r"`dtype` must be one of .*, got 'float8'"):
        open_model(str(backbone), "cpu", "float8")
