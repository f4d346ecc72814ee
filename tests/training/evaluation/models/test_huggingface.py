"""Networks of transformers behind the protocol, beside what the library computes: real classes of random weights."""

import io
import pickle

import pytest
import timm
import torch
import transformers as t
from torch.nn import functional as F

from training.evaluation.models.base import FeatureModel, TextModel
from training.evaluation.models.pretrained import RawPixels, TimmFeatures, open_huggingface
from training.evaluation.models.radio import RadioFeatures
from training.evaluation.tasks.base import takes_sizes


SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT = {**SIZES, "image_size": 64, "patch_size": 16}
DINOV2 = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 16, "image_size": 64}
CONV = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
SWIN = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 2, "image_size": 64}
SQUARE = {"size": {"height": 64, "width": 64}}
SHORTEST = {"size": {"shortest_edge": 64}}
EDGE = {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}}


def sam_config():
    vision = {**VIT, "mlp_dim": 48, "output_channels": 16, "initializer_range": 0.02, "window_size": 2}
    vision.pop("intermediate_size")
    return t.SamConfig(vision_config={**vision, "global_attn_indexes": [1]})


# By model type: the library's model, and the processor that it is published with.
MODELS = {
    "vit": lambda: (t.ViTModel(t.ViTConfig(**VIT)), t.ViTImageProcessor(**SQUARE)),
    "deit": lambda: (
        t.DeiTModel(t.DeiTConfig(**VIT)),
        t.DeiTImageProcessor(size={"height": 72, "width": 72}, crop_size=64),
    ),
    "beit": lambda: (t.BeitModel(t.BeitConfig(**VIT, use_relative_position_bias=True)), t.BeitImageProcessor(**SQUARE)),
    "data2vec-vision": lambda: (t.Data2VecVisionModel(t.Data2VecVisionConfig(**VIT)), t.BeitImageProcessor(**SQUARE)),
    "vit_msn": lambda: (t.ViTMSNModel(t.ViTMSNConfig(**VIT)), t.ViTImageProcessor(**SQUARE)),
    "vit_mae": lambda: (t.ViTMAEModel(t.ViTMAEConfig(**VIT)), t.ViTImageProcessor(**SQUARE)),
    "ijepa": lambda: (t.IJepaModel(t.IJepaConfig(**VIT)), t.ViTImageProcessor(**SQUARE)),
    "swin": lambda: (t.SwinModel(t.SwinConfig(**SWIN)), t.ViTImageProcessor(**SQUARE)),
    "swinv2": lambda: (t.Swinv2Model(t.Swinv2Config(**SWIN)), t.ViTImageProcessor(**SQUARE)),
    "convnext": lambda: (
        t.ConvNextModel(t.ConvNextConfig(**CONV)),
        t.ConvNextImageProcessor(size={"shortest_edge": 64}),
    ),
    "dinov3_convnext": lambda: (
        t.DINOv3ConvNextModel(t.DINOv3ConvNextConfig(**CONV)),
        t.DINOv3ViTImageProcessor(**SQUARE),
    ),
    "resnet": lambda: (
        t.ResNetModel(t.ResNetConfig(embedding_size=8, **CONV)),
        t.ConvNextImageProcessor(size={"shortest_edge": 64}),
    ),
    "dinov2": lambda: (t.Dinov2Model(t.Dinov2Config(**DINOV2)), t.BitImageProcessor(**EDGE)),
    "dinov2_with_registers": lambda: (
        t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**DINOV2)),
        t.BitImageProcessor(**EDGE),
    ),
    "dinov3_vit": lambda: (
        t.DINOv3ViTModel(t.DINOv3ViTConfig(**VIT, num_register_tokens=4)),
        t.DINOv3ViTImageProcessor(**SQUARE),
    ),
    "clip": lambda: (
        t.CLIPModel(t.CLIPConfig(vision_config=VIT, text_config=SIZES, projection_dim=24)),
        t.CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=64),
    ),
    "siglip": lambda: (
        t.SiglipModel(t.SiglipConfig(vision_config=VIT, text_config=SIZES)),
        t.SiglipImageProcessor(**SQUARE),
    ),
    "siglip_vision_model": lambda: (t.SiglipVisionModel(t.SiglipVisionConfig(**VIT)), t.SiglipImageProcessor(**SQUARE)),
    "metaclip_2": lambda: (
        t.MetaClip2Model(t.MetaClip2Config(vision_config=VIT, text_config=SIZES, projection_dim=24)),
        t.CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=64),
    ),
    "tipsv2": lambda: (
        t.Tipsv2Model(t.Tipsv2Config(vision_config=DINOV2, text_config={**SIZES, "vocab_size": 50})),
        t.Tipsv2ImageProcessor(**SQUARE),
    ),
    "sam": lambda: (t.SamModel(sam_config()), t.SamImageProcessor(size={"longest_edge": 64}, pad_size=SQUARE["size"])),
}


