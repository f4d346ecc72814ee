"""The work of `radio predict`: parts of lines of JSON, then the files and the page that are made of them."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image
from transformers.utils import logging as transformers_logging

from modeling_radio.checks_radio import read_json
from modeling_radio.core.command_line import recorded_command
from modeling_radio.core.errors import first_few
from modeling_radio.core.files import (
    RUN_FILE,
    WriteError,
    check_run_folder,
    hash_file,
    remove_partial,
    sole_run,
    write_file,
    write_text,
)
from modeling_radio.core.ids import name_of_folder
from modeling_radio.core.opening import open_model, require_rgb
from modeling_radio.core.settings import hash_of
from modeling_radio.core.tables import counted
from modeling_radio.core.timing import ProgressBar
from modeling_radio.data.settings import ImageSourceOptions
from modeling_radio.evaluation.models.radio import tiles_of
from modeling_radio.extraction.settings import SourceSettings
from modeling_radio.extraction.shards import Shard
from modeling_radio.extraction.source import ImageBatch, SourceSplit, open_source
from modeling_radio.extraction.streamed import StreamedSplit
from modeling_radio.prediction.answers import DEPTH, SEGMENTS, Answer, Answering, at_size, reduced
from modeling_radio.prediction.page import write_answers
from modeling_radio.prediction.settings import PredictSettings
from modeling_radio.prediction.writers import LINES, WRITERS, StoredAnswers


logger = logging.getLogger(__name__)

NAME = "radio predict"
SETTINGS, PARTS, PAGE = "settings.json", "parts", "index.html"
FOLDER_OF_KIND = {SEGMENTS: "masks", DEPTH: "depth"}
"""Folders of the PNG files."""
IMAGES_OF_PART = 500
"""Our choice: what an interruption loses at most is a minute of a large model on a GPU."""
IMAGES_OF_PAGE = 48
"""Our choice: what one looks through."""
LONGEST_NAME = 200
"""Bytes of a file's name, below the 255 of most file systems with our suffixes."""
NOT_DECISIVE = ("checkpoint", "data", "output", "base", "batch_size", "device")
"""Settings that decide no answer; the model and the images are compared by their contents."""


@dataclass(frozen=True)
class Predicted:
    """Result of `radio predict`.

    Attributes:
        output: Folder of the answers.
        num_images: Images with an answer.
        skipped: Names of the images without an answer: those that cannot be read, or whose outputs are not finite.
        files: Names of the files for readers.
    """

    output: Path
    num_images: int
    skipped: list[str]
    files: list[str]

    def answers(self) -> Iterator[dict[str, Any]]:
        """Yield the answers, a dictionary for each image, those without one with their `error`."""
        with (self.output / LINES).open(encoding="utf-8") as file:
            yield from map(json.loads, file)

    def __str__(self) -> str:
        left_out = f", {len(self.skipped)} without an answer ({first_few(self.skipped, 3)})" if self.skipped else ""
        return f"{counted(self.num_images, 'image')}{left_out}. Wrote {', '.join(self.files)} in {self.output}."


class AnsweringModel(Protocol):
    """A model that answers for images."""

    kind: str
    tiles: Any

    @property
    def class_names(self) -> Mapping[int, str]: ...

    def __call__(self, images: Sequence[Image.Image]) -> list[Answer]: ...

    def identity(self) -> dict[str, str]: ...


def predict_all(settings: PredictSettings) -> Predicted:
    """Answer for all images by a tuned model.

    Raises:
        ValueError: If model, images or settings do not fit, or the folder holds answers of others.
        WriteError: If something cannot be written.
    """
    check_output(settings.data, settings.output, NAME)
    opened = require_rgb(
        open_model(settings.checkpoint, device=settings.device, dtype=settings.dtype, base=settings.base)
    )
    answering = Answering(opened, settings.classes, settings.threshold, tiles_of(settings))
    return answer_all(settings, answering, NAME, recorded_command(NAME, settings, ["checkpoint", "data"]))


def check_output(data: str, output: Path, name: str) -> None:
    """Refuse a folder of answers that another command wrote, or that lies in the data.

    Args:
        data: Images (see `PredictSettings`).
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
    names: Mapping[str, str] | None = None,
    has_paths: bool = False,
) -> Predicted:
    """Answer for all images that are missing, and write all files; parts that are there are not made again.

    Args:
        settings: Images, and how they are read.
        answering: The model.
        name: Name of the command.
        command: The command as it was typed, for the page.
        names: Names of the files by their entries in `WRITERS`; None for all entries with their own names.
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
        paths = []
        with ProgressBar(total=len(shards), unit="part", desc=name.removeprefix("radio ")) as bar:
            for number, (split, shard) in enumerate(shards):
                path = _whole_part(output, number)
                if path is None:
                    # Names are unique in a split; those of a column of a stream in one of its files.
                    of_split = f"{split.name}/" if len(splits) > 1 and not has_paths else ""
                    of_file = f"{number:06d}/" if settings.streaming and settings.id_column is not None else ""
                    part = _PredictedPart(answering, split, shard, settings.batch_size, output, of_split, of_file)
                    text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in part.rows())
                    _check_there(output)
                    path = output / PARTS / f"{number:06d}-{_sum_of(text, output)}.jsonl"
                    write_text(path, text)
                paths.append(path)
                bar.update()
        _check_there(output)
        answers = StoredAnswers(answering.kind, answering.class_names, paths)
        return _finish(settings, answers, shards, command, names or {each: each for each in WRITERS[answering.kind]})


