"""RADIO vision backbones with their teacher adaptors: the network, and the models around it.

What differs from a plain ViT:
- pixels come in [0, 1] and are normalized inside; the processor never normalizes;
- one class token per teacher, then registers; the summary concatenates the class tokens of teachers that have one:
  two of 1,280 channels in C-RADIOv4-H, so 2,560 numbers (`summary_idxs` in `configuration_radio.py`);
- positions are a table that is cropped at random in training and resized in evaluation, so any size works
  (`RadioPatchGenerator` in `layers_radio.py`);
- ViTDet windows are chosen per call, over any grid, and windowed blocks leave prefix tokens out (`partition_windows`
  and `AttentionLayout` in `layers_radio.py`);
- images of several sizes can be packed into one sequence (`ImagePack` in `layers_radio.py`);
- adaptors map summary and features into each teacher's space (`adaptors_radio.py`); adapters are those of peft.

Modules carry NVIDIA's checkpoint names, so that weights keep theirs on load and save; only the keys of DINOv2-shaped
models have an additional `inner.` in NVIDIA's files.
"""

import copy
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils.generic import TransformersKwargs, can_return_tuple
from transformers.utils.loading_report import LoadStateDictInfo

from .adaptors_radio import RadioAdaptor, RadioAdaptors
from .checks_radio import WORD, Resolution, check_choice, find_builtin, listed, own_names
from .configuration_radio import FOREIGN_LAYOUTS, RadioConfig
from .hub_radio import DOWNLOAD_OPTIONS, import_sibling, need_cached, register_class
from .inputs_radio import (
    Aggregation,
    Call,
    StatesWanted,
    TokensWanted,
    WindowChoice,
    WindowSize,
    check_attentions,
    check_batch,
    check_call_arguments,
    check_draws,
    check_feature_format,
    check_refused,
    count_draws,
    resolve_window,
    split_draws,
    wanted_states,
    warn_of_pixel_range,
    without_cost,
)
from .layers_radio import (
    AttentionLayout,
    ImagePack,
    RadioFeatureNormalizer,
    RadioInputConditioner,
    RadioIntermediateNormalizer,
    RadioLayerScale,
    RadioLearnedTokens,
    RadioVisionTransformer,
)
from .loading_radio import (
    ODD_VALUES,
    config_of_hub_adapter,
    find_adapter_base,
    garbage_collection_paused,
    source_of_weights,
)
from .nvidia_names_radio import NvidiaNames
from .outputs_radio import (
    FeatureFormat,
    NetworkOutput,
    RadioAdaptorOutput,
    RadioIntermediateOutput,
    RadioModelOutput,
    RadioPair,
    by_clip,
    gather_states,
    join_runs,
    to_map,
)


# Where weights stand in a model's state.
BLOCKS = "radio_model.model.blocks"
ADAPTORS = "radio_model.adaptors"
PATCH_GENERATOR = "radio_model.model.patch_generator"
POSITIONS = f"{PATCH_GENERATOR}.pos_embed"
PREFIX_TOKENS = f"{PATCH_GENERATOR}.cls_token.token"
DECODER_PREFIX = "radio_model.model.decoder.prefix_tokens"
FILLERS = "radio_model.model.decoder.filler_tokens"
SUMMARY_INDICES = "radio_model.summary_idxs"


ReadTokens = tuple[Tensor | None, Tensor | None, dict[str, RadioAdaptorOutput]]
"""Summary, features, and what each adaptor makes of them."""


