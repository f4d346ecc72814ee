"""Networks of timm, transformers and of a test as the trunk of a RADIO."""

import functools

import pytest
import timm
import tiny_networks
import torch
from refusals import refused, wrong
from tiny_networks import NETWORKS, build_wrapped

from modeling_radio import RadioBackbone, RadioConfig, RadioForSemanticSegmentation, RadioModel
from modeling_radio.wrapped_radio import Wrapping, build_library_network, register_network, wrapped_fields


pytestmark = pytest.mark.usefixtures("one_thread")

STRIDES = {"ResNet": 16, "DINOv2": 16, "class": 8}


@pytest.fixture(params=NETWORKS)
def name(request) -> str:
    return request.param


@torch.no_grad()
def test_outputs_and_a_saved_folder(name, tmp_path):
    model, stride = build_wrapped(name), STRIDES.get(name, 32)
    assert model.config.patch_size == stride
    images = torch.rand(2, 3, 2 * stride, 4 * stride)
    output = model(images, feature_format="NCHW")
    hidden = model.config.hidden_size
    assert output.summary.shape == (2, hidden * len(model.config.summary_idxs))
    assert output.features.shape == (2, hidden, 2, 4)
    assert output.adaptors["semantic"].features.shape == (2, 12, 2, 4)
    assert output.adaptors["semantic"].summary.shape == (2, 10)
    assert output.features.std() > 0.01

    model.save_pretrained(tmp_path)
    opened, report = RadioModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    again = opened.eval()(images, feature_format="NCHW")
    # Not bit for bit: a product of matrices may round by where in memory the weights begin.
    torch.testing.assert_close(again.features, output.features, rtol=0, atol=1e-5)
    torch.testing.assert_close(again.summary, output.summary, rtol=0, atol=1e-5)
    (maps,) = RadioBackbone.from_pretrained(tmp_path).eval()(images).feature_maps
    torch.testing.assert_close(maps, output.features, rtol=0, atol=1e-5)


def test_a_library_initializes_its_own_network():
    model = build_wrapped("ResNet")
    torch.manual_seed(0)
    own = build_library_network("timm", "resnet10t", NETWORKS["ResNet"].arguments)
    deviations = [
        (own.get_parameter(key).std(), tensor.std())
        for key, tensor in model.radio_model.model.network.named_parameters()
        if tensor.ndim == 4
    ]
    for expected, found in deviations:
        torch.testing.assert_close(found, expected, rtol=0.2, atol=0)  # not `initializer_range`


def test_fused_levels_are_at_the_stride_of_the_finest_and_blocks_of_heads():
    model = build_wrapped("class")
    assert model.config.num_hidden_layers == 2
    assert (model.config.patch_size, model.config.resolution_step) == (8, 16)  # the coarser map lies on the grid
    backbone = RadioBackbone(RadioConfig(**NETWORKS["class"].fields, out_indices=[1, 2])).eval()
    fine, fused = backbone(torch.rand(1, 3, 32, 48)).feature_maps
    assert fine.shape == fused.shape == (1, 24, 4, 6)
    with pytest.raises(ValueError, match="`out_features`"):
        RadioConfig(**NETWORKS["class"].fields, out_indices=[0])
    heads = RadioConfig(**NETWORKS["class"].fields, segmentation_head="dpt", dpt_hidden_size=8, num_labels=3)
    assert RadioForSemanticSegmentation(heads).eval()(torch.rand(1, 3, 32, 48)).logits.shape[:2] == (1, 3)


def test_a_new_width_is_a_projection():
    fields = wrapped_fields("timm", "convnext_atto", NETWORKS["ConvNeXt"].arguments, hidden_size=20)
    model = RadioModel(RadioConfig(**fields, num_cls_tokens=1)).eval()
    assert model(torch.rand(1, 3, 64, 64)).features.shape == (1, 4, 20)


NOT_THERE = {
    "window_size": [2],
    "output_hidden_states": [True],
    "output_attentions": [True],
    "num_tokens": [3],
    "decode": [False],
    "draws": [torch.rand(1, 4)],
    "image_grid_hw": [torch.tensor([[1, 1]])],
}


@wrong(**NOT_THERE)
def test_what_the_network_does_not_have_is_refused(name, value):
    pixels = torch.rand(1, 3 * 32**2) if name == "image_grid_hw" else torch.rand(1, 3, 32, 32)
    refused(name, lambda: build_wrapped("ConvNeXt")(pixels, **{name: value}))


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        ("transformers", "hgnet_v2", "cannot be wrapped"),
        ("transformers", "siglip2_vision_model", "cannot be wrapped"),
        ("timm", "convnext_atoo", "no architecture 'convnext_atoo'"),
        ("timm", "levit_128s", "does not take images"),
        ("transformers", "bert", "cannot be wrapped"),
        ("transformers", "timm_wrapper", "timm_wrapper"),
        ("class", "NoMap", "no spatial map"),
        ("class", "OddStride", "stride"),
        ("class", "MirroredMap", "move"),
        ("class", "NoisyMap", "differ"),
    ],
)
def test_an_unfit_network_is_one_line_that_says_what_is_missing(source, name, message):
    if source == "class":
        register_network(name, getattr(tiny_networks, name))
    with pytest.raises(ValueError, match=message) as caught:
        wrapped_fields(source, name, levels=[0] if name in ("MirroredMap", "NoisyMap") else [-1])
    assert "\n" not in str(caught.value)


