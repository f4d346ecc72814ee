"""Task models for classification of images and clips, segmentation and depth, and test-time augmentation.

The classifier is a linear layer on the summary, optionally with the mean features. Segmentation uses the RADIO papers'
linear probe or DPT's decoder over four blocks. Depth uses DPT's decoder and a scale-invariant loss. Test-time
augmentation joins the results of several views: tiles, other scales and the mirror image.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_convert
from transformers import DPTConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import DepthEstimatorOutput, ImageClassifierOutput, SemanticSegmenterOutput
from transformers.models.dpt.modeling_dpt import DPTDepthEstimationHead, DPTNeck, DPTSemanticSegmentationHead
from transformers.processing_utils import Unpack
from transformers.utils.generic import TransformersKwargs, can_return_tuple

from .checks_radio import Resolution, check_choice, nearest_multiple
from .configuration_radio import RadioConfig
from .inputs_radio import StatesWanted, WindowSize, check_call_arguments
from .modeling_radio import ADAPTORS, IGNORED_KEYS, WHOLE_PARTS, RadioPreTrainedModel, build_network
from .new_head_radio import NewHeadReport
from .outputs_radio import NetworkOutput
from .post_processing_radio import IGNORED_CLASS, reading_of
from .views_radio import View, ViewOptions, resized


ENLARGEMENT = 1 / 16
"""Our choice: steps in which small images are enlarged, as shares of their sides."""
CUT_SHARE = 0.01  # our choice: a box that ends within this share of a tile's side from an inner edge is cut off


class ObjectsOfViews:
    """Collects the boxes of several views in coordinates of the whole images, and merges those of one object.

    Args:
        nms_threshold: Boxes of one class with a larger intersection over union are one object.
    """

    def __init__(self, nms_threshold: float) -> None:
        if not 0 <= nms_threshold <= 1:
            raise ValueError(f"`nms_threshold` must be in [0, 1], got {nms_threshold!r}.")
        self.nms_threshold = nms_threshold
        self.logits: list[Tensor] = []
        self.corners: list[Tensor] = []

    def add(self, view: View, logits: Tensor, boxes: Tensor) -> None:
        """Add the model's output for a view.

        It drops boxes that end at an edge of the view inside the image: the view cuts the object there, and another
        tile or the view of the whole image shows all of it.

        Args:
            view: The view.
            logits: `(batch, num_queries, num_labels)`.
            boxes: Center x, center y, width and height as shares of the view, `(batch, num_queries, 4)`.
        """
        corners = box_convert(boxes, "cxcywh", "xyxy")
        if view.is_flipped:
            left, top, right, bottom = corners.unbind(-1)
            corners = torch.stack([1 - right, top, 1 - left, bottom], dim=-1)
        region = corners.new_tensor(view.region)
        is_inner = region != region.new_tensor([0, 0, 1, 1])
        is_at_edge = torch.cat([corners[..., :2] < CUT_SHARE, corners[..., 2:] > 1 - CUT_SHARE], dim=-1)
        is_cut = (is_inner & is_at_edge).any(dim=-1, keepdim=True)
        start, extent = region[:2].repeat(2), (region[2:] - region[:2]).repeat(2)
        self.logits.append(logits.masked_fill(is_cut, -torch.inf))
        self.corners.append(start + corners * extent)

    def merge(self) -> tuple[Tensor, Tensor]:
        """Join the queries of all views; a logit becomes -inf where another view shows the object better.

        Returns:
            Logits `(batch, all_queries, num_labels)`, and boxes `(batch, all_queries, 4)` as shares of the image, in
            the format of `add`.
        """
        logits, corners = torch.cat(self.logits, dim=1), torch.cat(self.corners, dim=1)
        merged = torch.stack([self._suppress(*image) for image in zip(logits, corners, strict=True)])
        return merged, box_convert(corners, "xyxy", "cxcywh")

    def _suppress(self, logits: Tensor, corners: Tensor) -> Tensor:
        num_queries, num_classes = logits.shape
        # As in post-processing, the best `num_queries` pairs of query and class compete.
        scores, pairs = logits.float().flatten().topk(num_queries)
        known = scores != -torch.inf  # NaN stays, for the caller to see
        scores, pairs = scores[known], pairs[known]
        queries, classes = pairs // num_classes, pairs % num_classes
        kept = batched_nms(corners[queries].float(), scores, classes, self.nms_threshold)
        result = torch.full_like(logits, -torch.inf).flatten()
        result[pairs[kept]] = logits.flatten()[pairs[kept]]
        return result.unflatten(0, (num_queries, num_classes))


def mean_of_probabilities(logits: Sequence[Tensor], config: RadioConfig) -> Tensor:
    """Return the logits of the mean probabilities of several views; for regression the mean of the numbers.

    Args:
        logits: One tensor `(batch, num_labels)` for each view.
        config: Configuration of the classifier.

    Returns:
        `(batch, num_labels)`, float32.
    """
    stacked, reading = torch.stack([each.float() for each in logits]), reading_of(config)
    if reading == "none":
        return stacked.mean(0)
    if reading == "sigmoid":
        return stacked.sigmoid().mean(0).logit()
    return stacked.log_softmax(-1).logsumexp(0).sub(torch.tensor(float(len(logits))).log())


def fit_whole(config: RadioConfig, pixel_values: Tensor, tile_size: int) -> Tensor:
    """Shrink images to about as many pixels as a tile has, and to as many patches as a detector needs.

    A long image that is only as wide as a tile has too few.
    """
    height, width = pixel_values.shape[-2:]
    factor = min(1.0, tile_size / (height * width) ** 0.5, config.largest_side / max(height, width))
    whole = resized(pixel_values, config.nearest_resolution(round(height * factor), round(width * factor)))
    return with_patches(config, whole, config.largest_side)


def with_patches(config: RadioConfig, pixel_values: Tensor, tile_size: int) -> Tensor:
    """Enlarge images, in small steps, until a tile has a patch for each query of a detector.

    Args:
        config: Configuration of the detector.
        pixel_values: `(batch, channels, height, width)`.
        tile_size: Side of the tiles in pixels; a tile covers a shorter side in full.

    Returns:
        The images, as they are if a tile has enough patches, or even a whole one has too few.
    """
    height, width = pixel_values.shape[-2:]
    needed, size, factor = config.detection_num_queries * config.patch_size**2, Resolution(height, width), 1.0
    if tile_size**2 < needed:
        return pixel_values
    while min(size.height, tile_size) * min(size.width, tile_size) < needed:
        factor += ENLARGEMENT
        largest = int(factor * max(height, width)) + config.resolution_step
        size = nearest_multiple(height * factor, width * factor, config.resolution_step, largest)
    return pixel_values if size == (height, width) else resized(pixel_values, size)


def require_pixels(pixel_values: Any) -> Resolution:
    """Return height and width of images `(batch, channels, height, width)`.

    Raises:
        ValueError: If the argument has another shape or type.
    """
    if not isinstance(pixel_values, Tensor) or pixel_values.ndim != 4:
        found = tuple(pixel_values.shape) if isinstance(pixel_values, Tensor) else type(pixel_values).__name__
        raise ValueError(f"`pixel_values` must be (batch, channels, height, width), got {found}.")
    return Resolution(*pixel_values.shape[-2:])


FIRST_STD = "first_std"
"""Attribute of a convolution with the standard deviation of its initial weights; see `keep_variance`."""


class RadioTaskModel(NewHeadReport, RadioPreTrainedModel):
    """Base of the task models: a backbone without adaptors, to which a subclass adds its head.

    It opens every RADIO folder: the backbone's weights have the same keys everywhere, and weights of adaptors and text
    towers are ignored without a warning.

    The `forward` of each task model also takes:

    - `window_size`: Windows of the backbone, as in `RadioModel.forward`.
    - `pixel_mask`: 1 on the image and 0 on padding, `(batch, height, width)`, as `RadioImageProcessor` returns it with
      `do_pad=True`. Only detectors read it. The other models accept it, so that `model(**inputs)` works, and see the
      padding as gray image: their labels should ignore padding.
    - `output_hidden_states`: Also return the backbone's tokens before the first block and after every block, or some of
      them, as `hidden_states`; see `RadioModel.forward`.
    - `output_attentions`: Also return the backbone's attention weights, as `attentions`; the call then uses eager
      attention.
    - `return_dict`: `False` returns a tuple of the fields that are not `None`.
    - `kwargs`: Arguments that transformers, peft and callers of other models add (`FOREIGN_ARGUMENTS`); the model
      refuses all others by name.

    `None` takes the configuration's value for each of them.
    """

    _keys_to_ignore_on_load_unexpected = [*IGNORED_KEYS, rf"{re.escape(ADAPTORS)}\."]
    _no_split_modules = [*WHOLE_PARTS, "DPTFeatureFusionLayer"]

    def __init__(self, config: RadioConfig) -> None:
        super().__init__(config)
        self.radio_model = build_network(self.config, use_adaptors=False)

    @staticmethod
    def restrict_config(config: RadioConfig) -> RadioConfig:
        return config.without_adaptors()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            # Only heads have these; parts of transformers then start as they do there.
            PreTrainedModel._init_weights(self, module)
        else:
            super()._init_weights(module)
        std = getattr(module, FIRST_STD, None)
        if std is not None:
            init.normal_(module.get_parameter("weight"), std=std)

    def class_weights(self, logits: Tensor) -> Tensor:
        """Return the weight of each class in the loss, `(num_labels,)`; ones if the configuration has no weights.

        Raises:
            ValueError: If there is not one weight for each class.
        """
        num_labels, weights = count_classes(self.config), self.config.class_weights
        if weights is None:
            return logits.new_ones(num_labels)
        if len(weights) != num_labels:
            raise ValueError(
                f"`class_weights` must have one weight for each of the {num_labels} classes (`num_labels`), got "
                f"{weights}."
            )
        return logits.new_tensor(weights)

    def check_classes(self, labels: Tensor, ignore_index: int | None = None, name: str = "`labels`") -> None:
        """Raise a `ValueError` about `name` unless each label is a class or `ignore_index`.

        Labels are integers of any shape, for example `(batch,)` of images or `(batch, height, width)` of pixels.
        Without this check a wrong label on a GPU ends the process and the error does not name it. Compiled models skip
        the check.
        """
        if torch.compiler.is_compiling():
            return
        num_labels = count_classes(self.config)
        is_wrong, ignored = (labels < 0) | (labels >= num_labels), ""
        if ignore_index is not None:
            is_wrong &= labels != ignore_index
            ignored = f", or be {ignore_index}, which is ignored"
        if is_wrong.any():
            raise ValueError(
                f"{name} must lie in [0, {num_labels}), the `num_labels` of the configuration{ignored}, got "
                f"{labels[is_wrong][0].item()}."
            )


class RadioDPTNeck(nn.Module):
    """DPT's neck from transformers, which fuses the outputs of four blocks.

    A layer norm precedes it for each block, since the scales of their outputs differ (our choice; DPT's ViT does not
    need it).

    `forward` takes a pass with `blocks` kept and returns four maps `(batch, dpt_hidden_size, ...)`; the last one has 8
    rows and columns for each patch.

    References:
        DPT. https://arxiv.org/abs/2103.13413
    """

    def __init__(self, config: RadioConfig, dpt_config: DPTConfig) -> None:
        super().__init__()
        self.blocks = config.dpt_blocks
        self.last_block = config.num_hidden_layers - 1
        self.first_token = config.num_prefix_tokens - 1
        self.norms = nn.ModuleList(nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) for _ in self.blocks)
        self.neck = DPTNeck(dpt_config)
        # The coarsest map has no residual to fuse, so this layer never runs, and DDP refuses unused weights.
        del self.neck.fusion_stage.layers[0].residual_layer1
        keep_variance(self.neck)
        for layer in self.neck.fusion_stage.layers:
            layer.register_forward_pre_hook(_fit_residual)

    def forward(self, result: NetworkOutput) -> list[Tensor]:
        outputs = {**result.kept, self.last_block: result.tokens}  # tokens after the final norm
        # `DPTNeck` drops the first token, so one prefix token stays in front.
        tokens = [
            norm(outputs[block][:, self.first_token :]) for norm, block in zip(self.norms, self.blocks, strict=True)
        ]
        return self.neck(tokens, *result.grid)


def keep_variance(decoder: nn.Module) -> None:
    """Give a decoder's convolutions initial weights that keep the variance of their input, whatever the width.

    The fixed standard deviation of transformers, 0.02, keeps it for DPT's 256 channels. With 32 channels the output
    shrinks to a thousandth over some twenty convolutions, and the decoder hardly learns in hundreds of steps. The
    standard deviation here is LeCun's, `1 / sqrt(inputs)`. The strides of transposed convolutions equal their kernels,
    so each output pixel has one input per channel.

    References:
        Efficient BackProp, section 4.6. http://yann.lecun.com/exdb/publis/pdf/lecun-98b.pdf
    """
    for module in decoder.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            inputs = module.weight[0].numel() if isinstance(module, nn.Conv2d) else module.in_channels
            setattr(module, FIRST_STD, inputs**-0.5)


def _fit_residual(_layer: nn.Module, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Resize the residual during export with dynamic sizes: DPT's own check of the sizes would fix them."""
    hidden_state, *residual = maps
    if not residual or not any(isinstance(side, torch.SymInt) for side in hidden_state.shape[-2:]):
        return maps
    size = hidden_state.shape[-2:]
    return hidden_state, F.interpolate(residual[0], size, mode="bilinear", align_corners=False)


