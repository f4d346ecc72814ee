"""Networks of transformers and timm beside what their libraries compute (real classes, random weights); baselines."""

import copy
import io
import pickle

import pytest
import timm
import torch
import transformers as t
from timm.data import create_transform, resolve_model_data_config
from timm.models import save_for_hf
from torch.nn import functional as F
from torchvision.transforms.v2.functional import to_pil_image

from modeling_radio.evaluation.models.pretrained import (
    RawPixels,
    TimmFeatures,
    open_huggingface,
    open_timm,
    random_network,
)
from modeling_radio.evaluation.models.radio import RadioFeatures
from modeling_radio.metrics.feature_model import FeatureModel, TextModel


SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT = {**SIZES, "image_size": 64, "patch_size": 16}
DINOV2 = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 16, "image_size": 64}
CONV = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
SWIN = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 2, "image_size": 64}
SAM = {key: value for key, value in VIT.items() if key != "intermediate_size"} | {
    "mlp_dim": 48,
    "output_channels": 16,
    "initializer_range": 0.02,
    "window_size": 2,
    "global_attn_indexes": [1],
}
TOWERS = {"vision_config": VIT, "text_config": SIZES}
DUAL = TOWERS | {"projection_dim": 24}
TIPS = {"vision_config": DINOV2, "text_config": {**SIZES, "vocab_size": 50}}
SQUARE = {"size": {"height": 64, "width": 64}}
SHORTEST, LONGEST = {"size": {"shortest_edge": 64}}, {"size": {"longest_edge": 64}}
EDGE = {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}}


def grid(tokens, prefix, rows=4, cols=4):
    return tokens[:, prefix:].transpose(1, 2).unflatten(2, (rows, cols))


def class_token(prefix):
    def read(model, pixels):
        tokens = model(pixels).last_hidden_state
        return tokens[:, 0], grid(tokens, prefix)

    return read


def pooled(prefix, side=4):
    def read(model, pixels):
        output = model(pixels)
        return output.pooler_output, grid(output.last_hidden_state, prefix, side, side)

    return read


def of_vision(read):
    return lambda model, pixels: read(model.vision_model, pixels)


def read_map(model, pixels):
    output = model(pixels)
    return output.pooler_output.flatten(1), output.last_hidden_state


def read_tokens_alone(model, pixels):
    tokens = model(pixels).last_hidden_state
    return tokens.mean(1), grid(tokens, 0)


def read_masked_autoencoder(model, pixels):
    model.config.mask_ratio = model.embeddings.config.mask_ratio = 0.0
    output = model(pixels)
    # Its patches are shuffled; each is put back in its place.
    tokens = output.last_hidden_state[:, 1:].gather(1, output.ids_restore[:, :, None].expand(-1, -1, 32))
    return output.last_hidden_state[:, 0], grid(tokens, 0)


def read_clip(model, pixels):
    tokens = model.vision_model(pixels).last_hidden_state
    return model.get_image_features(pixels).pooler_output, grid(model.vision_model.post_layernorm(tokens), 1)


def read_sam(model, pixels):
    tower, kept = model.vision_encoder, {}
    hook = tower.neck.register_forward_pre_hook(lambda _, inputs: kept.update(trunk=inputs[0]))
    tower(pixels)
    hook.remove()
    return None, kept["trunk"].movedim(-1, 1)


# By model type: the library's model and its settings, its published processor, and what the library computes.
MODELS = {
    "vit": ("ViT", VIT, t.ViTImageProcessor(**SQUARE), class_token(1)),
    "deit": ("DeiT", VIT, t.DeiTImageProcessor(size={"height": 72, "width": 72}, crop_size=64), class_token(2)),
    "beit": ("Beit", VIT | {"use_relative_position_bias": True}, t.BeitImageProcessor(**SQUARE), pooled(1)),
    "vit_mae": ("ViTMAE", VIT, t.ViTImageProcessor(**SQUARE), read_masked_autoencoder),
    "ijepa": ("IJepa", VIT, t.ViTImageProcessor(**SQUARE), read_tokens_alone),
    "swin": ("Swin", SWIN, t.ViTImageProcessor(**SQUARE), pooled(0, 2)),
    "dinov3_convnext": ("DINOv3ConvNext", CONV, t.DINOv3ViTImageProcessor(**SQUARE), pooled(1, 2)),
    "resnet": ("ResNet", CONV | {"embedding_size": 8}, t.ConvNextImageProcessor(**SHORTEST), read_map),
    "dinov2_with_registers": ("Dinov2WithRegisters", DINOV2, t.BitImageProcessor(**EDGE), class_token(5)),
    "clip": ("CLIP", DUAL, t.CLIPImageProcessor(**SHORTEST, crop_size=64), read_clip),
    "siglip": (
        "Siglip",
        {"vision_config": VIT, "text_config": SIZES},
        t.SiglipImageProcessor(**SQUARE),
        of_vision(pooled(0)),
    ),
    "metaclip_2": ("MetaClip2", DUAL, t.CLIPImageProcessor(**SHORTEST, crop_size=64), of_vision(pooled(1))),
    "tipsv2": ("Tipsv2", TIPS, t.Tipsv2ImageProcessor(**SQUARE), of_vision(class_token(2))),
    "sam": ("Sam", {"vision_config": SAM}, t.SamImageProcessor(**LONGEST, pad_size=SQUARE["size"]), read_sam),
}


