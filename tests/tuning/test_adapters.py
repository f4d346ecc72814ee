"""Adapters: the layers that get one, and that saving, opening, merging and switching change nothing."""

import json
import re
import sys

import pytest
import torch
import transformers
from comparisons import assert_close_by_name
from peft import get_peft_model_state_dict
from releases import LOADS_HEADS
from safetensors.torch import load_file, save_file
from tiny_navit import build_navit
from tiny_radio1d import FIELDS
from tiny_tuning import tuning_settings

from modeling_radio import (
    RadioConfig,
    RadioForImageClassification,
    RadioForSemanticSegmentation,
    RadioModel,
    peft_radio,
)
from modeling_radio.image_processing_radio import RadioImageProcessor
from modeling_radio.tuning.adapters import (
    add_adapter,
    head_names,
    merge_adapter,
    open_adapter,
    save_adapter,
    valid_targets,
)


# peft asks a model for `is_gradient_checkpointing`, which transformers is renaming.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

CLASSIFIER, SEGMENTER = RadioForImageClassification, RadioForSemanticSegmentation


def tiny_config(**options):
    return RadioConfig.from_preset("radio-test", **options)


def settings(tune="lora", **options):
    return tuning_settings(checkpoint="some/base", tune=tune, **{"lora_rank": 2, **options})


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    RadioModel(tiny_config()).save_pretrained(folder)
    return folder


def open_base(folder, model_class=CLASSIFIER, seed=0, num_labels=3):
    torch.manual_seed(seed)
    return model_class.from_pretrained(folder, num_labels=num_labels).eval()


def trained(model, seed=1):
    """Give every trainable weight a value as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def save(model, path, base="some/base"):
    save_adapter(model, RadioImageProcessor.from_model_config(tiny_config()), path, str(base))
    return path


def assert_equal_outputs(actual, expected):
    """Not bit by bit: where equal weights lie in memory can decide a kernel's path."""
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-6)


def logits(model, pixels, **options):
    with torch.no_grad():
        return model(pixels, **options).logits


@pytest.fixture
def pixels():
    return torch.rand(2, 3, 64, 80)


def test_adapters_are_on_the_blocks_only_and_the_head_trains_in_full(base_folder):
    assert valid_targets(RadioModel(tiny_config(use_swiglu_ffn=True))) == ["qkv", "proj", "w12", "w3"]
    adaptor = {"name": "t", "hidden_size": 8, "summary_dim": 4, "feature_dim": 4, "feature_head": "attention"}
    model = RadioModel(tiny_config(adaptors=[{**adaptor, "feature_num_attention_heads": 2}]))
    adapted = add_adapter(model, settings(lora_targets=("qkv", "fc1")))
    layers = {name.split(".lora_A")[0] for name, _ in adapted.named_parameters() if ".lora_A" in name}
    config = tiny_config()
    depth, width, hidden = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    prefix = "base_model.model.radio_model.model.blocks"
    assert layers == {f"{prefix}.{i}.{name}" for i in range(depth) for name in ("attn.qkv", "mlp.fc1")}

    task_model = open_base(base_folder)
    assert head_names(task_model) == ["classifier"]
    adapted = add_adapter(task_model, settings())
    per_block = 2 * (width + 3 * width) + 2 * (width + width) + 2 * (2 * (width + hidden))
    head = sum(parameter.numel() for parameter in task_model.get_submodule("classifier").original_module.parameters())
    trainable = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    assert trainable == depth * per_block + head


@pytest.mark.parametrize(
    ("model_class", "tune", "mode"),
    [
        (CLASSIFIER, "lora", {"window_size": 2}),
        (CLASSIFIER, "rslora", {}),
        (SEGMENTER, "dora", {"window_size": 2}),  # its batch norm has statistics to keep, too
    ],
    ids=["windowed", "rslora", "dora"],
)
def test_save_open_merge_and_unload(base_folder, tmp_path, pixels, model_class, tune, mode):
    model = open_base(base_folder, model_class)
    original = {name: weights.clone() for name, weights in model.get_submodule("radio_model").state_dict().items()}
    adapted = add_adapter(model, settings(tune))
    expected = logits(trained(adapted), pixels, **mode)
    folder = save(adapted, tmp_path / "adapter")

    opened = open_adapter(open_base(base_folder, model_class, seed=5), folder).eval()
    states = [get_peft_model_state_dict(each, save_embedding_layers=False) for each in (opened, adapted)]
    assert_close_by_name(*states)
    assert_equal_outputs(logits(opened, pixels, **mode), expected)
    assert_same_by_transformers_and_merged(base_folder, model_class, folder, pixels, mode, expected)

    plain = adapted.unload()
    assert type(plain) is model_class
    backbone = plain.get_submodule("radio_model").state_dict()
    assert backbone.keys() == original.keys()
    assert all(torch.equal(backbone[name], weights) for name, weights in original.items())


