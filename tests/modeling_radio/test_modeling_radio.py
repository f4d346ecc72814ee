"""The common contract of a transformers model, over every shape of network that the presets use."""

import pytest
import torch
from refusals import refused
from releases import needs_native_packs
from task_models import NETWORKS, build_network
from torch.nn import functional as F
from transformers import BitsAndBytesConfig
from transformers.models.radio import RadioModel as NativeRadioModel

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.modeling_radio import RadioNetwork


def images(model: RadioModel, batch_size: int = 2, rows: int = 5, cols: int = 7) -> torch.Tensor:
    return torch.rand(batch_size, 3, rows * model.patch_size, cols * model.patch_size)


@pytest.fixture(params=list(NETWORKS))
def family(request) -> str:
    return request.param


@pytest.fixture
def model(family) -> RadioModel:
    return build_network(family)


def test_shapes(model):
    config, batch = model.config, images(model)
    out = model(batch, feature_format="NCHW")
    assert out.summary.shape == (2, len(config.summary_idxs) * config.hidden_size)
    assert out.features.shape == (2, config.hidden_size, 5, 7)
    assert out.last_hidden_state.shape == (2, config.num_prefix_tokens + 35, config.hidden_size)
    assert out.pooler_output is out.summary
    assert out[0] is out.summary
    assert out[1] is out.features
    for adaptor in config.adaptor_configs:
        predicted = out.adaptors[adaptor.name]
        scale = adaptor.upsample_factor
        assert predicted.features.shape == (2, adaptor.feature_dim, 5 * scale, 7 * scale)
        assert (predicted.summary is None) == (adaptor.summary_dim is None)


def test_weights_are_initialized_from_the_meta_device(family, tmp_path):
    """Parameters that a checkpoint lacks are initialized as in a new model, buffers included."""
    from safetensors.torch import load_file, save_file

    model = build_network(family)
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    kept = [key for number, key in enumerate(sorted(state)) if number % 3]  # a folder without most is another model's
    save_file({key: state[key] for key in kept}, tmp_path / "model.safetensors", {"format": "pt"})
    loaded = RadioModel.from_pretrained(tmp_path)
    for name, value in loaded.state_dict().items():
        assert value.isfinite().all(), name
        assert value.abs().max() < 10, name
    torch.testing.assert_close(
        loaded.radio_model.input_conditioner.norm_mean, model.radio_model.input_conditioner.norm_mean
    )
    assert loaded.radio_model.summary_idxs.tolist() == model.config.summary_idxs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_float32(model, dtype):
    batch = images(model)
    with torch.no_grad():
        expected = model(batch).features
        half = model.to(dtype)(batch)
    assert half.features.dtype == dtype
    cosine = torch.nn.functional.cosine_similarity(half.features.float(), expected, dim=-1)
    assert cosine.min() > 0.99


@pytest.mark.parametrize("options", [{"load_in_4bit": True}, {"load_in_8bit": True}], ids=["4 bits", "8 bits"])
@pytest.mark.parametrize("family", ["c-radio_v4", "c-radio_v4-1d"])
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
def test_quantized_by_bitsandbytes_is_near_float32(options, family, tmp_path):
    pytest.importorskip("bitsandbytes")
    model = build_network(family, hidden_size=64, adaptors=[])  # one block of NF4
    model.save_pretrained(tmp_path / "whole")
    quantized = RadioModel.from_pretrained(tmp_path / "whole", quantization_config=BitsAndBytesConfig(**options))
    batch = images(model)
    quantized.save_pretrained(tmp_path / "before")
    with torch.no_grad():
        expected, actual = model(batch).features, quantized(batch).features
        quantized.save_pretrained(tmp_path / "after")  # bitsandbytes alone would have packed 4 bits anew on many CPUs
        assert torch.equal(quantized(batch).features, actual)
        for saved in ("before", "after"):
            assert torch.equal(RadioModel.from_pretrained(tmp_path / saved)(batch).features, actual)
    assert not torch.equal(actual, expected)
    assert torch.nn.functional.cosine_similarity(actual, expected, dim=-1).mean() > 0.95


