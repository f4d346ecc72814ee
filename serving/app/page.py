"""The page of the app: a photograph and its settings on the left, a tab for each kind of result on the right."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, get_args

import gradio as gr
import torch
from gradio.utils import get_upload_folder
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import InterpolationMode, resize, to_pil_image

from modeling_radio import RadioForDepthEstimation, RadioForImageClassification
from modeling_radio.checks_radio import check_choice, check_multiple
from modeling_radio.core.machine import devices
from modeling_radio.core.opening import DTYPES, OBJECTS, Opened, open_model, require_rgb
from modeling_radio.figures.features import (
    PcaBasis,
    finer_maps,
    fit_pca_basis,
    hex_color,
    marked,
    pca_colors,
    similarity_colors,
    similarity_maps,
    to_colors,
    to_pixels,
)
from modeling_radio.figures.predictions import (
    MAX_OBJECTS,
    LabeledRegion,
    check_outputs,
    describe_shares,
    predict,
    read_photograph,
    shown,
)
from modeling_radio.inputs_radio import WindowSize, check_window_size
from modeling_radio.tasks_radio import pipeline_of
from modeling_radio.zero_shot_radio import DenseSource


BACKBONE = "backbone"
OWN_WINDOWS, NO_WINDOWS, AUTOMATIC = "the checkpoint's", "off", "auto"
"""Windows that are no number of patches, as the app names them."""
EXACT_WIDTH = 768
"""Dimensions up to which principal components are exact; our choice: it takes a fraction of a second."""
KEPT_PASSES = 2
"""Our choice: the current photograph and the one before; features of a ViT-H at 2048 px are 300 MB."""
TIMED_RUNS = 3
"""Timed runs of each window after a warmup, of which the median is shown. Our choice."""
MAX_WORDS = 40
"""Our choice: more colors are hard to distinguish, and each word is nine prompts for the text tower."""
LABELS_SHOWN = 8
SMALLEST_PATCHES = 4
"""Least patches on the shorter side; our choice: fewer show nothing."""
FINE_GRID = 32
"""Patches on the shorter side from which things are recognized; our choice. A coarser map is made finer by shifts."""
MOST_SHIFTS = 4
"""Most positions of the patches in each direction; our choice, 16 passes of a small image."""
STYLE = """
.pictures {border: none !important; background: none !important; overflow: visible !important}
.pictures .grid-wrap {height: auto !important; min-height: 0 !important; max-height: none !important; padding: 0}
.pictures .grid-container {grid-template-columns: repeat(auto-fill, minmax(min(14rem, 45%), 1fr)) !important}
.pictures .thumbnail-lg {aspect-ratio: auto !important; height: auto !important; display: block; text-align: left}
.pictures .thumbnail-lg img {height: auto !important; display: block}
.pictures .caption-label {position: static !important; max-width: none !important; border: none !important;
  white-space: normal !important; overflow: visible !important; text-overflow: clip !important}