def test_a_small_image_does_not_change_the_windows_of_later_ones():
    sizes = {"embed_dim": 8, "depths": [2], "num_heads": [1], "window_size": 7}
    model = RadioModel(RadioConfig(**wrapped_fields("transformers", "swin", sizes))).eval()
    images, step = torch.rand(1, 3, 64, 64), model.config.patch_size
    before = model(images).features
    with pytest.raises(ValueError, match=f"swin failed for images of {step} x {step} px"):
        model(images[..., :step, :step])
    assert torch.equal(model(images).features, before)


def test_levels_must_exist_and_a_class_needs_persistent_buffers():
    refused("levels", lambda: wrapped_fields("timm", "convnext_atto", levels=[9]))
    register_network("lost", tiny_networks.LostBuffer)
    with pytest.raises(ValueError, match="offset"):
        RadioModel(RadioConfig(**wrapped_fields("class", "lost", levels=[0])))
    refused("network_class", lambda: register_network("lost", int))


TIMM = {"model_type": "timm_wrapper", "architecture": "local-dir:/"}


def test_a_folder_names_no_code_and_fetches_nothing(monkeypatch):
    @functools.wraps(timm.create_model)
    def refuse(*_, **__):
        pytest.fail("timm fetches and opens what it is told")

    monkeypatch.setattr(timm, "create_model", refuse)
    for source, name, arguments in (
        ("timm", "hf-hub:someone/something", {}),
        ("timm", "resnet18", {"checkpoint_path": "file.pth"}),
        ("timm", "resnet18", {"pretrained_cfg": {"url": "https://example.org"}}),
        ("transformers", "dinov2", {"auto_map": {"AutoModel": "a.B"}}),
        ("transformers", "dinov2", {"_attn_implementation": "someone/kernels"}),
        ("transformers", "upernet", {"backbone": "resnet18", "use_pretrained_backbone": True}),
        ("transformers", "upernet", {"backbone_config": {"use_timm_backbone": True}}),
        ("transformers", "llava", {"vision_config": {"model_type": "timm_wrapper", "architecture": "hf-hub:evil/x"}}),
        ("transformers", "llava", {"text_config": {"model_type": "radio"}}),
        ("transformers", "llava", {"text_config": {"_attn_implementation": "someone/kernels"}}),
        ("transformers", "vision-encoder-decoder", {"encoder": TIMM, "decoder": {"model_type": "gpt2", "n_embd": 12}}),
        ("transformers", "vision-text-dual-encoder", {"vision_config": TIMM, "text_config": {"model_type": "bert"}}),
        ("transformers", "perception_lm", {"vision_config": {"architecture": "local-dir:/"}}),  # of timm by default
        ("transformers", "gemma3n", {"vision_config": {"architecture": "resnet18"}}),  # of timm by another name
        ("transformers", "gemma3n_vision", {"architecture": "resnet18", "model_args": {"checkpoint_path": "/file"}}),
        ("class", "os:getcwd", {}),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            build_library_network(source, name, arguments)


@pytest.mark.parametrize(
    "change", [{"levels": [3, 2]}, {"strides": [0]}, {"source": "web"}, {"extra": 1}, {"widths": [1, 2]}]
)
def test_a_damaged_description_is_refused(change):
    with pytest.raises(ValueError, match="wrapped"):
        Wrapping.of({**NETWORKS["ConvNeXt"].fields["wrapped"], **change})


@pytest.mark.parametrize(
    "change", [{"num_registers": 1}, {"patch_size": 16, "max_img_size": 256}, {"num_hidden_layers": 3}]
)
def test_fields_that_contradict_the_network(change):
    with pytest.raises(ValueError, match=f"`{next(iter(change))}`"):
        RadioModel(RadioConfig(**{**NETWORKS["ConvNeXt"].fields, **change}))


def test_stages_above_a_weight():
    trunk = build_wrapped("ResNet").radio_model.model
    names = ("network.conv1.0.weight", "network.layer1.0.conv1.weight", "network.layer4.0.conv1.weight", "pool.queries")
    assert [trunk.count_stages_above(name) for name in names] == [4, 3, 0, 0]


def test_frozen_stages_have_no_gradient_and_keep_their_statistics():
    model = build_wrapped("ResNet").train()
    trunk = model.radio_model.model
    trunk.freeze_stages(2)
    norm = trunk.network.layer1[0].bn1
    before, other = norm.running_mean.clone(), trunk.network.layer4[0].bn1.running_mean.clone()
    model.train()(torch.rand(2, 3, 64, 64))
    assert torch.equal(norm.running_mean, before)
    assert not torch.equal(trunk.network.layer4[0].bn1.running_mean, other)
    frozen = {name.split(".")[0] for name, each in trunk.network.named_parameters() if not each.requires_grad}
    assert frozen == {"conv1", "bn1", "layer1"}
    with pytest.raises(ValueError, match=r"\[0, 5\]"):
        trunk.freeze_stages(6)
