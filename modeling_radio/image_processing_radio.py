"""Image processor: any image becomes pixels in [0, 1] of a valid size, alone, in a padded batch or in a pack."""

from .version_radio import MINIMUM as MINIMUM  # first: later imports fail with an older transformers


# isort: split
import base64
import io
import os
import struct
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import validate_typed_dict
from huggingface_hub.errors import StrictDataclassFieldValidationError
from PIL import ExifTags, Image, ImageFile, ImageOps, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as tvF
from transformers import image_utils
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_transforms import group_images_by_shape, reorder_images
from transformers.image_utils import ChannelDimension, PILImageResampling, SizeDict, is_pil_image
from transformers.processing_utils import ImagesKwargs
from transformers.utils.generic import TensorType, is_numpy_array, is_torch_tensor

from .checks_radio import (
    Resolution,
    Rule,
    check_multiple,
    did_you_mean,
    find_builtin,
    in_words,
    integer,
    nearest_multiple,
    number,
    optional,
)
from .post_processing_radio import Geometry, PostProcessing, detection_targets, instance_labels, semantic_labels


P = TypeVar("P", bound="PixelProcessor")

SIZE_KEYS = (
    "height",
    "width",
    "shortest_edge",
    "longest_edge",
    "max_height",
    "max_width",
    "min_pixels",
    "max_pixels",
)
_PAIRS = ({"height", "width"}, {"max_height", "max_width"})

# Our choice: no side or area of an image is as large as 2**31, and all computation stays exact in floats.
PIXELS = integer(1, 2**31 - 1)
OWN_SIZE = {"size": {"max_pixels": 2**31 - 1}, "max_img_size": 2**31 - 1, "do_pad": False, "pad_size": None}
"""Options by which images keep their own size, rounded to whole patches, as tiles of large ones need."""


def read_size(size: Any, name: str = "size") -> SizeDict:
    """Return the option `size` of an image processor as transformers' `SizeDict`.

    Args:
        size: An integer for the shorter side, `(height, width)`, or a dictionary with some of `SIZE_KEYS`.
        name: Name of the option.

    Raises:
        ValueError: If it is something else, or a combination that means nothing here.
    """
    given = size
    size = plain_size(size)
    if isinstance(size, int):
        size = {"shortest_edge": size}
    elif isinstance(size, Sequence) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    if not isinstance(size, dict) or not size or not set(size) <= set(SIZE_KEYS):
        unknown = [key for key in size if key not in SIZE_KEYS] if isinstance(size, dict) else []
        raise ValueError(
            f"`{name}` must be an integer, (height, width) or a dictionary with some of {list(SIZE_KEYS)}, got "
            f"{given!r}." + (did_you_mean(unknown[0], SIZE_KEYS) if unknown else "")
        )
    if not all(map(PIXELS.holds, size.values())):
        raise ValueError(f"`{name}` must hold positive integers below {2**31}, got {given!r}.")
    for pair in _PAIRS:
        if pair & set(size) and set(size) != pair:
            first, second = sorted(pair)
            raise ValueError(f"`{name}` with {first!r} or {second!r} must hold both and nothing else, got {given!r}.")
    return SizeDict(**size)


def plain_size(value: Any) -> Any:
    """Return a processor's size as the dictionary that it was made from; any other value stays as it is."""
    return dict(value) if isinstance(value, SizeDict) else value  # pyrefly: ignore[no-matching-overload]


def read_exact_size(size: Any, name: str) -> SizeDict:
    """Return an option that is a height and a width, `read_size`'s or one integer for both.

    Raises:
        ValueError: If it is something else.
    """
    is_side = isinstance(size, int) and not isinstance(size, bool)
    exact = read_size((size, size) if is_side else size, name)
    if not exact.height:
        raise ValueError(f"`{name}` must have a 'height' and a 'width', got {size!r}.")
    return exact


def resized_resolution(height: int, width: int, size: SizeDict, step: int, largest: int) -> Resolution:
    """Return what an image of `height` x `width` pixels is resized to, within the bounds of `size`.

    Args:
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        size: Wanted sides or areas; see `RadioImageProcessor`.
        step: Sides become multiples of this.
        largest: Longest side in pixels, whatever `size` says.

    Raises:
        ValueError: If no size is within the bounds.
    """
    if size.height and size.width:
        check_multiple("`size`", size.height, size.width, step, largest)
        return Resolution(size.height, size.width)
    longest = min(size.longest_edge or largest, largest)
    tallest, widest = min(size.max_height or longest, longest), min(size.max_width or longest, longest)
    if min(tallest, widest) < step or (size.max_pixels or step**2) < step**2:
        raise ValueError(f"`size` must have room for one patch of {step} x {step} pixels, got {dict(size)}.")
    scale = _choose_scale(height, width, size, longest)
    rows = nearest_multiple(height * scale, step, step, tallest).height
    cols = nearest_multiple(width * scale, step, step, widest).height
    if size.max_pixels and rows * cols > size.max_pixels:
        # Rounding down keeps the bound, but for a strip so thin that its short side was raised to one step.
        rows, cols = (max(int(side * scale / step), 1) * step for side in (height, width))
        longest_side = size.max_pixels // min(rows, cols) // step * step
        rows, cols = min(rows, longest_side), min(cols, longest_side)
    return Resolution(rows, cols)


