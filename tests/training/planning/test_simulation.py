"""Steps on a number of ranks: what each computes, and how long the exchange takes."""

from types import SimpleNamespace

import pytest

from modeling_radio.training.planning.costs import STUDENT_PART, Card, Networks
from modeling_radio.training.planning.simulation import (
    Speed,
    exchange_seconds,
    num_views,
    simulate_step,
    time_of,
    view_seconds,
)
from modeling_radio.training.recipes.recipe import Recipe


def test_gradients_go_round_in_each_machine_and_by_shares_over_the_network() -> None:
    assert exchange_seconds(900, 1) == 0
    assert exchange_seconds(900, 2) == pytest.approx(900 / 450e9)
    assert exchange_seconds(900, 8) == pytest.approx(2 * 7 / 8 * 900 / 450e9)
    assert exchange_seconds(900, 32) - exchange_seconds(900, 8) == pytest.approx(2 * 3 / 4 * 900 / 8 / 50e9)


def test_ranks_together_compute_what_one_does_alone(networks: Networks, recipe: Recipe) -> None:
    one, two, four = (simulate_step(networks, recipe, number) for number in (1, 2, 4))
    for part in (STUDENT_PART, "siglip2-g"):
        assert one.flops[part] == pytest.approx(2 * two.flops[part]) == pytest.approx(4 * four.flops[part])
    assert (
        one.flops["sam3"] == two.flops["sam3"] == networks.teachers["sam3"].flops(64, 8)
    )  # each fills a canvas of its own
    assert (one.imbalance, two.imbalance) == (1, pytest.approx(1))
    assert (one.idle_passes, four.idle_passes) == (0, 0.25)  # two of four ranks have none of the two images of "high"
    alone = networks.student_flops(128) + networks.teachers["siglip2-g"].flops(128, 1)
    # The imbalance of the simulated steps, whose sizes are drawn.
    assert four.imbalance == pytest.approx(1 + 2 * alone / 4 / sum(four.flops.values()), rel=1e-3)
    assert four.patches["high"] == 64


def test_packs_are_evened_out(networks: Networks, recipe: Recipe) -> None:
    partitions = [
        {"name": "low", "sizes_px": [32, 64], "token_budget": 600},
        {"name": "high", "sizes_px": [128, 192], "token_budget": 400, "accumulation_steps": 2},
    ]
    packed = recipe.replace(
        partitions=partitions, views={"teachers": "cached"}, data={"source": "s", "image_size_px": 192}
    )
    step = simulate_step(networks, packed, 2)
    assert step.flops.keys() == {STUDENT_PART}
    assert 1 <= step.imbalance <= step.worst < 1.02
    assert simulate_step(networks, packed, 12).worst > 1.2  # an image of 192 px is more than a rank's share


def test_the_average_passes_in_the_steps_of_mesa(networks: Networks, recipe: Recipe) -> None:
    for start in (4, 0.4):  # of ten steps
        late = recipe.replace(mesa={"weight": 0.5, "start_step": start})
        flops = simulate_step(networks, late, 1).flops
        assert flops["its average (MESA)"] == pytest.approx(0.6 / 3 * flops[STUDENT_PART])


def test_time_is_operations_over_speed_and_no_less_than_the_data_take(networks: Networks, recipe: Recipe) -> None:
    step, card = simulate_step(networks, recipe, 4), Card("", 1e15, 80, "")
    time = time_of(step, recipe, 4, 10**6, Speed(card, 0.5, 100, 0))
    computed = sum(step.flops.values()) / 5e14
    assert sum(time.parts.values()) == pytest.approx(computed)
    assert time.waiting == pytest.approx((step.imbalance - 1) * computed)
    assert time.exchange == exchange_seconds(4 * 10**6, 4)
    # Views of the student and of each teacher: 8 images of "low" have two, 2 of "high" one of these.
    assert step.views == 8 * 3 + 2 * 2
    assert time.data == pytest.approx(step.views / 4 / 2 * 0.01)
    assert time.total == max(computed + time.waiting + time.exchange, time.data)
    slow = time_of(step, recipe, 4, 10**6, Speed(card, 0.5, 400, 0))
    assert (slow.data, slow.total) == pytest.approx((4 * time.data, slow.data))
    assert view_seconds(5000) == view_seconds(10000)  # photographs, which drafts decode at a part of their size


def test_views_of_a_shared_network_are_one_and_of_a_cache_none(networks: Networks, recipe: Recipe) -> None:
    shared = {name: SimpleNamespace(network_of="siglip2-g") for name in networks.teachers}
    assert num_views(recipe, shared, 16) == 10 * 2
    assert num_views(recipe.replace(views={"teachers": "cached"}), shared, 16) == 0
