"""Files that `radio predict` writes from its stored answers: a table of their writers for each kind of answer."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling_radio.prediction.answers import CLASSES, DEPTH, OBJECTS, SEGMENTS, mask_of


LINES, TABLE, COCO = "predictions.jsonl", "predictions.csv", "predictions.coco.json"
FORMULA_BEGINS = ("=", "+", "-", "@", "\t", "\r")
"""First characters of formulas in spreadsheets, as OWASP lists them (CSV injection)."""
_HEADERS = {
    CLASSES: ("image", "label", "score"),
    OBJECTS: ("image", "label", "score", "xmin", "ymin", "xmax", "ymax"),
    SEGMENTS: ("image", "label", "share", "file"),
    DEPTH: ("image", "min", "max", "file", "steps"),
}


@dataclass(frozen=True)
class StoredAnswers:
    """The answers of a finished run.

    Attributes:
        kind: Their kind.
        class_names: Names of the classes by id.
        paths: Files of them, in order.
    """

    kind: str
    class_names: Mapping[int, str]
    paths: Sequence[Path]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield plain data for each image, for one without an answer its `error`."""
        for path in self.paths:
            with path.open(encoding="utf-8") as file:
                yield from map(json.loads, file)

    def answered(self) -> Iterator[dict[str, Any]]:
        """Yield the rows that have an answer."""
        return (row for row in self.rows() if "error" not in row)


def write_lines(answers: StoredAnswers, target: Path) -> None:
    """Write all rows as lines of JSON."""
    with target.open("wb") as file:
        for path in answers.paths:
            file.write(path.read_bytes())


def write_table(answers: StoredAnswers, target: Path) -> None:
    """Write a row for each image of classes and depth, and for each object or segment."""
    names = list(answers.class_names.values()) if answers.kind == CLASSES else []
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(map(_cell, [*_HEADERS[answers.kind], *names]))
        for row in answers.answered():
            writer.writerows(map(_cell, cells) for cells in _table_rows(answers.kind, names, row))


def _cell(value: Any) -> Any:
    """Return a cell that spreadsheets show as text, also where a stranger's name begins as a formula does."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_BEGINS) else value


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


def write_coco(answers: StoredAnswers, target: Path) -> None:
    """Write images, categories, and the objects as annotations with a score; in pieces, for any number of images."""
    numbers = {name: number for number, name in answers.class_names.items()}
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    with target.open("w", encoding="utf-8") as file:
        file.write('{"categories": ' + json.dumps(categories, ensure_ascii=False) + ', "images": [')
        for count, row in enumerate(answers.answered()):
            image = {"id": count + 1, "file_name": row["image"], "width": row["width"], "height": row["height"]}
            file.write((", " if count else "") + json.dumps(image, ensure_ascii=False))
        file.write('], "annotations": [')
        for count, (image_id, each) in enumerate(_objects(answers)):
            left, top, right, bottom = each["box"]
            box = {"bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top)}
            if "mask" in each:
                box |= {"segmentation": each["mask"], "area": int(mask_of(each["mask"]).sum())}
            about = {"id": count + 1, "image_id": image_id, "category_id": numbers[each["label"]], "iscrowd": 0}
            file.write((", " if count else "") + json.dumps({**about, **box, "score": each["score"]}))
        file.write("]}\n")


def _objects(answers: StoredAnswers) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, row in enumerate(answers.answered()):
        for each in row[OBJECTS]:
            yield number + 1, each


WRITERS: dict[str, dict[str, Callable[[StoredAnswers, Path], None]]] = {
    CLASSES: {LINES: write_lines, TABLE: write_table},
    OBJECTS: {LINES: write_lines, TABLE: write_table, COCO: write_coco},
    SEGMENTS: {LINES: write_lines, TABLE: write_table},
    DEPTH: {LINES: write_lines, TABLE: write_table},
}
"""Names of the files of each kind of answer, and the function that writes each to a path."""
