"""E-RADIO: NVIDIA's efficient backbone of convolutions and window attention, behind the same model classes.

Four levels at strides 4, 8, 16 and 32. The first two are convolutions, the others attention in windows; a neck joins
these two to features at stride 16, whose mean is the summary.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .batches_radio import batch_of_call
from .config_checks_radio import COUNT
from .configuration_radio import RadioConfig
from .eradio_config_radio import as_list, trained_window
from .eradio_layers_radio import (
    EradioBlock,
    EradioConvolutions,
    EradioDownsampling,
    EradioNeckProjection,
    EradioStem,
)
from .inputs_radio import warn_of_pixel_range
from .nvidia_interface_radio import NvidiaNetwork
from .outputs_radio import NetworkPass
from .resolution_radio import Resolution
from .window_choice_radio import WindowSize


LARGEST_WINDOW = 16
"""Of the windows that NVIDIA's `set_optimal_window_size` chooses from."""


class EradioLevel(nn.Module):
    """Blocks at one scale, and what leads to the next.

    Args:
        arguments: Those of the network, checked.
        index: The level, from 0 on.
    """

    def __init__(self, arguments: dict[str, Any], index: int) -> None:
        super().__init__()
        width, depth = arguments["dim"] * 2**index, arguments["depths"][index]
        self.has_attention = index >= 2
        if self.has_attention:
            self.ratios = as_list(arguments["sr_ratio"][index])
            self.trained_window = trained_window(arguments, index)
            settings = (arguments["num_heads"][index], arguments["mlp_ratio"], arguments["cpb_mlp_hidden"])
            self.blocks = nn.ModuleList(
                EradioBlock(width, *settings, self.trained_window, self.ratios) for _ in range(depth)
            )
        else:
            self.blocks = EradioConvolutions(width, depth)
        if index < 3:
            self.downsample = EradioDownsampling(width)

    def forward(self, maps: Tensor, window: int | None) -> Tensor:
        """Return maps of the same shape; `window` in tokens, `None` is that of the training."""
        if not self.has_attention:
            return self.blocks(maps)  # pyrefly: ignore[not-callable]
        window = window or self.trained_window
        # No padding: the map is stretched to whole windows, and back after the last block.
        step, size = window * max(self.ratios), maps.shape[-2:]
        rows, cols = (-(-side // step) * step for side in size)
        stretched = F.interpolate(maps, (rows, cols), mode="nearest") if (rows, cols) != tuple(size) else maps
        for block in self.blocks:  # pyrefly: ignore[not-iterable]
            stretched = block(stretched, window)
        return F.interpolate(stretched, size, mode="nearest") if (rows, cols) != tuple(size) else stretched


class EradioNeck(nn.Module):
    """Joins the two levels with attention to features at the stride of the finer one."""

    def __init__(self, width: int, feature_width: int) -> None:
        super().__init__()
        self.neck_features_proj = nn.ModuleList(
            EradioNeckProjection(width * factor, feature_width, factor) for factor in (1, 2)
        )

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        fine, coarse = (project(maps) for project, maps in zip(self.neck_features_proj, levels, strict=True))
        return fine + coarse


class EradioTrunk(nn.Module):
    """From normalized pixels `(batch, 3, height, width)` to features `(batch, hidden, height / 16, width / 16)`."""

    def __init__(self, config: RadioConfig) -> None:
        super().__init__()
        arguments: dict[str, Any] = config.eradio or {}
        self.patch_embed = EradioStem(config.num_channels, arguments["in_dim"], arguments["dim"])
        self.levels = nn.ModuleList(EradioLevel(arguments, index) for index in range(4))
        self.high_res_neck = EradioNeck(arguments["dim"] * 4, config.hidden_size)

    def forward(self, pixel_values: Tensor, window: int | None) -> Tensor:
        maps, outputs = self.patch_embed(pixel_values), []
        for index, level in enumerate(self.levels):
            maps = level(maps, window)
            if index >= 2:
                outputs.append(maps)
            if index < 3:
                maps = level.downsample(maps)  # pyrefly: ignore[not-callable]
        return self.high_res_neck(outputs)


class EradioNetwork(NvidiaNetwork):
    """The network behind the models of an E-RADIO; `config.eradio` shapes it.

    Its windows are not ViTDet's: they are part of the architecture, and all that attends does so in them. A call, or
    `change_window_size`, chooses their side at both levels; without, it is that of the training.
    """

    @property
    def blocks(self) -> nn.ModuleList:
        """The four levels."""
        return self.model.levels  # pyrefly: ignore[bad-return]

    @property
    def input_embeddings(self) -> nn.Module:
        """What reads pixels: the stem."""
        return self.model.patch_embed  # pyrefly: ignore[bad-return]

    def replace_input_embeddings(self, value: nn.Module) -> None:
        """Put another module in its place, from normalized pixels to maps of a quarter of their sides."""
        self.model.patch_embed = value

    def build_trunk(self, config: RadioConfig) -> nn.Module:
        return EradioTrunk(config)

    def change_window_size(self, window_size: int | None) -> None:
        """Set the side in tokens of the windows that calls take by default; `None` is that of the training.

        It is `config.vitdet_window_size`, which a saved folder keeps.

        Raises:
            ValueError: If it is no positive integer.
        """
        if isinstance(window_size, Sequence) and len(set(window_size)) == 1:  # NVIDIA's method takes both
            window_size = window_size[0]
        self.config.vitdet_window_size = window_size

    def set_optimal_window_size(self, image_dim: Sequence[int] | int) -> int:
        """Set the windows that fit images of a height and width without stretching: see `optimal_window`.

        Returns:
            The side in tokens.
        """
        sides = [image_dim] * 2 if isinstance(image_dim, int) else list(image_dim)
        window = optimal_window(*sides)
        self.change_window_size(window)
        return window

    def forward(  # noqa: PLR0913
        self,
        pixel_values: Tensor | None,
        image_grid_hw: Tensor | None = None,
        window_size: WindowSize = None,
        keep: Collection[int] = (),
        output_hidden_states: Any = None,
        output_attentions: bool | None = None,
        draws: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        num_tokens: Any = None,
        decode: bool = True,
        full_length: bool = False,
    ) -> NetworkPass:
        """Run the network; its features come with their mean in front, where other networks have a class token.

        Args:
            pixel_values: RGB images in [0, 1], sides multiples of 32.
            image_grid_hw: Refused, as is all that asks for tokens between blocks: the levels have other widths.
            window_size: Side of the windows in tokens; "auto" is `optimal_window`; `None` is the network's.
            keep: Refused unless empty.
            output_hidden_states: Refused unless false.
            output_attentions: Refused unless false.
            draws: Refused: nothing is drawn in its training.
            pixel_values_videos: Clips, each of whose frames is an image.
            num_tokens: Refused, as is `decode=False`: both are RADIO1D's, as is `full_length`, which says nothing here.
            decode: See there.
            full_length: See there.

        Raises:
            ValueError: On what E-RADIO has not, named; otherwise as `RadioModel.forward`.
        """
        config = self.config
        wants_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        wants_attentions = config.output_attentions if output_attentions is None else output_attentions
        for name, is_wanted in (
            ("image_grid_hw", image_grid_hw is not None),
            ("draws", draws is not None),
            ("num_tokens", num_tokens is not None),
            ("decode", not decode),
            ("output_hidden_states", wants_states not in (None, False, [], ())),
            ("output_attentions", bool(wants_attentions)),
        ):
            if is_wanted:
                raise ValueError(f"`{name}` must be left out: E-RADIO has no {_LACKS[name]}.")
        if keep:
            raise ValueError(
                f"Blocks {sorted(keep)} cannot be read: E-RADIO has no blocks of one width, only its final features. "
                "Take a head that reads these, or a RADIO that is a plain ViT."
            )
        batch = batch_of_call(pixel_values, image_grid_hw, pixel_values_videos, config)
        if not self._warned_of_pixel_range:
            self._warned_of_pixel_range = warn_of_pixel_range(batch.pixels)
        features = self.model(self.input_conditioner(batch.pixels), self._window(window_size, batch.grid))
        features = features.flatten(2).transpose(1, 2)
        tokens = torch.cat([features.mean(dim=1, keepdim=True), features], dim=1)
        return NetworkPass(tokens, tokens, {}, None, None, batch.grid, num_clips=batch.num_clips)

    def _window(self, window_size: WindowSize, grid: Resolution) -> int | None:
        """Return the side of the windows of a call, `None` for that of the training."""
        if window_size is None:
            return self.config.vitdet_window_size
        if window_size == "auto":
            return optimal_window(*(side * self.config.patch_size for side in grid))
        if not COUNT.holds(window_size):
            raise ValueError(
                f"`window_size` must be a positive integer, 'auto' or None, got {window_size!r}: E-RADIO attends in "
                "windows only."
            )
        return window_size  # pyrefly: ignore[bad-return]


_LACKS = {
    "image_grid_hw": "packed images, since its convolutions read whole ones",
    "draws": "randomness in training",
    "num_tokens": "global tokens",
    "decode": "decoder",
    "output_hidden_states": "tokens of one width between its levels",
    "output_attentions": "attention weights of the whole image",
}


def optimal_window(height: int, width: int) -> int:
    """Return the largest divisor of the shorter side in units of 32 pixels, at most 16: NVIDIA's choice of a window.

    Args:
        height: Of the images in pixels.
        width: Likewise.

    Raises:
        ValueError: If a side is shorter than 32 pixels.
    """
    tokens = min(height, width) // 32
    if tokens < 1:
        raise ValueError(f"Sides must be at least 32 pixels to choose a window, got {height} x {width}.")
    return max(window for window in range(1, LARGEST_WINDOW + 1) if tokens % window == 0)
