"""The common contract of a transformers model, over every shape of network that the presets use."""

import pytest
import torch
from comparisons import assert_close_by_name, assert_same_weights
from transformers import BitsAndBytesConfig

from modeling_radio import RadioConfig, RadioModel


ADAPTORS = [
    {"name": "siglip2-g", "summary_dim": 24, "feature_dim": 20, "hidden_size": 40, "feature_head": "attention"},
    {"name": "dino_v3", "token_index": 1, "summary_dim": 16, "feature_dim": 16, "hidden_size": 40},
    {"name": "sam3", "token_index": 2, "feature_dim": 8, "hidden_size": 40, "upsample_factor": 2},
]
SAM_V1 = {
    "name": "sam",
    "token_index": 0,
    "summary_dim": 12,
    "feature_dim": 8,
    "hidden_size": 40,
    "mlp_version": "v1",
}
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "max_img_size": 256,
    "mlp_ratio": 4.0,
}
FAMILIES = {
    "radio_v2": {"preset": "radio_v2.5-h", "num_registers": 0, "use_cropped_positions": False, "adaptors": [SAM_V1]},
    "radio_v2.5": {"preset": "radio_v2.5-l", "use_feature_normalizer": True, "num_intermediate_normalizers": 4},
    "radio_v2.5-g": {"preset": "radio_v2.5-g", "max_img_size": 224, "vitdet_num_global": 2, "adaptors": [SAM_V1]},
    "c-radio_v3": {"preset": "c-radio_v3-h", "use_layer_scale": True},
    "c-radio_v4": {"preset": "c-radio_v4-h"},
    "c-radio_v4-1d": {
        "preset": "c-radio_v4-1d-h",
        "downscale_levels": [2],
        "decoder_depth": 2,
        "decoder_upscale_levels": [1],
        "filler_grid_size": 8,
        "qk_norm": True,
        "use_final_norm": True,
    },
}
PLAIN = [family for family in FAMILIES if family != "c-radio_v4-1d"]


def build(family: str, **overrides) -> RadioModel:
    fields = {**TINY, "adaptors": ADAPTORS, **FAMILIES[family], **overrides}
    fields["adaptors"] = [{**adaptor, "feature_num_attention_heads": 4} for adaptor in fields["adaptors"]]
    return RadioModel(RadioConfig.from_preset(fields.pop("preset"), **fields)).eval()


def window_of(model: RadioModel, window_size: int | None) -> int | None:
    """The window, where the network can have one: merged tokens cannot."""
    return None if model.config.num_mergings else window_size


def images(model: RadioModel, batch_size: int = 2, rows: int = 5, cols: int = 7) -> torch.Tensor:
    return torch.rand(batch_size, 3, rows * model.patch_size, cols * model.patch_size)


def flat(output) -> dict[str, torch.Tensor]:
    tensors = {key: output[key] for key in ("summary", "features", "last_hidden_state")}
    for name, adaptor in output.adaptors.items():
        tensors.update({f"{name}/{key}": value for key, value in adaptor.items()})
    return tensors


def assert_outputs_equal(left, right, atol: float = 0.0) -> None:
    assert_close_by_name(flat(left), flat(right), atol=atol)


@pytest.fixture(params=list(FAMILIES))
def family(request) -> str:
    return request.param


@pytest.fixture
def model(family) -> RadioModel:
    return build(family)


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


def test_feature_formats_agree(model):
    batch = images(model)
    with torch.no_grad():
        tokens, maps = model(batch), model(batch, feature_format="NCHW")
    torch.testing.assert_close(maps.features.flatten(2).transpose(1, 2), tokens.features, rtol=0, atol=0)