def build(name, settings):
    torch.manual_seed(0)
    return getattr(t, f"{name}Model")(getattr(t, f"{name}Config")(**settings))


def save(folder, kind):
    name, settings, processor, _ = MODELS[kind]
    model = build(name, settings)
    for key, parameter in model.named_parameters():
        if key.endswith("bias"):  # all 0 as they are made
            torch.nn.init.normal_(parameter, std=0.1)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


def picture(height=80, width=100):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


@pytest.mark.parametrize("kind", MODELS)
def test_summary_features_and_preprocessing_are_those_of_transformers(kind, tmp_path):
    model, processor = save(tmp_path, kind)
    opened = open_huggingface(tmp_path, name=kind)
    assert isinstance(opened, FeatureModel)
    assert (opened.name, opened.size_px) == (kind, 64)
    image = picture()
    pixels = opened.preprocess(image)
    torch.testing.assert_close(pixels, processor(image, return_tensors="pt")["pixel_values"][0])
    batch = torch.stack([pixels, opened.preprocess(picture())])
    encoding = opened.encode(batch)
    with torch.no_grad():
        summary, features = MODELS[kind][3](model, batch)
    assert opened.patch_size == 64 // features.shape[-1]
    assert features[0].std(dim=(-1, -2)).max() > 1e-3  # positions differ
    torch.testing.assert_close(encoding.features, features, atol=1e-5, rtol=1e-4)
    if summary is None:
        assert encoding.summary is None
    else:
        torch.testing.assert_close(encoding.summary, summary, atol=1e-5, rtol=1e-4)
    if kind in ("vit", "swin", "clip", "siglip"):
        image = picture(128, 192)  # a chosen size shows it whole
        pixels = opened.preprocess(image, 128)
        mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
        torch.testing.assert_close(pixels, (image / 255 - mean) / std, atol=1e-5, rtol=1e-5)
        assert opened.encode(pixels[None]).features.shape[2:] == (128 // opened.patch_size, 192 // opened.patch_size)
        assert open_huggingface(tmp_path, name=kind, size_px=128).preprocess(image).shape == (3, 128, 192)


def test_flexible_siglip2_uses_the_grid_of_its_processor(tmp_path):
    torch.manual_seed(0)
    config = t.Siglip2Config(vision_config={**SIZES, "patch_size": 16, "num_patches": 16}, text_config=SIZES)
    model, processor = t.Siglip2Model(config).eval(), t.Siglip2ImageProcessor(max_num_patches=16)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    opened = open_huggingface(tmp_path, name="siglip2")
    image = picture(60, 120)
    pixels = opened.preprocess(image)
    assert pixels.shape == (3, 48, 80)
    inputs = processor(image, return_tensors="pt")
    encoding = opened.encode(pixels[None])
    with torch.no_grad():
        expected = model.get_image_features(**inputs).pooler_output
        tokens = model.vision_model(**inputs).last_hidden_state
    torch.testing.assert_close(encoding.summary, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoding.features, grid(tokens[:, :15], 0, 3, 5), atol=1e-5, rtol=1e-4)
    assert opened.preprocess(picture(64, 96), 64).shape == (3, 64, 96)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_texts_of_dual_encoders(kind, tmp_path, build_dual_encoder, word_tokenizer):
    model = build_dual_encoder(kind, 16)
    for part in (model, word_tokenizer, t.SiglipImageProcessor(size={"height": 32, "width": 32})):
        part.save_pretrained(tmp_path)
    opened = open_huggingface(tmp_path, name=kind)
    assert isinstance(opened, TextModel)
    assert opened.text_adaptor is None
    texts = ["a photo of a cat", "dog"]
    padding = "max_length" if kind == "siglip" else True
    tokens = word_tokenizer(texts, padding=padding, max_length=16, return_tensors="pt")
    with torch.no_grad():
        expected = F.normalize(model.get_text_features(tokens["input_ids"]).pooler_output, dim=-1)
    torch.testing.assert_close(opened.embed_texts(texts), expected)
    classes = opened.embed_classes(["cat", "dog"], ["{}", "a photo of a {}"])
    assert classes.shape == expected.shape
    mean = (opened.embed_texts(["dog"]) + opened.embed_texts(["a photo of a dog"])) / 2
    torch.testing.assert_close(classes[1], F.normalize(mean[0], dim=-1))
    assert opened.encode(opened.preprocess(picture())[None]).summary.shape[1] == expected.shape[1]


def test_weights_of_a_pooled_output_need_not_be_there(tmp_path):
    torch.manual_seed(0)
    model = t.BeitModel(t.BeitConfig(**VIT), add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    t.BeitImageProcessor(**SQUARE).save_pretrained(tmp_path)
    opened, again = (open_huggingface(tmp_path, name="bare") for _ in range(2))
    assert opened.fingerprint() == again.fingerprint()
    pixels = opened.preprocess(picture())[None]
    with torch.no_grad():
        expected = model(pixels).last_hidden_state[:, 1:].mean(1)
    torch.testing.assert_close(opened.encode(pixels).summary, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "settings", "changes", "message"),
    [
        ("Yolos", VIT | {"image_size": [64, 64], "num_detection_tokens": 5}, {}, "YolosModel must be a map or tokens"),
        ("Bert", SIZES, {}, "BertModel must take images"),
        ("ViT", VIT, {"num_hidden_layers": 3}, "not a complete ViTModel"),
        ("Sam", {"vision_config": SAM}, {}, "`size` must be 64"),
        ("Aimv2Vision", VIT, {}, "`size` 96 px fails in Aimv2VisionModel"),
    ],
)
def test_folders_that_are_refused(name, settings, changes, message, tmp_path):
    build(name, settings).save_pretrained(tmp_path)
    getattr(t, f"{name}Config")(**settings | changes).save_pretrained(tmp_path)
    (MODELS["sam"] if name == "Sam" else MODELS["vit"])[2].save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        open_huggingface(tmp_path, name="mine", size_px=96)
    if name == "Sam":
        assert not open_huggingface(tmp_path, name="mine").runs_at_any_size


@pytest.mark.parametrize("kind", ["vit", "clip"])
def test_the_fingerprint_knows_what_decides_the_features_and_no_name(kind, tmp_path):
    model, processor = save(tmp_path / "one", kind)
    for folder in ("two", "other"):
        model.save_pretrained(tmp_path / folder)
        processor.save_pretrained(tmp_path / folder)
        (model.config.vision_config if kind == "clip" else model.config).layer_norm_eps = 0.1
    one, two, other = (open_huggingface(tmp_path / name, name=name).fingerprint() for name in ("one", "two", "other"))
    assert one == two != other
    options = ({"size_px": 96}, {"dtype": torch.bfloat16})
    found = [open_huggingface(tmp_path / "one", name="one", **each).fingerprint() for each in options]
    processor = copy.deepcopy(processor)
    processor.image_mean = [0.0, 0.0, 0.0]
    processor.save_pretrained(tmp_path / "one")
    found.append(open_huggingface(tmp_path / "one", name="one").fingerprint())
    assert len({one, *found}) == 4


class NoWeights(pickle.Pickler):
    """Refuses tensors but means and deviations of colors."""

    def persistent_id(self, value):
        assert not isinstance(value, torch.Tensor) or value.numel() <= 3


@pytest.mark.parametrize("size_px", [None, 96])
@pytest.mark.parametrize("kind", ["clip", "vit", "timm", "radio", "pixels"])
def test_processes_that_prepare_images_get_no_network(kind, size_px, tmp_path, tiny_model):
    """Where they are spawned they get a pickled copy."""
    if kind in ("clip", "vit"):
        save(tmp_path, kind)
        opened = open_huggingface(tmp_path, name=kind)
    elif kind == "timm":
        opened = TimmFeatures(build_timm("test_vit"), name=kind)
    else:
        opened = RadioFeatures(tiny_model, size_px=16) if kind == "radio" else RawPixels(8, 16)
    sent, image = io.BytesIO(), picture()
    NoWeights(sent).dump(opened.preprocessing(size_px))
    assert torch.equal(pickle.loads(sent.getvalue())(image), opened.preprocess(image, size_px))


# timm's own small networks for tests, and a Swin whose maps have their channels last.
TIMM = {
    "test_vit": (16, 160, lambda hidden: grid(hidden, 1, 10, 10)),
    "test_vit2": (16, 160, lambda hidden: grid(hidden, hidden.shape[1] - 100, 10, 10)),
    "test_convnext": (32, 160, lambda hidden: hidden),
    "test_efficientnet": (32, 160, lambda hidden: hidden),
    "swin": (32, 224, lambda hidden: hidden.movedim(-1, 1)),
}


def build_timm(name):
    torch.manual_seed(0)
    if name == "swin":
        sizes = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "strict_img_size": False}
        return timm.create_model("swin_tiny_patch4_window7_224", **sizes).eval()
    return timm.create_model(name, **({"dynamic_img_size": True} if "vit" in name else {})).eval()


