"""Errors as the page shows them: what a visitor can mend in one sentence, anything else as the bug that it is."""

from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr
import torch


@contextmanager
def clear_errors() -> Iterator[None]:
    """Show what our own code refuses, and a lack of memory, as messages on the page.

    Raises:
        gr.Error: In place of `ValueError`, `OSError` and `torch.OutOfMemoryError`.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        raise gr.Error(" ".join(str(error).split()), print_exception=False) from error
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise gr.Error(
            "The device has too little memory for this. Choose a smaller resolution, windows, or half the precision.",
            print_exception=False,
        ) from error
