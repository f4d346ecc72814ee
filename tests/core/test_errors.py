import pytest

from modeling_radio.checks_radio import check_choice, did_you_mean
from modeling_radio.core.errors import first_few


def test_a_wrong_choice_is_answered_with_the_nearest():
    check_choice("kind", "dinov3", ["dinov3", "sam3"])
    with pytest.raises(KeyError, match=r"`kind` .*\['dinov3', 'sam3'\], got 'sam'. Did you mean 'sam3'\?"):
        check_choice("kind", "sam", ["dinov3", "sam3"], error=KeyError)
    assert did_you_mean("dinov", ["dinov3", "sam3"]) == " Did you mean 'dinov3'?"


def test_long_lists_end_with_dots():
    assert [first_few(items, 2) for items in ([], [1, 2], ["a", "b", "c"])] == ["", "1, 2", "a, b, ..."]
