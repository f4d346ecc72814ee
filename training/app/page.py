"""The page of the app: a photograph and what is asked of it on the left, a tab for each kind of answer on the right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from modeling_radio.auto_map_radio import task_of
from modeling_radio.resolution_radio import largest_side
from training.app.answers import Explorer
from training.app.errors import clear_errors
from training.app.opening import DTYPES, Opened, devices, open_model
from training.app.passes import AUTOMATIC, NO_WINDOWS, OWN_WINDOWS
from training.app.tabs import HIDDEN, Asked, add_alike, add_features, add_task, add_windows, add_words, plain


STYLE = """
.pictures {border: none !important; background: none !important; overflow: visible !important}
.pictures .grid-wrap {height: auto !important; min-height: 0 !important; max-height: none !important; padding: 0}
.pictures .grid-container {grid-template-columns: repeat(auto-fill, minmax(min(14rem, 45%), 1fr)) !important}
.pictures .thumbnail-lg {aspect-ratio: auto !important; height: auto !important; display: block; text-align: left}
.pictures .thumbnail-lg img {height: auto !important; display: block}
.pictures .caption-label {position: static !important; max-width: none !important; border: none !important}
"""
"""Pictures in their own shape with captions below, in as many columns as the screen has room for, two on a phone."""
CONTRAST = {
    "button_primary_background_fill": "*primary_700",
    "button_primary_background_fill_hover": "*primary_800",
    "button_primary_background_fill_dark": "*primary_700",
    "button_primary_background_fill_hover_dark": "*primary_800",
    "block_info_text_color": "*neutral_600",
    "block_info_text_color_dark": "*neutral_300",
}
"""Colors by which texts have at least 4.5 : 1 (https://www.w3.org/TR/WCAG22/#contrast-minimum); Gradio's have less."""
MAX_UPLOAD = "40mb"
"""Of a photograph; our choice, above what cameras write."""
KEPT_SECONDS = 3600
"""That photographs of visitors are kept at least, and between two looks for older ones; our choice."""
SMALLEST_PATCHES = 4
"""Of the shorter side that can be chosen; our choice: fewer show nothing."""


class App:
    """A model that is shown, and how it is opened again on another device or in another type.

    Args:
        checkpoint: Folder or Hub id.
        device: As of `open_model`.
        dtype: As of `open_model`.
        num_global: As of `open_model`.
        title: Of the page; None takes the end of the checkpoint's name.

    Raises:
        ValueError: As `open_model`.
        OSError: As `open_model`.
    """

    def __init__(
        self,
        checkpoint: str,
        device: str | None = None,
        dtype: str = "float32",
        num_global: int | None = None,
        title: str | None = None,
    ) -> None:
        self._checkpoint, self._num_global = checkpoint, num_global
        self.title = "/".join(Path(checkpoint).parts[-2:]) if title is None else title
        self.explorer = Explorer(open_model(checkpoint, device, dtype, num_global))

    @property
    def opened(self) -> Opened:
        """The model."""
        return self.explorer.opened

    @property
    def device(self) -> str:
        """Where the model is, as `devices` lists it: torch calls the only "mps" of a machine "mps:0"."""
        device = self.opened.model.device
        return device.type if device.type in devices() else str(device)

    def reopen(self, device: str, dtype: str) -> str:
        """Open the checkpoint again elsewhere, so that no weight is rounded twice; say what is shown now.

        The model before stays if that fails.

        Raises:
            ValueError: As `open_model`.
        """
        self.explorer = Explorer(open_model(self._checkpoint, device, dtype, self._num_global))
        return self.describe()

    def describe(self) -> str:
        """Say what the model is, in Markdown."""
        model, config = self.opened.model, self.opened.model.config
        millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        adaptors = plain(", ".join(self.opened.dense_adaptors)) or "none"
        return (
            f"`{type(model).__name__}`, {millions:.3g} million parameters, {config.num_hidden_layers} blocks, "
            f"patches of {config.patch_size} px; teachers' spaces: {adaptors}; on {self.device}, {self.opened.dtype}."
        )


def build_page(app: App, examples: Sequence[Path] = ()) -> gr.Blocks:
    """Return the page about a model; launch it with `launch_options`.

    Args:
        app: The model.
        examples: Photographs to begin with; the first one is there when the page opens.
    """
    pictures = [str(path.resolve()) for path in examples]
    with gr.Blocks(
        title=app.title, analytics_enabled=False, fill_width=True, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)
    ) as page:
        gr.Markdown(f"# {plain(app.title)}")
        description = gr.Markdown(app.describe())
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                asked = _add_questions(app, pictures, description)
            with gr.Column(scale=5, min_width=320), gr.Tabs(overflow_behavior="wrap") as tabs:
                if app.opened.has_head:
                    add_task(app, asked, task_of([type(app.opened.model).__name__]).replace("-", " ").capitalize())
                add_features(app, asked, page)
                add_alike(app, asked, tabs)
                if app.opened.zero_shot is not None:
                    add_words(app, asked)
                if app.opened.backbone.config.eradio is None and not app.opened.backbone.config.num_mergings:
                    add_windows(app, asked)
    return page.queue(default_concurrency_limit=1)


