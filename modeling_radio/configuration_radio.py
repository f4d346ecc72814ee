"""Configuration of the RADIO vision backbones: every field by purpose, the adaptors, and the published presets."""

import copy
import dataclasses
import inspect
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from .adaptors_config_radio import AdaptorFields
from .auto_map_radio import auto_map_entries, copy_source_files, own_pipeline
from .config_checks_radio import RULES, check_field, check_file
from .heads_config_radio import ClassFields, DetectionFields, DPTFields, PyramidFields, TextFields
from .messages_radio import check_choice, did_you_mean
from .nvidia_radio import config_fields_from_nvidia, is_nvidia_config
from .releases_radio import PRESETS


# What a configuration is built from that is no field of its file.
OTHER_ARGUMENTS = ("num_labels", "out_features", "out_indices", "attn_implementation", "output_attentions")
LABELS = ("id2label", "label2id")
# Fields of transformers' native configuration that follow from others.
NATIVE_FIELDS = ("patch_dim", "video_patch_dim")
# What is fitted to the classes, and forgotten with them.
FITTED_LISTS = ("class_weights", "score_thresholds")
FITTED = ("temperature", *FITTED_LISTS)
# From here on (difflib's ratio) an unknown name is told to be a slip. Our choice: a letter of ten may be wrong.
SLIP = 0.85


