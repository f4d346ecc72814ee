"""What is read from the tokens; packed images of different sizes give the results of one image at a time."""

import pytest
import torch
from releases import needs_native_packs
from transformers.models.radio import RadioModel as NativeRadioModel

from modeling_radio import RadioConfig, RadioModel


GRIDS = [(4, 6), (3, 3), (4, 6), (5, 2), (3, 3)]


@pytest.fixture
def model() -> RadioModel:
    adaptors = [
        {"name": "siglip2-g", "summary_dim": 6, "feature_dim": 5, "hidden_size": 8, "feature_head": "attention",
         "feature_num_attention_heads": 2},
        {"name": "sam3", "token_index": 2, "feature_dim": 5, "hidden_size": 8, "upsample_factor": 2},
    ]  # fmt: skip
    return RadioModel(RadioConfig.from_preset("radio-test", adaptors=adaptors)).eval()


@pytest.fixture
def images() -> list[torch.Tensor]:
    return [torch.rand(1, 3, rows * 16, cols * 16) for rows, cols in GRIDS]


@pytest.fixture
def packed(model, images) -> dict[str, torch.Tensor]:
    split = model.radio_model.model.patch_generator.split_patches
    return {"pixel_values": torch.cat([split(image)[0] for image in images]), "image_grid_hw": torch.tensor(GRIDS)}


@pytest.mark.parametrize("window_size", [None, 2, 3])
@torch.no_grad()
def test_equals_one_image_at_a_time(model, images, packed, window_size):
    out = model(**packed, window_size=window_size, output_hidden_states=True)
    single = [model(image, window_size=window_size, output_hidden_states=True) for image in images]

    def check(actual, expected):
        torch.testing.assert_close(actual, expected, rtol=0, atol=2e-6)

    check(out.summary, torch.cat([one.summary for one in single]))
    check(out.features, torch.cat([one.features[0] for one in single]))
    check(out.last_hidden_state, torch.cat([one.last_hidden_state[0] for one in single]))
    for index, state in enumerate(out.hidden_states):
        check(state, torch.cat([one.hidden_states[index][0] for one in single]))
    for name, adaptor in out.adaptors.items():
        check(adaptor.features, torch.cat([one.adaptors[name].features[0] for one in single]))
    check(out.adaptors["siglip2-g"].summary, torch.cat([one.adaptors["siglip2-g"].summary for one in single]))
    assert out.adaptors["sam3"].summary is None


@needs_native_packs
@torch.no_grad()
def test_equals_native(model, packed, tmp_path):
    model.save_pretrained(tmp_path)
    native = NativeRadioModel.from_pretrained(tmp_path).eval()
    expected, actual = native(**packed), model(**packed)
    for key in ("summary", "features", "last_hidden_state"):
        torch.testing.assert_close(actual[key], expected[key], rtol=0, atol=2e-6)


def test_images_of_one_grid_share_an_attention_call(model, packed, monkeypatch):
    calls = []
    attention = model.radio_model.model.blocks[0].attn
    original = attention._attend
    monkeypatch.setattr(
        attention, "_attend", lambda qkv, count, *rest: calls.append(count) or original(qkv, count, *rest)
    )
    model(**packed)
    assert calls == [2, 2, 1]


def test_gradients_reach_every_parameter(model, packed):
    out = model.train()(**packed, window_size=2)
    (out.features.square().sum() + sum(a.features.square().sum() for a in out.adaptors.values())).backward()
    without = [
        name for name, parameter in model.named_parameters() if parameter.grad is None and "head_mlp" not in name
    ]
    assert not without


def test_bad_input(model, packed):
    with pytest.raises(ValueError, match="NLC"):
        model(**packed, feature_format="NCHW")
    with pytest.raises(ValueError, match=r"must have the shape \(76, 768\)"):
        model(packed["pixel_values"][:-1], image_grid_hw=packed["image_grid_hw"])
    with pytest.raises(ValueError, match=r"\(num_images, 2\)"):
        model(packed["pixel_values"], image_grid_hw=packed["image_grid_hw"].flatten())


@torch.no_grad()
def test_reads_the_summary_and_the_features_from_the_final_tokens(model):
    pixel_values = torch.rand(2, 3, 64, 96)
    network, config = model.radio_model, model.config
    passed = network(pixel_values)
    out = network.read_out(passed)
    assert torch.equal(out.summary, passed.tokens[:, config.summary_idxs].flatten(1))
    assert torch.equal(out.features, passed.tokens[:, config.num_prefix_tokens :])
    assert out.last_hidden_state is passed.tokens
    assert out.adaptors == {}
    maps = network.read_out(passed, ["sam3"], "NCHW")
    assert torch.equal(maps.features, out.features.transpose(1, 2).unflatten(2, (4, 6)))
    assert maps.adaptors["sam3"].features.shape == (2, 5, 8, 12)


@torch.no_grad()
def test_a_feature_normalizer_acts_on_features_and_adaptors_but_not_on_tokens(model):
    config = RadioConfig.from_preset("radio-test", adaptors=model.config.adaptors, use_feature_normalizer=True)
    normalized = RadioModel(config).eval()
    normalized.load_state_dict(model.state_dict(), strict=False)
    normalizer = normalized.radio_model.feature_normalizer
    normalizer.mean.normal_()
    normalizer.tx.normal_()
    pixel_values = torch.rand(1, 3, 32, 48)
    plain, out = model(pixel_values), normalized(pixel_values)
    expected = (plain.features - normalizer.mean) @ normalizer.tx.T
    torch.testing.assert_close(out.features, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(out.last_hidden_state, plain.last_hidden_state, rtol=0, atol=1e-6)
    adaptor = normalized.radio_model.adaptor("sam3")
    sam3 = adaptor(plain.last_hidden_state[:, : config.num_cls_tokens], expected, 2, 3).features
    torch.testing.assert_close(out.adaptors["sam3"].features, sam3, rtol=0, atol=1e-5)
