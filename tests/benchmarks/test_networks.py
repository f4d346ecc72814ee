"""Every network runs in the shape and type that it is compared in, and equal work is equal."""

import pytest
import torch
from releases import needs_flop_counter

from benchmarks.inference import COMPILED, EQUAL_WORK, NETWORKS, OURS, PREPACKED, WINDOWED, build_ours, names_on
from benchmarks.measuring import Place, count_flops
from modeling_radio import RadioConfig


CONFIG = RadioConfig.from_preset("radio-test")
EAGER = [name for name in NETWORKS if name != COMPILED]


@pytest.mark.parametrize("name", EAGER)
def test_networks_run_in_the_type_that_is_asked_for(name: str) -> None:
    tokens = NETWORKS[name].build(CONFIG, Place("cpu", torch.bfloat16), 64)
    with torch.no_grad():
        answer = tokens(torch.rand(2, 3, 64, 64).bfloat16())
    patches_alone = name in ("SigLIP2", "SAM3")
    assert answer.shape == (2, 16 + (0 if patches_alone else CONFIG.num_prefix_tokens), CONFIG.hidden_size)
    assert answer.dtype == torch.bfloat16


@needs_flop_counter
def test_equal_work_is_equal() -> None:
    images = torch.rand(1, 3, 160, 160)
    counted = [name for name in (*EQUAL_WORK, WINDOWED) if NETWORKS[name].counted_as is None]
    flops = {
        name: count_flops(lambda name=name: NETWORKS[name].build(CONFIG, Place(), 160)(images)) for name in counted
    }
    assert flops.pop(WINDOWED) < flops[OURS]
    assert len(set(flops.values())) == 1


def test_prepacked_weights_are_for_a_cpu() -> None:
    assert set(NETWORKS) - set(names_on("cuda")) == {PREPACKED}
    assert names_on("cpu") == list(NETWORKS)


def test_compiled_blocks_are_compiled_once_for_all_sizes() -> None:
    """The second size makes the sizes of the graph symbols; no further one compiles anything."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    model, graphs = build_ours(CONFIG, Place()), []
    for block in model.radio_model.model.blocks:
        block.compile(dynamic=None, backend="eager")
    with torch.no_grad():
        for size in (32, 64, 96, 128, 176, 256):
            before = counters["stats"]["unique_graphs"]
            expected = model(torch.rand(1, 3, size, size), window_size="global").features
            assert expected.shape[1] == (size // 16) ** 2
            graphs.append(counters["stats"]["unique_graphs"] - before)
    torch._dynamo.reset()
    assert graphs == [1, 1, 0, 0, 0, 0]
