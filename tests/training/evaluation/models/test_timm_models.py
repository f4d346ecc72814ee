"""Networks of timm behind the protocol, beside what timm itself computes: real classes, random weights."""

import pytest
import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from timm.models import save_for_hf
from torchvision.transforms.v2.functional import to_pil_image

from training.evaluation.models.base import FeatureModel
from training.evaluation.models.pretrained import TimmFeatures, open_timm


def picture(height=200, width=240):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


def grid(tokens, prefix, side):
    return tokens[:, prefix:].transpose(1, 2).unflatten(2, (side, side))


# timm's own small networks for tests, and a Swin whose maps have their channels last.
NETWORKS = {
    "test_vit": (16, 160, lambda hidden: grid(hidden, 1, 10)),
    "test_vit2": (16, 160, lambda hidden: grid(hidden, hidden.shape[1] - 100, 10)),
    "test_convnext": (32, 160, lambda hidden: hidden),
    "test_resnet": (32, 160, lambda hidden: hidden),
    "test_efficientnet": (32, 160, lambda hidden: hidden),
    "swin": (32, 224, lambda hidden: hidden.movedim(-1, 1)),
}


def build(name):
    torch.manual_seed(0)
    if name == "swin":
        sizes = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "strict_img_size": False}
        return timm.create_model("swin_tiny_patch4_window7_224", **sizes).eval()
    return timm.create_model(name, **({"dynamic_img_size": True} if "vit" in name else {})).eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_summary_features_and_preprocessing_are_timms_own(name):
    network, (stride, side, maps_of) = build(name), NETWORKS[name]
    opened = TimmFeatures(network, name=name)
    assert isinstance(opened, FeatureModel)
    assert (opened.patch_size, opened.size_px) == (stride, side)
    image = picture()
    transform = create_transform(**resolve_model_data_config(network), is_training=False)
    pixels = opened.preprocess(image)
    assert torch.equal(pixels, transform(to_pil_image(image)))
    with torch.no_grad():
        hidden = network.forward_features(pixels[None])
        summary = network.forward_head(hidden, pre_logits=True)
    encoding = opened.encode(pixels[None])
    assert torch.equal(encoding.summary, summary)
    assert torch.equal(encoding.features, maps_of(hidden))
    assert encoding.features[0].std(dim=(1, 2)).max() > 1e-5  # places differ


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "swin"])
def test_a_chosen_size_shows_the_whole_image(name):
    opened = TimmFeatures(build(name), name=name)
    image = picture(96, 128)
    pixels = opened.preprocess(image, 96)
    mean, std = (torch.tensor(opened.data_config[key])[:, None, None] for key in ("mean", "std"))
    torch.testing.assert_close(pixels, (image / 255 - mean) / std)
    features = opened.encode(pixels[None]).features
    assert features.shape[2:] == (96 // opened.patch_size, 128 // opened.patch_size)


def save(folder, name):
    """Write a folder as timm's do on the Hub."""
    network = build(name)
    network.pretrained_cfg |= {"mean": (0.4, 0.5, 0.6), "crop_pct": 1.0, "interpolation": "bilinear"}
    save_for_hf(network, folder, model_args={"img_size": 160}, safe_serialization=True)
    return network


def test_folders_open_with_their_own_weights_and_settings(tmp_path):
    network = save(tmp_path, "test_vit")
    opened = open_timm(f"local-dir:{tmp_path}", pretrained=True, name="mine", size_px=96)
    assert opened.data_config["mean"] == [0.4, 0.5, 0.6]
    pixels = opened.preprocess(picture(96, 96))[None]
    with torch.no_grad():
        assert torch.equal(opened.encode(pixels).features, grid(network.forward_features(pixels), 1, 6))
    assert opened.fingerprint() != open_timm(f"local-dir:{tmp_path}", pretrained=True, name="mine").fingerprint()


def test_activations_are_of_the_fingerprint():
    """timm publishes OpenAI's weights under GELU and under QuickGELU."""
    names = ("vit_base_patch32_clip_224", "vit_base_patch32_clip_quickgelu_224")
    sizes = {"embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 0, "dynamic_img_size": True}
    networks = [timm.create_model(name, **sizes).eval() for name in names]
    networks[1].load_state_dict(networks[0].state_dict())
    same, first, second = (TimmFeatures(network, name="a").fingerprint() for network in (networks[0], *networks))
    assert same == first != second


def test_names_that_timm_does_not_know():
    with pytest.raises(ValueError, match=r"timm does not open 'vit_tyni': Unknown model .* See `timm.list_models\(\)`"):
        open_timm("vit_tyni", pretrained=False, name="mine")


def test_networks_of_one_size_refuse_others():
    with pytest.raises(ValueError, match=r"`size` 96 px fails in EfficientFormerV2: .*Leave it out"):
        open_timm("efficientformerv2_s0", pretrained=False, name="mine", size_px=96)
