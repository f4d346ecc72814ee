"""Draws what a checkpoint sees in a clip: an MP4 of the clip beside principal components of its features."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor
from transformers.utils import logging as transformers_logging

from foundation.command_line import Command
from foundation.files import check_output
from foundation.machine.timing import ProgressBar
from foundation.settings import Settings, SettingsError
from modeling_radio import RadioModel, RadioVideoProcessor
from modeling_radio.messages_radio import check_choice
from training.evaluation.models.radio import open_radio
from training.pictures.clips import film_frames, read_frames, write_clip


FRAMES_AT_ONCE = 8
"""Of a pass, rounded up to whole temporal patches; our choice, which fits any card at 512 px."""


class FeatureVideoSettings(Settings):
    """What is drawn.

    Attributes:
        checkpoint: Folder of a RADIO model.
        clip: The film, of any format that FFmpeg reads.
        output: The MP4 to write.
        size: Shorter side of the frames in pixels; null takes the checkpoint's own.
        num_frames: Frames, evenly spread over the clip; null takes all.
        adaptors: Adaptors whose features stand beside the backbone's; null takes all that have any.
        images: Encode each frame as an image, also where the checkpoint has temporal patches.
        device: Where the model runs.
        overwrite: Replace the output if it exists.
    """

    checkpoint: Path
    clip: Path
    output: Path
    size: int | None = Field(None, gt=0)
    num_frames: int | None = Field(None, gt=0)
    adaptors: list[str] | None = None
    images: bool = False
    device: str = "cpu"
    overwrite: bool = False


COMMAND = Command(
    "training.showcase.feature_video", __doc__, FeatureVideoSettings, positionals=("checkpoint", "clip", "output")
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return COMMAND.run(_draw, arguments, extra="video")


def _draw(settings: FeatureVideoSettings) -> None:
    transformers_logging.disable_progress_bar()  # models load in no time
    if settings.output.suffix.lower() != ".mp4":
        raise SettingsError(f"`output` must end in .mp4, got {str(settings.output)!r}.")
    check_output(settings.output, overwrite=settings.overwrite, inputs=[settings.checkpoint, settings.clip])
    if not settings.clip.is_file():
        raise SettingsError(f"`clip` must be a file, got {str(settings.clip)!r}.")
    radio = open_radio(settings.checkpoint, size_px=settings.size, device=settings.device)
    model = radio.model
    names = _dense_adaptors(model) if settings.adaptors is None else settings.adaptors
    for name in names:
        check_choice("adaptors", name, _dense_adaptors(model))
    frames, rate = read_frames(settings.clip, settings.num_frames)
    processor = RadioVideoProcessor.from_model_config(model.config, size={"shortest_edge": radio.size_px})
    pixels = processor(frames, return_tensors="pt")["pixel_values_videos"][0]
    spaces = clip_features(model, pixels, names, as_images=settings.images)
    shown = (pixels * 255).round().byte()
    write_clip(settings.output, film_frames(shown, spaces), rate)
    groups = len(spaces["backbone"])
    print(f"{settings.output}: {len(frames)} frames in {groups} groups, {', '.join(spaces)}.")


def _dense_adaptors(model: RadioModel) -> list[str]:
    return [adaptor.name for adaptor in model.config.adaptor_configs if adaptor.feature_dim is not None]


@torch.no_grad()
def clip_features(
    model: RadioModel, frames: Tensor, adaptors: Sequence[str] = (), *, as_images: bool = False
) -> dict[str, Tensor]:
    """Return the features of a clip, a few frames at a time.

    Args:
        model: In evaluation mode.
        frames: Pixels in [0, 1], `(frames, 3, height, width)`.
        adaptors: Those whose features are wanted too.
        as_images: Whether each frame is an image, also where the model has temporal patches.

    Returns:
        "backbone" and the adaptors, `(groups, dim, rows, cols)` each, float16 on the CPU.
    """
    size = 1 if as_images else model.config.video_temporal_patch_size or 1
    step = -(-FRAMES_AT_ONCE // size) * size
    parts: dict[str, list[Tensor]] = {name: [] for name in ("backbone", *adaptors)}
    for start in ProgressBar(range(0, len(frames), step), desc="clip", leave=False, disable=None):
        chunk = frames[start : start + step].to(model.device, model.dtype)
        options = {"adaptor_names": list(adaptors), "feature_format": "NCHW", "return_dict": True}
        inputs = {"pixel_values": chunk} if as_images else {"pixel_values_videos": chunk.unsqueeze(0)}
        output = model(**inputs, **options)
        found = {"backbone": output.features, **{name: output.adaptors[name].features for name in adaptors}}
        for name, features in found.items():
            parts[name].append((features if as_images else features[0]).half().cpu())
    return {name: torch.cat(features) for name, features in parts.items()}


if __name__ == "__main__":
    sys.exit(main())