def _choose_scale(height: int, width: int, size: SizeDict, longest: int) -> float:
    """Return the factor for both sides that `size` asks for; it brings no side beyond `longest`."""
    scale = 1.0
    if size.shortest_edge:
        scale = size.shortest_edge / min(height, width)
    elif size.longest_edge:
        scale = size.longest_edge / max(height, width)
    elif size.max_height and size.max_width:
        scale = min(size.max_height / height, size.max_width / width)
    if size.min_pixels:
        scale = max(scale, (size.min_pixels / (height * width)) ** 0.5)
    if size.max_pixels:
        scale = min(scale, (size.max_pixels / (height * width)) ** 0.5)
    return min(scale, longest / max(height, width))


# Formats that image files may have, here and wherever this project opens one. Our choice: images that Pillow decodes
# itself. EPS is left out: Pillow lets Ghostscript run it as a program. TGA is last, for it has no first bytes of
# its own.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO", "ICNS", "DDS", "PCX")
FORMATS += ("PSD", "QOI", "SGI", "SUN", "XBM", "TGA")

# Errors of Pillow and its plugins on damaged files and on files that are no images.
UNREADABLE = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    RuntimeError,  # of AVIF; NotImplementedError, of DDS, is one
    MemoryError,  # where a header lies about the size
    AssertionError,
    AttributeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

# Our choice: how far outside its range a float image may lie before it is refused, since resizing overshoots.
RANGE_TOLERANCE = 1e-3

MAX_SHOWN = 256  # our choice: characters of a text in an error; paths are shorter, base64 of images longer

# In PNGs with one of these torchvision may see something else than Pillow.
_SPECIAL_CHUNKS = (b"tRNS", b"acTL", b"eXIf", b"iTXt", b"Raw profile type")


def fetch(images: Any) -> Any:
    """Return images as they were given, in lists as they were, but with paths, addresses and base64 texts read.

    These are upright as their EXIF data say, RGB on white where they are transparent, or in one of PIL's modes of
    deeper gray. Of an animation the first frame is read.

    Raises:
        ValueError: If there is no such file, or it is no image of `FORMATS`, or a damaged one.
    """
    if isinstance(images, (list, tuple)):
        return [fetch(image) for image in images]
    if not isinstance(images, (str, Path)):
        return images
    text = os.fspath(images)
    try:
        return _decode(_read_bytes(text))
    except UNREADABLE as error:
        # The decoder does not know the name, and a missing file was taken for base64.
        shown = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
        raise ValueError(
            f"`images` must be image files such as JPEG, PNG, WebP or TIFF, their addresses or base64, got {shown!r}, "
            f"which cannot be read: {str(error)[:MAX_SHOWN]}."
        ) from error


def _read_bytes(text: str) -> bytes:
    """Return the bytes of a file, of what is at an address, or of base64 with or without `data:` before it."""
    if text.startswith(("http://", "https://")):
        return image_utils.httpx.get(text, follow_redirects=True).content  # with what transformers reads addresses
    if os.path.isfile(text):  # False of what is too long for a name
        return Path(text).read_bytes()
    return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text)


def _decode(data: bytes) -> Any:
    with open_image_file(data) as pil_image:
        if _is_plain(pil_image, data):
            try:  # twice as fast, the same pixels
                return decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
            except RuntimeError:
                pass  # Pillow may read it, or says what is wrong
        return _as_rgb(load_upright(pil_image))


def _is_plain(pil_image: ImageFile.ImageFile, data: bytes) -> bool:
    """Return whether a file has nothing but gray or RGB of 8 bits, upright, which torchvision reads as Pillow does."""
    if pil_image.format in ("JPEG", "WEBP"):
        return pil_image.mode in ("L", "RGB") and pil_image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    is_usual = pil_image.format == "PNG" and pil_image.tile and pil_image.tile[0][3] in ("L", "RGB")
    return bool(is_usual) and not any(chunk in data for chunk in _SPECIAL_CHUNKS)


def open_image_file(source: bytes | str | Path) -> ImageFile.ImageFile:
    """Open an image file, its bytes or its path, without decoding it.

    Raises:
        Exception: One of `UNREADABLE`, here or when it is decoded, if it is damaged or its format is not in `FORMATS`.
    """
    Image.init()  # Pillow before 11.3 does not know all formats, and would raise KeyError
    formats = [name for name in FORMATS if name in Image.OPEN]
    try:
        pil_image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)
    except UnidentifiedImageError:  # which names an object in memory
        raise UnidentifiedImageError("no image of a format that is read, or its beginning is damaged") from None
    if isinstance(pil_image, TiffImagePlugin.TiffImageFile) and Image.MAX_IMAGE_PIXELS is not None:
        # A tile is decoded whole, however small the image is that it covers.
        width, height = (pil_image.tag_v2.get(tag, 1) for tag in (ExifTags.Base.TileWidth, ExifTags.Base.TileLength))
        if width * height > 2 * Image.MAX_IMAGE_PIXELS:  # Pillow's own bound of images
            pil_image.close()
            raise Image.DecompressionBombError(f"a tile of {width} x {height} pixels is too large")
    return pil_image


def load_upright(pil_image: Image.Image) -> Image.Image:
    """Decode what `open_image_file` opened, and turn it in place as its EXIF data say; return it."""
    ImageOps.exif_transpose(pil_image, in_place=True)
    pil_image.load()
    if pil_image.mode in ("P", "PA") and pil_image.palette is None:  # in an ICNS
        raise ValueError("a palette is missing")
    return pil_image


def read_image_file(source: bytes | str | Path) -> Image.Image:
    """Read an image file, its bytes or its path, as upright RGB of 8 bits; see `to_eight_bits`.

    Raises:
        Exception: One of `UNREADABLE`, if it is damaged or its format is not in `FORMATS`.
    """
    with open_image_file(source) as pil_image:
        return to_eight_bits(load_upright(pil_image))


