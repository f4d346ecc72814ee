"""A RADIO1D starts from a plain network: its wide blocks answer the narrow answer twice."""

import pytest
import torch
from tiny_radio1d import ADAPTORS, FIELDS, build_radio1d

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.modeling_radio import DECODER_PREFIX, PREFIX_TOKENS
from training.recipe import RecipeError
from training.student.warm_start.radio import check_widening, is_new, open_source, warm_start, widen


PLAIN = {name: value for name, value in FIELDS.items() if name not in ("downscale_levels", "decoder_depth")}


def build_plain(**overrides) -> RadioModel:
    torch.manual_seed(3)
    fields = {name: value for name, value in overrides.items() if name not in ("downscale_levels", "decoder_depth")}
    model = RadioModel(RadioConfig(**{**PLAIN, **fields})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)  # a new network hides what is zero or one at first
    return model


def block_errors(noise: float, monkeypatch, **overrides) -> list[float]:
    """Largest difference of each wide block's answer from the narrow one's, over what that block changes."""
    monkeypatch.setattr(widen, "__defaults__", (noise,))
    source = build_plain(**overrides)
    student = build_radio1d(adaptors=[], **overrides)
    warm_start(student, source, "start")
    tokens, errors = torch.randn(2, 9, 16), []
    for index in range(3):
        narrow, wide = source.radio_model.model.blocks[index], student.radio_model.model.blocks[index]
        times = 2 ** student.config.count_merges(index)
        with torch.no_grad():
            expected, _ = narrow(tokens, ((1, 9),))
            answer, _ = wide(tokens.repeat(1, 1, times), ((1, 9),))
        errors.append(((answer - expected.repeat(1, 1, times)).abs().max() / (expected - tokens).abs().max()).item())
    return errors


@pytest.mark.parametrize(
    "overrides", [{}, {"downscale_levels": [0, 2], "decoder_depth": 3}, {"use_layer_scale": True, "qkv_bias": False}]
)
def test_the_function_is_kept_without_noise_and_nearly_with_it(overrides, monkeypatch) -> None:
    assert max(block_errors(0.0, monkeypatch, **overrides)) < 1e-5
    noisy = block_errors(0.01, monkeypatch, **overrides)
    assert 1e-4 < max(noisy) < 0.1


def test_what_is_taken_and_what_is_new() -> None:
    source, student = build_plain(), build_radio1d(adaptors=[])
    fresh = {key: value.clone() for key, value in student.state_dict().items()}
    report = warm_start(student, source, "start")
    assert report.added == ["mergings and decoder"]
    assert report.resized == ["blocks behind the mergings before [1], widened by repetition with 1% noise"]
    own, given = student.state_dict(), source.state_dict()
    assert torch.equal(
        own["radio_model.model.blocks.0.attn.qkv.weight"], given["radio_model.model.blocks.0.attn.qkv.weight"]
    )
    for key in own:
        if is_new(key) and ".prefix_proj_blocks." not in key:
            assert torch.equal(own[key], fresh[key])
    prefix = torch.randn(4, 16)
    projected = student.radio_model.model.prefix_proj_blocks[0](prefix)
    torch.testing.assert_close(projected, prefix.repeat(1, 2))


def test_noise_parts_the_copies_and_is_the_same_everywhere() -> None:
    narrow = torch.randn(4, 4)
    first, second = (widen("blocks.1.mlp.fc1.weight", narrow, torch.Size([8, 8])) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first[:4], first[4:])
    assert not torch.equal(first, widen("blocks.2.mlp.fc1.weight", narrow, torch.Size([8, 8])))


def test_a_radio1d_starts_from_one_as_it_is(tmp_path) -> None:
    first, second = (build_radio1d(adaptors=[entry]).config.adaptors[0] for entry in ADAPTORS)
    source = build_radio1d(adaptors=[first, second])
    source.save_pretrained(tmp_path)
    turned = [{**second, "token_index": 0}, {**first, "token_index": 1}]
    student = RadioModel(RadioConfig(**FIELDS, adaptors=turned))
    warm_start(student, open_source(str(tmp_path), student.config), "start")
    own, given = student.state_dict(), source.state_dict()
    for key in (DECODER_PREFIX, PREFIX_TOKENS):  # class tokens follow their teachers
        assert torch.equal(own.pop(key), given[key][[1, 0, 2]])
    assert all(torch.equal(value, given[key]) for key, value in own.items())


@pytest.mark.parametrize(
    ("fields", "source", "message"),
    [
        ({"decoder_depth": 3}, FIELDS, "is a RADIO1D with another decoder_depth"),
        ({"qk_norm": True}, PLAIN, "can be widened only to `qk_norm` false"),
        ({"merged_intermediate_sizes": [100]}, PLAIN, r"MLPs of \[64, 128\], got False and \[64, 100\]"),
        ({"downscale_levels": None, "decoder_depth": 6}, FIELDS, "is a RADIO1D with another downscale_levels"),
    ],
)
def test_what_cannot_be_widened_is_refused(fields, source, message) -> None:
    with pytest.raises(RecipeError, match=message):
        check_widening(RadioConfig(**{**FIELDS, **fields}), RadioConfig(**source), "start")
