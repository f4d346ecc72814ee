"""Networks of timm as teachers: outputs of timm's own classes with random weights, and published ones on meta."""

import pytest
import timm
import torch
from timm.models import save_for_hf

from modeling_radio.training.recipes.sections import RunOptions
from modeling_radio.training.teachers.registry import build_teacher


# Stride, widths of the pooled summary and the features, default mode.
TINY = {
    "test_vit": (16, 64, 64, "fixed"),
    "test_vit2": (16, 64, 64, "fixed"),  # with registers
    "vit_pe_core_tiny_patch16_384": (16, 192, 192, "fixed"),
    "test_convnext": (32, 64, 64, "native"),
    "test_efficientnet": (32, 256, 256, "native"),
}


def build(source, **options):
    torch.manual_seed(0)
    return build_teacher("t", kind="timm", source=str(source), **{"weights": "random", **options})


@pytest.mark.parametrize("name", TINY)
def test_outputs_are_those_of_timms_own_network(name):
    stride, summary_dim, feature_dim, mode = TINY[name]
    teacher = build(name, grid_stride=stride)
    assert (teacher.patch_size, teacher.summary_dim, teacher.feature_dim) == (stride, summary_dim, feature_dim)
    assert teacher.run.run_mode == mode
    config = teacher.network.pretrained_cfg
    assert (teacher.image_mean, teacher.image_std) == (config["mean"], config["std"])
    assert teacher.native_size_px == config["input_size"][1] // stride * stride
    teacher.set_run_mode(RunOptions(run_mode="native"), grid_stride=stride)
    pixel_values = torch.rand(2, 3, 4 * stride, 6 * stride)
    answer = teacher.extract_features(pixel_values)
    with torch.no_grad():
        hidden = teacher.network.forward_features((pixel_values - teacher.mean) / teacher.std)
        summary = teacher.network.forward_head(hidden, pre_logits=True)
    torch.testing.assert_close(answer.summary, summary)
    maps = hidden if hidden.ndim == 4 else hidden[:, -24:].transpose(1, 2).unflatten(2, (4, 6))
    torch.testing.assert_close(answer.features, maps)
    assert answer.features.std() > 1e-3


def test_summary_and_features_can_be_chosen():
    images, native = torch.rand(2, 3, 64, 64), RunOptions(run_mode="native")
    whole, projected, none = (
        build("test_vit", summary=summary, run=native) for summary in ("pooled", "projected", "none")
    )
    answer = whole.extract_features(images)
    torch.testing.assert_close(projected.extract_features(images).summary, whole.network.head(answer.summary))
    assert (projected.summary_dim, none.summary_dim, none.extract_features(images).summary) == (1000, None, None)
    torch.testing.assert_close(none.extract_features(images).features, answer.features)
    for name, layer, stride, width in (("test_vit", 1, 16, 64), ("test_convnext", -2, 16, 48)):
        teacher = build(name, layer=layer, run=native)
        assert (teacher.patch_size, teacher.feature_dim) == (stride, width)
        with torch.no_grad():
            normalized = (images - teacher.mean) / teacher.std
            _, (expected,) = teacher.network.forward_intermediates(normalized, indices=[layer])
        features = teacher.extract_features(images).features
        torch.testing.assert_close(features, expected)
        assert features.shape != answer.features.shape or not torch.allclose(features, answer.features, atol=1e-3)


def test_a_folder_has_its_own_weights_and_normalization(tmp_path):
    torch.manual_seed(1)
    network = timm.create_model("test_vit")
    network.pretrained_cfg["mean"] = (0.4, 0.5, 0.6)
    save_for_hf(network, tmp_path, safe_serialization=True)
    teacher = build(tmp_path, weights="pretrained", run=RunOptions(run_mode="native"))
    assert teacher.image_mean == (0.4, 0.5, 0.6)
    images = torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        expected = network.eval().forward_features((images - teacher.mean) / teacher.std)[:, 1:]
    torch.testing.assert_close(teacher.extract_features(images).features.flatten(2).transpose(1, 2), expected)


def test_networks_of_one_size_and_weights_in_bfloat16():
    teacher = build("efficientformerv2_s0")
    assert (teacher.run.run_mode, teacher.run.input_size_px, teacher.runs_at_any_size) == ("fixed", 224, False)
    assert teacher.extract_features(torch.rand(1, 3, 64, 96)).features.shape == (1, 176, 4, 6)
    teacher = build("vit_pe_core_tiny_patch16_384", weights_dtype="bfloat16")
    assert next(teacher.network.parameters()).dtype == torch.bfloat16
    assert teacher.extract_features(torch.rand(1, 3, 32, 32)).features.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "vit_tyni"}, "'vit_tyni'"),
        ({"summary": "mean"}, "`summary`"),
        ({"layer": 6}, "`layer` .* 6"),
        ({"weights": "none"}, "`weights`"),
        ({"weights_dtype": "int8"}, "`weights_dtype`"),
        ({"source": "vit_pe_spatial_tiny_patch16_512", "summary": "projected"}, "`summary` .*'projected'"),
    ],
)
def test_other_options_are_one_clear_line(options, message):
    with pytest.raises(ValueError, match=f"^Teacher 't': .*{message}") as error:
        build(**{"source": "test_vit", "weights": "random", **options})
    assert "\n" not in str(error.value)