def count_classes(config: RadioConfig) -> int:
    """Return `config.num_labels`; its declared type allows `None`, but transformers always sets it."""
    assert config.num_labels is not None
    return config.num_labels


def build_dpt_config(config: RadioConfig) -> DPTConfig:
    """Return the configuration of transformers' DPT parts; it sets all fields that decide the shapes of weights.

    Raises:
        ValueError: If the trunk is too narrow for the finest of the four maps.
    """
    hidden = config.hidden_size
    if hidden < 8:
        raise ValueError(f"`hidden_size` must be at least 8 for DPT, whose finest map has an eighth, got {hidden}.")
    return DPTConfig(
        hidden_size=hidden,
        readout_type="ignore",
        reassemble_factors=[4, 2, 1, 0.5],
        neck_hidden_sizes=[hidden // 8, hidden // 4, hidden // 2, hidden],  # DPT-Base's 96 to 768, in proportion
        fusion_hidden_size=config.dpt_hidden_size,
        head_in_index=-1,
        use_batch_norm_in_fusion_residual=False,
        use_bias_in_fusion_residual=True,
        add_projection=False,
        semantic_classifier_dropout=0.1,
        num_labels=config.num_labels,  # pyrefly: ignore[unexpected-keyword]
    )


def weighted_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor,
    ignore_index: int,
    num_items: Tensor | int | None = None,
) -> Tensor:
    """Return the weighted mean cross-entropy over all labels except `ignore_index`.

    Args:
        logits: `(batch, num_labels, ...)`.
        labels: `(batch, ...)`.
        class_weights: `(num_labels,)`.
        ignore_index: Label that does not count.
        num_items: Divisor of the sum, in place of the weight of all labels.

    Returns:
        Scalar; 0 if no label counts, where torch's own mean is NaN.
    """
    total = F.cross_entropy(logits, labels, weight=class_weights, ignore_index=ignore_index, reduction="sum")
    if num_items is not None:
        return total / num_items
    counted = labels != ignore_index
    weight = (class_weights[labels.where(counted, 0)] * counted).sum()
    return total / weight.clamp(min=torch.finfo(weight.dtype).tiny)