def _sum_of(text: str, output: Path) -> str:
    """Return a hash of the lines of a part, and of the maps that they name."""
    files = [row["file"] for row in map(json.loads, text.splitlines()) if "file" in row]
    sums = [hash_file(output / file) if (output / file).is_file() else None for file in files]
    return hash_of({"lines": text, "maps": sums})[:16]


def _whole_part(output: Path, number: int) -> Path | None:
    """Return a stored part if it and its maps are as they were written; others are removed, and the log names them."""
    for path in (output / PARTS).glob(f"{number:06d}-*.jsonl"):
        with suppress(ValueError):  # of text or JSON
            if path.stem.endswith(f"-{_sum_of(path.read_text(encoding='utf-8'), output)}"):
                return path
        logger.warning("%s, or a map that it names, was changed or removed; its images are answered again", path)
        path.unlink()
    return None


def _check_there(output: Path) -> None:
    """Refuse to go on in a folder that was removed meanwhile: what is written now would be a part of it."""
    if not (output / RUN_FILE).is_file():
        raise WriteError(f"Cannot write {str(output)!r}: it was removed while the command ran. Start it again.")


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
    if any((output / PARTS).glob("*.jsonl")):
        if not path.is_file():
            raise ValueError(
                f"`output` {str(output)!r} holds answers without {SETTINGS}, which says of what model and images they "
                "are: name another folder, or remove that one."
            )
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
        answers = zip(self._answers(small), small, strict=True)
        for name, image in zip(batch.ids, read, strict=True):
            name = f"{self.of_split}{name}"
            if not isinstance(image, Image.Image):
                yield {"image": name, "error": image}
                continue
            answer, answered = next(answers)
            if "error" in answer.values:
                yield {"image": name, **answer.values}
                continue
            answer = at_size(answer, answered.size, image.size)
            size = {"width": image.width, "height": image.height}
            yield {"image": name, **size, **answer.values, **self._stored(name, answer)}

    def _answers(self, images: list[Image.Image]) -> list[Answer]:
        """Return the answers, an error for an image that the model refuses."""
        try:
            return self.answering(images) if images else []
        except ValueError as error:
            if len(images) == 1:
                return [Answer({"error": str(error)})]
        return [self._answers([image])[0] for image in images]

    def _stored(self, name: str, answer: Answer) -> dict[str, str]:
        if answer.image is None:
            return {}
        _check_there(self.output)
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


def _finish(
    settings: PredictSettings,
    answers: StoredAnswers,
    parts: Sequence[tuple[SourceSplit | StreamedSplit, Shard]],
    command: str,
    names: Mapping[str, str],
) -> Predicted:
    """Write the files that hold all parts, and the page."""
    output, kind, files = settings.output, answers.kind, []
    num_images, skipped = 0, []
    for row in answers.rows():
        num_images += "error" not in row
        if "error" in row:
            skipped.append(f"{row['image']}: {row['error']}")
    for entry, file in names.items():
        write_file(output / file, partial(WRITERS[kind][entry], answers))
        files.append(file)
    files += [f"{FOLDER_OF_KIND[kind]}/"] if kind in FOLDER_OF_KIND else []
    about = f"{', '.join(files)} beside this page hold the answers for all. The command: {command}"
    images = itertools.islice(_pictures(answers, parts, settings.batch_size), IMAGES_OF_PAGE)
    write_answers(output / PAGE, f"Answers of {name_of_folder(settings.checkpoint)}", about, answers, images)
    return Predicted(output, num_images, skipped, [*files, PAGE])


def _pictures(
    answers: StoredAnswers, parts: Sequence[tuple[SourceSplit | StreamedSplit, Shard]], batch_size: int
) -> Iterator[tuple[dict[str, Any], Image.Image]]:
    """Yield the rows that have an answer with their images, in order; there is a row for each image of the parts."""
    images = (
        (split, image) for split, shard in parts for batch in split.read(shard, batch_size) for image in batch.images
    )
    for row, (split, image) in zip(answers.rows(), images, strict=True):
        picture = None if "error" in row else read_image(split, image)
        if isinstance(picture, Image.Image):
            yield row, picture
