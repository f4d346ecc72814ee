"""Teachers of transformers' classes, compared with tiny models of these classes with random weights."""

import pytest
import torch
import transformers
from packaging.version import Version
from refusals import refused
from releases import TRANSFORMERS

from modeling_radio.training.recipes.sections import RunOptions
from modeling_radio.training.teachers.registry import build_teacher


SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
DINOV2 = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14, "image_size": 56}
SMALL = {"patch_size": 16, "image_size": 64}
CLIP = {**SIZES, "patch_size": 14, "image_size": 56}
SIGLIP = {**SIZES, "patch_size": 14, "image_size": 60}  # as SigLIP so400m: patches leave a border of the image unused
SAM = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_dim": 48, "output_channels": 16}
SAM |= {**SMALL, "window_size": 2, "global_attn_indexes": [1]}
SAM |= {"initializer_range": 0.02}  # the default starts with weights of 1e-10, which hide everything
SAM3_TRUNK = {**CLIP, "window_size": 2, "global_attn_indexes": [1], "pretrain_image_size": 56}
SAM3 = {
    "backbone_config": {**SAM3_TRUNK, "model_type": "sam3_vit_model"},
    "fpn_hidden_size": 16,
    "scale_factors": [1.0],
}
SAM3 |= {"model_type": "sam3_vision_model"}
PART = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "num_layers": 1}
LITE_TEXT = {
    "vision_config": SAM3,
    "text_config": {**SIZES, "projection_dim": 16, "max_position_embeddings": 8, "vocab_size": 50},
    "geometry_encoder_config": PART,
    "detr_encoder_config": PART,
    "detr_decoder_config": {**PART, "num_queries": 4},
    "mask_decoder_config": {"hidden_size": 16, "num_attention_heads": 2, "num_upsampling_stages": 2},
}
DECODER = {"hidden_size": 16, "num_attention_heads": 2, "mlp_dim": 16, "iou_head_hidden_dim": 16}
PROMPTS = {"hidden_size": 16, **SMALL, "mask_input_channels": 4}
TRACKER = {"vision_config": SAM3, "mask_decoder_config": DECODER}
TRACKER |= {"prompt_encoder_config": {**PROMPTS, "image_size": 56, "patch_size": 14}}
STAGES = {"sam2": [8, 16, 32, 64], "edgetam": [24, 32, 48, 64]}
SAM2_TRUNK = {
    "model_type": "sam2_hiera_det_model",
    "hidden_size": 8,
    "blocks_per_stage": [1, 1, 2, 1],
    "embed_dim_per_stage": STAGES["sam2"],
    "num_attention_heads_per_stage": [1, 1, 2, 2],
    "window_size_per_stage": [8, 4, 4, 4],
    "global_attention_blocks": [3],
    "image_size": [64, 64],
}
EDGETAM_TRUNK = transformers.TimmWrapperConfig(
    architecture="test_convnext", model_args={"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]}
).to_dict()


def before_neck(trunk, name):
    vision = {"backbone_config": trunk, "backbone_channel_list": STAGES[name][::-1], "fpn_hidden_size": 16}
    return {"vision_config": vision, "prompt_encoder_config": PROMPTS, "mask_decoder_config": DECODER}


# Names of transformers' classes, without "Model" and "Config", and the configurations' fields.
MODELS = {
    "clip": ("CLIP", {"vision_config": CLIP, "text_config": SIZES, "projection_dim": 24}),
    "siglip": ("Siglip", {"vision_config": SIGLIP, "text_config": SIZES}),
    "siglip2-fixed": ("SiglipVision", {**SIZES, **SMALL}),
    "siglip2": ("Siglip2Vision", {**SIZES, "patch_size": 16, "num_patches": 16}),
    "dinov2": ("Dinov2WithRegisters", {**DINOV2, "num_register_tokens": 4}),
    "dinov2-plain": ("Dinov2", DINOV2),
    "dinov3": ("DINOv3ViT", {**SIZES, "patch_size": 16, "num_register_tokens": 4}),
    "sam": ("Sam", {"vision_config": SAM}),
    "sam3": ("Sam3Vision", SAM3),
    "sam3_lite_text": ("Sam3LiteText", LITE_TEXT),
    "sam3_tracker": ("Sam3Tracker", TRACKER),
    "tipsv2": ("Tipsv2", {"vision_config": DINOV2, "text_config": {**SIZES, "vocab_size": 50}}),
    "sam2": ("Sam2", before_neck(SAM2_TRUNK, "sam2")),
    "edgetam": ("EdgeTam", before_neck(EDGETAM_TRUNK, "edgetam")),
}
# Kind, default mode, native size, widths of summary and features.
FACTS = {
    "clip": ("clip", "fixed", 56, 24, 32),
    "siglip": ("siglip", "fixed", 56, 32, 32),
    "siglip2-fixed": ("siglip2", "fixed", 64, 32, 32),
    "siglip2": ("siglip2", "native", 64, 32, 32),
    "dinov2": ("dinov2", "native", 56, 32, 32),
    "dinov2-plain": ("dinov2", "native", 56, 32, 32),
    "dinov3": ("dinov3", "native", 224, 32, 32),
    "sam": ("sam", "fixed", 64, None, 32),
    "sam3": ("sam3", "fixed", 56, None, 32),
    "sam3_lite_text": ("sam3", "fixed", 56, None, 32),
    "sam3_tracker": ("sam3", "fixed", 56, None, 32),
    "tipsv2": ("tipsv2", "native", 56, 32, 32),
    "sam2": ("sam2", "fixed", 1024, None, 32),
    "edgetam": ("edgetam", "fixed", 1024, None, 48),
}
if Version("5.18") > TRANSFORMERS:  # which asks the Hub for EdgeTAM's defaults
    del MODELS["edgetam"]


def build_model(name):
    family, fields = MODELS[name]
    return getattr(transformers, f"{family}Model")(getattr(transformers, f"{family}Config")(**fields))


def model_of(folders, name):
    return getattr(transformers, f"{MODELS[name][0]}Model").from_pretrained(folders / name).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("teachers")
    for name in MODELS:
        build_model(name).save_pretrained(folder / name)
    return folder


def opened(folders, name, **options):
    return build_teacher(name, kind=FACTS[name][0], source=str(folders / name), **options)


def assert_features(output, tokens, **tolerance):
    """Compare with patch tokens `(batch, rows * cols, dim)`, row by row."""
    torch.testing.assert_close(output.features.flatten(2).transpose(1, 2), tokens, **tolerance)


@pytest.mark.parametrize("name", MODELS)
def test_a_random_model_of_each_class_returns_the_students_grid(folders, name):
    teacher = opened(folders, name)
    assert (teacher.run.run_mode, teacher.native_size_px, teacher.summary_dim, teacher.feature_dim) == FACTS[name][1:]
    pixel_values = torch.rand(2, 3, 64, 96)
    output = teacher.extract_features(pixel_values)
    assert output.features.shape == (2, teacher.feature_dim, 4, 6)
    assert teacher.summary_dim is output.summary is None or output.summary.shape == (2, teacher.summary_dim)
    assert output.features.isfinite().all()
    assert output.features.std() > 1e-3
    row = teacher.extract_features(pixel_values[1:])
    torch.testing.assert_close(row.features, output.features[1:], atol=1e-5, rtol=1e-4)
    teacher.set_run_mode(RunOptions(input_size_px=4 * teacher.patch_size))
    assert teacher.extract_features(pixel_values).features.shape == (2, teacher.feature_dim, 4, 6)


def test_clip_returns_the_projected_class_token_and_normed_patch_tokens(folders):
    pixel_values = torch.rand(2, 3, 56, 56)
    teacher = opened(folders, "clip", grid_stride=14)
    output, model = teacher.extract_features(pixel_values), model_of(folders, "clip")
    normalized = (pixel_values - teacher.mean) / teacher.std
    torch.testing.assert_close(output.summary, model.get_image_features(normalized).pooler_output)
    tokens = model.vision_model(normalized).last_hidden_state[:, 1:]
    assert_features(output, model.vision_model.post_layernorm(tokens))


def test_a_siglip_without_its_pooling_head_has_no_summary(tmp_path):
    config = transformers.SiglipVisionConfig(**SIZES, patch_size=16, image_size=64, vision_use_head=False)
    transformers.SiglipVisionModel(config).save_pretrained(tmp_path)
    teacher = build_teacher("s", kind="siglip", source=str(tmp_path))
    output = teacher.extract_features(torch.rand(1, 3, 64, 64))
    assert teacher.summary_dim is output.summary is None
    assert output.features.shape == (1, 32, 4, 4)


def test_sam_returns_its_trunk_before_the_neck(folders):
    teacher, pixel_values = opened(folders, "sam"), torch.rand(2, 3, 64, 64)
    model, seen = model_of(folders, "sam"), []
    model.vision_encoder.neck.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model.get_image_embeddings((pixel_values - teacher.mean) / teacher.std)
    torch.testing.assert_close(teacher.extract_features(pixel_values).features, seen[0].permute(0, 3, 1, 2))


@pytest.mark.parametrize("name", ["sam", "sam3"])
def test_segmenters_run_on_mosaics(folders, name):
    teacher, images = opened(folders, name, run=RunOptions(run_mode="mosaic")), torch.rand(5, 3, 32, 32)
    features = teacher.extract_features(images).features
    assert features.shape == (5, 32, 2, 2)
    # Four share a canvas; the last image is alone on one, at the same place as the first.
    torch.testing.assert_close(teacher.extract_features(images[-1:]).features, features[-1:], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(teacher.extract_features(images[:1]).features, features[:1], atol=1e-5)


def test_sam3_in_all_its_forms_runs_at_one_size_that_can_be_chosen(folders):
    pixel_values = torch.rand(1, 3, 56, 56)
    for name in ("sam3", "sam3_lite_text", "sam3_tracker"):
        model = model_of(folders, name)
        trunk = model.backbone if name == "sam3" else model.vision_encoder.backbone
        expected = trunk((pixel_values - 0.5) / 0.5).last_hidden_state
        teacher = opened(folders, name, grid_stride=14)
        assert_features(teacher.extract_features(pixel_values), expected)
        refused("input_size_px", lambda teacher=teacher: teacher.set_run_mode(RunOptions(input_size_px=84)))
    larger = opened(folders, "sam3", image_size=84, grid_stride=14)
    assert larger.run.input_size_px == 84
    assert larger.extract_features(torch.rand(1, 3, 84, 84)).features.shape == (1, 32, 6, 6)
    with pytest.raises(ValueError, match=r"Teacher 'sam3': `image_size` .* 84"):
        opened(folders, "sam3", image_size=90)


def test_tipsv2_returns_its_first_class_token_and_no_other(folders):
    pixel_values = torch.rand(2, 3, 56, 84)  # in [0, 1], as its processor leaves them
    output = opened(folders, "tipsv2", grid_stride=14).extract_features(pixel_values)
    expected = model_of(folders, "tipsv2").get_image_features(pixel_values)
    torch.testing.assert_close(output.summary, expected.pooler_output)
    assert_features(output, expected.last_hidden_state[:, 2:])
    assert not transformers.Tipsv2ImageProcessor.do_normalize
    assert transformers.Tipsv2ImageProcessor.size["height"] == transformers.Tipsv2VisionConfig().image_size == 448


@pytest.mark.parametrize("name", [name for name in STAGES if name in MODELS])
def test_stages_of_a_trunk_before_the_neck(folders, name):
    images = torch.rand(1, 3, 64, 96)
    model = model_of(folders, name)
    for level, width in enumerate(STAGES[name]):
        teacher = opened(folders, name, level=level, run=RunOptions(run_mode="native"))
        stride = 4 * 2**level
        assert (teacher.feature_dim, teacher.patch_size) == (width, stride)
        ((_, features),) = teacher([[images]])
        output = model.vision_encoder.backbone((images - teacher.mean) / teacher.std)
        if name == "sam2":
            expected = output.intermediate_hidden_states[level].permute(0, 3, 1, 2)
        else:
            expected = output.last_hidden_state[level]
        assert features.shape == (1, width, 64 // stride, 96 // stride)
        torch.testing.assert_close(features, expected)
    with pytest.raises(ValueError, match=r"`level` .* 4"):
        opened(folders, name, level=4)


def test_flexible_siglip2_gets_the_inputs_of_its_own_processor(folders):
    pixels = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    inputs = transformers.Siglip2ImageProcessor(patch_size=16, max_num_patches=24)(pixels, return_tensors="pt")
    assert inputs["spatial_shapes"].tolist() == [[4, 6]]
    expected = model_of(folders, "siglip2")(**inputs)
    teacher = opened(folders, "siglip2")
    output = teacher.extract_features(pixels / 255)
    torch.testing.assert_close(output.summary, expected.pooler_output, atol=1e-5, rtol=1e-4)
    assert_features(output, expected.last_hidden_state, atol=1e-5, rtol=1e-4)
    counted = teacher.to("meta").extract_features(pixels.to("meta") / 255)  # as `radio plan` does
    assert counted.features.shape == output.features.shape


def test_registers_are_left_out_of_the_features(folders):
    teacher, pixel_values = opened(folders, "dinov3"), torch.rand(1, 3, 32, 48)
    model = model_of(folders, "dinov3")
    tokens = model((pixel_values - teacher.mean) / teacher.std).last_hidden_state
    output = teacher.extract_features(pixel_values)
    torch.testing.assert_close(output.summary, tokens[:, 0])
    assert_features(output, tokens[:, 5:])


def test_weights_can_be_random_or_kept_in_bfloat16(folders, tmp_path):
    teacher = opened(folders, "dinov3", weights_dtype="bfloat16")
    assert (teacher.network.dtype, teacher.mean.dtype) == (torch.bfloat16, torch.float32)
    assert teacher.extract_features(torch.rand(1, 3, 32, 32)).features.dtype == torch.float32
    transformers.SamConfig.from_pretrained(folders / "sam").save_pretrained(tmp_path)
    assert build_teacher("s", kind="sam", source=str(tmp_path), weights="random").feature_dim == 32
    for option in ({"weights_dtype": "int8"}, {"weights": "none"}):
        with pytest.raises(ValueError, match=f"`{next(iter(option))}`"):
            opened(folders, "dinov3", **option)


def test_sources_that_do_not_load_are_one_clear_line(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    model = build_model("dinov3")
    weights = {key: value for key, value in model.state_dict().items() if "norm2" not in key}
    model.save_pretrained(tmp_path / "partial", state_dict=weights)
    cases = {
        str(tmp_path / "empty"): "no model at `source`",
        "org/not-there": "no model at `source` 'org/not-there'",
        str(folders / "sam3"): r"`source` .*\['dinov3_vit', .* 'sam3_vision_model'",
        str(tmp_path / "partial"): "`source` .* 4 weights",
    }
    for source, message in cases.items():
        with pytest.raises(ValueError, match=message) as error:
            build_teacher("d", kind="dinov3", source=source)
        assert "\n" not in str(error.value)
