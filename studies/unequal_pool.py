"""The pool of the study `balance`: training images of the demo, of kinds whose frequencies are known and very unequal.

`python -m modeling_radio.studies.unequal_pool` writes it. The study's file names the same path.
"""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

from torchvision.transforms.functional import to_pil_image

from modeling_radio.core.files import write_file
from modeling_radio.training.data.made_images import open_made_images


POOL = Path("runs/unequal_pool/images.parquet")
NUM_IMAGES = {"photograph": 7040, "object": 640, "emoji": 320}
"""Our choice, 88, 8 and 4 %: to be shown as often as the others, emoji come 8.3 times as often as without balance, less
than the limit of `data.balance.max_repeats`. Photographs are crops, and the grounds of scenes."""
SIZE_PX = 128
"""Side of the demo's images."""
MOST_DRAWN = 4
"""Our choice: so many times the pool's images are drawn at most; of the demo's, 57, 27 and 16 % are of these kinds."""


def write_pool(path: Path, num_images: Mapping[str, int] = NUM_IMAGES) -> None:
    """Write images with their kind and their weight, the inverse of the number of images of the kind.

    Args:
        path: The Parquet file to write, with columns `image` (JPEG), `kind` and `weight`.
        num_images: Number of images by kind.

    Raises:
        PackageError: If packages cannot be fetched.
        ValueError: If the demo has too few images of a kind, as without the packages of emoji.
    """
    from pyarrow import Table
    from pyarrow.parquet import write_table

    rows, left, most = [], dict(num_images), MOST_DRAWN * sum(num_images.values())
    images = open_made_images("demo").images(size=SIZE_PX, num_images=most, seed=0, split="train")
    for index in range(most):
        kind = images.source_of(index).partition(" ")[0]
        if left.get(kind):
            left[kind] -= 1
            to_pil_image(images[index]).save(content := BytesIO(), "JPEG", quality=95)
            rows.append({"image": content.getvalue(), "kind": kind, "weight": 1 / num_images[kind]})
    if any(left.values()):
        raise ValueError(f"`num_images` must be of kinds that the demo's packages have, these are missing: {left}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, lambda scratch: write_table(Table.from_pylist(rows), scratch))


if __name__ == "__main__":
    write_pool(POOL)
    print(f"Wrote {POOL}.")