@torch.no_grad()
@pytest.mark.parametrize("name", ["c-radio_v4", "radio_v2.5"])
def test_images_as_clip_encodes_them(name):
    model = build_network(name)
    batch = images(model)
    named = model(batch, output_hidden_states=True)
    found = model.get_image_features(pixel_values=batch, output_hidden_states=True)
    torch.testing.assert_close(found.pooler_output, named.summary)
    assert found.pooler_output.shape[1] == model.config.projection_dim
    torch.testing.assert_close(found.last_hidden_state, named.last_hidden_state)
    torch.testing.assert_close(found.hidden_states, named.hidden_states)
    with pytest.raises(TypeError, match="pixels"):
        model.get_image_features(batch, pixels=None)


@pytest.mark.parametrize("asked", ["in the call", {"return_dict": False}, {"nvidia_outputs": True}], ids=str)
def test_pairs_instead_of_names(asked, tmp_path):
    model = build_network("c-radio_v4")
    batch, options = images(model), {}
    with torch.no_grad():
        named = model(batch)
        if asked == "in the call":
            options = {"return_dict": False}
        else:
            model.save_pretrained(tmp_path)
            model = RadioModel.from_pretrained(tmp_path, **asked).eval()
        summary, features = model(batch, adaptor_names=[], output_hidden_states=True, **options)
        pairs = model(batch, adaptor_names=["sam3", "dino_v3"], **options)
        torch.testing.assert_close(model(batch, return_dict=True).summary, named.summary)
    torch.testing.assert_close(summary, named.summary)
    torch.testing.assert_close(features, named.features)
    assert isinstance(pairs, dict)
    assert list(pairs) == ["backbone", "sam3", "dino_v3"]
    torch.testing.assert_close(pairs["backbone"], (named.summary, named.features), check_device=False)
    assert pairs["sam3"].summary is None
    torch.testing.assert_close(pairs["sam3"].features, named.adaptors["sam3"].features)
    torch.testing.assert_close(tuple(pairs["dino_v3"]), named.adaptors["dino_v3"].to_tuple())


@pytest.fixture(scope="module")
def network_model() -> RadioModel:
    return RadioModel(RadioConfig.from_preset("radio-test", drop_path_rate=0.5)).train()


@pytest.mark.parametrize("window_size", ["global", 2])
def test_an_image_trains_the_same_in_any_batch(network_model: RadioModel, window_size: str | int) -> None:
    pixel_values, draws = torch.rand(5, 3, 64, 48), torch.rand(5, network_model.num_draws)
    whole = network_model(pixel_values, window_size=window_size, draws=draws).features
    parts = [
        network_model(pixel_values[part], window_size=window_size, draws=draws[part]).features
        for part in (slice(0, 2), slice(2, 5))
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-5)


def test_draws_decide_positions_and_paths(network_model: RadioModel) -> None:
    pixel_values, draws = torch.rand(1, 3, 64, 64), torch.full((1, network_model.num_draws), 0.6)
    features = network_model(pixel_values, draws=draws).features
    for place in (0, 1, 2, 3, -1, -2):  # the crop's scale, aspect, column and row; the last block's two branches
        changed = draws.clone()
        changed[:, place] = 0.1
        assert not torch.allclose(network_model(pixel_values, draws=changed).features, features, atol=1e-4)
    assert torch.equal(network_model.eval()(pixel_values, draws=draws).features, network_model(pixel_values).features)
    network_model.train()


