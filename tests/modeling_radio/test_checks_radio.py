"""Suggestions for misspelled names, and choices and blocks that are refused."""

import pytest

from modeling_radio.checks_radio import check_blocks, check_choice, did_you_mean


def test_near_words_are_suggested_and_far_ones_are_not():
    assert did_you_mean("sumary", ["summary", "features"]) == " Did you mean 'summary'?"
    assert did_you_mean("xyz", ["summary", "features"]) == ""


def test_choices_are_listed_with_the_nearest():
    check_choice("views.teachers", "online", ("online", "cached"))
    with pytest.raises(ValueError, match=r"`views.teachers` must be one of \['online', 'cached'\], got 'onlin'. Did"):
        check_choice("views.teachers", "onlin", ("online", "cached"))
    with pytest.raises(KeyError, match="got None"):
        check_choice("a", None, ("b",), error=KeyError)


@pytest.mark.parametrize("blocks", [[], [1, 0], [0, 0], [-1], [4]])
def test_blocks_that_do_not_ascend_or_exist_are_refused(blocks):
    with pytest.raises(ValueError, match="`indices`"):
        check_blocks("indices", blocks, 4)


def test_a_counted_list_may_repeat_blocks():
    check_blocks("indices", [0, 3], 4)
    check_blocks("dpt_indices", [0, 1, 1, 3], 4, count=4)
    with pytest.raises(ValueError, match="`dpt_indices`"):
        check_blocks("dpt_indices", [0, 1, 3], 4, count=4)