def assert_same_by_transformers_and_merged(base, model_class, folder, pixels, mode, expected):
    if LOADS_HEADS:
        by_transformers = open_base(base, model_class, seed=5)
        by_transformers.load_adapter(str(folder))
        assert_equal_outputs(logits(by_transformers.eval(), pixels, **mode), expected)
    merged = merge_adapter(open_base(base, model_class, seed=5), folder)
    assert type(merged) is model_class
    torch.testing.assert_close(logits(merged.eval(), pixels, **mode), expected, atol=1e-5, rtol=0)


def test_adapters_of_a_radio1d_include_its_decoder(tmp_path, pixels):
    torch.manual_seed(0)
    RadioModel(RadioConfig(**FIELDS)).save_pretrained(tmp_path / "base")
    adapted = add_adapter(open_base(tmp_path / "base"), settings())
    trainable = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    for block in ("blocks.0", "blocks.2", "decoder.blocks.0", "decoder.blocks.1"):
        found = [name for name in trainable if f"radio_model.model.{block}." in name]
        assert len(found) == 2 * 4  # a pair for each of four layers
    expected = logits(trained(adapted), pixels)
    folder = save(adapted, tmp_path / "adapter")
    assert_equal_outputs(logits(open_adapter(open_base(tmp_path / "base", seed=5), folder).eval(), pixels), expected)
    assert_same_by_transformers_and_merged(tmp_path / "base", CLASSIFIER, folder, pixels, {}, expected)


def test_adapters_of_a_navit_leave_its_heads_alone(tmp_path, pixels):
    options = {"norm_layer": "rmsnorm", "norm_method": "peri", "pool_type": "attn"}
    options["heads"] = {"teacher_a": {"num_layers": 1, "num_heads": 2}}
    build_navit(options).save_pretrained(tmp_path / "base")
    adapted = add_adapter(open_base(tmp_path / "base"), settings())
    trainable = {name.split(".lora_")[0] for name, weight in adapted.named_parameters() if weight.requires_grad}
    in_block = [re.sub(r".*blocks\.0\.|\.modules_to_save.*", "", name) for name in trainable if ".blocks.0." in name]
    assert sorted(in_block) == ["attn.proj", "attn.qkv", "mlp.fc1", "mlp.fc2"]
    assert not [name for name in trainable if "adaptors" in name or "attn_pool" in name]
    expected = logits(trained(adapted), pixels)
    folder = save(adapted, tmp_path / "adapter")
    assert_equal_outputs(logits(open_adapter(open_base(tmp_path / "base", seed=5), folder).eval(), pixels), expected)
    assert_same_by_transformers_and_merged(tmp_path / "base", CLASSIFIER, folder, pixels, {}, expected)


def test_tasks_with_other_classes_share_one_backbone(base_folder, tmp_path, pixels):
    folders, expected = {}, {}
    for name, classes in (("pets", 4), ("zoo", 2)):
        adapted = trained(add_adapter(open_base(base_folder, num_labels=classes), settings()), seed=classes)
        folders[name], expected[name] = save(adapted, tmp_path / name), logits(adapted, pixels)

    pets = open_adapter(open_base(base_folder, num_labels=4), folders["pets"], "pets").eval()
    with pytest.raises(ValueError, match="`num_labels`"):  # another head needs another model
        open_adapter(pets, folders["zoo"], "zoo")
    assert list(pets.peft_config) == ["pets"]
    assert_equal_outputs(logits(pets, pixels), expected["pets"])
    zoo = open_base(base_folder, num_labels=2)
    zoo.radio_model = pets.get_base_model().radio_model
    zoo = open_adapter(zoo, folders["zoo"], "zoo").eval()
    base_weight = "radio_model.model.blocks.0.attn.qkv.base_layer.weight"
    assert zoo.get_base_model().get_parameter(base_weight) is pets.get_base_model().get_parameter(base_weight)
    for name, model in (("pets", pets), ("zoo", zoo), ("pets", pets)):
        model.set_adapter(name)
        assert_equal_outputs(logits(model, pixels), expected[name])


