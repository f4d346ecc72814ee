"""The tabs of the page: what each asks beside the photograph, and where its answer goes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr

from modeling_radio import RadioForDepthEstimation, RadioForImageClassification
from modeling_radio.zero_shot_radio import DenseSource
from training.app.drawing import Picture, hex_color
from training.app.errors import clear_errors
from training.app.passes import AUTOMATIC
from training.app.photographs import read_photograph
from training.app.tasks import MAX_OBJECTS, OBJECTS, names_of, predict
from training.app.words import MAX_WORDS, find_words


if TYPE_CHECKING:
    from training.app.page import App

LABELS_SHOWN = 8
TUNED = "tuned"
PROGRESS = gr.Progress()
"""What Gradio puts a progress bar in the place of, where it is a default."""
QUEUE = "model"
"""All that needs the model is done one after the other: it may be opened anew, and memory is for one pass."""
HIDDEN: dict[str, Any] = {"api_visibility": "private", "concurrency_id": QUEUE}
"""Of events that do what a named one does."""


class Asked(NamedTuple):
    """What stands left of all tabs."""

    image: gr.Image
    resolution: gr.Slider
    windows: gr.Dropdown


def plain(text: str) -> str:
    """Return a text for Markdown in which names of a checkpoint are no picture, link, formula or HTML."""
    return re.sub(r"[\\`*\[<$]", r"\\\g<0>", text)


def _gallery(label: str) -> gr.Gallery:
    gr.Markdown(f"#### {label}")
    return gr.Gallery(
        label=label,
        show_label=False,
        columns=3,
        object_fit="contain",
        height="auto",
        format="png",
        interactive=False,
        buttons=["download", "fullscreen"],
        elem_classes="pictures",
    )


def _said(name: str) -> gr.Markdown:
    return gr.Markdown(elem_id=f"{name}-said")


def add_features(app: App, asked: Asked, page: gr.Blocks) -> None:
    """Add the spaces of backbone and teachers side by side, drawn at once for whatever is chosen."""
    with gr.Tab("Features", id="features"):
        gr.Markdown(
            "The three directions in which the features of this photograph vary most, as red, green and blue: of the "
            "backbone, and of what it predicts in the space of each teacher. Every space has colors of its own."
        )
        button = gr.Button("Show the features", variant="primary")
        pictures, said = _gallery("Principal components"), _said("features")

    def features(
        image: str | None, resolution: float, windows: str, progress: gr.Progress = PROGRESS
    ) -> tuple[list[Picture], str]:
        """Principal components of the features of a photograph, in every space."""
        with clear_errors():
            return app.explorer.features(image, int(resolution), windows, progress)

    def features_if_any(
        image: str | None, resolution: float, windows: str, progress: gr.Progress = PROGRESS
    ) -> tuple[list[Picture], str]:
        return ([], "") if image is None else features(image, resolution, windows, progress)

    inputs, outputs = list(asked), [pictures, said]
    button.click(features, inputs, outputs, api_name="features", concurrency_id=QUEUE)
    changes = [page.load, asked.image.change, asked.resolution.release, asked.windows.input]
    gr.on(changes, features_if_any, inputs, outputs, **HIDDEN, trigger_mode="always_last")


def add_alike(app: App, asked: Asked, tabs: gr.Tabs) -> None:
    """Add what is alike a place: clicked in the photograph, or said in percent."""
    with gr.Tab("Alike", id="alike"):
        gr.Markdown(
            "Click a place in the photograph, or give it here: how alike all others are to it, in the features of the "
            "backbone and in the space of each teacher (cosine about the mean)."
        )
        with gr.Row():
            across = gr.Slider(0, 100, value=50, step=0.5, label="Across", info="Percent of the width, from the left")
            down = gr.Slider(0, 100, value=50, step=0.5, label="Down", info="Percent of the height, from the top")
        button = gr.Button("Show what is alike", variant="primary")
        pictures, said = _gallery("Alike the place in the ring"), _said("alike")

    def alike(
        image: str | None,
        across: float,
        down: float,
        resolution: float,
        windows: str,
        progress: gr.Progress = PROGRESS,
    ) -> tuple[list[Picture], str]:
        """How alike all places of a photograph are to one, in every space."""
        with clear_errors():
            return app.explorer.alike(image, across, down, int(resolution), windows, progress)

    def clicked(image: str | None, event: gr.SelectData) -> tuple[float, float, gr.Tabs]:
        with clear_errors():
            height, width = read_photograph(image, app.opened.processor).shape[-2:]
        x, y = event.index
        return round(100 * x / width, 1), round(100 * y / height, 1), gr.Tabs(selected="alike")

    inputs, outputs = [asked.image, across, down, asked.resolution, asked.windows], [pictures, said]
    button.click(alike, inputs, outputs, api_name="alike", concurrency_id=QUEUE)
    place = asked.image.select(clicked, asked.image, [across, down, tabs], **HIDDEN)
    place.success(alike, inputs, outputs, **HIDDEN)
    gr.on([across.release, down.release], alike, inputs, outputs, **HIDDEN, trigger_mode="always_last")


def add_words(app: App, asked: Asked) -> None:
    """Add where words are, and which fit the whole photograph."""
    model = app.opened.zero_shot
    assert model is not None
    with gr.Tab("Words", id="words"):
        gr.Markdown(
            "Any words: each patch goes to the one that it is most alike, and so does the whole photograph. Names of "
            "things do best, in the language that the text tower knows."
        )
        words = gr.Textbox("otter, rock, water", label="Words", info=f"With commas between, at most {MAX_WORDS}")
        others = gr.Textbox("background", label="What else may be there", info="Competes for patches, is not drawn")
        source = gr.Dropdown(
            [("the head of the summary", "summary_head"), ("the teacher's dense features", "features")],
            value=model.usual_dense_source,
            label="Patches through",
        )
        button = gr.Button("Show the words", variant="primary")
        masks = gr.AnnotatedImage(label="Where they are", format="png")
        said = _said("words")
        scores = gr.Label(label="The whole photograph", num_top_classes=LABELS_SHOWN)
        pictures = _gallery("How alike patches are to each word, on one scale")

    def find(
        image: str | None,
        words: str,
        others: str,
        source: DenseSource,
        resolution: float,
        windows: str,
        progress: gr.Progress = PROGRESS,
    ) -> tuple[Any, str, dict[str, float], list[Picture]]:
        """Where words are in a photograph, and which fit it."""
        with clear_errors():
            found = find_words(app.opened, image, words, others, source, int(resolution), windows, progress)
        return found.masks, found.told, found.scores, found.heats

    inputs = [asked.image, words, others, source, asked.resolution, asked.windows]
    outputs = [masks, said, scores, pictures]
    button.click(find, inputs, outputs, api_name="words", concurrency_id=QUEUE)
    gr.on([words.submit, others.submit], find, inputs, outputs, **HIDDEN)


def add_windows(app: App, asked: Asked) -> None:
    """Add what windows cost and change."""
    with gr.Tab("Windows", id="windows"):
        gr.Markdown(
            "In ViTDet mode most blocks attend within windows of patches. Time of the backbone alone, and how like its "
            "features are to those without windows; all in the colors of these."
        )
        patches = min(asked.resolution.value // app.opened.backbone.config.patch_size, 32)
        usual = [str(side) for side in (16, 8, 4, 2) if side < patches][:2]
        compared = gr.Dropdown(
            [AUTOMATIC, *map(str, (4, 6, 8, 12, 16, 24, 32))],
            value=[AUTOMATIC, *usual],
            multiselect=True,
            allow_custom_value=True,
            label="Windows to compare",
            info="Patches on a side; without windows comes first",
        )
        button = gr.Button("Compare", variant="primary")
        headers = ["windows", "ms", "faster", "cosine"]
        table = gr.Dataframe(headers=headers, label="Time and likeness", interactive=False)
        said = _said("windows")
        pictures = _gallery("Principal components, in the colors of those without windows")

    def compare_windows(
        image: str | None, resolution: float, compared: list[str], progress: gr.Progress = PROGRESS
    ) -> tuple[list[list[str | float]], list[Picture], str]:
        """Time of the network with windows, and how like its features are to those without."""
        with clear_errors():
            return app.explorer.compare_windows(image, int(resolution), compared, progress)

    inputs = [asked.image, asked.resolution, compared]
    button.click(compare_windows, inputs, [table, pictures, said], api_name="windows", concurrency_id=QUEUE)


def add_task(app: App, asked: Asked, title: str) -> None:
    """Add the answer of a tuned model."""
    model = app.opened.model
    with gr.Tab(title, id="task"):
        gr.Markdown("What the tuned model says, at the size that it was tuned for.")
        threshold = gr.Slider(
            0, 1, value=0.5, step=0.01, label="Least score", info=f"At most {MAX_OBJECTS} objects are drawn"
        )
        is_tuned = gr.Checkbox(value=True, label="The score of each class that was fitted to validation images")
        threshold.visible = isinstance(model, OBJECTS)
        is_tuned.visible = threshold.visible and model.config.score_thresholds is not None
        button = gr.Button("Show the answer", variant="primary")
        said = _said("task")
        scores = gr.Label(label="Classes", num_top_classes=LABELS_SHOWN)
        depth = gr.Image(label="Depth", format="png", interactive=False)
        colors = {name: hex_color(index) for index, name in names_of(app.opened).items()}
        regions = gr.AnnotatedImage(label="Answer", format="png", color_map=colors)
        scores.visible = isinstance(model, RadioForImageClassification)
        depth.visible = isinstance(model, RadioForDepthEstimation)
        regions.visible = not scores.visible and not depth.visible

    def answer(
        image: str | None, threshold: float, is_tuned: bool, progress: gr.Progress = PROGRESS
    ) -> tuple[str, Any, Any, Any]:
        """What a tuned model says of a photograph."""
        config = app.opened.model.config
        with clear_errors():
            limit = TUNED if is_tuned and config.score_thresholds is not None else threshold
            found = predict(app.opened, image, limit, progress)
        return plain(found.told), found.scores, found.picture, found.regions

    inputs, outputs = [asked.image, threshold, is_tuned], [said, scores, depth, regions]
    button.click(answer, inputs, outputs, api_name="predict", concurrency_id=QUEUE)