def test_dropped_path_keeps_the_mean() -> None:
    config = RadioConfig.from_preset("radio-test", num_hidden_layers=2, drop_path_rate=0.25)
    transformer = RadioNetwork(config).model.train()
    branch, draws = torch.ones(4, 2, 3), torch.tensor([[0.0, 0.99], [0.24, 0.25], [0.25, 0.24], [0.99, 0.0]])
    factors = transformer.path_factors(1, branch, draws[:, None])
    assert factors[:, 0, 0].tolist() == pytest.approx([0, 0, 4 / 3, 4 / 3])
    assert factors[:, 0, 1].tolist() == pytest.approx([4 / 3, 4 / 3, 0, 0])
    assert transformer.path_factors(1, torch.ones(20_000, 1, 1), None).mean((0, 1)).tolist() == pytest.approx(
        [1, 1], abs=0.02
    )
    assert transformer.path_factors(0, branch, draws) is None  # the first block's rate is 0
    assert transformer.eval().path_factors(1, branch, draws) is None


def test_wrong_draws_are_refused(network_model: RadioModel) -> None:
    refused("draws", lambda: network_model(torch.rand(2, 3, 32, 32), draws=torch.rand(2, 3)))
    patches, grids = torch.rand(6, 768), torch.tensor([[2, 2], [1, 2]])
    draws = torch.rand(6, network_model.num_draws)
    refused("draws", lambda: network_model(patches, image_grid_hw=grids, draws=draws))


