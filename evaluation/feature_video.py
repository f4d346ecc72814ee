"""An MP4 of a clip beside principal components of a checkpoint's features."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import pil_to_tensor
from transformers.utils import logging as transformers_logging

from modeling_radio import RadioModel, RadioVideoProcessor
from modeling_radio.checks_radio import check_choice, own_names
from modeling_radio.core.command_line import Command
from modeling_radio.core.files import check_output, write_file
from modeling_radio.core.ids import ModelFolder
from modeling_radio.core.machine import find_device
from modeling_radio.core.settings import DeviceOptions, SettingsError
from modeling_radio.core.timing import ProgressBar
from modeling_radio.evaluation.models.radio import open_radio
from modeling_radio.figures.features import fit_pca_basis, foreground_map, pca_colors


FRAMES_AT_ONCE = 8
"""Frames in one pass, rounded up to whole temporal patches; our choice, which fits any card at 512 px."""
NUM_FITTED = 32
"""Groups of frames, evenly spread, that the components are fitted to. Our choice: neighboring frames are alike, and 32
groups of a ViT-H at 512 px are 42 million numbers."""
TITLE_PX = 24
"""Height of the line of titles; our choice, readable at the video's own size."""
CODECS = ("libx264", "mpeg4")
"""Codecs by preference: H.264, which browsers show, and MPEG-4, which every build of FFmpeg has."""
CRF = 18
"""H.264's constant quality; FFmpeg's guide calls 17 or 18 visually lossless."""


class FeatureVideoSettings(DeviceOptions):
    """Options of the drawing.

    Attributes:
        checkpoint: Folder or Hub id of a RADIO model.
        clip: The video, in any format that FFmpeg reads.
        output: The MP4 to write.
        size: Shorter side of the frames in pixels; by default the checkpoint's own.
        num_frames: Frames, evenly spread over the clip; by default all.
        adaptors: Adaptors whose features stand beside the backbone's; by default all of them.
        images: Encode each frame as an image, also where the checkpoint has temporal patches.
        overwrite: Replace the output if it exists.
    """

    checkpoint: ModelFolder
    clip: Path
    output: Path
    size: int | None = Field(None, gt=0)
    num_frames: int | None = Field(None, gt=0)
    adaptors: list[str] | None = None
    images: bool = False
    overwrite: bool = False


COMMAND = Command(
    "radio feature-video",
    __doc__,
    FeatureVideoSettings,
    positionals=("checkpoint", "clip", "output"),
    examples=("radio feature-video builtin:lite clip.mp4 features.mp4",),
)


def _draw(settings: FeatureVideoSettings) -> None:
    transformers_logging.disable_progress_bar()
    if settings.output.suffix.lower() != ".mp4":
        raise SettingsError(f"`output` must end in .mp4, got {str(settings.output)!r}.")
    check_output(settings.output, overwrite=settings.overwrite, inputs=[settings.checkpoint, settings.clip])
    if not settings.clip.is_file():
        raise SettingsError(f"`clip` must be a file, got {str(settings.clip)!r}.")
    device, adaptors = find_device(settings.device), settings.adaptors or ()
    radio = open_radio(settings.checkpoint, size_px=settings.size, device=device, teachers=adaptors)
    model = radio.model
    dense = [adaptor.name for adaptor in model.config.adaptor_configs if adaptor.feature_dim is not None]
    names = dense if settings.adaptors is None else own_names("adaptors", settings.adaptors, dense)
    for name in names:
        check_choice("adaptors", name, dense)
    frames, rate = read_frames(settings.clip, settings.num_frames)
    processor = RadioVideoProcessor.from_model_config(model.config, size={"shortest_edge": radio.size_px})
    pixels = processor(frames, return_tensors="pt")["pixel_values_videos"][0]
    spaces = clip_features(model, pixels, names, as_images=settings.images)
    write_clip(settings.output, film_frames((pixels * 255).round().byte(), spaces), rate)
    groups = len(spaces["backbone"])
    print(f"{settings.output}: {len(frames)} frames in {groups} groups, {', '.join(spaces)}.")


