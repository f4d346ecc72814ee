"""How checkpoints are opened without needless work."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """Keep Python from looking for garbage meanwhile; it goes on afterwards if it was on.

    Opening a folder makes thousands of small objects, and each few hundred of them make the collector walk through
    those of torch and transformers: more than half of the processor time of opening C-RADIOv4-H, weights apart.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
