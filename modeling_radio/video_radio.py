"""Clips of video: their frames in temporal patches, their common position crop, and outputs clip by clip."""

from typing import Any

import torch
from torch import Tensor
from transformers.utils.generic import ModelOutput

from .batches_radio import ImageBatch
from .configuration_radio import RadioConfig
from .position_crops_radio import POSITION_DRAWS


class Clips(ImageBatch):
    """A batch of clips as the network takes it: groups of frames, each of which becomes one image's tokens.

    A group is `config.video_temporal_patch_size` frames, whose patches are projected together; the last frame is
    repeated where the frames do not fill the last group. Without that field each frame is a group, and its patches are
    an image's. No group sees another one.

    Args:
        frames: RGB frames in [0, 1], `(clips, frames, channels, height, width)`.
        config: What decides the number of frames in a group.

    Attributes:
        pixels: All frames, clip after clip, `(clips * frames, channels, height, width)`.
        group_size: Frames of a group.
        num_groups: Groups of each clip.

    Raises:
        ValueError: If it is no such tensor.

    References:
        Temporal patches: transformers' `RadioModel`, and NVIDIA's Nemotron-3-Nano-Omni, whose vision encoder it is.
    """

    def __init__(self, frames: Any, config: RadioConfig) -> None:
        shape = tuple(frames.shape) if isinstance(frames, Tensor) else f"a {type(frames).__name__}"
        if not isinstance(frames, Tensor) or frames.ndim != 5 or not frames.shape[0] or not frames.shape[1]:
            raise ValueError(
                "`pixel_values_videos` must be a tensor of the shape (clips, frames, channels, height, width) with at "
                f"least one frame, got {shape}."
            )
        super().__init__(frames.flatten(0, 1), config, "pixel_values_videos")
        self.num_clips = self.num_images = frames.shape[0]
        self.is_temporal = config.video_temporal_patch_size is not None
        self.group_size = config.video_temporal_patch_size or 1
        self.num_groups = -(-frames.shape[1] // self.group_size)

    def embed(self, network: Any, draws: Tensor | None) -> Tensor:
        """Return the tokens `(clips * groups, length, hidden)`; the groups of a clip share its `draws`."""
        generator = network.model.patch_generator
        patches = generator.split_patches(self._group(network.input_conditioner(self.pixels)))
        draws = self._share_positions(draws, network.training)
        return generator(patches, *self.grid, draws, temporal=self.is_temporal)

    def _group(self, frames: Tensor) -> Tensor:
        """Join all frames to groups, `(clips * groups, group_size * channels, height, width)`."""
        frames = frames.unflatten(0, (self.num_images, -1))
        missing = self.num_groups * self.group_size - frames.shape[1]
        if missing:
            frames = torch.cat([frames, frames[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)
        return frames.unflatten(1, (self.num_groups, self.group_size)).flatten(2, 3).flatten(0, 1)

    def _share_positions(self, draws: Tensor | None, training: bool) -> Tensor | None:
        """Return the random numbers that decide each group's position crop: those of its clip.

        Args:
            draws: Of each clip, `(clips, POSITION_DRAWS)`; `None` draws them where they are needed.
            training: Whether they are.
        """
        if draws is None and training:
            draws = torch.rand(self.num_images, POSITION_DRAWS, device=self.pixels.device)
        return self.spread(draws)

    def spread(self, by_image: Tensor | None) -> Tensor | None:
        """Repeat what belongs to each clip for each of its groups, `(clips, ...)` to `(clips * groups, ...)`."""
        return None if by_image is None else by_image.repeat_interleave(self.num_groups, dim=0)


def by_clip(value: Any, num_clips: int) -> Any:
    """Cut the first axis of every tensor of an output into `(clips, groups)`.

    Args:
        value: A tensor `(clips * groups, ...)`, `None`, or a tuple or an output of transformers' that holds such.
        num_clips: Clips of the batch.
    """
    if isinstance(value, Tensor):
        return value.unflatten(0, (num_clips, -1))
    if isinstance(value, ModelOutput):
        return type(value)(**{name: by_clip(entry, num_clips) for name, entry in value.items()})
    if isinstance(value, tuple):
        return tuple(by_clip(entry, num_clips) for entry in value)
    return value
