"""Numbers about the speed of ranks in the trackers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from torch import distributed
from two_forks import run_two_forks

from modeling_radio.training.distillation import throughput
from modeling_radio.training.distillation.throughput import Throughput, card_named, flops_of_step
from modeling_radio.training.planning.costs import CARDS
from modeling_radio.training.recipes.recipe import Recipe, load_recipe
from modeling_radio.training.targets.examples import Example
from modeling_radio.training.views.plan import BatchPlan


@pytest.mark.parametrize(
    ("device_name", "card"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A10G", None),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("AMD Instinct MI300X", None),
    ],
)
def test_only_cards_of_a_known_peak_are_known(device_name: str, card: str | None) -> None:
    assert card_named(device_name) == (None if card is None else CARDS[card])


def accelerator(rank: int, num_ranks: int) -> Accelerator:
    fields: dict[str, Any] = {"device": torch.device("cpu"), "is_main_process": rank == 0, "num_processes": num_ranks}
    return cast(Accelerator, SimpleNamespace(**fields))


NOTHING = Example([], {})


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe("demo", ["partitions.low.sizes_px=[64]", "partitions.low.batch_size=8"])


def test_a_process_alone_has_its_own_numbers_and_on_a_known_card_its_share_of_the_peak(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = Throughput(recipe, accelerator(0, 1)).end_interval(2, 4.0, 1.0, 3.0)
    assert unknown.keys() == {"tokens_per_second", "data_seconds", "memory_gib"}
    monkeypatch.setattr(throughput, "card_of", lambda device: CARDS["L4"])
    speed = Throughput(recipe, accelerator(0, 1))
    for batch in BatchPlan(recipe, 100, patch_size=16).steps(0, 2):
        speed.see(batch, NOTHING, {})
    values = speed.end_interval(2, 4.0, 1.0, 3.0)
    assert values["tokens_per_second"] == 2 * 8 * 16 / 4
    assert values["data_seconds"] == 0.5
    assert 0.05 < values["memory_gib"] < 1000
    assert values["mfu"] == pytest.approx(flops_of_step(recipe, 1) * 2 / 4 / 121e12)
    assert values["mfu"] > 0
    assert speed.end_interval(2, 4.0, 1.0, 3.0)["tokens_per_second"] == 0


def test_ranks_are_compared_and_the_slowest_is_named(recipe: Recipe, tmp_path: Path) -> None:
    def check() -> None:
        rank = distributed.get_rank()
        speed = Throughput(recipe, accelerator(rank, 2))
        for batch in BatchPlan(recipe, 100, rank, 2, patch_size=16).steps(0, 1):
            speed.see(batch, NOTHING, {})
        values = speed.end_interval(1, 2.0, [1.0, 4.0][rank], [3.0, 5.0][rank])
        assert values["tokens_per_second"] == 8 * 16 / 2
        assert values["rank_tokens_per_second/mean"] == 4 * 16 / 2
        assert [values[f"data_seconds/{part}"] for part in ("min", "mean", "max")] == [1.0, 2.5, 4.0]
        assert [values[f"own_seconds/{part}"] for part in ("min", "mean", "max")] == [3.0, 4.0, 5.0]
        assert values["slowest_rank"] == 1
        assert values["memory_gib/min"] > 0

    run_two_forks(check, tmp_path)
