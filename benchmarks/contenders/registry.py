"""All contenders by name."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from benchmarks.contenders import peers, radio
from benchmarks.contenders.radio import Encode
from benchmarks.contenders.shapes import Place, Shape, Work, global_work
from modeling_radio import RadioConfig


WINDOW = 8
"""Tokens along a side of the window that is compared: the one that `window_size` users ask for most speed with. Our
choice."""
OURS = "ours"
WINDOWED = f"ours, window {WINDOW}"
COMPILED = "ours, compiled"
PREPACKED = "ours, prepacked"
NATIVE = "native"
EQUAL_WORK = (OURS, COMPILED, PREPACKED, NATIVE, "timm RADIO", "timm ViT", "plain code")
"""Contenders that do the same work in the same shape, token for token."""


class Contender(NamedTuple):
    """A network that is timed.

    Attributes:
        build: From configuration and place, and where `by_size` the side of the images, to what encodes images.
        work: From shape, rows and columns of patches to what its blocks do.
        by_size: Whether it is built for one size.
    """

    build: Callable[..., Encode]
    work: Callable[[Shape, int, int], Work]
    by_size: bool = False

    def encoder(self, config: RadioConfig, place: Place, size: int) -> Encode:
        """Return what encodes images of a size."""
        return self.build(config, place, size) if self.by_size else self.build(config, place)


def _all_tokens(shape: Shape, rows: int, cols: int) -> Work:
    return global_work(shape, shape.num_prefix + rows * cols)


def _patch_tokens(shape: Shape, rows: int, cols: int) -> Work:
    return global_work(shape, rows * cols)


CONTENDERS: dict[str, Contender] = {
    OURS: Contender(radio.encode_with_ours, _all_tokens),
    COMPILED: Contender(partial(radio.encode_with_ours, compiled=True), _all_tokens),
    PREPACKED: Contender(partial(radio.encode_with_ours, prepacked=True), _all_tokens),
    WINDOWED: Contender(partial(radio.encode_with_ours, window=WINDOW), partial(radio.ours_work, window=WINDOW)),
    NATIVE: Contender(radio.encode_with_native, _all_tokens),
    "timm RADIO": Contender(radio.encode_with_timm, _all_tokens),
    "timm ViT": Contender(peers.encode_with_timm_vit, _all_tokens, by_size=True),
    "plain code": Contender(radio.encode_with_plain_code, _all_tokens, by_size=True),
    "DINOv3": Contender(peers.encode_with_dinov3, _all_tokens),
    "SigLIP2": Contender(peers.encode_with_siglip2, _patch_tokens),
    "SAM3": Contender(peers.encode_with_sam3, peers.sam3_work, by_size=True),
}


def contenders_on(device: str, names: Sequence[str]) -> list[str]:
    """Return those of the names that run on a device: weights are prepacked for a CPU alone."""
    return [name for name in names if device == "cpu" or name != PREPACKED]
