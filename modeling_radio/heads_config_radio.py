"""Fields of the configuration that shape what stands on the trunk: classes, DPT, detection, texts, feature pyramid."""

from dataclasses import dataclass
from typing import Any

from transformers.backbone_utils import BackboneConfigMixin

from .config_checks_radio import RULES
from .merging_config_radio import MergingFields
from .messages_radio import check_blocks
from .resolution_radio import round_to_step


@dataclass(kw_only=True, repr=False, eq=False)
class ClassFields:
    """Classification of images and of pixels.

    Where the number of classes changes, weights, temperature and thresholds that were fitted to the old ones go.

    Attributes:
        classifier_pooling: What the image classifier reads: `"summary"`, or `"summary_and_features"`, which adds the
            mean of the features.
        segmentation_head: `"linear"`, batch norm and one linear layer on the features (the papers' probe), or `"dpt"`,
            a convolutional decoder over four blocks.
        class_weights: Weight of each class in the loss of image classification and semantic segmentation; `None`
            weighs all alike. Regression does not use them.
        temperature: What the logits of image classification are divided by where a pipeline makes probabilities of
            them; fitted after training.
        score_thresholds: Least score of each class for which the pipelines of objects and instances, and with
            `threshold="tuned"` of image classification, name it; `None` where none were fitted.
        semantic_loss_ignore_index: Label of pixels that semantic segmentation does not train on.
    """

    classifier_pooling: str = "summary"
    segmentation_head: str = "linear"
    class_weights: list[float] | None = None
    temperature: float = 1.0
    score_thresholds: list[float] | None = None
    semantic_loss_ignore_index: int = 255  # transformers' value for segmentation, after the masks of VOC and ADE20k


