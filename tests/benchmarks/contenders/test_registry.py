"""Every contender runs in the shape that it is compared in, and its work is what it multiplies."""

import pytest
import torch
from releases import needs_flop_counter
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.contenders.registry import COMPILED, CONTENDERS, EQUAL_WORK, PREPACKED, contenders_on
from benchmarks.contenders.shapes import Place, Shape, flops_of
from modeling_radio import RadioConfig


CONFIG = RadioConfig.from_preset("radio-test")
SHAPE = Shape.of(CONFIG)
EAGER = [name for name in CONTENDERS if name != COMPILED]
SIGLIP2_POSITIONS = 2 * 256 * SHAPE.width
"""Operations of SigLIP2 for each token: it resizes its table by a product of matrices."""


@needs_flop_counter
@pytest.mark.parametrize("size", [64, 160])
@pytest.mark.parametrize("name", [name for name in EAGER if name != PREPACKED])  # whose products nothing counts
def test_work_is_what_is_multiplied(name: str, size: int) -> None:
    contender, side = CONTENDERS[name], size // SHAPE.patch_size
    encode = contender.encoder(CONFIG, Place(), size)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        tokens = encode(torch.rand(1, 3, size, size))
    work = contender.work(SHAPE, side, side)
    assert tokens.shape == (1, work[-1].tokens, SHAPE.width)
    positions = SIGLIP2_POSITIONS * side**2 if name == "SigLIP2" else 0
    assert counter.get_total_flops() - positions == flops_of(SHAPE, work, side**2)


@pytest.mark.parametrize("name", EAGER)
def test_contenders_run_in_the_type_that_is_asked_for(name: str) -> None:
    encode = CONTENDERS[name].encoder(CONFIG, Place("cpu", torch.bfloat16), 64)
    with torch.no_grad():
        assert encode(torch.rand(2, 3, 64, 64).bfloat16()).dtype == torch.bfloat16


def test_prepacked_weights_are_for_a_cpu() -> None:
    assert set(CONTENDERS) - set(contenders_on("cuda", list(CONTENDERS))) == {PREPACKED}
    assert contenders_on("cpu", list(CONTENDERS)) == list(CONTENDERS)


def test_equal_work_is_equal() -> None:
    work = {name: CONTENDERS[name].work(SHAPE, 8, 8) for name in EQUAL_WORK}
    assert len({flops_of(SHAPE, each, 64) for each in work.values()}) == 1


def test_compiled_blocks_are_compiled_once_for_all_sizes() -> None:
    """The second size makes the sizes of the graph symbols; no further one compiles anything."""
    from torch._dynamo.utils import counters

    from benchmarks.contenders.radio import build_ours

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
