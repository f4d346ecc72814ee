"""Draws what the demo's student finds before and after its training; README shows this picture.

All results are outputs of the student. The photographs (CC0, package budgie-backgrounds) and the emoji (Noto,
Apache-2.0; Fluent, MIT) are held out from its training.
"""

from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import resize

from modeling_radio import RadioModel
from modeling_radio.core.files import write_file
from modeling_radio.demo.assets import CutOut, DemoAssets
from modeling_radio.demo.evaluation_data import load_photographs
from modeling_radio.demo.images import load_object_images, photographs
from modeling_radio.evaluation.features import at_night, match_at_night, shifted_maps, window_of
from modeling_radio.evaluation.models.radio import RadioFeatures
from modeling_radio.figures.features import marked, overlaid, similarity_maps, to_colors, to_pixels
from modeling_radio.figures.style import INK, on_any_background


FILE, PHONE_FILE = Path("pictures") / "before_after.webp", Path("pictures") / "before_after_phone.webp"
"""Below a run's folder: the picture, and the same for narrow screens."""
SIZE_PX, SHIFTS, SHOWN_PX, GRID = 128, 4, 512, 32
MATCHED, DRAWN = "oakland-zoo-otters", (7, 15, 24)
"""A photograph, and the rows and columns of places that are drawn; the title counts all places of all photographs."""
CLICKED = {"oakland-zoo-otters": (18, 19), "perched-osprey": (16, 8)}
"""Photographs, with the row and column that is clicked."""
CLICK_ADAPTOR, LEAST_COSINE = "dinov2-s-saliency", 0.5
QUERIES = ("1f99c", "1f3ed", "1fa82", "1f56f", "1f6cb", "1fab6")
"""Emoji that are looked for, by code point; the title counts all."""
NUM_FOUND, MARGIN, WHITE = 3, 0.11, (255, 255, 255)
RIGHT, WRONG = "#0d9488", "#dc2626"
WIDTH, HEIGHT, EDGE = 3.6, 4.3, 0.1
"""Width, height and edge of a panel in inches; at 100 pixels an inch it is as wide as a phone's screen."""
BEFORE, AFTER = "before training", "after training"


class Models(NamedTuple):
    """The student before and after its training."""

    before: RadioFeatures
    after: RadioFeatures


class Tile(NamedTuple):
    """A part of the figure, `WIDTH` x `HEIGHT` inches from a corner on."""

    figure: Figure
    left: float
    bottom: float

    def picture(self, pixels: Tensor, x: float, y: float, width: float) -> Axes:
        """Draw a square image, `(rows, cols, 3)`, whose top left corner is so far from that of the panel."""
        size = self.figure.get_size_inches()
        corner = np.array([self.left + x, self.bottom + HEIGHT - y - width])
        axes = self.figure.add_axes((*(corner / size), *(width / size)))
        axes.imshow(pixels.numpy(), extent=(0, 1, 1, 0))
        axes.set_axis_off()
        return axes

    def text(self, text: str, x: float, y: float, points: float = 10.5, **options: Any) -> None:
        """Write a text in the middle above a place."""
        size = self.figure.get_size_inches()
        place = np.array([self.left + x, self.bottom + HEIGHT - y]) / size
        look: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": points, "color": INK, **options}
        self.figure.text(float(place[0]), float(place[1]), text, **look)

    def title(self, text: str, numbers: str) -> None:
        """Write what the panel shows, and how often it is right."""
        self.text(text, WIDTH / 2, 0.3, 13, weight="bold")
        self.text(numbers, WIDTH / 2, 0.56, 11, color=RIGHT, weight="bold")


