"""Networks run in the shape and type that is compared, and rows follow from their times."""

import pytest
import torch
from releases import needs_flop_counter

from benchmarks.inference import COMPILED, EQUAL_WORK, NETWORKS, OURS, WINDOWED
from benchmarks.measuring import Placement, count_flops
from modeling_radio import RadioConfig


CONFIG = RadioConfig.from_preset("radio-test")
EAGER = [name for name in NETWORKS if name != COMPILED]


@pytest.mark.parametrize("name", EAGER)
def test_networks_run_in_the_type_that_is_asked_for(name: str) -> None:
    tokens = NETWORKS[name].build(CONFIG, Placement("cpu", torch.bfloat16), 64)
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
        name: count_flops(lambda name=name: NETWORKS[name].build(CONFIG, Placement(), 160)(images)) for name in counted
    }
    assert flops.pop(WINDOWED) < flops[OURS]
    assert len(set(flops.values())) == 1