def to_eight_bits(pil_image: Image.Image) -> Image.Image:
    """Return any PIL image as RGB of 8 bits, as it is read by default: on white where it is transparent.

    Raises:
        ValueError: If it is of floats or integers outside of an image's range.
    """
    pil_image = _as_rgb(pil_image)
    if pil_image.mode == "RGB":
        return pil_image
    values = _read_pil(pil_image, convert_rgb=True)
    try:
        pixels = to_rgb(check_values(values, 255.0), 255.0)
    except ValueError as error:  # of the processor's options
        low, high = values.aminmax()
        raise ValueError(
            f"pixels from {low:g} to {high:g}, without a value that is known to be white. Save it with integers of 8 "
            "or 16 bits."
        ) from error
    return tvF.to_pil_image(pixels.round().to(torch.uint8))


def _as_rgb(pil_image: Image.Image) -> Image.Image:
    """Return a PIL image as RGB, on white where it is transparent; those of more than 8 bits stay as they are."""
    if pil_image.mode == "RGB" and not pil_image.has_transparency_data:
        return pil_image
    if pil_image.mode == "F" or pil_image.mode.startswith("I"):
        return pil_image
    if not pil_image.has_transparency_data:
        return pil_image.convert("RGB")
    layer = pil_image if pil_image.mode == "RGBA" else pil_image.convert("RGBA")
    ground = Image.new("RGB", layer.size, "white")
    ground.paste(layer.convert("RGB"), mask=layer.getchannel("A"))
    return ground


def flatten(images: Any) -> list[Any]:
    """Return the single images of an image, a batch with four axes, or a nested list of either.

    Raises:
        ValueError: If a tensor has no plain values.
    """
    if isinstance(images, (list, tuple)):
        return [image for entry in images for image in flatten(entry)]
    if is_torch_tensor(images):
        images = _check_tensor("images", images)
    if (is_numpy_array(images) or is_torch_tensor(images)) and images.ndim == 4:
        return list(images)
    return [images]


def read_image(image: Any, convert_rgb: bool, input_data_format: str | ChannelDimension | None) -> Tensor:
    """Return one image as `(channels, height, width)` in its own dtype.

    Args:
        image: A PIL image, or an array or tensor of two or three axes.
        convert_rgb: Read palettes and other modes of PIL images as RGB, on white where they are transparent. Arrays and
            tensors stay as they are; see `to_rgb`.
        input_data_format: Where the channels of arrays and tensors are; None finds out.

    Raises:
        ValueError: If it is something else, or of another shape.
    """
    if is_pil_image(image):
        tensor = _read_pil(image, convert_rgb)
        input_data_format = ChannelDimension.FIRST
    else:
        tensor = _read_plain("images", image, "PIL images, numpy arrays, torch tensors or paths")
    if tensor.ndim == 2:
        tensor = tensor.unsqueeze(0)
        input_data_format = ChannelDimension.FIRST
    if tensor.ndim != 3 or tensor.numel() == 0:
        raise ValueError(
            f"`images` must each have the shape (height, width[, channels]) or (channels, height, width), got "
            f"{tuple(tensor.shape)}."
        )
    if (input_data_format or _find_channels(tensor)) == ChannelDimension.LAST:
        tensor = tensor.permute(2, 0, 1)
    return tensor


def read_label_maps(maps: Any) -> list[Tensor]:
    """Return maps of classes or instances as `(height, width)`, int64 each.

    Args:
        maps: One or a list of PIL images of one channel, arrays or tensors of integers, `(height, width)`; an array or
            tensor may also hold several, `(maps, height, width)`.

    Raises:
        ValueError: If a map is something else, or has colors.
    """
    if isinstance(maps, (list, tuple)):
        return [label_map for entry in maps for label_map in read_label_maps(entry)]
    if is_pil_image(maps):
        values = tvF.pil_to_tensor(maps.convert("I") if maps.mode.startswith("I") else maps)
        values = values[0] if len(values) == 1 else values.movedim(0, -1)
    else:
        values = _read_plain("segmentation_maps", maps, "PIL images, numpy arrays or torch tensors")
    is_map = values.ndim == 2 or (values.ndim == 3 and not is_pil_image(maps))
    if not is_map or values.is_floating_point() or values.is_complex():
        raise ValueError(
            f"`segmentation_maps` must each be (height, width) integers, the class or instance of each pixel, got "
            f"{values.dtype} of {tuple(values.shape)}."
        )
    return list(values.long()) if values.ndim == 3 else [values.long()]


def _read_plain(name: str, values: Any, wanted: str) -> Tensor:
    """Return an array or tensor as a tensor.

    Args:
        name: Name of the argument, for messages.
        values: Array or tensor.
        wanted: Allowed values of the argument, in words.

    Raises:
        ValueError: If it is neither, or has no plain values.
    """
    if is_numpy_array(values):
        return _read_array(name, values)
    if is_torch_tensor(values):
        return _check_tensor(name, values)
    raise ValueError(f"`{name}` must be {wanted}, got {type(values).__name__}.")


def _read_array(name: str, array: Any) -> Tensor:
    """Return a numpy array as a tensor. The copy admits what torch refuses: mirrored views, other byte orders, ..."""
    largest = 16 if array.dtype.kind == "c" else 8  # complex numbers have an error of their own
    if array.dtype.kind not in "biufc" or array.dtype.itemsize > largest:
        raise ValueError(f"`{name}` must be of integers or floats of at most 64 bits, got {array.dtype}.")
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))


