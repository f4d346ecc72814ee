import re

import pytest
import torch
from tiny_vits import PATCH, SIDE, VITS, around_first_block, build_vit

from core.packages import PackageUnavailableError
from modeling_radio import RadioConfig, RadioModel
from training.recipe import RecipeError
from training.student.warm_start.vit import VitTrunk, fit_vit, vit_of
from training.teachers.embedded import Dinov2SaliencyTeacher


ROTARY = [name for name in VITS if "dinov3" in name]
WITH_PREFIX = [name for name in VITS if "siglip" not in name]


def student_for(trunk: VitTrunk, **fields) -> RadioModel:
    width = trunk.mlp_width
    own = {
        "hidden_size": len(trunk.patch),
        "num_hidden_layers": len(trunk.blocks),
        "num_attention_heads": trunk.num_heads,
        "intermediate_size": width * 3 // 2 if trunk.is_gated else width,
        "use_swiglu_ffn": trunk.is_gated,
        "hidden_act": "gelu" if trunk.is_gated else trunk.hidden_act,
        "layer_norm_eps": trunk.layer_norm_eps,
        "patch_size": PATCH,
        "max_img_size": SIDE,
        "num_cls_tokens": 1,
        "num_registers": len(trunk.registers),
        "summary_idxs": [0],
    }
    torch.manual_seed(1)
    return RadioModel(RadioConfig(**{**own, **fields})).eval()


def images() -> torch.Tensor:
    return torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))


def normalized(trunk: VitTrunk) -> torch.Tensor:
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (trunk.mean, trunk.std))
    return (images() - mean) / std


@torch.no_grad()
def around_students_first_block(student: RadioModel) -> tuple[torch.Tensor, torch.Tensor]:
    passed = student.radio_model(images(), keep=[0])
    return passed.embedded, passed.kept[0]