def _add_questions(app: App, pictures: Sequence[str], description: gr.Markdown) -> Asked:
    """Add what all tabs ask about: photograph, resolution, windows, and where the model runs."""
    config, processor = app.opened.model.config, app.opened.processor
    step, patches = config.resolution_step, SMALLEST_PATCHES
    own_size = [processor.size[key] for key in ("shortest_edge", "height", "width") if processor.size[key] is not None]
    usual = min(own_size, default=min(config.preferred_resolution))
    image = gr.Image(
        pictures[0] if pictures else None,
        type="filepath",
        image_mode=None,
        label="Photograph",
        sources=["upload", "clipboard", "webcam"],
        height=320,
        elem_id="photograph",
    )
    image.preprocess = _uploaded
    resolution = gr.Slider(
        step * min(patches, max(usual // step, 1)),
        largest_side(config) // step * step,
        value=max(round(usual / step), 1) * step,
        step=step,
        label="Resolution",
        info=f"Shorter side for the network, in pixels; the longer one has at most {largest_side(config)}",
    )
    if len(pictures) > 1:
        gr.Examples([[each] for each in pictures], [image], cache_examples=False, api_visibility="private")
    can_act = config.has_windowed_blocks
    with gr.Accordion("Windows, device and precision", open=False):
        windows = gr.Dropdown(
            [OWN_WINDOWS, NO_WINDOWS, AUTOMATIC, "8", "12", "16", "24", "32"],
            value=OWN_WINDOWS,
            label="ViTDet windows",
            info="Patches on a side" if can_act else "All blocks of this model attend globally: windows change nothing",
            allow_custom_value=True,
            interactive=can_act,
        )
        device = gr.Dropdown(devices(), value=app.device, label="Device")
        dtype = gr.Dropdown(list(DTYPES), value=app.opened.dtype, label="Precision")
        again = gr.Button("Open the model there")

    def reopen(device: str, dtype: str) -> str:
        with clear_errors():
            return app.reopen(device, dtype)

    again.click(reopen, [device, dtype], description, **HIDDEN)
    return Asked(image, resolution, windows)


def _uploaded(payload: Any) -> str | None:
    """Return the uploaded file unread: `read_photograph` says more clearly than Gradio what is wrong with one.

    A class of our own would make Gradio write a `.pyi` beside this file.

    Raises:
        gr.Error: If it is another file of this machine. Gradio 6.31 itself checks only what says to be a file (`meta`).
    """
    if payload is None:
        return None
    path = Path(payload.path).resolve()
    if not path.is_relative_to(Path(get_upload_folder()).resolve()):
        raise gr.Error("`image` must be a file that was uploaded, got another one.", print_exception=False)
    return str(path)


def launch_options() -> dict[str, Any]:
    """Return how the page is launched wherever it runs: with nothing fetched from, or told to, other machines."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    theme = gr.themes.Default(primary_hue="teal", **fonts).set(**CONTRAST)
    return {
        "theme": theme,
        "css": STYLE,
        "show_error": True,
        "run_history": False,
        "ssr_mode": False,
        "footer_links": ["api", "settings"],
        "max_file_size": MAX_UPLOAD,
    }