"""
"""Images in their own shape with captions below, in as many columns as fit the screen, two on a phone."""
CONTRAST = {
    "button_primary_background_fill": "*primary_700",
    "button_primary_background_fill_hover": "*primary_800",
    "button_primary_background_fill_dark": "*primary_700",
    "button_primary_background_fill_hover_dark": "*primary_800",
    "block_info_text_color": "*neutral_600",
    "block_info_text_color_dark": "*neutral_300",
}
"""Colors with a contrast of at least 4.5 : 1 (https://www.w3.org/TR/WCAG22/#contrast-minimum); Gradio's have less."""
MAX_UPLOAD = "40mb"
"""Largest photograph; our choice, above what cameras write."""
MAX_QUEUED = 64
"""Requests that may wait; our choice, others are refused."""
KEPT_SECONDS = 3600
"""Least time that photographs of visitors are kept, and the time between two cleanups; our choice."""
QUEUE: dict[str, Any] = {"concurrency_id": "model"}
"""Events that need the model run one after the other: it may be reopened, and there is memory for one pass."""
HIDDEN: dict[str, Any] = {"api_visibility": "private", **QUEUE}
"""Options of events that repeat one with a name in the API."""
GalleryItem = tuple[Image.Image, str]
"""An image and its caption."""


@contextmanager
def clear_errors() -> Iterator[None]:
    """Show refused input and a lack of memory as messages on the page; also decorates functions.

    Raises:
        gr.Error: In place of `ValueError`, `OSError` and `torch.OutOfMemoryError`.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        raise gr.Error(" ".join(str(error).split()), print_exception=False) from error
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise gr.Error(
            "The device has too little memory for this. Choose a smaller resolution, windows, or half the precision.",
            print_exception=False,
        ) from error


def plain(text: str) -> str:
    """Return a text escaped for Markdown: names of a checkpoint become no image, link, formula or HTML."""
    return re.sub(r"[\\`*\[<$]", r"\\\g<0>", text)


def read_window(text: str) -> WindowSize:
    """Return the models' `window_size` for a window as the app names it.

    Raises:
        ValueError: If it is no window.
    """
    named: dict[str, WindowSize] = {OWN_WINDOWS: None, NO_WINDOWS: "global", AUTOMATIC: "auto"}
    text = str(text).strip()
    if text in named:
        return named[text]
    if not text.isdecimal():
        raise ValueError(f"`windows` must be a number of patches or one of {list(named)}, got {text!r}.")
    check_window_size(int(text))
    return int(text)


def read_words(text: str) -> list[str]:
    """Return the distinct words of a list with commas."""
    return list(dict.fromkeys(filter(None, (" ".join(word.split()) for word in text.replace("\n", ",").split(",")))))


def fit_basis(features: Tensor) -> PcaBasis:
    """Return the three principal directions of features `(1, dim, rows, cols)`.

    Raises:
        ValueError: If there are fewer than three dimensions.
    """
    if features.shape[1] < 3:
        raise ValueError(f"`features` must have at least 3 dimensions to be drawn, got {features.shape[1]}.")
    return fit_pca_basis(features, approximate=features.shape[1] > EXACT_WIDTH)


@dataclass(frozen=True)
class Pass:
    """Output of a model for one photograph.

    Attributes:
        photograph: At the size of figures, uint8 RGB `(3, height, width)`.
        maps: Dense features of "backbone" and of each teacher's adaptor, `(1, dim, rows, cols)`, float32 on the CPU.
        patches: Rows and columns of patches, of which the maps may have several positions each.
        note: Sizes, time and device.
    """

    photograph: Tensor
    maps: dict[str, Tensor]
    patches: tuple[int, int]
    note: str


class App:
    """A model that turns files of photographs into images and texts.

    It can be reopened on another device or in another type.

    Args:
        checkpoint: Folder or Hub id.
        device: See `open_model`.
        dtype: See `open_model`.
        num_global: See `open_model`.
        title: Title of the page; None takes the end of the checkpoint's name.
        base: See `open_model`.

    Raises:
        ValueError: As `open_model`; its methods raise it for input that the message names.
        OSError: As `open_model`.
    """

    def __init__(
        self,
        checkpoint: str,
        device: str | None = None,
        dtype: str = "float32",
        num_global: int | None = None,
        title: str | None = None,
        base: str | None = None,
    ) -> None:
        self._checkpoint, self._num_global, self._base = checkpoint, num_global, base
        self.title = "/".join(Path(checkpoint).parts[-2:]) if title is None else title
        self.reopen(device, dtype)

    def reopen(self, device: str | None, dtype: str) -> str:
        """Open the checkpoint again on a device and in a type, so that no weight is rounded twice; describe the model.

        If that fails, the model before stays.

        Raises:
            ValueError: As `open_model`.
        """
        self.opened: Opened = require_rgb(
            open_model(self._checkpoint, device=device, dtype=dtype, base=self._base, num_global=self._num_global)
        )
        # The path of an uploaded file has its content's hash.
        self.encode_photograph = lru_cache(KEPT_PASSES)(self._encode_photograph)
        return self.describe()

    @property
    def device(self) -> str:
        """The model's device, as `devices` lists it: torch calls the only "mps" of a machine "mps:0"."""
        device = self.opened.model.device
        return device.type if device.type in devices() else str(device)

    def describe(self) -> str:
        """Return a description of the model in Markdown."""
        model, config = self.opened.model, self.opened.model.config
        millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        adaptors = plain(", ".join(self.opened.dense_adaptors)) or "none"
        return (
            f"`{type(model).__name__}`, {millions:.3g} million parameters, {config.num_hidden_layers} blocks, "
            f"patches of {config.patch_size} px; teachers' spaces: {adaptors}; on {self.device}, {self.opened.dtype}."
        )

    def photograph(self, image: str | None) -> Tensor:
        """Return a file of a photograph, uint8 RGB `(3, height, width)`."""
        return read_photograph(image)

    def pixels(self, photograph: Tensor, resolution: float) -> Tensor:
        """Return the network's input for a photograph, `(1, 3, height, width)` on its device and in its type.

        Args:
            photograph: uint8 `(3, height, width)`.
            resolution: Shorter side in pixels; it becomes smaller where the longer side would exceed the model's limit.
        """
        config, side = self.opened.model.config, int(resolution)
        longest = config.largest_side
        check_multiple("`resolution`", side, side, config.resolution_step, longest)
        size = {"shortest_edge": side, "longest_edge": longest}
        pixels = self.opened.processor(photograph, size=size, do_pad=False, return_tensors="pt")["pixel_values"]
        return pixels.to(self.opened.model.device, self.opened.model.dtype)

    @torch.inference_mode()
    def encode(
        self, pixels: Tensor, window: WindowSize, adaptors: Sequence[str] = ()
    ) -> tuple[dict[str, Tensor], float]:
        """Return dense maps of the backbone and of adaptors (see `Pass`), and milliseconds of the pass."""
        start = _now(pixels.device)
        output = self.opened.backbone(
            pixels, window_size=window, adaptor_names=list(adaptors), feature_format="NCHW", return_dict=True
        )
        milliseconds = 1000 * (_now(pixels.device) - start)
        maps = {BACKBONE: output.features, **{name: output.adaptors[name].features for name in adaptors}}
        check_outputs(maps)
        return {name: each.float().cpu() for name, each in maps.items()}, milliseconds

    def _encode_photograph(self, image: str | None, resolution: float, windows: str) -> Pass:
        photograph = self.photograph(image)
        pixels = self.pixels(photograph, resolution)
        window, adaptors = read_window(windows), self.opened.dense_adaptors
        maps, milliseconds = self.encode(pixels, window, adaptors)
        (height, width), (rows, cols) = pixels.shape[-2:], maps[BACKBONE].shape[-2:]
        if len({each.shape[-2:] for each in maps.values()}) == 1:  # else a teacher's map is finer by itself
            shifts = min(MOST_SHIFTS, max(1, FINE_GRID // min(rows, cols)))
            maps = self._shifted(pixels, window, adaptors, shifts) if shifts > 1 else maps
        device = f"{self.device}, {self.opened.dtype}"
        device = f"with {len(maps) - 1} adaptors on {device}" if len(maps) > 1 else f"on {device}"
        note = f"{width} x {height} px, {cols} x {rows} patches, {milliseconds:.0f} ms {device}."
        return Pass(shown(photograph), maps, (rows, cols), note)

    def _shifted(self, pixels: Tensor, window: WindowSize, adaptors: Sequence[str], shifts: int) -> dict[str, Tensor]:
        """Return maps with `shifts` x `shifts` positions for each patch, from the image moved by parts of a patch.

        At the edge its last pixels are repeated.
        """
        patch = self.opened.backbone.config.patch_size
        padded = F.pad(pixels.float(), [patch // 2, patch - patch // 2] * 2, mode="replicate").to(pixels.dtype)
        return finer_maps(
            lambda windows: self.encode(windows, window, adaptors)[0], padded, patch_size=patch, shifts=shifts
        )

    def features(self, image: str | None, resolution: float, windows: str) -> tuple[list[GalleryItem], str]:
        """Principal components of the features of a photograph, in every space."""
        encoded = self.encode_photograph(image, resolution, windows)
        images = [
            (_components(features, fit_basis(features), encoded.photograph), f"{name}, {features.shape[1]} dimensions")
            for name, features in encoded.maps.items()
        ]
        return images, encoded.note

    def alike(
        self, image: str | None, across: float, down: float, resolution: float, windows: str
    ) -> tuple[list[GalleryItem], str]:
        """Similarity of all positions of a photograph to one, in every space."""
        for name, share in (("across", across), ("down", down)):
            if not 0 <= share <= 100:
                raise ValueError(f"`{name}` must be a percentage in [0, 100], got {share}.")
        encoded = self.encode_photograph(image, resolution, windows)
        (rows, cols), grid = encoded.patches, encoded.maps[BACKBONE].shape[-2:]
        position = _position(across, down, grid)
        ringed = marked(to_colors(encoded.photograph)[None], [position], grid)[0]
        images = [(to_pil_image(to_pixels(ringed)), "the place")]
        for name, features in encoded.maps.items():
            heat = similarity_maps(features, [_on_grid(position, grid, features.shape[-2:])])[0]
            images.append((heat_image(heat, encoded.photograph.shape[-2:]), name))
        row, col = _position(across, down, encoded.patches)
        note = f"Patch {col + 1} of {cols} across, {row + 1} of {rows} down. Yellow is similar, black is not."
        return images, f"{note} {encoded.note}"

    @torch.inference_mode()
    def words(
        self, image: str | None, words: str, others: str, source: DenseSource, resolution: float, windows: str
    ) -> tuple[Any, str, dict[str, float], list[GalleryItem]]:
        """Regions of words in a photograph, and scores of the whole."""
        model, tokenizer = self.opened.zero_shot, self.opened.tokenizer
        if model is None or tokenizer is None:
            raise ValueError(f"`words` need a checkpoint with a text tower; {self.opened.checkpoint!r} has none.")
        check_choice("source", source, get_args(DenseSource))
        wanted, names = _wanted_words(words, others)
        photograph, window = self.photograph(image), read_window(windows)
        pixels, small = self.pixels(photograph, resolution), shown(photograph)
        embeds = model.embed_classes(tokenizer, names)
        whole = model(pixel_values=pixels, text_embeds=embeds, window_size=window).logits_per_image
        # Every word has its picture, so none is left out.
        outputs: Any = model.segment(pixels, embeds, source=source, window_size=window, denoising=None)
        check_outputs({"whole": whole, "logits": outputs.logits})
        outputs.logits = outputs.logits.float()
        height, width = small.shape[-2:]
        winners = self.opened.processor.post_process_semantic_segmentation(outputs, [(height, width)])[0].cpu()
        regions = [
            LabeledRegion((winners == index).numpy(), word, index)
            for index, word in enumerate(wanted)
            if (winners == index).any()
        ]
        logits = outputs.logits[0, : len(wanted)].cpu()
        low, high = float(logits.min()), float(logits.max())
        heat = (logits - low) / max(high - low, 1e-12)
        heats = [(heat_image(each, (height, width)), word) for word, each in zip(wanted, heat, strict=True)]
        scores = dict(zip(names, model.probabilities(whole.float())[0].tolist(), strict=True))
        return _annotated(small, regions), describe_shares(regions), scores, heats

    def windows(
        self, image: str | None, resolution: float, compared: Sequence[str]
    ) -> tuple[list[list[str | float]], list[GalleryItem], str]:
        """Time of the network with windows, and similarity of its features to those without."""
        photograph = self.photograph(image)
        pixels = self.pixels(photograph, resolution)
        encoded: dict[str, tuple[Tensor, float]] = {}
        for name in dict.fromkeys([NO_WINDOWS, *map(str, compared)]):
            window = read_window(name)
            maps, _ = self.encode(pixels, window)
            encoded[name] = maps[BACKBONE], statistics.median(self.encode(pixels, window)[1] for _ in range(TIMED_RUNS))
        whole, slowest = encoded[NO_WINDOWS]
        basis, small = fit_basis(whole), shown(photograph)
        rows: list[list[str | float]] = []
        images = []
        for name, (features, milliseconds) in encoded.items():
            cosine = float(F.cosine_similarity(features, whole, dim=1).mean())
            rows.append([name, round(milliseconds, 1), round(slowest / milliseconds, 2), round(cosine, 4)])
            images.append((_components(features, basis, small), f"windows: {name}, {milliseconds:.1f} ms"))
        height, width = pixels.shape[-2:]
        note = f"{width} x {height} px on {self.device}, {self.opened.dtype}; median of {TIMED_RUNS} passes."
        config = self.opened.backbone.config
        if not config.has_windowed_blocks:
            note += (
                f" All {config.num_hidden_layers} blocks of this model attend globally, so that windows change "
                "nothing: start the app with --num-global and half of the blocks or fewer."
            )
        return rows, images, note

    def predict(self, image: str | None, threshold: float, is_tuned: bool) -> tuple[str, Any, Any, Any]:
        """Output of a tuned model for a photograph."""
        has_own = is_tuned and self.opened.model.config.score_thresholds is not None
        found = predict(self.opened, self.photograph(image), "tuned" if has_own else threshold)
        regions = None if found.regions is None else _annotated(found.photograph, found.regions)
        depth = None if found.depth is None else to_pil_image(found.depth)
        return plain(found.description), found.scores, depth, regions


def _now(device: torch.device) -> float:
    """Return the time in seconds after a device has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def colors_image(colors: Tensor, size: Sequence[int]) -> Image.Image:
    """Return RGB in [0, 1] of patches, `(rows, cols, 3)`, as an image of a height and width, blended between them."""
    return to_pil_image(resize(to_pixels(colors), [max(side, 1) for side in size], InterpolationMode.BILINEAR))


def heat_image(heat: Tensor, size: Sequence[int]) -> Image.Image:
    """Return numbers in [0, 1], `(rows, cols)`, as an image: black is 0, yellow is 1."""
    return colors_image(similarity_colors(heat[None])[0], size)


def _components(features: Tensor, basis: PcaBasis, photograph: Tensor) -> Image.Image:
    return colors_image(pca_colors(features, basis)[0], photograph.shape[-2:])


def _annotated(photograph: Tensor, regions: Sequence[LabeledRegion]) -> tuple[Image.Image, list[tuple[Any, str]]]:
    """Return an image and its regions in Gradio's format."""
    return to_pil_image(photograph), [(region.area, region.label) for region in regions]


def _position(across: float, down: float, grid: Sequence[int]) -> tuple[int, int]:
    """Return the row and column of a position given in percent."""
    rows, cols = grid
    return min(int(down / 100 * rows), rows - 1), min(int(across / 100 * cols), cols - 1)


def _on_grid(position: tuple[int, int], grid: Sequence[int], other: Sequence[int]) -> tuple[int, int]:
    """Return the position on another grid of the same image: dense heads may have a finer one."""
    row, col = (int((each + 0.5) * there / here) for each, here, there in zip(position, grid, other, strict=True))
    return row, col


def _wanted_words(words: str, others: str) -> tuple[list[str], list[str]]:
    """Return the words to draw, and all words that patches are assigned to."""
    wanted = read_words(words)
    names = list(dict.fromkeys([*wanted, *read_words(others)]))
    if not wanted:
        raise ValueError(f"`words` must be words with commas between, such as `otter, rock`, got {words!r}.")
    if len(names) < 2:
        raise ValueError(
            f"`others` must name something else, such as `background`, if there is only one word, got {others!r}: each "
            "patch gets the word that is most similar."
        )
    if len(names) > MAX_WORDS:
        raise ValueError(f"`words` must be at most {MAX_WORDS} with those of `others`, got {len(names)}.")
    return wanted, names


class Asked(NamedTuple):
    """Inputs left of all tabs."""

    image: gr.Image
    resolution: gr.Slider
    windows: gr.Dropdown


def build_page(app: App, examples: Sequence[Path] = (), *, may_reopen: bool = False) -> gr.Blocks:
    """Return the page about a model; launch it with `launch_options`.

    Args:
        app: The model.
        examples: Photographs to choose from; the first one is shown when the page opens.
        may_reopen: Whether visitors may choose device and precision, which are the same for all.
    """
    images = [str(path.resolve()) for path in examples]
    with gr.Blocks(
        title=app.title, analytics_enabled=False, fill_width=True, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)
    ) as page:
        gr.Markdown(f"# {plain(app.title)}")
        description = gr.Markdown(app.describe())
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                asked = _add_questions(app, images)
                if may_reopen:
                    _add_reopening(app, description)
            with gr.Column(scale=5, min_width=320), gr.Tabs(overflow_behavior="wrap") as tabs:
                if app.opened.has_head:
                    title = pipeline_of([type(app.opened.model).__name__]).replace("-", " ").capitalize()
                    _add_task(app, asked, title, page)
                _add_features(app, asked, page)
                _add_alike(app, asked, tabs)
                if app.opened.zero_shot is not None:
                    _add_words(app, asked, app.opened.zero_shot.usual_dense_source)
                if app.opened.backbone.config.has_windowed_blocks:
                    _add_windows(app, asked)
    return page.queue(max_size=MAX_QUEUED, default_concurrency_limit=1)


def launch_options() -> dict[str, Any]:
    """Return the options of every launch: the page exchanges nothing with other machines."""
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


def _add_questions(app: App, images: Sequence[str]) -> Asked:
    """Add the inputs of all tabs: photograph, resolution and windows."""
    config, processor = app.opened.model.config, app.opened.processor
    step, patches = config.resolution_step, SMALLEST_PATCHES
    own_size = [processor.size[key] for key in ("shortest_edge", "height", "width") if processor.size[key] is not None]
    usual = min(own_size, default=min(config.preferred_resolution))
    image = gr.Image(
        images[0] if images else None,
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
        config.largest_side // step * step,
        value=max(round(usual / step), 1) * step,
        step=step,
        label="Resolution",
        info=f"Shorter side for the network, in pixels; the longer one has at most {config.largest_side}",
    )
    if len(images) > 1:
        gr.Examples([[each] for each in images], [image], cache_examples=False, api_visibility="private")
    with gr.Accordion("Windows", open=False, visible=config.has_windowed_blocks):
        windows = gr.Dropdown(
            [OWN_WINDOWS, NO_WINDOWS, AUTOMATIC, "8", "12", "16", "24", "32"],
            value=OWN_WINDOWS,
            label="ViTDet windows",
            info="Patches on a side",
            allow_custom_value=True,
        )
    return Asked(image, resolution, windows)


def _add_reopening(app: App, description: gr.Markdown) -> None:
    """Add the choice of device and precision."""
    with gr.Accordion("Device and precision", open=False):
        device = gr.Dropdown(devices(), value=app.device, label="Device")
        dtype = gr.Dropdown(list(DTYPES), value=app.opened.dtype, label="Precision")
        again = gr.Button("Open the model there")
    again.click(clear_errors()(app.reopen), [device, dtype], description, **HIDDEN)


def _uploaded(payload: Any) -> str | None:
    """Return the uploaded file unread: the errors of `read_photograph` are clearer than Gradio's.

    A class of our own would make Gradio write a `.pyi` beside this file.

    Raises:
        gr.Error: If it is another file of this machine. Gradio 6.31 itself checks only files with `meta`.
    """
    if payload is None:
        return None
    path = Path(payload.path).resolve()
    if not path.is_relative_to(Path(get_upload_folder()).resolve()):
        raise gr.Error("`image` must be a file that was uploaded, got another one.", print_exception=False)
    return str(path)


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


def _if_any(act: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that does nothing as long as there is no photograph: what a tab shows when it is opened."""

    def act_if_any(image: str | None, *others: Any) -> Any:
        return gr.skip() if image is None else act(image, *others)

    return clear_errors()(act_if_any)


def _said(name: str) -> gr.Markdown:
    return gr.Markdown(elem_id=f"{name}-said")


def _add_features(app: App, asked: Asked, page: gr.Blocks) -> None:
    """Add the spaces of backbone and teachers side by side, drawn anew after each change."""
    with gr.Tab("Features", id="features"):
        gr.Markdown(
            "Places with the same color have similar features: the three directions in which these vary most are red, "
            "green and blue. One picture for the backbone, one for each teacher that it imitates, each with colors of "
            "its own."
        )
        button = gr.Button("Show the features", variant="primary")
        images, said = _gallery("Principal components"), _said("features")

    def features_if_any(image: str | None, resolution: float, windows: str) -> tuple[list[GalleryItem], str]:
        return ([], "") if image is None else app.features(image, resolution, windows)

    inputs, outputs = list(asked), [images, said]
    button.click(clear_errors()(app.features), inputs, outputs, api_name="features", **QUEUE)
    changes = [page.load, asked.image.change, asked.resolution.release, asked.windows.input]
    gr.on(changes, clear_errors()(features_if_any), inputs, outputs, **HIDDEN, trigger_mode="always_last")


def _add_alike(app: App, asked: Asked, tabs: gr.Tabs) -> None:
    """Add the similarity to a position, clicked in the photograph or given in percent."""
    with gr.Tab("Similar places", id="alike") as tab:
        gr.Markdown(
            "Click a place in the photograph, or give it here: how similar all others are to it, in the features of "
            "the backbone and in the space of each teacher (cosine about the mean)."
        )
        with gr.Row():
            across = gr.Slider(0, 100, value=50, step=0.5, label="Across", info="Percent of the width, from the left")
            down = gr.Slider(0, 100, value=50, step=0.5, label="Down", info="Percent of the height, from the top")
        button = gr.Button("Show similar places", variant="primary")
        images, said = _gallery("Similar to the place in the ring"), _said("alike")

    def clicked(image: str | None, event: gr.SelectData) -> tuple[float, float, gr.Tabs]:
        with clear_errors():
            height, width = app.photograph(image).shape[-2:]
        x, y = event.index
        return round(100 * x / width, 1), round(100 * y / height, 1), gr.Tabs(selected="alike")

    alike = clear_errors()(app.alike)
    inputs, outputs = [asked.image, across, down, asked.resolution, asked.windows], [images, said]
    button.click(alike, inputs, outputs, api_name="alike", **QUEUE)
    tab.select(_if_any(app.alike), inputs, outputs, **HIDDEN)
    selected = asked.image.select(clicked, asked.image, [across, down, tabs], **HIDDEN)
    selected.success(alike, inputs, outputs, **HIDDEN)
    gr.on([across.release, down.release], alike, inputs, outputs, **HIDDEN, trigger_mode="always_last")


def _add_words(app: App, asked: Asked, usual_source: DenseSource) -> None:
    """Add the regions of words, and their scores for the whole photograph."""
    with gr.Tab("Words", id="words") as tab:
        gr.Markdown(
            "Any words: each patch, and the whole photograph, is given to the most similar one. Names of things do "
            "best, in the language that the text tower knows."
        )
        words = gr.Textbox("otter, rock, water", label="Words", info=f"With commas between, at most {MAX_WORDS}")
        others = gr.Textbox("background", label="What else may be there", info="Competes for patches, is not drawn")
        source = gr.Dropdown(
            [("the head of the summary", "summary_head"), ("the teacher's dense features", "features")],
            value=usual_source,
            label="Patches through",
        )
        button = gr.Button("Show the words", variant="primary")
        masks = gr.AnnotatedImage(label="Where they are", format="png")
        said = _said("words")
        scores = gr.Label(label="The whole photograph", num_top_classes=LABELS_SHOWN)
        images = _gallery("Similarity of patches to each word, on one scale")

    find = clear_errors()(app.words)
    inputs = [asked.image, words, others, source, asked.resolution, asked.windows]
    outputs = [masks, said, scores, images]
    button.click(find, inputs, outputs, api_name="words", **QUEUE)
    tab.select(_if_any(app.words), inputs, outputs, **HIDDEN)
    gr.on([words.submit, others.submit], find, inputs, outputs, **HIDDEN)


def _add_windows(app: App, asked: Asked) -> None:
    """Add time and effect of windows."""
    with gr.Tab("Windows", id="windows") as tab:
        gr.Markdown(
            "In ViTDet mode most blocks attend within windows of patches. Here are the time of the backbone alone, and "
            "how similar its features are to those without windows. One set of colors serves all pictures."
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
        table = gr.Dataframe(headers=headers, label="Time and similarity", interactive=False)
        said = _said("windows")
        images = _gallery("Principal components, in the colors of those without windows")
    inputs = [asked.image, asked.resolution, compared]
    outputs = [table, images, said]
    button.click(clear_errors()(app.windows), inputs, outputs, api_name="windows", **QUEUE)
    tab.select(_if_any(app.windows), inputs, outputs, **HIDDEN)


def _add_task(app: App, asked: Asked, title: str, page: gr.Blocks) -> None:
    """Add the output of a tuned model, at first and after each change of the photograph."""
    model = app.opened.model
    is_of_objects = isinstance(model, OBJECTS)
    is_of_image, is_depth = isinstance(model, RadioForImageClassification), isinstance(model, RadioForDepthEstimation)
    colors = {name: hex_color(index) for index, name in app.opened.class_names.items()}
    with gr.Tab(title, id="task"):
        gr.Markdown("The tuned model's output, at the size that it was tuned for.")
        threshold = gr.Slider(
            0,
            1,
            value=0.5,
            step=0.01,
            label="Least score",
            info=f"At most {MAX_OBJECTS} objects are drawn",
            visible=is_of_objects,
        )
        is_tuned = gr.Checkbox(
            value=True,
            label="The score of each class that was fitted to validation images",
            visible=is_of_objects and model.config.score_thresholds is not None,
        )
        button = gr.Button("Show the answer", variant="primary")
        said = _said("task")
        scores = gr.Label(label="Classes", num_top_classes=LABELS_SHOWN, visible=is_of_image)
        depth = gr.Image(label="Depth", format="png", interactive=False, visible=is_depth)
        regions = gr.AnnotatedImage(
            label="Answer", format="png", color_map=colors, visible=not is_of_image and not is_depth
        )
    inputs, outputs = [asked.image, threshold, is_tuned], [said, scores, depth, regions]
    button.click(clear_errors()(app.predict), inputs, outputs, api_name="predict", **QUEUE)
    gr.on([page.load, asked.image.change], _if_any(app.predict), inputs, outputs, **HIDDEN, trigger_mode="always_last")
