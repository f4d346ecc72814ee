# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "av>=14,<19",
#     "pillow>=10.4",
#     "safetensors>=0.5,<1",
#     "torch>=2.6,<3",
#     "torchvision>=0.21,<1",
#     "transformers>=5.17,<6",
# ]
# ///
"""Film a clip beside its features: three principal components of all frames, so a color means the same in each."""

import argparse
from fractions import Fraction
from pathlib import Path

import av
import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoVideoProcessor


@torch.inference_mode()
def main() -> None:
    """Read the arguments, encode the frames, write the film."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder of a RADIO model, or its name on the Hub")
    parser.add_argument("clip", type=Path, help="any video that FFmpeg reads")
    parser.add_argument("output", type=Path, help="file to write, such as features.mp4")
    parser.add_argument("--adaptor", help="features in the space of this teacher, not of the backbone")
    parser.add_argument("--size", type=int, help="shorter side in pixels; by default what the model prefers")
    parser.add_argument("--num-frames", type=int, help="frames, evenly spread over the clip; by default all")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    if not given.clip.is_file():
        parser.error(f"no file {given.clip}")

    processor = AutoVideoProcessor.from_pretrained(given.model, trust_remote_code=True)
    model = AutoModel.from_pretrained(given.model, trust_remote_code=True).eval().to(given.device)
    known = [adaptor["name"] for adaptor in model.config.adaptors]
    if given.adaptor not in (None, *known):
        parser.error(f"--adaptor must be one of {', '.join(known) or 'none at all'}, got {given.adaptor}")
    sampled = {"num_frames": given.num_frames, "do_sample_frames": True} if given.num_frames else {}
    side = given.size or min(model.preferred_resolution)
    clip = processor(str(given.clip), size=side, **sampled, return_metadata=True, return_tensors="pt")
    frames, metadata = clip["pixel_values_videos"][0], clip["video_metadata"][0]
    adaptors, parts = [given.adaptor] if given.adaptor else [], []
    for pixels in frames[None].split(4 * (model.config.video_temporal_patch_size or 1), dim=1):
        out = model(pixel_values_videos=pixels.to(given.device), feature_format="NCHW", adaptor_names=adaptors)
        parts.append((out.adaptors[given.adaptor] if given.adaptor else out).features[0].float().cpu())
    features = torch.cat(parts)

    tokens = features.movedim(1, -1).flatten(0, 2)
    directions = torch.linalg.eigh(torch.cov(tokens.T))[1][:, -3:].flip(1)
    shown = (tokens - tokens.mean(0)) @ directions
    low, high = shown.quantile(torch.tensor([0.02, 0.98]), dim=0)  # a few outliers must not wash out the colors
    colors = ((shown - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    colors = colors.reshape(len(features), *features.shape[2:], 3).movedim(-1, 1)

    height, width = frames.shape[-2:]
    unfinished = given.output.with_name(given.output.name + ".unfinished")
    with av.open(str(unfinished), "w", format="mp4") as file:
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        stream = file.add_stream(codec, rate=Fraction(metadata.sampled_fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = 2 * width, height, "yuv420p"
        for index, frame in enumerate(frames):
            group = colors[index * len(colors) // len(frames)][None]  # of one frame, or of a temporal patch
            picture = torch.cat([frame, F.interpolate(group, (height, width))[0]], dim=-1)
            picture = (picture * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    unfinished.replace(given.output)
    print(f"Wrote {given.output}: {len(frames)} frames, {len(features)} maps of {tuple(features.shape[2:])}")


if __name__ == "__main__":
    main()
