"""The page of `radio predict` and `radio label`: stored answers, drawn on their images at the size of figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from modeling_radio.core.errors import first_few
from modeling_radio.core.tables import counted
from modeling_radio.figures.features import hex_color
from modeling_radio.figures.page import CaptionedImage, ImageRow, Section, write_page
from modeling_radio.figures.predictions import MAX_OBJECTS, LabeledRegion, Prediction, draw_depth, shown
from modeling_radio.prediction.answers import CLASSES, DEPTH, OBJECTS, SEGMENTS, Answer, at_size, mask_of
from modeling_radio.prediction.writers import StoredAnswers


MOST_COLORS = 100
"""Our choice: classes of objects whose colors the page explains, such as COCO's 80."""
MOST_LABELS = 5
"""Our choice: labels in the caption of an image."""


def write_answers(
    target: Path, title: str, about: str, answers: StoredAnswers, images: Iterator[tuple[dict[str, Any], Image.Image]]
) -> None:
    """Write the page.

    Args:
        target: Its file, beside the folder of the maps.
        title: Its title.
        about: Text above the images, after their number.
        answers: The answers.
        images: Rows of images that have an answer, with the images.
    """
    numbers = {name: number for number, name in answers.class_names.items()}
    drawings = []
    for row, picture in images:
        found = drawing_of(row, picture, answers.kind, numbers, target.parent)
        caption = f"{row['image']}: {found.description}"
        drawings.append(CaptionedImage(found.drawn(), caption, caption))
    named = numbers if answers.kind == OBJECTS and len(numbers) <= MOST_COLORS else {}
    legend = [(name, hex_color(number)) for name, number in named.items()]
    section = Section("Images", legend=legend, rows=[ImageRow("", drawings)])
    write_page(target, title, f"The first {counted(len(drawings), 'image')}. {about}", [section])


def drawing_of(
    row: Mapping[str, Any], picture: Image.Image, kind: str, numbers: Mapping[str, int], folder: Path
) -> Prediction:
    """Return a stored answer as a drawing.

    Args:
        row: The answer.
        picture: Its image, RGB.
        kind: Kind of the answer.
        numbers: Ids of the classes by name.
        folder: Folder of the answers, in which `file` of the row lies.
    """
    small = shown(pil_to_tensor(picture))
    if kind == CLASSES:
        labels = [f"{each['label']} {each['score']:.3g}" for each in row[CLASSES]]
        return Prediction(first_few(labels, MOST_LABELS) or "no class", small)
    stored = Answer({kind: row[kind]}, np.asarray(Image.open(folder / row["file"])) if "file" in row else None)
    if kind == OBJECTS:
        best = sorted(row[OBJECTS], key=lambda each: -each["score"])
        stored = Answer({OBJECTS: best[:MAX_OBJECTS]})
    height, width = small.shape[-2:]
    answer = at_size(stored, picture.size, (width, height))
    if kind == DEPTH:
        near, far = row[DEPTH]["min"], row[DEPTH]["max"]
        text = f"depth from {near:.3g} (dark) to {far:.3g}, in the unit of its labels"
        assert answer.image is not None  # its file has it
        return Prediction(text, small, depth=draw_depth(torch.from_numpy(answer.image.astype(np.float32))))
    if kind == SEGMENTS:
        names = [each["label"] for each in row[SEGMENTS]]
        regions = [LabeledRegion(answer.image == numbers[name], name, numbers[name]) for name in names]
        return Prediction(", ".join(f"{each['label']} {each['share']:.0%}" for each in row[SEGMENTS]), small, regions)
    regions, boxes = [], []
    for each in answer.values[OBJECTS]:
        label, number = f"{each['label']} {each['score']:.2f}", numbers[each["label"]]
        boxes.append(LabeledRegion(tuple(map(round, each["box"])), label, number))
        if "mask" in each:
            regions.append(LabeledRegion(mask_of(each["mask"]) > 0, label, number))
    labels = first_few([box.label for box in boxes], MOST_LABELS)
    more = f", of which {MAX_OBJECTS} are drawn" if len(row[OBJECTS]) > MAX_OBJECTS else ""
    text = f"{counted(len(row[OBJECTS]), 'object')}{more}: {labels}" if labels else "no objects"
    return Prediction(text, small, [*regions, *boxes])
