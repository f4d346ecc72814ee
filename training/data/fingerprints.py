"""Fingerprints of images by their content: the same wherever they lie, whenever they were copied there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from foundation.settings import hash_of
from training.data.decoding import EncodedImage


MAX_SAMPLES = 1000
"""Images whose content is looked at, evenly spaced. Our choice: a second or two of reading, whatever their number. The
sizes of all are known besides, and hardly any change of an image keeps its size in bytes."""

SAMPLE_BYTES = 65_536
"""Of the content of each, at its beginning and at its end. Our choice."""


def content_fingerprint(
    image_at: Callable[[int], EncodedImage], num_bytes: Sequence[int], names: Sequence[str] = ()
) -> str:
    """Return a hash of the sizes of images, of their names if they have some, and of a sample of their contents.

    Args:
        image_at: Returns an image by number; only those of the sample are asked for.
        num_bytes: The size of each.
        names: By which they are known, without the place that they lie at.
    """
    state = hashlib.sha256(hash_of({"sizes": list(num_bytes), "names": list(names)}).encode())
    num_samples = min(len(num_bytes), MAX_SAMPLES)
    for sample in range(num_samples):
        state.update(hashlib.sha256(_ends(image_at(sample * len(num_bytes) // num_samples))).digest())
    return state.hexdigest()[:16]


def _ends(image: EncodedImage) -> bytes:
    """Return the beginning and the end of an image file, or all of a short one."""
    if isinstance(image.content, Path):
        with image.content.open("rb") as file:
            head = file.read(SAMPLE_BYTES)
            file.seek(max(file.seek(0, 2) - SAMPLE_BYTES, len(head)))
            return head + file.read()
    return image.content[:SAMPLE_BYTES] + image.content[max(len(image.content) - SAMPLE_BYTES, SAMPLE_BYTES) :]
