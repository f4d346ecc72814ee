"""The page at the end of the demo: what the student sees, what it scores, how it learned, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from model_cards.results import STUDENT, Results, build_tables
from training.pictures.page import Drawing, Section, source_section, write_page


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
    minutes = sum(results.run.get("seconds", {}).values()) / 60
    took = f", {minutes:.0f} minutes" if minutes else ""
    where = f" on {results.run['machine']}" if "machine" in results.run else ""
    date = f", {results.run['date']}" if "date" in results.run else ""
    teachers = ", ".join(each.name for each in results.teachers)
    text = f"The row “{STUDENT}” is the network that was distilled just now; the others tell how much that is."
    sections = [
        Section("What it sees", drawing=features),
        Section("What it scores", text, tables=build_tables(results.measurements), items=results.remarks),
        *([] if curves is None else [Section("How it learned", drawing=curves)]),
        Section("What to do next", steps=next_steps(checkpoint)),
        *source_section([*results.teachers, *results.datasets]),
    ]
    write_page(path, title, f"{teachers} in one network{took}{where}{date}.", sections)
