"""HTML page of an evaluation: its numbers, curves over resolution, and images with features, neighbors and masks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import InterpolationMode, center_crop, resize

from modeling_radio.evaluation.data import Examples, Kind, Part
from modeling_radio.evaluation.tasks.base import Evaluation, summary_or_mean
from modeling_radio.evaluation.tasks.dense_prediction import masks_of
from modeling_radio.figures.features import background_of, fit_pca_basis, hex_color, overlaid, pca_colors, to_pixels
from modeling_radio.figures.page import (
    SHOWN_PX,
    CaptionedImage,
    Drawing,
    ImageRow,
    Section,
    source_section,
    write_page,
)
from modeling_radio.figures.progress import PIXELS, figure_over_counts, values_by_size
from modeling_radio.metrics.dense import IGNORE_INDEX
from modeling_radio.metrics.feature_model import FeatureModel
from modeling_radio.metrics.results import Measurement, Results, build_tables


SUMMARY_TASKS = frozenset({"knn", "logistic_regression", "image_retrieval"})
"""Tasks that extract the summaries of test images and gallery."""


def write_report(path: Path, results: Results, sections: Sequence[Section] = ()) -> None:
    """Write the page atomically.

    Args:
        path: The `.html` file.
        results: The measurements.
        sections: Sections of images.

    Raises:
        WriteError: If writing fails, for example on a full disk.
    """
    subtitle = " · ".join(str(results.run[key]) for key in ("date", "machine", "command") if key in results.run)
    tables = build_tables(results.measurements)
    text = (
        "In brackets the 95 % interval, if one was computed; a dash stands where nothing was measured or the number is "
        "not defined."
    )
    is_any = tables or results.remarks
    numbers = [Section("Measurements", text, tables=tables, items=results.remarks)] if is_any else []
    sources = source_section([*results.teachers, *results.datasets])
    write_page(path, "Evaluation", subtitle, [*numbers, *resolution_section(results.measurements), *sections, *sources])


def resolution_section(measurements: Sequence[Measurement]) -> list[Section]:
    """Return a section with the curves of the task `resolution_consistency`; none if it was not measured."""
    panels = values_by_size(measurements)
    if not panels:
        return []
    values = "; ".join(
        f"{title} of {model}: " + ", ".join(f"{size} px {sum(by[size]) / len(by[size]):.3f}" for size in sorted(by))
        for title, lines in panels.items()
        for model, by in lines.items()
    )
    text = (
        "Cosine of the dense features at each size with those at the largest, resampled to one grid. Centered: about "
        "the mean feature, because features that hardly depend on the image have a high plain cosine."
    )
    figure = figure_over_counts(panels, PIXELS)
    return [Section("Over resolution", text, drawing=Drawing.of(figure, f"Over the images' side. {values}."))]


def report_sections(evaluations: Sequence[Evaluation], tasks: Collection[str]) -> list[Section]:
    """Return sections of images: features as colors, and neighbors and masks if they were measured.

    Args:
        evaluations: One for each model, in the order of the columns; their tasks have been measured.
        tasks: Tasks that were measured.
    """
    first = evaluations[0]
    kind: Kind = "photographs" if "photographs" in first.data.kinds() else "images"
    images = first.examples(kind).images
    sections = [pca_section([each.model for each in evaluations], [images[index] for index in first.shown(kind)])]
    if SUMMARY_TASKS & set(tasks):
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


def square(image: Tensor) -> Tensor:
    """Return the middle square of an image, uint8 `(3, height, width)`."""
    return center_crop(image, [min(image.shape[-2:])] * 2)


@torch.no_grad()
def pca_section(models: Sequence[FeatureModel], images: Sequence[Tensor]) -> Section:
    """Show each model's dense features of images as three colors, beside the image.

    Args:
        models: Models in eval mode.
        images: uint8 `(3, height, width)`; the middle squares are shown.
    """
    squares = [square(image) for image in images]
    columns: dict[str, Tensor] = {}
    for model in models:
        pixels = torch.stack([model.preprocess(image, model.size_px) for image in squares]).to(model.device)
        features = model.encode(pixels).features.float().cpu()
        if features.shape[1] >= 3:
            columns[model.name] = pca_colors(features, fit_pca_basis(features))  # (images, rows, cols, 3)
    rows = []
    for number, image in enumerate(squares):
        maps = [
            CaptionedImage(
                to_pixels(colors[number]),
                f"Principal components of the features of {name} for image {number + 1}, as colors",
                name,
                is_grid=True,
            )
            for name, colors in columns.items()
        ]
        rows.append(ImageRow("", [CaptionedImage(_shown(image), f"Image {number + 1}", "image"), *maps]))
    return Section(
        "Dense features",
        "The three directions in which a model's features of these images vary most, as red, green and blue. Colors of "
        "different models cannot be compared; equal colors of one model mean similar features, also across images.",
        rows=rows,
    )


def neighbor_section(
    vectors: Mapping[str, tuple[Tensor, Tensor]], part: Part, queries: Sequence[int], *, num_neighbors: int = 5
) -> Section:
    """Show each model's nearest neighbors of images.

    Args:
        vectors: Summaries of the test images and of the gallery by model name.
        part: The images, with labels or without.
        queries: Indices of test images.
        num_neighbors: Number of neighbors; fewer if the gallery has fewer.
    """
    sources = torch.arange(len(part.test)) if part.test.groups is None else part.test.groups
    rows = []
    for query in queries:
        shown = CaptionedImage(
            _shown(square(part.test.images[query])), f"Query: {_label(part, part.test, query)}", "query"
        )
        for name, (tests, gallery) in vectors.items():
            similarity = F.normalize(gallery, dim=1) @ F.normalize(tests[query], dim=0)
            if part.train is None:
                similarity[sources == sources[query]] = -torch.inf  # neither itself nor its source
            found = similarity.topk(min(num_neighbors, int(similarity.isfinite().sum()))).indices.tolist()
            neighbors = [_neighbor(part, query, index, float(similarity[index])) for index in found]
            rows.append(ImageRow(f"{name}, {_label(part, part.test, query)}", [shown, *neighbors]))
    return Section(
        "Nearest neighbors",
        "Left an image, then the images whose summaries have the largest cosine with its own. A mark says whether the "
        "class is the same.",
        rows=rows,
    )


def _neighbor(part: Part, query: int, index: int, cosine: float) -> CaptionedImage:
    is_right = None
    if part.test.labels is not None and part.gallery.labels is not None:
        is_right = bool(part.test.labels[query] == part.gallery.labels[index])
    label = _label(part, part.gallery, index)
    return CaptionedImage(
        _shown(square(part.gallery.images[index])),
        f"Neighbor: {label}, cosine {cosine:.2f}",
        f"{label}, {cosine:.2f}",
        is_right=is_right,
    )


def overlay_section(
    images: Sequence[Tensor],
    masks: Sequence[Tensor],
    predictions: Mapping[str, Sequence[Tensor]],
    class_names: Sequence[str],
) -> Section:
    """Show masks over images: the true one, and the predictions of each model's probe.

    Args:
        images: uint8 `(3, height, width)`.
        masks: Class of each pixel, `(height, width)`; `IGNORE_INDEX` gets no color.
        predictions: Masks of the same sizes by model name.
        class_names: Names in the order of the class indices.
    """
    bare = {IGNORE_INDEX, *background_of(dict(enumerate(class_names)))}
    rows = []
    present: set[int] = set()
    for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
        predicted = {name: each[number] for name, each in predictions.items()}
        present.update(*(each.unique().tolist() for each in (mask, *predicted.values())))
        row_images = [
            CaptionedImage(_shown(image), f"Scene {number + 1}", "image"),
            CaptionedImage(_shown(overlaid(image, mask, bare)), f"True classes of scene {number + 1}", "true classes"),
        ]
        row_images += [
            CaptionedImage(_shown(overlaid(image, prediction, bare)), f"Scene {number + 1} by a probe of {name}", name)
            for name, prediction in predicted.items()
        ]
        rows.append(ImageRow("", row_images))
    legend = [(class_names[index], hex_color(index)) for index in sorted(present - bare) if index < len(class_names)]
    return Section(
        "Segmentation",
        "Predictions of a linear probe on each model's dense features. Without color: background, or not known.",
        legend=legend,
        rows=rows,
    )


def _label(part: Part, examples: Examples, index: int) -> str:
    if examples.labels is None:
        return f"image {index + 1}"
    return part.class_names[int(examples.labels[index])] if part.class_names else str(int(examples.labels[index]))


def _shown(image: Tensor) -> Tensor:
    """Return an image at the size of the page; small ones keep theirs."""
    if max(image.shape[-2:]) <= SHOWN_PX:
        return image
    height, width = (round(side * SHOWN_PX / max(image.shape[-2:])) for side in image.shape[-2:])
    return resize(image, [max(1, height), max(1, width)], InterpolationMode.BICUBIC, antialias=True)
