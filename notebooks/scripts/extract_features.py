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
"""Encode a folder of images: one safetensors file with a summary and a map of features for each.

Read it again with `safetensors.safe_open(path, "pt")`: `summary` (images, dim), `features` (images, dim, rows, cols),
and in its metadata `names`, a JSON list of the files in the same order.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModel


ENDINGS = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


@torch.inference_mode()
def main() -> None:
    """Read the arguments, encode the images, write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder of a RADIO model, or its name on the Hub")
    parser.add_argument("images", type=Path, help="folder, searched with all below it")
    parser.add_argument("output", type=Path, help="file to write, such as features.safetensors")
    parser.add_argument("--adaptor", help="features in the space of this teacher, not of the backbone")
    parser.add_argument("--size", type=int, help="height and width in pixels; by default what the model prefers")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    paths = sorted(path for path in given.images.rglob("*") if path.suffix.lower() in ENDINGS)
    if not paths:
        parser.error(f"no images below {given.images}")
    if given.batch_size < 1:
        parser.error(f"--batch-size must be 1 or more, got {given.batch_size}")
    if not given.output.parent.is_dir():
        parser.error(f"there is no folder {given.output.parent} to write to")

    processor = AutoImageProcessor.from_pretrained(given.model, trust_remote_code=True)
    model = AutoModel.from_pretrained(given.model, trust_remote_code=True).eval().to(given.device)
    known = [adaptor["name"] for adaptor in model.config.adaptors]
    if given.adaptor not in (None, *known):
        parser.error(f"--adaptor must be one of {', '.join(known) or 'none at all'}, got {given.adaptor}")
    side = given.size or model.preferred_resolution[0]
    height, width = model.get_nearest_supported_resolution(side, side)
    summaries, features = [], []
    for start in range(0, len(paths), given.batch_size):
        chosen = paths[start : start + given.batch_size]
        inputs = processor(chosen, size={"height": height, "width": width}, return_tensors="pt").to(given.device)
        out = model(**inputs, feature_format="NCHW", adaptor_names=[given.adaptor] if given.adaptor else [])
        source = out.adaptors[given.adaptor] if given.adaptor else out
        summaries.append(source.summary.float().cpu())
        features.append(source.features.float().cpu())
        print(f"{start + len(chosen)} of {len(paths)}", flush=True)

    tensors = {"summary": torch.cat(summaries), "features": torch.cat(features).contiguous()}
    names = [str(path.relative_to(given.images)) for path in paths]
    unfinished = given.output.with_name(given.output.name + ".unfinished")
    save_file(tensors, unfinished, metadata={"names": json.dumps(names), "size": f"{height}x{width}"})
    unfinished.replace(given.output)
    shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
    print(f"Wrote {given.output}: {shapes}")


if __name__ == "__main__":
    main()
