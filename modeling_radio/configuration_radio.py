"""Configuration of the RADIO vision backbones: the network's shape, its adaptors and the published presets."""

import copy
import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from .messages_radio import check_blocks, check_choice, did_you_mean
from .nvidia_radio import config_fields_from_nvidia, is_nvidia_config
from .releases_radio import PRESETS, mlp_ratio_for
from .resolution_radio import round_to_step


AUTO_MAP = {
    "AutoConfig": "configuration_radio.RadioConfig",
    "AutoModel": "auto_radio.RadioModel",
    "AutoBackbone": "auto_radio.RadioBackbone",
    "AutoModelForImageClassification": "auto_radio.RadioForImageClassification",
    "AutoModelForZeroShotImageClassification": "auto_radio.RadioForZeroShotImageClassification",
    "AutoModelForSemanticSegmentation": "auto_radio.RadioForSemanticSegmentation",
    "AutoModelForImageSegmentation": "auto_radio.RadioForSemanticSegmentation",
    "AutoModelForDepthEstimation": "auto_radio.RadioForDepthEstimation",
    "AutoModelForObjectDetection": "auto_radio.RadioForObjectDetection",
    "AutoModelForInstanceSegmentation": "auto_radio.RadioForInstanceSegmentation",
}
"""Written in full into every saved `config.json`: `save_pretrained` alone writes only the saved class."""

INSTANCE_SEGMENTER = "RadioForInstanceSegmentation"

INSTANCE_AUTO_MAP = {
    **AUTO_MAP,
    "AutoModelForObjectDetection": f"auto_radio.{INSTANCE_SEGMENTER}",
    "AutoModelForImageSegmentation": f"auto_radio.{INSTANCE_SEGMENTER}",
}
"""Written into that model's folders: a detector or a semantic segmenter would start there with a new head."""

INSTANCE_PIPELINES = {
    "image-segmentation": {
        "impl": "pipelines_radio.RadioInstanceSegmentationPipeline",
        "pt": ["AutoModelForInstanceSegmentation"],
        "type": "image",
    }
}
"""Written there too: transformers' own pipeline tells instances by the processor, which is the same for every task."""

TEXT_PIPELINES = {
    "zero-shot-image-classification": {
        "impl": "pipelines_radio.RadioZeroShotImageClassificationPipeline",
        "pt": ["AutoModelForZeroShotImageClassification"],
        "type": "multimodal",
    }
}
"""Written where there is a text tower: transformers' own pipeline tells SigLIP's towers by the model's name."""

WIDTHS = ("hidden_size", "intermediate_size", "mlp_ratio")
MLP_VERSIONS = ("v1", "v2")
FEATURE_HEADS = ("mlp", "attention")
CLASSIFIER_POOLINGS = ("summary", "summary_and_features")
SEGMENTATION_HEADS = ("linear", "dpt")

