"""RADIO1D: what the number of tokens changes, what it does not, and what is refused. Values: `tests/conversion`."""

from types import SimpleNamespace

import pytest
import torch
from refusals import refused, wrong
from tiny_radio1d import FIELDS, build_radio1d
from torch import nn
from transformers.testing_utils import CaptureLogger

from modeling_radio import (
    RadioBackbone,
    RadioConfig,
    RadioForImageClassification,
    RadioForObjectDetection,
    RadioForSemanticSegmentation,
    RadioModel,
)
from modeling_radio.checks_radio import Resolution
from modeling_radio.radio1d_radio import count_tokens, logger


TWICE = {"downscale_levels": [0, 2], "decoder_depth": 3, "decoder_upscale_levels": [1, 2]}


def images(batch_size: int = 2, rows: int = 4, cols: int = 6) -> torch.Tensor:
    return torch.rand(batch_size, 3, 16 * rows, 16 * cols)


@torch.no_grad()
def run(model: RadioModel, batch: torch.Tensor, **options):
    return model(batch, **options)


@pytest.mark.parametrize(("fields", "mergings"), [({}, 1), (TWICE, 2)])
def test_shapes(fields, mergings):
    out = run(build_radio1d(**fields), images(), num_tokens=1, feature_format="NCHW")
    assert out.summary.shape == (2, 2 * 16)
    assert out.features.shape == (2, 16, 4, 6)
    assert out.last_hidden_state.shape == (2, 3 + 24, 16)
    assert out.global_tokens.shape == (2, 1, 16 * 2**mergings)
    assert out.global_summary.shape == (2, 2 * 16 * 2**mergings)
    assert out.adaptors["teacher_a"].features.shape == (2, 10, 4, 6)
    assert out.adaptors["teacher_b"].features.shape == (2, 4, 8, 12)
    assert run(build_radio1d(**fields), images()).global_tokens.shape[1] == 24 // 4**mergings


def test_fewer_tokens_are_the_first_ones_of_all_and_decode_to_something_else():
    model, batch = build_radio1d(), images()
    every, two = run(model, batch), run(model, batch, num_tokens=2)
    assert torch.equal(two.global_tokens, every.global_tokens[:, :2])
    assert torch.equal(two.global_summary, every.global_summary)
    assert not torch.allclose(two.features, every.features, atol=1e-3)
    assert not torch.allclose(two.summary, every.summary, atol=1e-4)


def test_without_tokens_all_images_decode_to_the_same():
    model, batch = build_radio1d(), images()
    out = run(model, batch, num_tokens=0)
    assert out.global_tokens.shape == (2, 0, 32)
    torch.testing.assert_close(out.features[0], out.features[1], rtol=0, atol=1e-6)
    one = run(model, batch, num_tokens=1)
    assert not torch.allclose(one.features[0], one.features[1], atol=1e-4)


def test_progressive_reduction_makes_the_tokens_depend_on_their_number():
    model, batch = build_radio1d(progressive_reduction=True, num_hidden_layers=5), images()
    every, two = run(model, batch), run(model, batch, num_tokens=2)
    assert not torch.allclose(two.global_tokens, every.global_tokens[:, :2], atol=1e-4)
    assert not torch.allclose(two.global_summary, every.global_summary, atol=1e-4)
    states = run(model, batch, num_tokens=2, output_hidden_states=True).hidden_states
    assert [state.shape[1] - 3 for state in states] == [24, 24, 6, 5, 4, 2]


@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_number_for_each_image_equals_one_image_at_a_time(as_tensor):
    model, batch, counts = build_radio1d(), images(3), [1, 6, 4]
    together = run(model, batch, num_tokens=torch.tensor(counts) if as_tensor else counts)
    assert together.global_mask.sum(1).tolist() == counts
    assert (together.global_tokens[~together.global_mask] == 0).all()
    for index, count in enumerate(counts):
        alone = run(model, batch[index : index + 1], num_tokens=count)
        torch.testing.assert_close(together.global_tokens[index, :count], alone.global_tokens[0], rtol=0, atol=1e-6)
        for name in ("summary", "features", "global_summary"):
            torch.testing.assert_close(together[name][index], alone[name][0], rtol=0, atol=2e-6)
        predicted = together.adaptors["teacher_b"].features[index]
        torch.testing.assert_close(predicted, alone.adaptors["teacher_b"].features[0], rtol=0, atol=2e-6)


