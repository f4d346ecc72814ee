"""How near a trained student's features stay to those in float32 with global attention, over the size of the image."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2.functional import center_crop, resize
from tqdm import tqdm

from benchmarks.inference_parts.speed import Row
from benchmarks.inference_parts.windows import WINDOWS
from modeling_radio import RadioModel
from modeling_radio.resolution_radio import largest_side


@torch.inference_mode()
def measure_fidelity(folder: Path, photographs: Sequence[Path], sizes: Sequence[int], device: str) -> list[Row]:
    """Return one row for each size and way to run: mean cosine over the patches of all photographs.

    A student without windowed blocks is opened with half of its blocks windowed, which it was not trained for. Sizes
    that it does not take become the largest that it does.

    Args:
        folder: Of a trained student.
        photographs: JPEGs; the squares in their middle are resized.
        sizes: Image sides in pixels.
        device: Where it runs.
    """
    exact = RadioModel.from_pretrained(folder).eval().to(device)
    fields = {} if exact.config.has_windowed_blocks else {"vitdet_num_global": exact.config.num_hidden_layers // 2}
    windowed = RadioModel.from_pretrained(folder, **fields).eval().to(device)
    low = RadioModel.from_pretrained(folder, dtype=torch.bfloat16).eval().to(device)
    rows: list[Row] = []
    largest = largest_side(exact.config)
    for size in tqdm(dict.fromkeys(min(size, largest) for size in sizes), desc="fidelity"):
        cosines: dict[str, list[float]] = {}
        for path in photographs:
            image = square(path, size).to(device)
            expected = exact(image, window_size="global", adaptor_names=[]).features
            answers = {"bfloat16": low(image.bfloat16(), window_size="global", adaptor_names=[]).features}
            for window in WINDOWS:
                if window < size // exact.patch_size:
                    answers[f"window {window}"] = windowed(image, window_size=window, adaptor_names=[]).features
            for way, features in answers.items():
                cosine = cosine_similarity(features.float(), expected, dim=-1).mean().item()
                cosines.setdefault(way, []).append(cosine)
        rows += [
            {"size_px": size, "way": way, "cosine": round(sum(values) / len(values), 5), "photographs": len(values)}
            for way, values in cosines.items()
        ]
    return rows


def square(path: Path, size: int) -> Tensor:
    """Return the square in the middle of a photograph in [0, 1], `(1, 3, size, size)`."""
    image = decode_image(str(path), ImageReadMode.RGB)
    return resize(center_crop(image, [min(image.shape[1:])]), [size, size])[None].float() / 255
