"""The model of a run: its configuration, what it is opened from, how its blocks compute, and what is refused."""

import shutil
from functools import partial
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from comparisons import assert_close_by_name
from safetensors.torch import load_file, save_file
from tiny_eradio import build_eradio
from tiny_tuning import run_settings, stop_after, tuning_settings
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from modeling_radio import RadioConfig, RadioForImageClassification, RadioModel
from modeling_radio.layers_radio import RadioBlock
from training.finetuning.adapters import open_adapter
from training.finetuning.models import (
    MAX_GRAPHS,
    check_network,
    compile_blocks,
    computes_in_bfloat16,
    configure,
    open_config,
)
from training.finetuning.run import FINAL, MERGED, FinetuningRun


pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def task_of(chosen):
    """A task whose labels decide nothing."""
    return Mock(config_fields=dict, settings=chosen, size=chosen.size)


@pytest.mark.parametrize(
    ("task", "window", "field", "expected"),
    [
        ("image-classification", 3, "vitdet_window_size", 3),
        ("image-classification", "global", "vitdet_window_size", None),
        ("image-classification", "auto", "vitdet_window_size", None),  # six patches: global attention is cheap
        ("object-detection", 3, "detection_window_size", 3),
        ("object-detection", "global", "detection_window_size", "global"),
        ("object-detection", "auto", "detection_window_size", "auto"),
    ],
)
def test_windows_in_the_configuration(task, window, field, expected):
    chosen = tuning_settings(task, window_size=window, size=(32, 48))
    checkpoint = RadioConfig.from_preset("radio-test", vitdet_window_size=4, detection_num_queries=6)
    assert getattr(configure(checkpoint, task_of(chosen)), field) == expected


@pytest.mark.parametrize("task", ["image-classification", "object-detection"])
def test_a_window_that_would_change_nothing(task):
    chosen = tuning_settings(task, window_size=3, size=(32, 48))
    checkpoint = RadioConfig.from_preset("radio-test", vitdet_num_global=4, detection_num_queries=6)
    with pytest.raises(
        ValueError, match=r"`window_size` .*: 3 has no effect. Set `config.vitdet_num_global` to at most 2"
    ):
        configure(checkpoint, task_of(chosen))
    none_windowed = RadioConfig.from_preset("radio-test", vitdet_num_windowed=0, detection_num_queries=6)
    with pytest.raises(ValueError, match=r"3 has no effect. Set `config.vitdet_num_windowed` to at least 1\."):
        configure(none_windowed, task_of(chosen))
    chosen = chosen.model_copy(update={"config": {"vitdet_num_global": 2}})
    assert configure(checkpoint, task_of(chosen)).has_windowed_blocks


def test_automatic_window_of_a_large_image():
    chosen = tuning_settings("depth-estimation", window_size="auto", size=(1024, 1024))
    config = configure(RadioConfig.from_preset("radio-test", vitdet_num_global=2), task_of(chosen))
    assert config.vitdet_window_size == 32  # a quarter of 64 x 64 patches


def test_automatic_window_of_an_e_radio_divides_its_coarsest_level():
    chosen = tuning_settings(window_size="auto", size=(224, 448))
    assert configure(build_eradio().config, task_of(chosen)).vitdet_window_size == 7


@pytest.mark.parametrize(
    ("name", "value"),
    [("tune", "lora"), ("compile", True), ("gradient_checkpointing", True), ("window_size", "global")],
)
def test_what_needs_the_blocks_of_a_vit_is_refused_of_an_e_radio(name, value):
    chosen = tuning_settings(**{name: value})
    with pytest.raises(ValueError, match=rf"`{name}` cannot be {value!r} for an E-RADIO.*`--tune full` all of it"):
        check_network(build_eradio().config, chosen)
    check_network(RadioConfig.from_preset("radio-test"), chosen)
    check_network(build_eradio().config, tuning_settings(tune="full", window_size=4))


def test_tuned_models_answer_by_name_though_the_backbones_folder_does_not(tmp_path):
    RadioConfig.from_preset("radio-test", return_dict=False).save_pretrained(tmp_path)
    assert open_config(str(tmp_path)).return_dict is True


def test_fewer_patches_than_queries(base, coco_folder, tmp_path):
    with pytest.raises(
        ValueError, match="`detection_num_queries` must be at most 6 for images of 2 x 3 patches, got 100"
    ):
        FinetuningRun(run_settings(base, coco_folder, tmp_path / "run", task="object-detection"))