def test_save_and_load_give_equal_outputs(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded, info = RadioModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert_same_weights(loaded, model)
    batch = images(model)
    with torch.no_grad():
        assert_outputs_equal(model(batch), loaded(batch), atol=1e-6)
    assert loaded.config.to_diff_dict() == model.config.to_diff_dict()


def test_deterministic_in_eval(model):
    batch = images(model)
    with torch.no_grad():
        assert_outputs_equal(model(batch), model(batch))


@pytest.mark.parametrize("window_size", [None, 2, 3])
def test_batch_row_equals_single_row(model, window_size):
    batch, window_size = images(model), window_of(model, window_size)
    with torch.no_grad():
        both, first = model(batch, window_size=window_size), model(batch[:1], window_size=window_size)
    assert_outputs_equal(
        type(both)(
            summary=both.summary[:1],
            features=both.features[:1],
            last_hidden_state=both.last_hidden_state[:1],
            adaptors={
                name: type(adaptor)(**{key: value[:1] for key, value in adaptor.items()})
                for name, adaptor in both.adaptors.items()
            },
        ),
        first,
        atol=2e-6,
    )


def total(output) -> torch.Tensor:
    return sum(value.square().mean() for value in flat(output).values())


@pytest.mark.parametrize("window_size", [None, 2])
def test_every_parameter_gets_a_gradient(model, window_size):
    model.train()
    total(model(images(model), window_size=window_of(model, window_size))).backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not without


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_gradient_checkpointing_gives_equal_gradients(model):
    batch = images(model)
    model.train()
    gradients = []
    for enable in (False, True):
        if enable:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        torch.manual_seed(0)
        total(model(batch)).backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=0)


def test_no_plain_tensors_on_modules(family):
    """A model built on the meta device must hold everything it needs in parameters and buffers."""
    model = build(family)
    state = model.state_dict()
    with torch.device("meta"):
        empty = RadioModel(model.config)
    assert all(tensor.is_meta for tensor in (*empty.parameters(), *empty.buffers()))
    assert empty.state_dict().keys() == state.keys()
    empty.to_empty(device="cpu")
    empty.load_state_dict(state)
    batch = images(model)
    with torch.no_grad():
        assert_outputs_equal(empty.eval()(batch), model(batch))


def test_weights_are_initialized_from_the_meta_device(family, tmp_path):
    """Parameters that a checkpoint lacks are initialized as in a new model, buffers included."""
    from safetensors.torch import load_file, save_file

    model = build(family)
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    kept = {"radio_model.model.blocks.0.norm1.weight"}
    save_file({key: state[key] for key in kept}, tmp_path / "model.safetensors", {"format": "pt"})
    loaded = RadioModel.from_pretrained(tmp_path)
    for name, value in loaded.state_dict().items():
        assert value.isfinite().all(), name
        assert value.abs().max() < 10, name
    torch.testing.assert_close(
        loaded.radio_model.input_conditioner.norm_mean, model.radio_model.input_conditioner.norm_mean
    )
    assert loaded.radio_model.summary_idxs.tolist() == model.config.summary_idxs


@pytest.mark.parametrize("window_size", [None, 3])
def test_eager_equals_sdpa(model, window_size):
    batch, window_size = images(model), window_of(model, window_size)
    with torch.no_grad():
        sdpa = model(batch, window_size=window_size)
        model.set_attn_implementation("eager")
        eager = model(batch, window_size=window_size)
    assert_outputs_equal(sdpa, eager, atol=5e-6)


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
    model = build(family, hidden_size=64, adaptors=[])  # one block of NF4
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


@pytest.mark.parametrize("family", PLAIN)
def test_hidden_states(family):
    model = build(family)
    batch = images(model)
    with torch.no_grad():
        out = model(batch, output_hidden_states=True, window_size=2)
    assert len(out.hidden_states) == model.config.num_hidden_layers + 1
    assert {state.shape for state in out.hidden_states} == {out.last_hidden_state.shape}
    normed = model.radio_model.model.norm(out.hidden_states[-1])
    torch.testing.assert_close(normed, out.last_hidden_state, rtol=0, atol=0)


