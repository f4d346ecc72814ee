import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny_vits import IMAGE, PATCH, SIDE, SIZES, TIMM, VITS, around_first_block, build_vit
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipConfig, SiglipModel

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.core.packages import PackageUnavailableError
from modeling_radio.demo.teachers import Dinov2SaliencyTeacher
from modeling_radio.training.recipes.recipe import RecipeError
from modeling_radio.training.student.warm_start.vit import UnknownTrunkError, VitTrunk, fit_vit, open_vit, vit_of


def assert_same_trunk(one: VitTrunk, other: VitTrunk) -> None:
    assert one.name == other.name
    assert torch.equal(one.patch, other.patch)
    for own, theirs in zip(one.blocks, other.blocks, strict=True):
        assert own.keys() == theirs.keys()
        assert all(torch.equal(own[key], theirs[key]) for key in own)


class TestOpening:
    @pytest.mark.parametrize("name", ["vit", "vit_mae", "dinov2_registers", "dinov3", "siglip", "siglip2_flexible"])
    def test_a_folder_of_transformers_opens_as_its_network(self, name: str, tmp_path: Path) -> None:
        network = build_vit(name)
        network.save_pretrained(tmp_path)
        assert_same_trunk(open_vit(str(tmp_path)), vit_of(network))

    @pytest.mark.gpu
    def test_weights_are_read_from_a_gpu(self) -> None:
        """A teacher that is the source is on it, and the new student is not yet."""
        assert_same_trunk(vit_of(build_vit("siglip").cuda()), vit_of(build_vit("siglip")))

    def test_the_vision_tower_of_a_whole_siglip_opens(self, tmp_path: Path) -> None:
        whole = SiglipModel(SiglipConfig(vision_config={**SIZES, **IMAGE}, text_config=SIZES))
        whole.save_pretrained(tmp_path)
        trunk = open_vit(str(tmp_path))
        assert torch.equal(trunk.blocks[1]["mlp.fc1.weight"], whole.vision_model.encoder.layers[1].mlp.fc1.weight)
        assert trunk.mean == [0.5, 0.5, 0.5]

    @pytest.mark.parametrize(
        ("processor", "mean", "std"),
        [
            (None, [0.5] * 3, [0.5] * 3),
            ({"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}, [0.1, 0.2, 0.3], [1, 2, 3]),
            ({"do_normalize": False, "image_mean": [0.1] * 3, "image_std": [0.1] * 3}, [0.0] * 3, [1.0] * 3),
        ],
    )
    def test_normalization_is_that_of_the_checkpoints_processor(self, processor, mean, std, tmp_path: Path) -> None:
        build_vit("vit").save_pretrained(tmp_path)
        if processor is not None:
            (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
        trunk = open_vit(str(tmp_path))
        assert (trunk.mean, trunk.std) == (mean, std)

    def test_a_folder_of_timm_opens_as_its_network(self, tmp_path: Path) -> None:
        network = build_vit("timm_dinov2")
        content = {
            "architecture": "vit_small_patch14_reg4_dinov2",
            "num_classes": 0,
            "model_args": {**TIMM, "reg_tokens": 4, "no_embed_class": True},
            "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 32, 32]},
        }
        (tmp_path / "config.json").write_text(json.dumps(content))
        save_file(network.state_dict(), tmp_path / "model.safetensors")
        trunk = open_vit(str(tmp_path))
        assert_same_trunk(trunk, vit_of(network))
        assert_same_trunk(open_vit(f"timm:local-dir:{tmp_path}"), trunk)
        assert list(trunk.mean) == [0.1, 0.2, 0.3]

    @pytest.mark.parametrize("content", [None, "no JSON", "[1]", '{"model_type": "radio"}', '{"model_type": "clip"}'])
    def test_other_folders_are_left_to_others(self, content: str | None, tmp_path: Path) -> None:
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        assert open_vit(str(tmp_path)) is None

    @pytest.mark.parametrize("damage", ["missing", "cut", "pickled"])
    def test_a_damaged_checkpoint_is_refused_in_one_line_and_a_pickle_runs_no_code(
        self, damage: str, tmp_path: Path
    ) -> None:
        network = build_vit("vit")
        network.save_pretrained(tmp_path)
        file, marker = tmp_path / "model.safetensors", tmp_path / "marker"

        class Harmful:
            def __reduce__(self):
                return Path.touch, (marker,)

        if damage == "missing":
            state = {key: value for key, value in network.state_dict().items() if not key.startswith("layers.1.")}
            save_file(state, file, {"format": "pt"})
        elif damage == "cut":
            file.write_bytes(b"damaged")
        else:
            file.unlink()
            torch.save({**network.state_dict(), "harm": Harmful()}, tmp_path / "pytorch_model.bin")
        named = r"16 of its weights [^\n]*'layers\.1" if damage == "missing" else "it does not load: "
        with pytest.raises(UnknownTrunkError, match=rf"^{named}[^\n]*$"):
            open_vit(str(tmp_path))
        assert not marker.exists()

    @pytest.mark.parametrize(
        ("build", "named"),
        [
            (lambda: CLIPVisionModel(CLIPVisionConfig(**SIZES, **IMAGE)), "CLIPVisionModel"),
            (lambda: timm.create_model("vit_base_patch16_clip_224", **TIMM), "'norm_pre.weight'"),
            (lambda: timm.create_model("vit_small_patch16_224", qk_norm=True, **TIMM), "'blocks.0.attn.q_norm.weight'"),
            (lambda: timm.create_model("vit_relpos_base_patch16_224", **TIMM), "VisionTransformerRelPos"),
            (lambda: timm.create_model("vit_small_patch16_18x2_224", **{**TIMM, "depth": 1}), "ParallelThingsBlock"),
        ],
    )
    def test_vits_with_more_than_a_radio_trunk_are_refused(self, build: Callable[[], nn.Module], named: str) -> None:
        with pytest.raises(UnknownTrunkError, match=re.escape(named)):
            vit_of(build())


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
    result = student.radio_model(images(), keep=[0])
    return result.embedded, result.kept[0]


def assert_near(own: torch.Tensor, given: torch.Tensor) -> None:
    torch.testing.assert_close(own, given, rtol=1e-4, atol=1e-4)


def turn_rotation_off(network, monkeypatch: pytest.MonkeyPatch) -> None:
    if type(network).__name__ == "Eva":
        monkeypatch.setattr(network.rope, "get_embed", lambda shape=None: None)
        return
    rotation = network.rope_embeddings.forward

    def unrotated(pixel_values):
        cosines, sines = rotation(pixel_values)
        return torch.ones_like(cosines), torch.zeros_like(sines)

    monkeypatch.setattr(network.rope_embeddings, "forward", unrotated)


class TestFitting:
    @pytest.mark.parametrize("fields", [{}, {"use_patch_bias": True}, {"norm_mean": [0.2] * 3, "norm_std": [0.7] * 3}])
    @pytest.mark.parametrize("name", VITS)
    def test_equal_pixels_enter_the_first_block_as_equal_patch_tokens(self, name: str, fields: dict) -> None:
        network = build_vit(name)
        trunk = vit_of(network)
        student, patches = student_for(trunk, **fields), slice(-((SIDE // PATCH) ** 2), None)
        before, _ = around_students_first_block(student)
        fit_vit(student, trunk, name)
        own, given = around_students_first_block(student)[0], around_first_block(network, normalized(trunk))[0]
        assert_near(own[:, patches], given[:, patches])
        assert (before[:, patches] - given[:, patches]).abs().max() > 0.1

    @pytest.mark.parametrize("use_layer_scale", [True, False])
    @pytest.mark.parametrize("name", [name for name in VITS if "siglip" not in name])
    def test_all_tokens_leave_the_first_block_equal_but_for_a_rotation(
        self, name: str, use_layer_scale: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        network = build_vit(name)
        trunk = vit_of(network)
        student = student_for(trunk, use_layer_scale=use_layer_scale)
        fit_vit(student, trunk, name)
        own, given = around_students_first_block(student), around_first_block(network, normalized(trunk))
        assert_near(own[0], given[0])
        if "dinov3" in name:
            assert (own[1] - given[1]).abs().max() > 1e-3
            turn_rotation_off(network, monkeypatch)
            given = around_first_block(network, normalized(trunk))
        assert_near(own[1], given[1])

    @pytest.mark.parametrize("name", [name for name in VITS if "siglip" in name])
    def test_a_block_does_the_same_as_that_of_a_source_without_prefix(self, name: str) -> None:
        network = build_vit(name)
        trunk = vit_of(network)
        student = student_for(trunk)
        fit_vit(student, trunk, name)
        entering, leaving = around_first_block(network, normalized(trunk))
        with torch.no_grad():
            own = student.radio_model.model.blocks[0](entering)
        assert_near(own, leaving)

    def test_all_class_tokens_start_from_the_one_and_registers_that_are_missing_are_random(self) -> None:
        trunk = vit_of(build_vit("dinov2_registers"))
        student = student_for(trunk, num_cls_tokens=2, num_registers=5, max_img_size=64, patch_size=16)
        report = fit_vit(student, trunk, "a/b")
        assert (report.added, report.left_out) == (["2 registers, random"], ["final norm"])
        token = student.radio_model.model.patch_generator.cls_token.token
        assert torch.equal(token[:5], torch.cat([trunk.class_token.expand(2, -1), trunk.registers]))

    def test_missing_parts_are_reported_as_added(self) -> None:
        trunk = vit_of(build_vit("dinov3"))
        report = fit_vit(student_for(trunk, num_registers=1, use_final_norm=True), trunk, "a/b")
        assert any(entry.startswith("position table of zeros") for entry in report.added)
        assert {"rotary positions, which RADIO's attention has not", "2 registers"} <= set(report.left_out)
        trunk = vit_of(build_vit("siglip"))
        report = fit_vit(student_for(trunk, use_layer_scale=True), trunk, "a/b")
        assert {"1 class tokens, random: the source has none", "LayerScale, of ones"} <= set(report.added)
        assert "weights behind the blocks (head)" in report.left_out

    def test_patches_of_another_size_see_the_same_in_a_resized_image(self) -> None:
        trunk, tokens = vit_of(build_vit("vit")), []
        larger = nn.functional.interpolate(images(), scale_factor=2, mode="bicubic")
        for factor, pixels in ((1, images()), (2, larger)):
            student = student_for(trunk, patch_size=factor * PATCH, max_img_size=factor * SIDE)
            fit_vit(student, trunk, "vit")
            with torch.no_grad():
                tokens.append(student.radio_model(pixels).embedded[:, 1:].flatten())
        assert nn.functional.cosine_similarity(*tokens, dim=0) > 0.99

    def test_chosen_blocks_become_the_students(self) -> None:
        trunk = vit_of(build_vit("vit"))
        student = student_for(trunk, num_hidden_layers=1)
        report = fit_vit(student, trunk, "vit", [1])
        assert torch.equal(student.radio_model.model.blocks[0].attn.qkv.weight, trunk.blocks[1]["attn.qkv.weight"])
        assert "1 blocks" in report.left_out
        assert "the blocks [1]" in report.taken

    @pytest.mark.parametrize(
        ("fields", "blocks", "named"),
        [
            ({"hidden_size": 32, "intermediate_size": 64}, None, "`student.config: {hidden_size: 48}`"),
            ({"num_hidden_layers": 1}, None, "`student.init_blocks: [0]`"),
            ({"num_hidden_layers": 1}, [2], "`student.init_blocks`"),
            (
                {"use_swiglu_ffn": True, "hidden_act": "relu"},
                None,
                "`student.config: {use_swiglu_ffn: false, hidden_act: gelu}`",
            ),
            ({"downscale_levels": [1]}, None, "`student.config.downscale_levels`"),
            ({"qkv_bias": False}, None, "`student.config.qkv_bias`"),
        ],
    )
    def test_a_trunk_that_does_not_fit_is_refused_with_settings_that_do(self, fields: dict, blocks, named: str) -> None:
        trunk = vit_of(build_vit("vit"))
        student = student_for(trunk, **fields)
        before = {key: value.clone() for key, value in student.state_dict().items()}
        with pytest.raises(RecipeError, match=rf"^[^\n]*{re.escape(named)}[^\n]*$"):
            fit_vit(student, trunk, "a/b", blocks)
        assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())

    def test_the_error_names_the_preset_that_fits(self) -> None:
        trunk = vit_of(build_vit("vit"))
        trunk.patch, trunk.num_heads = torch.zeros(384, 3, 16, 16), 6
        trunk.blocks = [{"mlp.fc2.weight": torch.zeros(384, 1536)}] * 12
        student = nn.Module()
        student.config = RadioConfig.from_preset("c-radio_v3-b")
        with pytest.raises(RecipeError, match=r"`student\.preset` .*'radio-s'"):
            fit_vit(student, trunk, "a/b")

    @pytest.mark.slow
    @pytest.mark.packages
    def test_a_real_network_is_taken_whole(self) -> None:
        """The demo's DINOv2-S at its own patch and grid: its blocks up to the eleventh, with the class token."""
        try:
            teacher = Dinov2SaliencyTeacher("dinov2-s-saliency")
        except PackageUnavailableError as error:
            pytest.skip(str(error))
        trunk, side = vit_of(teacher.network, teacher.image_mean, teacher.image_std), 37 * 14
        student = student_for(trunk, patch_size=14, max_img_size=side)
        assert fit_vit(student, trunk, "dinov2-s-saliency").added == []
        pixel_values = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        pixel_values = nn.functional.interpolate(pixel_values, (side, side), mode="bilinear")
        expected = teacher.encode((pixel_values - teacher.mean) / teacher.std)
        with torch.no_grad():
            output = student(pixel_values, feature_format="NCHW")
        torch.testing.assert_close(output.features, expected.features, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(output.summary, expected.summary, rtol=1e-3, atol=1e-3)