@pytest.mark.parametrize("fields", [{}, {"use_patch_bias": True}, {"norm_mean": [0.2] * 3, "norm_std": [0.7] * 3}])
@pytest.mark.parametrize("name", VITS)
def test_equal_pixels_enter_the_first_block_as_equal_patch_tokens(name: str, fields: dict) -> None:
    network = build_vit(name)
    trunk = vit_of(network)
    student = student_for(trunk, **fields)
    before, _ = around_students_first_block(student)
    fit_vit(student, trunk, name)
    own, _ = around_students_first_block(student)
    given, _ = around_first_block(network, normalized(trunk))
    patches = slice(-((SIDE // PATCH) ** 2), None)
    torch.testing.assert_close(own[:, patches], given[:, patches], rtol=1e-4, atol=1e-4)
    assert (before[:, patches] - given[:, patches]).abs().max() > 0.1


@pytest.mark.parametrize("use_layer_scale", [True, False])
@pytest.mark.parametrize("name", [name for name in WITH_PREFIX if name not in ROTARY])
def test_all_tokens_leave_the_first_block_equal_where_the_prefix_is_the_sources(
    name: str, use_layer_scale: bool
) -> None:
    network = build_vit(name)
    trunk = vit_of(network)
    student = student_for(trunk, use_layer_scale=use_layer_scale)
    fit_vit(student, trunk, name)
    entering, leaving = around_students_first_block(student)
    given = around_first_block(network, normalized(trunk))
    torch.testing.assert_close(entering, given[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(leaving, given[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in VITS if "siglip" in name])
def test_a_block_does_what_that_of_a_source_without_prefix_does(name: str) -> None:
    network = build_vit(name)
    trunk = vit_of(network)
    student = student_for(trunk)
    fit_vit(student, trunk, name)
    entering, leaving = around_first_block(network, normalized(trunk))
    with torch.no_grad():
        own, _ = student.radio_model.model.blocks[0](entering, ((1, entering.shape[1]),))
    torch.testing.assert_close(own, leaving, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ROTARY)
def test_a_rotary_source_differs_by_its_rotation_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_vit(name)
    trunk = vit_of(network)
    student = student_for(trunk)
    fit_vit(student, trunk, name)
    own = around_students_first_block(student)
    rotated = around_first_block(network, normalized(trunk))
    torch.testing.assert_close(own[0], rotated[0], rtol=1e-4, atol=1e-4)
    assert (own[1] - rotated[1]).abs().max() > 1e-3
    _turn_rotation_off(network, monkeypatch)
    torch.testing.assert_close(own[1], around_first_block(network, normalized(trunk))[1], rtol=1e-4, atol=1e-4)


def _turn_rotation_off(network, monkeypatch: pytest.MonkeyPatch) -> None:
    if type(network).__name__ == "Eva":
        monkeypatch.setattr(network.rope, "get_embed", lambda shape=None: None)
    else:
        ones = network.rope_embeddings.forward

        def unrotated(pixel_values):
            cosines, sines = ones(pixel_values)
            return torch.ones_like(cosines), torch.zeros_like(sines)

        monkeypatch.setattr(network.rope_embeddings, "forward", unrotated)


def test_everything_that_happened_is_reported() -> None:
    trunk = vit_of(build_vit("dinov2_registers"))
    student = student_for(trunk, num_cls_tokens=2, num_registers=5, max_img_size=64, patch_size=16)
    report = fit_vit(student, trunk, "a/b")
    assert report.describe() == (
        "Start from 'a/b', a Dinov2WithRegistersModel of transformers.\n"
        "  taken: patch projection; positions; class token, for all 2 of them; 3 registers; all blocks\n"
        "  resized: patches from 8 to 16 px; normalization by [0.485, 0.456, 0.406] and [0.229, 0.224, 0.225] folded "
        "into the patch projection; bias of the patches added to the position table; LayerScale folded into the "
        "linear layers\n"
        "  added: 2 registers, random\n"
        "  left out: final norm"
    )
    token = student.radio_model.model.patch_generator.cls_token.token
    assert torch.equal(token[0], trunk.class_token)
    assert torch.equal(token[1], trunk.class_token)
    assert torch.equal(token[2:5], trunk.registers)


def test_what_a_source_has_not_is_reported_as_added() -> None:
    trunk = vit_of(build_vit("dinov3"))
    report = fit_vit(student_for(trunk, num_registers=1, use_final_norm=True), trunk, "a/b")
    assert "position table, of zeros: the source has none, and what it knew of places must be learned" in report.added
    assert {"rotary positions, which RADIO's attention has not", "2 registers"} <= set(report.left_out)
    assert "final norm" in report.taken
    trunk = vit_of(build_vit("siglip"))
    student = student_for(trunk, use_layer_scale=True)
    before = student.radio_model.model.patch_generator.cls_token.token.clone()
    report = fit_vit(student, trunk, "a/b")
    assert {"1 class tokens, random: the source has none", "LayerScale, of ones"} <= set(report.added)
    assert "weights behind the blocks (head)" in report.left_out
    assert torch.equal(student.radio_model.model.patch_generator.cls_token.token, before)


def test_patches_of_another_size_see_the_same_in_a_resized_image() -> None:
    trunk = vit_of(build_vit("vit"))
    same, double = student_for(trunk), student_for(trunk, patch_size=2 * PATCH, max_img_size=2 * SIDE)
    for student in (same, double):
        fit_vit(student, trunk, "vit")
    larger = torch.nn.functional.interpolate(images(), scale_factor=2, mode="bicubic")
    with torch.no_grad():
        first, second = (
            student.radio_model(pixels).embedded[:, 1:] for student, pixels in ((same, images()), (double, larger))
        )
    assert torch.nn.functional.cosine_similarity(first.flatten(), second.flatten(), dim=0) > 0.99


def test_chosen_blocks_become_the_students() -> None:
    trunk = vit_of(build_vit("vit"))
    student = student_for(trunk, num_hidden_layers=1)
    report = fit_vit(student, trunk, "vit", [1])
    assert torch.equal(student.radio_model.model.blocks[0].attn.qkv.weight, trunk.blocks[1]["attn.qkv.weight"])
    assert {"1 blocks"} <= set(report.left_out)
    assert "the blocks [1]" in report.taken


@pytest.mark.parametrize(
    ("fields", "blocks", "message"),
    [
        (
            {"hidden_size": 32, "intermediate_size": 64},
            None,
            "`student.init_from` 'a/b' (ViTModel of transformers) has another trunk: hidden_size is 48, not 32. Set "
            "`student.config: {hidden_size: 48}`.",
        ),
        (
            {"num_hidden_layers": 1},
            None,
            "num_hidden_layers is 2, not 1. Choose 1 of its blocks, for example `student.init_blocks: [0]`.",
        ),
        ({"num_hidden_layers": 1}, [2], "`student.init_blocks` must be blocks of 'a/b', from 0 to 1, got [2]."),
        (
            {"use_swiglu_ffn": True, "hidden_act": "relu"},
            None,
            "use_swiglu_ffn is False, not True; hidden_act is gelu, not relu. Set `student.config: {use_swiglu_ffn: "
            "false, hidden_act: gelu}`.",
        ),
        ({"downscale_levels": [1]}, None, "`student.config.downscale_levels` must be null to start from a plain ViT"),
        ({"qkv_bias": False}, None, "`student.config.qkv_bias` must be true to start from 'a/b'"),
    ],
)
def test_a_trunk_that_does_not_fit_is_refused_with_what_would(fields: dict, blocks, message: str) -> None:
    trunk = vit_of(build_vit("vit"))
    student = student_for(trunk, **fields)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    with pytest.raises(RecipeError, match=re.escape(message)) as error:
        fit_vit(student, trunk, "a/b", blocks)
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())


def test_the_error_names_the_preset_that_fits() -> None:
    trunk = vit_of(build_vit("vit"))
    trunk.patch = torch.zeros(384, 3, 16, 16)
    trunk.num_heads = 6
    trunk.blocks = [{"mlp.fc2.weight": torch.zeros(384, 1536)}] * 12
    config = RadioConfig.from_preset("c-radio_v3-b")
    student = RadioModel.__new__(RadioModel)
    torch.nn.Module.__init__(student)
    student.config = config
    with pytest.raises(RecipeError, match=r"or `student.preset` to one of \[.*'radio-s'"):
        fit_vit(student, trunk, "a/b")


@pytest.mark.packages
def test_a_real_network_is_taken_whole() -> None:
    """The demo's DINOv2-S at its own patch and grid: its blocks up to the eleventh, with the class token."""
    try:
        teacher = Dinov2SaliencyTeacher("dinov2-s-saliency")
    except PackageUnavailableError as error:
        pytest.skip(str(error))
    trunk = vit_of(teacher.network, teacher.image_mean, teacher.image_std)
    side = 37 * 14
    student = student_for(trunk, patch_size=14, max_img_size=side)
    assert fit_vit(student, trunk, "dinov2-s-saliency").added == []
    pixel_values = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    pixel_values = torch.nn.functional.interpolate(pixel_values, (side, side), mode="bilinear")
    answer = teacher.encode((pixel_values - teacher.mean) / teacher.std)
    with torch.no_grad():
        output = student(pixel_values, feature_format="NCHW")
    torch.testing.assert_close(output.features, answer.features, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(output.summary, answer.summary, rtol=1e-3, atol=1e-3)
