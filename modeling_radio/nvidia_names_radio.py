"""NVIDIA's names: what code written for NVIDIA's RADIO repositories asks of a model and of its `radio_model`.

Each name means what it means there, but for two. `min_resolution_step` is that of the network alone, since windows of
any size fit any grid. And `model.radio_model(pixel_values)` itself gives a `NetworkOutput`, which all models are made
of; with `feature_fmt="NLC"` or "NCHW" it gives NVIDIA's pair, as the model does with `return_dict=False`.
"""

from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor, nn

from .checks_radio import LARGEST, Resolution, number, own_names
from .configuration_radio import RadioConfig
from .hub_radio import import_sibling
from .inputs_radio import check_feature_format


def _methods() -> Any:
    """Return the file of the methods that few models are asked for."""
    return import_sibling("nvidia_methods_radio")


class NvidiaNames:
    """Names whose values the configuration gives."""

    config: RadioConfig

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


class NvidiaNetworkNames(NvidiaNames):
    """The names of NVIDIA's `radio_model`, for `RadioNetwork`."""

    model: Any
    adaptors: nn.ModuleDict
    input_conditioner: nn.Module

    def __call__(self, *args: Any, feature_fmt: Any = None, **kwargs: Any) -> Any:
        """Run the network as `forward` says.

        Args:
            args: Positional arguments of `forward`.
            feature_fmt: "NLC" or "NCHW" returns `(summary, features)`, or with adaptors such pairs by "backbone" and
                the adaptors' names, as NVIDIA's `radio_model` does; `None` returns the result of `forward`.
            kwargs: Other arguments of `forward`.
        """
        result = super().__call__(*args, **kwargs)  # pyrefly: ignore[missing-attribute]
        return result if feature_fmt is None else self.make_pairs(result, feature_fmt)

    def make_pairs(self, result: Any, feature_fmt: Any) -> Any:
        """Return `(summary, features)`, or with adaptors such pairs by "backbone" and the adaptors' names.

        Args:
            result: Output of `forward`.
            feature_fmt: "NLC" for token sequences, "NCHW" for maps.
        """
        check_feature_format(feature_fmt, is_packed=result.pack is not None, argument="feature_fmt")
        names = [name for name in self.config.adaptor_names or [] if name in self.adaptors]  # a backbone has none
        return self.make_output(result, names, feature_fmt).to_pairs()  # pyrefly: ignore[missing-attribute]

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; class tokens that are assigned to `summary_idxs` make up the summary from then on."""
        before: Any = vars(self).get("_buffers", {}).get(name)
        super().__setattr__(name, value)
        is_assigned = name == "summary_idxs" and before is not None and not before.is_meta  # not while weights load
        if is_assigned and not value.is_meta and value.tolist() != self.config.summary_idxs:
            self.config.summary_idxs = value.tolist()
            self.config.check()

    def keep_adaptors(self, names: Collection[str]) -> None:
        """Remove all other adaptors, from the configuration too; a `ValueError` names what is none."""
        names = own_names("adaptors", names, self.adaptors)
        for name in names:
            self.config.adaptor(name, argument="adaptors")
        for name in [name for name in self.adaptors if name not in names]:
            del self.adaptors[name]
        self.config.adaptors = [adaptor for adaptor in self.config.adaptors if adaptor["name"] in names]
        self.config.adaptor_names = [name for name in self.config.adaptor_names or [] if name in names]
        if self.config.text_adaptor not in names:
            self.config.text_tower = self.config.text_adaptor = None

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer's blocks."""
        return self.model.blocks

    def change_window_size(self, window_size: int | None) -> None:
        """Refuse by a `ValueError`: only E-RADIO's windows are part of the network."""
        _methods().refuse_window(f"of {window_size!r} tokens", "`window_size`, or set `config.vitdet_window_size`")

    def set_optimal_window_size(self, image_dim: Sequence[int] | int) -> int:
        """Refuse by a `ValueError`: only E-RADIO's windows are part of the network."""
        return _methods().refuse_window(f"for images of {image_dim!r}", "`window_size='auto'`")

    def make_preprocessor_external(self) -> nn.Module:
        """Return what normalizes pixels, for the caller to run; from here on the model takes normalized ones.

        The state of this model only: a folder saved from it normalizes inside again.
        """
        conditioner, self.input_conditioner = _methods().conditioners(self.input_conditioner, self.config)
        self._warned_of_pixel_range = True  # which is [0, 1] no more
        return conditioner

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return features after chosen blocks; see `nvidia_methods_radio`."""
        return _methods().forward_intermediates(self, x, *args, **kwargs)


class NvidiaModelNames(NvidiaNames):
    """The same names on a model, which asks its `radio_model`."""

    radio_model: Any

    @property
    def adaptors(self) -> nn.ModuleDict:
        """The adaptors that were built, by name; `None`, or some of them, removes the others.

        That of the folder's text tower also has what `AdaptorTexts` says.
        """
        adaptors, name = self.radio_model.adaptors, self.config.text_adaptor
        if name in adaptors and "encode_text" not in vars(adaptors[name]):
            _methods().AdaptorTexts(self).give_to(adaptors[name])
        return adaptors

    @adaptors.setter
    def adaptors(self, value: Collection[str] | None) -> None:
        self.radio_model.keep_adaptors(value or ())

    @property
    def model(self) -> nn.Module:
        """The transformer: patch generator, blocks and final norm."""
        return self.radio_model.model

    @property
    def input_conditioner(self) -> nn.Module:
        """The module that normalizes pixels."""
        return self.radio_model.input_conditioner

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer's blocks."""
        return self.radio_model.blocks

    def change_window_size(self, window_size: int | None) -> None:
        """Set the windows that calls take by default, of E-RADIO alone; see `EradioNetwork`."""
        self.radio_model.change_window_size(window_size)

    def set_optimal_window_size(self, image_dim: Sequence[int] | int) -> int:
        """Set the windows that fit images of a height and width, of E-RADIO alone; see `EradioNetwork`."""
        return self.radio_model.set_optimal_window_size(image_dim)

    def make_preprocessor_external(self) -> nn.Module:
        """Return what normalizes pixels, for the caller to run; see `NvidiaNetworkNames`."""
        return self.radio_model.make_preprocessor_external()

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return features after chosen blocks; see `NvidiaNetworkNames`."""
        return self.radio_model.forward_intermediates(x, *args, **kwargs)
