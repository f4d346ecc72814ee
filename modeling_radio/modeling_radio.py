"""RADIO vision backbones with their teacher adaptors.

What differs from a plain ViT:
- pixels come in [0, 1] and are normalized inside; the processor never normalizes;
- one class token per teacher, then registers; the summary concatenates the class tokens of teachers that have one;
- positions are a table that is cropped at random in training and resized in evaluation, so any size works;
- ViTDet windows are chosen per call, over any grid, and prefix tokens sit out the windowed blocks;
- adaptors map summary and features into each teacher's space.

Modules carry NVIDIA's checkpoint names, so that nothing is renamed on load or save.
"""

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils.generic import TransformersKwargs
from transformers.utils.loading_report import LoadStateDictInfo

from .call_arguments_radio import check_call_arguments
from .configuration_radio import RadioConfig
from .embeddings_radio import RadioInputConditioner, RadioLearnedTokens
from .encoder_radio import RadioLayerScale
from .inputs_radio import check_feature_format, check_names, count_draws, count_from_first
from .intermediate_radio import Aggregation, average_blocks, check_widths, group_blocks
from .messages_radio import check_blocks, check_choice
from .network_radio import SUMMARY_TOKENS, RadioNetwork
from .normalizers_radio import RadioFeatureNormalizer, RadioIntermediateNormalizer
from .nvidia_folder_radio import UNUSED_KEYS, arguments_for_video, check_loaded, opening_arguments
from .nvidia_interface_radio import NvidiaInterface, build_network
from .opening_radio import garbage_collection_paused
from .outputs_radio import FeatureFormat, RadioIntermediateOutput, RadioModelOutput, RadioPair
from .peft_radio import (
    ODD_VALUES,
    check_adapter_versions,
    check_adapter_weights,
    config_of_hub_adapter,
    find_adapter_base,
    source_of_weights,
)
from .readout_radio import read_out
from .requested_outputs_radio import StatesWanted
from .window_choice_radio import WindowBudget, WindowSize


if TYPE_CHECKING:
    from .radio1d_radio import TokensWanted

# A text tower is for the zero-shot model alone.
IGNORED_KEYS = [UNUSED_KEYS, r"^text_tower\.", r"^logit_(scale|bias)$"]
# Classes of modules that join tensors of different parts of theirs, which must lie on one device.
WHOLE_PARTS = [
    "RadioBlock",
    "RadioPatchGenerator",
    "RadioMerging",
    "Radio1dDecoder",
    "RadioHeadMLP",
    "EradioConvolutions",
    "EradioAttentionBlock",
    "EradioNeck",
]


def _keep_packing(model: nn.Module) -> None:
    """Let bitsandbytes leave 4-bit weights in the order in which they are stored.

    On CPUs with AVX512-BF16 it packs them anew in their first pass in evaluation, and what it makes of them again where
    they are saved, or `state_dict` is read, are other weights (bitsandbytes 0.50, scales of a row with several blocks).
    """
    for module in model.modules():
        if "support_avx512bf16_for_cpu" in vars(module):
            module.support_avx512bf16_for_cpu = False  # pyrefly: ignore[bad-argument-type]


def _model_of(opened: Any) -> Any:
    """Return the model of what `from_pretrained` returned, which may be a model and a report."""
    return opened[0] if isinstance(opened, tuple) else opened