def save_wide_base(folder) -> RadioConfig:
    """Write a backbone whose linear layers fill at least one block of NF4."""
    torch.manual_seed(0)
    config = RadioConfig.from_preset("radio-test", hidden_size=64, preferred_resolution=[32, 48])
    RadioModel(config).save_pretrained(folder)
    return config


@pytest.mark.parametrize("options", [{}, {"train_norms": True}, {"quantize": 4}, {"quantize": 8}])
def test_the_share_counts_each_weight_once(options, class_folders, tmp_path):
    """The heads and norms that peft keeps untrained are none of the model's, and weights of four bits are not half."""
    if "quantize" in options:
        pytest.importorskip("bitsandbytes")
    config = save_wide_base(tmp_path / "base")
    head = FinetuningRun(run_settings(tmp_path / "base", class_folders, tmp_path / "head"))
    lora = FinetuningRun(run_settings(tmp_path / "base", class_folders, tmp_path / "lora", tune="lora", **options))
    adapters = sum(weight.numel() for name, weight in lora.model.named_parameters() if ".lora_" in name)
    assert adapters > 0
    assert lora.share.total == head.share.total + adapters
    norms = 4 * config.hidden_size * config.num_hidden_layers if options.get("train_norms") else 0
    assert lora.share.trainable == head.share.trainable + adapters + norms


