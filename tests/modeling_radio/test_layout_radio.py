"""ViTDet windows over any grid against dense masked attention written independently here, and the order of packs."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.layers_radio import ImagePack, partition_windows


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


@pytest.mark.parametrize(("rows", "cols", "window"), [(8, 8, 4), (7, 11, 3), (2, 3, 8), (9, 4, 4)])
def test_partition_is_a_permutation_into_at_most_four_runs(rows, cols, window):
    order, segments = partition_windows(rows, cols, window)
    assert sorted(order.tolist()) == list(range(rows * cols))
    assert sum(count * length for count, length in segments) == rows * cols
    assert len(segments) <= 4


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


GRIDS = [(4, 6), (3, 3), (4, 6), (5, 2), (3, 3)]


@pytest.fixture
def pack():
    return ImagePack(torch.tensor(GRIDS), num_prefix=2)


def test_images_of_a_pack_are_sorted_by_grid(pack):
    assert pack.groups == {(4, 6): [0, 2], (3, 3): [1, 4], (5, 2): [3]}
    assert pack.runs == ((2, 26), (2, 11), (1, 12))
    assert pack.largest_grid == (4, 6)
    numbers = torch.arange(sum(rows * cols for rows, cols in GRIDS)).unsqueeze(1)
    by_image = numbers.split([rows * cols for rows, cols in GRIDS])
    for patches, images in zip(pack.group_patches(numbers), pack.groups.values(), strict=True):
        assert torch.equal(patches, torch.stack([by_image[image] for image in images]))


def test_a_packed_sequence_comes_apart_in_the_order_of_the_call(pack):
    owners = torch.cat([torch.tensor(images).repeat_interleave(length) for images, (_, length) in
                        zip(pack.groups.values(), pack.runs, strict=True)])  # fmt: skip
    sequence = owners.float().view(1, -1, 1)
    lengths = [2 + rows * cols for rows, cols in GRIDS]
    expected = torch.arange(len(GRIDS)).repeat_interleave(torch.tensor(lengths)).float()
    assert torch.equal(pack.concatenate(sequence)[:, 0], expected)
    means = [group.mean(dim=(1, 2)) for group in pack.group_sequence(sequence)]
    assert [value.item() for value in pack.ungroup(means)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("window", [1, 2, 3, 9])
def test_windows_of_a_pack_hold_neighbors_of_one_image(pack, window):
    layout = pack.layout(window, torch.device("cpu"))
    assert layout.global_segments == pack.runs
    places = []  # image, row and column of each token, none for prefix tokens
    for grid, images in pack.groups.items():
        for image in images:
            places += [None, None, *((image, row, col) for row in range(grid.height) for col in range(grid.width))]
    windowed = [places[index] for index in layout.window_order.tolist()]
    assert sorted(windowed) == sorted(place for place in places if place is not None)
    for count, size in layout.window_segments:
        for _ in range(count):
            one, windowed = windowed[:size], windowed[size:]
            assert len({(image, row // window, col // window) for image, row, col in one}) == 1
    assert not windowed
