"""Draws what a checkpoint sees in a clip: an MP4 of the clip beside principal components of its features."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from transformers.utils import logging as transformers_logging

from core.command_line import Command
from core.files import check_output, write_file
from core.settings import Settings, SettingsError
from core.timing import ProgressBar
from modeling_radio import RadioModel, RadioVideoProcessor
from modeling_radio.checks_radio import check_choice
from training.evaluation.models.radio import open_radio
from training.figures.features import fit_pca_basis, foreground_map, pca_colors


FRAMES_AT_ONCE = 8
"""Of a pass, rounded up to whole temporal patches; our choice, which fits any card at 512 px."""
NUM_FITTED = 32
"""Groups of frames, evenly spread, that choose the components. Our choice: neighboring frames say the same, and so many
of a ViT-H at 512 px are 42 million numbers."""
TITLE_PX = 24
"""Height of the line of titles; our choice, readable in the film's own size."""
CODECS = ("libx264", "mpeg4")
"""Of MP4, the first that is built in: H.264, which browsers show; and MPEG-4, which every build of FFmpeg has."""
CRF = 18
"""H.264's constant quality; FFmpeg's guide calls 17 or 18 visually lossless."""


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
    "training.figures.feature_video", __doc__, FeatureVideoSettings, positionals=("checkpoint", "clip", "output")
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


def read_frames(path: Path, num_frames: int | None = None) -> tuple[Tensor, float]:
    """Read a clip.

    Args:
        path: Of a file that FFmpeg reads.
        num_frames: Take so many, evenly spread, or all where there are fewer; None takes all.

    Returns:
        The frames, uint8 RGB `(frames, 3, height, width)`, and how many of those are shown in a second.

    Raises:
        ValueError: If the file is no film.
    """
    import av

    def decode() -> Iterator[av.VideoFrame]:
        with av.open(str(path)) as file:
            yield from file.decode(video=0)

    try:
        count = sum(1 for _ in decode())  # many containers do not say
        with av.open(str(path)) as file:
            rate = file.streams.video[0].average_rate or Fraction(25)
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"`clip` must be a film that FFmpeg reads, got {str(path)!r}: {error}.") from error
    if not count:
        raise ValueError(f"`clip` must have at least one frame, got {str(path)!r}.")
    wanted = min(num_frames or count, count)
    chosen = {place * count // wanted for place in range(wanted)}
    frames = [frame.to_ndarray(format="rgb24") for place, frame in enumerate(decode()) if place in chosen]
    return torch.stack([torch.from_numpy(frame).permute(2, 0, 1) for frame in frames]), float(rate) * wanted / count


def write_clip(path: Path, frames: Iterable[Tensor], frames_per_second: float) -> None:
    """Write an MP4; a reader never sees half of it.

    Args:
        path: The file.
        frames: uint8 RGB, `(height, width, 3)` each, of one size with even sides.
        frames_per_second: Of the film.

    Raises:
        ValueError: If a side is odd, which no film of half the resolution in color has.
    """
    import av

    codec = next(name for name in CODECS if name in av.codecs_available)
    rate = Fraction(frames_per_second).limit_denominator(1000)

    def write(temporary: Path) -> None:
        with av.open(str(temporary), "w", format="mp4") as file:
            stream = file.add_stream(codec, rate=rate, options={"crf": str(CRF)} if codec == "libx264" else {})
            stream.pix_fmt = "yuv420p"
            for place, frame in enumerate(frames):
                height, width = frame.shape[:2]
                if height % 2 or width % 2:
                    raise ValueError(f"Frames must have even sides, got {height} x {width}.")
                if not place:
                    stream.height, stream.width = height, width
                file.mux(stream.encode(av.VideoFrame.from_ndarray(frame.numpy(), format="rgb24")))
            file.mux(stream.encode())

    write_file(path, write)


def film_frames(frames: Tensor, spaces: Mapping[str, Tensor], titles: Sequence[str] | None = None) -> Iterator[Tensor]:
    """Yield the frames of a film: the clip's, and beside each the components of every space.

    The components of a space are chosen once for the clip, by its foreground, so that a color means the same in all
    frames.

    Args:
        frames: uint8 RGB, `(frames, 3, height, width)`.
        spaces: By title dense features of groups of frames, `(groups, dim, rows, cols)` with `dim >= 3`.
        titles: Over the clip and each space; None takes "clip" and the spaces' names.

    Yields:
        uint8 RGB, `(title + height, width of all, 3)`, with even sides.
    """
    size = (frames.shape[-2] // 2 * 2, frames.shape[-1] // 2 * 2)
    colors = [clip_colors(features) for features in spaces.values()]
    line = title_line(titles or ["clip", *spaces], size[1])
    for place, frame in enumerate(frames):
        panels = [frame[:, : size[0], : size[1]].permute(1, 2, 0)]
        for of_space in colors:
            group = place * len(of_space) // len(frames) if len(of_space) < len(frames) else place
            small = of_space[group].permute(2, 0, 1).unsqueeze(0)
            panels.append((F.interpolate(small, size, mode="nearest")[0].permute(1, 2, 0) * 255).round().byte())
        yield torch.cat([line, torch.cat(panels, dim=1)])


def clip_colors(features: Tensor) -> Tensor:
    """Return the colors of features `(groups, dim, rows, cols)`, in [0, 1], `(groups, rows, cols, 3)`."""
    step = -(-len(features) // NUM_FITTED)
    fitted = features[::step].float()
    basis = fit_pca_basis(fitted, foreground=foreground_map(fitted) > 0)
    return torch.cat([pca_colors(group.float().unsqueeze(0), basis) for group in features])


def title_line(titles: Sequence[str], width: int) -> Tensor:
    """Return a white line with a title over each panel of a width, uint8 `(TITLE_PX, width of all, 3)`."""
    image = Image.new("RGB", (width * len(titles), TITLE_PX), "white")
    draw = ImageDraw.Draw(image)
    for panel, title in enumerate(titles):
        font = ImageFont.load_default(TITLE_PX * 0.55)
        draw.text((panel * width + 4, TITLE_PX / 2), title, fill="black", font=font, anchor="lm")
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(TITLE_PX, width * len(titles), 3)


if __name__ == "__main__":
    sys.exit(main())