def _check_tensor(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor, unless it is of a kind that has no plain values."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta:
        raise ValueError(
            f"`{name}` must be dense tensors with values, got {tensor.dtype} ({tensor.layout}) on {tensor.device}."
        )
    return tensor


def _read_pil(image: Any, convert_rgb: bool) -> Tensor:
    """Return a PIL image as a tensor, with `convert_rgb` on white where it is transparent.

    PIL's mode "I" does not say what white is: it is 255 where no value exceeds that, and else 65535. "I;16" is always
    65535.
    """
    if not image.width or not image.height:
        raise ValueError(f"`images` must have at least one pixel, got {image.height} x {image.width}.")
    if image.mode == "La":
        raise ValueError("`images` must not be of PIL's mode 'La', which it cannot convert. Convert them to 'LA'.")
    if image.mode.startswith("I"):
        # PIL would clip these to 255 in RGB. It opens 16-bit files as "I" or "I;16", depending on version.
        tensor = tvF.pil_to_tensor(image.convert("I"))
        low, high = tensor.aminmax()
        if low < 0 or high > 65535:
            raise ValueError(
                f"`images` of PIL's mode {image.mode!r} must hold 16-bit values, got [{low}, {high}]. Convert them "
                "to 8 bits."
            )
        return tensor.to(torch.uint8 if image.mode == "I" and high <= 255 else torch.uint16)
    return tvF.pil_to_tensor(_as_rgb(image) if convert_rgb else image)


def _find_channels(tensor: Tensor) -> ChannelDimension:
    """Return where 1, 3 or 4 channels are; first if both ends could be (transformers' rule)."""
    if tensor.shape[0] in (1, 3, 4):
        return ChannelDimension.FIRST
    if tensor.shape[-1] in (1, 3, 4):
        return ChannelDimension.LAST
    raise ValueError(f"`images` must have 1, 3 or 4 channels, first or last, got the shape {tuple(tensor.shape)}.")


def check_values(image: Tensor, full_scale: float) -> Tensor:
    """Return the image as uint8 or float32 with values in `[0, full_scale]`.

    Args:
        image: Any shape and dtype.
        full_scale: The value of white before rescaling: 255, or 1 if the image is not to be rescaled.

    Raises:
        ValueError: If the values contradict `full_scale`; the message says which option to change.
    """
    if image.dtype == torch.bool or image.is_complex():
        raise ValueError(
            f"`images` must be of integers or floats, got {image.dtype}. Masks are multiplied by 255 first."
        )
    if not image.is_floating_point() and full_scale == 1:
        raise ValueError(
            f"`do_rescale` must be True for images of integers ({image.dtype}), got False. It declares pixels in "
            "[0, 1]: leave it True."
        )
    if image.dtype == torch.uint16:
        return image.to(torch.float32) * (full_scale / 65535)
    if image.dtype != torch.uint8:
        is_float = image.is_floating_point()
        image = image.to(torch.float32)
        if is_float and full_scale > 1 and 0 < image.amax() <= 1:
            raise ValueError(
                f"`do_rescale` must be False for floats that seem to lie in [0, 1] already (the largest is "
                f"{image.amax():g}), got True. Pass `do_rescale=False`, or uint8 pixels."
            )
    tolerance = RANGE_TOLERANCE * full_scale
    if image.dtype == torch.uint8 and full_scale + tolerance >= 255:
        return image  # whatever its values
    low, high = image.aminmax()
    if not (low >= -tolerance and high <= full_scale + tolerance):  # also true of NaN
        raise ValueError(
            f"`images` must lie in [0, {full_scale:g}], got [{low:g}, {high:g}]. Give uint8, uint16 (scaled by "
            "65535), or floats in [0, 1] with `do_rescale=False`; do not normalize them."
        )
    return image


def to_rgb(image: Tensor, full_scale: float) -> Tensor:
    """Return `(3, height, width)` from gray, RGB or RGBA; transparent pixels become white.

    Args:
        image: `(channels, height, width)`, uint8 or float32.
        full_scale: The value of white.

    Raises:
        ValueError: If there are not 1, 3 or 4 channels.
    """
    channels = image.shape[0]
    if channels == 1:
        return image.expand(3, -1, -1)
    if channels == 3:
        return image
    if channels != 4:
        raise ValueError(f"`images` must have 1, 3 or 4 channels, got {channels}.")
    alpha = image[3:] / full_scale
    composite = image[:3] * alpha + full_scale * (1 - alpha)
    return composite if image.is_floating_point() else composite.round().to(image.dtype)


# Our choice: mid gray lies near the published `norm_mean`, so the normalized padding is close to zero.
PAD_VALUE = 0.5

UINT8_MAX = 255


def resize_images(backend: TorchvisionBackend, images: Tensor, options: dict[str, Any]) -> Tensor:
    """Return images of one shape resized, `(batch, channels, height, width)` in their dtype.

    Args:
        backend: The processor of images or clips, which resizes.
        images: Images of any size, whose values `check_values` has seen.
        options: The processor's, complete.

    Raises:
        ValueError: If they are not to be resized and their size is not valid.
    """
    height, width = images.shape[-2:]
    step = options["size_divisor"] or options["patch_size"]
    if not options["do_resize"]:
        check_multiple("`images` with `do_resize=False`", height, width, step, options["max_img_size"])
        return images
    target = resized_resolution(height, width, options["size"], step, options["max_img_size"])
    if target == (height, width):
        return images
    size = SizeDict(height=target.height, width=target.width)
    return backend.resize(images, size, resample=options["resample"])


def to_pixels(images: Tensor, options: dict[str, Any]) -> Tensor:
    """Return a copy of resized images in [0, 1], float32.

    Every new tensor of this size costs more time than computing with one, so there is one.
    """
    pixels = torch.empty(images.shape, dtype=torch.float32, device=images.device).copy_(images)
    scale = options["rescale_factor"] if options["do_rescale"] else 1.0
    if options["do_rescale"]:
        pixels *= scale
    if images.dtype == torch.uint8 and UINT8_MAX * scale <= 1:
        return pixels  # floats overshoot where they were resized
    return pixels.clamp_(0, 1)


def join_images(images: list[Tensor], options: dict[str, Any]) -> dict[str, Any]:
    """Return resized images as the model takes them, as `do_pack`, `do_pad` and `return_tensors` say.

    Raises:
        ValueError: If they have different channels, or different sizes without an option that takes them.
    """
    channels = sorted({image.shape[0] for image in images})
    if len(channels) > 1 and (options["do_pack"] or options["do_pad"] or options["return_tensors"] is not None):
        raise ValueError(
            f"`images` must have equal channels to fit one batch, got {channels}. Leave `do_convert_rgb` on, or give "
            "`return_tensors=None` for a list."
        )
    if not options["do_pack"] and not options["do_pad"] and options["return_tensors"] is not None:
        return {"pixel_values": to_pixels(_stack(images), options)}
    pixel_values = [to_pixels(image, options) for image in images]
    if options["do_pack"]:
        return _pack(pixel_values, options["patch_size"])
    if options["do_pad"]:
        step = options["size_divisor"] or options["patch_size"]
        return _pad(pixel_values, options["pad_size"], step, options["max_img_size"])
    return {"pixel_values": pixel_values}


def _stack(images: list[Tensor]) -> Tensor:
    """Return images of one size in one batch."""
    shapes = {tuple(image.shape[-2:]) for image in images}
    if len(shapes) > 1:
        raise ValueError(
            f"`images` must become one size to fit one batch, got {len(shapes)} different sizes {sorted(shapes)}. Give "
            "one exact `size={'height': ..., 'width': ...}`, which `AutoProcessor` has by itself, `do_pack=True` for "
            "packed patches, which changes no result, `return_tensors=None` for a list, or `do_pad=True` for gray "
            "padding, which enters summary and features."
        )
    return images[0].unsqueeze(0) if len(images) == 1 else torch.stack(images)


def _pad(images: list[Tensor], pad_size: SizeDict | None, step: int, max_img_size: int) -> dict[str, Tensor]:
    """Return all images in one batch, padded at the right and bottom, and where they are."""
    height, width = (max(image.shape[axis] for image in images) for axis in (-2, -1))
    if pad_size is not None:
        if not (pad_size.height and pad_size.width) or pad_size.height < height or pad_size.width < width:
            raise ValueError(
                f"`pad_size` must have a height and width of at least {height} and {width}, the largest image's, got "
                f"{dict(pad_size)}."
            )
        height, width = (-(-side // step) * step for side in (pad_size.height, pad_size.width))
        check_multiple("`pad_size`", height, width, step, max_img_size)
    pixel_values, masks = [], []
    for image in images:
        margins = (0, width - image.shape[-1], 0, height - image.shape[-2])
        pixel_values.append(F.pad(image, margins, value=PAD_VALUE))
        masks.append(F.pad(torch.ones_like(image[0], dtype=torch.long), margins))
    return {"pixel_values": torch.stack(pixel_values), "pixel_mask": torch.stack(masks)}


def _pack(images: list[Tensor], patch_size: int) -> dict[str, Tensor]:
    """Return the channel-major patches of all images in one tensor, and each image's rows and columns."""
    patches = []
    grids = []
    for image in images:
        channels, rows, cols = image.shape[0], image.shape[1] // patch_size, image.shape[2] // patch_size
        grid = image.reshape(channels, rows, patch_size, cols, patch_size)
        patches.append(grid.permute(1, 3, 0, 2, 4).flatten(0, 1).flatten(1))  # -> (rows * cols, channels * patch**2)
        grids.append((rows, cols))
    return {"pixel_values": torch.cat(patches), "image_grid_hw": torch.tensor(grids)}


IDENTITY = {"image_mean": (0.0, 0.0, 0.0), "image_std": (1.0, 1.0, 1.0)}
"""Normalization that changes nothing: `RadioModel` normalizes inside."""

# What transformers writes into `preprocessor_config.json` besides settings.
_SERVICE_KEYS = (
    *("auto_map", "processor_class"),
    *("feature_extractor_type", "image_processor_type", "video_processor_type"),
)


def _has_device(value: Any) -> bool:
    """Return whether torch has a device here: the CPU, or the accelerator by its name, its number or both."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    counts = {"cpu": 1} if accelerator is None else {"cpu": 1, accelerator.type: torch.accelerator.device_count()}
    if isinstance(value, int) and accelerator is not None:
        return 0 <= value < counts[accelerator.type]
    name, _, index = str(value).partition(":")
    return name in counts and (not index or (index.isdecimal() and int(index) < counts[name]))


# Ranges of values, which types do not give; `check_settings` reads them.
_RANGES = {
    "patch_size": PIXELS,
    "size_divisor": optional(PIXELS),
    "max_img_size": PIXELS,
    "image_seq_length": optional(PIXELS),
    "rescale_factor": number(f"[{2.0**-32}, 1]"),  # the least is that of 32-bit integers
    "device": optional(Rule("a device that torch has here, for example 'cpu'", _has_device)),
}


def check_spelling(names: Collection[str], known: Collection[str], processor: str) -> None:
    """Refuse a setting that looks like a misspelled one; other unknown names are transformers' own business.

    Args:
        names: Given names.
        known: The settings that there are.
        processor: The class that has them.

    Raises:
        ValueError: It names the setting and the one that may be meant.
    """
    for name in names:
        hint = "" if name in known or name in _SERVICE_KEYS else did_you_mean(name, known)
        if hint:
            raise ValueError(f"`{name}` must be a setting of {processor}, got an unknown name.{hint}")


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse settings out of range, and those that contradict each other or the model.

    Args:
        settings: All of them, each of the right type, sizes as `SizeDict`.

    Raises:
        ValueError: It names the setting to change.
    """
    for name, rule in _RANGES.items():
        if name in settings:
            rule.check(name, settings[name])
    if settings["do_normalize"]:
        raise ValueError(
            "`do_normalize` must be False, got True. RadioModel normalizes inside, and doing it twice spoils the "
            "features; see `norm_mean` and `norm_std` of the model's config."
        )
    for name, neutral in IDENTITY.items():
        value = settings[name]
        if value is not None and {*(value if isinstance(value, tuple) else [value])} != {*neutral}:
            raise ValueError(
                f"`{name}` must be {neutral}, which changes nothing, got {value}. RadioModel normalizes inside; see "
                "`norm_mean` and `norm_std` of the model's config."
            )
    if settings["do_center_crop"]:
        raise ValueError("`do_center_crop` must be False, got True. Crop the image before, or give an exact `size`.")
    if settings["do_pad"] and settings.get("do_pack"):  # clips have no packs
        raise ValueError(
            "`do_pad` must be False with `do_pack=True`, got True. They are two ways to join images of different "
            "sizes: choose one."
        )
    patch_size, size_divisor = settings["patch_size"], settings["size_divisor"]
    step = size_divisor or patch_size
    if step % patch_size:
        raise ValueError(f"`size_divisor` must be a multiple of `patch_size` ({patch_size}), got {size_divisor}.")
    if settings["max_img_size"] < step:
        raise ValueError(f"`max_img_size` must be at least one step of {step} pixels, got {settings['max_img_size']}.")


class PixelKwargs(TypedDict, total=False):
    """Types of options that images and clips share: our own, and closer ones of some that transformers has too."""

    patch_size: int
    size_divisor: int | None
    max_img_size: int
    resample: Literal[0, 1, 2, 3] | None  # the filters that torchvision has for tensors, by PIL's numbers
    data_format: Literal["channels_first"] | None  # what the model takes
    input_data_format: Literal["channels_first", "channels_last"] | None
    return_tensors: Literal["pt", "np"] | None
    device: str | int | torch.device | None
    # Programs in JavaScript write 1.0 as 1.
    rescale_factor: float | int | None
    image_mean: float | int | list[float | int] | tuple[float | int, ...] | None
    image_std: float | int | list[float | int] | tuple[float | int, ...] | None


class RadioImageProcessorKwargs(ImagesKwargs, PixelKwargs, total=False):  # pyrefly: ignore[inconsistent-inheritance]
    """Options of `RadioImageProcessor`; see the class."""

    do_pack: bool | None
    do_reduce_labels: bool | None


@contextmanager
def errors_by_name(kinds: Any, settings: Mapping[str, Any]) -> Iterator[None]:
    """Let transformers' validation of types raise a `ValueError` that reads as those of this project.

    Args:
        kinds: The class of options that it validates by.
        settings: Settings that it validates.
    """
    try:
        yield
    except StrictDataclassFieldValidationError as error:
        name = str(error).split("'")[1]  # "Validation error for field 'size': ...", which it keeps nowhere else
        kind = in_words(kinds.__annotations__[name])
        raise ValueError(f"`{name}` must be {kind}, got {settings[name]!r:.200}.") from error


class PixelProcessor(TorchvisionBackend):
    """Options that images and clips share, and their checks.

    A value is checked once where a processor is built, and once where a call gives it. transformers validates types
    (`validate_typed_dict`, which its `preprocess` calls), `_standardize_kwargs` reads sizes, and
    `_validate_preprocess_kwargs` checks ranges and settings that contradict each other.
    """

    do_convert_rgb = True
    do_resize = True
    size = {"shortest_edge": 512}
    default_to_square = False
    resample = PILImageResampling.BICUBIC
    do_rescale = True
    rescale_factor = 1 / 255
    # Unused here, but written into `preprocessor_config.json` for other classes and programs that read it: CLIP's
    # processor would else crop the middle, and transformers' example programs normalize by these.
    do_center_crop = False
    do_normalize = False
    image_mean = IDENTITY["image_mean"]
    image_std = IDENTITY["image_std"]
    patch_size = 16
    size_divisor = None
    max_img_size = 2048

    def __init__(self, **kwargs: Any) -> None:
        kinds: Any = self.valid_kwargs
        names = kinds.__annotations__
        check_spelling(kwargs, names, type(self).__name__)
        kwargs = {name: plain_size(value) for name, value in kwargs.items()}
        given = {name: value for name, value in kwargs.items() if name in names and value is not None}
        with errors_by_name(kinds, given):
            validate_typed_dict(kinds, given)
        super().__init__(**kwargs)
        self._validate_preprocess_kwargs(**{name: getattr(self, name) for name in names})

    @classmethod
    def from_model_config(cls: type[P], config: Any, **overrides: Any) -> P:
        """Return the processor that fits a model: its patch, its largest side and its preferred resolution.

        Args:
            config: The model's configuration.
            overrides: Any option of this class.
        """
        settings = {
            "patch_size": config.patch_size,
            "max_img_size": config.largest_side,
            "size": {"shortest_edge": min(config.preferred_resolution)},
            "size_divisor": None if config.resolution_step == config.patch_size else config.resolution_step,
        }
        return cls(**{**settings, **overrides})

    def preprocess(self, *inputs: Any, **settings: Any) -> BatchFeature:
        """Return the model's inputs; arguments are those of the base class."""
        # transformers' validation knows sizes as the user writes them, but not as a processor holds them.
        settings = {name: plain_size(value) for name, value in settings.items()}
        with errors_by_name(self.valid_kwargs, settings):
            return super().preprocess(*inputs, **settings)

    # pyrefly: ignore[bad-override]  (options by name only)
    def _standardize_kwargs(self, size: Any = None, **kwargs: Any) -> dict[str, Any]:
        size = None if size is None else read_size(size)
        exact = {name: kwargs[name] for name in ("pad_size", "crop_size") if kwargs.get(name) is not None}
        kwargs |= {name: read_exact_size(value, name) for name, value in exact.items()}
        return super()._standardize_kwargs(size=size, **kwargs)

    # pyrefly: ignore[bad-override]  (options by name only)
    def _validate_preprocess_kwargs(self, **settings: Any) -> None:
        check_settings(settings)
        super()._validate_preprocess_kwargs(**settings)


class RadioImageProcessor(PostProcessing, PixelProcessor):
    r"""Turns images into `pixel_values` for `RadioModel`: RGB floats in [0, 1], sides multiples of the patch.

    It never normalizes: the model subtracts its own mean inside, so `do_normalize=True` is refused. Images
    may be PIL images, numpy arrays, torch tensors (channels first or last), paths or URLs, one or a list.
    Gray becomes RGB, transparency is laid on white (as transformers does), 16-bit images are scaled by their
    own range; in PIL's mode "I" white is 255 where no value exceeds that, and else 65535. Files are turned as
    their EXIF data say; PIL images are not, as nowhere in transformers: `ImageOps.exif_transpose` turns them.
    Floats already in [0, 1] need `do_rescale=False`. Labels may come with the images: see `preprocess`.

    Args:
        size: Size to resize to. `{"height": h, "width": w}` (or `(h, w)`) is exactly that; everything else
            keeps the aspect ratio, up to rounding to whole patches. `{"shortest_edge": n}` (or just `n`) and
            `{"longest_edge": n}` scale that side to `n` pixels; together the longest edge is a bound.
            `{"max_height": h, "max_width": w}` is the largest size within both, as detectors of transformers take it.
            `{"max_pixels": n}` bounds the area, `{"min_pixels": n}` from below, alone or with an edge; alone
            they keep the image's own size within the bound. The default, 512 on the shorter side, is the
            preferred resolution of C-RADIOv4, and a large photograph then costs no more than a small one.
        patch_size: Side of the model's patch in pixels.
        size_divisor: Round sides to multiples of this instead of the patch, for example patch times window.
        max_img_size: Longest side that the model accepts, in pixels.
        do_pad: Pad at the right and bottom to the largest image of the call, and return `pixel_mask`
            `(batch, height, width)`, 1 on the image, for `post_process_...`. The model takes `pixel_values`
            only and sees the padding as gray image; packing changes no result.
        do_pack: Return the patches of all images as `(total_patches, channels * patch_size**2)`, each
            channel-major, with `image_grid_hw` `(num_images, 2)`: how transformers' native `RadioModel` reads
            images of different sizes.
        pad_size: `{"height": h, "width": w}` to pad to instead of the largest image, and from there to the next whole
            patch: 600, which transformers' detection program asks for, becomes 608.
        do_reduce_labels: In `segmentation_maps` class 0 is background: it becomes 255, which is ignored, and all others
            become one less. Padding is 255 too, transformers' value, whatever `semantic_loss_ignore_index` says.
        resample: Filter for resizing, always antialiased.
        disable_grouping: Images of one shape are resized together where this is False, and one by one where it is
            True, with the same pixels. None (transformers' default) groups on accelerators only: on a CPU joining
            large images costs more than it saves.

    Raises:
        ValueError: On any image or option that cannot give valid pixels; the message says what to change.
    """

    valid_kwargs = RadioImageProcessorKwargs
    model_input_names = ["pixel_values", "image_grid_hw"]

    do_pad = False
    do_pack = False
    do_reduce_labels = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *args: Any, **kwargs: Any) -> Any:
        """Open the processor of a folder, of a name on the Hub or of `builtin:NAME`, as transformers does."""
        return super().from_pretrained(find_builtin(pretrained_model_name_or_path), *args, **kwargs)

    def get_output_size(self, height: int, width: int, size: Any = None) -> tuple[int, int]:
        """Return the height and width in pixels that an image of `height` by `width` is resized to.

        Args:
            height: Height of the image in pixels.
            width: Width of the image in pixels.
            size: Target size as for a call; None takes the processor's own.
        """
        step = self.size_divisor or self.patch_size
        target = read_size(self.size if size is None else size)
        return resized_resolution(height, width, target, step, self.max_img_size)

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        device: Any = None,
        do_rescale: bool | None = True,
        rescale_factor: float = 1 / 255,
        **kwargs: Any,
    ) -> Tensor:
        """Return one image of any kind as `(channels, height, width)`, uint8 or float32, not yet rescaled.

        Raises:
            ValueError: If the kind, the shape or the range of values cannot be right.
        """
        full_scale = 1 / rescale_factor if do_rescale else 1.0
        tensor = read_image(fetch(image), bool(do_convert_rgb), input_data_format).to(device)
        tensor = check_values(tensor, full_scale)
        return to_rgb(tensor, full_scale) if do_convert_rgb else tensor

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> list[Any]:
        """Return all images in one flat list, also gray arrays of two axes, which the base class refuses."""
        flat = flatten(fetch(images))
        if not flat:
            raise ValueError("`images` must hold at least one image, got none.")
        return flat

    # pyrefly: ignore[bad-override]  (options by name only)
    def preprocess(
        self,
        images: Any,
        segmentation_maps: Any = None,
        *,
        annotations: Any = None,
        instance_id_to_semantic_id: Any = None,
        return_segmentation_masks: bool | None = None,
        masks_path: str | Path | None = None,
        **settings: Any,
    ) -> BatchFeature:
        """Return the model's inputs for one or more images; calling the processor is the same.

        Args:
            images: See the class.
            segmentation_maps: The class of each pixel, one map of its size for each image: PIL images of one channel,
                or integers `(height, width)`. They become `labels` `(batch, height, width)` for
                `RadioForSemanticSegmentation`, resized by nearest neighbor, 255 (ignored) on padding.
            annotations: Objects, one dictionary for each image in COCO's form of detection or of panoptic
                segmentation. They become `labels` for the detection models, see `detection_targets`.
            instance_id_to_semantic_id: The class of each instance, one dictionary for all images or one for each:
                `segmentation_maps` then hold instances, and become `mask_labels` and `class_labels` for
                `RadioForUniversalSegmentation`.
            return_segmentation_masks: Whether `labels` made of `annotations` have `masks`; `None`: panoptic ones do.
            masks_path: Folder of the maps of panoptic annotations.
            settings: Any option of the class, for this call.

        Raises:
            TypeError: On an option that does not exist.
            ValueError: On an image, label or option that cannot be right; it is named.
        """
        if annotations is not None and segmentation_maps is not None:
            raise ValueError(
                "`annotations` must be None with `segmentation_maps`, got both. Choose one kind of labels."
            )
        if instance_id_to_semantic_id is not None and segmentation_maps is None:
            raise ValueError("`segmentation_maps` must be given with `instance_id_to_semantic_id`, got None.")
        labels = (annotations, instance_id_to_semantic_id, return_segmentation_masks, masks_path)
        return super().preprocess(images, segmentation_maps, *labels, **settings)

    # pyrefly: ignore[bad-override]  (options by name only)
    def _preprocess_image_like_inputs(
        self,
        images: Any,
        segmentation_maps: Any,
        annotations: Any,
        instance_id_to_semantic_id: Any,
        return_segmentation_masks: bool | None,
        masks_path: str | Path | None,
        **settings: Any,
    ) -> BatchFeature:
        """Read, resize and join images, and bring labels to their geometry; arguments are those of `preprocess`."""
        read = self._prepare_image_like_inputs(images, **settings)
        resized = self._resize_all(read, settings)
        inputs = BatchFeature(data=join_images(resized, settings), tensor_type=settings["return_tensors"])
        if segmentation_maps is None and annotations is None:
            return inputs
        if settings["do_pack"]:
            raise ValueError("`do_pack` must be False with labels, got True. Use `do_pad=True` or one exact `size`.")
        sizes = ([tuple(image.shape[-2:]) for image in several] for several in (read, resized, inputs["pixel_values"]))
        geometries = list(map(Geometry, *sizes))
        tensor_type = settings["return_tensors"]
        if annotations is not None:
            targets = detection_targets(annotations, geometries, masks_path, return_segmentation_masks)
            inputs["labels"] = [BatchFeature(target, tensor_type=tensor_type) for target in targets]
            return inputs
        maps, reduce = read_label_maps(segmentation_maps), bool(settings["do_reduce_labels"])
        if instance_id_to_semantic_id is None:
            labels = semantic_labels(maps, geometries, reduce)
            joined = labels if tensor_type is None else torch.stack(labels)
            inputs.update(BatchFeature({"labels": joined}, tensor_type=tensor_type))
        else:
            masks, classes = instance_labels(maps, geometries, instance_id_to_semantic_id, reduce)
            inputs["mask_labels"] = _convert_each(masks, tensor_type)
            inputs["class_labels"] = _convert_each(classes, tensor_type)
        return inputs

    def _resize_all(self, images: list[Tensor], options: dict[str, Any]) -> list[Tensor]:
        """Resize images that `process_image` returned."""
        # Joining unlike images would change their dtype, and with it how resizing rounds.
        is_mixed = len({(image.dtype, image.device, len(image)) for image in images}) > 1
        groups, grouped_index = group_images_by_shape(images, disable_grouping=is_mixed or options["disable_grouping"])
        resized = {key: resize_images(self, group, options) for key, group in groups.items()}
        return list(reorder_images(resized, grouped_index))


def _convert_each(tensors: list[Tensor], tensor_type: str | TensorType | None) -> list[Any]:
    """Return tensors of different shapes, which no batch could hold, in the form that is wanted."""
    return [tensor.numpy() if tensor_type == "np" else tensor for tensor in tensors]


# `save_pretrained` then copies this file and names it in `auto_map`, also when it runs as remote code.
RadioImageProcessor.register_for_auto_class("AutoImageProcessor")
