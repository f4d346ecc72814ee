import json

import pytest
import torch
from torch.nn import functional as F

from modeling_radio.training.recipes.sections import RunOptions
from modeling_radio.training.teachers.featsharp import (
    FeatSharp,
    LocalAttention,
    TiledMode,
    UpsampledTeacher,
    UpsamplerConfig,
    add_detail,
    check_upsampler,
    cut_tiles,
    load_upsampler,
    save_upsampler,
    stitch_tiles,
    tiles_per_side,
)
from modeling_radio.training.teachers.run_modes import NetworkTraits


@pytest.mark.parametrize(("size_px", "tiles"), [(128, 1), (432, 1), (512, 2), (768, 2), (1024, 3), (1152, 3)])
@pytest.mark.parametrize("stretch", [3 / 4, 0.9, 1.0, 4 / 3])
def test_images_of_any_shape_are_cut_as_finely_as_the_students_grid_needs(size_px, tiles, stretch):
    """As the square of as many patches; SigLIP2 at 384 px."""
    assert tiles_per_side(size_px // 16, own_patches=384 // 16) == tiles
    traits = NetworkTraits("t", 16, 16, 384, runs_at_any_size=False, has_summary=True)
    mode, cells = TiledMode(traits, RunOptions(run_mode="fixed", upsample="tiles")), size_px / 16
    sizes = mode.input_sizes(round(cells / stretch**0.5), round(cells * stretch**0.5))
    assert sizes == ((384, 384), (tiles * 384, tiles * 384))[: min(tiles, 2)]


def test_tiles_go_row_by_row_and_back():
    image = torch.arange(6.0).view(1, 1, 2, 3)
    assert cut_tiles(image, 2, 3).flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert cut_tiles(image, 1, 3)[1, 0].tolist() == [[1], [4]]
    maps = torch.rand(2, 3, 8, 6)
    assert torch.equal(stitch_tiles(cut_tiles(maps, 4, 2), 4, 2), maps)


def test_detail_is_that_of_the_tiles_and_coarse_content_that_of_the_whole():
    flat = add_detail(torch.zeros(1, 1, 4, 4), torch.full((1, 1, 8, 8), 5.0))
    assert torch.equal(flat, torch.zeros(1, 1, 8, 8))
    stitched = torch.rand(2, 3, 6, 6)  # tiles that agree with the whole change nothing
    torch.testing.assert_close(add_detail(F.avg_pool2d(stitched, 3), stitched), stitched)
    stripes = torch.tensor([1.0, -1.0]).repeat(4).expand(1, 1, 8, 8)
    torch.testing.assert_close(add_detail(torch.full((1, 1, 4, 4), 3.0), stripes + 7), stripes + 3)


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
def test_a_new_upsampler_interpolates_and_in_a_trained_one_every_input_acts(factor):
    given = inputs(factor)
    difference = small_upsampler(is_random=False)(*given) - F.interpolate(
        given[0], scale_factor=factor, mode="bilinear"
    )
    assert difference.abs().max() < 0.1 * given[0].abs().max()
    assert difference.abs().mean() < 0.02
    upsampler = small_upsampler()
    answer = upsampler(*given)
    assert answer.shape == given[1].shape
    for place in range(3):
        changed = [value + (number == place) * torch.randn_like(value) for number, value in enumerate(given)]
        assert (upsampler(*changed) - answer).abs().mean() > 0.01


@torch.no_grad()
def test_attention_ends_at_the_window_and_is_the_usual_one_within():
    attention, tokens = LocalAttention(8, 2, 3), torch.randn(1, 6, 6, 8)
    changed = tokens.clone()
    changed[0, 5, 5] = torch.randn(8)
    moved = (attention(changed) - attention(tokens)).abs().sum(3)[0] > 1e-6
    assert moved.nonzero().tolist() == [[4, 4], [4, 5], [5, 4], [5, 5]]
    attention, tokens = LocalAttention(8, 2, 5), torch.randn(1, 3, 3, 8)  # the window holds all
    query, key, value = attention.query_key_value(attention.norm(tokens)).view(1, 9, 3, 2, 4).permute(2, 0, 3, 1, 4)
    wanted = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(1, 3, 3, 8)
    torch.testing.assert_close(attention(tokens), attention.leave(wanted))


@torch.no_grad()
def test_a_known_pattern_of_positions_is_removed():
    upsampler, (whole, tiles, images) = small_upsampler(), inputs()
    clean = upsampler(whole, tiles, images)
    pattern = torch.randn(5, 4, 4)
    pattern -= pattern.mean((1, 2), keepdim=True)
    upsampler.pattern.add_(pattern / upsampler.scale)
    torch.testing.assert_close(upsampler(whole + pattern, tiles + pattern.repeat(1, 2, 2), images), clean)


@torch.no_grad()
def test_a_saved_upsampler_is_opened_as_it_was(tmp_path):
    upsampler, given = small_upsampler(), inputs()
    save_upsampler(upsampler, tmp_path / "sharp")
    assert sorted(path.name for path in (tmp_path / "sharp").iterdir()) == ["config.json", "model.safetensors"]
    opened = load_upsampler(tmp_path / "sharp").eval()
    assert opened.config == upsampler.config
    assert torch.equal(opened(*given), upsampler(*given))


@pytest.mark.parametrize(
    ("change", "missing", "message"),
    [
        ({}, "config.json", "a folder with config.json"),
        ({}, "model.safetensors", "a folder with model.safetensors"),
        ({"width": 8}, None, "FeatSharp"),
        ({"window": 4}, None, "`window` .* 4"),
        ({"width": 9}, None, "`width` .* 9"),
    ],
)
def test_folders_that_hold_no_upsampler_are_refused_in_one_line(tmp_path, change, missing, message):
    save_upsampler(small_upsampler(), tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    if missing:
        (tmp_path / missing).unlink()
    with pytest.raises(ValueError, match=f"^`upsampler` .*{message}") as error:
        load_upsampler(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "other"), [("kind", "big"), ("source", "a/b"), ("options", {}), ("feature_dim", 6), ("input_size_px", 96)]
)
def test_the_upsampler_of_another_teacher_is_refused(field, other):
    config = small_upsampler().config
    check_upsampler(config, FORM, "sharp")
    with pytest.raises(ValueError, match=f"`upsampler` .*`{field}`.* 'sharp'"):
        check_upsampler(config, FORM._replace(**{field: other}), "sharp")
