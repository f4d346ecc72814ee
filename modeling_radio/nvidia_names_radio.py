"""NVIDIA's names: what code written for NVIDIA's RADIO repositories asks of a model and of its `radio_model`.

Each name means what it means there, but for two. `min_resolution_step` is that of the network alone, since windows of
any size fit any grid. And `model.radio_model(pixel_values)` itself gives a `NetworkOutput`, which all models are made
of; ask the model, with `return_dict=False`, for the pair that NVIDIA's gives.
"""

from collections.abc import Sequence
from typing import Any, get_args

from torch import Tensor, nn

from .checks_radio import COUNT, LARGEST, Resolution, check_blocks, check_choice, number, optional
from .configuration_radio import RadioConfig
from .inputs_radio import Aggregation, ScaleOrder, check_feature_format, check_widths, count_from_first, group_blocks
from .layers_radio import RadioInputConditioner
from .outputs_radio import FeatureFormat, RadioPair


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


class OutsideConditioner(RadioInputConditioner):
    """Stands where pixels come normalized: it changes nothing.

    Mean and deviation stay, so that a folder saved from here normalizes inside, like every other.
    """

    def forward(self, pixel_values: Tensor) -> Tensor:
        return pixel_values


class NvidiaNetworkNames(NvidiaNames):
    """The names of NVIDIA's `radio_model`, for `RadioNetwork`."""

    model: Any
    input_conditioner: RadioInputConditioner

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer's blocks."""
        return self.model.blocks

    def change_window_size(self, window_size: int | None) -> None:
        """Refuse: only E-RADIO's windows are part of the network.

        Raises:
            ValueError: Always; it says what to do instead.
        """
        raise ValueError(
            f"Windows of {window_size!r} tokens cannot be set for a ViT, only for E-RADIO. Call the model with "
            "`window_size`, or set `config.vitdet_window_size`."
        )

    def set_optimal_window_size(self, image_dim: Sequence[int] | int) -> int:
        """Refuse: only E-RADIO's windows are part of the network.

        Raises:
            ValueError: Always; it says what to do instead.
        """
        raise ValueError(
            f"Windows for images of {image_dim!r} cannot be set for a ViT, only for E-RADIO. Call the model with "
            "`window_size='auto'`."
        )

    def make_preprocessor_external(self) -> RadioInputConditioner:
        """Return what normalizes pixels, for the caller to run; from here on the model takes normalized ones.

        The state of this model only: a folder saved from it normalizes inside again.
        """
        conditioner = self.input_conditioner
        own = OutsideConditioner(self.config).to(conditioner.norm_mean)
        own.load_state_dict(conditioner.state_dict())
        self.input_conditioner = own
        self._warned_of_pixel_range = True  # which is [0, 1] no more
        return conditioner

    def forward_intermediates(  # noqa: PLR0913
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: FeatureFormat = "NCHW",
        intermediates_only: bool = False,
        aggregation: Aggregation = "sparse",
        norm_alpha_scheme: ScaleOrder = "post-alpha",
    ) -> Any:
        """Return features after chosen blocks, as timm's method of this name does; arguments are those of NVIDIA's.

        Args:
            x: RGB images in [0, 1], `(batch, channels, height, width)`.
            indices: 0-based blocks, negative ones from the last, returned in ascending order; or how many of the last;
                `None` is all.
            return_prefix_tokens: Return pairs `(summary, features)` instead of features alone.
            norm: Apply the final norm, where the network has one, to each of them and to the final output.
            stop_early: Take the last of the chosen blocks as the final one.
            output_fmt: "NCHW" for maps, "NLC" for token sequences.
            intermediates_only: Return the list alone.
            aggregation: "sparse" takes each block's own output; "dense" averages all since the previous index.
            norm_alpha_scheme: With normalizers of intermediate features, scale the mean of a dense group
                ("post-alpha"), or each block before ("pre-alpha"), or leave them out ("none").

        Returns:
            The final output, a pair or by adaptor as with `return_dict=False`, and a list with one entry for each
            chosen block.

        Raises:
            ValueError: If an index is no block or an option is unknown; otherwise as `RadioModel.forward`.
        """
        check_feature_format(output_fmt, is_packed=False, argument="output_fmt")
        check_choice("aggregation", aggregation, get_args(Aggregation))
        check_choice("norm_alpha_scheme", norm_alpha_scheme, get_args(ScaleOrder))
        depth = self.config.num_hidden_layers
        blocks = _chosen_blocks(indices, depth)
        groups = group_blocks(blocks, aggregation)
        self._check_merged(groups, norm=norm, stop_early=stop_early)
        last = blocks[-1] if stop_early else depth - 1
        network: Any = self
        passed = network(x, keep={last, *(block for group in groups for block in group)}, output_hidden_states=False)
        final_norm = self.model.norm if norm else nn.Identity()
        outputs: list[Any] = []
        for group in groups:
            tokens = final_norm(network.average_blocks(passed, group, norm_alpha_scheme))
            as_map = output_fmt == "NCHW"
            features = network.block_map(tokens, passed.grid, group[-1]) if as_map else network.patch_features(tokens)
            outputs.append(RadioPair(network.summarize(tokens), features) if return_prefix_tokens else features)
        if intermediates_only:
            return outputs
        if passed.encoded is None:  # else the final output is the decoder's
            passed = passed._replace(tokens=final_norm(passed.kept[last]))
        names = [name for name in self.config.adaptor_names or [] if name in network.adaptors]  # a backbone has none
        return network.read_out(passed, names, output_fmt).to_pairs(), outputs

    def _check_merged(self, groups: Sequence[Sequence[int]], *, norm: bool, stop_early: bool) -> None:
        """Refuse options that ask of RADIO1D's narrow or coarse blocks what only its last ones are made for."""
        check_widths(self.config, groups)
        for name, value in (("norm", norm), ("stop_early", stop_early)):
            if value and self.config.num_mergings:
                raise ValueError(f"`{name}` must be False with `downscale_levels`, got True.")


class NvidiaModelNames(NvidiaNames):
    """The same names on a model, which asks its `radio_model`."""

    radio_model: Any

    @property
    def adaptors(self) -> nn.ModuleDict:
        """The adaptors that were built, by name."""
        return self.radio_model.adaptors

    @property
    def input_conditioner(self) -> RadioInputConditioner:
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

    def make_preprocessor_external(self) -> RadioInputConditioner:
        """Return what normalizes pixels, for the caller to run; see `NvidiaNetworkNames`."""
        return self.radio_model.make_preprocessor_external()

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return features after chosen blocks; see `NvidiaNetworkNames`."""
        return self.radio_model.forward_intermediates(x, *args, **kwargs)


def _chosen_blocks(indices: int | Sequence[int] | None, depth: int) -> list[int]:
    """Return the 0-based blocks that `forward_intermediates` was asked for, ascending."""
    if indices is None or isinstance(indices, int):
        optional(COUNT).check("indices", indices)
        blocks = list(range(0 if indices is None else depth - indices, depth))
    else:
        blocks = sorted(set(count_from_first(indices, depth)))
    check_blocks("indices", blocks, depth)
    return blocks