class Counting(nn.Module):
    def forward(self, wanted):
        return torch.arange(count_tokens(RadioConfig(**FIELDS), wanted, Resolution(4, 6), 1).longest)


def test_counts_as_tensors_under_torch_2_6_which_does_not_say_that_it_exports(monkeypatch):
    known = {name: getattr(torch.compiler, name) for name in ("is_compiling", "is_dynamo_compiling")}
    older = SimpleNamespace(**{**vars(torch), "compiler": SimpleNamespace(**known)})
    monkeypatch.setattr("modeling_radio.radio1d_radio.torch", older)
    program = torch.export.export(Counting(), (torch.tensor(3),), strict=False).module()
    for count in (2, 5):
        assert len(program(torch.tensor(count))) == len(Counting()(torch.tensor(count))) == count


def test_the_configuration_says_how_many_where_the_call_does_not(tmp_path):
    model, batch = build_radio1d(), images()
    expected = run(model, batch, num_tokens=3)
    model.save_pretrained(tmp_path)
    opened = run(RadioModel.from_pretrained(tmp_path, num_tokens=3), batch).features
    torch.testing.assert_close(opened, expected.features, rtol=0, atol=1e-6)
    model.config.num_tokens = 3
    assert torch.equal(run(model, batch).features, expected.features)
    assert run(model, batch, num_tokens=4).global_tokens.shape[1] == 4


def test_without_the_decoder_there_is_what_the_encoder_gives():
    model, batch = build_radio1d(), images()
    whole, encoded = run(model, batch, num_tokens=2), run(model, batch, num_tokens=2, decode=False)
    assert list(encoded) == ["global_tokens", "global_mask", "global_summary"]
    assert torch.equal(encoded.global_tokens, whole.global_tokens)
    assert torch.equal(encoded.global_summary, whole.global_summary)
    pair = run(model, batch, num_tokens=2, decode=False, return_dict=False)
    assert torch.equal(pair.summary, whole.global_summary)
    assert torch.equal(pair.features, whole.global_tokens)
    ran = []
    model.radio_model.model.decoder.register_forward_hook(lambda *_: ran.append(True))
    run(model, batch, decode=False)
    assert not ran


def test_more_tokens_than_there_are_are_all_which_is_said_once():
    model, batch = build_radio1d(), images(rows=3, cols=5)
    logger.warning_once.cache_clear()
    with CaptureLogger(logger) as told:
        outputs = [run(model, batch, num_tokens=count) for count in (7, 8)]
        larger = run(model, images(), num_tokens=9)
    assert told.out.count("`num_tokens` is more than an image has") == 1
    assert [out.global_tokens.shape[1] for out in outputs] == [3, 3]  # 15 // 4, of a padded grid of 6
    assert larger.global_tokens.shape[1] == 6
    assert torch.equal(outputs[0].features, run(model, batch).features)


def test_intermediate_features_are_maps_of_the_encoder():
    model, batch = build_radio1d(**TWICE), images(rows=3, cols=5)
    first, last = model.get_intermediate_features(batch, [1, 2])
    assert first.features.shape == (2, 32, 2, 3)
    assert first.summary.shape == (2, 2 * 32)
    assert last.features.shape == (2, 64, 1, 2)
    states = run(model, batch, output_hidden_states=True).hidden_states
    assert torch.equal(first.features.flatten(2).transpose(1, 2), states[2][:, 3:])
    with pytest.raises(ValueError, match="`aggregation`"):
        model.get_intermediate_features(batch, [2], aggregation="dense")
    (only,) = model.forward_intermediates(batch, indices=[1], intermediates_only=True)
    assert torch.equal(only, first.features)
    pair, _ = model.forward_intermediates(batch, indices=[1])
    assert torch.equal(pair["backbone"].features, run(model, batch, feature_format="NCHW").features)
    for option in ("norm", "stop_early"):
        refused(option, lambda option=option: model.forward_intermediates(batch, **{option: True}))


