"""The work of `radio predict`: parts of lines of JSON, then tables, COCO and a page of them."""

from __future__ import annotations

import csv
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image
from transformers.utils import logging as transformers_logging

from modeling_radio.checks_radio import read_json
from modeling_radio.core.command_line import recorded_command
from modeling_radio.core.errors import first_few
from modeling_radio.core.files import check_run_folder, remove_partial, sole_run, write_file, write_text
from modeling_radio.core.ids import name_of_folder
from modeling_radio.core.opening import open_model, require_rgb
from modeling_radio.core.settings import ImageSourceOptions, hash_of
from modeling_radio.core.tables import counted
from modeling_radio.core.timing import ProgressBar
from modeling_radio.core.trust import check_parts
from modeling_radio.evaluation.models.radio import tiles_of
from modeling_radio.extraction.settings import SourceSettings
from modeling_radio.extraction.shards import Shard
from modeling_radio.extraction.source import ImageBatch, SourceSplit, open_source
from modeling_radio.extraction.streamed import StreamedSplit
from modeling_radio.figures.features import hex_color
from modeling_radio.figures.page import CaptionedImage, ImageRow, Section, write_page
from modeling_radio.figures.predictions import Prediction
from modeling_radio.prediction.answers import (
    CLASSES,
    DEPTH,
    OBJECTS,
    SEGMENTS,
    Answer,
    Answering,
    at_size,
    mask_of,
    reduced,
)
from modeling_radio.prediction.predict import PredictSettings


NAME = "radio predict"
SETTINGS, PARTS, LINES, TABLE, COCO, PAGE = (
    *("settings.json", "parts", "predictions.jsonl", "predictions.csv", "predictions.coco.json", "index.html"),
)
FOLDER_OF_KIND = {SEGMENTS: "masks", DEPTH: "depth"}
"""Folders of the PNG files."""
IMAGES_OF_PART = 500
"""Our choice: what an interruption loses at most is a minute of a large model on a GPU."""
IMAGES_OF_PAGE = 48
"""Our choice: what one looks through."""
LONGEST_NAME = 200
"""Bytes of a file's name, below the 255 of most file systems with our suffixes."""
MOST_COLORS = 100
"""Our choice: classes of objects whose colors the page explains, such as COCO's 80."""
NOT_DECISIVE = ("checkpoint", "data", "output", "base", "batch_size", "device")
"""Settings that decide no answer; the model and the images are compared by their contents."""
_HEADERS = {
    CLASSES: ("image", "label", "score"),
    OBJECTS: ("image", "label", "score", "xmin", "ymin", "xmax", "ymax"),
    SEGMENTS: ("image", "label", "share", "file"),
    DEPTH: ("image", "min", "max", "file", "steps"),
}


@dataclass(frozen=True)
class Predicted:
    """Result of `radio predict`.

    Attributes:
        output: Folder of the answers.
        num_images: Images with an answer.
        skipped: Names of the images that cannot be read.
        files: Names of the files for readers.
    """

    output: Path
    num_images: int
    skipped: list[str]
    files: list[str]

    def answers(self) -> Iterator[dict[str, Any]]:
        """Yield the answers, a dictionary for each image, those that cannot be read with their `error`."""
        yield from _lines([self.output / LINES])

    def __str__(self) -> str:
        left_out = f", {len(self.skipped)} cannot be read ({first_few(self.skipped, 3)})" if self.skipped else ""
        return f"{counted(self.num_images, 'image')}{left_out}. Wrote {', '.join(self.files)} in {self.output}."


class AnsweringModel(Protocol):
    """A model that answers for images."""

    kind: str
    tiles: Any

    @property
    def class_names(self) -> Mapping[int, str]: ...

    def __call__(self, images: Sequence[Image.Image]) -> list[Answer]: ...

    def identity(self) -> dict[str, str]: ...

    def drawn(self, picture: Image.Image) -> Prediction: ...