def test_adapters_of_a_backbone_mix_within_a_batch(base_folder, tmp_path, pixels):
    folders, expected = {}, {}
    for number, name in enumerate(("farm", "zoo")):
        adapted = trained(add_adapter(RadioModel.from_pretrained(base_folder), settings()), seed=number)
        folders[name] = save(adapted, tmp_path / name, base_folder)
        with torch.no_grad():
            expected[name] = adapted(pixels, window_size=2).features
    model = open_adapter(RadioModel.from_pretrained(base_folder), folders["farm"], "farm")
    model = open_adapter(model, folders["zoo"], "zoo").eval()
    opened = RadioModel.from_pretrained(tmp_path, subfolder="zoo").eval()  # like a model
    with torch.no_grad():
        mixed = model(pixels, window_size=2, adapter_names=["farm", "zoo"]).features
        assert_equal_outputs(opened(pixels, window_size=2).features, expected["zoo"])
    torch.testing.assert_close(mixed, torch.stack([expected["farm"][0], expected["zoo"][1]]), atol=1e-5, rtol=0)
    with pytest.raises(TypeError, match="no_option"):  # transformers' own complaint about the caller's options
        RadioModel.from_pretrained(folders["zoo"], adapter_kwargs={"no_option": 1})


DPT = {"segmentation_head": "dpt", "dpt_hidden_size": 32}
OTHER_MODELS = {
    "hidden_size": (CLASSIFIER, {}, CLASSIFIER, {"hidden_size": 48}),
    "blocks.2.attn.proj.lora_A": (CLASSIFIER, {}, CLASSIFIER, {"num_hidden_layers": 2}),
    "blocks.4.attn.proj.lora_A": (CLASSIFIER, {}, CLASSIFIER, {"num_hidden_layers": 6}),
    "num_labels": (CLASSIFIER, {}, CLASSIFIER, {"num_labels": 7}),
    "classifier_pooling": (CLASSIFIER, {}, CLASSIFIER, {"classifier_pooling": "summary_and_features"}),
    "decode_head.classifier": (SEGMENTER, {}, CLASSIFIER, {}),
    "decode_head.head": (SEGMENTER, DPT, SEGMENTER, {}),
    "dpt_hidden_size": (SEGMENTER, DPT, SEGMENTER, {**DPT, "dpt_hidden_size": 48}),
    "classifier.": (RadioModel, {}, CLASSIFIER, {}),
}


def build(model_class, **options):
    return model_class(tiny_config(**{"num_labels": 3, **options}))


@pytest.mark.parametrize(
    ("name", "trained_class", "trained_options", "other_class", "options"),
    [(name, *case) for name, case in OTHER_MODELS.items()],
)
def test_an_adapter_for_another_model_is_refused(tmp_path, name, trained_class, trained_options, other_class, options):
    folder = save(add_adapter(build(trained_class, **trained_options), settings()), tmp_path / "adapter")
    other = build(other_class, **options)
    modules = [module for module, _ in other.named_modules()]
    with pytest.raises(ValueError, match="is for another model") as error:
        open_adapter(other, folder)
    assert f"`{name}`" in str(error.value) or f".{name}" in str(error.value) or f"`{name}" in str(error.value)
    assert [module for module, _ in other.named_modules()] == modules  # nothing was put on it
    if LOADS_HEADS and trained_class is not RadioModel:
        with pytest.raises(ValueError, match="is for another model"):
            build(other_class, **options).load_adapter(str(folder))


def test_a_merged_model_is_finite(base_folder, tmp_path):
    folder = save(trained(add_adapter(open_base(base_folder), settings())), tmp_path / "adapter", base_folder)
    config, file = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    values, weights = json.loads(config.read_text()), load_file(file)
    merge_adapter(open_base(base_folder), folder)
    config.write_text(json.dumps({**values, "lora_alpha": float("nan")}))
    with pytest.raises(ValueError, match=r"finite.*blocks\.0"):
        merge_adapter(open_base(base_folder), folder)
    config.write_text(json.dumps(values))
    key = next(key for key in weights if "lora_A" in key)
    for change, rule in ((weights[key] * torch.nan, "finite"), (weights[key].int(), "floating-point")):
        save_file({**weights, key: change}, file, {"format": "pt"})
        with pytest.raises(ValueError, match=rule):
            merge_adapter(open_base(base_folder), folder)


