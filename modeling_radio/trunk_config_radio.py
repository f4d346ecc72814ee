"""Fields of the configuration that shape the trunk: pixels, tokens, blocks, and the windows of ViTDet mode."""

from dataclasses import dataclass
from typing import Any

from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from .config_checks_radio import LARGEST
from .releases_radio import mlp_ratio_for
from .resolution_radio import round_to_step


@dataclass(kw_only=True, repr=False, eq=False)
class TrunkFields:
    """Shape of the transformer.

    Attributes:
        hidden_size: Width of the tokens.
        num_hidden_layers: Number of transformer blocks.
        num_attention_heads: Attention heads per block.
        intermediate_size: Hidden width of the MLP, before SwiGLU's two thirds; 0 takes it from `mlp_ratio`.
        mlp_ratio: The same divided by `hidden_size`, as native transformers wants it; 0 takes it from
            `intermediate_size`, and where that is 0 too it is 4. Once built, a configuration has the smallest number
            whose product with `hidden_size` truncates to `intermediate_size`.
        hidden_act: Activation of the MLP.
        layer_norm_eps: Epsilon of every layer norm.
        attention_probs_dropout_prob: Dropout on attention probabilities in training.
        hidden_dropout_prob: Unused, kept for the native config.
        drop_path_rate: Stochastic depth of the last block in training; it grows linearly from 0 at the first.
        use_swiglu_ffn: SwiGLU instead of the MLP (the DINOv2-shaped g models).
        qkv_bias: Bias in the query, key and value projections.
        use_layer_scale: Learned per-channel scale on each residual branch. Native RADIO does not know its key, so
            converted checkpoints have it folded into the linear layers.
        layerscale_value: Start value of LayerScale where `use_layer_scale`. Native RADIO scales by it in any case.
        use_patch_bias: Bias in the patch projection (the DINOv2-shaped g models).
        use_final_norm: Layer norm after the last block (the DINOv2-shaped g models).
        num_channels: Channels of the image.
        patch_size: Side of a square patch in pixels.
        image_size: Nominal image side in pixels; not a limit.
        max_img_size: Image side in pixels that the position table spans.
        max_resolution: Largest accepted image side in pixels; `None` means `max_img_size`.
        preferred_resolution: Height and width in pixels that the processor uses by default.
        norm_mean: Per-channel mean subtracted inside the model from pixels in [0, 1].
        norm_std: Per-channel standard deviation divided by inside the model.
        use_cropped_positions: Fit the position table to each grid (cropped position embeddings). Without, the table
            keeps its scale: it is cropped top-left, and resized only along a side that it does not reach.
        pos_embed_align_corners: Resize the position table with aligned corners (C-RADIOv3-B and -H).
        num_cls_tokens: Class tokens, one per distinct teacher name (one in all for the g models).
        num_registers: Register tokens after the class tokens.
        summary_idxs: Class tokens whose concatenation is the summary; `None` takes the first two. NVIDIA's files may
            also name registers, which follow after the class tokens.
        use_feature_normalizer: Rotate and shift the dense features into a standardized space.
        num_intermediate_normalizers: Layers with their own normalizer for intermediate features; 0 for none.
        intermediate_rotation_per_layer: One rotation for each of those layers instead of a shared one.
        video_temporal_patch_size: Frames that one patch of video spans, with a projection of its own; `None` has none,
            and each frame of a clip is then an image.
        initializer_range: Standard deviation of freshly initialized linear weights.
        eradio: Arguments of NVIDIA's E-RADIO, by its names (`eradio_config_radio.py`): a network of another
            architecture, whose features have `hidden_size` channels at the stride `patch_size`; its other fields here
            say nothing. `None` is the ViT that the other fields describe.
    """

    hidden_size: int = 1280
    num_hidden_layers: int = 32
    num_attention_heads: int = 16
    intermediate_size: int = 0
    mlp_ratio: float = 0.0
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    attention_probs_dropout_prob: float = 0.0
    hidden_dropout_prob: float = 0.0
    drop_path_rate: float = 0.0
    use_swiglu_ffn: bool = False
    qkv_bias: bool = True
    use_layer_scale: bool = False
    layerscale_value: float = 1.0
    use_patch_bias: bool = False
    use_final_norm: bool = False
    num_channels: int = 3
    patch_size: int = 16
    image_size: int = 224
    max_img_size: int = 2048
    max_resolution: int | None = None
    preferred_resolution: list[int] | tuple[int, int] = (512, 512)
    norm_mean: list[float] | tuple[float, ...] = tuple(OPENAI_CLIP_MEAN)
    norm_std: list[float] | tuple[float, ...] = tuple(OPENAI_CLIP_STD)
    use_cropped_positions: bool = True
    pos_embed_align_corners: bool = False
    num_cls_tokens: int = 3
    num_registers: int = 7
    summary_idxs: list[int] | None = None
    use_feature_normalizer: bool = False
    num_intermediate_normalizers: int = 0
    intermediate_rotation_per_layer: bool = False
    video_temporal_patch_size: int | None = None
    initializer_range: float = 0.02
    eradio: dict[str, Any] | None = None

    @property
    def resolution_step(self) -> int:
        """Pixels that height and width of an image must be multiples of: E-RADIO's coarsest level, else a patch."""
        return self.patch_size if self.eradio is None else 2 * self.patch_size

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the first patch: class tokens and registers."""
        return self.num_cls_tokens + self.num_registers

    @property
    def position_grid_size(self) -> int:
        """Rows (and columns) of the position table."""
        return self.max_img_size // self.patch_size

    def complete_trunk(self) -> None:
        """Fill in what follows from other fields.

        Raises:
            ValueError: If the two fields for the width of the MLP contradict each other.
        """
        width = int(self.hidden_size * (self.mlp_ratio or 4))
        if self.mlp_ratio and self.intermediate_size not in (0, width):
            raise ValueError(
                f"`intermediate_size` must be {width}, `hidden_size` {self.hidden_size} times `mlp_ratio` "
                f"{self.mlp_ratio}, got {self.intermediate_size}. Give one of the two."
            )
        width = self.intermediate_size or width
        if not 1 <= width <= LARGEST:
            raise ValueError(
                f"`mlp_ratio` times `hidden_size` ({self.hidden_size}) must be in [1, {LARGEST}], got {self.mlp_ratio}."
            )
        # Not by assignment, with which the one would follow from the other.
        vars(self).update(intermediate_size=width, mlp_ratio=mlp_ratio_for(width, self.hidden_size))
        if self.summary_idxs is None:
            self.summary_idxs = list(range(min(2, self.num_cls_tokens)))
        self.norm_mean, self.norm_std = list(self.norm_mean), list(self.norm_std)
        self.preferred_resolution = list(self.preferred_resolution)

    def check_trunk(self) -> None:
        """Refuse a network that cannot be built.

        Raises:
            ValueError: If a field contradicts another one.
        """
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size` must be a multiple of `num_attention_heads` ({self.num_attention_heads}), got "
                f"{self.hidden_size}."
            )
        if self.max_img_size % self.patch_size:
            raise ValueError(
                f"`max_img_size` must be a multiple of `patch_size` ({self.patch_size}), got {self.max_img_size}. "
                f"The nearest is {round_to_step(self.max_img_size, self.patch_size)}."
            )
        if self.num_intermediate_normalizers not in (0, self.num_hidden_layers):
            raise ValueError(
                f"`num_intermediate_normalizers` must be 0 or `num_hidden_layers` ({self.num_hidden_layers}), one for "
                f"each block, got {self.num_intermediate_normalizers}."
            )
        self._check_pixels()
        if self.eradio is not None:
            self._check_eradio(self.eradio)

    def _check_eradio(self, arguments: dict[str, Any]) -> None:
        """Refuse what no E-RADIO has: other shapes than its arguments', temporal patches, normalizers of blocks."""
        from .eradio_config_radio import eradio_fields

        wanted = eradio_fields(arguments) | {"video_temporal_patch_size": None, "num_intermediate_normalizers": 0}
        for name, value in wanted.items():
            if getattr(self, name) != value:
                raise ValueError(f"`{name}` must be {value!r} with this `eradio`, got {getattr(self, name)!r}.")

    def _check_pixels(self) -> None:
        """Refuse sizes without a patch, and a standardization of other channels than the image has."""
        if self.max_resolution is not None and self.max_resolution < self.patch_size:
            raise ValueError(
                f"`max_resolution` must be None or at least `patch_size` ({self.patch_size}), got "
                f"{self.max_resolution}."
            )
        for name in ("norm_mean", "norm_std"):
            if len(getattr(self, name)) != self.num_channels:
                raise ValueError(
                    f"`{name}` must have `num_channels` ({self.num_channels}) numbers, got {getattr(self, name)}."
                )