ProblemType = Literal["regression", "single_label_classification", "multi_label_classification"]

IGNORED_LABEL = -100  # the default of torch and transformers


class RadioClassifier(nn.Sequential):
    """Layer norm and one linear layer, `(batch, in_features)` to `(batch, out_features)`."""

    def __init__(self, in_features: int, out_features: int, eps: float) -> None:
        super().__init__(nn.LayerNorm(in_features, eps=eps), nn.Linear(in_features, out_features))
        self.in_features, self.out_features = in_features, out_features


class RadioForImageClassification(RadioTaskModel):
    """RADIO with an image classifier; see `forward`.

    The classifier begins with a layer norm: RADIO has no final norm, so otherwise the scale of its outputs would decide
    which learning rate works. A head that replaces it gets the same `(batch, model.classifier.in_features)`, not
    normalized.

    Examples:
        >>> model = RadioForImageClassification.from_pretrained(backbone_folder, num_labels=5)
        >>> model(pixel_values, labels=torch.tensor([4, 0])).loss.backward()
    """

    def __init__(self, config: RadioConfig) -> None:
        super().__init__(config)
        config = self.config
        width = config.hidden_size * len(config.summary_idxs or [])
        if config.classifier_pooling == "summary_and_features":
            width += config.hidden_size
        self.classifier = RadioClassifier(width, count_classes(config), config.layer_norm_eps)
        self.post_init()

    @property
    def accepts_loss_kwargs(self) -> bool:
        """True if `Trainer` passes `num_items_in_batch`. It counts labels without class weights."""
        return self.config.class_weights is None

    @can_return_tuple
    def forward(  # noqa: D417
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        window_size: WindowSize = None,
        output_hidden_states: StatesWanted = None,
        output_attentions: bool | None = None,
        pixel_mask: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        pixel_values_videos: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        """Classify images or clips; `RadioTaskModel` has the arguments that are not listed here.

        Args:
            pixel_values: RGB images in [0, 1], `(batch, channels, height, width)`, sides multiples of the patch.
            labels: By `config.problem_type`: classes `(batch,)` in [0, num_labels), where -100 is ignored
                ("single_label_classification"); probabilities, mostly 0 or 1, `(batch, num_labels)`
                ("multi_label_classification"); or numbers `(batch, num_labels)`, also `(batch,)` for one output
                ("regression"). If the type is `None`, the first labels set it, as in transformers: one output means
                regression, integers mean single labels, and floats mean multiple labels.
            num_items_in_batch: Number of labels in all batches of an optimizer's step. The sum of the losses is divided
                by it instead of by the labels of this batch, so gradient accumulation equals one large batch.
            pixel_values_videos: Clips instead of images, as in `RadioModel.forward`. The classifier reads the mean over
                the groups of frames: CLIP4Clip's mean pooling, section 3.3 of https://arxiv.org/abs/2104.08860.

        Returns:
            `logits` `(batch, num_labels)`, and with labels the `loss`, scalar: cross-entropy, binary cross-entropy or
            squared error.

        Raises:
            ValueError: On invalid labels; otherwise as `RadioModel.forward`.
        """
        check_call_arguments(self, kwargs)
        given = pixel_values if pixel_values_videos is None else pixel_values_videos
        if labels is not None and isinstance(given, Tensor):
            labels = self._check_labels(labels, len(given))
        result = self.radio_model(
            pixel_values,
            window_size=window_size,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            pixel_values_videos=pixel_values_videos,
        )
        output: Any = self.radio_model.make_output(result)
        pooled = output.summary  # of clips with an axis for the groups of frames
        if self.config.classifier_pooling == "summary_and_features":
            pooled = torch.cat([pooled, output.features.mean(dim=-2)], dim=-1)
        logits = self.classifier(pooled if result.num_clips is None else pooled.mean(dim=1))
        return ImageClassifierOutput(
            loss=None if labels is None else self._loss(logits.float(), labels.to(logits.device), num_items_in_batch),
            logits=logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    @torch.no_grad()
    def predict(self, pixel_values: Tensor, window_size: WindowSize = None, **options: Any) -> ImageClassifierOutput:
        """Classify images by the mean probabilities of several views.

        Args:
            pixel_values: As in `forward`.
            window_size: As in `forward`.
            options: `scales` and `flip` of `ViewOptions`; no tiles, since a class is that of the whole image.

        Returns:
            `logits` `(batch, num_labels)`.

        Raises:
            ValueError: If an option is invalid; otherwise as `forward`.
        """
        require_pixels(pixel_values)
        chosen = ViewOptions(**options)
        chosen.refuse("tile_size", "a class is that of a whole image")
        views = chosen.take(self.config, pixel_values)
        logits = [self(view.pixel_values, window_size=window_size, return_dict=True).logits for view in views]
        return ImageClassifierOutput(logits=mean_of_probabilities(logits, self.config))

    def _loss(self, logits: Tensor, labels: Tensor, num_items: Tensor | int | None) -> Tensor:
        """Return the mean loss of the labels, or their sum divided by `num_items`."""
        if isinstance(num_items, Tensor):
            num_items = num_items.to(logits.device)
        reduction = "mean" if num_items is None else "sum"
        if self.config.problem_type == "regression":
            loss = F.mse_loss(logits, labels, reduction=reduction)
        elif self.config.problem_type == "multi_label_classification":
            weights = self.class_weights(logits)
            loss = F.binary_cross_entropy_with_logits(logits, labels, weight=weights, reduction=reduction)
        else:
            return weighted_cross_entropy(logits, labels, self.class_weights(logits), IGNORED_LABEL, num_items)
        return loss if num_items is None else loss / num_items

    def _check_labels(self, labels: Tensor, batch_size: int) -> Tensor:
        """Check labels and return them in the type that the loss needs; the first ones set `config.problem_type`."""
        is_float = labels.is_floating_point()
        guess: ProblemType = "multi_label_classification" if is_float else "single_label_classification"
        problem_type = self.config.problem_type or ("regression" if self.config.num_labels == 1 else guess)
        check_choice("problem_type", problem_type, get_args(ProblemType))
        if problem_type == "single_label_classification":
            labels = self._check_single_labels(labels, batch_size)
        else:
            labels = self._check_rows(labels, batch_size, problem_type)
        self.config.problem_type = problem_type
        return labels

    def _check_single_labels(self, labels: Tensor, batch_size: int) -> Tensor:
        if labels.shape != (batch_size,) or labels.is_floating_point():
            raise ValueError(
                f"`labels` must be integers of the shape ({batch_size},) for single labels, got {labels.dtype} of "
                f"{tuple(labels.shape)}. For several labels an image set `problem_type` to "
                "'multi_label_classification'."
            )
        labels = labels.long()
        self.check_classes(labels, IGNORED_LABEL)
        return labels

    def _check_rows(self, labels: Tensor, batch_size: int, problem_type: ProblemType) -> Tensor:
        expected = (batch_size, self.config.num_labels)
        if self.config.num_labels == 1 and labels.shape == (batch_size,):
            labels = labels.unsqueeze(1)
        if labels.shape != expected:
            raise ValueError(
                f"`labels` must have the shape {expected} for `problem_type` {problem_type!r}, got "
                f"{tuple(labels.shape)}."
            )
        return labels.float()


class RadioLinearSegmentationHead(nn.Module):
    """Batch norm and a linear layer, from the map of features to the logits of each patch.

    References:
        The ADE20k linear probe of the RADIO papers, for example C-RADIOv4. https://arxiv.org/abs/2601.17237
    """

    def __init__(self, config: RadioConfig) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(config.hidden_size)
        self.classifier = nn.Conv2d(config.hidden_size, count_classes(config), 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.classifier(self.norm(features))


class RadioDPTSegmentationHead(nn.Module):
    """DPT's decoder, from the pass that `RadioDPTNeck` takes to logits with 16 rows and columns for each patch."""

    def __init__(self, config: RadioConfig) -> None:
        super().__init__()
        dpt_config = build_dpt_config(config)
        self.neck = RadioDPTNeck(config, dpt_config)
        self.head = DPTSemanticSegmentationHead(dpt_config)
        keep_variance(self.head)

    def forward(self, result: NetworkOutput) -> Tensor:
        return self.head(self.neck(result))


class RadioForSemanticSegmentation(RadioTaskModel):
    """RADIO with a head that gives each pixel a class; see `forward`. `config.segmentation_head` chooses the head.

    Raises:
        ValueError: If the default of `semantic_loss_ignore_index` is one of the classes: the loss would ignore it.
    """

    def __init__(self, config: RadioConfig) -> None:
        super().__init__(config)
        config = self.config
        if config.semantic_loss_ignore_index == IGNORED_CLASS < count_classes(config):
            raise ValueError(
                f"`semantic_loss_ignore_index` must not be its default, {IGNORED_CLASS}, with {count_classes(config)} "
                "classes, because this is a class too: set -100, and label the pixels to ignore with -100."
            )
        heads = {"linear": RadioLinearSegmentationHead, "dpt": RadioDPTSegmentationHead}
        self.decode_head = heads[config.segmentation_head](config)
        self.post_init()

    @can_return_tuple
    def forward(  # noqa: D417
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        window_size: WindowSize = None,
        output_hidden_states: StatesWanted = None,
        output_attentions: bool | None = None,
        pixel_mask: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SemanticSegmenterOutput:
        """Segment images; `RadioTaskModel` has the arguments that are not listed here.

        Args:
            pixel_values: RGB images in [0, 1], `(batch, channels, height, width)`, sides multiples of the patch.
            labels: The class of each pixel, `(batch, height, width)`, in [0, num_labels) or
                `config.semantic_loss_ignore_index`. Their size may differ from that of the images.

        Returns:
            `logits` `(batch, num_labels, ...)`, with one row and column for each patch ("linear") or more ("dpt"), and
            with labels the `loss`, scalar: the mean cross-entropy of the logits resized to the labels.
            `RadioImageProcessor.post_process_semantic_segmentation` resizes logits to the original images.

        Raises:
            ValueError: On invalid labels; otherwise as `RadioModel.forward`.
        """
        check_call_arguments(self, kwargs)
        if labels is not None:
            labels = self._check_labels(labels)
        is_dpt = self.config.segmentation_head == "dpt"
        result = self.radio_model(
            pixel_values,
            window_size=window_size,
            keep=self.config.dpt_blocks if is_dpt else (),
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        if is_dpt:
            logits = self.decode_head(result)
        else:
            logits = self.decode_head(self.radio_model.make_output(result, feature_format="NCHW").features)
        return SemanticSegmenterOutput(
            loss=None if labels is None else self._loss(logits, labels.to(logits.device)),
            logits=logits,
            hidden_states=result.hidden_states,
            attentions=result.attentions,
        )

    @torch.no_grad()
    def predict(self, pixel_values: Tensor, window_size: WindowSize = None, **options: Any) -> SemanticSegmenterOutput:
        """Segment images by the mean probabilities of several views in each pixel.

        Args:
            pixel_values: As in `forward`; with tiles of any size that is a multiple of the patch.
            window_size: As in `forward`.
            options: `tile_size`, `tile_overlap`, `scales` and `flip` of `ViewOptions`.

        Returns:
            `logits` `(batch, num_labels, height, width)`: the logarithm of the probabilities of each pixel.

        Raises:
            ValueError: If an option is invalid; otherwise as `forward`.
        """
        require_pixels(pixel_values)

        def shares_of(image: Tensor) -> Tensor:
            logits = self(image, window_size=window_size, return_dict=True).logits.float()
            return F.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=False).softmax(dim=1)

        shares = ViewOptions(**options).join(self.config, pixel_values, shares_of)
        return SemanticSegmenterOutput(logits=shares.clamp(min=torch.finfo(shares.dtype).tiny).log())

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = F.interpolate(logits.float(), labels.shape[-2:], mode="bilinear", align_corners=False)
        ignore_index = self.config.semantic_loss_ignore_index
        return weighted_cross_entropy(logits, labels, self.class_weights(logits), ignore_index)

    def _check_labels(self, labels: Tensor) -> Tensor:
        """Check labels and return them in the type that the loss needs."""
        if labels.is_floating_point():
            raise ValueError(f"`labels` must be integers, the class of each pixel, got {labels.dtype}.")
        labels = labels.long()
        self.check_classes(labels, self.config.semantic_loss_ignore_index)
        return labels


SCALE_INVARIANCE = 0.5  # lambda of Eigen et al.
MIN_DEPTH = 1e-3  # meters; our choice: less than cameras measure, and the logarithm in the loss stays finite


class RadioDepthHead(nn.Module):
    """DPT's decoder, from the pass that `RadioDPTNeck` takes to depth with 16 rows and columns for each patch."""

    def __init__(self, config: RadioConfig) -> None:
        super().__init__()
        dpt_config = build_dpt_config(config)
        self.neck = RadioDPTNeck(config, dpt_config)
        self.head = DPTDepthEstimationHead(dpt_config)
        keep_variance(self.head)
        # DPT ends with a ReLU, which gives pixels with an initial depth of 0 no gradient.
        self.head.head[-1] = nn.Softplus()

    def forward(self, result: NetworkOutput) -> Tensor:
        return self.head(self.neck(result)) + MIN_DEPTH


class RadioForDepthEstimation(RadioTaskModel):
    """RADIO with a head that gives each pixel its depth; see `forward`."""

    def __init__(self, config: RadioConfig) -> None:
        super().__init__(config)
        config = self.config
        self.depth_head = RadioDepthHead(config)
        self.post_init()

    @can_return_tuple
    def forward(  # noqa: D417
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        window_size: WindowSize = None,
        output_hidden_states: StatesWanted = None,
        output_attentions: bool | None = None,
        pixel_mask: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> DepthEstimatorOutput:
        """Estimate depth; `RadioTaskModel` has the arguments that are not listed here.

        Args:
            pixel_values: RGB images in [0, 1], `(batch, channels, height, width)`, sides multiples of the patch.
            labels: The depth of each pixel in meters, `(batch, height, width)`, floats. Pixels of unknown depth hold 0,
                a negative number, infinity or NaN, and do not count.

        Returns:
            `predicted_depth` `(batch, height, width)`, positive, in meters if trained on meters, and with labels the
            `loss`, scalar (`scale_invariant_loss`). `RadioImageProcessor.post_process_depth_estimation` resizes depth
            to the original images.

        Raises:
            ValueError: On invalid labels; otherwise as `RadioModel.forward`.
        """
        check_call_arguments(self, kwargs)
        if labels is not None:
            _check_labels(labels, pixel_values)
        result = self.radio_model(
            pixel_values,
            window_size=window_size,
            keep=self.config.dpt_blocks,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        depth = self.depth_head(result).unsqueeze(1)
        # With patches of 14 pixels, or an odd number of patches, DPT's map is larger than the image.
        depth = F.interpolate(depth, pixel_values.shape[-2:], mode="bilinear", align_corners=False).squeeze(1)
        return DepthEstimatorOutput(
            loss=None if labels is None else scale_invariant_loss(depth.float(), labels.to(depth.device)),
            predicted_depth=depth,
            hidden_states=result.hidden_states,
            attentions=result.attentions,
        )

    @torch.no_grad()
    def predict(self, pixel_values: Tensor, window_size: WindowSize = None, **options: Any) -> DepthEstimatorOutput:
        """Estimate depth by the mean of several views in each pixel.

        Args:
            pixel_values: As in `forward`; with tiles of any size that is a multiple of the patch.
            window_size: As in `forward`.
            options: `tile_size`, `tile_overlap` and `flip` of `ViewOptions`; no scales, since they change the depth.

        Returns:
            `predicted_depth` `(batch, height, width)`.

        Raises:
            ValueError: If an option is invalid; otherwise as `forward`.
        """
        require_pixels(pixel_values)
        chosen = ViewOptions(**options)
        chosen.refuse("scales", "an image of another scale shows things nearer or farther")

        def depth_of(image: Tensor) -> Tensor:
            return self(image, window_size=window_size, return_dict=True).predicted_depth.unsqueeze(1)

        return DepthEstimatorOutput(predicted_depth=chosen.join(self.config, pixel_values, depth_of).squeeze(1))


def scale_invariant_loss(predicted: Tensor, true: Tensor) -> Tensor:
    """Return the squared error of the log depth; an error that is one factor for the whole image counts half.

    Args:
        predicted: Depth of each pixel, `(batch, height, width)`, positive.
        true: The same unit and shape; pixels that are not positive and finite do not count.

    Returns:
        Scalar without unit: the mean over images with any depth, and 0 if there are none.

    References:
        Eigen et al., 2014, eq. 4. https://arxiv.org/abs/1406.2283
    """
    known = (true > 0) & true.isfinite()
    count = known.flatten(1).sum(dim=1).clamp(min=1)
    difference = (predicted.log() - true.float().where(known, 1.0).log()).where(known, 0.0).flatten(1)
    squares = difference.square().sum(dim=1) / count
    mean = difference.sum(dim=1) / count
    losses = squares - SCALE_INVARIANCE * mean.square()
    return losses.sum() / known.flatten(1).any(dim=1).sum().clamp(min=1)


def _check_labels(labels: Tensor, pixel_values: Tensor) -> None:
    expected = (len(pixel_values), *pixel_values.shape[-2:])
    if labels.shape != expected:
        raise ValueError(
            f"`labels` must have the shape {tuple(expected)}, one for each pixel of `pixel_values`, got "
            f"{tuple(labels.shape)}. Resize the maps like the images, by nearest neighbor."
        )
    if not labels.is_floating_point():
        raise ValueError(
            f"`labels` must be floating point, the depth of each pixel in meters, got {labels.dtype}. Divide 16-bit "
            "depth by its units in a meter, 1000 for millimeters."
        )