@on_any_background
def draw_before_after(before: RadioModel, after: RadioModel, assets: DemoAssets, folder: Path) -> bool:
    """Draw the panels side by side to `FILE`, and below each other to `PHONE_FILE`.

    Args:
        before: The student before its training.
        after: The student after it.
        assets: The demo's assets.
        folder: Folder of the run.

    Returns:
        Whether they were drawn: other assets or recipes may lack the photographs, the emoji or the adaptor.
    """
    names = {each.name for each in photographs(assets, license="CC0-1.0")}
    codes, _ = emoji_in_two_styles(assets)
    has_adaptor = CLICK_ADAPTOR in after.radio_model.adaptors and after.patch_size * GRID == SIZE_PX * SHIFTS
    if not (has_adaptor and {MATCHED, *CLICKED} <= names and set(QUERIES) <= set(codes)):
        return False
    models = Models(*(RadioFeatures(each, size_px=SIZE_PX) for each in (before, after)))
    photos, night = Photographs(models, assets), Photographs(models, assets, change=at_night)
    draws: list[Callable[[Tile], None]] = [
        lambda panel: draw_matches(panel, photos, night),
        lambda panel: draw_masks(panel, photos),
        lambda panel: draw_retrieval(panel, models, assets),
    ]
    for file, rows, cols in ((FILE, 1, 3), (PHONE_FILE, 3, 1)):
        figure = Figure(figsize=(cols * WIDTH, rows * HEIGHT), dpi=200)
        for number, draw in enumerate(draws):
            draw(Tile(figure, number % cols * WIDTH, (rows - 1 - number // cols) * HEIGHT))
        write_file(folder / file, partial(figure.savefig, pil_kwargs={"quality": 82}))
    return True


class Photographs:
    """Held-out CC0 photographs, as they are shown, and the models' maps of them.

    Args:
        models: The models.
        assets: The demo's assets.
        change: Change of each photograph.
    """

    def __init__(self, models: Models, assets: DemoAssets, change: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        chosen, patch = photographs(assets, license="CC0-1.0"), models.after.patch_size
        self.names = [each.name for each in chosen]
        large = torch.stack([change(each) for each in load_photographs(chosen, SHOWN_PX)])
        small = resize(large, [SIZE_PX + patch] * 2, antialias=True)
        self.shown = to_colors(window_of(large, SIZE_PX, patch))
        self.maps = [
            shifted_maps(model, small, size_px=SIZE_PX, shifts=SHIFTS, adaptors=[CLICK_ADAPTOR]) for model in models
        ]


def draw_matches(panel: Tile, photos: Photographs, night: Photographs) -> None:
    """Draw the most similar place of the second picture for some of the first; right is within one patch."""
    index = photos.names.index(MATCHED)
    found = [match_at_night(day[""], dark[""], SHIFTS) for day, dark in zip(photos.maps, night.maps, strict=True)]
    shares = [each.share for each in found]
    panel.title("Find the same place at night", f"right: {shares[0]:.0%} before, {shares[1]:.0%} after")
    for matches, name, y in zip(found, (BEFORE, AFTER), (0.84, 2.66), strict=True):
        panel.text(name, WIDTH / 2, y)
        first = panel.picture(photos.shown[index], EDGE, y, 1.62)
        second = panel.picture(night.shown[index], WIDTH - EDGE - 1.62, y, 1.62)
        for row, col in product(DRAWN, DRAWN):
            color = RIGHT if matches.is_right[index, row, col] else WRONG
            start = (col + 0.5) / GRID, (row + 0.5) / GRID
            end = tuple(((matches.places[index, row, col] + 0.5) / GRID).tolist())
            ends = {"coordsA": "data", "coordsB": "data", "axesA": first, "axesB": second}
            style = {"color": color, "linestyle": "-" if color == RIGHT else ":", "linewidth": 1.6, "zorder": 5}
            panel.figure.add_artist(ConnectionPatch(start, end, **ends, **style))
            for axes, place in ((first, start), (second, end)):
                axes.plot(*place, "o", color=color, markeredgecolor="white", markersize=5, zorder=6)


def draw_masks(panel: Tile, photos: Photographs) -> None:
    """Draw the places whose features are similar to those of a place."""
    panel.title("Click on a thing, get its mask", "all places that are similar to the ring")
    for name, x in ((BEFORE, EDGE + 0.81), (AFTER, WIDTH - EDGE - 0.81)):
        panel.text(name, x, 0.84)
    for (name, place), y in zip(CLICKED.items(), (0.84, 2.58), strict=True):
        index = photos.names.index(name)
        for maps, x in zip(photos.maps, (EDGE, WIDTH - EDGE - 1.62), strict=True):
            similar = similarity_maps(maps[CLICK_ADAPTOR], [place] * len(photos.names))[index]
            large = resize(similar[None], list(photos.shown.shape[1:3]))[0]
            covered = overlaid(to_pixels(photos.shown)[index], (large > LEAST_COSINE).long(), bare={0})
            panel.picture(marked(to_colors(covered[None]), [place], (GRID, GRID))[0], x, y, 1.62)


def draw_retrieval(panel: Tile, models: Models, assets: DemoAssets) -> None:
    """Draw the most similar of all held-out emoji in another style."""
    codes, styles = emoji_in_two_styles(assets)
    orders = [order_of(model, *styles) for model in models]
    shares = [float((order[:, 0] == torch.arange(len(codes))).float().mean()) for order in orders]
    panel.title("Find it in another style", f"right: {shares[0]:.0%} before, {shares[1]:.0%} after")
    panel.text(BEFORE, 1.36, 0.84)
    panel.text(AFTER, 2.8, 0.84)
    for line, code in enumerate(QUERIES):
        number, y = codes.index(code), 0.88 + 0.56 * line
        panel.picture(to_colors(styles[0][number]), EDGE, y, 0.5)
        for order, x in zip(orders, (0.68, 2.12), strict=True):
            for place, found in enumerate(order[number, :NUM_FOUND].tolist()):
                axes = panel.picture(to_colors(styles[1][found]), x + 0.47 * place, y + 0.03, 0.44)
                if found == number:
                    frame = Rectangle((0, 0), 1, 1, fill=False, edgecolor=RIGHT, linewidth=3)
                    axes.add_patch(frame)


def emoji_in_two_styles(assets: DemoAssets) -> tuple[list[str], list[Tensor]]:
    """Return the code points of held-out emoji, and their pictures in Noto's and in Fluent's style."""
    by_style: list[dict[str, CutOut]] = [{}, {}]
    for each in assets.emoji:
        code = each.path.stem.lower().replace("-fe0f", "")  # without the variation selector
        for style, name in enumerate(("datasource-google", "fluent")):
            if name in str(each.path) and each.split == "held_out" and "-" not in code:
                by_style[style][code] = each
    codes = sorted(by_style[0].keys() & by_style[1].keys())
    return codes, [load_object_images([style[code] for code in codes], SIZE_PX, MARGIN, WHITE) for style in by_style]


@torch.no_grad()
def order_of(model: RadioFeatures, queries: Tensor, others: Tensor) -> Tensor:
    """Return the others from the most similar summary on, `(num_queries, num_others)`."""
    vectors = []
    for images in (queries, others):
        pixels = torch.stack([model.preprocess(each, SIZE_PX) for each in images])
        summaries = torch.cat([cast(Tensor, model.encode(some).summary) for some in pixels.split(32)])
        vectors.append(F.normalize(summaries - summaries.mean(dim=0), dim=1))
    return (vectors[0] @ vectors[1].T).argsort(dim=1, descending=True)
