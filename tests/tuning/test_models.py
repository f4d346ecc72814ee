"""The model of a run: its configuration, its type, and refused checkpoints."""

import shutil
from functools import partial
from unittest.mock import Mock

import pytest
import torch
from comparisons import assert_close_by_name
from safetensors.torch import load_file, save_file
from tiny_eradio import build_eradio
from tiny_tuning import run_settings, tuning_settings
from torch.autograd.graph import saved_tensors_hooks

from modeling_radio import RadioConfig, RadioForImageClassification, RadioModel
from modeling_radio.layers_radio import RadioBlock
from modeling_radio.tuning.models import (
    check_network,
    computes_in_bfloat16,
    configure,
    open_config,
)
from modeling_radio.tuning.run import MERGED, FinetuningRun
from modeling_radio.tuning.tasks import find_task


pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def configured(task, checkpoint, **options):
    """Return the configuration of a task whose labels decide nothing."""
    chosen, task_class = tuning_settings(task, **{"size": (32, 48), **options}), find_task(task)
    of_class = {"model_class": task_class.model_class, "window_field": task_class.window_field}
    labeled = Mock(config_fields=dict, settings=chosen, run_settings=chosen, size=chosen.size, **of_class)
    labeled.check_config = partial(task_class.check_config, labeled)
    return configure(checkpoint, labeled)


def vit(**fields):
    return RadioConfig.from_preset("radio-test", **{"detection_num_queries": 6, **fields})


@pytest.mark.parametrize(
    ("task", "window", "size", "field", "expected"),
    [
        ("image-classification", 3, (32, 48), "vitdet_window_size", 3),
        ("image-classification", "global", (32, 48), "vitdet_window_size", None),
        ("image-classification", "auto", (32, 48), "vitdet_window_size", None),  # six patches: cheap global attention
        ("depth-estimation", "auto", (1024, 1024), "vitdet_window_size", 32),  # a quarter of 64 x 64 patches
        ("object-detection", 3, (32, 48), "detection_window_size", 3),
        ("object-detection", "global", (32, 48), "detection_window_size", "global"),
        ("object-detection", "auto", (32, 48), "detection_window_size", "auto"),
    ],
)
def test_windows_in_the_configuration(task, window, size, field, expected):
    checkpoint = vit(vitdet_window_size=4, vitdet_num_global=2)
    assert getattr(configured(task, checkpoint, window_size=window, size=size), field) == expected


def test_the_automatic_window_of_an_e_radio_divides_its_coarsest_level():
    found = configured("image-classification", build_eradio().config, window_size="auto", size=(224, 448))
    assert found.vitdet_window_size == 7


@pytest.mark.parametrize("task", ["image-classification", "object-detection"])
def test_a_window_without_effect_is_refused(task):
    for fields, name in (({"vitdet_num_global": 4}, "global"), ({"vitdet_num_windowed": 0}, "windowed")):
        with pytest.raises(ValueError, match=f"`window_size` .*`config.vitdet_num_{name}`"):
            configured(task, vit(**fields), window_size=3)
    assert configured(
        task, vit(vitdet_num_global=4), window_size=3, config={"vitdet_num_global": 2}
    ).has_windowed_blocks


def test_images_with_fewer_patches_than_queries_are_refused():
    with pytest.raises(ValueError, match="`detection_num_queries`"):
        configured("object-detection", vit(detection_num_queries=100))


def test_a_field_that_only_another_head_reads_is_refused():
    with pytest.raises(ValueError, match=r"^`config` .*'segmentation_head'"):
        configured("depth-estimation", vit(), config={"segmentation_head": "dpt"})
    assert configured("semantic-segmentation", vit(), config={"segmentation_head": "dpt"}).segmentation_head == "dpt"


@pytest.mark.parametrize(
    ("name", "value"),
    [("tune", "lora"), ("gradient_checkpointing", True), ("window_size", "global")],
)
def test_settings_for_the_blocks_of_a_vit_are_refused_for_an_e_radio(name, value):
    chosen = tuning_settings(**{name: value})
    with pytest.raises(ValueError, match=f"`{name}`"):
        check_network(build_eradio().config, chosen)
    check_network(vit(), chosen)
    check_network(build_eradio().config, tuning_settings(tune="full", window_size=4))


def save_wide_base(folder) -> RadioConfig:
    """Write a backbone whose linear layers fill at least one block of NF4."""
    torch.manual_seed(0)
    config = RadioConfig.from_preset("radio-test", hidden_size=64, preferred_resolution=[32, 48])
    RadioModel(config).save_pretrained(folder)
    return config


@pytest.mark.parametrize("options", [{}, {"quantize": 4}])
def test_parameters_are_counted_once(options, class_folders, tmp_path):
    """The untrained heads that peft keeps are not counted, and weights of four bits not as half."""
    if options:
        pytest.importorskip("bitsandbytes")
    save_wide_base(tmp_path / "base")
    head = FinetuningRun(run_settings(tmp_path / "base", class_folders, tmp_path / "head"))
    lora = FinetuningRun(run_settings(tmp_path / "base", class_folders, tmp_path / "lora", tune="lora", **options))
    adapters = sum(weight.numel() for name, weight in lora.model.named_parameters() if ".lora_" in name)
    assert adapters > 0
    assert lora.num_parameters == head.num_parameters + adapters
    assert lora.num_trained == head.num_trained + adapters


