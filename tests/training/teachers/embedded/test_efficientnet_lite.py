import pytest
import timm
import torch
from packaged import build_packaged

from core.packages import PackageUnavailableError, fetch_package
from training.data.decoding import crop_to_shape, to_tensor
from training.demo.assets import package_named
from training.demo.images import load_photograph
from training.teachers.embedded import timm_key
from training.teachers.registry import build_teacher


@pytest.mark.packages
def test_the_classifier_knows_a_cat():
    teacher = build_packaged("efficientnet-lite0")
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


def test_the_key_map_reaches_every_weight_of_the_network():
    names = set(timm.create_model("tf_efficientnet_lite0").state_dict())
    numbers = range(16)
    keys = [f"_blocks.{i}._{part}.weight" for i in numbers for part in ("depthwise_conv", "bn1", "project_conv", "bn2")]
    keys += [f"_blocks.{i}._{part}.weight" for i in numbers[1:] for part in ("expand_conv", "bn0")]
    keys += [f"{part}.weight" for part in ("_conv_stem", "_bn0", "_conv_head", "_bn1", "_fc")]
    reached = {timm_key(key) for key in keys}
    assert reached == {key for key in names if key.endswith(".weight")}


def test_random_weights_need_no_package():
    with torch.device("meta"):
        teacher = build_teacher("t", kind="efficientnet-lite0", weights="random")
        answer = teacher.answer(torch.empty(1, 3, 64, 96))
    assert (teacher.feature_dim, teacher.native_size_px) == (112, 224)
    assert (answer.features.shape, answer.summary.shape) == ((1, 112, 4, 6), (1, 1280))
    with pytest.raises(ValueError, match=r"`weights` must be one of .*, got 'none'"):
        build_teacher("t", kind="efficientnet-lite0", weights="none")
