"""RADIO vision backbones with their teacher adaptors.

What differs from a plain ViT:
- pixels come in [0, 1] and are normalised inside; the processor never normalises;
- one class token per teacher, then registers; the summary concatenates the class tokens of teachers that have one;
- positions are a table that is cropped at random in training and resized in evaluation, so any size works;
- ViTDet windows are chosen per call, over any grid, and prefix tokens sit out the windowed blocks;
- adaptors map summary and features into each teacher's space.

Modules carry NVIDIA's checkpoint names, so that nothing is renamed on load or save.
"""

import math
import re
import shutil
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils.generic import ModelOutput

from .adaptors_radio import RadioAdaptor, RadioAdaptorOutput
from .configuration_radio import RadioConfig, did_you_mean
from .embeddings_radio import POSITION_DRAWS, RadioInputConditioner, RadioPatchGenerator, RadioPrefixTokens
from .encoder_radio import PATH_DRAWS, RadioLayerScale, RadioVisionTransformer
from .normalizers_radio import RadioFeatureNormalizer, RadioIntermediateNormalizer
from .packing_radio import ImagePack
from .peft_radio import check_adapter_versions, check_adapter_weights, find_adapter_base
from .window_choice_radio import (
    WINDOW_SIZES,
    BlockCost,
    WindowChoice,
    calibrate,
    check_window_size,
    choose_within,
    choose_without_budget,
    predict,
)
from .windows_radio import AttentionLayout


FeatureFormat = Literal["NLC", "NCHW"]


class Resolution(NamedTuple):
    """An image size in pixels."""

    height: int
    width: int


def nearest_resolution(config: RadioConfig, height: int, width: int) -> Resolution:
    """Return the valid size nearest to `height` x `width` pixels."""
    step = config.patch_size
    largest = (config.max_resolution or config.max_img_size) // step * step
    return Resolution(*(min(max(int(size / step + 0.5), 1) * step, largest) for size in (height, width)))


@dataclass
class RadioModelOutput(ModelOutput):
    """Output of `RadioModel`.

    Attributes:
        summary: Class tokens of the teachers with a summary, `(batch, num_summaries * hidden_size)`.
        features: Patch tokens, `(batch, rows * cols, hidden_size)`, or `(batch, hidden_size, rows, cols)` in the
            "NCHW" format.
        last_hidden_state: All tokens, prefix first, `(batch, num_prefix_tokens + rows * cols, hidden_size)`.
        hidden_states: On request the embeddings and each block's output, shaped like `last_hidden_state`.
        attentions: On request each block's weights, `(batch, heads, length, length)`; needs eager attention.
        pooler_output: The summary again, under the name that pipelines look for.
        adaptors: By adaptor name, its `RadioAdaptorOutput`.
    """

    summary: Tensor | None = None
    features: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    pooler_output: Tensor | None = None
    adaptors: dict[str, RadioAdaptorOutput] | None = None

    def __post_init__(self) -> None:
        # transformers' pipelines take a batch apart by indexing every item, but pass over the items of nested outputs.
        # An empty one does not survive that, so it is an attribute alone.
        if self.adaptors:
            self.adaptors = ModelOutput(self.adaptors)
        super().__post_init__()
        if not self.adaptors:
            OrderedDict.pop(self, "adaptors", None)


@dataclass
class RadioIntermediateOutput(ModelOutput):
    """Summary and features after one block, shaped as in `RadioModelOutput`."""

    summary: Tensor | None = None
    features: Tensor | None = None