def predict_all(settings: PredictSettings) -> Predicted:
    """Answer for all images by a tuned model.

    Raises:
        ValueError: If model, images or settings do not fit, or the folder holds answers of others.
        WriteError: If something cannot be written.
    """
    check_output(settings.data, settings.output, NAME)
    base = check_parts(settings.checkpoint, settings.base)
    opened = require_rgb(open_model(settings.checkpoint, device=settings.device, dtype=settings.dtype, base=base))
    answering = Answering(opened, settings.classes, settings.threshold, tiles_of(settings))
    return answer_all(settings, answering, NAME, recorded_command(NAME, settings, ["checkpoint", "data"]))


def check_output(data: str, output: Path, name: str) -> None:
    """Refuse a folder of answers that another command wrote, or that lies in the data.

    Args:
        data: Images, as of `PredictSettings`.
        output: Folder of the answers.
        name: Name of the command.

    Raises:
        ValueError: If the folder does not fit.
    """
    check_run_folder(output, name)
    folder = Path(data).expanduser()
    if folder.is_dir() and output.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"`output` must lie outside `data`, where it would be read as data, got {str(output)!r}.")


def answer_all(
    settings: PredictSettings,
    answering: AnsweringModel,
    name: str,
    command: str,
    *,
    coco: str = COCO,
    has_paths: bool = False,
) -> Predicted:
    """Answer for all images that are missing, and write all files; parts that are there are not made again.

    Args:
        settings: Images, and how they are read.
        answering: The model.
        name: Name of the command.
        command: The command as it was typed, for the page.
        coco: Name of the file of objects.
        has_paths: Whether images are named by their paths in the folder, which several splits do not share.

    Raises:
        ValueError: If images or settings do not fit, or the folder holds answers of others.
        WriteError: If something cannot be written.
    """
    transformers_logging.disable_progress_bar()
    output = settings.output
    chosen = {name: getattr(settings, name) for name in ImageSourceOptions.model_fields}
    images = SourceSettings(data=settings.data, keep=[], **chosen)
    splits = {"train": StreamedSplit(images)} if settings.streaming else open_source(images)
    if has_paths:
        _check_files(splits, settings.data)
    facts = {
        "settings": {name: value for name, value in settings.to_dict().items() if name not in NOT_DECISIVE},
        **answering.identity(),
        "images": {name: split.state() for name, split in splits.items()},
    }
    with sole_run(output, name):
        _check_same(output, facts)
        for folder in (output, *(path for path in output.rglob("*") if path.is_dir() and not path.is_symlink())):
            remove_partial(folder)
        shards = [(split, shard) for split in splits.values() for shard in split.shards(IMAGES_OF_PART)]
        paths = [output / PARTS / f"{number:06d}.jsonl" for number in range(len(shards))]
        with ProgressBar(total=len(shards), unit="part", desc=name.removeprefix("radio ")) as bar:
            for (split, shard), path in zip(shards, paths, strict=True):
                if not path.is_file():
                    path.parent.mkdir(exist_ok=True)
                    # Names are unique in a split; those of a column of a stream in one of its files.
                    of_split = f"{split.name}/" if len(splits) > 1 and not has_paths else ""
                    of_file = f"{path.stem}/" if settings.streaming and settings.id_column is not None else ""
                    part = _PredictedPart(answering, split, shard, settings.batch_size, output, of_split, of_file)
                    lines = [json.dumps(row, ensure_ascii=False) for row in part.rows()]
                    write_text(path, "".join(f"{line}\n" for line in lines))
                bar.update()
        return _finish(settings, answering, paths, splits, command, coco)


def _check_files(splits: Mapping[str, Any], data: str) -> None:
    """Refuse images that lie in tables, so that no path names them."""
    names = [split.ids(0, 1)[0] for split in splits.values() if len(split)]
    if not all((Path(data).expanduser() / name).is_file() for name in names):
        raise ValueError(
            f"`data` must be a folder of image files, which the labels name, got {data!r} with images in tables or "
            "archives: write them as files first."
        )


def _check_same(output: Path, facts: dict[str, Any]) -> None:
    path, plain = output / SETTINGS, json.loads(json.dumps(facts, default=str))
    if path.is_file() and any((output / PARTS).glob("*.jsonl")):
        before = read_json(path)
        changed = [name for name in plain if before.get(name) != plain[name]]
        if changed:
            raise ValueError(
                f"`output` {str(output)!r} holds answers with other {' and '.join(changed)}: name another folder, or "
                "remove that one."
            )
    write_text(path, json.dumps(plain, indent=2) + "\n")