@dataclass(kw_only=True, repr=False, eq=False)
class ViTDetFields(TrunkFields):
    """Windowed attention, with a few blocks of global attention in between.

    Attributes:
        vitdet_window_size: Default window in tokens for ViTDet mode; `None` is global attention.
        vitdet_num_global: Blocks with global attention in ViTDet mode, evenly spread (the last one always is). More
            than half the number of blocks makes all global, so that windows change nothing.
        vitdet_num_windowed: Windowed blocks between two global ones; overrides `vitdet_num_global`.
    """

    vitdet_window_size: int | None = None
    vitdet_num_global: int = 4
    vitdet_num_windowed: int | None = None

    @property
    def has_windowed_blocks(self) -> bool:
        """Whether ViTDet mode changes anything: in a network that is too shallow every block attends globally."""
        return len(self.global_blocks) < self.num_hidden_layers

    @property
    def global_blocks(self) -> list[int]:
        """Blocks that attend globally in ViTDet mode, ascending."""
        return [index for index in range(self.num_hidden_layers) if self.is_global_block(index)]

    def is_global_block(self, index: int) -> bool:
        """Whether block `index` (0-based) attends globally in ViTDet mode (C-RADIOv4 3.2).

        The blocks are cut into periods whose last block is global; the very last block always is.
        """
        if self.vitdet_num_windowed is not None:
            period = self.vitdet_num_windowed + 1
        else:
            period = max(self.num_hidden_layers // self.vitdet_num_global, 1)
        return index % period == period - 1 or index == self.num_hidden_layers - 1
