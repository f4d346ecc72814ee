"""ViTDet windows over any grid against dense masked attention written independently here."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.windows_radio import partition_windows


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
    tokens = network.model.patch_generator(network.input_conditioner(pixel_values))
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


@pytest.mark.parametrize(("rows", "cols", "window"), [(8, 8, 4), (7, 11, 3), (2, 3, 8), (9, 4, 4)])
def test_partition_is_a_permutation_into_at_most_four_runs(rows, cols, window):
    partition = partition_windows(rows, cols, window)
    assert sorted(partition.order.tolist()) == list(range(rows * cols))
    assert sum(count * length for count, length in partition.segments) == rows * cols
    assert len(partition.segments) <= 4


def test_config_default_and_global_override(model):
    batch = torch.rand(1, 3, 96, 80)
    with torch.no_grad():
        whole, windowed = model(batch).features, model(batch, window_size=2).features
        model.config.vitdet_window_size = 2
        assert torch.equal(model(batch).features, windowed)
        assert torch.equal(model(batch, window_size="global").features, whole)
    assert not torch.allclose(whole, windowed)


@pytest.mark.parametrize("window", [0, -1, 2.5, "large"])
def test_bad_window(model, window):
    with pytest.raises(ValueError, match="window_size"):
        model(torch.rand(1, 3, 32, 32), window_size=window)


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
