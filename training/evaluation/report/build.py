"""From the evaluations of a run to the sections of its page: what the models saw, beside the numbers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from training.evaluation.data.base import Kind
from training.evaluation.report.page import GENERATOR, Section
from training.evaluation.report.panels import neighbor_section, overlay_section, pca_section
from training.evaluation.tasks.base import Evaluation, summary_or_mean
from training.evaluation.tasks.dense.segmentation import masks_of


OF_SUMMARIES = frozenset({"knn", "logistic_regression", "image_retrieval"})
"""Tasks after which the summaries of test images and gallery are there."""


def report_sections(evaluations: Sequence[Evaluation], tasks: Collection[str]) -> list[Section]:
    """Return pictures of a run: features as colors, and of what was measured neighbors and masks.

    Args:
        evaluations: One for each model, in the order in which they are shown; after their tasks.
        tasks: What was measured.
    """
    first = evaluations[0]
    kind: Kind = "photographs" if "photographs" in first.data.kinds() else "images"
    images = first.examples(kind).images
    sections = [pca_section([each.model for each in evaluations], [images[index] for index in first.shown(kind)])]
    if OF_SUMMARIES & set(tasks):
        vectors = {
            each.model.name: (
                summary_or_mean(each.features("labels")),
                summary_or_mean(each.features("labels", "gallery")),
            )
            for each in evaluations
        }
        sections.append(neighbor_section(vectors, first.part("labels"), first.shown("labels")))
    if first.shown_masks:
        examples, scenes = first.examples("masks"), first.shown("masks")
        sections.append(
            overlay_section(
                [examples.images[index] for index in scenes],
                [masks_of(examples)[index] for index in scenes],
                {each.model.name: [each.shown_masks[index] for index in scenes] for each in evaluations},
                first.part("masks").class_names,
            )
        )
    return sections


def check_page(path: Path, name: str = "output") -> None:
    """Refuse to write a page in place of anything but a page, before anything is measured.

    Args:
        path: Where it shall be.
        name: Of the setting that says so.

    Raises:
        ValueError: If something else is there.
    """
    if path.exists() and (path.is_dir() or GENERATOR.encode() not in path.read_bytes()):
        raise ValueError(
            f"`{name}` must leave room for its page, got {str(path)!r}, which holds something else. Name another file."
        )
