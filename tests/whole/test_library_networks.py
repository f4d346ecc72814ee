"""Networks of timm and transformers as students, in all that a student must do, each with random weights.

A network passes every check, or is refused in one line that names it and the reason. Tolerances: outputs of opened
folders 1e-5 of the largest number; a map that moves with its image correlates best with the moved one, by more than
`LEAST_CORRELATION`.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import tiny_distillation as tiny
import torch
import torch.nn.functional as F
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn
from transformers import AutoModel

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.conversion.to_network import save_network
from modeling_radio.training.distillation.optimizers import parameter_groups
from modeling_radio.training.student.parameters import decayed_parameters
from modeling_radio.wrapped_radio import LEAST_CORRELATION, WrappedTrunk, read_levels, wrapped_fields


pytestmark = pytest.mark.usefixtures("one_thread")

VIT = {"embed_dim": 32, "depth": 3, "num_heads": 2}
SWIN = {"embed_dim": 16, "depths": [1, 2, 2, 1], "num_heads": [1, 2, 4, 8]}
HF = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
HF_MAPS = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}

USUAL: dict[str, dict[str, Any]] = {
    "timm:resnet10t": {"channels": [8, 16, 24, 32], "stem_width": 8},
    "timm:convnext_atto": {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]},
    "timm:lcnet_035": {},
    "timm:swin_base_patch4_window12_384": SWIN,
    "timm:vit_small_patch14_reg4_dinov2": VIT,
    "timm:vit_medium_patch16_reg1_gap_256": VIT,
    "timm:naflexvit_base_patch16_gap": VIT,
    "timm:flexivit_small": VIT,
    "transformers:swin": {**SWIN, "window_size": 4},
    "transformers:dinov2": HF,
    "transformers:dinov3_vit": HF,
}
"""Networks with the arguments that make them small, for every suite."""
TOUR: dict[str, dict[str, Any]] = {
    "timm:efficientnet_b0": {},
    "timm:mobilenetv4_conv_small": {},
    "timm:regnety_002": {},
    "timm:fastvit_t8": {},
    "timm:hrnet_w18_small": {},
    "timm:pvt_v2_b0": {},
    "timm:xcit_nano_12_p16_224": {},
    "timm:vit_tiny_patch16_224": {"depth": 3},
    "timm:vit_small_patch14_dinov2": VIT,
    "timm:vit_base_patch16_siglip_384": VIT,
    "timm:deit3_small_patch16_384": VIT,
    "timm:swinv2_tiny_window8_256": SWIN,
    "transformers:vit": HF,
    "transformers:dinov2_with_registers": HF,
    "transformers:siglip_vision_model": HF,
    "transformers:clip_vision_model": HF,
    "transformers:swinv2": SWIN,
    "transformers:convnext": HF_MAPS,
    "transformers:dinov3_convnext": HF_MAPS,
    "transformers:segformer": {},
    "transformers:pvt_v2": {
        "hidden_sizes": [8, 16, 24, 32],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 2, 4],
    },
    "transformers:focalnet": {"embed_dim": 16, "depths": [1, 1, 1, 1]},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "transformers:vit_mae": (HF, "differ"),
    "transformers:siglip2_vision_model": (HF, "does not take images"),
    "transformers:hgnet_v2": ({}, "does not take images"),
    "timm:beit_base_patch16_224": (VIT, "does not take images"),
    "timm:mvitv2_tiny": ({}, "does not take images"),
}


@pytest.mark.parametrize("name", [*USUAL, *(pytest.param(name, marks=pytest.mark.tour) for name in TOUR)])
def test_a_network_does_all_that_a_student_must(name: str, tmp_path: Path) -> None:
    arguments = {**USUAL, **TOUR}[name]
    model = build(name, arguments)
    check_outputs(model)
    check_motion(model)
    check_summary(model)
    check_folder(model, tmp_path)
    check_export(model, tmp_path)
    check_levels(name, arguments)
    check_decay(model)
    check_freezing(model)


@pytest.mark.parametrize("name", REFUSED)
def test_a_network_that_cannot_be_a_student_is_refused_by_name(name: str) -> None:
    arguments, reason = REFUSED[name]
    source, _, own = name.partition(":")
    with pytest.raises(ValueError, match=f"{name}.*{reason}") as caught:
        wrapped_fields(source, own, arguments)
    assert "\n" not in str(caught.value)


def build(name: str, arguments: dict[str, Any], **options: Any) -> RadioModel:
    """Return a model around a network with position tables that matter, in evaluation mode."""
    source, _, own = name.partition(":")
    torch.manual_seed(0)
    model = RadioModel(RadioConfig(**{"num_cls_tokens": 2, **wrapped_fields(source, own, arguments, **options)}))
    for key, parameter in trunk_of(model).network.named_parameters():
        if "pos" in key and parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


def trunk_of(model: RadioModel) -> WrappedTrunk:
    return model.radio_model.model


@torch.no_grad()
def output_of(model: RadioModel, network: nn.Module, images: Tensor) -> Tensor:
    """Return the final output of a network that was built or opened by its library."""
    end = read_levels(trunk_of(model).wrapping.source, network, model.radio_model.input_conditioner(images), (-1,)).end
    assert end is not None
    return end


def assert_near(found: Tensor, expected: Tensor) -> None:
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def images_of(model: RadioModel, num_images: int = 1) -> list[Tensor]:
    """Return images at the network's own size, and twice as wide ones of another."""
    step, side = model.config.resolution_step, model.config.image_size
    shapes = [(side, side), (4 * step, 8 * step)]
    return [torch.rand(num_images, 3, *shape) for shape in shapes]