@pytest.mark.parametrize("name", TIMM)
def test_summary_features_and_preprocessing_are_those_of_timm(name):
    network, (stride, side, maps_of) = build_timm(name), TIMM[name]
    opened = TimmFeatures(network, name=name)
    assert isinstance(opened, FeatureModel)
    assert (opened.patch_size, opened.size_px) == (stride, side)
    image = picture(192, 256)
    pixels = opened.preprocess(image)
    transform = create_transform(**resolve_model_data_config(network), is_training=False)
    assert torch.equal(pixels, transform(to_pil_image(image)))
    encoding = opened.encode(pixels[None])
    with torch.no_grad():
        hidden = network.forward_features(pixels[None])
        assert torch.equal(encoding.summary, network.forward_head(hidden, pre_logits=True))
    assert torch.equal(encoding.features, maps_of(hidden))
    assert encoding.features[0].std(dim=(1, 2)).max() > 1e-5  # positions differ
    whole = opened.preprocess(image, 192)
    mean, std = (torch.tensor(opened.data_config[key])[:, None, None] for key in ("mean", "std"))
    torch.testing.assert_close(whole, (image / 255 - mean) / std)
    assert opened.encode(whole[None]).features.shape[2:] == (192 // stride, 256 // stride)


def test_folders_of_timm_open_with_their_own_weights_and_settings(tmp_path):
    network = build_timm("test_vit")
    network.pretrained_cfg |= {"mean": (0.4, 0.5, 0.6), "crop_pct": 1.0, "interpolation": "bilinear"}
    save_for_hf(network, tmp_path, model_args={"img_size": 160}, safe_serialization=True)
    opened = open_timm(f"local-dir:{tmp_path}", pretrained=True, name="mine", size_px=96)
    assert opened.data_config["mean"] == [0.4, 0.5, 0.6]
    pixels = opened.preprocess(picture(96, 96))[None]
    with torch.no_grad():
        assert torch.equal(opened.encode(pixels).features, grid(network.forward_features(pixels), 1, 6, 6))
    assert opened.fingerprint() != open_timm(f"local-dir:{tmp_path}", pretrained=True, name="mine").fingerprint()


@pytest.mark.parametrize(
    ("name", "message"),
    [("vit_tyni", "'vit_tyni'"), ("efficientformerv2_s0", "`size` 96 px fails in EfficientFormerV2")],
)
def test_networks_of_timm_that_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        open_timm(name, pretrained=False, name="mine", size_px=96)


def test_raw_pixels_keep_every_pixel_of_a_patch():
    model = RawPixels(patch_size=8, size_px=16)
    assert isinstance(model, FeatureModel)
    image = torch.arange(3 * 16 * 24).reshape(3, 16, 24).remainder(256).to(torch.uint8)
    encoding = model.encode(model.preprocess(image)[None])
    assert encoding.summary.shape == (1, 3 * 32 * 32)
    patch = encoding.features[0, :, 1, 2]
    assert torch.equal((patch * 255).round().to(torch.uint8), image[:, 8:16, 16:24].flatten())
    assert model.preprocess(picture(64, 100)).shape == (3, 16, 24)
    assert model.preprocess(picture(64, 100), 32).shape == (3, 32, 48)


def test_a_random_network_depends_on_its_seed_and_disturbs_no_other(tiny_model):
    before = torch.random.get_rng_state()
    models = [random_network(tiny_model.config, size_px=32, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(before, torch.random.get_rng_state())
    pixels = torch.rand(1, 3, 32, 32)
    one, same, other = (model.encode(pixels).summary for model in models)
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)
    assert models[0].adaptor_names == ()
    assert random_network(tiny_model.config, size_px=32, device=torch.device("meta")).device.type == "meta"


def test_autocast_changes_the_features_a_little(tmp_path):
    save(tmp_path, "vit")
    exact, rough = (open_huggingface(tmp_path, name="vit", dtype=dtype) for dtype in (None, torch.bfloat16))
    pixels = exact.preprocess(picture())[None]
    assert 0 < (rough.encode(pixels).features.float() - exact.encode(pixels).features).abs().max() < 0.5