class RadioConfig(
    AdaptorFields,
    DetectionFields,
    DPTFields,
    ClassFields,
    TextFields,
    PyramidFields,
    PreTrainedConfig,
):
    r"""Shape of a RADIO backbone, its adaptors and the heads of the task models.

    The fields are documented by purpose, in the classes that this one is made of: `TrunkFields`, `ViTDetFields`,
    `MergingFields`, `AdaptorFields`, `DetectionFields`, `DPTFields`, `ClassFields`, `TextFields` and `PyramidFields`.
    In `config.json` they lie flat side by side. Those of transformers' native `RadioConfig` keep their names, so that
    the same file opens natively without `trust_remote_code`; the rest is ours.

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
        self._check_names(kwargs)
        self._warn_of_slips(kwargs)
        self.complete_trunk()
        self.complete_adaptors()
        kwargs.pop("stage_names", None)
        self.choose_stages(kwargs.pop("out_features", None), kwargs.pop("out_indices", None))
        super().__post_init__(**kwargs)
        self.check()

    def __setattr__(self, key: str, value: Any) -> None:
        """Refuse a value that the field cannot hold, and once complete let follow what was not chosen itself."""
        check_field(key, value)
        is_complete = vars(self).get("_out_features") is not None
        if is_complete and value is None and key in LABELS:
            raise ValueError(f"`{key}` must be a mapping of all classes, got None. `num_labels` makes new names.")
        stale = self._stale_fields({key: value}) if is_complete else set()
        if key == "architectures":  # Auto classes that have two classes to choose from iterate
            value = value or []
        super().__setattr__(key, value)
        if "intermediate_size" in stale or "mlp_ratio" in stale:
            vars(self).update(dict.fromkeys(stale, 0))
            self.complete_trunk()
        if "adaptor_names" in stale:
            self.adaptor_names = None
        if key == "adaptors" and is_complete:
            self.complete_adaptors()
        if "out_features" in stale:
            self.choose_stages()
        if key == "id2label" and is_complete:
            vars(self).update(_numbers_of(value))
        vars(self).update({name: getattr(type(self), name) for name in FITTED if name in stale})

    def check(self) -> None:
        """Refuse what cannot be built.

        Models call it too: a list may have been changed in place, and fields that contradict each other are set one by
        one.

        Raises:
            ValueError: If a field does not keep its rule, or two contradict each other. The message names them.
        """
        for name in RULES:
            check_field(name, getattr(self, name))
        self.check_trunk()
        self.check_merging()
        self.check_adaptors()
        self.check_tokens()
        self._check_stages_of_eradio()
        self.check_dpt()
        self.check_detection()
        self.check_pyramid()

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
        cls.check_fields(overrides)
        return cls(**cls._override({**copy.deepcopy(PRESETS[name]), "version": name}, overrides))

    @classmethod
    def check_fields(cls, names: Iterable[str]) -> None:
        """Refuse what is no field of a configuration.

        Raises:
            ValueError: If a name is unknown; the message suggests the nearest.
        """
        known = cls._known_fields()
        for name in names:
            if name not in known:
                raise ValueError(f"Unknown configuration field {name!r}.{did_you_mean(name, known)}")

    @classmethod
    def _known_fields(cls) -> list[str]:
        fields = [field.name for field in dataclasses.fields(cls) if not field.name.startswith("_")]
        return [*fields, *OTHER_ARGUMENTS]

    @classmethod
    def _check_names(cls, names: Iterable[str]) -> None:
        """Refuse names of methods and of settings of the class, in whose place transformers would put the value.

        Raises:
            ValueError: If one is among them.
        """
        for name in names:
            own = inspect.getattr_static(cls, name, dataclasses.MISSING)
            is_set = isinstance(own, property) and own.fset is not None
            if own is not dataclasses.MISSING and not is_set and name not in ("model_type", "stage_names"):
                raise ValueError(f"`{name}` must be left out: it is no field of a configuration.")

    @classmethod
    def _warn_of_slips(cls, names: Iterable[str]) -> None:
        """Tell of names that are nearly those of fields: transformers keeps what it does not know without a word."""
        known = cls._known_fields()
        for name in names:
            meant = "" if name in known else did_you_mean(name, known, at_least=SLIP)
            if meant:
                warnings.warn(f"RadioConfig has no field {name!r}, which changes nothing.{meant}", stacklevel=4)

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read a folder's `config.json`; for a pipeline that was asked for without a task, with the folder's own."""
        is_to_infer = kwargs.get("_from_pipeline", "") is None
        values, others = super().get_config_dict(*args, **kwargs)
        check_file(values)
        if is_to_infer and "custom_pipelines" in values:
            values = values | {"custom_pipelines": own_pipeline(values)}
        return values, others

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "RadioConfig":
        """Build one from a parsed `config.json`, ours or NVIDIA's.

        Args:
            config_dict: The parsed file.
            kwargs: Fields in place of the file's, and what transformers takes here. Another `hidden_size` or
                `mlp_ratio` also changes `intermediate_size`.
        """
        check_file(config_dict)
        if is_nvidia_config(config_dict):
            config_dict = config_fields_from_nvidia(config_dict, kwargs.get("adaptor_names"))
        for name in ("dtype", "torch_dtype"):
            if isinstance(kwargs.get(name), str) and kwargs[name] == "auto":  # that of the file
                del kwargs[name]
        # transformers sets overrides one by one on the finished configuration: too late where they go together.
        own = {field.name for field in dataclasses.fields(cls)} - {f.name for f in dataclasses.fields(PreTrainedConfig)}
        overrides = {name: kwargs.pop(name) for name in (*own, *OTHER_ARGUMENTS[:3], *LABELS) if name in kwargs}
        return super().from_dict(cls._override(config_dict, overrides), **kwargs)

    @classmethod
    def of(cls, config: Any) -> "RadioConfig":
        """Return a configuration that our models are built from: itself, or what transformers' native one says.

        Raises:
            ValueError: If it is the configuration of something else.
        """
        if isinstance(config, cls):
            return config
        if not isinstance(config, PreTrainedConfig) or config.model_type != cls.model_type:
            raise ValueError(f"`config` must be a RadioConfig, got a {type(config).__name__}.")
        fields = {name: value for name, value in config.to_dict().items() if name not in NATIVE_FIELDS}
        return cls.from_dict(fields, name_or_path=config.name_or_path, attn_implementation=config._attn_implementation)

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Save `config.json`, with the source files that `trust_remote_code` runs.

        They lie there before transformers uploads the folder where it is asked to.
        """
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        copy_source_files(save_directory)
        super().save_pretrained(save_directory, *args, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields alone: inside another model's configuration an `auto_map` would point to no files."""
        values = super().to_dict()
        return {name: value for name, value in values.items() if name not in ("auto_map", "custom_pipelines")}

    def to_diff_dict(self) -> dict[str, Any]:
        """Return the JSON object of `config.json`, with the complete `auto_map` and what the pipelines need."""
        return super().to_diff_dict() | auto_map_entries(self.architectures, has_text_tower=self.text_tower is not None)

    def native_differences(self) -> list[str]:
        """Name what makes the outputs of transformers' native `RadioModel` differ on a folder of this configuration.

        None where summary and features are equal; adaptors and intermediate features do not count, native has none.
        """
        reads_registers = any(index >= self.num_cls_tokens for index in self.summary_idxs or [])
        reasons = {
            "tokens that are merged, and a decoder": self.num_mergings > 0,
            "a position table resized with aligned corners": self.pos_embed_align_corners,
            "a position table cropped instead of fitted to each grid": not self.use_cropped_positions,
            "a feature normalizer": self.use_feature_normalizer,
            "E-RADIO, which native does not know": self.eradio is not None,
            "LayerScale that is not folded into the linear layers": self.use_layer_scale,
            "a `layerscale_value` other than 1, by which native scales": self.layerscale_value != 1,
            "a final norm": self.use_final_norm,
            "a biased patch projection": self.use_patch_bias,
            "SwiGLU, whose weights have other names there": self.use_swiglu_ffn,
            "a summary of registers, which native cuts off": reads_registers,
            "`return_dict` off, with which native stops; open it with `return_dict=True`": not self.return_dict,
            "windowed attention by default": self.vitdet_window_size is not None and self.has_windowed_blocks,
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

    def _check_stages_of_eradio(self) -> None:
        """Refuse maps of E-RADIO's levels, which have other widths: its backbone gives the final features.

        Raises:
            ValueError: If other maps are chosen.
        """
        if self.eradio is not None and not self.use_feature_pyramid and self.out_features != self.stage_names[-1:]:
            raise ValueError(f"`out_features` must be {self.stage_names[-1:]} for E-RADIO, got {self.out_features}.")

    def _stale_fields(self, changed: Mapping[str, Any]) -> set[str]:
        """Return what follows from changed fields, given with their new values, but for what was chosen itself."""
        stale = self._stale_of_classes(changed)
        if not {"hidden_size", "mlp_ratio"}.isdisjoint(changed):
            stale.add("intermediate_size")
        if "intermediate_size" in changed:
            stale.add("mlp_ratio")
        if "adaptors" in changed and self.adaptor_names == self.all_adaptor_names:
            stale.add("adaptor_names")
        has_other_stages = not {"num_hidden_layers", "use_feature_pyramid"}.isdisjoint(changed)
        if has_other_stages and self.out_features == self.default_stages:
            stale |= {"out_features", "out_indices"}
        return stale - set(changed)

    def _stale_of_classes(self, changed: Mapping[str, Any]) -> set[str]:
        """Return what cannot stay where the number of classes changes."""
        names = changed.get("id2label")
        num_labels = len(names) if isinstance(names, Mapping) else changed.get("num_labels", self.num_labels)
        if self.num_labels in (None, num_labels):
            return set()
        fitting = {name for name in FITTED_LISTS if len(getattr(self, name) or ()) == num_labels}
        return {*FITTED, *(() if "id2label" in changed else LABELS)} - fitting

    @classmethod
    def _override(cls, fields: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
        """Return keyword arguments with others in their place, and without what followed from those."""
        if not overrides:
            return fields
        overrides = {**_numbers_of(overrides.get("id2label")), **overrides}
        stale = cls(**fields)._stale_fields(overrides)
        if not {"out_features", "out_indices"}.isdisjoint(overrides):
            stale |= {"out_features", "out_indices"}
        return {**{name: value for name, value in fields.items() if name not in stale}, **overrides}


def _numbers_of(names: Any) -> dict[str, dict[str, int]]:
    """Return the `label2id` that an `id2label` wants; none of what is not one, which transformers refuses."""
    is_valid = isinstance(names, Mapping) and all(
        str(index).isdecimal() and isinstance(name, str) for index, name in names.items()
    )
    if not is_valid:
        return {}
    return {"label2id": {name: int(index) for index, name in names.items()}}