def test_folders_that_are_no_fitting_adapters_are_refused(base_folder, tmp_path, monkeypatch):
    folder = save(add_adapter(open_base(base_folder), settings()), tmp_path / "adapter", base_folder)
    with pytest.raises(ValueError, match=r"adapter_config\.json, adapter_model\.safetensors"):
        open_adapter(open_base(base_folder), base_folder)
    values = json.loads((folder / "adapter_config.json").read_text())
    for peft_type in (None, "IA3", {}):
        (folder / "adapter_config.json").write_text(json.dumps({**values, "peft_type": peft_type}))
        with pytest.raises(ValueError, match="adapter_config"):
            open_adapter(open_base(base_folder), folder)
    for name in ("megatron_config", "corda_config", "monteclora_config"):  # peft imports or reads what these name
        (folder / "adapter_config.json").write_text(
            json.dumps({**values, name: {"a": 1}, "megatron_core": "antigravity"})
        )
        for opened in (
            lambda: open_adapter(open_base(base_folder), folder),
            lambda: RadioModel.from_pretrained(folder),
        ):
            with pytest.raises(ValueError, match=f"`{name}`"):
                opened()
    assert "antigravity" not in sys.modules
    (folder / "adapter_config.json").write_text(json.dumps(values))
    model = open_base(base_folder)
    modules = [name for name, _ in model.named_modules()]
    with monkeypatch.context() as patch:  # heads before transformers reads them
        patch.setattr(transformers, "__version__", "5.17.0")
        for load in (lambda: model.load_adapter(str(folder)), lambda: CLASSIFIER.from_pretrained(folder)):
            with pytest.raises(ValueError, match=r"transformers 5\.18"):
                load()
    assert [name for name, _ in model.named_modules()] == modules  # nothing was put on it
    if LOADS_HEADS:
        fields = json.loads((folder / "config.json").read_text())
        fields["max_img_size"] //= 2  # not that of the base
        (folder / "config.json").write_text(json.dumps(fields))
        with pytest.raises(ValueError, match="is for another model"):
            CLASSIFIER.from_pretrained(folder)


def test_an_adapter_knows_its_base_in_any_precision(base_folder, tmp_path, caplog, monkeypatch):
    folder = save(trained(add_adapter(open_base(base_folder), settings())), tmp_path / "adapter", base_folder)
    monkeypatch.setattr(transformers.utils.logging.get_logger("transformers"), "propagate", True)
    monkeypatch.setattr(peft_radio.logger, "propagate", True)
    four_bits = transformers.BitsAndBytesConfig(load_in_4bit=True)
    precisions = [{}, *({"dtype": dtype} for dtype in (torch.bfloat16, torch.float16))]
    for options in (*precisions, {"quantization_config": four_bits}):
        base = CLASSIFIER.from_pretrained(base_folder, num_labels=3, **options)
        adapted = open_adapter(base, folder)
        again = save(adapted, tmp_path / "again", base_folder)  # an adapter of this precision on the base of another
        open_adapter(open_base(base_folder), again)
        if LOADS_HEADS:
            CLASSIFIER.from_pretrained(base_folder, num_labels=3, **options).load_adapter(str(folder))
    assert "which base" not in caplog.text

    other = open_base(base_folder)
    with torch.no_grad():
        other.get_submodule("radio_model.model.blocks.1.mlp.fc1").bias += 0.01
    refusals = [lambda: open_adapter(other, folder)] + [lambda: other.load_adapter(str(folder))] * LOADS_HEADS
    for refused in refusals:
        with pytest.raises(ValueError, match=r"another base: `blocks\.1\.mlp\.fc1\.bias`"):
            refused()

    file = folder / "adapter_model.safetensors"
    save_file(load_file(file), file, {"format": "pt"})
    open_adapter(open_base(base_folder), folder)
    assert "which base" in caplog.text
    for text in ("{", "[1]", '{"a": 1}', '{"a": ["b"]}'):
        save_file(load_file(file), file, {"format": "pt", peft_radio.FINGERPRINT: text})
        with pytest.raises(ValueError, match="base_fingerprint"):
            open_adapter(open_base(base_folder), folder)
