"""What follows from times: ratios, shares of the machine, growth."""

import pytest
import torch

from benchmarks.contenders.registry import CONTENDERS, NATIVE, OURS
from benchmarks.contenders.shapes import Place, Shape, flops_of, global_work
from benchmarks.inference_parts.speed import add_exponents, full_batch, measure_speed, rows_of
from benchmarks.measuring.limits import Limits, measure_limits
from benchmarks.measuring.turns import Turns
from modeling_radio import RadioConfig


SHAPE = Shape.of(RadioConfig.from_preset("radio-test"))


def test_numbers_follow_from_the_seconds() -> None:
    turns = Turns({OURS: [0.1, 0.2, 0.3], NATIVE: [0.2, 0.2, 0.3], "plain code": [0.3, 0.1, 0.1]})
    rows = {row["contender"]: row for row in rows_of(SHAPE, 64, 4, Place(), turns, Limits(0.001, 0.01))}
    row, flops = rows[OURS], flops_of(SHAPE, global_work(SHAPE, 26), 16)
    assert (row["ms"], row["images/s"], row["tokens"]) == (200, 20, 26)
    assert row["times as fast as native"] == "1.00 (1.00 to 1.50)"
    assert row["GFLOP"] == pytest.approx(4 * flops / 1e9, rel=0.01)
    assert row["share of peak"] == pytest.approx(4 * flops / 0.2 / 1e6, rel=0.01)
    assert row["share of bandwidth"] == pytest.approx(4 * 12 * 4 * 32**2 / 0.2 / 1e7, rel=0.01)
    assert row["best of equal work"] == "plain code"
    assert row["times as fast as that"] == "0.50 (0.42 to 1.75)"
    assert "best of equal work" not in rows[NATIVE]


def test_growth_is_a_power_of_the_tokens() -> None:
    rows: list[dict[str, object]] = [
        {"contender": name, "dtype": "float32", "batch": 1, "tokens": tokens, "ms": ms}
        for name, tokens, ms in (("a", 100, 2.0), ("b", 100, 1.0), ("a", 200, 8.0), ("b", 200, 2.0))
    ]
    add_exponents(rows)
    assert [row.get("exponent") for row in rows] == [None, None, 2.0, 1.0]
    rows = [{**row, "batch": number} for number, row in enumerate(rows[::2])]
    rows = [{key: value for key, value in row.items() if key != "exponent"} for row in rows]
    add_exponents(rows)
    assert "exponent" not in rows[1]


def test_every_contender_is_timed() -> None:
    names = [name for name in CONTENDERS if "compiled" not in name]
    rows = measure_speed(
        "radio-test", [32, 64], Place(), Limits(100, 10), names=names, budget_seconds=0, min_rounds=1, batch_of={64: 2}
    )
    assert [(row["size_px"], row["batch"], row["contender"]) for row in rows] == [
        *((32, 1, name) for name in names),
        *((64, 2, name) for name in names),
    ]
    assert all(float(str(row["ms"])) > 0 for row in rows)


def test_full_batches_have_equally_many_patches() -> None:
    assert [full_batch(size, 16) for size in (224, 512, 1024, 2048, 4096)] == [167, 32, 8, 2, 1]


def test_limits_are_measured() -> None:
    limits = measure_limits("cpu", torch.float32, side=64, num_bytes=2**16)
    assert min(limits) > 0
