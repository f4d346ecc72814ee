import pytest
import torch
from packaging.version import Version
from releases import TRANSFORMERS
from transformers import (
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    EdgeTamConfig,
    EdgeTamModel,
    Sam2Config,
    Sam2Model,
    Sam3LiteTextConfig,
    Sam3LiteTextModel,
    Sam3TrackerConfig,
    Sam3TrackerModel,
    Sam3VisionConfig,
    Sam3VisionModel,
    SamConfig,
    SamModel,
    Siglip2ImageProcessor,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    TimmWrapperConfig,
    Tipsv2Config,
    Tipsv2ImageProcessor,
    Tipsv2Model,
    Tipsv2VisionConfig,
)

from training.recipe_sections import RunOptions
from training.teachers.outputs import resize_images
from training.teachers.registry import build_teacher


SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
DINOV2_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14, "image_size": 56}


def clip_model():
    vision = {**SIZES, "patch_size": 14, "image_size": 56}
    return CLIPModel(CLIPConfig(vision_config=vision, text_config=SIZES, projection_dim=24))


def siglip_model():
    # As SigLIP so400m: patches of 14 px leave a border of the image unused.
    return SiglipModel(SiglipConfig(vision_config={**SIZES, "patch_size": 14, "image_size": 60}, text_config=SIZES))


def sam_model():
    # Its own default starts with weights of 1e-10, which hide everything.
    sizes = {**SIZES, "mlp_dim": 48, "output_channels": 16, "initializer_range": 0.02}
    sizes.pop("intermediate_size")
    vision = {**sizes, "image_size": 64, "patch_size": 16, "window_size": 2, "global_attn_indexes": [1]}
    return SamModel(SamConfig(vision_config=vision))


def sam3_model():
    trunk = {"image_size": 56, "patch_size": 14, "window_size": 2, "global_attn_indexes": [1]}
    trunk |= {"model_type": "sam3_vit_model", "pretrain_image_size": 56}
    return Sam3VisionModel(
        Sam3VisionConfig(backbone_config={**SIZES, **trunk}, fpn_hidden_size=16, scale_factors=[1.0])
    )


