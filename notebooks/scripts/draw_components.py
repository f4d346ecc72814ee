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
"""Draw an image beside its features: three principal components as red, green and blue, of backbone and adaptors."""

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModel


def colors(features: torch.Tensor) -> torch.Tensor:
    """Return three principal components of a map `(dim, rows, cols)` as RGB in [0, 1], `(rows, cols, 3)`."""
    tokens = features.flatten(1).T.double()
    tokens = tokens - tokens.mean(dim=0)
    projected = tokens @ torch.linalg.svd(tokens, full_matrices=False).Vh[:3].T
    low, high = projected.quantile(torch.tensor([0.02, 0.98], dtype=torch.float64), dim=0)  # outliers wash nothing out
    shown = ((projected - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return shown.unflatten(0, features.shape[1:])


@torch.inference_mode()
def main() -> None:
    """Read the arguments, encode the image, write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder of a RADIO model, or its name on the Hub")
    parser.add_argument("image", type=Path)
    parser.add_argument("output", type=Path, help="picture to write, such as features.png")
    parser.add_argument("--size", type=int, help="longer side in pixels; by default what the model prefers")
    parser.add_argument("--window", type=int, help="side of ViTDet windows in patches; by default what the model says")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()

    processor = AutoImageProcessor.from_pretrained(given.model, trust_remote_code=True)
    model = AutoModel.from_pretrained(given.model, trust_remote_code=True).eval().to(given.device)
    picture = ImageOps.exif_transpose(Image.open(given.image)).convert("RGB")
    scale = (given.size or max(model.preferred_resolution)) / max(picture.size)
    height, width = model.get_nearest_supported_resolution(round(picture.height * scale), round(picture.width * scale))
    inputs = processor(picture, size={"height": height, "width": width}, return_tensors="pt").to(given.device)
    names = [adaptor["name"] for adaptor in model.config.adaptors]
    out = model(**inputs, feature_format="NCHW", adaptor_names=names, window_size=given.window)

    maps = {"backbone": out.features, **{name: answer.features for name, answer in (out.adaptors or {}).items()}}
    maps = {name: features for name, features in maps.items() if features is not None}  # some have a summary alone
    panels = [picture]
    for features in maps.values():
        shown = (colors(features[0].float().cpu()) * 255).round().to(torch.uint8)
        panels.append(Image.fromarray(shown.numpy()).resize(picture.size, Image.Resampling.NEAREST))
    sheet = Image.new("RGB", (picture.width * len(panels), picture.height))
    for place, panel in enumerate(panels):
        sheet.paste(panel, (place * picture.width, 0))
    sheet.save(given.output)
    grid = "x".join(map(str, out.features.shape[-2:]))
    print(f"Wrote {given.output}, from left to right: the image, {', '.join(maps)} ({grid} patches)")


if __name__ == "__main__":
    main()
