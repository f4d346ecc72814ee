"""Adapters: which layers they sit on, and that saving, opening, merging and switching change nothing."""

import json
import os

import pytest
import torch
import transformers
from comparisons import assert_close_by_name
from peft import get_peft_model_state_dict
from peft.functional import set_adapter
from releases import LOADS_HEADS, needs_compiler, needs_heads
from safetensors import safe_open
from tiny_radio1d import FIELDS
from tiny_tuning import tuning_settings

from modeling_radio import (
    RadioConfig,
    RadioForImageClassification,
    RadioForSemanticSegmentation,
    RadioForZeroShotImageClassification,
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


# peft asks a model for `is_gradient_checkpointing`, which transformers is renaming.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

NUM_LABELS = 3

# Before, transformers leaves out the head, so that `load_adapter` refuses it; peft's own class reads it.


def tiny_config(**options):
    return RadioConfig.from_preset("radio-test", **options)


def settings(tune="lora", **options):
    return tuning_settings(checkpoint="some/base", tune=tune, **options)


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    RadioModel(tiny_config()).save_pretrained(folder)
    return folder


def open_base(folder, model_class=RadioForImageClassification, seed=0, num_labels=NUM_LABELS, **options):
    torch.manual_seed(seed)
    return model_class.from_pretrained(folder, num_labels=num_labels, **options).eval()


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


def adapter_weights(model):
    return get_peft_model_state_dict(model, save_embedding_layers=False)


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
    with pytest.raises(
        ValueError,
        match=r"`lora_targets` must be one of \['qkv', 'proj', 'fc1', 'fc2'\], got 'qvk'\. Did you mean 'qkv'",
    ):
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


def test_norms_train_beside_adapters_and_come_along(base_folder, tmp_path, pixels):
    adapted = add_adapter(open_base(base_folder), settings(lora_rank=2, train_norms=True))
    norms = {name for name, weight in adapted.named_parameters() if weight.requires_grad and ".norm" in name}
    assert len(norms) == 4 * tiny_config().num_hidden_layers  # two norms a block, weight and bias
    expected = logits(trained(adapted), pixels)
    folder = save(adapted, tmp_path / "adapter")
    assert_equal_outputs(logits(open_adapter(open_base(base_folder, seed=5), folder).eval(), pixels), expected)
    merged = merge_adapter(open_base(base_folder, seed=5), folder).eval()
    torch.testing.assert_close(logits(merged, pixels), expected, atol=1e-5, rtol=0)
    plain = open_base(base_folder).get_parameter("radio_model.model.blocks.0.norm1.weight")
    assert not torch.equal(merged.get_parameter("radio_model.model.blocks.0.norm1.weight"), plain)


def test_adapters_and_norms_of_a_radio1d_are_its_decoders_too(tmp_path, pixels):
    torch.manual_seed(0)
    RadioModel(RadioConfig(**FIELDS)).save_pretrained(tmp_path / "base")
    adapted = add_adapter(open_base(tmp_path / "base"), settings(lora_rank=2, train_norms=True))
    trainable = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    for block in ("blocks.0", "blocks.2", "decoder.blocks.0", "decoder.blocks.1"):
        found = [name for name in trainable if f"radio_model.model.{block}." in name]
        assert len(found) == 2 * 4 + 2 * 2  # a pair for each of four layers; weight and bias of two norms
    expected = logits(trained(adapted), pixels)
    folder = save(adapted, tmp_path / "adapter")
    assert_equal_outputs(logits(open_adapter(open_base(tmp_path / "base", seed=5), folder).eval(), pixels), expected)
    if LOADS_HEADS:
        by_transformers = open_base(tmp_path / "base", seed=5)
        by_transformers.load_adapter(str(folder))
        assert_equal_outputs(logits(by_transformers.eval(), pixels), expected)
    merged = merge_adapter(open_base(tmp_path / "base", seed=5), folder).eval()
    torch.testing.assert_close(logits(merged, pixels), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("model_class", "tune", "mode"),
    [
        (RadioForImageClassification, "lora", {}),
        (RadioForImageClassification, "lora", {"window_size": 2}),
        (RadioForImageClassification, "rslora", {}),
        (RadioForSemanticSegmentation, "dora", {"window_size": 2}),  # its batch norm has statistics to keep, too
    ],
    ids=["global", "windowed", "rslora", "dora"],
)
def test_save_open_merge_and_unload(base_folder, tmp_path, pixels, model_class, tune, mode):
    model = open_base(base_folder, model_class)
    original = {name: weights.clone() for name, weights in model.get_submodule("radio_model").state_dict().items()}
    adapted = trained(add_adapter(model, settings(tune, lora_rank=2)))
    expected = logits(adapted, pixels, **mode)
    folder = save(adapted, tmp_path / "adapter")

    opened = open_adapter(open_base(base_folder, model_class, seed=5), folder).eval()
    assert_close_by_name(adapter_weights(opened), adapter_weights(adapted))
    assert_equal_outputs(logits(opened, pixels, **mode), expected)

    if LOADS_HEADS:
        by_transformers = open_base(base_folder, model_class, seed=5)
        by_transformers.load_adapter(str(folder))
        assert_equal_outputs(logits(by_transformers.eval(), pixels, **mode), expected)

    merged = merge_adapter(open_base(base_folder, model_class, seed=5), folder)
    assert type(merged) is model_class
    torch.testing.assert_close(logits(merged.eval(), pixels, **mode), expected, atol=1e-5, rtol=0)

    plain = adapted.unload()
    assert type(plain) is model_class
    backbone = plain.get_submodule("radio_model").state_dict()
    assert backbone.keys() == original.keys()
    for name, weights in original.items():
        assert torch.equal(backbone[name], weights), name


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_save_and_merge_after_a_step_with_gradient_checkpointing(base_folder, tmp_path, pixels):
    adapted = add_adapter(open_base(base_folder), settings(lora_rank=2))
    fresh = logits(adapted.eval(), pixels)
    adapted.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    adapted.train()
    optimizer = torch.optim.SGD([parameter for parameter in adapted.parameters() if parameter.requires_grad], lr=0.5)
    adapted(pixels, labels=torch.tensor([0, 2])).loss.backward()
    optimizer.step()
    expected = logits(adapted.eval(), pixels)
    assert not torch.allclose(expected, fresh, atol=1e-3)

    folder = save(adapted, tmp_path / "adapter")
    opened = open_adapter(open_base(base_folder, seed=5), folder).eval()
    assert_close_by_name(adapter_weights(opened), adapter_weights(adapted))
    assert_equal_outputs(logits(opened, pixels), expected)
    merged = merge_adapter(open_base(base_folder, seed=5), folder).eval()
    torch.testing.assert_close(logits(merged, pixels), expected, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_gradient_checkpointing_changes_no_gradient(base_folder, pixels):
    def gradients(is_checkpointed):
        model = trained(add_adapter(open_base(base_folder), settings(lora_rank=2)))
        if is_checkpointed:
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        norm, passes = model.get_submodule("base_model.model.radio_model.model.blocks.0.norm1"), []
        norm.register_forward_hook(lambda *_: passes.append(norm))
        torch.manual_seed(7)  # of the random positions
        model(pixels, labels=torch.tensor([0, 2])).loss.backward()
        assert len(passes) == (2 if is_checkpointed else 1)
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
        assert_equal_outputs(logits(model, pixels), folders[name][1])
    with model.disable_adapter():
        torch.testing.assert_close(logits(model, pixels), logits(open_base(base_folder), pixels))


@needs_compiler
def test_several_adapters_switch_in_a_compiled_model(base_folder, tmp_path, pixels):
    torch._dynamo.reset()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    model = None
    for number, name in enumerate(("farm", "zoo")):
        adapted = trained(add_adapter(open_base(base_folder), settings(lora_rank=2 + number)), seed=number)
        model = open_adapter(model or open_base(base_folder), save(adapted, tmp_path / name), name).eval()
    compiled = torch.compile(model, backend=count)
    answers = {}
    for expected_graphs, name in ((1, "zoo"), (2, "farm"), (2, "zoo")):
        model.set_adapter(name)
        answers[name] = logits(model, pixels)
        assert_equal_outputs(logits(compiled, pixels), answers[name])
        assert len(graphs) == expected_graphs  # one for each adapter, whole
    assert not torch.allclose(answers["zoo"], answers["farm"], atol=1e-3)
    torch._dynamo.reset()


@needs_heads
def test_adapters_loaded_by_transformers_switch_by_a_function_of_peft(base_folder, tmp_path, pixels):
    model, expected = open_base(base_folder), {}
    for number, name in enumerate(("farm", "zoo")):
        adapted = trained(add_adapter(open_base(base_folder), settings(lora_rank=2)), seed=number)
        expected[name] = logits(adapted, pixels)
        model.load_adapter(str(save(adapted, tmp_path / name)), name)
    for name in ("zoo", "farm", "zoo"):
        set_adapter(model, name)
        assert_equal_outputs(logits(model, pixels), expected[name])


def test_tasks_with_other_classes_share_one_backbone(base_folder, tmp_path, pixels):
    folders, expected = {}, {}
    for name, classes in (("pets", 4), ("zoo", 2)):
        adapted = trained(add_adapter(open_base(base_folder, num_labels=classes), settings(lora_rank=2)), seed=classes)
        folders[name], expected[name] = save(adapted, tmp_path / name), logits(adapted, pixels)

    pets = open_adapter(open_base(base_folder, num_labels=4), folders["pets"], "pets").eval()
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
        adapted = trained(add_adapter(RadioModel.from_pretrained(base_folder), settings(lora_rank=2)), seed=number)
        folders[name] = save(adapted, tmp_path / name)
        with torch.no_grad():
            expected[name] = adapted(pixels, window_size=2).features
    model = open_adapter(RadioModel.from_pretrained(base_folder), folders["farm"], "farm")
    model = open_adapter(model, folders["zoo"], "zoo").eval()
    with torch.no_grad():
        mixed = model(pixels, window_size=2, adapter_names=["farm", "zoo"]).features
    torch.testing.assert_close(mixed, torch.stack([expected["farm"][0], expected["zoo"][1]]), atol=1e-5, rtol=0)


def test_folder_names_the_base_and_the_head_but_no_module(base_folder, tmp_path):
    folder = save(add_adapter(open_base(base_folder), settings()), tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["auto_mapping"] is None
    assert config["base_model_name_or_path"] == "some/base"
    assert config["modules_to_save"] == ["classifier"]
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["RadioForImageClassification"]
    with safe_open(folder / "adapter_model.safetensors", "pt") as weights:
        names = list(weights.keys())
    assert all(".lora_" in name or ".classifier." in name for name in names)
    assert (folder / "preprocessor_config.json").is_file()


OPEN_ELSEWHERE = """
import sys
import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, pipeline
base, adapter, pixels = sys.argv[1:]
AutoImageProcessor.from_pretrained(adapter, trust_remote_code=True)
config = AutoConfig.from_pretrained(adapter, trust_remote_code=True)
def open_base():
    return AutoModelForImageClassification.from_pretrained(base, config=config, trust_remote_code=True)
by_peft = PeftModel.from_pretrained(open_base(), adapter).eval()
by_transformers = open_base()
by_transformers.load_adapter(adapter)
by_folder = AutoModelForImageClassification.from_pretrained(adapter, trust_remote_code=True)
classify = pipeline("image-classification", model=adapter, trust_remote_code=True)
assert len(classify(Image.new("RGB", (64, 64)))) == config.num_labels
pixels = torch.load(pixels)
with torch.no_grad():
    models = (by_peft, by_transformers.eval(), by_folder, classify.model)
    torch.save([model(pixels).logits for model in models], "logits.pt")
"""


@needs_heads
def test_adapter_opens_in_a_fresh_process_on_the_remote_code_base(base_folder, tmp_path, pixels, run_elsewhere):
    adapted = trained(add_adapter(open_base(base_folder), settings(lora_rank=2)))
    folder = save(adapted, tmp_path / "adapter", base=os.path.relpath(base_folder))
    torch.save(pixels, tmp_path / "pixels.pt")
    run_elsewhere(OPEN_ELSEWHERE, tmp_path, base_folder, folder, "pixels.pt")
    outputs = torch.load(tmp_path / "logits.pt")
    assert len(outputs) == 4
    for found in outputs:
        torch.testing.assert_close(found, logits(adapted, pixels), atol=1e-5, rtol=0)


CLASSIFIER, SEGMENTER = RadioForImageClassification, RadioForSemanticSegmentation
DPT = {"segmentation_head": "dpt", "dpt_hidden_size": 32}
OTHER_MODELS = {
    "width": (CLASSIFIER, {}, CLASSIFIER, {"hidden_size": 48}, r"differs in `hidden_size` \(32, here 48\)"),
    "shallower": (
        CLASSIFIER,
        {},
        CLASSIFIER,
        {"num_hidden_layers": 2},
        r"no `radio_model\.model\.blocks\.2\.attn\.proj\.lora_A.*`num_hidden_layers` \(4, here 2\)",
    ),
    "deeper": (
        CLASSIFIER,
        {},
        CLASSIFIER,
        {"num_hidden_layers": 6},
        r"the adapter has no `radio_model\.model\.blocks\.4",
    ),
    "classes": (
        CLASSIFIER,
        {},
        CLASSIFIER,
        {"num_labels": 7},
        r"`classifier\.1\.bias` has the shape \(3,\) in the adapter and \(7,\) in.*`num_labels` \(3, here 7\)",
    ),
    "pooling": (
        CLASSIFIER,
        {},
        CLASSIFIER,
        {"classifier_pooling": "summary_and_features"},
        r"`classifier_pooling` \('summary', here 'summary_and_features'\)",
    ),
    "task": (SEGMENTER, {}, CLASSIFIER, {}, r"the model has no `decode_head\..*the adapter has no `classifier\."),
    "head": (
        SEGMENTER,
        DPT,
        SEGMENTER,
        {},
        r"the adapter has no `decode_head\..*`segmentation_head` \('dpt', here 'linear'\)",
    ),
    "head width": (SEGMENTER, DPT, SEGMENTER, {**DPT, "dpt_hidden_size": 48}, r"`dpt_hidden_size` \(32, here 48\)"),
    "no head": (RadioModel, {}, CLASSIFIER, {}, r"the adapter has no `classifier\."),
}


def build(model_class, **options):
    return model_class(tiny_config(**{"num_labels": NUM_LABELS, **options}))


@pytest.mark.parametrize(
    ("trained_class", "trained_options", "other_class", "options", "message"), OTHER_MODELS.values(), ids=OTHER_MODELS
)
def test_adapter_for_another_model(tmp_path, trained_class, trained_options, other_class, options, message):
    folder = save(add_adapter(build(trained_class, **trained_options), settings()), tmp_path / "adapter")
    other = build(other_class, **options)
    modules = [name for name, _ in other.named_modules()]
    with pytest.raises(ValueError, match=f"is for another model: .*{message}.*Open the base that it was trained on"):
        open_adapter(other, folder)
    assert [name for name, _ in other.named_modules()] == modules  # nothing was put on it


SHAPES = r"has the shape \({}\) in the adapter and \({}\) in the model\."
MESSAGES_BY_TRANSFORMERS = {
    "width": SHAPES.format("64,", "96,"),  # of the summary, two class tokens
    "shallower": r"the model has no `radio_model\.model\.blocks\.2\.attn\.proj\.lora_A\.default\.weight`\.",
    "deeper": r"the adapter has no `radio_model\.model\.blocks\.4\.attn\.proj\.lora_A\.default\.weight`\.",
    "classes": SHAPES.format("3,", "7,"),
    "pooling": SHAPES.format("64,", "96,"),
    "task": r"the model has no `decode_head\.classifier\.bias`\.",
    "head": r"the model has no `decode_head\.head\..*, the adapter has no `decode_head\.modules_to_save\..*`\.",
    "head width": SHAPES.format("32, 32, 3, 3", "48, 48, 3, 3"),
}


@needs_heads
@pytest.mark.parametrize("case", MESSAGES_BY_TRANSFORMERS)
def test_adapter_for_another_model_by_transformers(tmp_path, case):
    trained_class, trained_options, other_class, options, _ = OTHER_MODELS[case]
    folder = save(add_adapter(build(trained_class, **trained_options), settings()), tmp_path / "adapter")
    message = f"is for another model: .*{MESSAGES_BY_TRANSFORMERS[case]} Open the base that it was trained on"
    with pytest.raises(ValueError, match=message):
        build(other_class, **options).load_adapter(str(folder))


@needs_heads
def test_an_adapter_whose_configuration_is_not_of_its_base_is_refused(base_folder, tmp_path):
    folder = save(add_adapter(open_base(base_folder), settings()), tmp_path / "adapter", base_folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "max_img_size": values["max_img_size"] // 2}))
    with pytest.raises(ValueError, match="is for another model"):
        RadioForImageClassification.from_pretrained(folder)


def test_heads_before_transformers_reads_them(base_folder, tmp_path, monkeypatch):
    folder = save(add_adapter(open_base(base_folder), settings()), tmp_path / "adapter", base_folder)
    model = open_base(base_folder)
    modules = [name for name, _ in model.named_modules()]
    monkeypatch.setattr(transformers, "__version__", "5.17.0")
    message = (
        r"has a head, which takes transformers 5\.18 and peft 0\.20 or newer; installed are transformers 5\.17\.0 "
    )
    with pytest.raises(ValueError, match=message):
        model.load_adapter(str(folder))
    assert [name for name, _ in model.named_modules()] == modules  # nothing was put on it
    with pytest.raises(ValueError, match=message):
        CLASSIFIER.from_pretrained(folder)


def test_adapter_of_a_backbone_opens_like_a_model(base_folder, tmp_path, pixels):
    adapted = trained(add_adapter(RadioModel.from_pretrained(base_folder), settings(lora_rank=2)))
    save(adapted, tmp_path / "run" / "final", base_folder)
    opened = RadioModel.from_pretrained(tmp_path / "run", subfolder="final").eval()
    with torch.no_grad():
        assert_equal_outputs(opened(pixels).features, adapted(pixels).features)
    with pytest.raises(TypeError, match="no_option"):  # transformers' own complaint about the caller's options
        RadioModel.from_pretrained(tmp_path / "run" / "final", adapter_kwargs={"no_option": 1})


def test_further_adapter_with_another_head(base_folder, tmp_path, pixels):
    for name, classes in (("pets", 4), ("zoo", 2)):
        save(trained(add_adapter(open_base(base_folder, num_labels=classes), settings())), tmp_path / name)
    model = open_adapter(open_base(base_folder, num_labels=4), tmp_path / "pets", "pets").eval()
    before = logits(model, pixels)
    with pytest.raises(ValueError, match=r"`num_labels` \(2, here 4\)"):
        open_adapter(model, tmp_path / "zoo", "zoo")
    assert list(model.peft_config) == ["pets"]
    assert torch.equal(logits(model, pixels), before)


def test_text_tower_stays_frozen_and_is_not_copied(build_dual_encoder, tmp_path):
    adaptor = {"name": "siglip2-g", "summary_dim": 12, "feature_dim": 12, "hidden_size": 24}
    radio = RadioModel(tiny_config(adaptors=[adaptor]))
    model = RadioForZeroShotImageClassification.from_parts(radio, build_dual_encoder("siglip", 12))
    tower = model.text_tower
    (projection,) = head_names(model)
    assert projection == "radio_model.adaptors.siglip2-g.head_mlp.final.2"
    adapted = add_adapter(model, settings(lora_rank=2))
    assert adapted.get_base_model().text_tower is tower
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert all(".lora_" in name or projection in name for name in trained)
    with safe_open(save(adapted, tmp_path / "adapter") / "adapter_model.safetensors", "pt") as weights:
        names = list(weights.keys())
    assert all(".lora_" in name or projection in name for name in names)


@pytest.mark.parametrize("peft_type", [None, "IA3", {}])
def test_configuration_that_is_not_of_lora(peft_type, base_folder, tmp_path):
    folder = save(add_adapter(open_base(base_folder), settings()), tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "peft_type": peft_type}))
    with pytest.raises(ValueError, match="adapter_config"):
        open_adapter(open_base(base_folder), folder)


def test_folder_without_adapter(base_folder):
    message = r"is no adapter folder: it lacks adapter_config\.json, adapter_model\.safetensors"
    with pytest.raises(ValueError, match=message):
        open_adapter(open_base(base_folder), base_folder)
