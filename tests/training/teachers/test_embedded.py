import re

import pytest
import torch

from training.data.decoding import crop_to_shape, to_tensor
from training.demo_kit.drawing import load_photograph
from training.demo_kit.packages import PackageUnavailableError, fetch_package, package_named
from training.recipe_sections.networks import RunOptions
from training.teachers.embedded import _timm_key, _torchvision_key
from training.teachers.registry import build_teacher


WIDTHS = {
    "efficientnet-lite0": (1280, 112),
    "dinov2-s-saliency": (384, 384),
    "nanodet-g": (384, 128),
    "mobilenet-v2": (1280, 96),
}


def build(kind, **options):
    try:
        return build_teacher(kind, kind=kind, **options)
    except PackageUnavailableError as error:
        pytest.skip(str(error))


@pytest.mark.packages
@pytest.mark.parametrize("kind", WIDTHS)
def test_each_teacher_answers_as_it_states(kind):
    teacher = build(kind)
    assert (teacher.summary_dim, teacher.feature_dim) == WIDTHS[kind]
    for height, width in ((64, 64), (96, 80)):
        output = teacher.answer(torch.rand(2, 3, height, width))
        assert output.summary.shape == (2, teacher.summary_dim)
        assert output.features.shape == (2, teacher.feature_dim, height // 16, width // 16)
        assert output.features.isfinite().all()
    pixel_values = torch.rand(2, 3, 64, 64)
    exact = teacher.answer(pixel_values)
    teacher.set_run_mode(RunOptions(precision="bfloat16"))
    rounded = teacher.answer(pixel_values)
    assert torch.cosine_similarity(exact.features, rounded.features).mean() > 0.98


@pytest.mark.packages
def test_the_classifier_knows_a_cat():
    teacher = build("efficientnet-lite0")
    try:
        folder = fetch_package(package_named("scikit-image"))
    except PackageUnavailableError as error:
        pytest.skip(str(error))
    cat = crop_to_shape(load_photograph(folder / "skimage/data/chelsea.png"), 224, 224)
    logits = teacher.classify(teacher.answer(to_tensor(cat)[None] / 255).summary)
    assert logits.shape == (1, 1000)
    assert logits.argmax().item() in {281, 282, 285}  # tabby, tiger cat, Egyptian cat
    pixels = to_tensor(cat)[None] / 255
    torch.testing.assert_close(teacher.last_map(pixels, 7, 7).mean((2, 3)), teacher.answer(pixels).summary)
    torch.testing.assert_close(
        logits, teacher.answer(pixels).summary @ teacher.rows.T + teacher.network.classifier.bias
    )


@pytest.mark.packages
def test_a_layer_is_the_hidden_state_of_that_number():
    deep, shallow = build("dinov2-s-saliency", layer=4), build("dinov2-s-saliency", layer=2)
    pixel_values = torch.rand(1, 3, 64, 64)
    normalized = (
        torch.nn.functional.interpolate(pixel_values, (56, 56), mode="bicubic", antialias=True).clamp(0, 1) - deep.mean
    ) / deep.std
    states = deep.network(normalized, output_hidden_states=True).hidden_states
    assert len(states) == 5
    torch.testing.assert_close(shallow.answer(pixel_values).summary, states[2][:, 0])


def test_the_key_maps_reach_every_weight_of_the_networks():
    timm = pytest.importorskip("timm")
    from torchvision.models import mobilenet_v2

    lite0 = set(timm.create_model("tf_efficientnet_lite0").state_dict())
    blocks = [
        f"_blocks.{i}._{part}.weight" for i in range(16) for part in ("depthwise_conv", "bn1", "project_conv", "bn2")
    ]
    blocks += [f"_blocks.{i}._{part}.weight" for i in range(1, 16) for part in ("expand_conv", "bn0")]
    top = [f"{part}.weight" for part in ("_conv_stem", "_bn0", "_conv_head", "_bn1", "_fc")]
    assert {_timm_key(key) for key in blocks + top} == {key for key in lite0 if key.endswith(".weight")}

    mobilenet = set(mobilenet_v2().features.state_dict())
    flat = [f"features.{i}.conv.{j}.weight" for i in range(2, 18) for j in (0, 1, 3, 4, 6, 7)]
    flat += [f"features.1.conv.{j}.weight" for j in (0, 1, 3, 4)]
    flat += [f"features.{i}.{j}.weight" for i in (0, 18) for j in (0, 1)]
    assert {_torchvision_key(key) for key in flat} == {key for key in mobilenet if re.search(r"weight$", key)}
    with pytest.raises(ValueError, match=r"Unexpected weight 'classifier\.1\.weight'"):
        _torchvision_key("classifier.1.weight")