@dataclass(frozen=True)
class _PredictedPart:
    """The images of one part.

    Attributes:
        answering: The model.
        split: Images that have these.
        shard: The part of them.
        batch_size: Images of a pass.
        output: Folder of the answers.
        of_split: Beginning of the names of its images where there are several splits.
        of_file: Folder of its maps where names may be in several files.
    """

    answering: AnsweringModel
    split: SourceSplit | StreamedSplit
    shard: Shard
    batch_size: int
    output: Path
    of_split: str
    of_file: str

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield plain data for each image, after its map is written."""
        for batch in self.split.read(self.shard, self.batch_size):
            yield from self._rows_of(batch)

    def _rows_of(self, batch: ImageBatch) -> Iterator[dict[str, Any]]:
        read = [read_image(self.split, image) for image in batch.images]
        images = [image for image in read if isinstance(image, Image.Image)]
        small = images if self.answering.tiles is not None else [reduced(image) for image in images]
        answers = zip(self.answering(small) if small else [], small, strict=True)
        for name, image in zip(batch.ids, read, strict=True):
            name = f"{self.of_split}{name}"
            if not isinstance(image, Image.Image):
                yield {"image": name, "error": image}
                continue
            answer, answered = next(answers)
            answer = at_size(answer, answered.size, image.size)
            size = {"width": image.width, "height": image.height}
            yield {"image": name, **size, **answer.values, **self._stored(name, answer)}

    def _stored(self, name: str, answer: Answer) -> dict[str, str]:
        if answer.image is None:
            return {}
        file = f"{FOLDER_OF_KIND[self.answering.kind]}/{self.of_file}{safe_name(name)}.png"
        (self.output / file).parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(answer.image)
        write_file(self.output / file, lambda path: picture.save(path, "png"))
        return {"file": file}


def read_image(split: SourceSplit | StreamedSplit, image: Any) -> Image.Image | str:
    """Return an image, or the reason why it cannot be read."""
    try:
        pixels = split.images[image]
    except ValueError as error:
        return str(error)
    return "it cannot be decoded" if pixels is None else to_pil_image(pixels)


def safe_name(name: str) -> str:
    """Return the name of an image as a path inside a folder; one that leads elsewhere or is no file's is its hash."""
    parts = name.split("/")
    is_path = name.isprintable() and not set(name) & set('\\:*?"<>|')
    is_inside = all(part not in ("", ".", "..") and len(part.encode()) <= LONGEST_NAME for part in parts)
    return name if is_path and is_inside else hash_of({"name": name})[:32]


def _lines(paths: list[Path]) -> Iterator[dict[str, Any]]:
    for path in paths:
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def _finish(
    settings: PredictSettings,
    answering: AnsweringModel,
    paths: list[Path],
    splits: dict[str, Any],
    command: str,
    coco: str,
) -> Predicted:
    """Write the files that hold all parts, and the page."""
    output, kind, files = settings.output, answering.kind, [LINES, TABLE]
    counts: Counter[str] = Counter()
    skipped = []
    for row in _lines(paths):
        counts["skipped" if "error" in row else "images"] += 1
        if "error" in row:
            skipped.append(f"{row['image']}: {row['error']}")
    write_file(output / LINES, lambda path: _join(paths, path))
    write_file(output / TABLE, lambda path: _write_table(kind, answering, paths, path))
    if kind == OBJECTS:
        write_file(output / coco, lambda path: _write_coco(answering, paths, path))
        files.append(coco)
    files += [f"{FOLDER_OF_KIND[kind]}/"] if kind in FOLDER_OF_KIND else []
    _write_page(settings, answering, splits, command, files)
    return Predicted(output, counts["images"], skipped, [*files, PAGE])


def _join(paths: list[Path], target: Path) -> None:
    with target.open("wb") as file:
        for path in paths:
            file.write(path.read_bytes())


