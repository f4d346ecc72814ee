"""Adapters: which layers they sit on, and that saving, opening, merging and switching change nothing."""

import json
import subprocess
import sys

import pytest
import torch
import transformers
from packaging.version import Version
from safetensors import safe_open

from modeling_radio import (
    RadioConfig,
    RadioForImageClassification,
    RadioForObjectDetection,
    RadioForSemanticSegmentation,
    RadioModel,
)
from modeling_radio.image_processing_radio import RadioImageProcessor
from training.finetuning.adapters import (
    add_adapter,
    build_lora_config,
    head_names,
    merge_adapter,
    open_adapter,
    save_adapter,
    target_pattern,
    valid_targets,
)
from training.finetuning.settings import FinetuneSettings


# peft asks a model for `is_gradient_checkpointing`, which transformers is renaming.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

NUM_LABELS = 3

# `load_adapter` of transformers 5.17 leaves out the head that an adapter folder holds; peft's own class does not.
LOADS_HEADS = Version(transformers.__version__) >= Version("5.24")


def tiny_config(**options):
    return RadioConfig.from_preset("radio-test", **options)


def settings(tune="lora", **options):
    return FinetuneSettings("some/base", "image-classification", "data", output="output", tune=tune, **options)


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    RadioModel(tiny_config()).save_pretrained(folder)
    return folder


def open_base(folder, model_class=RadioForImageClassification, seed=0, **options):
    torch.manual_seed(seed)
    return model_class.from_pretrained(folder, num_labels=NUM_LABELS, **options).eval()


