"""How much memory resized positions hold, what is forgotten first, and that threads and copies do no harm."""

import copy
import pickle
import resource
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.layers_radio import PositionCache


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


def test_what_was_not_asked_for_the_longest_goes_first(table):
    cache, calls = PositionCache(), []
    for rows, cols in ((2, 4), (1, 4), (1, 4), (2, 4), (4, 2), (2, 4), (1, 4)):
        ask(cache, table, rows, cols, calls)
    assert calls == [(2, 4), (1, 4), (4, 2), (1, 4)]  # (4, 2) had pushed it out
    assert cache.num_bytes == (8 + 4) * 4 * 4


def test_no_more_is_held_than_the_table_but_one_grid_always_is(table):
    cache, calls = PositionCache(), []
    for cols in range(1, 17):
        ask(cache, table, 1, cols, calls)
        assert cache.num_bytes <= table.nbytes
    large = cache.get(table, (9, 9, table.dtype), lambda: torch.rand(1, 81, 4))
    assert cache.get(table, (9, 9, table.dtype), pytest.fail) is large


def test_copies_and_pickles_hold_nothing(table):
    cache = PositionCache()
    ask(cache, table, 4, 4)
    assert copy.deepcopy(cache).num_bytes == pickle.loads(pickle.dumps(cache)).num_bytes == 0
    assert cache.num_bytes == table.nbytes


def test_threads_get_what_they_asked_for(table):
    cache = PositionCache()
    grids = [(rows, cols) for rows in range(1, 5) for cols in range(1, 5)]

    def ask_all(offset: int) -> bool:
        return all(
            torch.equal(ask(cache, table, rows, cols), table[:, : rows * cols])
            for _ in range(50)
            for rows, cols in grids[offset:] + grids[:offset]
        )

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(ask_all, range(0, 16, 4)))
    assert cache.num_bytes <= table.nbytes


def test_what_is_resized_in_inference_mode_can_be_trained_with(table):
    cache = PositionCache()
    with torch.inference_mode():
        ask(cache, table, 2, 2)
        changed = table * 2  # has no version counter
        kept = cache.get(changed, (2, 2, table.dtype), lambda: changed[:, :4].clone())
    assert not kept.is_inference()
    weight = torch.ones(4, requires_grad=True)
    (ask(cache, table, 2, 2) * weight).sum().backward()
    assert torch.equal(weight.grad, table[0, :4].sum(0))


@torch.no_grad()
@pytest.mark.usefixtures("one_thread")
def test_memory_stays_flat_over_three_hundred_grids():
    """All of them together would be 25 MB."""
    config = RadioConfig.from_preset(
        "radio-test",
        hidden_size=256,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_img_size=320,
    )
    model = RadioModel(config).eval()
    cache = model.radio_model.model.patch_generator.resized
    grids = [(rows, cols) for rows in range(1, 21) for cols in range(1, 16)]

    def look_at(grids: list[tuple[int, int]]) -> int:
        for rows, cols in grids:
            model(torch.zeros(1, 3, 16 * rows, 16 * cols), window_size=2 + (rows + cols) % 5)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = look_at(grids[-20:])  # the largest ones
    after = look_at(grids)
    assert len(grids) == 300
    assert cache.num_bytes <= model.radio_model.model.patch_generator.pos_embed.nbytes
    assert after - before < 8192  # KiB