def grid(tokens, prefix, rows=4, cols=4):
    return tokens[:, prefix:].transpose(1, 2).unflatten(2, (rows, cols))


def of_class_token(model, pixels, prefix=1):
    tokens = model(pixels).last_hidden_state
    return tokens[:, 0], grid(tokens, prefix)


def of_map(model, pixels):
    output = model(pixels)
    return output.pooler_output.flatten(1), output.last_hidden_state


def of_pooled(model, pixels, prefix=0, side=4):
    output = model(pixels)
    return output.pooler_output, grid(output.last_hidden_state, prefix, side, side)


def of_mean_tokens(model, pixels, prefix=1):
    tokens = model(pixels).last_hidden_state
    return tokens[:, prefix:].mean(1), grid(tokens, prefix)


def of_masked_autoencoder(model, pixels):
    model.config.mask_ratio = 0.0
    model.embeddings.config.mask_ratio = 0.0
    output = model(pixels)
    # Shuffled; each token is put back in its place.
    tokens = output.last_hidden_state[:, 1:].gather(1, output.ids_restore[:, :, None].expand(-1, -1, 32))
    return output.last_hidden_state[:, 0], grid(tokens, 0)


def of_clip(model, pixels):
    tokens = model.vision_model(pixels).last_hidden_state
    summary = model.get_image_features(pixels).pooler_output
    return summary, grid(model.vision_model.post_layernorm(tokens), 1)


def of_sam(model, pixels):
    tower, kept = model.vision_encoder, {}
    hook = tower.neck.register_forward_pre_hook(lambda _, inputs: kept.update(trunk=inputs[0]))
    tower(pixels)
    hook.remove()
    return None, kept["trunk"].movedim(-1, 1)


EXPECTED = {
    "vit": of_class_token,
    "deit": lambda model, pixels: of_class_token(model, pixels, 2),
    "beit": lambda model, pixels: of_pooled(model, pixels, 1),
    "data2vec-vision": of_mean_tokens,
    "vit_msn": of_class_token,
    "vit_mae": of_masked_autoencoder,
    "ijepa": lambda model, pixels: of_mean_tokens(model, pixels, 0),
    "swin": lambda model, pixels: of_pooled(model, pixels, 0, 2),
    "swinv2": lambda model, pixels: of_pooled(model, pixels, 0, 2),
    "convnext": of_map,
    "dinov3_convnext": lambda model, pixels: of_pooled(model, pixels, 1, 2),
    "resnet": of_map,
    "dinov2": of_class_token,
    "dinov2_with_registers": lambda model, pixels: of_class_token(model, pixels, 5),
    "dinov3_vit": lambda model, pixels: of_class_token(model, pixels, 5),
    "clip": of_clip,
    "siglip": lambda model, pixels: of_pooled(model.vision_model, pixels),
    "siglip_vision_model": of_pooled,
    "metaclip_2": lambda model, pixels: of_pooled(model.vision_model, pixels, 1),
    "tipsv2": lambda model, pixels: of_class_token(model.vision_model, pixels, 2),
    "sam": of_sam,
}