def test_bfloat16_that_a_gpu_only_emulates_is_not_taken_by_itself(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)  # a T4
    assert not computes_in_bfloat16(tuning_settings())
    assert computes_in_bfloat16(tuning_settings(precision="bf16"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert computes_in_bfloat16(tuning_settings())


def blocks_of(run):
    return [module for module in run.model.modules() if isinstance(module, RadioBlock)]


@pytest.mark.parametrize("tune", ["lora", "full"])
@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_is_what_blocks_compute_in(precision, dtype, tune, base, class_folders, tmp_path):
    """Of weights only what adapters keep frozen is in it, and with it what blocks pass on; what is trained is not."""
    run = FinetuningRun(run_settings(base, class_folders, tmp_path / "run", tune=tune, precision=precision, steps=1))
    computed, passed_on = set(), set()
    for block in blocks_of(run):
        block.register_forward_hook(lambda module, inputs, output: passed_on.add(output[0].dtype))
        for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
            layer.register_forward_hook(lambda module, inputs, output: computed.add((module.training, output.dtype)))
    run.trainer.train()
    assert computed == {(True, dtype), (False, dtype)}  # evaluation, too
    trained = {weight.dtype for weight in run.model.parameters() if weight.requires_grad}
    frozen = {weight.dtype for weight in run.model.radio_model.parameters() if not weight.requires_grad}
    assert trained == {torch.float32}  # adapters and heads
    assert frozen == ({dtype} if tune == "lora" else set())
    assert passed_on == {dtype if tune == "lora" else torch.float32}


def train_and_count_saved(settings):
    """Return a run after its steps, and how many bytes its passes kept for the backward ones."""
    run, sizes = FinetuningRun(settings), []

    def count(tensor):
        sizes.append(tensor.nbytes)
        return tensor

    with saved_tensors_hooks(count, lambda tensor: tensor):
        run.trainer.train()
    return run, sum(sizes)


@pytest.mark.parametrize("bits", [None, 4])
def test_gradient_checkpointing_keeps_less_and_changes_nothing(bits, class_folders, tmp_path):
    if bits is not None:
        pytest.importorskip("bitsandbytes")
    save_wide_base(tmp_path / "base")
    runs, kept = {}, {}
    for is_checkpointed in (False, True):
        options = {"tune": "lora", "quantize": bits, "steps": 3, "gradient_checkpointing": is_checkpointed}
        output = tmp_path / str(is_checkpointed)
        settings = run_settings(tmp_path / "base", class_folders, output, **options)
        runs[is_checkpointed], kept[is_checkpointed] = train_and_count_saved(settings)
    assert kept[True] < kept[False] / 4
    losses = [run.trainer.state.log_history[-1]["train_loss"] for run in runs.values()]
    assert losses[0] == losses[1]
    weights = [{n: p for n, p in run.model.named_parameters() if p.requires_grad} for run in runs.values()]
    assert_close_by_name(weights[1], weights[0], atol=1e-6)
    assert all(weight.any() for name, weight in weights[1].items() if "lora_B" in name)  # they start at zero


COMPILED = (
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="compiling on a CPU needs a C++ compiler"),
)


@pytest.fixture
def passes(request, monkeypatch):
    """A list to which each pass through a graph of blocks adds it; the graphs are compiled by the parameter."""
    passed = []

    def compile_graph(graph, inputs):
        compiled = torch._dynamo.lookup_backend(request.param)(graph, inputs)

        def run(*values):
            passed.append(graph)
            return compiled(*values)

        return run

    torch._dynamo.reset()
    monkeypatch.setattr("training.finetuning.run.compile_blocks", partial(compile_blocks, backend=compile_graph))
    with torch._dynamo.config.patch(fail_on_cache_limit_hit=True):
        yield passed
    torch._dynamo.reset()


def test_the_limit_of_graphs_is_raised_under_the_name_that_torch_2_6_has_for_it(monkeypatch):
    older = SimpleNamespace(cache_size_limit=8)
    monkeypatch.setattr(torch._dynamo, "config", older)
    compile_blocks(nn.Module())
    assert older.cache_size_limit == MAX_GRAPHS


LORA, FULL = {"tune": "lora", "merge": True}, {"tune": "full"}


@pytest.mark.parametrize(
    ("passes", "options"),
    [
        ("eager", LORA),
        pytest.param(
            "aot_eager", {**LORA, "gradient_checkpointing": True, "precision": "bf16"}, marks=pytest.mark.slow
        ),
        pytest.param("aot_eager", FULL, marks=pytest.mark.slow),
        pytest.param("inductor", LORA, marks=COMPILED),
    ],
    indirect=["passes"],
)
def test_compiled_blocks_learn_the_same(options, passes, base, class_folders, tmp_path):
    options, is_merged = {"steps": 4, "evaluate_every": 2, **options}, "merge" in options
    expected = FinetuningRun(run_settings(base, class_folders, tmp_path / "plain", **options)).run()
    assert not passes

    settings = run_settings(base, class_folders, tmp_path / "compiled", compile=True, **options)
    stopped = FinetuningRun(settings)
    stop_after(stopped, 2)
    assert len(passes) >= 2 * len(blocks_of(stopped))  # all blocks in both steps
    assert FinetuningRun(settings).run() == pytest.approx(expected)

    saved = sorted(path.relative_to(tmp_path / "plain") for path in (tmp_path / "plain").rglob("*.safetensors"))
    assert len(saved) == (4 if is_merged else 3)  # with two checkpoints
    for path in saved:
        weights = [load_file(tmp_path / name / path) for name in ("compiled", "plain")]
        assert_close_by_name(*weights, atol=1e-5, what=str(path))
    if is_merged:
        merged = RadioForImageClassification.from_pretrained(tmp_path / "compiled" / MERGED).eval()
        opened = RadioForImageClassification.from_pretrained(base, num_labels=2).eval()
        opened = open_adapter(opened, tmp_path / "compiled" / FINAL).eval()
        pixels = torch.rand(1, 3, 32, 48)
        with torch.no_grad():
            torch.testing.assert_close(opened(pixels).logits, merged(pixels).logits, atol=1e-5, rtol=0)


def test_quantization_without_bitsandbytes(base, class_folders, tmp_path, monkeypatch):
    monkeypatch.setattr("training.finetuning.models.is_bitsandbytes_available", lambda: False)
    with pytest.raises(ValueError, match="`quantize` 4 needs the package bitsandbytes, which is not installed"):
        FinetuningRun(run_settings(base, class_folders, tmp_path / "run", tune="lora", quantize=4))


def test_adapter_is_no_checkpoint(base, class_folders, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    shutil.copy(base / "config.json", adapter)
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(
        ValueError,
        match=r"`checkpoint` must be a whole model, got the adapter .*\. Give the `merged/` that .*, or its base\.",
    ):
        FinetuningRun(run_settings(adapter, class_folders, tmp_path / "run"))


def test_task_model_with_other_classes_restarts_its_last_layer(base, class_folders, tmp_path, capsys):
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
    line = "2 weights of the head have another shape in the checkpoint and start new, such as classifier.1.weight."
    assert capsys.readouterr().out.count(line) == 1
    assert RadioForImageClassification.from_pretrained(tmp_path / "run" / "merged").config.num_labels == 2


def test_checkpoint_without_a_backbone(base, class_folders, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(base, broken)
    weights = load_file(broken / "model.safetensors")
    del weights["radio_model.model.blocks.1.attn.qkv.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"lacks 1 weights of the backbone in .*, such as radio_model.model.blocks.1.attn.qkv"
    ):
        FinetuningRun(run_settings(broken, class_folders, tmp_path / "run"))
