"""Video processor of the RADIO vision backbones: any clip to frames in [0, 1] of a valid size."""

from .version_radio import MINIMUM as MINIMUM  # first: later imports fail with an older transformers


# isort: split
from typing import Any

import torch
from torch import Tensor
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import is_pil_image
from transformers.processing_utils import VideosKwargs
from transformers.utils import is_av_available, is_torchcodec_available
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata, load_video

from .image_processing_radio import (
    PixelKwargs,
    PixelProcessor,
    RadioImageProcessorKwargs,
    check_values,
    read_image,
    resize_images,
    to_pixels,
    to_rgb,
)


# Video readers of transformers, best first.
_READERS = {"torchcodec": is_torchcodec_available, "pyav": is_av_available}


class RadioVideoProcessorKwargs(VideosKwargs, PixelKwargs, total=False):  # pyrefly: ignore[inconsistent-inheritance]
    """Options of `RadioVideoProcessor`; see the class."""


class RadioVideoProcessor(PixelProcessor, BaseVideoProcessor):
    r"""Turns clips into `pixel_values_videos` `(batch, frames, 3, height, width)` for RADIO: RGB floats in [0, 1].

    A clip is a list of PIL images, an array or a tensor of frames (channels first or last), the path of a file or a
    URL. Sizes, rounding and filter are those of `RadioImageProcessor`, so a frame gets the same pixels as an image. The
    processor never normalizes, because the model does. The model repeats the last frame if a clip does not fill its
    temporal patches. Files need torchcodec or PyAV (`pip install av`).

    Args:
        size: As in `RadioImageProcessor`.
        patch_size: Side of the model's patch in pixels.
        size_divisor: Round sides to multiples of this instead of the patch.
        max_img_size: Longest side that the model accepts, in pixels.
        do_sample_frames: Sample a clip's frames evenly: at most `num_frames`, or `fps` frames per second. Otherwise
            take all frames.
        num_frames: Largest number of sampled frames.
        fps: Sampled frames per second; an array needs `video_metadata` for it.
        resample: Filter for resizing, always antialiased.

    Raises:
        ValueError: On a clip or option that cannot give valid pixels; the message says what to change.
    """

    valid_kwargs = RadioVideoProcessorKwargs
    model_input_names = ["pixel_values_videos"]

    do_sample_frames = False
    num_frames = None
    fps = None

    def __init__(self, **kwargs: Any) -> None:
        # In a folder without settings for clips transformers passes those for images.
        of_images = RadioImageProcessorKwargs.__annotations__.keys() - self.valid_kwargs.__annotations__.keys()
        others = {*of_images, "auto_map", "processor_class"}
        super().__init__(**{name: value for name, value in kwargs.items() if name not in others})

    # pyrefly: ignore[bad-override]  (options by name only)
    def preprocess(self, videos: Any, **settings: Any) -> BatchFeature:
        """Return the model's inputs for one or more clips; a call of the processor does the same.

        Args:
            videos: See the class.
            settings: Any option of the class, for this call, and `return_tensors`.

        Raises:
            TypeError: On an unknown option.
            ValueError: On an invalid clip or option, which the message names.
        """
        return super().preprocess(_read_pil_frames(videos), **settings)

    def sample_frames(
        self, metadata: VideoMetadata, num_frames: int | None = None, fps: float | None = None, **settings: Any
    ) -> Any:
        """Return the positions of the frames to take, ascending; see the class.

        Raises:
            ValueError: If both `num_frames` and `fps` are given, if `fps` is given but that of the clip is unknown, or
                if a file does not state its number of frames.
        """
        if metadata.total_num_frames < 1:
            raise ValueError("`videos` must hold files that tell how many frames they have, such as MP4; one does not.")
        if num_frames is not None:
            if num_frames < 1:
                raise ValueError(f"`num_frames` must be at least 1, got {num_frames}.")
            num_frames = min(num_frames, metadata.total_num_frames)
        elif fps is None and self.num_frames is None and self.fps is None:
            num_frames = metadata.total_num_frames
        elif fps is not None and metadata.fps is None:
            raise ValueError(f"`fps` {fps} needs `video_metadata` with the `fps` of the clip itself, which has none.")
        return super().sample_frames(metadata, num_frames=num_frames, fps=fps, **settings)

    # pyrefly: ignore[bad-override]
    def fetch_videos(self, video_url_or_urls: Any, sample_indices_fn: Any = None) -> Any:
        """Read files with torchcodec or PyAV; arguments and results are those of the base class.

        Raises:
            ValueError: If neither is installed.
        """
        if isinstance(video_url_or_urls, list):
            read = [self.fetch_videos(each, sample_indices_fn) for each in video_url_or_urls]
            return [list(part) for part in zip(*read, strict=True)]
        reader = next((name for name, is_there in _READERS.items() if is_there()), None)
        if reader is None:
            raise ValueError(f"`videos` {video_url_or_urls!r} needs torchcodec or PyAV to be read: `pip install av`.")
        path: Any = str(video_url_or_urls)
        return load_video(path, backend=reader, sample_indices_fn=sample_indices_fn or self.sample_frames)

    # pyrefly: ignore[bad-override]
    def _prepare_input_videos(
        self, videos: Any, do_convert_rgb: bool | None = None, input_data_format: Any = None, device: Any = None
    ) -> list[Tensor]:
        """Return each clip as `(frames, channels, height, width)`; frames are read in the same way as images."""
        clips = [[read_image(frame, bool(do_convert_rgb), input_data_format) for frame in video] for video in videos]
        if do_convert_rgb:
            clips = [[_to_rgb(frame) for frame in clip] for clip in clips]
        return [torch.stack(clip).to(device) for clip in clips]

    # pyrefly: ignore[bad-override]  (options by name only)
    def _preprocess(self, videos: list[Tensor], return_tensors: Any = None, **settings: Any) -> BatchFeature:
        if settings.get("do_convert_rgb"):  # transformers 5.17; later versions pass it to `_prepare_input_videos`
            videos = [torch.stack([_to_rgb(frame) for frame in video]) for video in videos]
        full_scale = 1 / settings["rescale_factor"] if settings["do_rescale"] else 1.0
        clips = [resize_images(self, check_values(video, full_scale), settings) for video in videos]
        shapes = sorted({tuple(clip.shape) for clip in clips})
        if return_tensors is not None and len(shapes) > 1:
            raise ValueError(
                "`videos` must become clips of one size and one number of frames to fit one batch, got "
                f"{[(shape[0], *shape[2:]) for shape in shapes]} (frames, height, width). Give one exact "
                "`size={'height': ..., 'width': ...}` and `num_frames` with `do_sample_frames=True`, or "
                "`return_tensors=None` for a list."
            )
        if return_tensors is None:
            return BatchFeature({"pixel_values_videos": [to_pixels(clip, settings) for clip in clips]})
        return BatchFeature(
            {"pixel_values_videos": to_pixels(torch.stack(clips), settings)}, tensor_type=return_tensors
        )


