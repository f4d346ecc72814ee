# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "av>=14,<19",
#     "numpy>=1.26,<3",
#     "pillow>=10.4",
#     "safetensors>=0.5,<1",
#     "torch>=2.6,<3",
#     "torchvision>=0.21,<1",
#     "transformers>=5.17,<6",
# ]
# ///
"""Encode the frames of a clip, and say where it cuts: how alike each frame's summary is to the one before.

Read the file again with `safetensors.torch.load_file`: `seconds` (frames), `summary` (frames, dim) and `features`
(frames, dim, rows, cols). A model with temporal patches takes whole clips: see docs/guides/use/open.md.
"""

import argparse
from pathlib import Path

import av
import torch
from safetensors.torch import save_file
from torch.nn.functional import cosine_similarity
from transformers import AutoImageProcessor, AutoModel


@torch.inference_mode()
def main() -> None:
    """Read the arguments, encode the frames, write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder of a RADIO model, or its name on the Hub")
    parser.add_argument("clip", type=Path, help="anything that FFmpeg reads, such as clip.mp4")
    parser.add_argument("output", type=Path, help="file to write, such as clip.safetensors")
    parser.add_argument("--every", type=int, default=10, help="of so many frames one is encoded")
    parser.add_argument("--size", type=int, help="longer side in pixels; by default what the model prefers")
    parser.add_argument("--cut", type=float, default=0.7, help="cosine below which two frames are told as a cut")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    if given.every < 1:
        parser.error(f"--every must be 1 or more, got {given.every}")
    if not given.output.parent.is_dir():
        parser.error(f"there is no folder {given.output.parent} to write to")

    processor = AutoImageProcessor.from_pretrained(given.model, trust_remote_code=True)
    model = AutoModel.from_pretrained(given.model, trust_remote_code=True).eval().to(given.device)
    seconds, summaries, features = [], [], []
    with av.open(str(given.clip)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number % given.every:
                continue
            picture = frame.to_image()
            scale = (given.size or max(model.preferred_resolution)) / max(picture.size)
            sides = (round(picture.height * scale), round(picture.width * scale))
            height, width = model.get_nearest_supported_resolution(*sides)
            inputs = processor(picture, size={"height": height, "width": width}, return_tensors="pt").to(given.device)
            out = model(**inputs, feature_format="NCHW", adaptor_names=[])
            seconds.append(float(frame.time or 0))
            summaries.append(out.summary.float().cpu())
            features.append(out.features.float().cpu())
            alike = cosine_similarity(summaries[-1], summaries[-2]).item() if len(summaries) > 1 else 1.0
            print(f"{seconds[-1]:7.2f} s  {alike:.3f}{'  cut' if alike < given.cut else ''}", flush=True)
    if not summaries:
        parser.error(f"{given.clip} has no frames")

    tensors = {
        "seconds": torch.tensor(seconds),
        "summary": torch.cat(summaries),
        "features": torch.cat(features).contiguous(),
    }
    unfinished = given.output.with_name(given.output.name + ".unfinished")
    save_file(tensors, unfinished)
    unfinished.replace(given.output)
    print(f"Wrote {given.output}: {', '.join(f'{name} {tuple(each.shape)}' for name, each in tensors.items())}")


if __name__ == "__main__":
    main()
