"""Hidden states and attention weights, as every model gives them on request."""

import threading

import pytest
import torch
from task_models import EVERY_MODEL, images, tiny_config
from transformers.testing_utils import CaptureLogger

from modeling_radio import RadioForObjectDetection, RadioModel
from modeling_radio.inputs_radio import join_runs, logger


CLASSES = {"backbone with adaptors", "maps", "classifier", "DPT segmenter", "depth", "detector", "instance segmenter"}


@pytest.fixture
def model():
    return RadioModel(tiny_config(vitdet_num_global=2)).eval()  # windows in blocks 0 and 2


@pytest.fixture(params=sorted(CLASSES))
def any_model(request):
    model_class, fields = EVERY_MODEL[request.param]
    return model_class(tiny_config(**fields, vitdet_num_global=2)).eval()


def same(left, right):
    return len(left) == len(right) and all(map(torch.equal, left, right))


# Attention weights


@torch.no_grad()
def test_asking_for_attention_weights_makes_the_call_eager(any_model):
    batch = images()
    plain, fast = any_model(batch), any_model(batch, output_attentions=True)
    assert any_model.config._attn_implementation == "sdpa"
    any_model.set_attn_implementation("eager")
    eager = any_model(batch, output_attentions=True)
    assert plain.attentions is None
    assert len(fast.attentions) == any_model.config.num_hidden_layers
    assert same(fast.attentions, eager.attentions)
    for name in plain:
        torch.testing.assert_close(fast[name], plain[name], rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("window_size", ["global", 2, 3, 8])
def test_windows_make_no_difference_to_that(model, window_size):
    batch = images()
    fast = model(batch, window_size=window_size, output_attentions=True).attentions
    model.set_attn_implementation("eager")
    assert same(fast, model(batch, window_size=window_size, output_attentions=True).attentions)
    for weights in fast:
        sums = weights.sum(-1)
        assert ((sums - 1).abs() < 1e-5).logical_or(sums == 0).all()


@torch.no_grad()
def test_slow_attention_is_told_once_and_only_where_it_was_not_chosen(model):
    logger.warning_once.cache_clear()
    with CaptureLogger(logger) as told:
        model(images())
    assert told.out == ""
    with CaptureLogger(logger) as told:
        model(images(), output_attentions=True)
        model(images(), output_attentions=True)
    assert told.out.count("`attn_implementation` 'sdpa' gives no attention weights") == 1
    logger.warning_once.cache_clear()
    model.set_attn_implementation("eager")
    with CaptureLogger(logger) as told:
        model(images(), output_attentions=True)
    assert told.out == ""


@torch.no_grad()
def test_windows_stand_one_after_the_other(model):
    batch = images()  # 3 x 5 patches in windows of 2 x 2: 1 x 2 whole ones, one right, two at the bottom, a corner
    out = model(batch, window_size=2, output_attentions=True, output_hidden_states=True)
    block = model.radio_model.model.blocks[0]
    assert not model.config.is_global_block(0)
    patches = out.hidden_states[0][:, model.config.num_prefix_tokens :]
    query, key, _ = block.attn.qkv(block.norm1(patches)).unflatten(-1, (3, block.attn.num_heads, -1)).unbind(2)
    windows = [[0, 1, 5, 6], [2, 3, 7, 8], [4, 9], [10, 11], [12, 13], [14]]
    weights = out.attentions[0].unflatten(0, (2, 6))
    assert weights.shape == (2, 6, 2, 4, 4)
    for index, window in enumerate(windows):
        scores = torch.einsum("bqhc,bkhc->bhqk", query[:, window], key[:, window]) * block.attn.scaling
        size = len(window)
        torch.testing.assert_close(weights[:, index, :, :size, :size], scores.softmax(-1), rtol=0, atol=1e-6)
        assert not weights[:, index, :, size:].any()
        assert not weights[:, index, :, :, size:].any()
    assert out.attentions[-1].shape == (2, 2, *[15 + model.config.num_prefix_tokens] * 2)


def test_detectors_give_weights_in_their_own_windows():
    model = RadioForObjectDetection(tiny_config(detection_window_size=16, vitdet_num_global=2)).eval()
    out = model(images(size=(64, 64)), output_attentions=True)
    assert [tuple(weights.shape) for weights in out.attentions] == [(2, 2, 16, 16), (2, 2, 26, 26)] * 2


def test_gradients_reach_weights_and_hidden_states(model):
    out = model(images(), output_attentions=True, output_hidden_states=True)
    for tensor in (out.attentions[0], out.hidden_states[0]):
        tensor.retain_grad()
    out.features.square().sum().backward()
    assert out.attentions[0].grad.any()
    assert out.hidden_states[0].grad.any()


def test_weights_of_packed_images_are_refused(model):
    patches = torch.rand(10, 3 * model.patch_size**2)
    with pytest.raises(ValueError, match="`output_attentions` must be False with `image_grid_hw`, got True"):
        model(patches, image_grid_hw=torch.tensor([[2, 3], [2, 2]]), output_attentions=True)


@torch.no_grad()
def test_calls_of_several_threads_get_their_own_weights(model):
    batches = [images(count) for count in (1, 2, 3, 4)]
    expected = [model(batch, output_attentions=True).attentions for batch in batches]
    found = {}

    def call(index):
        with torch.no_grad():
            found[index] = [model(batches[index], output_attentions=True).attentions for _ in range(10)]

    threads = [threading.Thread(target=call, args=[index]) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(attentions, expected[index]) for index in range(4) for attentions in found[index])


def test_one_run_of_segments_is_not_copied():
    run = torch.rand(4, 2, 3, 3)
    assert join_runs([run], 2) is run


# Hidden states


@torch.no_grad()
@pytest.mark.parametrize(
    ("asked", "places"),
    [([0, 2], {0, 2}), ((-1,), {4}), (0, {0}), (1, {1}), (-2, {3}), (range(2), {0, 1}), ([2, 2, -5], {0, 2})],
)
def test_some_hidden_states_stand_in_their_places(model, asked, places):
    batch = images()
    everything = model(batch, window_size=2, output_hidden_states=True).hidden_states
    some = model(batch, window_size=2, output_hidden_states=asked).hidden_states
    assert len(some) == len(everything) == model.config.num_hidden_layers + 1
    for place, (state, full) in enumerate(zip(some, everything, strict=True)):
        assert torch.equal(state, full) if place in places else state is None


@torch.no_grad()
def test_every_model_gives_some_hidden_states(any_model):
    batch = images()
    everything = any_model(batch, output_hidden_states=True).hidden_states
    some = any_model(batch, output_hidden_states=[0, -2]).hidden_states
    assert [state is None for state in some] == [False, True, True, False, True]
    assert same([some[0], some[3]], [everything[0], everything[3]])


@torch.no_grad()
@pytest.mark.parametrize("asked", [None, False, []])
def test_hidden_states_that_nobody_asked_for(model, asked):
    assert model(images(), output_hidden_states=asked).hidden_states is None


@torch.no_grad()
def test_blocks_that_nobody_asked_for_are_not_kept(model):
    passed = model.radio_model(images(), keep=[1], output_hidden_states=[0, 3])
    assert list(passed.kept) == [1, 2]


@torch.no_grad()
def test_some_hidden_states_of_packed_images(model):
    patches = torch.rand(10, 3 * model.patch_size**2)
    grids = torch.tensor([[2, 3], [2, 2]])
    everything = model(patches, image_grid_hw=grids, output_hidden_states=True).hidden_states
    some = model(patches, image_grid_hw=grids, output_hidden_states=[-1]).hidden_states
    assert some[:4] == (None,) * 4
    assert torch.equal(some[4], everything[4])


@pytest.mark.parametrize("asked", [[5], -6, [1.0], "12", [True], torch.tensor([1]), {1}])
def test_hidden_states_that_do_not_exist(model, asked):
    with pytest.raises(ValueError, match=r"`output_hidden_states` must be True, False, or integers in \[-5, 4\], got"):
        model(images(), output_hidden_states=asked)


# What the configuration asks for


@torch.no_grad()
def test_the_configuration_can_ask_for_everything(any_model, tmp_path):
    any_model.save_pretrained(tmp_path)
    wanted = {"output_hidden_states": True, "output_attentions": True, "return_dict": False}
    opened = type(any_model).from_pretrained(tmp_path, **wanted)
    blocks = any_model.config.num_hidden_layers
    batch = images()
    named = opened(batch, return_dict=True)
    assert len(named.hidden_states) == blocks + 1
    assert len(named.attentions) == blocks
    answer = opened(batch)
    assert type(answer) is not type(named)
    assert isinstance(answer, (tuple, dict))
    silent = opened(batch, output_hidden_states=False, output_attentions=False, return_dict=True)
    assert silent.hidden_states is silent.attentions is None
