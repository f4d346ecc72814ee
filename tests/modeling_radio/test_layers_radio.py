"""Cropped position embeddings against torch's own sampling of an image; blocks and their attention."""

import math
import shutil

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.layers_radio import (
    MAX_CROP_ASPECT,
    MIN_CROP_AREA,
    POSITION_DRAWS,
    RESIZED_CHANNELS,
    PositionCache,
    RadioAttention,
    RadioMLP,
    RadioPatchGenerator,
    resize_position_table,
)


def sampled_as_an_image(table: Tensor, rows: int, cols: int, uniform: Tensor) -> Tensor:
    """Return what `sample_positions` shall return for a table `(side, side, hidden)`, by `grid_sample`."""
    scale = math.sqrt(MIN_CROP_AREA) + uniform[:, 0] * (1 - math.sqrt(MIN_CROP_AREA))
    aspect = torch.exp((2 * uniform[:, 1] - 1) * math.log(MAX_CROP_ASPECT))
    extent = torch.stack([scale * aspect, scale / aspect], dim=1).clamp(max=1)
    offset = uniform[:, 2:] * (1 - extent)
    x = torch.linspace(0, 1, cols) * extent[:, :1] + offset[:, :1]
    y = torch.linspace(0, 1, rows) * extent[:, 1:] + offset[:, 1:]
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1)
    images = table.permute(2, 0, 1).expand(len(uniform), -1, -1, -1)
    return F.grid_sample(images, grid * 2 - 1, mode="bilinear", align_corners=True).flatten(2).transpose(1, 2)


