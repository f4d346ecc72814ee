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
"""Find words in an image: every pixel goes to the nearest of them, for a folder with a text tower."""

import argparse
import colorsys
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForZeroShotImageClassification, AutoTokenizer


@torch.inference_mode()
def main() -> None:
    """Read the arguments, compare patches with words, write the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder of a RADIO model with texts, or its name on the Hub")
    parser.add_argument("image", type=Path)
    parser.add_argument("output", type=Path, help="image file to write, such as words.png")
    parser.add_argument("--words", nargs="+", required=True, help="two or more, such as --words sky mountain lake")
    parser.add_argument(
        "--source",
        choices=["summary_head", "features"],
        default="summary_head",
        help="what places patches among words: `features` for the demo's student, whose dense head is aligned",
    )
    parser.add_argument("--size", type=int, help="longer side in pixels; by default what the model prefers")
    given = parser.parse_args()
    if len(given.words) < 2:
        parser.error("--words must be two or more: each pixel goes to the nearest")

    processor = AutoImageProcessor.from_pretrained(given.model, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    model = AutoModelForZeroShotImageClassification.from_pretrained(given.model, trust_remote_code=True).eval()
    pixels = processor.process_image(given.image, do_convert_rgb=True).round().to(torch.uint8)
    opened = Image.fromarray(pixels.movedim(0, -1).contiguous().numpy())
    scale = (given.size or max(model.config.preferred_resolution)) / max(opened.size)
    step = model.config.patch_size
    height, width = (max(step, round(side * scale / step) * step) for side in (opened.height, opened.width))
    inputs = processor(opened, size={"height": height, "width": width}, return_tensors="pt")
    out = model.segment(inputs["pixel_values"], model.embed_classes(tokenizer, given.words), source=given.source)
    shape = (opened.height, opened.width)
    labels = processor.post_process_semantic_segmentation(out, target_sizes=[shape])[0].cpu()

    palette = [colorsys.hsv_to_rgb(number / len(given.words), 0.8, 1.0) for number in range(len(given.words))]
    shown = (torch.tensor(palette)[labels] * 255).round().to(torch.uint8)
    Image.blend(opened, Image.fromarray(shown.numpy()), 0.5).save(given.output)
    for number, (word, color) in enumerate(zip(given.words, palette, strict=True)):
        share = (labels == number).double().mean().item()
        print(f"{share:6.1%}  {word}  (#{''.join(f'{round(part * 255):02x}' for part in color)})")
    print(f"Wrote {given.output}")


if __name__ == "__main__":
    main()
