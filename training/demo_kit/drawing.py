"""The demo's cut-outs and photographs in memory, and the few drawing steps that scenes are made with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from training.data.decoding import to_tensor
from training.data.image_table import Split
from training.demo_kit.assets import CutOut, DemoAssets


# Our choices: large enough for pictures of 512 px, small enough that everything takes about 250 MB.
CUT_OUT_CACHE_PX = 256
EMOJI_CACHE_PX = 128
PHOTOGRAPH_CACHE_PX = 640

OBJECT_MIN_SHARE, OBJECT_MAX_SHARE = (
    0.3,
    0.75,
)  # our choice: longest side of an object over the picture's side
CROP_MIN_SHARE = 0.2  # our choice: side of a photograph's crop over the photograph's shorter side
MASK_THRESHOLD = 127  # our choice: a pixel is the object's where its alpha is above one half


@dataclass(frozen=True)
class PixelBank:
    """Decoded and shrunk pictures of one split; shared by forked workers without a copy.

    Attributes:
        objects: RGBA cut-outs, cropped to their opaque part.
        labels: Index into the assets' classes of each object.
        emoji: RGBA cut-outs.
        photographs: RGB pictures.
    """

    objects: tuple[Image.Image, ...]
    labels: tuple[int, ...]
    emoji: tuple[Image.Image, ...]
    photographs: tuple[Image.Image, ...]


@lru_cache(maxsize=4)
def load_pixel_bank(assets: DemoAssets, split: Split) -> PixelBank:
    """Decode all pictures of one split (about 3 s); later calls in this process return the same bank."""
    objects = [cut_out for cut_out in assets.objects if cut_out.split == split]
    return PixelBank(
        objects=tuple(load_cut_out(cut_out.path, CUT_OUT_CACHE_PX) for cut_out in objects),
        labels=tuple(assets.classes.index(str(cut_out.label)) for cut_out in objects),
        emoji=tuple(load_cut_out(cut.path, EMOJI_CACHE_PX) for cut in assets.emoji if cut.split == split),
        photographs=tuple(load_photograph(photo.path) for photo in assets.photographs if photo.split == split),
    )


def evaluation_bank(assets: DemoAssets, split: Split, classes: Sequence[str]) -> PixelBank:
    """Return the evaluation objects of the named classes and the photographs of one split.

    Labels index `classes`.
    """
    chosen = [cut_out for cut_out in assets.evaluation_objects(split) if cut_out.label in classes]
    return PixelBank(
        objects=tuple(load_cut_out(cut_out.path, CUT_OUT_CACHE_PX) for cut_out in chosen),
        labels=tuple(classes.index(str(cut_out.label)) for cut_out in chosen),
        emoji=(),
        photographs=load_pixel_bank(assets, split).photographs,
    )


def load_cut_out(path: Path, max_side_px: int) -> Image.Image:
    """Return an RGBA cut-out, cropped to what is not transparent, its longer side at most `max_side_px`."""
    with Image.open(path) as file:
        picture = file.convert("RGBA")
    opaque = picture.getchannel("A").getbbox()
    picture = picture.crop(opaque) if opaque else picture
    picture.thumbnail((max_side_px, max_side_px), Image.Resampling.LANCZOS)
    return picture


def load_photograph(path: Path, short_side_px: int = PHOTOGRAPH_CACHE_PX) -> Image.Image:
    """Return an RGB photograph, its shorter side at most `short_side_px`."""
    with Image.open(path) as file:
        file.draft("RGB", (short_side_px, short_side_px))  # JPEG only: decodes at 1/2, 1/4 or 1/8, never below
        picture = file.convert("RGB")
    scale = short_side_px / min(picture.size)
    if scale >= 1:
        return picture
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def cut_out_on_ground(cut_out: Image.Image, size: int, margin: float, ground: tuple[int, int, int]) -> Image.Image:
    """Return the cut-out centered on a plain square; `margin` is the free share of the side at each edge."""
    picture = Image.new("RGB", (size, size), ground)
    scaled = scale_cut_out(cut_out, size * (1 - 2 * margin))
    corner = ((size - scaled.width) // 2, (size - scaled.height) // 2)
    picture.paste(scaled, corner, scaled)
    return picture


def random_crop(photograph: Image.Image, size: int, random: np.random.Generator) -> Image.Image:
    """Return a random square crop of a photograph, half of them mirrored, resized to `size` pixels."""
    share, x, y, mirror = random.random(4)
    side = min(photograph.size) * (CROP_MIN_SHARE + (1 - CROP_MIN_SHARE) * share)
    left, top = x * (photograph.width - side), y * (photograph.height - side)
    box = (left, top, left + side, top + side)
    crop = photograph.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror < 0.5 else crop


def compose_scene(
    bank: PixelBank, size: int, max_objects: int, random: np.random.Generator
) -> tuple[Image.Image, np.ndarray]:
    """Paste one to `max_objects` cut-outs on a crop of a photograph.

    All draws are shares of the side, so that one state of `random` gives the same scene at every size.

    Returns:
        The picture, and its mask: uint8 `(size, size)`, 0 = background, `label + 1` = object.
    """
    scene = random_crop(bank.photographs[random.integers(len(bank.photographs))], size, random)
    mask = np.zeros((size, size), np.uint8)
    for _ in range(random.integers(1, max_objects + 1)):
        index = random.integers(len(bank.objects))
        share, x, y, mirror = random.random(4)
        longest = size * (OBJECT_MIN_SHARE + (OBJECT_MAX_SHARE - OBJECT_MIN_SHARE) * share)
        cut_out = scale_cut_out(bank.objects[index], longest)
        cut_out = cut_out.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror < 0.5 else cut_out
        left, top = round(x * (size - cut_out.width)), round(y * (size - cut_out.height))
        scene.paste(cut_out, (left, top), cut_out)
        opaque = np.asarray(cut_out.getchannel("A")) > MASK_THRESHOLD
        mask[top : top + cut_out.height, left : left + cut_out.width][opaque] = bank.labels[index] + 1
    return scene, mask


def load_object_pictures(objects: Sequence[CutOut], size: int, margin: float, ground: tuple[int, int, int]) -> Tensor:
    """Return each object alone on a plain ground: uint8 `(num_objects, 3, size, size)`."""
    pictures = [
        cut_out_on_ground(load_cut_out(cut_out.path, max(size, CUT_OUT_CACHE_PX)), size, margin, ground)
        for cut_out in objects
    ]
    return torch.stack([to_tensor(picture) for picture in pictures])


def scale_cut_out(cut_out: Image.Image, longest_px: float) -> Image.Image:
    """Return the cut-out with its longer side at `longest_px` pixels."""
    scale = longest_px / max(cut_out.size)
    width, height = (min(max(1, round(side * scale)), math.ceil(longest_px)) for side in cut_out.size)
    return cut_out.resize((width, height), Image.Resampling.LANCZOS)
