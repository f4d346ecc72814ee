"""Image files of every format that is read and of many modes, and damaged ones."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from modeling_radio.image_processing_radio import FORMATS


SIDES = (40, 48)  # height, width
_RANDOM = np.random.default_rng(0)
COLORS = _RANDOM.integers(0, 256, (*SIDES, 3), dtype=np.uint8)
RAMP = np.linspace(0, 255, SIDES[1]).astype(np.uint8)[None].repeat(SIDES[0], axis=0)
PICTURE, GRAY = Image.fromarray(COLORS), Image.fromarray(RAMP)
CLEAR = Image.fromarray(np.dstack([COLORS, RAMP]))  # every transparency


def encode(picture: Image.Image, file_format: str, **options) -> bytes:
    """Return a picture as a file."""
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def turned(orientation: int = 6) -> Image.Exif:
    """Return EXIF data that say how to hold the camera."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def png(bits: int, color_type: int, rows: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG of rows of bytes as they are stored."""
    header = struct.pack(">IIBBBBB", SIDES[1], SIDES[0], bits, color_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    stored = [struct.pack(">I", len(x)) + t + x + struct.pack(">I", zlib.crc32(t + x)) for t, x in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(stored)


def sun(pixels: np.ndarray) -> bytes:
    """Return a raster file of Sun, which Pillow does not write."""
    height, width = pixels.shape[:2]
    header = struct.pack(">8I", 0x59A66A95, width, height, 24, pixels.size, 1, 0, 0)
    return header + pixels[..., ::-1].tobytes()


def psd(pixels: np.ndarray) -> bytes:
    """Return a Photoshop file, which Pillow does not write."""
    height, width = pixels.shape[:2]
    header = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, height, width, 8, 3)
    return header + struct.pack(">IIIH", 0, 0, 0, 0) + pixels.transpose(2, 0, 1).tobytes()


def _palette(colors: int) -> Image.Image:
    return PICTURE.convert("P", palette=Image.Palette.ADAPTIVE, colors=colors)


def _on_white(picture: Image.Image) -> np.ndarray:
    layer = np.asarray(picture.convert("RGBA"), dtype=float)
    alpha = layer[..., 3:] / 255
    return (layer[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)


def _rgb(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB"))


_SIXTEEN = RAMP.astype(np.uint16) * 257
_PALE = Image.fromarray(np.where(RAMP[..., None] > 100, COLORS, np.uint8(7)))  # (7, 7, 7) is declared transparent
_ON_WHITE = np.where((np.asarray(_PALE) == 7).all(axis=2, keepdims=True), np.uint8(255), np.asarray(_PALE))
_GRAY = RAMP[..., None].repeat(3, axis=2)
_BITS = np.packbits(RAMP > 99, axis=1)

# By name the file, and its pixels where nothing is lost.
FILES: dict[str, tuple[bytes, np.ndarray | None]] = {
    "png rgb": (encode(PICTURE, "PNG"), COLORS),
    "png gray": (encode(GRAY, "PNG"), _GRAY),
    "png 1 bit": (encode(GRAY.convert("1"), "PNG"), _rgb(GRAY.convert("1"))),
    "png 1 bit, raw": (png(1, 0, _BITS), np.where(_GRAY > 99, 255, 0)),
    "png 4 bit": (png(4, 0, RAMP[:, ::2] // 16 * 17), np.repeat(RAMP[:, ::2] // 16 * 17, 2, axis=1)[..., None]),
    "png palette 2": (encode(_palette(2), "PNG"), _rgb(_palette(2))),
    "png palette 16": (encode(_palette(16), "PNG"), _rgb(_palette(16))),
    "png palette 256": (encode(_palette(256), "PNG"), _rgb(_palette(256))),
    "png palette, clear": (encode(_palette(16), "PNG", transparency=3), None),
    "png gray and alpha": (encode(CLEAR.convert("LA"), "PNG"), _on_white(CLEAR.convert("LA"))),
    "png rgba": (encode(CLEAR, "PNG"), _on_white(CLEAR)),
    "png tRNS": (encode(_PALE, "PNG", transparency=(7, 7, 7)), _ON_WHITE),
    "png 16 bit": (encode(Image.fromarray(_SIXTEEN), "PNG"), _GRAY),
    "png 16 bit, dark": (encode(Image.fromarray(RAMP.astype(np.uint16)), "PNG"), _GRAY > 128),
    "png 16 bit rgb": (png(16, 2, (COLORS.astype(">u2") * 257).reshape(SIDES[0], -1)), COLORS),
    "png turned": (encode(PICTURE, "PNG", exif=turned()), np.rot90(COLORS, -1)),
    "png turned, told at its end": (b"", np.rot90(COLORS, -1)),
    "png animated": (encode(PICTURE, "PNG", save_all=True, append_images=[GRAY.convert("RGB")]), COLORS),
    "jpeg rgb": (encode(PICTURE, "JPEG"), None),
    "jpeg gray": (encode(GRAY, "JPEG"), None),
    "jpeg progressive": (encode(PICTURE, "JPEG", progressive=True), None),
    "jpeg cmyk": (encode(PICTURE.convert("CMYK"), "JPEG"), None),
    **{f"jpeg turned {number}": (encode(PICTURE, "JPEG", exif=turned(number)), None) for number in range(2, 9)},
    "mpo": (encode(PICTURE, "MPO", save_all=True, append_images=[GRAY.convert("RGB")]), None),
    "webp": (encode(PICTURE, "WEBP"), None),
    "webp rgba": (encode(CLEAR, "WEBP", lossless=True, exact=True), _on_white(CLEAR)),
    "webp turned": (encode(PICTURE, "WEBP", lossless=True, exif=turned()), np.rot90(COLORS, -1)),
    "webp animated": (
        encode(PICTURE, "WEBP", lossless=True, save_all=True, append_images=[GRAY.convert("RGB")]),
        COLORS,
    ),
    "gif": (encode(_palette(64), "GIF"), _rgb(_palette(64))),
    "gif, clear": (encode(_palette(16), "GIF", transparency=3), None),
    "gif animated": (encode(PICTURE, "GIF", save_all=True, append_images=[GRAY.convert("RGB")]), None),
    "bmp": (encode(PICTURE, "BMP"), COLORS),
    "dib": (encode(PICTURE, "DIB"), COLORS),
    "tiff rgb": (encode(PICTURE, "TIFF"), COLORS),
    "tiff palette": (encode(_palette(16), "TIFF"), _rgb(_palette(16))),
    "tiff rgba": (encode(CLEAR, "TIFF"), _on_white(CLEAR)),
    "tiff cmyk": (encode(PICTURE.convert("CMYK"), "TIFF"), _rgb(PICTURE.convert("CMYK"))),
    "tiff 16 bit": (encode(Image.fromarray(_SIXTEEN), "TIFF"), _GRAY),
    "tiff 32 bit to 255": (encode(Image.fromarray(RAMP.astype(np.int32)), "TIFF"), _GRAY),
    "tiff 32 bit to 65535": (encode(Image.fromarray(_SIXTEEN.astype(np.int32)), "TIFF"), _GRAY),
    "tiff floats": (encode(Image.fromarray(RAMP.astype(np.float32)), "TIFF"), _GRAY),
    "tiff turned": (encode(PICTURE, "TIFF", exif=turned()), np.rot90(COLORS, -1)),
    "tiff lzw": (encode(PICTURE, "TIFF", compression="tiff_lzw"), COLORS),
    "avif": (encode(PICTURE, "AVIF"), None),
    "avif rgba": (encode(CLEAR, "AVIF"), None),
    "avif turned": (encode(PICTURE, "AVIF", exif=turned()), None),
    "jpeg 2000": (encode(PICTURE, "JPEG2000", irreversible=False), COLORS),
    "ppm": (encode(PICTURE, "PPM"), COLORS),
    "ppm 16 bit": (encode(Image.fromarray(_SIXTEEN.astype(np.int32)), "PPM"), _GRAY),
    "ico": (encode(CLEAR, "ICO", sizes=[SIDES[::-1]]), _on_white(CLEAR)),
    "icns": (encode(CLEAR.resize((64, 64)), "ICNS"), None),
    "dds": (encode(CLEAR, "DDS"), _on_white(CLEAR)),
    "pcx": (encode(PICTURE, "PCX"), COLORS),
    "psd": (psd(COLORS), COLORS),
    "qoi": (encode(PICTURE, "QOI"), COLORS),
    "sgi": (encode(PICTURE, "SGI"), COLORS),
    "sun": (sun(COLORS), COLORS),
    "xbm": (encode(GRAY.convert("1"), "XBM"), _rgb(GRAY.convert("1"))),
    "tga": (encode(PICTURE, "TGA"), COLORS),
}
_WHOLE, _END = encode(PICTURE, "PNG"), encode(PICTURE, "PNG")[-12:]
_EXIF = turned().tobytes().removeprefix(b"Exif\0\0")
_CHUNK = struct.pack(">I", len(_EXIF)) + b"eXIf" + _EXIF + struct.pack(">I", zlib.crc32(b"eXIf" + _EXIF))
FILES["png turned, told at its end"] = (_WHOLE[:-12] + _CHUNK + _END, np.rot90(COLORS, -1))


def one_of_each_format() -> dict[str, bytes]:
    """Return a file of each format that is read."""
    found = {}
    for content, _ in FILES.values():
        with Image.open(io.BytesIO(content)) as picture:
            found.setdefault({"MPO": "JPEG"}.get(str(picture.format), str(picture.format)), content)
    found["DIB"] = FILES["dib"][0]
    return {name: found[name] for name in FORMATS}


def damaged_files() -> dict[str, bytes]:
    """Return files of each format that are cut, and others on which Pillow raises what only their plugins raise."""
    found = {}
    for name, content in one_of_each_format().items():
        found[f"{name} cut"] = content[: len(content) * 2 // 3]
        found[f"{name} cut to its beginning"] = content[:20]
    avif, dds = FILES["avif"][0], FILES["dds"][0]
    found["AVIF, flipped"] = avif[:200] + bytes(byte ^ 0xFF for byte in avif[200:260]) + avif[260:]
    palette = encode(_palette(16).resize((128, 128)), "PNG")
    found["ICNS with a palette"] = (
        struct.pack(">4sI4sI", b"icns", len(palette) + 16, b"ic07", len(palette) + 8) + palette
    )
    found["DDS without flags"] = dds[:80] + bytes(4) + dds[84:]
    return found
