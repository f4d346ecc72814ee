"""What the network takes as one batch: images of one size, or a pack of images of different sizes.

Clips of video, a third kind, are in `video_radio.py`, which only calls with clips import.
"""

from typing import Any

import torch
from torch import Tensor

from .configuration_radio import RadioConfig
from .inputs_radio import check_images, check_pack, count_draws
from .layout_radio import AttentionLayout
from .packs_radio import ImagePack
from .resolution_radio import Resolution


class ImageBatch:
    """Images of one size, checked.

    Args:
        pixel_values: RGB images in [0, 1], `(batch, channels, height, width)`.
        config: What decides the channels and the size.
        argument: What they were given as.

    Attributes:
        pixels: As given.
        grid: Rows and columns of patches of each image, or of the largest one of a pack.
        num_images: How many the call has; each has its own random numbers.
        pack: Order of packed images; `None` where all are of one size.
        num_clips: Clips of video, whose groups of frames are the batch; `None` of images.

    Raises:
        ValueError: If shape, size or type are wrong.
    """

    grid: Resolution
    num_images: int
    pack: ImagePack | None = None
    num_clips: int | None = None

    def __init__(self, pixel_values: Any, config: RadioConfig, argument: str = "pixel_values") -> None:
        self.config, self.pixels = config, pixel_values
        self.grid = check_images(pixel_values, config, argument)
        self.num_images = pixel_values.shape[0]

    def draw(self, training: bool) -> Tensor | None:
        """Return the random numbers of a call that gives none; `None` leaves them to where they are needed."""
        return None

    def embed(self, network: Any, draws: Tensor | None) -> Tensor:
        """Return the tokens `(batch, length, hidden)`, by the network's conditioner and patch generator.

        Args:
            network: A `RadioNetwork`.
            draws: What decides each image's position crop in training, `(num_images, POSITION_DRAWS)`.
        """
        generator = network.model.patch_generator
        return generator(generator.split_patches(network.input_conditioner(self.pixels)), *self.grid, draws)

    def layout(self, window_size: int | None, device: torch.device) -> AttentionLayout:
        """Return which tokens attend to each other, in windows of a side in tokens or all."""
        return AttentionLayout.for_grid(*self.grid, self.config.num_prefix_tokens, window_size, device)

    def spread(self, by_image: Tensor | None) -> Tensor | None:
        """Return what belongs to each image, `(num_images, ...)`, for each entry of the batch of tokens."""
        return by_image


class PackedImages(ImageBatch):
    """Images of different sizes in one sequence, checked.

    Args:
        patches: Flattened patches of all images, `(total_patches, channels * patch_size**2)`.
        image_grid_hw: Rows and columns of patches of each image, `(num_images, 2)`.
        config: What decides the size of a patch and the largest grid.

    Raises:
        ValueError: If the shapes do not fit each other, or a grid is too large.
    """

    pack: ImagePack  # pyrefly: ignore[bad-override-mutable-attribute]

    def __init__(self, patches: Any, image_grid_hw: Any, config: RadioConfig) -> None:
        self.config, self.pixels = config, patches
        self.pack = check_pack(patches, image_grid_hw, config)
        self.grid, self.num_images = self.pack.largest_grid, len(self.pack.grids)

    def draw(self, training: bool) -> Tensor | None:
        """Return numbers of each image, as where they are not packed."""
        return torch.rand(self.num_images, count_draws(self.config), device=self.pixels.device) if training else None

    def embed(self, network: Any, draws: Tensor | None) -> Tensor:
        """Return the tokens `(1, length, hidden)` in the order of the pack."""
        size = self.config.patch_size
        images = self.pixels.view(-1, self.config.num_channels, size, size)
        patches = network.input_conditioner(images).flatten(1)
        return network.model.patch_generator(patches, *self.grid, draws, self.pack)

    def layout(self, window_size: int | None, device: torch.device) -> AttentionLayout:
        return self.pack.layout(window_size, device)

    def spread(self, by_image: Tensor | None) -> Tensor | None:
        return None if by_image is None else self.pack.spread(by_image)


def batch_of_call(images: Any, image_grid_hw: Any, videos: Any, config: RadioConfig) -> ImageBatch:
    """Return what a call gives to the network, checked.

    Args:
        images: What was given as `pixel_values`.
        image_grid_hw: Grids of packed images.
        videos: What was given as `pixel_values_videos`.
        config: What decides sizes, and the number of frames in a group.

    Raises:
        ValueError: If there are images and clips, or neither, or they are not what they must be.
    """
    if videos is None:
        if images is None:
            raise ValueError("`pixel_values` or `pixel_values_videos` must be given, got None for both.")
        return ImageBatch(images, config) if image_grid_hw is None else PackedImages(images, image_grid_hw, config)
    for name, value in (("pixel_values", images), ("image_grid_hw", image_grid_hw)):
        if value is not None:
            raise ValueError(f"`{name}` must be None with `pixel_values_videos`, got both. Call once for each.")
    from .video_radio import Clips

    return Clips(videos, config)
