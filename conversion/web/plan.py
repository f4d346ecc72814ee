"""What a page offers of a model: sizes, windows, the spaces that it shows, and where words meet patches."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from conversion.graphs.models import size_step
from conversion.web.graphs import TEXT_PATCHES, Space, WebRadio, find_spaces
from conversion.web.texts import Texts
from modeling_radio import RadioModel
from modeling_radio.checks_radio import check_multiple
from modeling_radio.zero_shot_radio import DenseSource


DEFAULT_WINDOW = 4
"""Patches. Our choice: windows of 8, which released models were trained for, do not divide most small images."""
DEFAULT_LARGEST = 512
"""Pixels of the largest size that is offered where none are given: the preferred one of C-RADIOv4."""
FINEST_GRID = 3
"""How many times larger than the model's largest side a size may be: in training a crop of the position table covers a
tenth of it or more, stretched over the whole grid (AM-RADIO, appendix C), as if the image were three times as large."""


@dataclass(frozen=True)
class Plan:
    """What a page offers.

    Attributes:
        adaptors: That the graphs compute.
        spaces: That are shown.
        sizes: Pixels of a picture's longer side, ascending.
        step: Pixels that both sides are multiples of.
        window: Side of the windows in patches; `None` has none.
        window_step: Pixels that both sides are multiples of with windows.
        text_space: Output in which words meet patches, if there are words.
        text_head: Summary head that makes it of the final tokens, if no adaptor's features are it.
    """

    adaptors: list[str]
    spaces: list[Space]
    sizes: list[int]
    step: int
    window: int | None
    window_step: int
    text_space: Space | None
    text_head: nn.Module | None

    def wrap(self, model: RadioModel) -> dict[str, WebRadio]:
        """Return the model as it is to be exported, "global" and with "windows"."""
        windows = {"global": None} if self.window is None else {"global": None, "windows": self.window}
        return {name: WebRadio(model, self.adaptors, window, self.text_head) for name, window in windows.items()}


def plan_page(
    model: RadioModel,
    texts: Texts | None = None,
    *,
    adaptors: Sequence[str] | None = None,
    sizes: Sequence[int] | None = None,
    window_size: int | None = None,
    dense_source: DenseSource | None = None,
) -> Plan:
    """Decide what a page offers; see the settings of `conversion.to_web`.

    Args:
        model: That the page runs.
        texts: Its text side.
        adaptors: Whose spaces are shown; `None` takes the model's own list.
        sizes: Pixels of the longer side; `None` takes three.
        window_size: In patches, 0 for none; `None` takes 4 where some blocks have windows.
        dense_source: Where patches get their place among texts.

    Raises:
        ValueError: If the model takes other pictures than RGB, an adaptor is unknown, a size is not possible, or
            windows are asked for of a model that has none.
    """
    if model.config.num_channels != 3:
        raise ValueError(f"`checkpoint` must take RGB pictures, got {model.config.num_channels} channels.")
    names = list(model.config.adaptor_names or []) if adaptors is None else list(adaptors)
    spaces = find_spaces(model, names)
    text_space, text_head = (None, None) if texts is None else _text_space(model, texts, dense_source)
    computed = [space.name for space in spaces[1:]]
    if text_space is not None and text_head is None and text_space.name not in computed:
        computed.append(text_space.name)
    step = size_step(model.config, None)
    window = _choose_window(model, window_size)
    window_step = step if window is None else step * window
    return Plan(
        computed, spaces, _choose_sizes(model, sizes, window_step), step, window, window_step, text_space, text_head
    )


def _choose_window(model: RadioModel, window_size: int | None) -> int | None:
    is_possible = model.config.eradio is None and model.config.has_windowed_blocks  # E-RADIO's are its own
    fits = 2 * DEFAULT_WINDOW * model.patch_size <= model.max_resolution
    if window_size is None:
        return DEFAULT_WINDOW if is_possible and fits else None
    if window_size and not is_possible:
        raise ValueError(
            f"`window_size` must be 0 for this model, none of whose blocks have windows, got {window_size}."
        )
    if 2 * window_size * model.patch_size > model.max_resolution:
        raise ValueError(f"`window_size` must leave two windows in {model.max_resolution} px, got {window_size}.")
    return window_size or None


def _choose_sizes(model: RadioModel, sizes: Sequence[int] | None, step: int) -> list[int]:
    if sizes is None:
        largest = min(DEFAULT_LARGEST, model.max_resolution) // step
        return sorted({max(round(share * largest), 1) * step for share in (0.5, 0.75, 1)})
    if not sizes:
        raise ValueError("`sizes` must have at least one, got none.")
    largest = model.max_resolution * (FINEST_GRID if model.config.use_cropped_positions else 1)
    for size in sizes:
        check_multiple("`sizes`", size, size, step, largest)
    if max(sizes) > model.max_resolution:
        warnings.warn(f"`sizes` of {max(sizes)} px: the model was made for {model.max_resolution} px.", stacklevel=3)
    return sorted(set(sizes))


def _text_space(model: RadioModel, texts: Texts, source: DenseSource | None) -> tuple[Space, nn.Module | None]:
    """Return where words meet patches: an adaptor's features, or its summary head's answer to patches."""
    adaptor = texts.model.image_adaptor
    if source is None:
        source = texts.model.usual_dense_source
    if source == "features":
        if adaptor.feature_dim != texts.model.text_width:
            raise ValueError(
                f"`feature_dim` of adaptor {adaptor.name!r} must be {texts.model.text_width}, the width of the texts, "
                f"for `dense_source` features, got {adaptor.feature_dim}. Use summary_head."
            )
        (_, space) = find_spaces(model, [adaptor.name])
        return space, None
    head = model.radio_model.adaptor(adaptor.name).head_mlp
    return Space(adaptor.name, adaptor.name, TEXT_PATCHES, texts.model.text_width), head