class RadioPreTrainedModel(WindowBudget, NvidiaInterface, PreTrainedModel):
    """Weight initialization, saving and the conventions of transformers."""

    config_class = RadioConfig
    config: RadioConfig  # pyrefly: ignore[bad-override-mutable-attribute]
    base_model_prefix = "radio_model"
    main_input_name = "pixel_values"
    input_modalities = "image"
    supports_gradient_checkpointing = True
    _no_split_modules = WHOLE_PARTS
    # accelerate lists no buffer of a module that it splits, and this one is not computed with.
    _no_placement_params = [SUMMARY_TOKENS]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keys_to_ignore_on_load_unexpected = IGNORED_KEYS

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Build models outside of `torch.inference_mode`: its tensors could not be trained or moved later."""
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = torch.inference_mode(mode=False)(cls.__init__)

    def __init__(self, config: RadioConfig, *args: Any, **kwargs: Any) -> None:
        config = RadioConfig.of(config)
        config.check()  # fields may have been set since it was built
        super().__init__(self.kept_of(config), *args, **kwargs)

    @staticmethod
    def kept_of(config: RadioConfig) -> RadioConfig:
        """Return the configuration of what a model of this class keeps of a folder: it must promise nothing else."""
        return config

    def post_init(self) -> None:
        """Finish building, as every model does at the end of its `__init__`."""
        super().post_init()
        # accelerate takes each of these names for that of a module that is there.
        present = {type(module).__name__ for module in self.modules()}
        self._no_split_modules = present.intersection(self._no_split_modules or ())

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
        elif isinstance(module, nn.BatchNorm2d):
            super()._init_weights(module)
        elif isinstance(module, RadioLearnedTokens):
            for tokens in module.parameters(recurse=False):
                init.normal_(tokens, std=tokens.shape[-1] ** -0.5)
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

    @property
    def base_model(self) -> "RadioModel":
        """RADIO without a head: a new `RadioModel` around the same network.

        Weights are shared, so freezing, saving and calling it do what they say. Hooks on this model's own pass belong
        on `radio_model`.
        """
        has_adaptors = len(self.radio_model.adaptors) > 0
        config = self.config if has_adaptors else self.config.without_adaptors()
        with torch.device("meta"):
            base = RadioModel(copy.deepcopy(config))
        base.radio_model, base.training = self.radio_model, self.radio_model.training
        return base

    def get_input_embeddings(self) -> nn.Module:
        """Return the patch projection."""
        return self.radio_model.input_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put another patch projection in place, from `(..., channels * patch_size**2)` to `(..., hidden_size)`."""
        self.radio_model.replace_input_embeddings(value)

    @classmethod
    @torch.inference_mode(mode=False)
    @garbage_collection_paused()
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path | None, *args: Any, **kwargs: Any) -> Any:
        """Open a checkpoint, or an adapter: then the base that it names, with its head and its adapter.

        transformers alone would look for the base's weights beside a local adapter's `config.json`, which describes the
        head, and for one of the Hub would not read that file.

        Raises:
            ValueError: If the adapter is for another model or names no base that could be opened, or if peft is not
                installed or too old.
        """
        folder = Path(pretrained_model_name_or_path or "", kwargs.get("subfolder") or "")
        base = None if pretrained_model_name_or_path is None else find_adapter_base(folder)
        if base is None:
            if pretrained_model_name_or_path is not None:
                own = config_of_hub_adapter(RadioConfig, pretrained_model_name_or_path, kwargs)
                kwargs |= {} if own is None else {"config": own}
            opened = cls._open_folder(pretrained_model_name_or_path, *args, **kwargs)
        else:
            kwargs.pop("subfolder", None)
            kwargs["config"] = kwargs.get("config") or str(folder)
            kwargs["adapter_kwargs"] = {**(kwargs.get("adapter_kwargs") or {}), "_adapter_model_path": str(folder)}
            try:
                opened = cls._open_folder(base, *args, **kwargs)
            except RuntimeError as error:
                if "ignore_mismatched_sizes" not in str(error):  # which transformers says where weights do not fit
                    raise
                raise ValueError(
                    f"The adapter in {str(folder)!r} is for another model: the weights of its base, {base!r}, do not "
                    "fit the adapter's `config.json`."
                ) from error
        model = _model_of(opened)
        vars(model).pop("_loaded", None)
        _keep_packing(model)
        return opened

    @classmethod
    def _open_folder(cls, folder: str | Path | None, *args: Any, **kwargs: Any) -> Any:
        """Open a checkpoint; what transformers, peft and safetensors raise on damaged files is a `ValueError`."""
        try:
            return cls._open_checked(folder, *args, **kwargs)
        except SafetensorError as error:
            raise ValueError(f"The weights in {str(folder)!r} are damaged: {error}.") from error
        except (*ODD_VALUES, StrictDataclassError) as error:
            given = [*kwargs, *(kwargs.get("adapter_kwargs") or ())]
            if any(f"'{name}'" in str(error) for name in given):  # the caller's own mistake
                raise
            raise ValueError(
                f"`config.json` and `adapter_config.json` must hold what transformers and peft take, got "
                f"{type(error).__name__} from those of {str(folder)!r}: {error}"
            ) from error

    @classmethod
    def _open_checked(cls, folder: str | Path | None, *args: Any, **kwargs: Any) -> Any:
        """Open a checkpoint as transformers does; one in NVIDIA's layout by what its weights tell, and only in full."""
        source = None if folder is None else source_of_weights(folder, kwargs)
        opening = None if source is None else opening_arguments(source, kwargs)
        if opening is None:
            kwargs = kwargs if source is None else arguments_for_video(source, kwargs)
            return super().from_pretrained(folder, *args, **kwargs)
        opened = super().from_pretrained(folder, *args, **opening)
        model = _model_of(opened)
        check_loaded(model.config, model._loaded)
        model._weight_conversions = []  # transformers would save the weights under NVIDIA's keys, but our configuration
        return opened

    def _adjust_missing_and_unexpected_keys(self, loading_info: LoadStateDictInfo) -> None:
        """Keep the report of a folder's weights: where an adapter comes with them, transformers returns only its."""
        super()._adjust_missing_and_unexpected_keys(loading_info)
        self._loaded = loading_info.to_dict()

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
    def accepts_loss_kwargs(self) -> bool:
        """Whether `Trainer` gives `num_items_in_batch`: our losses are means over their batch, but for one head."""
        return False

    @property
    def num_draws(self) -> int:
        """Random numbers that decide what of one image's training pass is random: position crop and dropped paths."""
        return count_draws(self.config)


