# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "numpy>=1.26,<3",
#     "onnxruntime>=1.20,<2",
#     "pillow>=10.4",
# ]
# ///
"""Run an exported model without torch: `radio export FOLDER GRAPH` made the graph.

Prints what comes out for an image and how long it takes; `--output` keeps it as `.npz`.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # Pillow knows more, and runs one (EPS) as a program


def read(path: Path) -> Image.Image:
    """Return an image as the models' processor reads it: upright, 16 bits as 8, on white where it is transparent."""
    opened = ImageOps.exif_transpose(Image.open(path, formats=FORMATS))
    if opened.mode[0] in "IF":
        values = np.asarray(opened, dtype=np.float32)
        is_deep = opened.mode.startswith("I;") or (opened.mode == "I" and values.max() > 255)
        return Image.fromarray((values / (257 if is_deep else 1)).round().clip(0, 255).astype(np.uint8)).convert("RGB")
    ground = Image.new("RGBA", opened.size, "white")
    return Image.alpha_composite(ground, opened.convert("RGBA")).convert("RGB")


def main() -> None:
    """Read the arguments, run the graph, print what comes out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("graph", type=Path, help="file that ends in .onnx")
    parser.add_argument("image", type=Path)
    parser.add_argument("--size", type=int, default=256, help="height and width in pixels, a multiple of the patch")
    parser.add_argument("--repeat", type=int, default=3, help="passes of which the fastest is told")
    parser.add_argument("--output", type=Path, help="file to write, such as features.npz")
    given = parser.parse_args()

    fastest_first = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [provider for provider in fastest_first if provider in onnxruntime.get_available_providers()]
    session = onnxruntime.InferenceSession(str(given.graph), providers=providers)
    opened = read(given.image).resize((given.size, given.size), Image.Resampling.BICUBIC)
    # Pixels in [0, 1], channels first: the graph normalizes inside, as the model does.
    pixels = np.asarray(opened, dtype=np.float32).transpose(2, 0, 1)[None] / 255
    (name,) = [entry.name for entry in session.get_inputs()]
    names = [entry.name for entry in session.get_outputs()]
    outputs: dict[str, Any] = {}
    seconds: list[float] = []
    for _ in range(max(given.repeat, 1)):
        start = time.perf_counter()
        outputs = dict(zip(names, session.run(names, {name: pixels}), strict=True))
        seconds.append(time.perf_counter() - start)
    for key, value in outputs.items():
        print(f"{key} {value.shape}")
    print(f"{min(seconds) * 1000:.1f} ms by {session.get_providers()[0]}")
    if given.output is not None:
        unfinished = given.output.with_name(given.output.name + ".unfinished")
        with unfinished.open("wb") as file:
            np.savez_compressed(file, **outputs)
        unfinished.replace(given.output)
        print(f"Wrote {given.output}")


if __name__ == "__main__":
    main()
