"""NVIDIA's names: what code written for NVIDIA's RADIO repositories asks of a model and of its `radio_model`.

Each name means what it means there, but for two. `min_resolution_step` is that of the network alone, since windows of
any size fit any grid. And `model.radio_model(pixel_values)` itself gives a `NetworkOutput`, which all models are made
of; with `feature_fmt="NLC"` or "NCHW" it gives NVIDIA's pair, as the model does with `return_dict=False`.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .checks_radio import LARGEST, Resolution, number
from .configuration_radio import RadioConfig
from .hub_radio import import_sibling


def _methods() -> Any:
    """Return the file of the methods that few models are asked for."""
    return import_sibling("nvidia_methods_radio")


class NvidiaNames:
    """Names of a model and of its network; `radio_model` is the network, of a network itself."""

    config: RadioConfig
    radio_model: Any

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.config.patch_size

    @property
    def min_resolution_step(self) -> int:
        """Height and width must be multiples of this many pixels; windows of any size need no larger step."""
        return self.config.resolution_step

    @property
    def max_resolution(self) -> int:
        """Largest height or width in pixels."""
        return self.config.largest_side

    @property
    def preferred_resolution(self) -> Resolution:
        """The size in pixels that the processor uses by default."""
        return Resolution(*self.config.preferred_resolution)

    def get_nearest_supported_resolution(self, height: int, width: int) -> Resolution:
        """Return the valid size nearest to `height` x `width` pixels."""
        for name, side in (("height", height), ("width", width)):
            number(f"(0, {LARGEST}]").check(name, side)
        return self.config.nearest_resolution(height, width)

    @property
    def embed_dim(self) -> int:
        """Channels of the features."""
        return self.config.hidden_size

    @property
    def summary_dim(self) -> int:
        """Channels of the summary."""
        return self.config.hidden_size * len(self.config.summary_idxs or [])

    @property
    def num_cls_tokens(self) -> int:
        """Class tokens in front of the registers."""
        return self.config.num_cls_tokens

    @property
    def num_summary_tokens(self) -> int:
        """Tokens in front of the patches: class tokens and registers."""
        return self.config.num_prefix_tokens

    @property
    def window_size(self) -> int | None:
        """Side in tokens of the ViTDet windows that a call gets by default; `None` is global attention."""
        return self.config.vitdet_window_size

    def switch_to_deploy(self) -> None:
        """Do nothing: only E-RADIO has something to fold, batch norms, without which its outputs are the same."""

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer's blocks; the levels of E-RADIO, the stages of a network of a library."""
        return self.radio_model.model.blocks

    def change_window_size(self, window_size: int | None) -> None:
        """Set the windows that calls take by default, of E-RADIO alone; see `EradioTrunk`."""
        _methods().windows_of(self.radio_model, "`window_size`").change_window_size(window_size)

    def set_optimal_window_size(self, image_dim: Sequence[int] | int) -> int:
        """Set the windows that fit images of a height and width, of E-RADIO alone; see `EradioTrunk`."""
        return _methods().windows_of(self.radio_model, "`window_size='auto'`").set_optimal_window_size(image_dim)

    def make_preprocessor_external(self) -> nn.Module:
        """Return what normalizes pixels, for the caller to run; from here on the model takes normalized ones.

        The state of this model only: a folder saved from it normalizes inside again.
        """
        network = self.radio_model
        conditioner, network.input_conditioner = _methods().conditioners(network.input_conditioner, self.config)
        network._warned_of_pixel_range = True  # which is [0, 1] no more
        return conditioner

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return features after chosen blocks; see `intermediate_radio`."""
        return import_sibling("intermediate_radio").forward_intermediates(self.radio_model, x, *args, **kwargs)