@pytest.mark.parametrize("family", PLAIN)
def test_attentions_sum_to_one(family):
    model = build(family)
    batch = images(model)
    with torch.no_grad():
        out = model(batch, output_attentions=True)
    assert len(out.attentions) == model.config.num_hidden_layers
    length = out.last_hidden_state.shape[1]
    for weights in out.attentions:
        assert weights.shape == (2, model.config.num_attention_heads, length, length)
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


def test_training_positions_are_random_and_evaluation_positions_are_not(model):
    if not model.config.use_cropped_positions:
        pytest.skip("this family has fixed positions")
    batch = images(model)
    model.train()
    with torch.no_grad():
        assert not torch.equal(model(batch).features, model(batch).features)


def test_adaptors_on_request():
    model = build("c-radio_v4")
    batch = images(model)
    with torch.no_grad():
        assert model(batch, adaptor_names=[]).adaptors == {}
        assert list(model(batch, adaptor_names=["sam3"]).adaptors) == ["sam3"]
        with pytest.raises(ValueError, match=r"'dinov3'.*Did you mean 'dino_v3'"):
            model(batch, adaptor_names=["dinov3"])


@pytest.mark.parametrize("asked", ["in the call", "in the configuration", "while opening"])
def test_pairs_instead_of_names(asked, tmp_path):
    model = build("c-radio_v4")
    batch, options = images(model), {}
    with torch.no_grad():
        named = model(batch)
        if asked == "in the call":
            options = {"return_dict": False}
        elif asked == "in the configuration":
            model.config.return_dict = False
        else:
            model.save_pretrained(tmp_path)
            model = RadioModel.from_pretrained(tmp_path, return_dict=False).eval()
        summary, features = model(batch, adaptor_names=[], output_hidden_states=True, **options)
        pairs = model(batch, adaptor_names=["sam3", "dino_v3"], **options)
        torch.testing.assert_close(model(batch, return_dict=True).summary, named.summary)
    torch.testing.assert_close(summary, named.summary)
    torch.testing.assert_close(features, named.features)
    assert type(pairs) is dict
    assert list(pairs) == ["backbone", "sam3", "dino_v3"]
    torch.testing.assert_close(pairs["backbone"], (named.summary, named.features), check_device=False)
    assert pairs["sam3"].summary is None
    torch.testing.assert_close(pairs["sam3"].features, named.adaptors["sam3"].features)
    torch.testing.assert_close(tuple(pairs["dino_v3"]), named.adaptors["dino_v3"].to_tuple())


def test_feature_fmt_is_feature_format():
    model = build("c-radio_v4")
    batch = images(model)
    with torch.no_grad():
        theirs, ours = model(batch, feature_fmt="NCHW"), model(batch, feature_format="NCHW")
        assert_outputs_equal(theirs, ours)
        with pytest.raises(ValueError, match=r"`feature_fmt` must be one of \['NLC', 'NCHW'\], got 'NHWC'"):
            model(batch, feature_fmt="NHWC")


def test_the_patch_projection_can_be_replaced():
    model = build("c-radio_v4")
    batch = images(model)
    before = model(batch).features
    projection = torch.nn.Linear(3 * model.patch_size**2, model.config.hidden_size, bias=False)
    model.set_input_embeddings(projection)
    assert model.get_input_embeddings() is projection
    assert not torch.equal(model(batch).features, before)


def test_a_model_of_inference_mode_can_be_trained_moved_and_saved(tmp_path):
    with torch.inference_mode():
        built = build("c-radio_v4")
        built.save_pretrained(tmp_path)
        opened = RadioModel.from_pretrained(tmp_path)
        opened(images(opened))
    for model in (built, opened):
        batch = images(model)
        with torch.no_grad():
            expected = model(batch)
        assert_outputs_equal(model(batch), expected)
        model.train()(batch).features.sum().backward()
        assert model.get_input_embeddings().weight.grad is not None
        model.to(torch.float64).save_pretrained(tmp_path)
        assert model.eval()(batch.double()).features.dtype == torch.float64
