"""The ways to run a teacher, by the names that recipes give them."""

from __future__ import annotations

from training.recipe_sections.networks import RunModeName, RunOptions, Upsampling
from training.teachers.run_modes.base import FixedMode, NativeMode, NetworkTraits, RunMode
from training.teachers.run_modes.featsharp import SharpenedMode
from training.teachers.run_modes.mosaic import MosaicMode
from training.teachers.run_modes.tile_upsampling import TiledMode


RUN_MODES: dict[tuple[RunModeName, Upsampling], type[RunMode]] = {
    ("native", "bilinear"): NativeMode,
    ("fixed", "bilinear"): FixedMode,
    ("fixed", "tiles"): TiledMode,
    ("fixed", "featsharp"): SharpenedMode,
    ("mosaic", "bilinear"): MosaicMode,
}
"""By `run_mode` and `upsample`."""


def build_run_mode(traits: NetworkTraits, options: RunOptions, default: RunModeName) -> RunMode:
    """Return the way to run a network.

    Args:
        traits: Of the network.
        options: How; a size without a mode means "fixed".
        default: The mode where the options leave it open.

    Raises:
        ValueError: If the network cannot run so.
    """
    name = options.run_mode or (default if options.input_size_px is None else "fixed")
    mode = RUN_MODES.get((name, options.upsample))
    if mode is None:
        known = " or ".join(repr(each) for each, upsample in RUN_MODES if upsample == options.upsample)
        raise traits.error(f"`run_mode` must be {known} for `upsample` {options.upsample!r}, got {name!r}.")
    return mode(traits, options.replace(run_mode=name))
