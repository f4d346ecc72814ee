"""Everything that reads image files, from the file to its pixels."""

import base64
import importlib.util
import io
import sys
from pathlib import Path
from tempfile import SpooledTemporaryFile

import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image, ImageOps

from modeling_radio import RadioImageProcessor
from modeling_radio.data.decoding import EncodedImage, UnusableImageError, decode_rgb
from modeling_radio.data.labeled.rows import DecodedImages
from modeling_radio.data.labeled.tables import read_row
from modeling_radio.figures.predictions import read_photograph
from modeling_radio.image_processing_radio import UNREADABLE, read_image_file
from modeling_radio.serving.requests import read_image


HTTPException = pytest.importorskip("fastapi", reason="needs the extra `app`").HTTPException
pytest.importorskip("onnxruntime", reason="needs the extra `export`")

ROOT = Path(__file__).parents[3]
PROCESSOR = RadioImageProcessor()


def open_script(name):
    """Return a script of the notebooks as a module."""
    specification = importlib.util.spec_from_file_location(name, ROOT / "notebooks" / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module


ONNX = open_script("run_onnx")


def processed(image):
    """Return the processor's pixels of an image before it resizes them."""
    return PROCESSOR.process_image(image, do_convert_rgb=True)


def distilled(content):
    """Return the image that distillation decodes, of any size."""
    return decode_rgb(EncodedImage("x", content), smallest_px=1)


def served(content):
    """Return the image that the server decodes from the body of a request."""
    with SpooledTemporaryFile() as body:
        body.write(content)
        return read_image(body, 2**20)


def table(content):
    """A data set of one image, as Parquet files hold it."""
    rows = {"image": [{"bytes": content, "path": None}]}
    return Dataset.from_dict(rows, features=Features({"image": ImageFeature()}))


# From the path and the content of a file to its pixels, and what a damaged file raises.
READERS = {
    "processor, path": (lambda path, content: processed(path), ValueError),
    "processor, base64": (lambda path, content: processed(base64.b64encode(content).decode()), ValueError),
    "processor, PIL": (lambda path, content: processed(ImageOps.exif_transpose(Image.open(path))), UNREADABLE),
    "read_image_file": (lambda path, content: read_image_file(path), UNREADABLE),
    "distillation, folder": (lambda path, content: distilled(path), UnusableImageError),
    "distillation, shards": (lambda path, content: distilled(content), UnusableImageError),
    "evaluation": (lambda path, content: DecodedImages(table(content), "x", str)[0], ValueError),
    "tuning": (lambda path, content: processed(read_row(table(content), 0, "image")["image"]), ValueError),
    "app": (lambda path, content: read_photograph(path), ValueError),
    "server": (lambda path, content: served(content), HTTPException),
    "run_onnx": (lambda path, content: ONNX.read(path), UNREADABLE),
}
FEWER_FORMATS = {"run_onnx": ONNX.FORMATS}


def readers_of(content):
    """The readers that read files of this format; all of them for other files."""
    try:
        with Image.open(io.BytesIO(content)) as file:
            kind = "JPEG" if file.format == "MPO" else file.format
    except UNREADABLE:
        return READERS
    return {name: reader for name, reader in READERS.items() if kind in FEWER_FORMATS.get(name, (kind,))}


def pixels_of(image):
    """Pixels as bytes `(height, width, 3)`."""
    if torch.is_tensor(image):
        return image.float().round().to(torch.uint8).movedim(0, -1).numpy()
    assert image.mode == "RGB"
    return np.asarray(image)
