"""The loader that a run's images need."""

import torch

from training.data.image_table import Images
from training.recipe import Recipe, RecipeError
from training.views.loading.base import ViewLoader
from training.views.loading.numbered import NumberedViewLoader
from training.views.loading.streamed import PartitionStreams, StreamedViewLoader


CPU = torch.device("cpu")


def build_view_loader(images: Images | PartitionStreams, recipe: Recipe, device: torch.device = CPU) -> ViewLoader:
    """Return the loader for images with random access, or for streams.

    Args:
        images: The data.
        recipe: The recipe.
        device: That the run is on, where JPEGs are decoded if the recipe says so.

    Raises:
        RecipeError: If they are to be decoded on a GPU and the run is on none.
    """
    decodes = recipe.data.decode_on == "cuda"
    if decodes and device.type != "cuda":
        raise RecipeError(
            f"`data.decode_on` must be 'cpu' where the run is on {device.type!r}, got 'cuda'. It needs an NVIDIA GPU "
            "that PyTorch can use."
        )
    has_pinned, own = device.type == "cuda", device if decodes else None
    if isinstance(images, PartitionStreams):
        return StreamedViewLoader(images, recipe, pin_memory=has_pinned, device=own)
    return NumberedViewLoader(images, recipe, pin_memory=has_pinned, device=own)