OPENAI_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class RadioAdaptorConfig:
    """Shape of one adaptor: the pair of heads that maps the backbone into one teacher's output space.

    Attributes:
        name: The teacher's name, for example `"siglip2-g"`. It is part of the weights' keys.
        token_index: Which class token the summary head reads, in `[0, num_cls_tokens)`.
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


class RadioConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""Shape of a RADIO backbone and its adaptors.

    The fields of transformers' native `RadioConfig` keep their names, so that the same `config.json` opens natively
    without `trust_remote_code`; the rest is ours.

    Attributes:
        hidden_size: Width of the tokens.
        num_hidden_layers: Number of transformer blocks.
        num_attention_heads: Attention heads per block.
        intermediate_size: Hidden width of the MLP, before SwiGLU's two thirds; 0 takes `hidden_size * mlp_ratio`.
        mlp_ratio: The same as a ratio, as native transformers wants it. Where both are given, `intermediate_size` wins;
            afterwards it is the smallest number whose product with `hidden_size` truncates to that width.
        hidden_act: Activation of the MLP.
        layer_norm_eps: Epsilon of every layer norm.
        attention_probs_dropout_prob: Dropout on attention probabilities in training.
        hidden_dropout_prob: Unused, kept for the native config.
        drop_path_rate: Stochastic depth of the last block in training; it grows linearly from 0 at the first.
        use_swiglu_ffn: SwiGLU instead of the MLP (the DINOv2-shaped g models).
        qkv_bias: Bias in the query, key and value projections.
        layerscale_value: Start value of LayerScale where `use_layer_scale`; native RADIO reads it too.
        num_channels: Channels of the image.
        patch_size: Side of a square patch in pixels.
        image_size: Nominal image side in pixels; not a limit.
        max_img_size: Image side in pixels that the position table spans.
        num_cls_tokens: Class tokens, one per distinct teacher name (one in all for the g models).
        num_registers: Register tokens after the class tokens.
        video_temporal_patch_size: Native field for video; only `None` is supported here.
        summary_idxs: Class tokens whose concatenation is the summary.
        norm_mean: Per-channel mean subtracted inside the model from pixels in [0, 1].
        norm_std: Per-channel standard deviation divided by inside the model.
        initializer_range: Standard deviation of freshly initialised linear weights.
        use_layer_scale: Learned per-channel scale on each residual branch. Native RADIO does not know its key, so
            converted checkpoints have it folded into the linear layers.
        use_patch_bias: Bias in the patch projection (the DINOv2-shaped g models).
        use_final_norm: Layer norm after the last block (the DINOv2-shaped g models).
        use_cropped_positions: Fit the position table to each grid (cropped position embeddings). Without, the table
            keeps its scale: it is cropped top-left, and resized only along a side that it does not reach.
        pos_embed_align_corners: Resize the position table with aligned corners (C-RADIOv3-B and -H).
        use_feature_normalizer: Rotate and shift the dense features into a standardised space.
        num_intermediate_normalizers: Layers with their own normaliser for intermediate features; 0 for none.
        intermediate_rotation_per_layer: One rotation for each of those layers instead of a shared one.
        vitdet_window_size: Default window in tokens for ViTDet mode; `None` is global attention.
        vitdet_num_global: Blocks with global attention in ViTDet mode, evenly spread (the last one always is).
        vitdet_num_windowed: Windowed blocks between two global ones; overrides `vitdet_num_global`.
        max_resolution: Largest accepted image side in pixels; `None` means `max_img_size`.
        preferred_resolution: Height and width in pixels that the processor uses by default.
        adaptors: One JSON object per adaptor, fields as in `RadioAdaptorConfig`.
        adaptor_names: Adaptors whose outputs `forward` returns by default; `None` means all of `adaptors`.
        version: Name of the published version that the weights come from.
        nvidia_source: What NVIDIA's file held beside the weights (training arguments, names of heads), so that a
            converted checkpoint can be converted back. The network does not read it.
        use_feature_pyramid: `RadioBackbone` returns maps at strides 1/4, 1/2, 1 and 2 patches instead of block outputs.
        feature_pyramid_size: Channels of those maps.
        classifier_pooling: What the image classifier reads: `"summary"`, or `"summary_and_features"`, which adds the
            mean of the features.
        segmentation_head: `"linear"`, batch norm and one linear layer on the features (the papers' probe), or `"dpt"`,
            a convolutional decoder over four blocks.
        dpt_indices: 0-based blocks that DPT heads (depth, and segmentation with `"dpt"`) read, four in ascending
            order; `None` spreads them evenly over those with global attention in ViTDet mode, so that the borders of
            windows do not show; for B, L, H and g those are the quarters of the depth.
        dpt_hidden_size: Channels of a DPT head, an even number.
        class_weights: Weight of each class in the loss of image classification and semantic segmentation; `None`
            weighs all alike. Regression does not use them.
        semantic_loss_ignore_index: Label of pixels that semantic segmentation does not train on.
        text_tower: Configuration of a teacher's text tower, a JSON object as transformers writes it for a SigLIP,
            SigLIP2 or CLIP text model; `None` where there is none.
        text_adaptor: The adaptor whose summary is compared with that tower's texts.
        detection_indices: 0-based blocks that the detector reads; `None` means those with global attention in ViTDet
            mode, so that the borders of windows do not show.
        detection_hidden_size: Width of the detector, a multiple of 32.
        detection_num_layers: Layers of its decoder.
        detection_num_queries: Largest number of objects found in an image, and smallest number of patches of one.
        detection_num_groups: Groups of queries in training (Group DETR); more learn faster and cost more, 1 is plain.
        detection_window_size: Window that the detection models run the backbone in, as `window_size` of their
            `forward`; `None` takes `vitdet_window_size`.

    `RadioBackbone` also reads `out_features` or `out_indices`: "stem" is the patch embedding, "stage1" the first block,
    and so on; with the pyramid they are "p2" to "p5".

    References:
        C-RADIOv4 tech report, https://arxiv.org/abs/2601.17237
    """

    model_type = "radio"

    hidden_size: int = 1280
    num_hidden_layers: int = 32
    num_attention_heads: int = 16
    intermediate_size: int = 0
    mlp_ratio: float = 4.0
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    attention_probs_dropout_prob: float = 0.0
    hidden_dropout_prob: float = 0.0
    drop_path_rate: float = 0.0
    use_swiglu_ffn: bool = False
    qkv_bias: bool = True
    layerscale_value: float = 1.0
    num_channels: int = 3
    patch_size: int = 16
    image_size: int = 224
    max_img_size: int = 2048
    num_cls_tokens: int = 3
    num_registers: int = 7
    video_temporal_patch_size: int | None = None
    summary_idxs: list[int] | None = None
    norm_mean: list[float] | tuple[float, float, float] = OPENAI_CLIP_MEAN
    norm_std: list[float] | tuple[float, float, float] = OPENAI_CLIP_STD
    initializer_range: float = 0.02

    use_layer_scale: bool = False
    use_patch_bias: bool = False
    use_final_norm: bool = False
    use_cropped_positions: bool = True
    pos_embed_align_corners: bool = False
    use_feature_normalizer: bool = False
    num_intermediate_normalizers: int = 0
    intermediate_rotation_per_layer: bool = False
    vitdet_window_size: int | None = None
    vitdet_num_global: int = 4
    vitdet_num_windowed: int | None = None
    max_resolution: int | None = None
    preferred_resolution: list[int] | tuple[int, int] = (512, 512)
    adaptors: list[dict[str, Any]] = field(default_factory=list)
    adaptor_names: list[str] | None = None
    version: str | None = None
    nvidia_source: dict[str, Any] | None = None
    use_feature_pyramid: bool = False
    feature_pyramid_size: int = 256  # as in ViTDet, https://arxiv.org/abs/2203.16527
    classifier_pooling: str = "summary"
    segmentation_head: str = "linear"
    dpt_indices: list[int] | None = None
    dpt_hidden_size: int = 256  # as in DPT, https://arxiv.org/abs/2103.13413
    class_weights: list[float] | None = None
    semantic_loss_ignore_index: int = 255  # transformers' value for segmentation, after the masks of VOC and ADE20k
    text_tower: dict[str, Any] | None = None
    text_adaptor: str | None = None
    detection_indices: list[int] | None = None
    detection_hidden_size: int = 256  # this and the layers as in RF-DETR, https://arxiv.org/abs/2511.09554
    detection_num_layers: int = 3
    detection_num_queries: int = 100  # our choice: COCO's metric counts 100 an image; RF-DETR's 300 need 280 px
    detection_num_groups: int = 5  # our choice: RF-DETR has 13 for COCO; on few images 5 did as well in half the time
    detection_window_size: int | str | None = 16  # our choice: of the trained windows nearest to ViTDet's 14

    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    presets: ClassVar[tuple[str, ...]] = tuple(PRESETS)

    def __post_init__(self, **kwargs: Any) -> None:
        self.intermediate_size = self.intermediate_size or int(self.hidden_size * self.mlp_ratio)
        self.mlp_ratio = mlp_ratio_for(self.intermediate_size, self.hidden_size)
        if self.summary_idxs is None:
            self.summary_idxs = list(range(min(2, self.num_cls_tokens)))
        self.norm_mean = list(self.norm_mean)
        self.norm_std = list(self.norm_std)
        self.preferred_resolution = list(self.preferred_resolution)
        self.adaptors = [dataclasses.asdict(RadioAdaptorConfig.from_dict(a)) for a in self.adaptors]
        if self.adaptor_names is None:
            self.adaptor_names = [adaptor["name"] for adaptor in self.adaptors]
        self._set_stages(kwargs.pop("out_features", None), kwargs.pop("out_indices", None))
        kwargs.pop("stage_names", None)
        super().__post_init__(**kwargs)
        self._validate_network()
        self._validate_adaptors()
        self.validate_heads()

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
        if name not in PRESETS:
            raise ValueError(f"Unknown preset {name!r}.{did_you_mean(name, PRESETS)} Presets: {sorted(PRESETS)}.")
        known = [*(field.name for field in dataclasses.fields(cls)), "num_labels"]
        for key in overrides:
            if key not in known:
                raise ValueError(f"Unknown configuration field {key!r}.{did_you_mean(key, known)}")
        fields: dict[str, Any] = {**copy.deepcopy(PRESETS[name]), "version": name, **overrides}
        return cls(**fields)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "RadioConfig":
        """Build one from a parsed `config.json`, ours or NVIDIA's.

        Fields in `kwargs` override those of the file; another `hidden_size` or `mlp_ratio` changes the MLP's width too.
        """
        if is_nvidia_config(config_dict):
            config_dict = config_fields_from_nvidia(config_dict)
        # transformers sets overrides on the finished configuration, too late for fields that others follow from.
        widths = {name: kwargs.pop(name) for name in WIDTHS if name in kwargs}
        if widths:
            config_dict = {**config_dict, "intermediate_size": 0, **widths}
        return super().from_dict(config_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of `config.json`, with the complete `auto_map` and what the pipelines need."""
        values: dict[str, Any] = {**super().to_dict(), "auto_map": dict(AUTO_MAP)}
        values.pop("custom_pipelines", None)  # of the folder that this was read from
        if self.architectures == [INSTANCE_SEGMENTER]:
            values |= {"auto_map": dict(INSTANCE_AUTO_MAP), "custom_pipelines": copy.deepcopy(INSTANCE_PIPELINES)}
        elif self.text_tower is not None:
            values["custom_pipelines"] = copy.deepcopy(TEXT_PIPELINES)
        return values

    def native_differences(self) -> list[str]:
        """Name what makes the outputs of transformers' native `RadioModel` differ on a folder of this configuration.

        None where summary and features are equal; adaptors and intermediate features do not count, native has none.
        """
        has_windows = not all(self.is_global_block(index) for index in range(self.num_hidden_layers))
        reasons = {
            "a position table resized with aligned corners": self.pos_embed_align_corners,
            "a position table cropped instead of fitted to each grid": not self.use_cropped_positions,
            "a feature normalizer": self.use_feature_normalizer,
            "LayerScale that is not folded into the linear layers": self.use_layer_scale,
            "a `layerscale_value` other than 1, by which native scales": self.layerscale_value != 1,
            "a final norm": self.use_final_norm,
            "a biased patch projection": self.use_patch_bias,
            "SwiGLU, whose weights have other names there": self.use_swiglu_ffn,
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

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the first patch: class tokens and registers."""
        return self.num_cls_tokens + self.num_registers

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

    @property
    def detection_blocks(self) -> list[int]:
        """Blocks that the detector reads, ascending."""
        if self.detection_indices is not None:
            return self.detection_indices
        return [index for index in range(self.num_hidden_layers) if self.is_global_block(index)]

    @property
    def dpt_blocks(self) -> list[int]:
        """The four blocks that DPT heads read, ascending; architectures of fewer global blocks repeat some."""
        if self.dpt_indices is not None:
            return self.dpt_indices
        blocks = [index for index in range(self.num_hidden_layers) if self.is_global_block(index)]
        return [blocks[max(len(blocks) * quarter // 4 - 1, 0)] for quarter in range(1, 5)]

    @property
    def position_grid_size(self) -> int:
        """Rows (and columns) of the position table."""
        return self.max_img_size // self.patch_size

    def is_global_block(self, index: int) -> bool:
        """Whether block `index` (0-based) attends globally in ViTDet mode (C-RADIOv4 3.2).

        The blocks are cut into periods whose last block is global; the very last block always is.
        """
        if self.vitdet_num_windowed is not None:
            period = self.vitdet_num_windowed + 1
        else:
            period = max(self.num_hidden_layers // self.vitdet_num_global, 1)
        return index % period == period - 1 or index == self.num_hidden_layers - 1

    def _set_stages(self, out_features: list[str] | None, out_indices: list[int] | None) -> None:
        if self.use_feature_pyramid:
            self.stage_names = ["p2", "p3", "p4", "p5"]
            if out_features is None and out_indices is None:
                out_features = self.stage_names
        else:
            self.stage_names = ["stem", *(f"stage{index + 1}" for index in range(self.num_hidden_layers))]
        self.set_output_features_output_indices(out_features, out_indices)

    def _validate_network(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size` ({self.hidden_size}) must be a multiple of `num_attention_heads` "
                f"({self.num_attention_heads})."
            )
        if self.max_img_size % self.patch_size:
            nearest = round_to_step(self.max_img_size, self.patch_size)
            raise ValueError(
                f"`max_img_size` ({self.max_img_size}) must be a multiple of `patch_size` ({self.patch_size}); "
                f"the nearest is {nearest}."
            )
        if any(not 0 <= index < self.num_cls_tokens for index in self.summary_idxs or []):
            raise ValueError(
                f"`summary_idxs` must lie in [0, {self.num_cls_tokens}), the class tokens; got {self.summary_idxs}."
            )
        if self.vitdet_window_size is not None and self.vitdet_window_size < 1:
            raise ValueError(f"`vitdet_window_size` must be at least 1 or None, got {self.vitdet_window_size}.")
        if self.video_temporal_patch_size is not None:
            raise ValueError(
                "`video_temporal_patch_size` is not supported: video needs transformers' native RadioModel."
            )

    def _validate_detection(self) -> None:
        if self.detection_hidden_size < 32 or self.detection_hidden_size % 32:
            nearest = round_to_step(self.detection_hidden_size, 32)
            raise ValueError(
                f"`detection_hidden_size` must be a multiple of 32, got {self.detection_hidden_size}. The nearest is "
                f"{nearest}."
            )
        counts = {
            "detection_num_layers": self.detection_num_layers,
            "detection_num_queries": self.detection_num_queries,
            "detection_num_groups": self.detection_num_groups,
        }
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"`{name}` must be at least 1, got {count}.")
        if self.detection_indices is not None:
            check_blocks("detection_indices", self.detection_indices, self.num_hidden_layers)

    def validate_heads(self) -> None:
        """Check the fields of the task models' heads.

        Their models call it too: fields that are passed to `from_pretrained` are set after the configuration is built.

        Raises:
            ValueError: If one of them cannot be right.
        """
        check_choice("classifier_pooling", self.classifier_pooling, CLASSIFIER_POOLINGS)
        check_choice("segmentation_head", self.segmentation_head, SEGMENTATION_HEADS)
        if self.dpt_hidden_size < 2 or self.dpt_hidden_size % 2:
            nearest = round_to_step(self.dpt_hidden_size, 2)
            raise ValueError(
                f"`dpt_hidden_size` must be an even number, got {self.dpt_hidden_size}. The nearest is {nearest}."
            )
        if self.dpt_indices is not None:
            check_blocks("dpt_indices", self.dpt_indices, self.num_hidden_layers, count=4)
        self._validate_detection()

    def _validate_adaptors(self) -> None:
        names = [adaptor["name"] for adaptor in self.adaptors]
        if len(set(names)) < len(names):
            raise ValueError(f"`adaptors` must have distinct names, got {names}.")
        for adaptor in self.adaptor_configs:
            if not 0 <= adaptor.token_index < self.num_cls_tokens:
                raise ValueError(
                    f"`token_index` of adaptor {adaptor.name!r} must lie in [0, {self.num_cls_tokens}), "
                    f"the class tokens; got {adaptor.token_index}."
                )
        for name in self.adaptor_names or []:
            self.adaptor(name)
