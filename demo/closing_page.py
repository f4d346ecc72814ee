"""The page at the end of the demo."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from modeling_radio.demo.before_after import FILE, PHONE_FILE
from modeling_radio.figures.page import Drawing, Section, source_section, write_page
from modeling_radio.figures.progress import LOSSES, OF_ADAPTORS, OF_BACKBONE
from modeling_radio.metrics.results import STUDENT, Results, build_tables
from modeling_radio.model_cards.build import FEATURES_FIGURE


PROGRESS_FIGURE = Path("pictures") / "progress.png"
FIGURE_CAPTION = (
    "Dense features as colors: three principal components of the foreground, from images shifted by quarters of a "
    "patch. An adaptor is good if its shapes are those of its teacher. It has its own range of colors; x2 means half "
    "as wide. Last rows: the same photographs mirrored, closer and at night; then the places that the backbone finds "
    "again in them by its most similar features. All other places are dark, also those that the second view lacks."
)
BEFORE_AFTER = (
    "The network with random weights and the same network after its training, on pictures that it never saw.",
    "The same place at night: for places of a photograph, the most similar place of the same photograph mirrored, "
    "closer and at night. The title counts all places of all photographs; a dotted red line is wrong.",
    "Masks: all places that are similar to the one in the ring, by the adaptor for DINOv2.",
    "Another style: the most similar emoji of another font. The title counts all emoji; the six that "
    "are drawn were chosen by hand, among those that an earlier student found.",
)
SCORES = (
    "knn accuracy: share of held-out objects that get the right class from their nearest neighbors among the training "
    "objects; “mean features” compares the mean of all patches instead of the summary.",
    "segmentation_probe: a linear layer reads a class from each frozen patch. mIoU is the mean overlap of predicted "
    "and true masks over the classes, 1 is perfect; pixel accuracy is the share of right pixels.",
    "adaptor_fidelity: how near the student's adaptor is to the teacher that it imitates, 1 is equal.",
)
"""Meaning of the columns."""
CURVES_TEXT = (
    "The left edge of each panel says which direction is better. Losses are of training images, all others of held-out "
    "images. In a short run not all of them improve: shift error often rises while the student comes closer to its "
    "teachers."
)
CURVES = [
    panel.explanation for panel in (LOSSES["features"], LOSSES["summary"], *OF_BACKBONE.values(), *OF_ADAPTORS.values())
]


def next_steps(checkpoint: Path) -> Mapping[str, str]:
    """Return commands for a checkpoint folder, by title."""
    return {
        "Open it": (
            "from transformers import AutoModel\n\n"
            f'model = AutoModel.from_pretrained("{checkpoint.as_posix()}", trust_remote_code=True)'
        ),
        "Evaluate it on your images (a folder for each class)": (
            f"radio evaluate {checkpoint.as_posix()} --data path/to/class-folders"
        ),
        "Use it with texts: zero-shot classification and segmentation": (
            f"radio add-words --checkpoint {checkpoint.as_posix()} --output {(checkpoint.parent / 'words').as_posix()}"
        ),
        "Fine-tune it with LoRA": (
            f"radio finetune {checkpoint.as_posix()} --task image-classification --data path/to/class-folders --lora"
        ),
        "Distill a student on your images": (
            "radio distill --recipe demo --output runs/mine data.source=path/to/images data.num_images=null"
        ),
        "Choose a license for its card before you publish it": (f"radio card {checkpoint.as_posix()} --license ID"),
        "Publish it": f"radio publish {checkpoint.as_posix()} ORG/NAME --private",
    }


def write_closing_page(path: Path, results: Results, *, title: str, checkpoint: Path, run: Path) -> None:
    """Write the page atomically.

    Args:
        path: The `.html` to write.
        results: The measurements.
        title: Title of the page.
        checkpoint: Folder of the student, as commands name it.
        run: Folder of its run, with the figures.

    Raises:
        WriteError: If writing fails, for example on a full disk.
    """
    minutes = sum(results.run.get("seconds", {}).values()) / 60
    took = f", {minutes:.0f} minutes" if minutes else ""
    where = f" on {results.run['machine']}" if "machine" in results.run else ""
    date = f", {results.run['date']}" if "date" in results.run else ""
    teachers = ", ".join(each.name for each in results.teachers)
    text = (
        f"The row “{STUDENT}” is the network that was just distilled; compare it with the other rows. "
        "Higher is better in every column; brackets are 95 % intervals."
    )
    before_after, curves = run / FILE, run / PROGRESS_FIGURE
    sections = []
    if before_after.is_file():
        narrow = (run / PHONE_FILE).read_bytes()
        drawing = Drawing(before_after.read_bytes(), BEFORE_AFTER[0], "webp", narrow)
        sections.append(Section("Before and after training", BEFORE_AFTER[0], drawing=drawing, items=BEFORE_AFTER[1:]))
    sections += [
        Section("What it scores", text, tables=build_tables(results.measurements), items=[*SCORES, *results.remarks]),
        Section("What it sees", drawing=Drawing((run / FEATURES_FIGURE).read_bytes(), FIGURE_CAPTION)),
    ]
    if curves.is_file():
        drawing = Drawing(curves.read_bytes(), "Losses and measurements over the steps")
        sections.append(Section("How it learned", CURVES_TEXT, drawing=drawing, items=CURVES))
    sections += [
        Section("What to do next", steps=next_steps(checkpoint)),
        *source_section([*results.teachers, *results.datasets]),
    ]
    write_page(path, title, f"{teachers} in one network{took}{where}{date}.", sections)