class RadioNetwork(nn.Module):
    """Everything with weights: conditioner, transformer, adaptors, normalisers.

    `RadioModel` and the task models all hold one as `radio_model`, so that their backbone weights have equal keys.
    """

    def __init__(self, config: RadioConfig, use_adaptors: bool = True) -> None:
        super().__init__()
        self.config = config
        self.input_conditioner = RadioInputConditioner(config)
        self.model = RadioVisionTransformer(config)
        self.adaptors = nn.ModuleDict()
        for adaptor in config.adaptor_configs if use_adaptors else []:
            self.adaptors[adaptor.name] = RadioAdaptor(config, adaptor)
        self.feature_normalizer = RadioFeatureNormalizer(config) if config.use_feature_normalizer else None
        self.inter_feature_normalizer = (
            RadioIntermediateNormalizer(config) if config.num_intermediate_normalizers else None
        )
        self.register_buffer("summary_idxs", torch.empty(len(config.summary_idxs or []), dtype=torch.long))

    def grid(self, pixel_values: Tensor) -> Resolution:
        """Return the rows and columns of patches of a batch of images."""
        return Resolution(*(size // self.config.patch_size for size in pixel_values.shape[-2:]))

    def embed(
        self, pixel_values: Tensor, window_size: int | None, draws: Tensor | None = None
    ) -> tuple[Tensor, AttentionLayout]:
        """Return the tokens `(batch, length, hidden)` of a batch of images, and which of them attend to each other."""
        hidden_states = self.model.patch_generator(self.input_conditioner(pixel_values), draws)
        rows, cols = self.grid(pixel_values)
        layout = AttentionLayout.for_grid(rows, cols, self.config.num_prefix_tokens, window_size, hidden_states.device)
        return hidden_states, layout

    def embed_packed(self, patches: Tensor, pack: ImagePack) -> Tensor:
        """Return the tokens `(1, length, hidden)` of flattened patches in the order of `pack`."""
        size = self.config.patch_size
        patches = self.input_conditioner(patches.view(-1, self.config.num_channels, size, size)).flatten(1)
        tokens = [
            self.model.patch_generator.embed_patches(group_patches, group.rows, group.cols).flatten(0, 1)
            for group, group_patches in zip(pack.groups, pack.group_patches(patches), strict=True)
        ]
        return torch.cat(tokens).unsqueeze(0)

    def summarize(self, hidden_states: Tensor) -> Tensor:
        """Concatenate the class tokens that make up the summary, `(batch, num_summaries * hidden)`."""
        return hidden_states[:, self.summary_idxs].flatten(1)

    def patch_features(self, hidden_states: Tensor) -> Tensor:
        """Return the patch tokens, `(batch, rows * cols, hidden)`."""
        return hidden_states[:, self.config.num_prefix_tokens :]


def copy_source_files(folder: str | Path) -> None:
    """Copy into a folder the source files that `trust_remote_code` runs."""
    for source in Path(__file__).parent.glob("*_radio.py"):
        shutil.copyfile(source, Path(folder) / source.name)


class RadioPreTrainedModel(PreTrainedModel):
    """Weight initialisation, saving and the conventions of transformers."""

    config_class = RadioConfig
    config: RadioConfig  # pyrefly: ignore[bad-override-mutable-attribute]
    base_model_prefix = "radio_model"
    main_input_name = "pixel_values"
    input_modalities = "image"
    supports_gradient_checkpointing = True
    _no_split_modules = ["RadioBlock", "RadioPatchGenerator"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # timm's own register tokens, replaced by those of the patch generator, remain in some published files; a text tower
    # is for the zero-shot model alone.
    _keys_to_ignore_on_load_unexpected = [
        r"radio_model\.model\.reg_token",
        r"^text_tower\.",
        r"^logit_(scale|bias)$",
    ]

    radio_model: RadioNetwork
    _warned_of_pixel_range = False
    _block_costs: dict[tuple[str, torch.dtype, str], BlockCost] | None = None

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        config = self.config
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            init.kaiming_normal_(module.weight, mode="fan_out")
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, RadioPatchGenerator):
            init.normal_(module.pos_embed, std=config.hidden_size**-0.5)
        elif isinstance(module, RadioPrefixTokens):
            init.normal_(module.token, std=config.hidden_size**-0.5)
        elif isinstance(module, RadioLayerScale):
            init.constant_(module.grandma, config.layerscale_value)
        else:
            self._init_buffers(module)

    def _init_buffers(self, module: nn.Module) -> None:
        config = self.config
        if isinstance(module, RadioInputConditioner):
            init.copy_(module.norm_mean, torch.tensor(config.norm_mean).view(-1, 1, 1))
            init.copy_(module.norm_std, torch.tensor(config.norm_std).view(-1, 1, 1))
        elif isinstance(module, RadioNetwork):
            init.copy_(module.summary_idxs, torch.tensor(config.summary_idxs, dtype=torch.long))
        elif isinstance(module, RadioFeatureNormalizer):
            init.zeros_(module.mean)
            init.copy_(module.tx, torch.eye(config.hidden_size))
        elif isinstance(module, RadioIntermediateNormalizer):
            init.ones_(module.alphas)
            init.zeros_(module.means)
            init.copy_(module.rotation, torch.eye(config.hidden_size).expand_as(module.rotation))

    def get_input_embeddings(self) -> nn.Module:
        """Return the patch projection."""
        return self.radio_model.model.patch_generator.embedder

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Save weights and configuration, with the source files that `trust_remote_code` runs."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if Path(save_directory).is_dir():
            copy_source_files(save_directory)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path | None, *args: Any, **kwargs: Any) -> Any:
        """Open a checkpoint, or an adapter folder: then the base that it names, with its head and its adapter.

        transformers alone would look for the base's weights beside the `config.json`, which describes the head.

        Raises:
            ValueError: If the adapter is for another model or names no base that could be opened, or if peft is not
                installed or too old.
        """
        folder = Path(pretrained_model_name_or_path or "", kwargs.get("subfolder") or "")
        base = None if pretrained_model_name_or_path is None else find_adapter_base(folder)
        if base is None:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        kwargs.pop("subfolder", None)
        kwargs["config"] = kwargs.get("config") or str(folder)
        kwargs["adapter_kwargs"] = {**(kwargs.get("adapter_kwargs") or {}), "_adapter_model_path": str(folder)}
        return super().from_pretrained(base, *args, **kwargs)

    def load_adapter(  # pyrefly: ignore[bad-override]
        self, peft_model_id: str | None = None, adapter_name: str | None = None, **kwargs: Any
    ) -> Any:
        """Put a saved adapter on the model as transformers does, but refuse one that does not fit in full.

        Raises:
            ValueError: If the adapter is for another model, which is then of no use any more, or has a head that the
                installed transformers or peft does not read.
        """
        check_adapter_versions(peft_model_id, **(kwargs.get("adapter_kwargs") or {}))
        kwargs["ignore_mismatched_sizes"] = True  # reported below, together with what else differs
        loaded = super().load_adapter(peft_model_id, adapter_name, **kwargs)
        # The report also counts what the base and other adapters have.
        own = re.compile(rf"\.(lora_\w+|modules_to_save)\.{re.escape(adapter_name or 'default')}(\.|$)")
        check_adapter_weights(
            peft_model_id,
            [name for name in loaded.missing_keys if own.search(name)],
            loaded.unexpected_keys,
            loaded.mismatched_keys,
        )
        return loaded

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.config.patch_size

    @property
    def min_resolution_step(self) -> int:
        """Height and width must be multiples of this many pixels; windows of any size need no larger step."""
        return self.config.patch_size

    @property
    def max_resolution(self) -> int:
        """Largest height or width in pixels."""
        return self.config.max_resolution or self.config.max_img_size

    @property
    def preferred_resolution(self) -> Resolution:
        """The size in pixels that the processor uses by default."""
        return Resolution(*self.config.preferred_resolution)

    def get_nearest_supported_resolution(self, height: int, width: int) -> Resolution:
        """Return the valid size nearest to `height` x `width` pixels."""
        return nearest_resolution(self.config, height, width)

    def choose_window_size(
        self,
        height: int,
        width: int,
        max_latency_ms: float | None = None,
        max_memory_gib: float | None = None,
        batch_size: int = 1,
    ) -> WindowChoice:
        """Return the largest attention that fits a budget on the device that the model is on, and its predicted cost.

        Global attention is preferred, then windows from 32 tokens down to 6. The first call on a device times one
        block for a second or two; the measurement is kept for this device, dtype and attention implementation. The
        prediction covers the backbone without adaptors.

        Args:
            height: Image height in pixels, a multiple of the patch size.
            width: Image width in pixels.
            max_latency_ms: Budget for one forward pass in milliseconds.
            max_memory_gib: Budget for weights and activations without gradients, in GiB.
            batch_size: Images per call.

        Returns:
            The choice; pass it as `window_size`. Without a budget it is that of `window_size="auto"`. If nothing fits
            the budget, the fastest choice, with a warning.

        Raises:
            ValueError: If the size is no multiple of the patch size or too large.
        """
        self._check_image_size(height, width)
        rows, cols = height // self.patch_size, width // self.patch_size
        if max_latency_ms is None and max_memory_gib is None:
            window = choose_without_budget(self.config, rows, cols)
            return self.predict_window_cost(height, width, window, batch_size)
        windows = [None, *(window for window in WINDOW_SIZES if window < max(rows, cols))]
        candidates = [self.predict_window_cost(height, width, window, batch_size) for window in windows]
        choice = choose_within(candidates, max_latency_ms, max_memory_gib)
        if choice.latency_ms > (max_latency_ms or math.inf) or choice.memory_gib > (max_memory_gib or math.inf):
            warnings.warn(
                f"No window fits `max_latency_ms`={max_latency_ms}, `max_memory_gib`={max_memory_gib} at "
                f"{height} x {width} pixels; the fastest is {choice}.",
                stacklevel=2,
            )
        return choice

    def predict_window_cost(
        self, height: int, width: int, window_size: int | None, batch_size: int = 1
    ) -> WindowChoice:
        """Return what `choose_window_size` predicts for one window, `None` being global attention.

        Raises:
            ValueError: If the size is no multiple of the patch size or too large.
        """
        self._check_image_size(height, width)
        rows, cols = height // self.patch_size, width // self.patch_size
        layout = AttentionLayout.for_grid(rows, cols, self.config.num_prefix_tokens, window_size, torch.device("cpu"))
        return WindowChoice(window_size, *predict(self.radio_model.model, self._block_cost(), layout, batch_size))

    def _block_cost(self) -> BlockCost:
        key = (str(self.device), self.dtype, str(self.config._attn_implementation))
        if self._block_costs is None or key not in self._block_costs:
            self._block_costs = {**(self._block_costs or {}), key: calibrate(self.radio_model.model)}
        return self._block_costs[key]

    def encode(
        self,
        pixel_values: Tensor,
        image_grid_hw: Tensor | None = None,
        window_size: int | str | WindowChoice | None = None,
        adaptor_names: Sequence[str] | None = None,
        feature_format: FeatureFormat = "NLC",
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        draws: Tensor | None = None,
    ) -> RadioModelOutput:
        """Run backbone and adaptors; arguments and errors as in `RadioModel.forward`."""
        config, network = self.config, self.radio_model
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        if output_attentions is None:
            output_attentions = config.output_attentions
        names = self._check_adaptor_names(adaptor_names)
        self._check_feature_format(feature_format)
        keep = range(config.num_hidden_layers) if output_hidden_states else ()
        position_draws, path_draws = self._split_draws(draws, image_grid_hw, pixel_values.shape[0])
        if image_grid_hw is None:
            pack = None
            self._check_pixel_values(pixel_values)
            window = self._resolve_window_size(window_size, pixel_values)
            embedded, layout = network.embed(pixel_values, window, position_draws)
        else:
            pack = self._check_packed(pixel_values, image_grid_hw, feature_format)
            window = self._resolve_window_size(window_size, pixel_values, image_grid_hw)
            embedded, layout = network.embed_packed(pixel_values, pack), pack.layout(window, pixel_values.device)

        with self._record_attentions(output_attentions, layout) as attentions:
            hidden_states, kept = network.model(embedded, layout, keep, path_draws)

        if pack is None:
            output = self._read_out(hidden_states, network.grid(pixel_values), names, feature_format)
        else:
            output = self._read_out_packed(hidden_states, pack, names)
        if output_hidden_states:
            states = (embedded, *kept.values())
            output.hidden_states = states if pack is None else tuple(map(pack.concatenate, states))
        if output_attentions:
            output.attentions = tuple(attentions)
        return output

    def _read_out(
        self, hidden_states: Tensor, grid: Resolution, names: Sequence[str], feature_format: FeatureFormat
    ) -> RadioModelOutput:
        """Take summary, features and adaptor outputs from the final tokens of images of one grid."""
        network = self.radio_model
        features = network.patch_features(hidden_states)
        if network.feature_normalizer is not None:
            features = network.feature_normalizer(features)
        adaptors = {}
        for name in names:
            adaptor: RadioAdaptor = network.adaptors[name]  # pyrefly: ignore[bad-assignment]
            output = adaptor(hidden_states[:, : self.config.num_cls_tokens], features, *grid)
            if output.features is not None:
                fine_grid = Resolution(*(size * adaptor.upsample_factor for size in grid))
                output.features = _format_features(output.features, fine_grid, feature_format)
            adaptors[name] = output
        summary = network.summarize(hidden_states)
        return RadioModelOutput(
            summary=summary,
            features=_format_features(features, grid, feature_format),
            last_hidden_state=hidden_states,
            pooler_output=summary,
            adaptors=adaptors,
        )

    def _read_out_packed(self, hidden_states: Tensor, pack: ImagePack, names: Sequence[str]) -> RadioModelOutput:
        """Read out each group of equal grids, then bring the images back into the order of the call."""
        outputs = [
            self._read_out(tokens, Resolution(group.rows, group.cols), names, "NLC")
            for group, tokens in zip(pack.groups, pack.group_sequence(hidden_states), strict=True)
        ]

        def per_image(tensors: list[Tensor | None], join: Callable[[list[Tensor]], Tensor]) -> Tensor | None:
            present = [tensor for tensor in tensors if tensor is not None]
            return join(pack.ungroup(present)) if present else None

        adaptors = {}
        for name in names:
            predicted = [output.adaptors[name] for output in outputs if output.adaptors is not None]
            adaptors[name] = RadioAdaptorOutput(
                summary=per_image([one.summary for one in predicted], torch.stack),
                features=per_image([one.features for one in predicted], torch.cat),
            )
        summary = per_image([output.summary for output in outputs], torch.stack)
        return RadioModelOutput(
            summary=summary,
            features=per_image([output.features for output in outputs], torch.cat),
            last_hidden_state=pack.concatenate(hidden_states),
            pooler_output=summary,
            adaptors=adaptors,
        )

    @contextmanager
    def _record_attentions(self, wanted: bool | None, layout: AttentionLayout) -> Iterator[list[Tensor]]:
        """Collect the attention weights of every block that runs inside."""
        recorded: list[Tensor] = []
        if not wanted:
            yield recorded
            return
        if layout.window_order is not None:
            raise ValueError("`output_attentions` needs global attention: pass `window_size='global'`.")
        if self.config._attn_implementation != "eager":
            raise ValueError(
                f"`output_attentions` needs `attn_implementation='eager'`, got {self.config._attn_implementation!r}."
            )

        def record(_module: nn.Module, _args: Any, output: tuple[Tensor, list[Tensor]]) -> None:
            recorded.extend(output[1])

        hooks = [block.attn.register_forward_hook(record) for block in self.radio_model.model.blocks]  # pyrefly: ignore[missing-attribute]
        try:
            yield recorded
        finally:
            for hook in hooks:
                hook.remove()

    def _resolve_window_size(
        self, window_size: int | str | WindowChoice | None, pixel_values: Tensor, image_grid_hw: Tensor | None = None
    ) -> int | None:
        """Return the window in tokens, or `None` for global attention."""
        if window_size is None:
            return self.config.vitdet_window_size
        if isinstance(window_size, WindowChoice):
            return window_size.window_size
        check_window_size(window_size)
        if window_size == "global":
            return None
        if window_size == "auto":
            grids = [self.radio_model.grid(pixel_values)] if image_grid_hw is None else image_grid_hw.tolist()
            return choose_without_budget(self.config, *max(grids, key=lambda grid: grid[0] * grid[1]))
        return int(window_size)

    @property
    def num_draws(self) -> int:
        """Random numbers that decide what of one image's training pass is random: position crop and dropped paths."""
        return POSITION_DRAWS + PATH_DRAWS * self.config.num_hidden_layers

    def _split_draws(
        self, draws: Tensor | None, image_grid_hw: Tensor | None, batch_size: int
    ) -> tuple[Tensor, Tensor] | tuple[None, None]:
        if draws is None:
            return None, None
        if image_grid_hw is not None:
            raise ValueError("`draws` must be None with `image_grid_hw`: packed images share one sequence.")
        if draws.shape != (batch_size, self.num_draws):
            raise ValueError(f"`draws` must have the shape {(batch_size, self.num_draws)}, got {tuple(draws.shape)}.")
        return draws[:, :POSITION_DRAWS], draws[:, POSITION_DRAWS:]

    def _check_adaptor_names(self, names: Sequence[str] | None) -> Sequence[str]:
        if names is None:
            return self.config.adaptor_names or []
        known = list(self.radio_model.adaptors)
        for name in names:
            if name not in known:
                hint = did_you_mean(name, known)
                raise ValueError(f"Unknown adaptor {name!r} in `adaptor_names`.{hint} This model has {known}.")
        return names

    def _check_feature_format(self, feature_format: str) -> None:
        if feature_format not in ("NLC", "NCHW"):
            raise ValueError(f"`feature_format` must be 'NLC' or 'NCHW', got {feature_format!r}.")

    def _check_pixel_values(self, pixel_values: Tensor) -> None:
        if pixel_values.ndim != 4:
            raise ValueError(
                f"`pixel_values` must have the shape (batch, channels, height, width), got {tuple(pixel_values.shape)}."
            )
        channels, height, width = pixel_values.shape[1:]
        if channels != self.config.num_channels:
            raise ValueError(f"`pixel_values` must have {self.config.num_channels} channels, got {channels}.")
        if not pixel_values.is_floating_point():
            raise ValueError(
                f"`pixel_values` must be floating point in [0, 1], got {pixel_values.dtype}: divide by 255 or use the "
                "image processor."
            )
        self._check_image_size(height, width)
        if not self._warned_of_pixel_range and not torch.compiler.is_compiling():
            self._check_pixel_range(pixel_values)

    def _check_image_size(self, height: int, width: int) -> None:
        step, largest = self.min_resolution_step, self.max_resolution
        if height % step or width % step or not height or not width or max(height, width) > largest:
            nearest = self.get_nearest_supported_resolution(height, width)
            raise ValueError(
                f"Images of {height} x {width} pixels: height and width must be multiples of {step} up to {largest}; "
                f"the nearest valid size is {nearest.height} x {nearest.width}."
            )

    def _check_packed(self, patches: Tensor, image_grid_hw: Tensor, feature_format: FeatureFormat) -> ImagePack:
        patch_dim = self.config.num_channels * self.patch_size**2
        if feature_format != "NLC":
            raise ValueError("`feature_format` must be 'NLC' with `image_grid_hw`: packed images have no common grid.")
        if image_grid_hw.ndim != 2 or image_grid_hw.shape[1] != 2 or not len(image_grid_hw):
            raise ValueError(f"`image_grid_hw` must have the shape (num_images, 2), got {tuple(image_grid_hw.shape)}.")
        pack = ImagePack(image_grid_hw, self.config.num_prefix_tokens)
        total = sum(rows * cols for rows, cols in pack.grids)
        if patches.shape != (total, patch_dim):
            raise ValueError(
                f"`pixel_values` must have the shape ({total}, {patch_dim}) for this `image_grid_hw`, got "
                f"{tuple(patches.shape)}."
            )
        largest = self.max_resolution // self.patch_size
        if any(not 1 <= size <= largest for grid in pack.grids for size in grid):
            raise ValueError(f"`image_grid_hw` must lie in [1, {largest}] patches, got {pack.grids}.")
        return pack

    def _check_pixel_range(self, pixel_values: Tensor) -> None:
        """Warn once if images look normalised or in [0, 255].

        A sample of the pixels tells; only on the CPU, since elsewhere looking at values would wait for the device.
        """
        if pixel_values.device.type != "cpu" or not pixel_values.numel():
            return
        low, high = (bound.item() for bound in pixel_values.detach()[..., ::4, ::4].aminmax())
        if low < -0.5 or high > 1.5:  # our choice: resampling overshoots [0, 1] by far less
            self._warned_of_pixel_range = True
            warnings.warn(
                f"`pixel_values` lie in [{low:.2f}, {high:.2f}], far outside [0, 1]. The model normalises inside: pass "
                "RGB divided by 255 and nothing more.",
                stacklevel=3,
            )


class RadioModel(RadioPreTrainedModel):
    """A RADIO backbone with its adaptors; see `forward`.

    Examples:
        >>> config = RadioConfig.from_preset("radio-test")
        >>> out = RadioModel(config).eval()(torch.rand(1, 3, 64, 96))
        >>> out.summary.shape, out.features.shape
        (torch.Size([1, 64]), torch.Size([1, 24, 32]))
    """

    def __init__(self, config: RadioConfig) -> None:
        # A folder saved from here holds no text tower, so its configuration must not promise one.
        super().__init__(config if config.text_tower is None else config.without_text_tower())
        self.radio_model = RadioNetwork(self.config)
        self.post_init()

    def forward(  # noqa: PLR0913
        self,
        pixel_values: Tensor,
        image_grid_hw: Tensor | None = None,
        window_size: int | str | WindowChoice | None = None,
        adaptor_names: Sequence[str] | None = None,
        feature_format: FeatureFormat = "NLC",
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        pixel_mask: Tensor | None = None,
        draws: Tensor | None = None,
    ) -> RadioModelOutput | tuple:
        """Encode images.

        Args:
            pixel_values: RGB images in [0, 1], `(batch, channels, height, width)`; height and width are multiples of
                the patch size. With `image_grid_hw` instead the patches of images of different sizes, one image after
                the other, `(total_patches, channels * patch_size**2)`, each patch channel-major.
            image_grid_hw: Rows and columns of patches of each packed image, `(num_images, 2)`. Results equal those of
                one image at a time; summaries are `(num_images, ...)`, everything else is concatenated along tokens.
            window_size: Side of the ViTDet windows in tokens; `None` takes `config.vitdet_window_size`, `"global"`
                turns windows off, `"auto"` stays global while attention is a small share of the work and otherwise
                takes the largest window that removes most of it. A `WindowChoice` is taken as it is.
            adaptor_names: Adaptors to run; `None` takes `config.adaptor_names`, `[]` runs none.
            feature_format: "NLC" for token sequences, "NCHW" for maps.
            output_hidden_states: Also return every block's output.
            output_attentions: Also return attention weights (eager attention only).
            return_dict: `False` returns a tuple of the fields that are not `None`.
            pixel_mask: What `RadioImageProcessor` returns with `do_pad=True`, accepted so that `model(**inputs)` works.
                It changes nothing: the model sees the padding as grey image.
            draws: Uniform numbers in [0, 1), `(batch, model.num_draws)`, that decide each image's position crop and
                dropped paths in training, so that an image trains the same in whatever batch it is; `None` takes them
                from torch's generator.

        Returns:
            `RadioModelOutput`.

        Raises:
            ValueError: If the size is no multiple of the patch size or too large, the channels or the dtype are
                wrong, or an adaptor or window is unknown.
        """
        output = self.encode(
            pixel_values,
            image_grid_hw=image_grid_hw,
            window_size=window_size,
            adaptor_names=adaptor_names,
            feature_format=feature_format,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            draws=draws,
        )
        return output if return_dict is not False else output.to_tuple()

    def get_intermediate_features(
        self,
        pixel_values: Tensor,
        indices: Sequence[int],
        aggregation: Literal["sparse", "dense"] = "sparse",
        feature_format: FeatureFormat = "NCHW",
        window_size: int | str | WindowChoice | None = None,
    ) -> list[RadioIntermediateOutput]:
        """Return summary and features after chosen blocks.

        Args:
            pixel_values: As in `forward`.
            indices: 0-based blocks in ascending order; negative ones count from the last.
            aggregation: "sparse" takes each block's own output; "dense" averages the outputs of all blocks since the
                previous index.
            feature_format: "NCHW" for maps, "NLC" for token sequences.
            window_size: As in `forward`.

        Returns:
            One `RadioIntermediateOutput` per index, features `(batch, hidden_size, rows, cols)`.

        Raises:
            ValueError: If an index is no block or they do not ascend; otherwise as `forward`.
        """
        network = self.radio_model
        blocks = self._check_block_indices(indices)
        if aggregation not in ("sparse", "dense"):
            raise ValueError(f"`aggregation` must be 'sparse' or 'dense', got {aggregation!r}.")
        self._check_feature_format(feature_format)
        self._check_pixel_values(pixel_values)
        embedded, layout = network.embed(pixel_values, self._resolve_window_size(window_size, pixel_values))
        grid = network.grid(pixel_values)
        keep = range(blocks[-1] + 1) if aggregation == "dense" else blocks
        _, kept = network.model(embedded, layout, keep)
        outputs, start = [], 0
        for block in blocks:
            group = range(start, block + 1) if aggregation == "dense" else (block,)
            start = block + 1
            outputs.append(self._aggregate_blocks([(i, kept[i]) for i in group], grid, feature_format))
        return outputs

    def _aggregate_blocks(
        self, blocks: list[tuple[int, Tensor]], grid: Resolution, feature_format: FeatureFormat
    ) -> RadioIntermediateOutput:
        """Average the outputs of some blocks, then standardise where the checkpoint has normalisers."""
        network = self.radio_model
        hidden_states = torch.stack([output for _, output in blocks]).mean(dim=0)
        features = network.patch_features(hidden_states)
        if network.inter_feature_normalizer is not None:
            features = network.inter_feature_normalizer(features, [index for index, _ in blocks])
        return RadioIntermediateOutput(
            summary=network.summarize(hidden_states),
            features=_format_features(features, grid, feature_format),
        )

    def _check_block_indices(self, indices: Sequence[int]) -> list[int]:
        depth = self.config.num_hidden_layers
        blocks = [index + depth if index < 0 else index for index in indices]
        if not blocks or any(not 0 <= block < depth for block in blocks) or blocks != sorted(set(blocks)):
            raise ValueError(f"`indices` must be ascending blocks in [0, {depth}), got {list(indices)}.")
        return blocks


def _format_features(features: Tensor, grid: Resolution, feature_format: FeatureFormat) -> Tensor:
    """Turn `(batch, rows * cols, dim)` into `(batch, dim, rows, cols)` where maps are wanted."""
    if feature_format == "NLC":
        return features
    return features.transpose(1, 2).unflatten(2, tuple(grid))
