"""Reading of images: files, PIL images, arrays and tensors of any layout become tensors of known shape and range."""

import base64
import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import torch
from PIL import ExifTags, Image, ImageFile, ImageOps, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as tvF
from transformers import image_utils
from transformers.image_utils import ChannelDimension, is_pil_image
from transformers.utils.generic import is_numpy_array, is_torch_tensor


# Formats that image files may have, here and wherever this project opens one. Our choice: pictures that Pillow decodes
# itself. EPS is none of them: Pillow lets Ghostscript run it as a program. TGA is last, for it has no first bytes of
# its own.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO", "ICNS", "DDS", "PCX")
FORMATS += ("PSD", "QOI", "SGI", "SUN", "XBM", "TGA")

# What Pillow and its plugins raise on files that are damaged, or no images.
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

MAX_SHOWN = 256  # our choice: characters of a text in an error; paths are shorter, base64 of pictures longer

# In PNGs with one of these torchvision may see something else than Pillow.
_SPECIAL_CHUNKS = (b"tRNS", b"acTL", b"eXIf", b"iTXt", b"Raw profile type")


def fetch(images: Any) -> Any:
    """Return images as they were given, in lists as they were, but with paths, addresses and base64 texts read.

    These are upright as their EXIF data say, RGB on white where they are transparent, or in one of PIL's modes of
    deeper gray. Of an animation the first picture is read.

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
        # Of the decoder, which does not know the name, or of what took it for base64, since there is no such file.
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
    with open_picture(data) as picture:
        if _is_plain(picture, data):
            try:  # twice as fast, the same pixels
                return decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
            except RuntimeError:
                pass  # Pillow may read it, or says what is wrong
        return _as_rgb(load_upright(picture))


def _is_plain(picture: ImageFile.ImageFile, data: bytes) -> bool:
    """Return whether a file has nothing but gray or RGB of 8 bits, upright, which torchvision reads as Pillow does."""
    if picture.format in ("JPEG", "WEBP"):
        return picture.mode in ("L", "RGB") and picture.getexif().get(ExifTags.Base.Orientation, 1) == 1
    is_usual = picture.format == "PNG" and picture.tile and picture.tile[0][3] in ("L", "RGB")
    return bool(is_usual) and not any(chunk in data for chunk in _SPECIAL_CHUNKS)


def open_picture(source: bytes | str | Path) -> ImageFile.ImageFile:
    """Open an image file, its bytes or its path, without decoding it.

    Raises:
        Exception: One of `UNREADABLE`, here or when it is decoded, if it is damaged or of none of `FORMATS`.
    """
    Image.init()  # Pillow before 11.3 does not know all formats, and would raise KeyError
    formats = [name for name in FORMATS if name in Image.OPEN]
    try:
        picture = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)
    except UnidentifiedImageError:  # which names an object in memory
        raise UnidentifiedImageError("no picture of a format that is read, or its beginning is damaged") from None
    if isinstance(picture, TiffImagePlugin.TiffImageFile) and Image.MAX_IMAGE_PIXELS is not None:
        # A tile is decoded whole, however small the image is that it covers.
        width, height = (picture.tag_v2.get(tag, 1) for tag in (ExifTags.Base.TileWidth, ExifTags.Base.TileLength))
        if width * height > 2 * Image.MAX_IMAGE_PIXELS:  # Pillow's own bound of images
            picture.close()
            raise Image.DecompressionBombError(f"a tile of {width} x {height} pixels is too large")
    return picture


def load_upright(picture: Image.Image) -> Image.Image:
    """Decode what `open_picture` opened, and turn it in place as its EXIF data say; return it."""
    ImageOps.exif_transpose(picture, in_place=True)
    picture.load()
    if picture.mode in ("P", "PA") and picture.palette is None:  # in an ICNS
        raise ValueError("a palette is missing")
    return picture


def read_picture(source: bytes | str | Path) -> Image.Image:
    """Read an image file, its bytes or its path, as upright RGB of 8 bits; see `to_eight_bits`.

    Raises:
        Exception: One of `UNREADABLE`, if it is damaged or of none of `FORMATS`.
    """
    with open_picture(source) as picture:
        return to_eight_bits(load_upright(picture))


def to_eight_bits(picture: Image.Image) -> Image.Image:
    """Return any PIL image as RGB of 8 bits, as it is read by default: on white where it is transparent.

    Raises:
        ValueError: If it is of floats or integers whose range is none of an image.
    """
    picture = _as_rgb(picture)
    if picture.mode == "RGB":
        return picture
    values = _read_pil(picture, convert_rgb=True)
    try:
        pixels = to_rgb(check_values(values, 255.0), 255.0)
    except ValueError as error:  # of the processor's options
        low, high = values.aminmax()
        raise ValueError(f"pixels from {low:g} to {high:g}, of which nobody says what is white") from error
    return tvF.to_pil_image(pixels.round().to(torch.uint8))


def _as_rgb(picture: Image.Image) -> Image.Image:
    """Return a PIL image as RGB, on white where it is transparent; those of more than 8 bits stay as they are."""
    if picture.mode == "RGB" and not picture.has_transparency_data:
        return picture
    if picture.mode == "F" or picture.mode.startswith("I"):
        return picture
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layer = picture if picture.mode == "RGBA" else picture.convert("RGBA")
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
        name: Of the argument, for messages.
        values: What is read.
        wanted: What the argument may be, in words.

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
