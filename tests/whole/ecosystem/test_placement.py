"""Models over several devices, in memory and on disk."""

import contextlib

import accelerate
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from task_models import ADAPTORS, EVERY_MODEL, THREE_MODELS, build, images, tensors_of
from tiny_eradio import build_eradio

from modeling_radio import RadioForZeroShotImageClassification, RadioModel


pytestmark = pytest.mark.usefixtures("one_thread")


def assert_same_outputs(output, expected, atol=0.0):
    for tensor, other in zip(tensors_of(output), tensors_of(expected), strict=True):
        torch.testing.assert_close(tensor, other, rtol=0, atol=atol)


@pytest.fixture
def zero_shot(build_dual_encoder):
    fields = {"adaptors": [{"name": "siglip2-g", "summary_dim": 12, "feature_dim": 12, "hidden_size": 24}]}
    radio = RadioModel(build("maps").config.from_preset("radio-test", **fields)).eval()
    return RadioForZeroShotImageClassification.from_parts(radio, build_dual_encoder("siglip2", 12))


TOKENS = torch.tensor([[4, 5, 6, 3] * 4, [4, 9, 3, 0] * 4])


@torch.no_grad()
@pytest.mark.parametrize("offload_buffers", [False, True])
@pytest.mark.parametrize("name", THREE_MODELS)
def test_offloaded_weights_come_when_they_are_needed(name, offload_buffers):
    model, batch = build(name), images()
    expected = model(batch)
    accelerate.cpu_offload(model, torch.device("cpu"), offload_buffers=offload_buffers)
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    assert_same_outputs(model(batch), expected)


@torch.no_grad()
@pytest.mark.parametrize("name", THREE_MODELS)
def test_device_map_auto_splits_a_model_that_does_not_fit(name, tmp_path):
    model, batch = build(name), images()
    model.save_pretrained(tmp_path)
    memory = {"cpu": int(0.6 * model.get_memory_footprint()), "disk": "1GB"}
    split = type(model).from_pretrained(
        tmp_path, device_map="auto", max_memory=memory, offload_folder=tmp_path / "offloaded"
    )
    assert len(split.hf_device_map) > 1
    assert "disk" in split.hf_device_map.values()
    assert_same_outputs(split.eval()(batch), model(batch))


ANY_MODEL = [*EVERY_MODEL, "eradio", "zero_shot"]


@pytest.fixture
def any_model(request):
    name = request.param
    if name == "eradio":
        return build_eradio(adaptors=ADAPTORS)
    return build(name) if name in EVERY_MODEL else request.getfixturevalue(name)


@torch.no_grad()
@pytest.mark.parametrize("any_model", ANY_MODEL, indirect=True)
def test_what_is_sharded_by_default_is_there_and_called(any_model):
    """FSDP gathers the weights of a part where that is called, and nowhere else."""
    plugin = accelerate.FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    is_sharded_alone = fsdp2_prepare_auto_wrap_policy(plugin, any_model)
    parts = {name: module for name, module in any_model.named_modules() if is_sharded_alone(module)}
    assert {type(part).__name__ for part in parts.values()} == any_model._no_split_modules != set()
    called = set()
    for part in parts.values():
        part.register_forward_pre_hook(lambda module, _: called.add(module))
    inputs = {"input_ids": TOKENS} if isinstance(any_model, RadioForZeroShotImageClassification) else {}
    any_model(pixel_values=images(2, (64, 96)), **inputs)
    uncalled = [name for name, part in parts.items() if part not in called]
    # Words are compared with summaries alone.
    assert uncalled == (["radio_model.adaptors.siglip2-g.feat_mlp"] if inputs else [])


@pytest.mark.parametrize(
    ("any_model", "kind"),
    [
        ("backbone with adaptors", "RadioHeadMLP"),
        ("eradio", "EradioConvolutions"),
        ("eradio", "EradioAttentionBlock"),
        ("eradio", "EradioNeck"),
        ("depth", "DPTFeatureFusionLayer"),
        ("detector", "RadioObjectDetector"),
        ("instance segmenter", "RadioInstanceSegmenter"),
    ],
    indirect=["any_model"],
)
def test_what_joins_its_parts_lies_on_one_device(any_model, kind):
    size, no_split = any_model.get_memory_footprint(), list(any_model._no_split_modules)
    wholes = [name for name, module in any_model.named_modules() if type(module).__name__ == kind]
    for share in range(1, 100, 4):
        memory = {0: 1, 1: size * share // 100, "disk": size}
        places = accelerate.infer_auto_device_map(any_model, memory, no_split_module_classes=no_split)
        assert not [name for name in places for whole in wholes if name.startswith(f"{whole}.")]


def move_to_meta(*modules):
    """Let modules compute on the meta device, the one other device that every machine has."""
    for module in modules:
        add_hook_to_module(module.to("meta"), AlignDevicesHook(execution_device="meta"))


@torch.no_grad()
@pytest.mark.parametrize("name", [*THREE_MODELS, "maps"])
def test_blocks_may_lie_on_several_devices(name, monkeypatch):
    """Outputs of one device are moved to the device that needs them."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # there is none on meta
    model, batch = build(name), images()
    if name == "maps":
        model.out_indices = [0, 1, 2, 3, 4]
    expected = model(batch, window_size=2, output_hidden_states=True)
    heads = [head for part in (model, model.radio_model) for head in part.children()]
    stays = (model.radio_model, model.radio_model.input_conditioner, model.radio_model.model)
    move_to_meta(*model.radio_model.model.blocks[2:], *(head for head in heads if head not in stays))
    output = model(batch, window_size=2, output_hidden_states=True)
    assert [each.shape for each in tensors_of(output)] == [each.shape for each in tensors_of(expected)]
    assert [state.device.type for state in output.hidden_states] == ["cpu"] * 3 + ["meta"] * 2
