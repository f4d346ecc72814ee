"""Sixteen images of eight sizes: packed in one sequence, one by one, and padded."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.contenders.radio import build_native, build_ours, build_timm
from benchmarks.contenders.shapes import Place, Shape
from benchmarks.inference_parts.speed import Row
from benchmarks.measuring.turns import spread_of, take_turns
from modeling_radio import RadioConfig


SETS: dict[str, tuple[tuple[int, int], ...]] = {
    "thumbnails": ((3, 3), (3, 4), (4, 3), (4, 4), (4, 6), (5, 5), (6, 4), (6, 6)),
    "photographs": ((10, 20), (12, 16), (12, 18), (14, 14), (16, 12), (16, 16), (18, 12), (20, 10)),
}
"""Eight grids of patches each, by their name: sides from 48 to 96 px, and from 160 to 320 px. Our choice."""
IMAGES_PER_GRID = 2
PACKED = "ours, packed"


def split(image: Tensor, size: int) -> Tensor:
    """Return the flattened patches `(rows * cols, 3 * size**2)` of an image `(1, 3, height, width)`, channels first."""
    patches = image[0].unfold(1, size, size).unfold(2, size, size)
    return patches.permute(1, 2, 0, 3, 4).reshape(-1, 3 * size**2)


def build_calls(config: RadioConfig, place: Place, images: Sequence[Tensor]) -> dict[str, Callable[[], list[Tensor]]]:
    """Return what encodes all images, by name; each answers the features `(tokens, width)` of every image.

    Args:
        config: Shape of all networks.
        place: Device and data type.
        images: Of any sizes, `(1, 3, height, width)` each, in the order in which they come.
    """
    size = config.patch_size
    grids = torch.tensor([[side // size for side in image.shape[2:]] for image in images], device=place.device)
    patches = torch.cat([split(image, size) for image in images])
    ours, native = build_ours(config, place), build_native(config, place)
    lengths = grids.prod(1).tolist()

    def packed(model: Callable) -> list[Tensor]:
        features = model(patches, image_grid_hw=grids).features
        return list(features.view(-1, features.shape[-1]).split(lengths))

    def one_by_one(model: Callable) -> list[Tensor]:
        return [model(image).features[0] for image in images]

    calls = {
        PACKED: partial(packed, ours),
        "ours, one by one": partial(one_by_one, ours),
        "native, packed": partial(packed, native),
        "native, one by one": partial(one_by_one, native),
        "timm NaFlexViT, padded": padded_call(config, place, images),
    }
    if "image_grid_hw" not in inspect.signature(native.forward).parameters:  # transformers before it took packs
        del calls["native, packed"]
    return calls


def padded_call(config: RadioConfig, place: Place, images: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
    """Return what runs timm's NaFlexViT on all images, padded to the longest, as its loader gives them."""
    shape, model = Shape.of(config), build_timm(config, place)
    parts = [split(image, shape.patch_size) for image in images]
    lengths = [len(part) for part in parts]
    patches = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
    valid = torch.arange(max(lengths), device=place.device) < torch.tensor(lengths, device=place.device)[:, None]
    places = [
        torch.cartesian_prod(*(torch.arange(side // shape.patch_size, device=place.device) for side in image.shape[2:]))
        for image in images
    ]
    given = {
        "patches": patches,
        "patch_valid": valid,
        "patch_coord": torch.nn.utils.rnn.pad_sequence(places, batch_first=True),
    }

    def encode() -> list[Tensor]:
        tokens = model.forward_features(**given)["patches"][:, shape.num_prefix :]
        return [row[:length] for row, length in zip(tokens, lengths, strict=True)]

    return encode


def draw_images(grids: Sequence[tuple[int, int]], patch_size: int, place: Place) -> list[Tensor]:
    """Return images of each grid, no two of one grid beside each other."""
    return [
        torch.rand(1, 3, rows * patch_size, cols * patch_size, device=place.device).to(place.dtype)
        for _ in range(IMAGES_PER_GRID)
        for rows, cols in grids
    ]


@torch.inference_mode()
def measure_packed(
    preset: str,
    place: Place,
    *,
    sets: Mapping[str, Sequence[tuple[int, int]]] = SETS,
    budget_seconds: float = 8.0,
    min_rounds: int = 3,
) -> list[Row]:
    """Return one row for each set of sizes and way to run it."""
    config, rows = RadioConfig.from_preset(preset), []
    for name, grids in sets.items():
        calls = build_calls(config, place, draw_images(grids, config.patch_size, place))
        turns = take_turns(calls, min_rounds=min_rounds, budget_seconds=budget_seconds, device=place.device)
        for way in calls:
            row: Row = {"dtype": str(place.dtype).removeprefix("torch."), "images": name, "way": way}
            row |= {"ms": turns.milliseconds(way), "ms, quartiles": _quartiles(turns.seconds[way])}
            row["ours, packed, is times as fast"] = str(turns.times_as_fast(PACKED, way))
            rows.append(row)
    return rows


def _quartiles(seconds: list[float]) -> str:
    spread = spread_of(seconds)
    return f"{1000 * spread.low:.4g} to {1000 * spread.high:.4g}"
