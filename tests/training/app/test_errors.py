import gradio as gr
import pytest
import torch

from training.app.errors import clear_errors


@pytest.mark.parametrize("error", [ValueError("`a` must be 1,\n  got 2."), OSError("`a` must be 1, got 2.")])
def test_what_can_be_mended_is_one_sentence_on_the_page(error):
    with pytest.raises(gr.Error) as caught, clear_errors():
        raise error
    assert caught.value.message == "`a` must be 1, got 2."
    assert not caught.value.print_exception


def test_a_lack_of_memory_says_what_helps():
    with pytest.raises(gr.Error, match="Choose a smaller resolution"), clear_errors():
        raise torch.OutOfMemoryError


def test_bugs_stay_bugs():
    with pytest.raises(TypeError), clear_errors():
        raise TypeError