def trained(model, seed=1):
    """Give every trainable weight a value as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def save(model, path):
    save_adapter(model, RadioImageProcessor.from_model_config(tiny_config()), path, "some/base")
    return path


def logits(model, pixels, **options):
    with torch.no_grad():
        return model(pixels, **options).logits


@pytest.fixture
def pixels():
    return torch.rand(2, 3, 64, 80)


def test_targets_are_the_linear_layers_of_the_blocks():
    assert valid_targets(RadioModel(tiny_config())) == ["qkv", "proj", "fc1", "fc2"]
    assert valid_targets(RadioModel(tiny_config(use_swiglu_ffn=True))) == ["qkv", "proj", "w12", "w3"]


def test_wrong_target_lists_the_valid_ones():
    with pytest.raises(ValueError, match=r"`lora_targets` has 'qvk'\. Did you mean 'qkv'\? .*: qkv, proj, fc1, fc2\."):
        target_pattern(RadioModel(tiny_config()), ["fc1", "qvk"])


def test_adapters_sit_on_the_blocks_only_and_the_head_trains_in_full(base_folder):
    adaptor = {"name": "t", "hidden_size": 8, "summary_dim": 4, "feature_dim": 4, "feature_head": "attention"}
    model = RadioModel(tiny_config(adaptors=[{**adaptor, "feature_num_attention_heads": 2}]))
    adapted = add_adapter(model, settings(lora_targets=("qkv", "fc1")))
    layers = {name.split(".lora_A")[0] for name, _ in adapted.named_parameters() if ".lora_A" in name}
    depth = tiny_config().num_hidden_layers
    prefix = "base_model.model.radio_model.model.blocks"
    assert layers == {f"{prefix}.{i}.{name}" for i in range(depth) for name in ("attn.qkv", "mlp.fc1")}

    task_model = open_base(base_folder)
    assert head_names(task_model) == ["classifier"]
    adapted = add_adapter(task_model, settings(lora_rank=2))
    config = tiny_config()
    width, hidden = config.hidden_size, config.intermediate_size
    per_block = 2 * (width + 3 * width) + 2 * (width + width) + 2 * (2 * (width + hidden))
    head = sum(parameter.numel() for parameter in task_model.get_submodule("classifier").original_module.parameters())
    trainable = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    assert trainable == depth * per_block + head


@pytest.mark.parametrize(("tune", "flag"), [("lora", None), ("dora", "use_dora"), ("rslora", "use_rslora")])
def test_methods(tune, flag, base_folder, pixels):
    model = open_base(base_folder)
    before = logits(model, pixels)
    config = build_lora_config(model, settings(tune, lora_rank=4))
    assert (config.use_dora, config.use_rslora) == (flag == "use_dora", flag == "use_rslora")
    assert (config.r, config.lora_alpha) == (4, 8)
    adapted = add_adapter(model, settings(tune, lora_rank=4)).eval()
    torch.testing.assert_close(logits(adapted, pixels), before, atol=1e-6, rtol=0)  # fresh adapters change nothing
    assert not torch.allclose(logits(trained(adapted), pixels), before, atol=1e-3)


@pytest.mark.parametrize(
    ("model_class", "tune", "mode"),
    [
        (RadioForImageClassification, "lora", {}),
        (RadioForImageClassification, "lora", {"window_size": 2}),
        (RadioForSemanticSegmentation, "dora", {"window_size": 2}),  # its batch norm has statistics to keep, too
    ],
    ids=["global", "windowed", "dora"],
)
def test_save_open_merge_and_unload(base_folder, tmp_path, pixels, model_class, tune, mode):
    model = open_base(base_folder, model_class)
    original = logits(model, pixels, **mode)
    adapted = trained(add_adapter(model, settings(tune, lora_rank=2)))
    expected = logits(adapted, pixels, **mode)
    folder = save(adapted, tmp_path / "adapter")

    opened = open_adapter(open_base(base_folder, model_class, seed=5), folder).eval()
    assert torch.equal(logits(opened, pixels, **mode), expected)

    if LOADS_HEADS:
        by_transformers = open_base(base_folder, model_class, seed=5)
        by_transformers.load_adapter(str(folder))
        assert torch.equal(logits(by_transformers.eval(), pixels, **mode), expected)

    processor = RadioImageProcessor.from_model_config(tiny_config())
    merge_adapter(open_base(base_folder, model_class, seed=5), folder, processor, tmp_path / "merged")
    merged = model_class.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(merged, pixels, **mode), expected, atol=1e-5, rtol=0)
    assert not (tmp_path / "merged" / "adapter_config.json").exists()

    plain = adapted.unload().eval()
    assert type(plain) is model_class
    with torch.no_grad():
        backbone = plain.encode(pixels, **mode).summary
    torch.testing.assert_close(backbone, open_base(base_folder, model_class).encode(pixels, **mode).summary)
    assert original.shape == expected.shape


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_gradient_checkpointing_changes_no_gradient(base_folder, pixels):
    def gradients(is_checkpointed):
        model = trained(add_adapter(open_base(base_folder), settings(lora_rank=2)))
        if is_checkpointed:
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        torch.manual_seed(7)  # of the random positions
        model(pixels, labels=torch.tensor([0, 2])).loss.backward()
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}

    plain, checkpointed = gradients(False), gradients(True)
    assert len(plain) > 8
    for name, gradient in plain.items():
        assert gradient is not None, name
        torch.testing.assert_close(checkpointed[name], gradient, msg=name)


def test_several_adapters_switch_per_call(base_folder, tmp_path, pixels):
    folders = {}
    for number, name in enumerate(("farm", "zoo")):
        adapted = trained(add_adapter(open_base(base_folder), settings(lora_rank=2 + number)), seed=number)
        folders[name] = (save(adapted, tmp_path / name), logits(adapted, pixels))
    model = open_adapter(open_base(base_folder), folders["farm"][0], "farm")
    model = open_adapter(model, folders["zoo"][0], "zoo").eval()
    for name in ("zoo", "farm", "zoo"):
        model.set_adapter(name)
        assert torch.equal(logits(model, pixels), folders[name][1])
    with model.disable_adapter():
        torch.testing.assert_close(logits(model, pixels), logits(open_base(base_folder), pixels))


def test_adapters_of_a_backbone_mix_within_a_batch(base_folder, tmp_path, pixels):
    folders, expected = {}, {}
    for number, name in enumerate(("farm", "zoo")):
        adapted = trained(add_adapter(RadioModel.from_pretrained(base_folder), settings(lora_rank=2)), seed=number)
        folders[name] = save(adapted, tmp_path / name)
        with torch.no_grad():
            expected[name] = adapted(pixels, window_size=2).features
    model = open_adapter(RadioModel.from_pretrained(base_folder), folders["farm"], "farm")
    model = open_adapter(model, folders["zoo"], "zoo").eval()
    with torch.no_grad():
        mixed = model(pixels, window_size=2, adapter_names=["farm", "zoo"]).features
    torch.testing.assert_close(mixed, torch.stack([expected["farm"][0], expected["zoo"][1]]), atol=1e-5, rtol=0)


def test_folder_names_no_module_and_no_path(base_folder, tmp_path):
    folder = save(add_adapter(open_base(base_folder), settings()), tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["auto_mapping"] is None
    assert config["base_model_name_or_path"] == "some/base"
    assert config["modules_to_save"] == ["classifier"]
    with safe_open(folder / "adapter_model.safetensors", "pt") as weights:
        names = list(weights.keys())
    assert all(".lora_" in name or ".classifier." in name for name in names)
    assert (folder / "preprocessor_config.json").is_file()


OPEN_ELSEWHERE = """
import sys
sys.modules["modeling_radio"] = None
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification
base, adapter, pixels = sys.argv[1:]
AutoImageProcessor.from_pretrained(adapter, trust_remote_code=True)
config = AutoConfig.from_pretrained(adapter, trust_remote_code=True)
def open_base():
    return AutoModelForImageClassification.from_pretrained(base, config=config, trust_remote_code=True)
