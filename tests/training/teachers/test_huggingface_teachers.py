import pytest
import torch
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    Sam3VisionConfig,
    Sam3VisionModel,
    Siglip2ImageProcessor,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from training.teachers import build_teacher


SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def sam3_model():
    trunk = {"image_size": 56, "patch_size": 14, "window_size": 2, "global_attn_indexes": [1]}
    trunk |= {"model_type": "sam3_vit_model", "pretrain_image_size": 56}
    return Sam3VisionModel(
        Sam3VisionConfig(backbone_config={**SIZES, **trunk}, fpn_hidden_size=16, scale_factors=[1.0])
    )


MODELS = {
    "siglip2": lambda: Siglip2VisionModel(Siglip2VisionConfig(**SIZES, patch_size=16, num_patches=16)),
    "siglip": lambda: SiglipVisionModel(SiglipVisionConfig(**SIZES, patch_size=16, image_size=64)),
    "dinov3": lambda: DINOv3ViTModel(DINOv3ViTConfig(**SIZES, patch_size=16, num_register_tokens=4)),
    "dinov2": lambda: Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            patch_size=14,
            image_size=56,
            num_register_tokens=4,
        )
    ),
    "sam3": sam3_model,
}
KINDS = {"siglip": "siglip2"}


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
    pixel_values = torch.rand(2, 3, 64, 96)
    output = teacher(pixel_values)
    assert output.features.shape == (2, teacher.feature_dim, 4, 6)
    if name == "sam3":
        assert output.summary is teacher.summary_dim is None
    else:
        assert output.summary.shape == (2, teacher.summary_dim)
    assert output.features.isfinite().all()
    row = teacher(pixel_values[1:])
    torch.testing.assert_close(row.features, output.features[1:], atol=1e-5, rtol=1e-4)
    teacher.set_run_mode(input_size=4 * teacher.patch_size)
    assert teacher(pixel_values).features.shape == (2, teacher.feature_dim, 4, 6)


def test_sam3_runs_at_one_size_that_can_be_chosen(folders):
    source = str(folders / "sam3")
    pixel_values = torch.rand(1, 3, 56, 56)
    teacher = build_teacher("sam3", kind="sam3", source=source, grid_stride=14)
    model = Sam3VisionModel.from_pretrained(source).eval()
    expected = model((pixel_values - 0.5) / 0.5).last_hidden_state
    torch.testing.assert_close(teacher(pixel_values).features.flatten(2).transpose(1, 2), expected)
    with pytest.raises(ValueError, match="runs at 56 px only, not at input_size 84"):
        teacher.set_run_mode(input_size=84)
    larger = build_teacher("sam3", kind="sam3", source=source, image_size=84, grid_stride=14)
    assert larger.input_size == 84
    assert larger(torch.rand(1, 3, 84, 84)).features.shape == (1, 32, 6, 6)
    with pytest.raises(ValueError, match="image_size 90 is not a multiple of 14"):
        build_teacher("sam3", kind="sam3", source=source, image_size=90)


def test_flexible_siglip2_gets_the_inputs_of_its_own_processor(folders):
    teacher = build_teacher("siglip2", kind="siglip2", source=str(folders / "siglip2"))
    pixels = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    inputs = Siglip2ImageProcessor(patch_size=16, max_num_patches=24)(pixels, return_tensors="pt")
    assert inputs["spatial_shapes"].tolist() == [[4, 6]]
    expected = Siglip2VisionModel.from_pretrained(folders / "siglip2").eval()(**inputs)
    output = teacher(pixels / 255)
    torch.testing.assert_close(output.summary, expected.pooler_output, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        output.features.flatten(2).transpose(1, 2), expected.last_hidden_state, atol=1e-5, rtol=1e-4
    )


def test_registers_are_left_out_of_the_features(folders):
    teacher = build_teacher("dinov3", kind="dinov3", source=str(folders / "dinov3"))
    pixel_values = torch.rand(1, 3, 32, 48)
    model = DINOv3ViTModel.from_pretrained(folders / "dinov3").eval()
    tokens = model((pixel_values - teacher.mean) / teacher.std).last_hidden_state
    output = teacher(pixel_values)
    torch.testing.assert_close(output.summary, tokens[:, 0])
    torch.testing.assert_close(output.features[0, :, 1, 2], tokens[0, 5 + 1 * 3 + 2])


def test_weights_can_be_kept_in_bfloat16(folders):
    source = str(folders / "dinov3")
    teacher = build_teacher("d", kind="dinov3", source=source, weights_dtype="bfloat16")
    assert teacher.network.dtype == torch.bfloat16
    assert teacher.mean.dtype == torch.float32
    assert teacher(torch.rand(1, 3, 32, 32)).features.dtype == torch.float32
    with pytest.raises(ValueError, match="weights_dtype must be float32 or bfloat16, not 'int8'"):
        build_teacher("d", kind="dinov3", source=source, weights_dtype="int8")


def test_what_does_not_load_is_one_clear_line(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    model = MODELS["dinov3"]()
    weights = {key: value for key, value in model.state_dict().items() if "norm2" not in key}
    model.save_pretrained(tmp_path / "partial", state_dict=weights)
    cases = {
        str(tmp_path / "empty"): "no model at",
        "org/not-there": "no model at 'org/not-there'",
        str(folders / "sam3"): "is a 'sam3_vision_model'; it must be one of dinov3_vit",
        str(tmp_path / "partial"): "4 weights are missing or of another shape",
    }
    for source, message in cases.items():
        with pytest.raises(ValueError, match=message) as error:
            build_teacher("d", kind="dinov3", source=source)
        assert "\n" not in str(error.value)
