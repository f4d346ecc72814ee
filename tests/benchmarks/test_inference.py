"""Networks run in the shape and type that is compared, and rows follow from their times."""

import pytest
import torch
from releases import needs_flop_counter

from benchmarks import inference
from benchmarks.inference import (
    COMPILED,
    EQUAL_WORK,
    NATIVE,
    NETWORKS,
    OURS,
    WINDOWED,
    full_batch,
    measure_speed,
    rows_of,
)
from benchmarks.measuring import Placement, Turns, count_flops
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


ONCE = {"min_rounds": 1}


def test_numbers_follow_from_the_seconds() -> None:
    turns = Turns({OURS: [0.1, 0.2, 0.3], NATIVE: [0.2, 0.2, 0.3], "plain code": [0.3, 0.1, 0.1]})
    flops = dict.fromkeys(turns.seconds, 8e6)
    rows = {row["contender"]: row for row in rows_of(64, 4, Placement(), turns, flops, 0.1)}
    row = rows[OURS]
    assert (row["ms"], row["images/s"], row["GFLOP"]) == (200, 20, 0.008)
    assert row["times as fast as native"] == "1.00 (1.00 to 1.50)"
    assert row["share of peak"] == pytest.approx(0.4)
    assert (row["best of equal work"], row["times as fast as that"]) == ("plain code", "0.50 (0.42 to 1.75)")
    assert "best of equal work" not in rows[NATIVE]
    assert [full_batch(size, 16) for size in (224, 512, 1024, 2048, 4096)] == [167, 32, 8, 2, 1]


@needs_flop_counter
def test_speed_has_a_row_for_each_network_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "names_on", lambda device: ["ours", "native", "timm ViT"])
    rows = measure_speed("radio-test", [32, 64], Placement(), 100.0, ONCE, {64: 2})
    names = [(row["size_px"], row["batch"], row["contender"]) for row in rows]
    assert names == [
        (size, batch, name) for size, batch in ((32, 1), (64, 2)) for name in ("ours", "native", "timm ViT")
    ]