@pytest.mark.parametrize("window_size", ["global", 2])
def test_packed_images_train_as_they_do_alone(window_size: str | int) -> None:
    """Their position crops and dropped paths are their own, in windowed blocks too."""
    network_model = RadioModel(RadioConfig.from_preset("radio-test", drop_path_rate=0.5, vitdet_num_global=1)).train()
    grids = torch.tensor([[3, 2], [2, 5], [3, 2]])
    draws = torch.rand(3, network_model.num_draws)
    images = [torch.rand(1, 3, 16 * rows, 16 * cols) for rows, cols in grids.tolist()]
    patches = torch.cat([F.pixel_unshuffle(image, 16).flatten(2).transpose(1, 2)[0] for image in images])
    packed = network_model(patches, image_grid_hw=grids, draws=draws, window_size=window_size)
    alone = [network_model(image, draws=draws[i : i + 1], window_size=window_size) for i, image in enumerate(images)]
    torch.testing.assert_close(packed.summary, torch.cat([each.summary for each in alone]))
    torch.testing.assert_close(packed.features, torch.cat([each.features[0] for each in alone]))
    other = network_model(patches, image_grid_hw=grids, window_size=window_size)  # draws of their own
    assert (other.summary - packed.summary).abs().amax(1).min() > 1e-4


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("window_size", ["global", 2])
def test_tokens_stay_float32_through_all_blocks_under_autocast(
    network_model: RadioModel, window_size: str | int, is_training: bool
) -> None:
    read = []
    hooks = [
        block.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].dtype))
        for block in network_model.radio_model.model.blocks
    ]
    network_model.train(is_training)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = network_model(torch.rand(2, 3, 64, 48), window_size=window_size, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    network_model.train()
    assert len(read) == network_model.config.num_hidden_layers > 2
    states = [*read, *(states.dtype for states in output.hidden_states), output.features.dtype]
    assert set(states) == {torch.float32}


@pytest.fixture(scope="module")
def network() -> RadioNetwork:
    adaptors = [{"name": "dino_v3", "feature_dim": 8, "hidden_size": 8}]
    config = RadioConfig.from_preset("radio-test", vitdet_num_windowed=1, use_final_norm=True, adaptors=adaptors)
    return RadioModel(config).radio_model.eval()


@torch.no_grad()
@pytest.mark.parametrize("window_size", [None, 2])
def test_keeps_the_blocks_that_are_asked_for_and_no_others(network: RadioNetwork, window_size: int | None) -> None:
    pixel_values = torch.rand(2, 3, 48, 80)
    everything = network(pixel_values, window_size=window_size, output_hidden_states=True)
    some = network(pixel_values, window_size=window_size, keep=[0, 3])
    assert list(some.kept) == [0, 3]
    assert some.hidden_states is None
    assert list(network(pixel_values, window_size=window_size).kept) == []
    for index, kept in some.kept.items():
        assert torch.equal(kept, everything.hidden_states[index + 1])
    assert torch.equal(some.embedded, everything.hidden_states[0])
    assert torch.equal(some.tokens, network.model.norm(some.kept[3]))
    assert (some.grid, some.pack) == ((3, 5), None)


def test_a_network_without_summary_tokens_has_an_empty_summary():
    network_model = RadioModel(RadioConfig.from_preset("radio-test", summary_idxs=[])).eval()
    assert network_model(torch.rand(2, 3, 32, 32)).summary.shape == (2, 0)


GRIDS = [(4, 6), (3, 3), (4, 6), (5, 2), (3, 3)]


@pytest.fixture
def readout_model() -> RadioModel:
    adaptors = [
        {"name": "siglip2-g", "summary_dim": 6, "feature_dim": 5, "hidden_size": 8, "feature_head": "attention",
         "feature_num_attention_heads": 2},
        {"name": "sam3", "token_index": 2, "feature_dim": 5, "hidden_size": 8, "upsample_factor": 2},
    ]  # fmt: skip
    return RadioModel(RadioConfig.from_preset("radio-test", adaptors=adaptors)).eval()


@pytest.fixture
def readout_images() -> list[torch.Tensor]:
    return [torch.rand(1, 3, rows * 16, cols * 16) for rows, cols in GRIDS]


@pytest.fixture
def packed(readout_model, readout_images) -> dict[str, torch.Tensor]:
    split = readout_model.radio_model.model.patch_generator.split_patches
    return {
        "pixel_values": torch.cat([split(image)[0] for image in readout_images]),
        "image_grid_hw": torch.tensor(GRIDS),
    }


@pytest.mark.parametrize("window_size", [None, 2, 3])
@torch.no_grad()
def test_equals_one_image_at_a_time(readout_model, readout_images, packed, window_size):
    out = readout_model(**packed, window_size=window_size, output_hidden_states=True)
    single = [readout_model(image, window_size=window_size, output_hidden_states=True) for image in readout_images]

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
def test_equals_native(readout_model, packed, tmp_path):
    readout_model.save_pretrained(tmp_path)
    native = NativeRadioModel.from_pretrained(tmp_path).eval()
    expected, actual = native(**packed), readout_model(**packed)
    for key in ("summary", "features", "last_hidden_state"):
        torch.testing.assert_close(actual[key], expected[key], rtol=0, atol=2e-6)


def test_packed_features_are_no_maps(readout_model, packed):
    with pytest.raises(ValueError, match="NLC"):
        readout_model(**packed, feature_format="NCHW")


@torch.no_grad()
def test_a_feature_normalizer_acts_on_features_and_adaptors_but_not_on_tokens(readout_model):
    config = RadioConfig.from_preset("radio-test", adaptors=readout_model.config.adaptors, use_feature_normalizer=True)
    normalized = RadioModel(config).eval()
    normalized.load_state_dict(readout_model.state_dict(), strict=False)
    normalizer = normalized.radio_model.feature_normalizer
    normalizer.mean.normal_()
    normalizer.tx.normal_()
    pixel_values = torch.rand(1, 3, 32, 48)
    plain, out = readout_model(pixel_values), normalized(pixel_values)
    expected = (plain.features - normalizer.mean) @ normalizer.tx.T
    torch.testing.assert_close(out.features, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(out.last_hidden_state, plain.last_hidden_state, rtol=0, atol=1e-6)
    adaptor = normalized.radio_model.adaptor("sam3")
    sam3 = adaptor(plain.last_hidden_state[:, : config.num_cls_tokens], expected, 2, 3).features
    torch.testing.assert_close(out.adaptors["sam3"].features, sam3, rtol=0, atol=1e-5)


@torch.no_grad()
def test_vmap_over_images():
    model = RadioModel(RadioConfig.from_preset("radio-test")).eval()
    batch = torch.rand(3, 3, 32, 48)
    found = torch.func.vmap(lambda image: model(image[None], adaptor_names=[]).summary[0])(batch)
    torch.testing.assert_close(found, model(batch).summary)
