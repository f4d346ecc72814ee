"""The one way through the network: what it keeps, and the random numbers of training, given per image."""

import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F
from transformers.initialization import no_init_weights

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.modeling_radio import ADAPTORS, BLOCKS, POSITIONS, PREFIX_TOKENS, RadioNetwork


@pytest.fixture(scope="module")
def model() -> RadioModel:
    return RadioModel(RadioConfig.from_preset("radio-test", drop_path_rate=0.5)).train()


@pytest.mark.parametrize("window_size", ["global", 2])
def test_an_image_trains_the_same_in_any_batch(model: RadioModel, window_size: str | int) -> None:
    pixel_values, draws = torch.rand(5, 3, 64, 48), torch.rand(5, model.num_draws)
    whole = model(pixel_values, window_size=window_size, draws=draws).features
    parts = [
        model(pixel_values[part], window_size=window_size, draws=draws[part]).features
        for part in (slice(0, 2), slice(2, 5))
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-5)


def test_draws_decide_positions_and_paths(model: RadioModel) -> None:
    pixel_values, draws = torch.rand(1, 3, 64, 64), torch.full((1, model.num_draws), 0.6)
    features = model(pixel_values, draws=draws).features
    for place in (0, 1, 2, 3, -1, -2):  # the crop's scale, aspect, column and row; the last block's two branches
        changed = draws.clone()
        changed[:, place] = 0.1
        assert not torch.allclose(model(pixel_values, draws=changed).features, features, atol=1e-4)
    assert torch.equal(model.eval()(pixel_values, draws=draws).features, model(pixel_values).features)
    model.train()


def test_without_draws_the_global_generator_decides(model: RadioModel) -> None:
    pixel_values, features = torch.rand(1, 3, 64, 64), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        features.append(model(pixel_values).features)
    assert torch.equal(features[0], features[1])
    assert not torch.equal(features[0], features[2])


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


def test_wrong_draws_are_refused(model: RadioModel) -> None:
    with pytest.raises(ValueError, match=rf"`draws` must have the shape \(2, {model.num_draws}\), got \(2, 3\)"):
        model(torch.rand(2, 3, 32, 32), draws=torch.rand(2, 3))
    patches, grids = torch.rand(6, 768), torch.tensor([[2, 2], [1, 2]])
    with pytest.raises(ValueError, match=rf"`draws` must have the shape \(2, {model.num_draws}\), got \(6, "):
        model(patches, image_grid_hw=grids, draws=torch.rand(6, model.num_draws))