def sam3_whole(name):
    """A SAM3 with a smaller encoder of texts, or one of its trackers: tiny, with random weights."""
    encoder = sam3_model().config.to_dict()
    if name == "sam3_lite_text":
        text = {**SIZES, "projection_dim": 16, "max_position_embeddings": 8, "vocab_size": 50}
        part = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
        parts = {
            "geometry_encoder_config": {**part, "num_layers": 1},
            "detr_encoder_config": {**part, "num_layers": 1},
            "detr_decoder_config": {**part, "num_layers": 1, "num_queries": 4},
            "mask_decoder_config": {"hidden_size": 16, "num_attention_heads": 2, "num_upsampling_stages": 2},
        }
        return Sam3LiteTextModel(Sam3LiteTextConfig(vision_config=encoder, text_config=text, **parts))
    decoder = {"hidden_size": 16, "num_attention_heads": 2, "mlp_dim": 16, "iou_head_hidden_dim": 16}
    prompts = {"hidden_size": 16, "image_size": 56, "patch_size": 14, "mask_input_channels": 4}
    return Sam3TrackerModel(
        Sam3TrackerConfig(vision_config=encoder, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    )


SAM_DECODER = {"hidden_size": 16, "num_attention_heads": 2, "mlp_dim": 16, "iou_head_hidden_dim": 16}
SAM_PROMPTS = {"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4}


def sam2_model():
    trunk = {
        "hidden_size": 8,
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [8, 4, 4, 4],
        "global_attention_blocks": [3],
        "image_size": [64, 64],
    }
    vision = {
        "backbone_config": {**trunk, "model_type": "sam2_hiera_det_model"},
        "backbone_channel_list": [64, 32, 16, 8],
        "fpn_hidden_size": 16,
    }
    return Sam2Model(
        Sam2Config(vision_config=vision, prompt_encoder_config=SAM_PROMPTS, mask_decoder_config=SAM_DECODER)
    )


def edgetam_model():
    trunk = TimmWrapperConfig(
        architecture="test_convnext", model_args={"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]}
    )
    vision = {
        "backbone_config": trunk.to_dict(),
        "backbone_channel_list": [64, 48, 32, 24],
        "fpn_hidden_size": 16,
    }
    return EdgeTamModel(
        EdgeTamConfig(vision_config=vision, prompt_encoder_config=SAM_PROMPTS, mask_decoder_config=SAM_DECODER)
    )


MODELS = {
    "clip": clip_model,
    "siglip": siglip_model,
    "siglip2-fixed": lambda: SiglipVisionModel(SiglipVisionConfig(**SIZES, patch_size=16, image_size=64)),
    "siglip2": lambda: Siglip2VisionModel(Siglip2VisionConfig(**SIZES, patch_size=16, num_patches=16)),
    "dinov2": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**DINOV2_SIZES, num_register_tokens=4)),
    "dinov2-plain": lambda: Dinov2Model(Dinov2Config(**DINOV2_SIZES)),
    "dinov3": lambda: DINOv3ViTModel(DINOv3ViTConfig(**SIZES, patch_size=16, num_register_tokens=4)),
    "sam": sam_model,
    "sam3": sam3_model,
    "sam3_lite_text": lambda: sam3_whole("sam3_lite_text"),
    "sam3_tracker": lambda: sam3_whole("sam3_tracker"),
    "tipsv2": lambda: Tipsv2Model(Tipsv2Config(vision_config=DINOV2_SIZES, text_config={**SIZES, "vocab_size": 50})),
    "sam2": sam2_model,
    "edgetam": edgetam_model,
}
if Version("5.18") > TRANSFORMERS:  # which asks the Hub for EdgeTAM's defaults
    del MODELS["edgetam"]
KINDS = {"siglip2-fixed": "siglip2", "dinov2-plain": "dinov2", "sam3_lite_text": "sam3", "sam3_tracker": "sam3"}

# Default mode, native size, widths of summary and features.
FACTS = {
    "clip": ("fixed", 56, 24, 32),
    "siglip": ("fixed", 56, 32, 32),
    "siglip2-fixed": ("fixed", 64, 32, 32),
    "siglip2": ("native", 64, 32, 32),
    "dinov2": ("native", 56, 32, 32),
    "dinov2-plain": ("native", 56, 32, 32),
    "dinov3": ("native", 224, 32, 32),
    "sam": ("fixed", 64, None, 32),
    "sam3": ("fixed", 56, None, 32),
    "sam3_lite_text": ("fixed", 56, None, 32),
    "sam3_tracker": ("fixed", 56, None, 32),
    "tipsv2": ("native", 56, 32, 32),
    "sam2": ("fixed", 1024, None, 32),
    "edgetam": ("fixed", 1024, None, 48),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("teachers")
    for name, build in MODELS.items():
        build().save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_a_random_model_of_each_class_answers_on_the_asked_grid(folders, name):
    teacher = build_teacher(name, kind=KINDS.get(name, name), source=str(folders / name))
    assert (teacher.run.run_mode, teacher.native_size_px, teacher.summary_dim, teacher.feature_dim) == FACTS[name]
    pixel_values = torch.rand(2, 3, 64, 96)
    output = teacher.answer(pixel_values)
    assert output.features.shape == (2, teacher.feature_dim, 4, 6)
    if teacher.summary_dim is None:
        assert output.summary is None
    else:
        assert output.summary.shape == (2, teacher.summary_dim)
    assert output.features.isfinite().all()
    assert output.features.std() > 1e-3
    row = teacher.answer(pixel_values[1:])
    torch.testing.assert_close(row.features, output.features[1:], atol=1e-5, rtol=1e-4)
    teacher.set_run_mode(RunOptions(input_size_px=4 * teacher.patch_size))
    assert teacher.answer(pixel_values).features.shape == (2, teacher.feature_dim, 4, 6)


def test_clip_gives_the_projected_class_token_and_normed_patch_tokens(folders):
    teacher = build_teacher("clip", kind="clip", source=str(folders / "clip"), grid_stride=14)
    pixel_values = torch.rand(2, 3, 56, 56)
    output = teacher.answer(pixel_values)
    model = CLIPModel.from_pretrained(folders / "clip").eval()
    normalized = (pixel_values - teacher.mean) / teacher.std
    torch.testing.assert_close(output.summary, model.get_image_features(normalized).pooler_output)
    tokens = model.vision_model(normalized).last_hidden_state[:, 1:]
    expected = model.vision_model.post_layernorm(tokens)
    torch.testing.assert_close(output.features.flatten(2).transpose(1, 2), expected)


def test_a_siglip_without_its_pooling_head_has_no_summary(tmp_path):
    config = SiglipVisionConfig(**SIZES, patch_size=16, image_size=64, vision_use_head=False)
    SiglipVisionModel(config).save_pretrained(tmp_path)
    teacher = build_teacher("s", kind="siglip", source=str(tmp_path))
    assert teacher.summary_dim is None
    output = teacher.answer(torch.rand(1, 3, 64, 64))
    assert output.summary is None
    assert output.features.shape == (1, 32, 4, 4)


def test_sam_gives_its_trunk_before_the_neck(folders):
    teacher = build_teacher("sam", kind="sam", source=str(folders / "sam"))
    pixel_values = torch.rand(2, 3, 64, 64)
    model = SamModel.from_pretrained(folders / "sam").eval()
    seen = []
    model.vision_encoder.neck.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model.get_image_embeddings((pixel_values - teacher.mean) / teacher.std)
    torch.testing.assert_close(teacher.answer(pixel_values).features, seen[0].permute(0, 3, 1, 2))


@pytest.mark.parametrize(("name", "images_per_pass"), [("sam", 4), ("sam3", 4)])
def test_segmenters_answer_mosaics(folders, name, images_per_pass):
    teacher = build_teacher(name, kind=name, source=str(folders / name), run=RunOptions(run_mode="mosaic"))
    images = torch.rand(images_per_pass + 1, 3, 32, 32)
    features = teacher.answer(images).features
    assert features.shape == (images_per_pass + 1, 32, 2, 2)
    # The last image is alone on a canvas, at the same place as the first.
    torch.testing.assert_close(teacher.answer(images[-1:]).features, features[-1:], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(teacher.answer(images[:1]).features, features[:1], atol=1e-5)


def test_sam3_runs_at_one_size_that_can_be_chosen(folders):
    source = str(folders / "sam3")
    pixel_values = torch.rand(1, 3, 56, 56)
    teacher = build_teacher("sam3", kind="sam3", source=source, grid_stride=14)
    model = Sam3VisionModel.from_pretrained(source).eval()
    expected = model((pixel_values - 0.5) / 0.5).last_hidden_state
    torch.testing.assert_close(teacher.answer(pixel_values).features.flatten(2).transpose(1, 2), expected)
    with pytest.raises(ValueError, match="`input_size_px` must be 56, its only size, got 84"):
        teacher.set_run_mode(RunOptions(input_size_px=84))
    larger = build_teacher("sam3", kind="sam3", source=source, image_size=84, grid_stride=14)
    assert larger.run.input_size_px == 84
    assert larger.answer(torch.rand(1, 3, 84, 84)).features.shape == (1, 32, 6, 6)
    with pytest.raises(ValueError, match=r"Teacher 'sam3': `image_size` must be a multiple of 14, got 90\. Use 84"):
        build_teacher("sam3", kind="sam3", source=source, image_size=90)


def test_tipsv2_gives_its_first_class_token_and_no_other(folders):
    teacher = build_teacher("tips", kind="tipsv2", source=str(folders / "tipsv2"), grid_stride=14)
    pixel_values = torch.rand(2, 3, 56, 84)  # in [0, 1], as its processor leaves them
    model = Tipsv2Model.from_pretrained(folders / "tipsv2").eval()
    output = teacher.answer(pixel_values)
    expected = model.get_image_features(pixel_values)
    torch.testing.assert_close(output.summary, expected.pooler_output)
    torch.testing.assert_close(output.features.flatten(2).transpose(1, 2), expected.last_hidden_state[:, 2:])
    assert not Tipsv2ImageProcessor.do_normalize
    assert Tipsv2ImageProcessor.size["height"] == Tipsv2VisionConfig().image_size == 448


STAGES = {"sam2": (8, 16, 32, 64), "edgetam": (24, 32, 48, 64)}


@pytest.mark.parametrize(("name", "widths"), [each for each in STAGES.items() if each[0] in MODELS])
def test_stages_of_a_trunk_before_the_neck(folders, name, widths):
    source = str(folders / name)
    images = torch.rand(1, 3, 64, 96)
    model = (Sam2Model if name == "sam2" else EdgeTamModel).from_pretrained(source).eval()
    for level, width in enumerate(widths):
        teacher = build_teacher(name, kind=name, source=source, level=level, run=RunOptions(run_mode="native"))
        stride = 4 * 2**level
        assert (teacher.feature_dim, teacher.patch_size, len(teacher.blocks())) == (width, stride, 0)
        ((_, features),) = teacher([[images]])
        output = model.vision_encoder.backbone((images - teacher.mean) / teacher.std)
        if name == "sam2":
            expected = output.intermediate_hidden_states[level].permute(0, 3, 1, 2)
        else:
            expected = output.last_hidden_state[level]
        assert features.shape == (1, width, 64 // stride, 96 // stride)
        torch.testing.assert_close(features, expected)
    with pytest.raises(ValueError, match=r"`level` must be 0, 1, 2 or 3, got 4\."):
        build_teacher(name, kind=name, source=source, level=4)


def test_sam3_with_another_encoder_of_texts_has_sam3s_trunk(folders):
    pixel_values = torch.rand(1, 3, 56, 56)
    for name, model_class in (("sam3_lite_text", Sam3LiteTextModel), ("sam3_tracker", Sam3TrackerModel)):
        teacher = build_teacher(name, kind="sam3", source=str(folders / name), grid_stride=14)
        trunk = model_class.from_pretrained(folders / name).eval().vision_encoder.backbone
        expected = trunk((pixel_values - 0.5) / 0.5).last_hidden_state
        torch.testing.assert_close(teacher.answer(pixel_values).features.flatten(2).transpose(1, 2), expected)


def test_flexible_siglip2_gets_the_inputs_of_its_own_processor(folders):
    teacher = build_teacher("siglip2", kind="siglip2", source=str(folders / "siglip2"))
    pixels = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    inputs = Siglip2ImageProcessor(patch_size=16, max_num_patches=24)(pixels, return_tensors="pt")
    assert inputs["spatial_shapes"].tolist() == [[4, 6]]
    expected = Siglip2VisionModel.from_pretrained(folders / "siglip2").eval()(**inputs)
    output = teacher.answer(pixels / 255)
    torch.testing.assert_close(output.summary, expected.pooler_output, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        output.features.flatten(2).transpose(1, 2), expected.last_hidden_state, atol=1e-5, rtol=1e-4
    )


def test_registers_are_left_out_of_the_features(folders):
    teacher = build_teacher("dinov3", kind="dinov3", source=str(folders / "dinov3"))
    pixel_values = torch.rand(1, 3, 32, 48)
    model = DINOv3ViTModel.from_pretrained(folders / "dinov3").eval()
    tokens = model((pixel_values - teacher.mean) / teacher.std).last_hidden_state
    output = teacher.answer(pixel_values)
    torch.testing.assert_close(output.summary, tokens[:, 0])
    torch.testing.assert_close(output.features[0, :, 1, 2], tokens[0, 5 + 1 * 3 + 2])


def test_weights_can_be_kept_in_bfloat16(folders):
    source = str(folders / "dinov3")
    teacher = build_teacher("d", kind="dinov3", source=source, weights_dtype="bfloat16")
    assert teacher.network.dtype == torch.bfloat16
    assert teacher.mean.dtype == torch.float32
    assert teacher.answer(torch.rand(1, 3, 32, 32)).features.dtype == torch.float32
    with pytest.raises(ValueError, match=r"`weights_dtype` must be one of \['float32', 'bfloat16'\], got 'int8'"):
        build_teacher("d", kind="dinov3", source=source, weights_dtype="int8")


def test_what_does_not_load_is_one_clear_line(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    model = MODELS["dinov3"]()
    weights = {key: value for key, value in model.state_dict().items() if "norm2" not in key}
    model.save_pretrained(tmp_path / "partial", state_dict=weights)
    cases = {
        str(tmp_path / "empty"): "no model at",
        "org/not-there": "no model at `source` 'org/not-there'",
        str(folders / "sam3"): r"must be a model of one of the types \['dinov3_vit', .* a 'sam3_vision_model'",
        str(tmp_path / "partial"): "4 weights are missing or of another shape",
    }
    for source, message in cases.items():
        with pytest.raises(ValueError, match=message) as error:
            build_teacher("d", kind="dinov3", source=source)
        assert "\n" not in str(error.value)


def test_random_weights_of_another_source_need_its_config_only(folders, tmp_path):
    SamConfig.from_pretrained(folders / "sam").save_pretrained(tmp_path)
    teacher = build_teacher("s", kind="sam", source=str(tmp_path), weights="random")
    assert teacher.feature_dim == 32
    with pytest.raises(ValueError, match=r"`weights` must be one of \['pretrained', 'random'\], got 'none'"):
        build_teacher("s", kind="sam", source=str(tmp_path), weights="none")


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("sam2", "edgetam")])
def test_blocks_of_each_class_answer_on_the_same_grid(folders, name):
    teacher = build_teacher(name, kind=KINDS.get(name, name), source=str(folders / name))
    pixel_values = torch.rand(2, 3, 64, 96)
    plain = teacher.answer(pixel_values)
    teacher.use_depths([0.5])
    assert torch.equal(teacher.answer(pixel_values).features, plain.features)
    images = resize_images(pixel_values, teacher.input_sizes(4, 6)[0])
    last, inner = teacher([[images]])[0].features.chunk(2, dim=1)
    assert last.shape[1] == teacher.feature_dim
    assert len(teacher.blocks()) == SIZES["num_hidden_layers"]
    assert inner.shape == last.shape
    assert inner.std() > 1e-2
    assert (inner - last).abs().mean() > 1e-3
    row = teacher([[images[1:]]])[0].features.chunk(2, dim=1)[1]
    torch.testing.assert_close(row, inner[1:], atol=1e-5, rtol=1e-4)