def test_maps_that_progressive_reduction_cuts_are_whole_where_they_are_asked_for():
    model = build_radio1d(progressive_reduction=True, num_hidden_layers=4)
    (last,) = model.get_intermediate_features(images(rows=3, cols=5), [3])
    assert last.features.shape == (2, 32, 2, 3)


@wrong(num_tokens=[-1, 1.5, [1, 2, 3]], window_size=[4])
def test_what_it_cannot_do_is_refused(name, value):
    refused(name, lambda: run(build_radio1d(), images(), **{name: value}))


def test_packed_images_and_a_choice_of_windows_are_refused():
    model, grids = build_radio1d(), torch.tensor([[2, 2]])
    refused("image_grid_hw", lambda: model(torch.rand(4, 768), image_grid_hw=grids))
    refused("num_tokens", lambda: model.choose_window_size(64, 64, max_latency_ms=10))
    assert torch.equal(run(model, images(1), window_size="auto").features.isfinite().all(), torch.tensor(True))


@wrong(num_tokens=[3, [1, 2]], decode=[False])
def test_a_plain_network_refuses_tokens(name, value):
    plain = {field: each for field, each in FIELDS.items() if field not in ("downscale_levels", "decoder_depth")}
    refused(name, lambda: RadioModel(RadioConfig(**plain))(images(), **{name: value}))


def test_groups_of_frames_have_tokens_of_their_own():
    model, clips = build_radio1d(video_temporal_patch_size=2), torch.rand(2, 3, 3, 64, 96)
    counts = [1, 6, 4, 2]  # of two groups in each clip
    out = run(model, None, pixel_values_videos=clips, num_tokens=counts)
    assert out.features.shape == (2, 2, 24, 16)
    assert out.global_tokens.shape == (2, 2, 6, 32)
    assert out.global_mask.sum(2).flatten().tolist() == counts
    second = run(model, None, pixel_values_videos=clips[1:, :2], num_tokens=4)
    torch.testing.assert_close(out.features[1, 0], second.features[0, 0], rtol=0, atol=2e-6)
    with pytest.raises(ValueError, match="4 images, got 2"):
        run(model, None, pixel_values_videos=clips, num_tokens=[1, 2])


def test_maps_of_the_backbone():
    fields = {name: value for name, value in build_radio1d().config.to_dict().items() if name in FIELDS}
    backbone = RadioBackbone(RadioConfig(**fields, out_indices=[0, 1, 2, 3])).eval()
    maps = run(backbone, images()).feature_maps
    assert [tuple(each.shape[1:]) for each in maps] == [(16, 4, 6), (16, 4, 6), (32, 2, 3), (16, 4, 6)]
    assert backbone.num_features == [each.shape[1] for each in maps]
    batch = images()
    whole = run(backbone.base_model, batch, feature_format="NCHW")
    assert torch.equal(run(backbone, batch).feature_maps[-1], whole.features)


@pytest.mark.parametrize(
    ("model_class", "fields"),
    [
        (RadioForImageClassification, {}),
        (RadioForSemanticSegmentation, {}),
        (RadioForSemanticSegmentation, {"segmentation_head": "dpt"}),
        (RadioForObjectDetection, {"detection_num_queries": 4, "detection_hidden_size": 32}),
    ],
)
def test_heads_read_the_decoder(model_class, fields):
    torch.manual_seed(0)
    config = RadioConfig(**{**FIELDS, "dpt_hidden_size": 8, "num_labels": 3, **fields})
    model = model_class(config).eval()
    batch = images()
    with torch.no_grad():
        outputs = [next(value for value in model(batch).values() if torch.is_tensor(value))]
        model.config.num_tokens = 1
        outputs.append(next(value for value in model(batch).values() if torch.is_tensor(value)))
    assert outputs[0].isfinite().all()
    assert outputs[0].shape == outputs[1].shape
    assert not torch.equal(*outputs)