@pytest.mark.parametrize("window_size", ["global", 2])
def test_packed_images_train_as_they_do_alone(window_size: str | int) -> None:
    """Their position crops and dropped paths are their own, in windowed blocks too."""
    model = RadioModel(RadioConfig.from_preset("radio-test", drop_path_rate=0.5, vitdet_num_global=1)).train()
    grids = torch.tensor([[3, 2], [2, 5], [3, 2]])
    draws = torch.rand(3, model.num_draws)
    images = [torch.rand(1, 3, 16 * rows, 16 * cols) for rows, cols in grids.tolist()]
    patches = torch.cat([F.pixel_unshuffle(image, 16).flatten(2).transpose(1, 2)[0] for image in images])
    packed = model(patches, image_grid_hw=grids, draws=draws, window_size=window_size)
    alone = [model(image, draws=draws[i : i + 1], window_size=window_size) for i, image in enumerate(images)]
    torch.testing.assert_close(packed.summary, torch.cat([each.summary for each in alone]))
    torch.testing.assert_close(packed.features, torch.cat([each.features[0] for each in alone]))
    other = model(patches, image_grid_hw=grids, window_size=window_size)  # draws of their own
    assert (other.summary - packed.summary).abs().amax(1).min() > 1e-4


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("window_size", ["global", 2])
def test_tokens_stay_float32_through_all_blocks_under_autocast(
    model: RadioModel, window_size: str | int, is_training: bool
) -> None:
    read = []
    hooks = [
        block.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].dtype))
        for block in model.radio_model.model.blocks
    ]
    model.train(is_training)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(torch.rand(2, 3, 64, 48), window_size=window_size, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    model.train()
    assert len(read) == model.config.num_hidden_layers > 2
    states = [*read, *(states.dtype for states in output.hidden_states), output.features.dtype]
    assert set(states) == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_keeps_its_tokens_so(dtype: torch.dtype) -> None:
    config = RadioConfig.from_preset("radio-test", num_hidden_layers=2)
    for network in (RadioModel(config).to(dtype).train(), RadioModel(config).to(dtype).eval()):
        output = network(torch.rand(1, 3, 32, 32, dtype=dtype), output_hidden_states=True)
        assert {states.dtype for states in output.hidden_states} == {dtype}


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


@torch.no_grad()
def test_the_configuration_can_ask_for_all_blocks(network: RadioNetwork) -> None:
    network.config.output_hidden_states = True
    pixel_values = torch.rand(1, 3, 32, 32)
    assert len(network(pixel_values).hidden_states) == 5
    assert network(pixel_values, output_hidden_states=False).hidden_states is None
    network.config.output_hidden_states = False


def test_constants_are_there_before_weights_are() -> None:
    """Where starting values are left out, buffers are right nevertheless."""
    fields = {"use_feature_normalizer": True, "num_intermediate_normalizers": 4, "summary_idxs": [2, 0]}
    for per_layer in (False, True):
        config = RadioConfig.from_preset("radio-test", intermediate_rotation_per_layer=per_layer, **fields)
        with no_init_weights():
            bare = dict(RadioModel(config).named_buffers())
        expected = dict(RadioModel(config).named_buffers())
        assert len(expected) == 8
        for name, buffer in expected.items():
            assert torch.equal(bare[name], buffer), name
            assert bare[name].dtype == buffer.dtype, name


def test_names_of_parts_are_those_of_the_weights(network: RadioNetwork) -> None:
    model = RadioModel(network.config)
    names = [name for name, _ in model.named_parameters()]
    assert {POSITIONS, PREFIX_TOKENS} < set(names)
    assert sum(name.startswith(f"{BLOCKS}.3.") for name in names) > 0
    assert sum(name.startswith(f"{ADAPTORS}.dino_v3.") for name in names) > 0


def test_adaptor_by_name(network: RadioNetwork) -> None:
    adaptor = network.adaptor("dino_v3")
    assert adaptor.last_dense_linear is adaptor.feat_mlp.final[-1]
    with pytest.raises(ValueError, match=r"must be one of \['dino_v3'\], got 'dinov3'. Did you mean 'dino_v3'"):
        network.adaptor("dinov3")


@pytest.mark.parametrize(
    "head", [{"mlp_version": "v1"}, {"num_inner_blocks": 2}, {"feature_head": "attention", "upsample_factor": 2}]
)
def test_the_last_dense_linear_writes_the_dense_features(head: dict) -> None:
    head = {"name": "a", "feature_dim": 5, "hidden_size": 8, "feature_num_attention_heads": 2, **head}
    adaptor = RadioModel(RadioConfig.from_preset("radio-test", adaptors=[head])).radio_model.adaptor("a")
    outputs = []
    adaptor.last_dense_linear.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    features = adaptor(torch.rand(1, 3, 32), torch.rand(1, 6, 32), 2, 3).features
    assert sorted(features.flatten().tolist()) == sorted(outputs[0].flatten().tolist())


def test_a_network_without_summary_tokens_has_an_empty_summary():
    model = RadioModel(RadioConfig.from_preset("radio-test", summary_idxs=[])).eval()
    assert model(torch.rand(2, 3, 32, 32)).summary.shape == (2, 0)


def test_a_plain_network_imports_no_other_architecture():
    code = (
        "import sys, torch, modeling_radio as m; model = m.RadioModel(m.RadioConfig.from_preset('radio-test')); "
        "model(torch.rand(1, 3, 32, 32)); print(*[name for name in sys.modules if name.startswith('modeling_radio')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = run.stdout.split()
    assert "modeling_radio.modeling_radio" in imported
    others = ("eradio_", "radio1d_radio", "video_radio")
    assert [name for name in imported if any(other in name for other in others)] == []