@torch.no_grad()
def check_outputs(model: RadioModel) -> None:
    """One image gives one output, and no other image changes that."""
    square, wide = images_of(model)
    first = model(square).features
    assert first.std() > 0
    assert model(wide).features.shape[1] == wide[0, 0].numel() // model.config.patch_size**2
    assert_near(model(square).features, first)


@torch.no_grad()
def check_motion(model: RadioModel) -> float:
    """An image that is moved by the stride gives the map that is moved by a patch, better than by none or another."""
    step = model.config.resolution_step
    side, cells = max(8 * step, model.config.image_size // step * step), step // model.config.patch_size
    noise = torch.rand(2, 3, side + step, side + step)
    maps = [
        model(noise[..., y : y + side, x : x + side], feature_format="NCHW").features for y, x in ((0, 0), (step, step))
    ]
    before, after = (each[0] - each[1] for each in maps)  # without what positions add
    kept = before.shape[-1] - 2 * cells
    centre = after[:, cells : cells + kept, cells : cells + kept].flatten()
    found = {
        (y, x): F.cosine_similarity(before[:, y : y + kept, x : x + kept].flatten(), centre, dim=0).item()
        for y in (0, cells, 2 * cells)
        for x in (0, cells, 2 * cells)
    }
    assert max(found, key=found.__getitem__) == (2 * cells, 2 * cells), found
    assert found[2 * cells, 2 * cells] > LEAST_CORRELATION
    return found[2 * cells, 2 * cells]


@torch.no_grad()
def check_folder(model: RadioModel, folder: Path) -> None:
    model.save_pretrained(folder / "radio")
    opened, report = RadioModel.from_pretrained(folder / "radio", output_loading_info=True)
    assert not any(report.values())
    (square, _) = images_of(model)
    for name in ("features", "summary"):
        assert_near(getattr(opened.eval()(square), name), getattr(model(square), name))


def check_export(model: RadioModel, folder: Path) -> None:
    """The library's documented way opens the network with its positions as they are."""
    (folder / "network").mkdir()
    save_network(model, folder / "network")
    is_timm = trunk_of(model).wrapping.source == "timm"
    if is_timm:
        opened = timm.create_model(f"local-dir:{folder / 'network'}", pretrained=True)
    else:
        opened = AutoModel.from_pretrained(folder / "network")
    square, _ = images_of(model)
    assert_near(output_of(model, opened.eval(), square), output_of(model, trunk_of(model).network, square))


@torch.no_grad()
def check_levels(name: str, arguments: dict[str, Any]) -> None:
    """The first and the last level are fused, and the last is the final output."""
    plain = build(name, arguments)
    last = trunk_of(plain).wrapping.num_levels - 1
    if last == 0:
        return
    model = build(name, arguments, levels=[0, last], hidden_size=24)
    (square, _), network = images_of(model), trunk_of(model).network
    assert model(square).features.shape == (1, (square.shape[-1] // model.config.patch_size) ** 2, 24)
    assert trunk_of(model).pool is not None
    pixels, source = model.radio_model.input_conditioner(square), trunk_of(model).wrapping.source
    assert_near(read_levels(source, network, pixels, [0, last]).outputs[1], output_of(model, network, square))


def dependencies(trunk: WrappedTrunk, stage: nn.Module, pixels: Tensor) -> set[str]:
    """Return the names of the weights that the outputs of a stage depend on, by their gradients."""
    outputs: list[Tensor] = []

    def note(_: nn.Module, __: Any, output: Any) -> None:
        parts = output if isinstance(output, (tuple, list)) else [output]
        outputs.extend(each for each in parts if isinstance(each, Tensor) and each.requires_grad)

    hooks = [module.register_forward_hook(note) for module in stage.modules()]
    read_levels(trunk.wrapping.source, trunk.network, pixels, (-1,))
    for hook in hooks:
        hook.remove()
    total = torch.stack([each.sum() for each in outputs]).sum()
    named = dict(trunk.network.named_parameters())
    gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    return {name for name, gradient in zip(named, gradients, strict=True) if gradient is not None}


def check_freezing(model: RadioModel) -> None:
    """What a frozen stage's output depends on stays as it is in a training step, running statistics included."""
    trunk = trunk_of(model)
    stages = trunk.stages()
    count = min(2, len(stages) - 1)
    (square, _) = images_of(model, num_images=2)
    needed = dependencies(trunk, stages[count - 1], model.radio_model.input_conditioner(square))
    assert needed
    trunk.freeze_stages(count)
    model.eval()
    model.train()
    before = {key: value.clone() for key, value in trunk.network.state_dict().items()}
    trained = [each for each in trunk.network.parameters() if each.requires_grad]
    model(square).features.square().mean().backward()
    torch.optim.SGD(trained, lr=1.0).step()
    moved = {key for key, value in trunk.network.state_dict().items() if not torch.equal(value, before[key])}
    assert moved
    assert not moved & needed
    owners = {key.rpartition(".")[0] for key in moved}
    frozen = {key.rpartition(".")[0] for key in needed}
    assert not owners & frozen, "a norm of a frozen stage took statistics"
    above = [trunk.count_stages_above(f"network.{key}") for key, _ in trunk.network.named_parameters()]
    assert min(above) == 0
    assert max(above) >= len([stage for stage in stages if list(stage.parameters())]) - 1


def check_decay(model: RadioModel) -> None:
    """Weights of layers decay; positions, tokens, tables and what timm's networks name do not, nor have Muon's step."""
    network = trunk_of(model).network
    decayed, layers = decayed_parameters(model), {nn.Linear, nn.Conv2d, nn.Conv1d, nn.Conv3d, nn.ConvTranspose2d}
    exempt = network.no_weight_decay() if hasattr(network, "no_weight_decay") else ()
    groups = param_groups_weight_decay(network, 0.1, no_weight_decay_list=exempt)
    of_timm = {each for group in groups if group["weight_decay"] for each in group["params"]}
    ours = {each for each in network.parameters() if each in decayed}
    assert of_timm & {module.weight for module in network.modules() if type(module) in layers} <= ours <= of_timm
    tables = ("token", "pos_embed", "position_embeddings", "bias_table")
    assert not [name for name, each in network.named_parameters() if name.endswith(tables) and each in ours]
    linear = {m.weight for m in network.modules() if isinstance(m, nn.Linear)}
    groups = parameter_groups(model, 0.1)
    assert {each for group in groups if group["num_matrices"] for each in group["params"]} <= linear & ours


def check_summary(model: RadioModel) -> None:
    """A class token is the summary; learned queries stand for one where the tokens before the grid are registers."""
    names = [name.rpartition(".")[2] for name, _ in trunk_of(model).network.named_parameters()]
    if any(name in ("cls_token", "class_embedding") for name in names):
        assert trunk_of(model).pool is None
    elif "reg_token" in names or trunk_of(model).wrapping.num_prefix == 0:
        assert trunk_of(model).pool is not None


LEARNERS: dict[str, dict[str, Any]] = {
    "transformers:convnext": HF_MAPS,
    "transformers:focalnet": {"embed_dim": 16, "depths": [1, 1, 1, 1]},
    "transformers:dinov2": {**HF, "patch_size": 16},
    "transformers:swin": {**SWIN, "window_size": 2},
    "transformers:pvt_v2": {**HF_MAPS, "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 4]},
}
"""The types that the page on networks names, and two whose attention transformers does not choose."""


@pytest.mark.parametrize(
    "name", [*[*LEARNERS][:2], *(pytest.param(name, marks=pytest.mark.tour) for name in [*LEARNERS][2:])]
)
@pytest.mark.usefixtures("tiny_world")
def test_a_network_takes_steps_of_a_run(name: str, recipe_file: str) -> None:
    student = [f"student.architecture={name}", f"student.arguments={json.dumps(LEARNERS[name])}", "student.levels=[-1]"]
    changes = [*student, "student.preset=null", "student.config=null", "schedule.num_steps=5"]
    tiny.distil(recipe_file, "run", *changes, "partitions=[{name: low, sizes_px: [64], batch_size: 4}]")
    assert RadioModel.from_pretrained("run/final")(torch.rand(1, 3, 64, 64)).features.isfinite().all()
