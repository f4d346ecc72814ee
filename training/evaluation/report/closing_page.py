"""The page at the end of the demo: what the student sees, what it scores, how it learned, and what to do next."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from foundation.files import write_text
from model_cards.results import STUDENT, Results, build_tables
from training.evaluation.report.page import render


@dataclass(frozen=True)
class Drawing:
    """A picture file that goes into the page.

    Attributes:
        path: A PNG.
        alt: What it shows, for those who cannot see it.
    """

    path: Path
    alt: str

    @property
    def uri(self) -> str:
        """The picture itself, as an address."""
        return f"data:image/png;base64,{base64.b64encode(self.path.read_bytes()).decode()}"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, pixels."""
        with Image.open(self.path) as picture:
            return picture.size


def next_steps(checkpoint: Path) -> Mapping[str, str]:
    """Return what can be done with a checkpoint folder: a title, and words to copy."""
    return {
        "Open it": (
            "from transformers import AutoModel\n\n"
            f'model = AutoModel.from_pretrained("{checkpoint.as_posix()}", trust_remote_code=True)'
        ),
        "Evaluate it on your images (a folder for each class)": (
            f"python -m training.evaluate {checkpoint.as_posix()} --data path/to/class-folders"
        ),
        "Give it words: zero-shot classes, and segmentation by their names": (
            f"python -m training.demo_kit.add_words --checkpoint {checkpoint.as_posix()} "
            f"--output {(checkpoint.parent / 'words').as_posix()}"
        ),
        "Fine-tune it with LoRA": (
            f"python -m training.finetune {checkpoint.as_posix()} --task image-classification "
            "--data path/to/class-folders --lora"
        ),
        "Distill a student on your images": (
            "python -m training.distill --recipe demo --output runs/mine data.source=path/to/images "
            "data.num_images=null"
        ),
        "Choose its license, which the card must name before others see it": (
            f"python -m model_cards.build {checkpoint.as_posix()} --license ID"
        ),
        "Publish it": f"python -m training.publish {checkpoint.as_posix()} ORG/NAME --private",
    }


def write_closing_page(
    path: Path, results: Results, *, title: str, checkpoint: Path, features: Drawing, curves: Drawing | None
) -> None:
    """Write the page; a reader never sees half of it.

    Args:
        path: The `.html` to write.
        results: What was measured.
        title: Of the page.
        checkpoint: Folder of the student, as commands name it.
        features: What the student sees.
        curves: How it learned; None where nothing was drawn.

    Raises:
        WriteError: If writing fails, for example on a full disk.
    """
    page = render(
        "closing_page.html.jinja",
        title=title,
        results=results,
        student=STUDENT,
        tables=build_tables(results.measurements),
        features=features,
        curves=curves,
        steps=next_steps(checkpoint),
        minutes=sum(results.run.get("seconds", {}).values()) / 60,
    )
    write_text(path, page)