def test_emulated_bfloat16_is_not_chosen_by_itself(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)  # a T4
    assert not computes_in_bfloat16(tuning_settings())
    assert computes_in_bfloat16(tuning_settings(dtype="bfloat16"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert computes_in_bfloat16(tuning_settings())


def blocks_of(run):
    return [module for module in run.model.modules() if isinstance(module, RadioBlock)]


@pytest.mark.parametrize("tune", ["lora", "full"])
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_blocks_compute_in_the_type(name, tune, base, class_folders, tmp_path):
    """Trained weights are float32; frozen ones beside adapters, and outputs of blocks, are of the type."""
    run = FinetuningRun(run_settings(base, class_folders, tmp_path / "run", tune=tune, dtype=name, steps=1))
    dtype = getattr(torch, name)
    computed, passed_on = set(), set()
    for block in blocks_of(run):
        block.register_forward_hook(lambda module, inputs, output: passed_on.add(output.dtype))
        for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
            layer.register_forward_hook(lambda module, inputs, output: computed.add((module.training, output.dtype)))
    run.trainer.train()
    assert computed == {(True, dtype), (False, dtype)}  # evaluation, too
    trained = {weight.dtype for weight in run.model.parameters() if weight.requires_grad}
    frozen = {weight.dtype for weight in run.model.radio_model.parameters() if not weight.requires_grad}
    assert trained == {torch.float32}  # adapters and heads
    assert frozen == ({dtype} if tune == "lora" else set())
    assert passed_on == {dtype if tune == "lora" else torch.float32}


@pytest.mark.parametrize("bits", [None, 4])
def test_gradient_checkpointing_keeps_less_and_changes_nothing(bits, class_folders, tmp_path):
    if bits is not None:
        pytest.importorskip("bitsandbytes")
    save_wide_base(tmp_path / "base")
    losses, weights, kept = [], [], []

    def count(tensor):
        kept[-1] += tensor.nbytes
        return tensor

    for is_checkpointed in (False, True):
        options = {"tune": "lora", "quantize": bits, "steps": 3, "gradient_checkpointing": is_checkpointed}
        output = tmp_path / str(is_checkpointed)
        run = FinetuningRun(run_settings(tmp_path / "base", class_folders, output, **options))
        kept.append(0)
        with saved_tensors_hooks(count, lambda tensor: tensor):
            run.trainer.train()
        losses.append(run.trainer.state.log_history[-1]["train_loss"])
        weights.append({name: weight for name, weight in run.model.named_parameters() if weight.requires_grad})
    assert kept[1] < kept[0] / 4
    assert losses[0] == losses[1]
    assert_close_by_name(weights[1], weights[0], atol=1e-6)
    assert all(weight.any() for name, weight in weights[1].items() if "lora_B" in name)  # they start at zero


def test_quantization_needs_bitsandbytes(base, class_folders, tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_radio.tuning.models.is_bitsandbytes_available", lambda: False)
    with pytest.raises(ValueError, match="bitsandbytes"):
        FinetuningRun(run_settings(base, class_folders, tmp_path / "run", tune="lora", quantize=4))


def test_checkpoints_that_do_not_open(base, class_folders, tmp_path):
    answers = {"return_dict": False, "nvidia_outputs": True}
    RadioConfig.from_preset("radio-test", **answers).save_pretrained(tmp_path / "tuples")
    opened = open_config(str(tmp_path / "tuples"))  # a tuned model returns named outputs
    assert (opened.return_dict, opened.nvidia_outputs) == (True, False)
    broken = tmp_path / "broken"
    shutil.copytree(base, broken)
    weights = load_file(broken / "model.safetensors")
    del weights["radio_model.model.blocks.1.attn.qkv.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"`checkpoint` .*radio_model\.model\.blocks\.1\.attn\.qkv"):
        FinetuningRun(run_settings(broken, class_folders, tmp_path / "run"))
    (broken / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="adapter"):
        FinetuningRun(run_settings(broken, class_folders, tmp_path / "run"))


def test_a_task_model_with_other_classes_restarts_its_last_layer(base, class_folders, tmp_path, capsys):
    before = RadioForImageClassification.from_pretrained(base, num_labels=3)
    torch.nn.init.normal_(before.classifier[0].weight)
    before.save_pretrained(tmp_path / "three")
    options = {"tune": "lora", "merge": True, "steps": 1}
    run = FinetuningRun(run_settings(tmp_path / "three", class_folders, tmp_path / "run", **options))
    head = run.model.get_base_model().classifier.original_module
    assert torch.equal(head[0].weight, before.classifier[0].weight)
    assert head[1].out_features == 2
    assert 0 < head[1].weight.std() < 0.1  # as new layers start
    run.run()
    assert capsys.readouterr().out.count("2 weights of the head have another shape") == 1
    assert RadioForImageClassification.from_pretrained(tmp_path / "run" / MERGED).config.num_labels == 2