def save(folder, kind):
    torch.manual_seed(0)
    model, processor = MODELS[kind]()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # all 0 as they are made
            torch.nn.init.normal_(parameter, std=0.1)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


def picture(height=80, width=100):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


@pytest.mark.parametrize("kind", MODELS)
def test_summary_features_and_preprocessing_are_the_librarys_own(kind, tmp_path):
    model, processor = save(tmp_path, kind)
    opened = open_huggingface(tmp_path, name=kind)
    assert isinstance(opened, FeatureModel)
    assert (opened.name, opened.size_px) == (kind, 64)
    image = picture()
    pixels = opened.preprocess(image)
    torch.testing.assert_close(pixels, processor(image, return_tensors="pt")["pixel_values"][0])
    batch = torch.stack([pixels, opened.preprocess(picture())])
    with torch.no_grad():
        summary, features = EXPECTED[kind](model, batch)
    encoding = opened.encode(batch)
    assert opened.patch_size == 64 // features.shape[-1]
    torch.testing.assert_close(encoding.features, features, atol=1e-5, rtol=1e-4)
    assert features[0].std(dim=(-1, -2)).max() > 1e-3  # places differ
    if summary is None:
        assert encoding.summary is None
    else:
        torch.testing.assert_close(encoding.summary, summary, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["vit", "swin", "convnext", "dinov2", "clip", "siglip"])
def test_a_chosen_size_shows_the_whole_image(kind, tmp_path):
    _, processor = save(tmp_path, kind)
    opened = open_huggingface(tmp_path, name=kind)
    image = picture(128, 192)
    pixels = opened.preprocess(image, 128)
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    torch.testing.assert_close(pixels, (image / 255 - mean) / std, atol=1e-5, rtol=1e-5)
    features = opened.encode(pixels[None]).features
    assert features.shape[2:] == (128 // opened.patch_size, 192 // opened.patch_size)
    assert open_huggingface(tmp_path, name=kind, size_px=128).preprocess(image).shape == (3, 128, 192)


def test_flexible_siglip2_sees_what_its_processor_makes(tmp_path):
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
    with torch.no_grad():
        expected = model.get_image_features(**inputs).pooler_output
        tokens = model.vision_model(**inputs).last_hidden_state
    encoding = opened.encode(pixels[None])
    torch.testing.assert_close(encoding.summary, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoding.features, grid(tokens[:, :15], 0, 3, 5), atol=1e-5, rtol=1e-4)
    assert opened.preprocess(picture(64, 96), 64).shape == (3, 64, 96)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_texts_of_dual_encoders(kind, tmp_path, build_dual_encoder, word_tokenizer):
    model = build_dual_encoder(kind, 16)
    model.save_pretrained(tmp_path)
    word_tokenizer.save_pretrained(tmp_path)
    t.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
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
    opened = open_huggingface(tmp_path, name="bare")
    pixels = opened.preprocess(picture())[None]
    with torch.no_grad():
        expected = model(pixels).last_hidden_state[:, 1:].mean(1)
    torch.testing.assert_close(opened.encode(pixels).summary, expected, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_read_is_refused_by_class(tmp_path):
    config = t.YolosConfig(**{**VIT, "image_size": [64, 64]}, num_detection_tokens=5)
    t.YolosModel(config).save_pretrained(tmp_path)
    t.ViTImageProcessor(**SQUARE).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"YolosModel must be a map or tokens on the grid .* got .* Teach it to"):
        open_huggingface(tmp_path, name="yolos")


def test_models_of_texts_are_refused(tmp_path):
    t.BertModel(t.BertConfig(**SIZES)).save_pretrained(tmp_path)
    t.ViTImageProcessor(**SQUARE).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="BertModel must take images, got one that takes input_ids"):
        open_huggingface(tmp_path, name="bert")


