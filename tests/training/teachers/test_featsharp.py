import json
import re

import pytest
import torch
from torch.nn import functional as F

from training.teachers.featsharp import (
    FeatSharp,
    LocalAttention,
    UpsampledTeacher,
    UpsamplerConfig,
    check_upsampler,
    load_upsampler,
    save_upsampler,
)


FORM = UpsampledTeacher("tiny", None, {"layer": 2}, feature_dim=5, input_size_px=64, grid=4)


def small_upsampler(is_random: bool = True) -> FeatSharp:
    torch.manual_seed(0)
    upsampler = FeatSharp(UpsamplerConfig(**FORM._asdict(), width=16, num_heads=2, window=3))
    if is_random:
        for parameter in upsampler.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        upsampler.mean.normal_()
        upsampler.scale.fill_(2.5)
        torch.nn.init.constant_(upsampler.guide.sharpness, 5.0)
    return upsampler.eval()


def inputs(factor: int = 2):
    generator = torch.Generator().manual_seed(1)
    shapes = [(2, 5, 4, 4), (2, 5, 4 * factor, 4 * factor), (2, 3, 64 * factor, 64 * factor)]
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("factor", [2, 3])
@torch.no_grad()
def test_a_new_one_interpolates(factor):
    whole, tiles, images = inputs(factor)
    answer = small_upsampler(is_random=False)(whole, tiles, images)
    wanted = F.interpolate(whole, scale_factor=factor, mode="bilinear")
    assert (answer - wanted).abs().max() < 0.1 * (whole.abs().max())
    assert (answer - wanted).abs().mean() < 0.02


@torch.no_grad()
def test_every_input_acts():
    upsampler, given = small_upsampler(), inputs()
    answer = upsampler(*given)
    assert answer.shape == given[1].shape
    for place in range(3):
        changed = [value + (number == place) * torch.randn_like(value) for number, value in enumerate(given)]
        assert (upsampler(*changed) - answer).abs().mean() > 0.01


@torch.no_grad()
def test_what_a_cell_attends_to_ends_at_the_window():
    attention, tokens = LocalAttention(8, 2, 3), torch.randn(1, 6, 6, 8)
    changed = tokens.clone()
    changed[0, 5, 5] = torch.randn(8)
    moved = (attention(changed) - attention(tokens)).abs().sum(3)[0] > 1e-6
    assert moved.nonzero().tolist() == [[4, 4], [4, 5], [5, 4], [5, 5]]


@torch.no_grad()
def test_attention_is_the_one_over_all_where_the_window_holds_all():
    attention, tokens = LocalAttention(8, 2, 5), torch.randn(1, 3, 3, 8)
    query, key, value = attention.query_key_value(attention.norm(tokens)).view(1, 9, 3, 2, 4).permute(2, 0, 3, 1, 4)
    wanted = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(1, 3, 3, 8)
    torch.testing.assert_close(attention(tokens), attention.leave(wanted))


@torch.no_grad()
def test_a_known_pattern_of_positions_is_removed():
    upsampler = small_upsampler()
    whole, tiles, images = inputs()
    clean = upsampler(whole, tiles, images)
    pattern = torch.randn(5, 4, 4)
    pattern -= pattern.mean((1, 2), keepdim=True)
    upsampler.pattern.add_(pattern / upsampler.scale)
    torch.testing.assert_close(upsampler(whole + pattern, tiles + pattern.repeat(1, 2, 2), images), clean)


@torch.no_grad()
def test_saved_and_opened_it_is_the_same(tmp_path):
    upsampler, given = small_upsampler(), inputs()
    save_upsampler(upsampler, tmp_path / "sharp")
    assert sorted(path.name for path in (tmp_path / "sharp").iterdir()) == ["config.json", "model.safetensors"]
    opened = load_upsampler(tmp_path / "sharp").eval()
    assert opened.config == upsampler.config
    assert torch.equal(opened(*given), upsampler(*given))


def test_what_is_no_upsampler_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"`upsampler` must be a folder with config.json, got '.*nowhere'. Train one"):
        load_upsampler(tmp_path / "nowhere")
    save_upsampler(small_upsampler(), tmp_path / "sharp")
    config = tmp_path / "sharp" / "config.json"
    saved = json.loads(config.read_text())
    config.write_text(json.dumps({**saved, "width": 8}))
    with pytest.raises(ValueError, match=r"^`upsampler` '.*sharp' cannot be opened: .*FeatSharp"):
        load_upsampler(tmp_path / "sharp")
    config.write_text(json.dumps({**saved, "window": 4}))
    with pytest.raises(ValueError, match=r"`window` must be odd, got 4"):
        load_upsampler(tmp_path / "sharp")
    (tmp_path / "sharp" / "model.safetensors").unlink()
    config.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=r"a folder with model.safetensors"):
        load_upsampler(tmp_path / "sharp")


@pytest.mark.parametrize(
    ("field", "other"), [("kind", "big"), ("source", "a/b"), ("options", {}), ("feature_dim", 6), ("input_size_px", 96)]
)
def test_another_teachers_is_refused(field, other):
    config = small_upsampler().config
    check_upsampler(config, FORM, "sharp")
    wanted = re.escape(f"with `{field}` {other!r}, got 'sharp' with {getattr(FORM, field)!r}. Train one")
    with pytest.raises(ValueError, match=wanted):
        check_upsampler(config, FORM._replace(**{field: other}), "sharp")