@dataclass(kw_only=True, repr=False, eq=False)
class DPTFields(MergingFields):
    """DPT's decoder, for depth and for segmentation with `segmentation_head="dpt"`.

    Attributes:
        dpt_indices: 0-based blocks that it reads, four in ascending order; `None` spreads them evenly over those with
            global attention in ViTDet mode, so that the borders of windows do not show; for B, L, H and g those are the
            quarters of the depth.
        dpt_hidden_size: Its channels, an even number.
    """

    dpt_indices: list[int] | None = None
    dpt_hidden_size: int = 256  # as in DPT, https://arxiv.org/abs/2103.13413

    @property
    def dpt_blocks(self) -> list[int]:
        """The four blocks that DPT heads read, ascending; architectures of fewer global blocks repeat some."""
        if self.dpt_indices is not None:
            return self.dpt_indices
        blocks = self.global_blocks
        return [blocks[max(len(blocks) * quarter // 4 - 1, 0)] for quarter in range(1, 5)]

    def check_dpt(self) -> None:
        """Refuse a decoder that cannot be built.

        Raises:
            ValueError: If its width is odd, or it does not read four blocks of the trunk.
        """
        if self.dpt_hidden_size % 2:
            raise ValueError(
                f"`dpt_hidden_size` must be an even number, got {self.dpt_hidden_size}. The nearest is "
                f"{round_to_step(self.dpt_hidden_size, 2)}."
            )
        if self.dpt_indices is not None:
            check_blocks("dpt_indices", self.dpt_indices, self.num_hidden_layers, count=4)
            self.check_full_grid("dpt_indices", self.dpt_indices)


@dataclass(kw_only=True, repr=False, eq=False)
class DetectionFields(MergingFields):
    """RF-DETR's decoder, for objects and for instances.

    Attributes:
        detection_indices: 0-based blocks that the detector reads; `None` means those with global attention in ViTDet
            mode, so that the borders of windows do not show.
        detection_hidden_size: Width of the detector, a multiple of 32.
        detection_num_layers: Layers of its decoder.
        detection_num_queries: Largest number of objects found in an image, and smallest number of patches of one.
        detection_num_groups: Groups of queries in training (Group DETR); more learn faster and cost more, 1 is plain.
        detection_window_size: Window that the detection models run the backbone in, as `window_size` of their
            `forward`; `None` takes `vitdet_window_size`.
    """

    detection_indices: list[int] | None = None
    detection_hidden_size: int = 256  # this and the layers as in RF-DETR, https://arxiv.org/abs/2511.09554
    detection_num_layers: int = 3
    detection_num_queries: int = 100  # our choice: COCO's metric counts 100 an image; RF-DETR's 300 need 280 px
    detection_num_groups: int = 5  # our choice: RF-DETR has 13 for COCO; on few images 5 did as well in half the time
    detection_window_size: int | str | None = 16  # our choice: of the trained windows nearest to ViTDet's 14

    @property
    def detection_blocks(self) -> list[int]:
        """Blocks that the detector reads, ascending."""
        return self.global_blocks if self.detection_indices is None else self.detection_indices

    def check_detection(self) -> None:
        """Refuse a detector that cannot be built.

        Raises:
            ValueError: If its width is impossible, or it reads blocks that the trunk has not.
        """
        if self.detection_hidden_size % 32:
            raise ValueError(
                f"`detection_hidden_size` must be a multiple of 32, got {self.detection_hidden_size}. The nearest is "
                f"{round_to_step(self.detection_hidden_size, 32)}."
            )
        if self.detection_indices is not None:
            check_blocks("detection_indices", self.detection_indices, self.num_hidden_layers)
            self.check_full_grid("detection_indices", self.detection_indices)


@dataclass(kw_only=True, repr=False, eq=False)
class TextFields:
    """The text tower beside an adaptor.

    Attributes:
        text_tower: Configuration of a text tower, a JSON object: of a teacher as transformers writes it for a SigLIP,
            SigLIP2 or CLIP text model, or of a `SentenceTower`; `None` where there is none.
        text_adaptor: The adaptor whose summary is compared with that tower's texts.
    """

    text_tower: dict[str, Any] | None = None
    text_adaptor: str | None = None


@dataclass(kw_only=True, repr=False, eq=False)
class PyramidFields(MergingFields, BackboneConfigMixin):
    """The maps of `RadioBackbone`.

    Attributes:
        use_feature_pyramid: Return maps at strides 1/4, 1/2, 1 and 2 patches instead of block outputs.
        feature_pyramid_size: Channels of those maps.
    """

    use_feature_pyramid: bool = False
    feature_pyramid_size: int = 256  # as in ViTDet, https://arxiv.org/abs/2203.16527

    @property
    def stage_names(self) -> list[str]:
        """Names of all maps."""
        if self.use_feature_pyramid:
            return ["p2", "p3", "p4", "p5"]
        return ["stem", *(f"stage{index + 1}" for index in range(self.num_hidden_layers))]

    @property
    def default_stages(self) -> list[str]:
        """Maps that `RadioBackbone` returns where none are chosen: the whole pyramid, or the last block's."""
        return self.stage_names if self.use_feature_pyramid else self.stage_names[-1:]

    def choose_stages(self, out_features: Any = None, out_indices: Any = None) -> None:
        """Choose maps, by name or by number; without both the default ones.

        Raises:
            ValueError: If there is no such map, or they are not in order.
        """
        RULES["out_features"].check("out_features", out_features)
        RULES["out_indices"].check("out_indices", out_indices)
        if out_features is None and out_indices is None:
            out_features = self.default_stages
        chosen = (None if entries is None else list(entries) for entries in (out_features, out_indices))
        self.set_output_features_output_indices(*chosen)

    def check_pyramid(self) -> None:
        """Refuse maps that cannot be made.

        Raises:
            ValueError: If a chosen map does not exist, or the trunk is too narrow for the pyramid.
        """
        self.verify_out_features_out_indices()
        if self.use_feature_pyramid and self.hidden_size < 4:
            raise ValueError(
                f"`hidden_size` must be at least 4 with `use_feature_pyramid`, whose finest map has a quarter of it, "
                f"got {self.hidden_size}."
            )
