# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "pillow>=10.4",
#     "safetensors>=0.5,<1",
#     "torch>=2.6,<3",
#     "torchvision>=0.21,<1",
#     "transformers>=5.17,<6",
# ]
# ///
"""Find the images of a folder that are most like one image: cosine of summaries, and a sheet of the best."""

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch.nn.functional import normalize
from transformers import AutoImageProcessor, AutoModel


ENDINGS = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
TILE = 192  # pixels


def read(path: Path) -> Image.Image:
    """Return an image as it is shown: turned as its camera says."""
    return ImageOps.exif_transpose(Image.open(path)).convert("RGB")


@torch.inference_mode()
def main() -> None:
    """Read the arguments, encode the images, print and draw the best."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder of a RADIO model, or its name on the Hub")
    parser.add_argument("query", type=Path, help="image to look for")
    parser.add_argument("images", type=Path, help="folder to look in, with all below it")
    parser.add_argument("--top", type=int, default=5)
    parser.add_argument("--adaptor", help="compare in the space of this teacher, not of the backbone")
    parser.add_argument("--sheet", type=Path, help="picture to write: the query, then the best from left to right")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    paths = [path for path in given.images.rglob("*") if path.suffix.lower() in ENDINGS]
    paths = sorted(path for path in paths if path.resolve() != given.query.resolve())
    if not paths:
        parser.error(f"no other images below {given.images}")
    if min(given.top, given.batch_size) < 1:
        parser.error("--top and --batch-size must be 1 or more")

    processor = AutoImageProcessor.from_pretrained(given.model, trust_remote_code=True)
    model = AutoModel.from_pretrained(given.model, trust_remote_code=True).eval().to(given.device)
    known = [adaptor["name"] for adaptor in model.config.adaptors]
    if given.adaptor not in (None, *known):
        parser.error(f"--adaptor must be one of {', '.join(known) or 'none at all'}, got {given.adaptor}")
    height, width = model.preferred_resolution

    def encode(chosen: list[Path]) -> torch.Tensor:
        pictures = [read(path) for path in chosen]
        inputs = processor(pictures, size={"height": height, "width": width}, return_tensors="pt").to(given.device)
        out = model(**inputs, adaptor_names=[given.adaptor] if given.adaptor else [])
        return normalize((out.adaptors[given.adaptor] if given.adaptor else out).summary.float().cpu(), dim=-1)

    starts = range(0, len(paths), given.batch_size)
    gallery = torch.cat([encode(paths[start : start + given.batch_size]) for start in starts])
    cosines = gallery @ encode([given.query])[0]
    best = cosines.topk(min(given.top, len(paths)))
    found = [paths[index] for index in best.indices.tolist()]
    for cosine, path in zip(best.values.tolist(), found, strict=True):
        print(f"{cosine:.3f}  {path.relative_to(given.images)}")
    if given.sheet is not None:
        sheet = Image.new("RGB", (TILE * (1 + len(found)), TILE))
        for place, path in enumerate([given.query, *found]):
            sheet.paste(ImageOps.fit(read(path), (TILE, TILE)), (place * TILE, 0))
        sheet.save(given.sheet)
        print(f"Wrote {given.sheet}")


if __name__ == "__main__":
    main()