by_peft = PeftModel.from_pretrained(open_base(), adapter).eval()
by_transformers = open_base()
by_transformers.load_adapter(adapter)
pixels = torch.load(pixels)
with torch.no_grad():
    torch.save([by_peft(pixels).logits, by_transformers.eval()(pixels).logits], "logits.pt")
"""


@pytest.mark.skipif(not LOADS_HEADS, reason="load_adapter leaves out the head")
def test_adapter_opens_in_a_fresh_process_on_the_remote_code_base(base_folder, tmp_path, pixels):
    adapted = trained(add_adapter(open_base(base_folder), settings(lora_rank=2)))
    folder = save(adapted, tmp_path / "adapter")
    torch.save(pixels, tmp_path / "pixels.pt")
    command = [sys.executable, "-c", OPEN_ELSEWHERE, str(base_folder), str(folder), "pixels.pt"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for found in torch.load(tmp_path / "logits.pt"):
        torch.testing.assert_close(found, logits(adapted, pixels), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 48}, "another model: `hidden_size` was 32 where it was trained and is 48 here"),
        ({"num_hidden_layers": 2}, "another model: `num_hidden_layers` was 4 where it was trained and is 2 here"),
        ({"num_labels": 7}, "another model: `num_labels` was 3 where it was trained and is 7 here"),
    ],
)
def test_adapter_for_another_model(base_folder, tmp_path, change, message):
    folder = save(add_adapter(open_base(base_folder), settings()), tmp_path / "adapter")
    other = RadioForImageClassification(tiny_config(**{"num_labels": NUM_LABELS, **change}))
    with pytest.raises(ValueError, match=message):
        open_adapter(other, folder)


def test_folder_without_adapter(base_folder):
    message = r"is no adapter folder: it lacks adapter_config\.json, adapter_model\.safetensors"
    with pytest.raises(ValueError, match=message):
        open_adapter(open_base(base_folder), base_folder)


def test_new_detector_is_finite_and_seeded(base_folder):
    first, second = (open_base(base_folder, RadioForObjectDetection).state_dict() for _ in range(2))
    for name, weights in first.items():
        assert weights.isfinite().all(), name
        assert torch.equal(weights, second[name]), name