class RadioModel(RadioPreTrainedModel):
    """A RADIO backbone with its adaptors; see `forward`.

    Examples:
        >>> config = RadioConfig.from_preset("radio-test")
        >>> out = RadioModel(config).eval()(torch.rand(1, 3, 64, 96))
        >>> out.summary.shape, out.features.shape
        (torch.Size([1, 64]), torch.Size([1, 24, 32]))
    """

    def __init__(self, config: RadioConfig) -> None:
        super().__init__(config)
        self.radio_model = build_network(self.config)
        self.post_init()

    @property
    def base_model(self) -> "RadioModel":
        """This model."""
        return self

    @staticmethod
    def kept_of(config: RadioConfig) -> RadioConfig:
        return config if config.text_tower is None else config.without_text_tower()

    def forward(  # noqa: PLR0913
        self,
        pixel_values: Tensor | None = None,
        image_grid_hw: Tensor | None = None,
        window_size: WindowSize = None,
        adaptor_names: Sequence[str] | None = None,
        feature_format: FeatureFormat = "NLC",
        output_hidden_states: StatesWanted = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        pixel_mask: Tensor | None = None,
        draws: Tensor | None = None,
        feature_fmt: FeatureFormat | None = None,
        pixel_values_videos: Tensor | None = None,
        num_tokens: "TokensWanted" = None,
        decode: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> RadioModelOutput | RadioPair | dict[str, RadioPair]:
        """Encode images, or clips of video.

        Args:
            pixel_values: RGB images in [0, 1], `(batch, channels, height, width)`; height and width are multiples of
                the patch size. With `image_grid_hw` instead the patches of images of different sizes, one image after
                the other, `(total_patches, channels * patch_size**2)`, each patch channel-major.
            image_grid_hw: Rows and columns of patches of each packed image, `(num_images, 2)`. Results equal those of
                one image at a time; summaries are `(num_images, ...)`, everything else is concatenated along tokens.
            window_size: Side of the ViTDet windows in tokens; `None` takes `config.vitdet_window_size`, `"global"`
                turns windows off, `"auto"` stays global while attention is a small share of the work and otherwise
                takes the largest window that removes most of it. A `WindowChoice` is taken as it is. Where all blocks
                attend globally (`config.has_windowed_blocks`) a window changes nothing, with a warning.
            adaptor_names: Adaptors to run; `None` takes `config.adaptor_names`, `[]` runs none.
            feature_format: "NLC" for token sequences, "NCHW" for maps.
            output_hidden_states: Also return the tokens before the first block and after every block. A place among
                them, or a list of places, returns those alone, with `None` in place of the others.
            output_attentions: Also return attention weights; the call then takes eager attention, whatever
                `attn_implementation` is. Not of packed images.
            return_dict: `False` returns what NVIDIA's classes do: the pair `(summary, features)` and nothing else, or
                with adaptors a dictionary of such pairs, by "backbone" and the adaptors' names, theirs in float32;
                `None` takes `config.return_dict`. Without RADIO1D's decoder the pair is `(global_summary,
                global_tokens)`.
            pixel_mask: What `RadioImageProcessor` returns with `do_pad=True`, accepted so that `model(**inputs)` works.
                It changes nothing: the model sees the padding as gray image.
            draws: Uniform numbers in [0, 1), `(batch, model.num_draws)`, that decide each image's position crop and
                dropped paths in training, so that an image trains the same in whatever batch or pack it is; `None`
                takes them from torch's generator.
            feature_fmt: NVIDIA's name for `feature_format`.
            pixel_values_videos: In place of images clips, RGB frames in [0, 1], `(batch, frames, channels, height,
                width)`. Groups of `config.video_temporal_patch_size` frames, the last frame repeated where they are no
                multiple, are encoded like images; without that field each frame is a group. All outputs have an axis
                for the groups after that for the clips: `summary` `(batch, groups, ...)`, `features`
                `(batch, groups, rows * cols, hidden_size)`. `draws` are those of each clip, whose groups share them; in
                training without `draws` the groups of a clip share one position crop.
            num_tokens: Global tokens of RADIO1D that go through its decoder: one number, or one for each image, of
                clips one for each group of frames, clip after clip; `None` takes `config.num_tokens`, and without it
                all. More than an image has are all.
            decode: `False` stops after RADIO1D's encoder: only `global_tokens`, `global_mask` and `global_summary`, and
                hidden states and attentions on request.
            kwargs: What transformers, peft and other vision models' callers add, as far as it asks for nothing that is
                not done here (`FOREIGN_ARGUMENTS`).

        Returns:
            `RadioModelOutput`, or pairs.

        Raises:
            ValueError: If the size is no multiple of the patch size or too large, the channels or the dtype are
                wrong, or an adaptor or window is unknown.
            TypeError: If a keyword argument is unknown.
        """
        check_call_arguments(self, kwargs)
        names = self.config.adaptor_names or [] if adaptor_names is None else adaptor_names
        check_names(names)
        for name in names:
            self.radio_model.adaptor(name)  # refused before anything is computed
        if feature_fmt is not None:
            check_feature_format(feature_fmt, is_packed=image_grid_hw is not None, argument="feature_fmt")
            feature_format = feature_fmt
        check_feature_format(feature_format, is_packed=image_grid_hw is not None)
        passed = self.radio_model(
            pixel_values,
            image_grid_hw=image_grid_hw,
            window_size=window_size,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            draws=draws,
            pixel_values_videos=pixel_values_videos,
            num_tokens=num_tokens,
            decode=decode,
        )
        output = read_out(self.radio_model, passed, names, feature_format)
        with_names = self.config.return_dict if return_dict is None else return_dict
        return output if with_names else output.to_pairs()

    def get_intermediate_features(
        self,
        pixel_values: Tensor,
        indices: Sequence[int],
        aggregation: Aggregation = "sparse",
        feature_format: FeatureFormat = "NCHW",
        window_size: WindowSize = None,
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
            One `RadioIntermediateOutput` per index, features `(batch, hidden_size, rows, cols)`. Of RADIO1D these are
            the blocks of its encoder at full length, coarser and wider behind each merging.

        Raises:
            ValueError: If an index is no block or they do not ascend, or "dense" would average blocks of different
                widths; otherwise as `forward`.
        """
        depth = self.config.num_hidden_layers
        blocks = count_from_first(indices, depth)
        check_blocks("indices", blocks, depth)
        check_choice("aggregation", aggregation, get_args(Aggregation))
        check_feature_format(feature_format, is_packed=False)
        groups = group_blocks(blocks, aggregation)
        check_widths(self.config, groups)
        keep = [block for group in groups for block in group]
        passed = self.radio_model(
            pixel_values, window_size=window_size, keep=keep, output_hidden_states=False, full_length=True
        )
        tokens = [average_blocks(self.radio_model, passed, group) for group in groups]
        network, as_maps = self.radio_model, feature_format == "NCHW"
        return [
            RadioIntermediateOutput(
                summary=network.summarize(each),
                features=network.block_map(each, passed.grid, block) if as_maps else network.patch_features(each),
            )
            for each, block in zip(tokens, blocks, strict=True)
        ]