def _read_pil_frames(videos: Any) -> Any:
    """Return the given clips, with lists of PIL images as RGB tensors.

    Raises:
        ValueError: If the frames of a clip differ in size.
    """
    if not isinstance(videos, (list, tuple)) or not videos:
        return videos
    if not is_pil_image(videos[0]):
        return [_read_pil_frames(video) for video in videos]
    frames = [_to_rgb(read_image(frame, True, None)) for frame in videos]
    sizes = sorted({tuple(frame.shape[1:]) for frame in frames})
    if len(sizes) > 1:
        raise ValueError(f"The frames of a clip in `videos` must be of one size, got {sizes} (height, width).")
    is_exact = all(frame.dtype == torch.uint8 for frame in frames)
    return torch.stack(frames if is_exact else [frame.float() for frame in frames])


def _to_rgb(frame: Tensor) -> Tensor:
    """Return a frame in RGB. White is 1 for floats of at most 1, otherwise 255; 16 bits are scaled to 255."""
    if frame.dtype == torch.uint16:
        frame = check_values(frame, 255.0)
    return to_rgb(frame, 1.0 if frame.is_floating_point() and frame.amax() <= 1 else 255.0)


# With this `save_pretrained` copies this file and names it in `auto_map`, also when it runs as remote code.
RadioVideoProcessor.register_for_auto_class("AutoVideoProcessor")