def _write_table(kind: str, answering: AnsweringModel, paths: list[Path], target: Path) -> None:
    """Write a row for each image of classes and depth, and for each object or segment."""
    names = list(answering.class_names.values()) if kind == CLASSES else []
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*_HEADERS[kind], *names])
        for row in _lines(paths):
            if "error" not in row:
                writer.writerows(_table_rows(kind, names, row))


def _table_rows(kind: str, names: list[str], row: dict[str, Any]) -> Iterator[list[Any]]:
    if kind == CLASSES:
        scores = {each["label"]: each["score"] for each in row[CLASSES]}
        best = row[CLASSES][0] if row[CLASSES] else {"label": "", "score": ""}
        yield [row["image"], best["label"], best["score"], *(scores.get(name, "") for name in names)]
    elif kind == DEPTH:
        yield [row["image"], row[DEPTH]["min"], row[DEPTH]["max"], row["file"], row[DEPTH]["steps"]]
    elif kind == SEGMENTS:
        yield from ([row["image"], each["label"], each["share"], row["file"]] for each in row[SEGMENTS])
    else:
        yield from ([row["image"], each["label"], each["score"], *each["box"]] for each in row[OBJECTS])


def _write_coco(answering: AnsweringModel, paths: list[Path], target: Path) -> None:
    """Write images, categories, and the objects as annotations with a score; in pieces, for any number of images."""
    numbers = {name: number for number, name in answering.class_names.items()}
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    with target.open("w", encoding="utf-8") as file:
        file.write('{"categories": ' + json.dumps(categories, ensure_ascii=False) + ', "images": [')
        for count, row in enumerate(row for row in _lines(paths) if "error" not in row):
            image = {"id": count + 1, "file_name": row["image"], "width": row["width"], "height": row["height"]}
            file.write((", " if count else "") + json.dumps(image, ensure_ascii=False))
        file.write('], "annotations": [')
        for count, (image_id, each) in enumerate(_objects(paths)):
            left, top, right, bottom = each["box"]
            box = {"bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top)}
            if "mask" in each:
                box |= {"segmentation": each["mask"], "area": int(mask_of(each["mask"]).sum())}
            about = {"id": count + 1, "image_id": image_id, "category_id": numbers[each["label"]], "iscrowd": 0}
            file.write((", " if count else "") + json.dumps({**about, **box, "score": each["score"]}))
        file.write("]}\n")


def _objects(paths: list[Path]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, row in enumerate(row for row in _lines(paths) if "error" not in row):
        for each in row[OBJECTS]:
            yield number + 1, each


def _write_page(
    settings: PredictSettings, answering: AnsweringModel, splits: dict[str, Any], command: str, files: Sequence[str]
) -> None:
    """Write a page with the answers for the first images that can be read."""
    first = itertools.islice(_readable(splits, settings.batch_size), IMAGES_OF_PAGE)
    images = [_captioned(answering, name, picture) for name, picture in first]
    title = f"Answers of {name_of_folder(settings.checkpoint)}"
    beside = f"{', '.join(files)} beside this page hold the answers for all."
    names = answering.class_names if answering.kind == OBJECTS else {}
    legend = [(name, hex_color(number)) for number, name in names.items()] if len(names) <= MOST_COLORS else []
    text = f"The first {counted(len(images), 'image')}. {beside} The command: {command}"
    write_page(settings.output / PAGE, title, text, [Section("Images", legend=legend, rows=[ImageRow("", images)])])


def _readable(splits: dict[str, Any], batch_size: int) -> Iterator[tuple[str, Image.Image]]:
    """Yield the images that can be read with their names, in order."""
    for split in splits.values():
        for batch in itertools.chain.from_iterable(
            split.read(shard, batch_size) for shard in split.shards(IMAGES_OF_PART)
        ):
            for name, image in zip(batch.ids, batch.images, strict=True):
                picture = read_image(split, image)
                if isinstance(picture, Image.Image):
                    yield name, picture


def _captioned(answering: AnsweringModel, name: str, picture: Image.Image) -> CaptionedImage:
    found = answering.drawn(picture)
    return CaptionedImage(found.drawn(), f"{name}: {found.description}", f"{name}: {found.description}")
