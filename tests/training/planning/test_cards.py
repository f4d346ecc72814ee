"""Cards by name and by numbers."""

import pytest

from core.settings import SettingsError
from training.planning.costs import CARDS, Card, choose_cards


def test_all_known_cards_unless_one_is_chosen() -> None:
    assert choose_cards(None, None, None) == list(CARDS.values())
    assert choose_cards("L40S", None, None) == [CARDS["L40S"]]


def test_given_numbers_win() -> None:
    assert choose_cards(None, 209.5, 32) == [Card("yours", 209.5e12, 32, "given")]
    assert choose_cards("RTX-5090", 209.5, 32) == [Card("RTX-5090", 209.5e12, 32, "given")]
    (own,) = choose_cards("A100", None, 20)  # a slice of one
    assert (own.peak_flops, own.memory_gib) == (312e12, 20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("H10", None, None), r"^`gpu` must be one of .*got 'H10'.*'H100'"),
        ((None, 100, None), r"^`memory_gib` must be given with `peak_tflops`, got None\."),
        ((None, None, 10), r"^`peak_tflops` must be given with `memory_gib`, got None\."),
        (("Mine", 100, None), r"^`gpu` must be one of"),
    ],
)
def test_what_is_missing_is_named(arguments: tuple, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        choose_cards(*arguments)