def test_missing_weights_are_refused(tmp_path):
    t.ViTModel(t.ViTConfig(**VIT)).save_pretrained(tmp_path)
    t.ViTConfig(**VIT | {"num_hidden_layers": 3}).save_pretrained(tmp_path)
    t.ViTImageProcessor(**SQUARE).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not a complete ViTModel: it lacks "):
        open_huggingface(tmp_path, name="vit")


def test_sizes_that_a_network_does_not_take(tmp_path):
    save(tmp_path, "sam")
    with pytest.raises(ValueError, match="`size` must be 64 for 'mine', its only one, got 96"):
        open_huggingface(tmp_path, name="mine", size_px=96)
    assert not takes_sizes(open_huggingface(tmp_path, name="mine")), "it is not asked for its consistency over sizes"
    t.Aimv2VisionModel(t.Aimv2VisionConfig(**VIT)).save_pretrained(tmp_path / "fixed")
    t.ViTImageProcessor(**SQUARE).save_pretrained(tmp_path / "fixed")
    with pytest.raises(ValueError, match=r"`size` 96 px fails in Aimv2VisionModel: .*Leave it out"):
        open_huggingface(tmp_path / "fixed", name="mine", size_px=96)


def test_the_fingerprint_knows_weights_preprocessing_and_precision(tmp_path):
    save(tmp_path, "vit")
    first = open_huggingface(tmp_path, name="one").fingerprint()
    assert open_huggingface(tmp_path, name="two").fingerprint() == first
    others = [
        open_huggingface(tmp_path, name="one", **option).fingerprint()
        for option in ({"size_px": 96}, {"dtype": torch.bfloat16})
    ]
    t.ViTImageProcessor(**SQUARE, image_mean=[0, 0, 0]).save_pretrained(tmp_path)
    others.append(open_huggingface(tmp_path, name="one").fingerprint())
    assert len({first, *others}) == 4


@pytest.mark.parametrize("kind", ["vit", "clip"])
def test_the_fingerprint_knows_the_configuration_and_no_folder(kind, tmp_path):
    folders = [tmp_path / "one", tmp_path / "two", tmp_path / "other"]
    model, processor = save(folders[0], kind)
    for folder in folders[1:]:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        (model.config.vision_config if kind == "clip" else model.config).layer_norm_eps = 0.1
    one, two, other = (open_huggingface(folder, name="mine").fingerprint() for folder in folders)
    assert one == two != other


def test_a_checkpoint_without_pooled_output_is_known_again(tmp_path):
    model, _ = save(tmp_path, "vit")
    weights = {name: value for name, value in model.state_dict().items() if "pooler." not in name}
    assert len(weights) < len(model.state_dict())
    model.save_pretrained(tmp_path, state_dict=weights)
    first, second = (open_huggingface(tmp_path, name="mine").fingerprint() for _ in range(2))
    assert first == second


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
    else:
        opened = {
            "timm": lambda: TimmFeatures(timm.create_model("test_vit", dynamic_img_size=True).eval(), name=kind),
            "radio": lambda: RadioFeatures(tiny_model, size_px=16),
            "pixels": lambda: RawPixels(8, 16),
        }[kind]()
    sent, image = io.BytesIO(), picture()
    NoWeights(sent).dump(opened.preprocessing(size_px))
    assert torch.equal(pickle.loads(sent.getvalue())(image), opened.preprocess(image, size_px))


def test_autocast_computes_in_its_type(tmp_path):
    save(tmp_path, "vit")
    opened = open_huggingface(tmp_path, name="vit", dtype=torch.bfloat16)
    exact = open_huggingface(tmp_path, name="vit")
    pixels = exact.preprocess(picture())[None]
    difference = (opened.encode(pixels).features.float() - exact.encode(pixels).features).abs().max()
    assert 0 < difference < 0.5