@pytest.mark.parametrize(("side", "rows", "cols"), [(16, 4, 7), (5, 12, 1), (1, 3, 2)])
def test_a_crop_is_sampled_as_an_image_is(side: int, rows: int, cols: int) -> None:
    torch.manual_seed(0)
    config = RadioConfig(hidden_size=12, num_attention_heads=3, max_img_size=16 * side, patch_size=16)
    generator = RadioPatchGenerator(config)
    torch.nn.init.normal_(generator.pos_embed)
    uniform = torch.rand(6, POSITION_DRAWS)
    uniform[0], uniform[1] = 0.0, 1 - 2**-24  # the smallest crop, top left, and the whole table
    table = generator.pos_embed.detach()[0].unflatten(0, (side, side)).requires_grad_()

    sampled = generator.sample_positions(rows, cols, uniform)
    expected = sampled_as_an_image(table, rows, cols, uniform)
    weights = torch.randn_like(expected)
    (sampled * weights).sum().backward()
    (expected * weights).sum().backward()

    torch.testing.assert_close(sampled, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(generator.pos_embed.grad[0], table.grad.flatten(0, 1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(3, 5), (12, 12), (7, 20)])
@pytest.mark.parametrize("align_corners", [False, True])
def test_some_channels_at_a_time_give_the_same_bits(
    dtype: torch.dtype, size: tuple[int, int], align_corners: bool
) -> None:
    """As of the whole table in float32, in one piece."""
    table = torch.randn(1, 12, 12, 2 * RESIZED_CHANNELS + 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    whole = table.float().permute(0, 3, 1, 2).contiguous()
    expected = F.interpolate(whole, size, mode="bilinear", align_corners=align_corners).flatten(2).transpose(1, 2)
    assert torch.equal(resize_position_table(table, *size, align_corners), expected)


@pytest.fixture
def table() -> Tensor:
    """16 positions of 4 channels."""
    return torch.rand(1, 16, 4)


def ask(cache: PositionCache, table: Tensor, rows: int, cols: int, calls: list | None = None) -> Tensor:
    def resize() -> Tensor:
        if calls is not None:
            calls.append((rows, cols))
        return table[:, : rows * cols].clone()

    return cache.get(table, (rows, cols, table.dtype), resize)


def num_bytes(cache: PositionCache) -> int:
    return sum(position.nbytes for position in cache._kept[1].values())


def test_no_more_is_held_than_the_table_but_one_grid_always_is(table):
    cache, calls = PositionCache(), []
    for cols in range(1, 17):
        ask(cache, table, 1, cols, calls)
        assert num_bytes(cache) <= table.nbytes
    large = cache.get(table, (9, 9, table.dtype), lambda: torch.rand(1, 81, 4))
    assert cache.get(table, (9, 9, table.dtype), pytest.fail) is large


@pytest.fixture
def model() -> RadioModel:
    config = RadioConfig.from_preset("radio-test", num_hidden_layers=6, vitdet_num_global=2)
    return RadioModel(config).eval()


def masked_reference(model: RadioModel, pixel_values: torch.Tensor, window: int) -> torch.Tensor:
    """The whole transformer with one dense mask per windowed block; prefix tokens keep their value there."""
    network, prefix = model.radio_model, model.config.num_prefix_tokens
    rows, cols = (size // model.patch_size for size in pixel_values.shape[-2:])
    row, col = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
    window_of_token = (row // window * cols + col // window).flatten()
    allowed = window_of_token[:, None] == window_of_token[None, :]
    generator = network.model.patch_generator
    tokens = generator(generator.split_patches(network.input_conditioner(pixel_values)), rows, cols)
    for index, block in enumerate(network.model.blocks):
        is_global = index in (2, 5)
        span = slice(0, None) if is_global else slice(prefix, None)
        x = tokens[:, span]
        heads = block.attn.num_heads
        q, k, v = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=None if is_global else allowed)
        x = x + block.attn.proj(mixed.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
        tokens = torch.cat([tokens[:, : span.start], x], dim=1)
    return tokens


@pytest.mark.parametrize("window", [1, 2, 3, 4, 7, 8, 20])
@pytest.mark.parametrize("grid", [(8, 8), (7, 11), (3, 9), (1, 5)])
def test_ragged_windows_equal_masked_attention(model, grid, window):
    batch = torch.rand(2, 3, grid[0] * 16, grid[1] * 16)
    with torch.no_grad():
        expected = masked_reference(model, batch, window)
        actual = model(batch, window_size=window).last_hidden_state
    torch.testing.assert_close(actual, expected, rtol=0, atol=5e-6)


def test_flash_kernels_get_all_windows_in_one_call(model, monkeypatch):
    """With a flash implementation ragged windows are one variable-length call; a stand-in kernel computes it here."""
    calls = []

    def variable_length_kernel(module, query, key, value, attention_mask, scaling, dropout, **lengths):
        boundaries = lengths.get("cu_seq_lens_q")
        calls.append(boundaries)
        if boundaries is None:
            boundaries = torch.tensor([0, query.shape[2]])
        parts = [
            F.scaled_dot_product_attention(*(t[:, :, start:end] for t in (query, key, value)), scale=scaling)
            for start, end in zip(boundaries[:-1].tolist(), boundaries[1:].tolist(), strict=True)
        ]
        return torch.cat(parts, dim=2).transpose(1, 2), None

    batch = torch.rand(2, 3, 7 * 16, 5 * 16)
    with torch.no_grad():
        expected = model(batch, window_size=3).last_hidden_state
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", variable_length_kernel)
        model.config._attn_implementation_internal = "flash_attention_2"
        actual = model(batch, window_size=3).last_hidden_state
    assert sum(call is not None for call in calls) == 4
    torch.testing.assert_close(actual, expected, rtol=0, atol=5e-6)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling flex attention on a CPU needs a C++ compiler")
@pytest.mark.parametrize("window", ["global", 3])
def test_flex_equals_sdpa(model, window):
    """The real kernel, ragged windows too: 7 x 5 patches do not divide by 3."""
    batch = torch.rand(1, 3, 7 * 16, 5 * 16)
    with torch.no_grad():
        expected = model(batch, window_size=window).last_hidden_state
        model.set_attn_implementation("flex_attention")
        actual = model(batch, window_size=window).last_hidden_state
    torch.testing.assert_close(actual, expected, rtol=0, atol=5e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("window", ["global", 3])
def test_flash_equals_sdpa(model, window):
    pytest.importorskip("flash_attn")
    model = model.to("cuda", torch.bfloat16)
    batch = torch.rand(1, 3, 7 * 16, 5 * 16, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        expected = model(batch, window_size=window).last_hidden_state
        model.set_attn_implementation("flash_attention_2")
        actual = model(batch, window_size=window).last_hidden_state
    torch.testing.assert_close(actual, expected, rtol=0.05, atol=0.05)


class PlainAttention(nn.Module):
    """What timm's attention computes, of tokens alone."""

    def __init__(self, attention: RadioAttention) -> None:
        super().__init__()
        self.qkv, self.proj, self.num_heads = attention.qkv, attention.proj, attention.num_heads

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    ("how", "backend"), [("global", None), ("windows", None), ("pack", None), ("windows", "eager")]
)
def test_an_attention_of_the_callers_gets_each_segment_as_a_sequence(how, backend):
    config = RadioConfig.from_preset("radio-test", num_hidden_layers=2, vitdet_num_global=1)
    model = RadioModel(config).eval()
    call = {"pixel_values": torch.rand(2, 3, 80, 64), "window_size": 3 if how == "windows" else "global"}
    if how == "pack":
        call = {"pixel_values": torch.rand(4 * 3 + 6, 3 * 16 * 16), "image_grid_hw": torch.tensor([[4, 3], [3, 2]])}
    with torch.no_grad():
        expected = model(**call).last_hidden_state
        for block in model.blocks:
            block.attn = PlainAttention(block.attn)
        run = model if backend is None else torch.compile(model, backend=backend)
        torch.testing.assert_close(run(**call).last_hidden_state, expected, rtol=0, atol=1e-5)


def test_blocks_map_tokens_and_only_our_attention_tells_weights():
    model = RadioModel(RadioConfig.from_preset("radio-test", num_hidden_layers=2)).eval()
    images, outputs = torch.rand(1, 3, 32, 48), []
    handle = model.blocks[0].register_forward_hook(lambda _, __, output: outputs.append(output))
    with torch.no_grad():
        expected = model(images, output_hidden_states=True, output_attentions=True)
        handle.remove()
        model.blocks[1].attn = PlainAttention(model.blocks[1].attn)
        first, second = model(images, output_attentions=True).attentions
    assert torch.equal(outputs[0], expected.hidden_states[1])
    assert torch.equal(first, expected.attentions[0])
    assert second is None


@pytest.mark.parametrize("watched", ["fc1 output", "act input", "act output"])
def test_gelu_leaves_what_a_hook_reads(watched):
    """Without hooks it overwrites the output of the first layer."""
    mlp = RadioMLP(RadioConfig.from_preset("radio-test"), 32).requires_grad_(requires_grad=False)
    tokens = torch.randn(2, 5, mlp.fc1.in_features, generator=torch.Generator().manual_seed(1))
    wide = mlp.fc1(tokens)
    assert torch.equal(mlp(tokens), mlp.fc2(F.gelu(wide)))
    seen: list[Tensor] = []
    name, _, side = watched.partition(" ")
    if side == "input":
        getattr(mlp, name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    else:
        getattr(mlp, name).register_forward_hook(lambda _, __, output: seen.append(output))
    mlp(tokens)
    assert torch.equal(seen[0], F.gelu(wide) if watched == "act output" else wide)