@torch.no_grad()
def clip_features(
    model: RadioModel, frames: Tensor, adaptors: Sequence[str] = (), *, as_images: bool = False
) -> dict[str, Tensor]:
    """Return the features of a clip, a few frames at a time.

    Args:
        model: In evaluation mode.
        frames: Pixels in [0, 1], `(frames, 3, height, width)`.
        adaptors: Adaptors whose features are returned too.
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
        path: A file that FFmpeg reads.
        num_frames: Number of frames, evenly spread; None, or more than there are, takes all.

    Returns:
        The frames, uint8 RGB `(frames, 3, height, width)`, and their number in a second.

    Raises:
        ValueError: If the file is no video.
    """
    import av

    def decode() -> Iterator[av.VideoFrame]:
        with av.open(str(path)) as file:
            yield from file.decode(video=0)

    try:
        count = sum(1 for _ in decode())  # many containers do not name it
        with av.open(str(path)) as file:
            rate = file.streams.video[0].average_rate or Fraction(25)
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"`clip` must be a film that FFmpeg reads, got {str(path)!r}: {error}.") from error
    if not count:
        raise ValueError(f"`clip` must have at least one frame, got {str(path)!r}.")
    wanted = min(num_frames or count, count)
    chosen = {index * count // wanted for index in range(wanted)}
    frames = [frame.to_ndarray(format="rgb24") for index, frame in enumerate(decode()) if index in chosen]
    return torch.stack([torch.from_numpy(frame).permute(2, 0, 1) for frame in frames]), float(rate) * wanted / count


def write_clip(path: Path, frames: Iterable[Tensor], frames_per_second: float) -> None:
    """Write an MP4 atomically.

    Args:
        path: The file.
        frames: uint8 RGB, `(height, width, 3)` each, of one size with even sides.
        frames_per_second: Frames per second of the video.

    Raises:
        ValueError: If a side is odd: the colors have half the resolution.
    """
    import av

    codec = next(name for name in CODECS if name in av.codecs_available)
    rate = Fraction(frames_per_second).limit_denominator(1000)

    def write(temporary: Path) -> None:
        with av.open(str(temporary), "w", format="mp4") as file:
            stream = file.add_stream(codec, rate=rate, options={"crf": str(CRF)} if codec == "libx264" else {})
            stream.pix_fmt = "yuv420p"
            for index, frame in enumerate(frames):
                height, width = frame.shape[:2]
                if height % 2 or width % 2:
                    raise ValueError(f"Frames must have even sides, got {height} x {width}.")
                if not index:
                    stream.height, stream.width = height, width
                file.mux(stream.encode(av.VideoFrame.from_ndarray(frame.numpy(), format="rgb24")))
            file.mux(stream.encode())

    write_file(path, write)


def film_frames(frames: Tensor, spaces: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """Yield the frames of a clip, each beside the principal components of every feature space.

    The components of a space are fitted once to the clip's foreground, so that a color means the same in all frames.

    Args:
        frames: uint8 RGB, `(frames, 3, height, width)`.
        spaces: Dense features of groups of frames by name, `(groups, dim, rows, cols)` with `dim >= 3`.

    Yields:
        uint8 RGB, `(title + height, width of all, 3)`, with even sides.
    """
    size = (frames.shape[-2] // 2 * 2, frames.shape[-1] // 2 * 2)
    colors = [clip_colors(features) for features in spaces.values()]
    line = title_line(["clip", *spaces], size[1])
    for index, frame in enumerate(frames):
        panels = [frame[:, : size[0], : size[1]].permute(1, 2, 0)]
        for of_space in colors:
            group = index * len(of_space) // len(frames) if len(of_space) < len(frames) else index
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
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(TITLE_PX * 0.55)
    for panel, title in enumerate(titles):
        draw.text((panel * width + 4, TITLE_PX / 2), title, fill="black", font=font, anchor="lm")
    return pil_to_tensor(image).permute(1, 2, 0)


main = partial(COMMAND.run, _draw)


if __name__ == "__main__":
    sys.exit(main())
