"""Configuration of the RADIO vision backbones: every field by purpose, the adaptors, and the published presets."""

import copy
import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from .auto_map_radio import auto_map_entries
from .heads_config_radio import ClassFields, DetectionFields, DPTFields, PyramidFields, TextFields
from .messages_radio import check_choice, did_you_mean
from .nvidia_radio import config_fields_from_nvidia, is_nvidia_config
from .releases_radio import PRESETS
from .trunk_config_radio import TrunkFields


MLP_VERSIONS = ("v1", "v2")
FEATURE_HEADS = ("mlp", "attention")
# Fields that others follow from or are checked by.
FIRST_FIELDS = ("hidden_size", "intermediate_size", "mlp_ratio", "num_registers", "summary_idxs")


@dataclass(frozen=True, kw_only=True)
class RadioAdaptorConfig:
    """Shape of one adaptor: the pair of heads that maps the backbone into one teacher's output space.

    Attributes:
        name: The teacher's name, for example `"siglip2-g"`. It is part of the weights' keys.
        token_index: Which class token the summary head reads. NVIDIA's files may also name a register, or the first
            patch, `num_prefix_tokens`.
        summary_dim: Channels of the teacher's summary; `None` builds no summary head.
        feature_dim: Channels of the teacher's dense features, after upsampling; `None` builds no dense head.
        hidden_size: Hidden width of both heads' MLPs.
        num_inner_blocks: Residual blocks between the first and the last linear layer (`mlp_version="v2"` only).
        mlp_version: `"v1"` (RADIOv2: linear, norm, ReLU, linear) or `"v2"` (every later model).
        feature_head: `"mlp"`, or `"attention"`: ViT blocks before the MLP (siglip2-g of C-RADIOv4).
        upsample_factor: The dense head predicts this many times more rows and columns (pixel shuffle).
        feature_hidden_size: Hidden width of the dense head's MLP where it differs from `hidden_size`.
        feature_num_inner_blocks: Residual blocks of the dense head's MLP where they differ.
        feature_num_blocks: ViT blocks of an attention head.
        feature_num_attention_heads: Attention heads of those blocks.
    """

    name: str
    token_index: int = 0
    summary_dim: int | None = None
    feature_dim: int | None = None
    hidden_size: int
    num_inner_blocks: int = 1
    mlp_version: str = "v2"
    feature_head: str = "mlp"
    upsample_factor: int = 1
    feature_hidden_size: int | None = None
    feature_num_inner_blocks: int | None = None
    feature_num_blocks: int = 2
    feature_num_attention_heads: int = 16

    def __post_init__(self) -> None:
        if not self.name or "." in self.name:
            raise ValueError(f"`name` of an adaptor must be non-empty and without dots, got {self.name!r}.")
        check_choice(f"adaptors.{self.name}.mlp_version", self.mlp_version, MLP_VERSIONS)
        check_choice(f"adaptors.{self.name}.feature_head", self.feature_head, FEATURE_HEADS)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RadioAdaptorConfig":
        """Build one from a JSON object.

        Raises:
            ValueError: If a key is unknown (the message suggests the nearest one) or a required key is missing.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise ValueError(f"Unknown key {key!r} in `adaptors`.{did_you_mean(key, known)}")
        missing = [key for key in ("name", "hidden_size") if key not in values]
        if missing:
            raise ValueError(f"An entry of `adaptors` lacks {missing}: {values}.")
        return cls(**values)


@dataclass(kw_only=True, repr=False, eq=False)
class AdaptorFields(TrunkFields):
    """The heads into the teachers' spaces.

    Attributes:
        adaptors: One JSON object per adaptor, fields as in `RadioAdaptorConfig`.
        adaptor_names: Adaptors whose outputs `forward` returns by default; `None` means all of `adaptors`.
    """

    adaptors: list[dict[str, Any]] = field(default_factory=list)
    adaptor_names: list[str] | None = None

    @property
    def adaptor_configs(self) -> list[RadioAdaptorConfig]:
        """`adaptors` as typed objects."""
        return [RadioAdaptorConfig.from_dict(adaptor) for adaptor in self.adaptors]

    def adaptor(self, name: str, *, argument: str = "adaptor_names") -> RadioAdaptorConfig:
        """Return the adaptor of a name.

        Args:
            name: For example `"siglip2-g"`.
            argument: What holds that name, as the user wrote it; the message begins with it.

        Raises:
            ValueError: If there is none. The message lists all adaptors and suggests the nearest.
        """
        adaptors = {adaptor.name: adaptor for adaptor in self.adaptor_configs}
        check_choice(argument, name, adaptors)
        return adaptors[name]

    def complete_adaptors(self) -> None:
        """Write out every field of every adaptor, and the names of all where none are chosen."""
        self.adaptors = [dataclasses.asdict(adaptor) for adaptor in self.adaptor_configs]
        if self.adaptor_names is None:
            self.adaptor_names = [adaptor["name"] for adaptor in self.adaptors]

    def check_adaptors(self) -> None:
        """Refuse adaptors that cannot be built.

        Raises:
            ValueError: If two have one name, or a chosen one is unknown.
        """
        names = [adaptor.name for adaptor in self.adaptor_configs]
        if len(set(names)) < len(names):
            raise ValueError(f"`adaptors` must have distinct names, got {names}.")
        for name in self.adaptor_names or []:
            self.adaptor(name)


class RadioConfig(
    AdaptorFields,
    DetectionFields,
    DPTFields,
    ClassFields,
    TextFields,
    PyramidFields,
    BackboneConfigMixin,
    PreTrainedConfig,
):
    r"""Shape of a RADIO backbone, its adaptors and the heads of the task models.

    The fields are documented by purpose, in the classes that this one is made of: `TrunkFields`, `ViTDetFields`,
    `AdaptorFields`, `DetectionFields`, `DPTFields`, `ClassFields`, `TextFields` and `PyramidFields`. In `config.json`
    they lie flat side by side. Those of transformers' native `RadioConfig` keep their names, so that the same file
    opens natively without `trust_remote_code`; the rest is ours.

    `RadioBackbone` also reads `out_features` or `out_indices`: "stem" is the patch embedding, "stage1" the first block,
    and so on; with the pyramid they are "p2" to "p5".

    Attributes:
        version: Name of the published version that the weights come from.
        nvidia_source: What NVIDIA's file held beside the weights (training arguments, names of heads), so that a
            converted checkpoint can be converted back. The network does not read it.

    References:
        C-RADIOv4 tech report, https://arxiv.org/abs/2601.17237
    """

    model_type = "radio"

    version: str | None = None
    nvidia_source: dict[str, Any] | None = None

    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    presets: ClassVar[tuple[str, ...]] = tuple(PRESETS)

    def __post_init__(self, **kwargs: Any) -> None:
        self.complete_trunk()
        self.complete_adaptors()
        self._set_stages(kwargs.pop("out_features", None), kwargs.pop("out_indices", None))
        kwargs.pop("stage_names", None)
        super().__post_init__(**kwargs)
        self.check_trunk()
        self.check_vitdet()
        self.check_adaptors()
        self.check_tokens()
        self.check_heads()

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "RadioConfig":
        """Return the configuration of a published architecture, or of one of our small ones.

        Args:
            name: For example `"c-radio_v4-h"`; `RadioConfig.presets` lists all.
            overrides: Fields to change, for example `vitdet_window_size=8`.

        Returns:
            A new configuration. It holds no adaptors unless `adaptors` is given.

        Raises:
            ValueError: If no preset has this name, or an override is no field.
        """
        check_choice("preset", name, PRESETS)
        cls.check_fields(overrides.keys() - {"num_labels"})
        return cls(**_override({**copy.deepcopy(PRESETS[name]), "version": name}, overrides))

    @classmethod
    def check_fields(cls, names: Iterable[str]) -> None:
        """Refuse what is no field of a configuration.

        Raises:
            ValueError: If a name is unknown; the message suggests the nearest.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in names:
            if name not in known:
                raise ValueError(f"Unknown configuration field {name!r}.{did_you_mean(name, known)}")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "RadioConfig":
        """Build one from a parsed `config.json`, ours or NVIDIA's.

        Args:
            config_dict: The parsed file.
            kwargs: Fields in place of the file's, and what transformers takes here. Another `hidden_size` or
                `mlp_ratio` also changes `intermediate_size`.
        """
        if is_nvidia_config(config_dict):
            config_dict = config_fields_from_nvidia(config_dict)
        # transformers sets overrides on the finished configuration: too late for these.
        first = {name: kwargs.pop(name) for name in FIRST_FIELDS if name in kwargs}
        return super().from_dict(_override(config_dict, first) if first else config_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of `config.json`, with the complete `auto_map` and what the pipelines need."""
        values = super().to_dict()
        values.pop("custom_pipelines", None)  # of the folder that this was read from
        return values | auto_map_entries(
            self.architectures, has_text_tower=self.text_tower is not None, has_names=bool(self.return_dict)
        )

    def native_differences(self) -> list[str]:
        """Name what makes the outputs of transformers' native `RadioModel` differ on a folder of this configuration.

        None where summary and features are equal; adaptors and intermediate features do not count, native has none.
        """
        has_windows = len(self.global_blocks) < self.num_hidden_layers
        reads_registers = any(index >= self.num_cls_tokens for index in self.summary_idxs or [])
        reasons = {
            "a position table resized with aligned corners": self.pos_embed_align_corners,
            "a position table cropped instead of fitted to each grid": not self.use_cropped_positions,
            "a feature normalizer": self.use_feature_normalizer,
            "LayerScale that is not folded into the linear layers": self.use_layer_scale,
            "a `layerscale_value` other than 1, by which native scales": self.layerscale_value != 1,
            "a final norm": self.use_final_norm,
            "a biased patch projection": self.use_patch_bias,
            "SwiGLU, whose weights have other names there": self.use_swiglu_ffn,
            "a summary of registers, which native cuts off": reads_registers,
            "`return_dict` off, with which native stops": not self.return_dict,
            "windowed attention by default": self.vitdet_window_size is not None and has_windows,
        }
        return [reason for reason, applies in reasons.items() if applies]

    def without_adaptors(self) -> "RadioConfig":
        """Return a copy that describes a backbone alone: without adaptors, and without the text tower of one."""
        config = self.without_text_tower()
        config.adaptors, config.adaptor_names = [], []
        return config

    def without_text_tower(self) -> "RadioConfig":
        """Return a copy that describes a backbone with its adaptors only."""
        config = copy.deepcopy(self)
        config.text_tower, config.text_adaptor = None, None
        return config

    def check_tokens(self) -> None:
        """Refuse tokens that the summary or a head cannot read.

        Others than class tokens are a mistake, but for NVIDIA's files: there positions and slots may lie behind them.

        Raises:
            ValueError: If there is no such token.
        """
        of_nvidia = self.nvidia_source is not None
        what = "class tokens and registers" if of_nvidia else "the class tokens"
        end = self.num_prefix_tokens if of_nvidia else self.num_cls_tokens
        if any(not 0 <= index < end for index in self.summary_idxs or []):
            raise ValueError(f"`summary_idxs` must lie in [0, {end}), {what}, got {self.summary_idxs}.")
        end, what = (end + 1, "up to the first patch") if of_nvidia else (end, what)
        for adaptor in self.adaptor_configs:
            if not 0 <= adaptor.token_index < end:
                raise ValueError(
                    f"`adaptors.{adaptor.name}.token_index` must lie in [0, {end}), {what}, got {adaptor.token_index}."
                )

    def check_heads(self) -> None:
        """Check the fields of the task models' heads.

        Their models call it too: fields that are passed to `from_pretrained` are set after the configuration is built.

        Raises:
            ValueError: If one of them cannot be right.
        """
        self.check_classes()
        self.check_dpt()
        self.check_detection()

    def _set_stages(self, out_features: list[str] | None, out_indices: list[int] | None) -> None:
        if self.use_feature_pyramid:
            self.stage_names = ["p2", "p3", "p4", "p5"]
            if out_features is None and out_indices is None:
                out_features = self.stage_names
        else:
            self.stage_names = ["stem", *(f"stage{index + 1}" for index in range(self.num_hidden_layers))]
        self.set_output_features_output_indices(out_features, out_indices)


def _override(fields: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Return complete fields with some in their place, of width and ratio of the MLP the one that decides."""
    stale = "mlp_ratio" if "intermediate_size" in overrides else "intermediate_size"
    return {**{name: value for name, value in fields.items() if name != stale}, **overrides}