class RadioNetwork(NvidiaNames, nn.Module):
    """Conditioner, transformer, adaptors and normalizers.

    `RadioModel` and the task models all hold one as `radio_model`, so that their backbone weights have equal keys.
    """

    refused: Mapping[str, str] = dict.fromkeys(
        ("num_tokens", "decode"),
        "this network has one token for each patch and no decoder. RADIO1D has them, for example the preset "
        "'c-radio_v4-1d-h'",
    )
    """By argument of `forward`, why this architecture refuses it."""
    _warned_of_pixel_range = False

    def __init__(self, config: RadioConfig, use_adaptors: bool = True) -> None:
        super().__init__()
        self.config = config
        self.input_conditioner = RadioInputConditioner(config)
        self.model: Any = self.build_trunk(config)
        self.adaptors = RadioAdaptors()
        for adaptor in config.adaptor_configs if use_adaptors else []:
            self.adaptors[adaptor.name] = RadioAdaptor(config, adaptor)
        self.feature_normalizer = RadioFeatureNormalizer(config) if config.use_feature_normalizer else None
        self.inter_feature_normalizer = (
            RadioIntermediateNormalizer(config) if config.num_intermediate_normalizers else None
        )
        self.register_buffer("summary_idxs", torch.tensor(config.summary_idxs, dtype=torch.long))

    def forward(  # noqa: PLR0913
        self,
        pixel_values: Tensor | None,
        image_grid_hw: Tensor | None = None,
        window_size: WindowSize = None,
        keep: Collection[int] = (),
        output_hidden_states: StatesWanted = None,
        output_attentions: bool | None = None,
        draws: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        num_tokens: TokensWanted = None,
        decode: bool = True,
        full_length: bool = False,
    ) -> NetworkOutput:
        """Check a call and `encode` it; `make_output` makes features of what is returned.

        `keep` lists 0-based blocks whose output is wanted; no other is held longer than the next block needs it. With
        `full_length` RADIO1D's encoder runs alone, and keeps all tokens until the last block. All other arguments and
        all errors are those of `RadioModel.forward`.
        """
        config, window = self.config, without_cost(window_size)
        states = wanted_states(output_hidden_states, config)
        with_attentions = bool(config.output_attentions if output_attentions is None else output_attentions)
        check_refused(
            self.refused,
            image_grid_hw=image_grid_hw,
            window_size=None if window in ("global", "auto") else window,
            output_hidden_states=states,
            output_attentions=with_attentions or None,
            draws=draws,
            num_tokens=num_tokens,
            decode=None if decode else False,
        )
        batch = check_batch(config, pixel_values, image_grid_hw, pixel_values_videos)
        if draws is not None:
            check_draws(draws, config, batch.num_images)
        if with_attentions:
            check_attentions(config, batch.pack is not None)
        if batch.pack is None and not self._warned_of_pixel_range and warn_of_pixel_range(batch.pixels):
            self._warned_of_pixel_range = True
        if states is not None:
            keep = {*keep, *(state - 1 for state in states if state)}
        return self.encode(Call(batch, window, keep, states, with_attentions, draws, num_tokens, decode, full_length))

    def __call__(self, *args: Any, feature_fmt: Any = None, **kwargs: Any) -> Any:
        """Run the network as `forward` says.

        Args:
            args: Positional arguments of `forward`.
            feature_fmt: "NLC" or "NCHW" returns `(summary, features)`, or with adaptors such pairs by "backbone" and
                the adaptors' names, as NVIDIA's `radio_model` does; `None` returns the result of `forward`.
            kwargs: Other arguments of `forward`.
        """
        result = super().__call__(*args, **kwargs)
        return result if feature_fmt is None else self.make_pairs(result, feature_fmt)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; class tokens that are assigned to `summary_idxs` make up the summary from then on."""
        before: Any = vars(self).get("_buffers", {}).get(name)
        super().__setattr__(name, value)
        is_assigned = name == "summary_idxs" and before is not None and not before.is_meta  # not while weights load
        if is_assigned and not value.is_meta and value.tolist() != self.config.summary_idxs:
            self.config.summary_idxs = value.tolist()
            self.config.check()

    @property
    def radio_model(self) -> "RadioNetwork":  # pyrefly: ignore[bad-override]
        """The network itself, so that NVIDIA's names are written once for models and networks."""
        return self

    def encode(self, call: Call) -> NetworkOutput:
        """Return the output of a checked call. Networks of another architecture override this method.

        Raises:
            ValueError: If a window or a block is not one of this architecture.
        """
        batch = call.batch
        window = resolve_window(self.config, call.window_size, batch.grid)
        embedded, path_draws = self.embed_batch(call)
        if batch.pack is None:
            layout = AttentionLayout.for_grid(*batch.grid, self.config.num_prefix_tokens, window, embedded.device)
        else:
            layout = batch.pack.layout(window, embedded.device)
        passed = self.model(embedded, layout, call.keep, path_draws, call.with_attentions)
        return self.collect(call, embedded, *passed)

    def embed_batch(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """Return what the first block reads, and the random numbers of dropped paths for each entry of it.

        Returns:
            The tokens, `(batch, length, hidden)`, of a pack `(1, length, hidden)` in its order; and the draws as
            `RadioVisionTransformer.forward` takes them. The groups of a clip share those of the clip.
        """
        batch, config, generator = call.batch, self.config, self.model.patch_generator
        draws = path_draws = None
        if self.training or call.draws is not None:
            draws, path_draws = split_draws(call, config)
        if batch.pack is not None:
            images = batch.pixels.view(-1, config.num_channels, config.patch_size, config.patch_size)
            patches = self.input_conditioner(images).flatten(1)
            return generator(patches, *batch.grid, draws, batch.pack), path_draws
        pixels, is_temporal = self.input_conditioner(batch.pixels), False
        if batch.num_clips is not None:
            pixels = batch.group_frames(pixels, config.video_temporal_patch_size or 1)
            draws, is_temporal = batch.spread(draws), config.video_temporal_patch_size is not None
        tokens = generator(generator.split_patches(pixels), *batch.grid, draws, temporal=is_temporal)
        return tokens, path_draws

    @staticmethod
    def collect(
        call: Call, embedded: Tensor, tokens: Tensor, kept: dict[int, Tensor], weights: list[list[Tensor]]
    ) -> NetworkOutput:
        """Return the output of a call, from its embeddings and what `RadioVisionTransformer.forward` returned."""
        batch, outputs = call.batch, [embedded, *map(kept.get, range(len(weights)))]
        states = None if call.states is None else gather_states(call.states, outputs, batch.pack)
        attentions = tuple(join_runs(each, tokens.shape[0]) for each in weights) if call.with_attentions else None
        return NetworkOutput(tokens, embedded, kept, states, attentions, batch.grid, batch.pack, batch.num_clips)

    @property
    def input_embeddings(self) -> nn.Module:
        """The patch projection, which reads the pixels."""
        return self.model.patch_generator.embedder

    def replace_input_embeddings(self, value: nn.Module) -> None:
        """Put another module in its place."""
        self.model.patch_generator.embedder = value

    def build_trunk(self, config: RadioConfig) -> nn.Module:
        """Return what stands between conditioner and adaptors."""
        return RadioVisionTransformer(config)

    def find_adaptors(self, names: Sequence[str]) -> Sequence[str]:
        """Return the file's names of the adaptors that a call names.

        Raises:
            ValueError: If it is no list of names, or one is unknown.
        """
        listed(WORD).check("adaptor_names", names)
        if any(name not in self.adaptors for name in names):
            names = own_names("adaptor_names", names, self.adaptors)
        for name in names:
            self.adaptor(name)
        return names

    def adaptor(self, name: str) -> RadioAdaptor:
        """Return an adaptor; the `ValueError` of an unknown name lists all and suggests the nearest."""
        if name not in self.adaptors:  # torch 2.6 cannot compile the list of them
            check_choice("adaptor_names", name, list(self.adaptors))
        return self.adaptors[name]  # pyrefly: ignore[bad-return]

    def keep_adaptors(self, names: Collection[str]) -> None:
        """Remove all other adaptors, from the configuration too; an unknown name is a `ValueError`."""
        names = own_names("adaptors", names, self.adaptors)
        for name in names:
            self.config.adaptor(name, argument="adaptors")
        for name in [name for name in self.adaptors if name not in names]:
            del self.adaptors[name]
        self.config.adaptors = [adaptor for adaptor in self.config.adaptors if adaptor["name"] in names]
        self.config.adaptor_names = [name for name in self.config.adaptor_names or [] if name in names]
        if self.config.text_adaptor not in names:
            self.config.text_tower = self.config.text_adaptor = None

    def summarize(self, tokens: Tensor) -> Tensor:
        """Concatenate the class tokens that make up the summary, `(batch, num_summaries * hidden)`."""
        parts = [tokens[:, index] for index in self.config.summary_idxs or []]
        return torch.cat(parts, dim=1) if parts else tokens[:, 0, :0]

    def embed(self, result: NetworkOutput) -> Tensor:
        """Return the vectors of images in the space of the texts, or the summary where no adaptor is for texts."""
        name = self.config.text_adaptor or ""
        if name not in self.adaptors:
            return self.summarize(result.tokens)
        adaptor: Any = self.adaptors[name]
        return adaptor.head_mlp(result.tokens[:, adaptor.token_index])

    def patch_features(self, tokens: Tensor) -> Tensor:
        """Return the patch tokens, `(batch, rows * cols, hidden)`."""
        return tokens[:, self.config.num_prefix_tokens :]

    def block_map(self, tokens: Tensor, grid: Resolution, block: int) -> Tensor:
        """Return the patch tokens behind a 0-based block as a map, `(batch, hidden, rows, cols)`.

        Args:
            tokens: Tokens of the whole sequence.
            grid: Rows and columns of patches of the images.
            block: -1 is the patch embedding.
        """
        return to_map(self.patch_features(tokens), grid)

    def make_output(
        self, result: NetworkOutput, adaptor_names: Sequence[str] = (), feature_format: FeatureFormat = "NLC"
    ) -> RadioModelOutput:
        """Take summary, features and adaptor outputs from the final tokens.

        Args:
            result: Output of `forward`.
            adaptor_names: Adaptors to run.
            feature_format: "NLC" for token sequences, "NCHW" for maps; packed images have sequences only.

        Returns:
            The output, of clips with a first axis for them before that of their groups.
        """
        tokens, summary, features, adaptors = None, None, None, {}
        if not result.is_decoded:
            pass  # only the encoder ran
        elif result.pack is None:
            tokens = result.tokens
            summary, features, adaptors = self._read_images(tokens, result.grid, adaptor_names, feature_format)
        else:
            tokens = result.pack.concatenate(result.tokens)
            summary, features, adaptors = self._read_pack(result.tokens, result.pack, adaptor_names)
        output = RadioModelOutput(
            summary=summary,
            features=features,
            last_hidden_state=tokens,
            hidden_states=result.hidden_states,
            attentions=result.attentions,
            pooler_output=summary,
            adaptors=adaptors,
            global_tokens=None if result.encoded is None else result.encoded.tokens,
            global_mask=None if result.encoded is None else result.encoded.mask,
            global_summary=None if result.encoded is None else self.summarize(result.encoded.prefix),
        )
        return output if result.num_clips is None else by_clip(output, result.num_clips)

    def make_pairs(self, result: NetworkOutput, feature_fmt: Any) -> RadioPair | dict[str, RadioPair]:
        """Return `(summary, features)`, or with adaptors such pairs by "backbone" and the adaptors' names.

        Args:
            result: Output of `forward`.
            feature_fmt: "NLC" for token sequences, "NCHW" for maps.
        """
        check_feature_format(feature_fmt, is_packed=result.pack is not None, argument="feature_fmt")
        names = [name for name in self.config.adaptor_names or [] if name in self.adaptors]  # a backbone has none
        return self.make_output(result, names, feature_fmt).to_pairs()

    def _read_images(
        self, tokens: Tensor, grid: Resolution, names: Sequence[str], feature_format: FeatureFormat
    ) -> ReadTokens:
        """Read the final tokens of images of one grid."""
        features = self.patch_features(tokens)
        if self.feature_normalizer is not None:
            features = self.feature_normalizer(features)
        adaptors = {}
        for name in names:
            adaptor = self.adaptor(name)
            output = adaptor(tokens, features, *grid)
            if output.features is not None and feature_format == "NCHW":
                output.features = to_map(
                    output.features, Resolution(*(size * adaptor.upsample_factor for size in grid))
                )
            adaptors[name] = output
        features = to_map(features, grid) if feature_format == "NCHW" else features
        return self.summarize(tokens), features, adaptors

    def _read_pack(self, tokens: Tensor, pack: ImagePack, names: Sequence[str]) -> ReadTokens:
        """Read each group of equal grids, then bring the images back into the order of the call."""
        groups = [
            self._read_images(group_tokens, grid, names, "NLC")
            for grid, group_tokens in zip(pack.groups, pack.group_sequence(tokens), strict=True)
        ]

        def per_image(tensors: list[Tensor | None], join: Callable[[list[Tensor]], Tensor]) -> Tensor | None:
            present = [tensor for tensor in tensors if tensor is not None]
            return join(pack.ungroup(present)) if present else None

        adaptors = {
            name: RadioAdaptorOutput(
                summary=per_image([predicted[name].summary for _, _, predicted in groups], torch.stack),
                features=per_image([predicted[name].features for _, _, predicted in groups], torch.cat),
            )
            for name in names
        }
        summary = per_image([summary for summary, _, _ in groups], torch.stack)
        return summary, per_image([features for _, features, _ in groups], torch.cat), adaptors


def build_network(config: RadioConfig, use_adaptors: bool = True) -> RadioNetwork:
    """Return the network of a configuration; an architecture besides the plain ViT is imported where it is built."""
    kinds = [kind for kind in ("eradio", "navit", "wrapped") if getattr(config, kind) is not None]
    if kinds or config.num_mergings:
        kind = kinds[0] if kinds else "radio1d"
        return vars(import_sibling(f"{kind}_radio"))[f"{kind.capitalize()}Network"](config, use_adaptors)
    return RadioNetwork(config, use_adaptors)


UNUSED_KEYS = (
    r"^radio_model\.model\.(mask_token|reg_token|input_conditioner\.(norm_mean|norm_std)|levels\..*\.relative_\w+"
    r"|_iter_count|dynamic_rate_vec|dynamic_rate_projector\..*)$"
)
"""Tensors in published files that nobody reads: DINOv2's token for masked training, timm's registers (those of the
patch generator are used), the architecture's own constants; what E-RADIO's position MLP is computed from and gives;
RADIO1D's counter of steps, and what chose its number of tokens in training."""
# A text tower is for the zero-shot model alone.
IGNORED_KEYS = [UNUSED_KEYS, r"^text_tower\.", r"^logit_(scale|bias)$"]
# Classes of modules that join the outputs of several of their parts, which must lie on one device.
_PARTS = (
    "RadioBlock RadioPatchGenerator RadioPatchMerging Radio1dDecoder RadioHeadMLP EradioConvolutions "
    "EradioAttentionBlock EradioNeck NavitBlock NavitPatches NavitPool WrappedTrunk"
)
WHOLE_PARTS: list[str] = [*_PARTS.split()]


def _keep_packing(model: nn.Module) -> None:
    """Let bitsandbytes leave 4-bit weights in the order in which they are stored.

    On CPUs with AVX512-BF16 it packs them anew in their first pass in evaluation, and what it makes of them again where
    they are saved, or `state_dict` is read, are other weights (bitsandbytes 0.50, scales of a row with several blocks).
    """
    for module in model.modules():
        if "support_avx512bf16_for_cpu" in vars(module):
            module.support_avx512bf16_for_cpu = False  # pyrefly: ignore[bad-argument-type]


def _check_own_weights(model: Any, name: str) -> None:
    """Refuse a network of which transformers filled most with random numbers: the folder is of something else."""
    trunk = [key for key, _ in model.named_parameters() if key.startswith("radio_model.model.")]
    missing = {*vars(model).get("_loaded", {}).get("missing_keys", ())}.intersection(trunk)
    if 2 * len(missing) > len(trunk):
        raise ValueError(
            f"{name!r} holds another model: its weights lack {len(missing)} of the {len(trunk)} tensors of a RADIO as "
            f"its config.json describes it, such as {min(missing)}."
        )


def _model_of(opened: Any) -> Any:
    """Return the model of what `from_pretrained` returned, which may be a model and a report."""
    return opened[0] if isinstance(opened, tuple) else opened


class RadioPreTrainedModel(NvidiaNames, PreTrainedModel):
    """Weight initialization, saving and the conventions of transformers."""

    config_class = RadioConfig
    config: RadioConfig  # pyrefly: ignore[bad-override-mutable-attribute]
    base_model_prefix = "radio_model"
    main_input_name = "pixel_values"
    input_modalities = "image"
    supports_gradient_checkpointing = True
    _no_split_modules = WHOLE_PARTS
    # accelerate lists no buffer of a module that it splits, and this one is not computed with.
    _no_placement_params = [SUMMARY_INDICES]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keys_to_ignore_on_load_unexpected = IGNORED_KEYS
    source: tuple[str, dict[str, Any]] | None = None  # what `from_pretrained` opened, and how it was fetched
    _block_costs: dict[tuple[str, torch.dtype, str], Tensor] | None = None  # what `choose_window_size` measured

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Build models outside of `torch.inference_mode`: its tensors could not be trained or moved later."""
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = torch.inference_mode(mode=False)(cls.__init__)

    def __init__(self, config: RadioConfig, *args: Any, **kwargs: Any) -> None:
        config = RadioConfig.of(config)
        config.check()  # fields may have been set since it was built
        super().__init__(self.restrict_config(config), *args, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str | type = "AutoModel") -> None:
        """Let an Auto class open this class; folders of a class of your own then hold its file.

        Args:
            auto_class: The Auto class, such as "AutoModelForImageClassification".

        Raises:
            ValueError: If there is no such Auto class, or the file cannot be imported beside a checkpoint.
        """
        super().register_for_auto_class(auto_class)
        register_class(cls, str(cls._auto_class), RadioConfig)

    @staticmethod
    def restrict_config(config: RadioConfig) -> RadioConfig:
        """Return the configuration without parts that this class does not build, which its folders must not list."""
        return config

    def post_init(self) -> None:
        """Finish building, as every model does at the end of its `__init__`."""
        super().post_init()
        # accelerate requires a module of each class that is named here.
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

        Freezing, saving or calling it acts on the weights of this model. Hooks on this model's own pass belong on
        `radio_model`.
        """
        has_adaptors = len(self.radio_model.adaptors) > 0
        config = self.config if has_adaptors else self.config.without_adaptors()
        with torch.device("meta"):
            base = RadioModel(copy.deepcopy(config))
        base.radio_model, base.training = self.radio_model, self.radio_model.training
        return base

    @property
    def adaptors(self) -> nn.ModuleDict:
        """The adaptors that were built, by name; `None`, or some of them, removes the others.

        That of the folder's text tower also has what `AdaptorTexts` says.
        """
        adaptors, name = self.radio_model.adaptors, self.config.text_adaptor
        if name in adaptors and "encode_text" not in vars(adaptors[name]):
            import_sibling("nvidia_methods_radio").AdaptorTexts(self).give_to(adaptors[name])
        return adaptors

    @adaptors.setter
    def adaptors(self, value: Collection[str] | None) -> None:
        self.radio_model.keep_adaptors(value or ())

    @property
    def model(self) -> nn.Module:  # pyrefly: ignore[bad-override]
        """The transformer: patch generator, blocks and final norm."""
        return self.radio_model.model

    @property
    def input_conditioner(self) -> nn.Module:
        """The module that normalizes pixels."""
        return self.radio_model.input_conditioner

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
            ValueError: If the adapter is for another model or names no base that could be opened, if peft is not
                installed or too old, or if the weights are not those of a RADIO.
        """
        pretrained_model_name_or_path = find_builtin(pretrained_model_name_or_path)
        folder = Path(pretrained_model_name_or_path or "", kwargs.get("subfolder") or "")
        base = None if pretrained_model_name_or_path is None else find_adapter_base(folder)
        kwargs |= need_cached(base or pretrained_model_name_or_path, kwargs)
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
        if pretrained_model_name_or_path is not None:
            names = (*DOWNLOAD_OPTIONS, "revision", "subfolder")
            fetched = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
            model.source = str(base or pretrained_model_name_or_path), fetched
            _check_own_weights(model, str(base or pretrained_model_name_or_path))
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
        """Open a checkpoint as transformers does, one in a layout of others as that layout says."""
        source = None if folder is None else source_of_weights(folder, kwargs)
        for layout in FOREIGN_LAYOUTS if source is not None else []:
            opening = layout.opening_arguments(source, kwargs)
            if opening is not None:
                place = opening.pop("pretrained_model_name_or_path", folder)  # of what was converted
                opened = super().from_pretrained(place, *args, **opening)
                layout.check_loaded(_model_of(opened))
                _model_of(opened).config.name_or_path = str(folder)
                return opened
        return super().from_pretrained(folder, *args, **kwargs)

    def _adjust_missing_and_unexpected_keys(self, loading_info: LoadStateDictInfo) -> None:
        """Keep the report of a folder's weights: where an adapter comes with them, transformers returns only its."""
        super()._adjust_missing_and_unexpected_keys(loading_info)
        self._loaded = loading_info.to_dict()

    def load_adapter(  # pyrefly: ignore[bad-override]
        self, peft_model_id: str | None = None, adapter_name: str | None = None, **kwargs: Any
    ) -> Any:
        """Put a saved adapter on the model as transformers does, but refuse one that does not fit in full.

        Raises:
            ValueError: If the adapter is for another model or was trained on another base, or has a head that the
                installed transformers or peft does not read. This model must not be used afterwards.
        """
        checks = import_sibling("peft_radio")
        checks.check_adapter_versions(peft_model_id, **(kwargs.get("adapter_kwargs") or {}))
        kwargs["ignore_mismatched_sizes"] = True  # reported below, together with what else differs
        loaded = super().load_adapter(peft_model_id, adapter_name, **kwargs)
        # The report also counts what the base and other adapters have.
        own = re.compile(rf"\.(lora_\w+|modules_to_save)\.{re.escape(adapter_name or 'default')}(\.|$)")
        checks.check_adapter_weights(
            peft_model_id,
            [name for name in loaded.missing_keys if own.search(name)],
            loaded.unexpected_keys,
            loaded.mismatched_keys,
        )
        checks.check_adapter_base(peft_model_id, self, **(kwargs.get("adapter_kwargs") or {}))
        return loaded

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
        budget = import_sibling("window_budget_radio").WindowBudget(self)
        return budget.choose(height, width, max_latency_ms, max_memory_gib, batch_size)

    def predict_window_cost(
        self, height: int, width: int, window_size: int | None, batch_size: int = 1
    ) -> WindowChoice:
        """Return what `choose_window_size` predicts for one window, `None` being global attention.

        Raises:
            ValueError: If the size is no multiple of the patch size or too large.
        """
        return import_sibling("window_budget_radio").WindowBudget(self).predict(height, width, window_size, batch_size)

    @property
    def accepts_loss_kwargs(self) -> bool:
        """True if `Trainer` gives `num_items_in_batch`. One head needs it; all other losses are means over a batch."""
        return False

    @property
    def num_draws(self) -> int:
        """Random numbers that decide what of one image's training pass is random: position crop and dropped paths."""
        return count_draws(self.config)


class ImageFeatures(RadioPreTrainedModel):
    """Models with the adaptors, which `get_image_features` reads."""

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: Tensor,
        window_size: WindowSize = None,
        pixel_mask: Tensor | None = None,
        output_hidden_states: StatesWanted = None,
        output_attentions: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode images as CLIP's class does; arguments are those of `forward`.

        Returns:
            `pooler_output` `(batch, config.projection_dim)`: the summary of adaptor `config.text_adaptor`, which is in
            the space of the folder's texts, or without texts the backbone's. No other head runs.
        """
        check_call_arguments(self, kwargs, "get_image_features")
        wanted: Any = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        result = self.radio_model(pixel_values, window_size=window_size, **wanted)
        return BaseModelOutputWithPooling(
            last_hidden_state=result.tokens,
            pooler_output=self.radio_model.embed(result),
            hidden_states=result.hidden_states,
            attentions=result.attentions,
        )


class RadioModel(ImageFeatures):
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

    def _adjust_missing_and_unexpected_keys(self, loading_info: LoadStateDictInfo) -> None:
        """Leave the head of a tuned model out of the report, not out of `output_loading_info=True`."""
        super()._adjust_missing_and_unexpected_keys(loading_info)
        if type(self).__name__ not in (self.config.architectures or [type(self).__name__]):
            own = {key for key in loading_info.unexpected_keys if key.startswith(f"{self.base_model_prefix}.")}
            loading_info.create_loading_report = replace(loading_info, unexpected_keys=own).create_loading_report

    @staticmethod
    def restrict_config(config: RadioConfig) -> RadioConfig:
        return config if config.text_tower is None else config.without_text_tower()

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """Encode texts; see `RadioForZeroShotImageClassification.get_text_features`.

        The first call opens the folder's text tower, which is not trained or saved with this model: `text_tower_of`.
        Without one it raises a `LookupError`.
        """
        tower = import_sibling("zero_shot_radio").text_tower_of(self)
        return tower.get_text_features(input_ids, attention_mask, **kwargs)

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
        num_tokens: TokensWanted = None,
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
            adaptor_names: Adaptors to run; `None` takes `config.adaptor_names`, `[]` runs none. Outputs have the names
                of the file; another name of a teacher, such as "dino_v3" for "dino_v3_7b", leads to them too.
            feature_format: "NLC" for token sequences, "NCHW" for maps.
            output_hidden_states: Also return the tokens before the first block and after every block. An index into
                them, or a list of indices, returns those alone, with `None` instead of the others.
            output_attentions: Also return attention weights; the call then takes eager attention, whatever
                `attn_implementation` is. Not of packed images.
            return_dict: `False` returns what NVIDIA's classes do: the pair `(summary, features)` and nothing else, or
                with adaptors a dictionary of such pairs, by "backbone" and the adaptors' names, theirs in float32;
                `None` asks for it by `config.nvidia_outputs`, or by `config.return_dict` off. Without RADIO1D's decoder
                the pair is `(global_summary, global_tokens)`.
            pixel_mask: Mask that `RadioImageProcessor` returns with `do_pad=True`, accepted so that `model(**inputs)`
                works. It changes nothing: the model sees the padding as gray image.
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
                all. A larger number than an image has tokens means all of them.
            decode: `False` stops after RADIO1D's encoder: only `global_tokens`, `global_mask` and `global_summary`, and
                hidden states and attentions on request.
            kwargs: Arguments that transformers, peft and callers of other vision models add (`FOREIGN_ARGUMENTS`), with
                values that ask for nothing which this model cannot do.

        Returns:
            `RadioModelOutput`, or pairs.

        Raises:
            ValueError: If the size is no multiple of the patch size or too large, the channels or the dtype are
                wrong, or an adaptor or window is unknown.
            TypeError: If a keyword argument is unknown.
        """
        check_call_arguments(self, kwargs)
        names = self.config.adaptor_names or [] if adaptor_names is None else adaptor_names
        if names != []:
            names = self.radio_model.find_adaptors(names)
        argument, wanted = ("feature_format", feature_format) if feature_fmt is None else ("feature_fmt", feature_fmt)
        check_feature_format(wanted, is_packed=image_grid_hw is not None, argument=argument)
        result = self.radio_model(
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
        output = self.radio_model.make_output(result, names, wanted)
        by_default = self.config.return_dict and not self.config.nvidia_outputs
        return output if (by_default if return_dict is None else return_dict) else output.to_pairs()

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
        read = import_sibling("intermediate_radio").read_blocks
        return read(self.radio_model, pixel_values, indices, aggregation, feature_format, window_size)
