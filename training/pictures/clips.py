"""Films of features: the frames of a clip beside principal components, in colors that keep their meaning over time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from foundation.files import write_file
from training.pictures.features import fit_pca_basis, pca_colors
from training.pictures.foreground import foreground_map


NUM_FITTED = 32
"""Groups of frames, evenly spread, that choose the components. Our choice: neighboring frames say the same, and so many
of a ViT-H at 512 px are 42 million numbers."""
TITLE_PX = 24
"""Height of the line of titles; our choice, readable in the film's own size."""
CODECS = ("libx264", "mpeg4")
"""Of MP4, the first that is built in: H.264, which browsers show; and MPEG-4, which every build of FFmpeg has."""
CRF = 18
"""H.264's constant quality; FFmpeg's guide calls 17 or 18 visually lossless."""


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
