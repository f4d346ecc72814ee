"""Task models: classification of images and clips, segmentation, depth; several views of an image at test time.

Classification is a linear layer on the summary, or on it and the mean features; segmentation the papers' linear probe,
or DPT's decoder over four blocks; depth that decoder with a scale-invariant loss. Views are tiles, other scales and the
mirror image; tiles are what sliding windows are in segmentation (the stride is a tile without its overlap) and what
SAHI does for small objects: https://arxiv.org/abs/2202.06934.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

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
from .loading_radio import NewHeadReport
from .modeling_radio import ADAPTORS, IGNORED_KEYS, WHOLE_PARTS, RadioPreTrainedModel, build_network
from .outputs_radio import NetworkPass, RadioModelOutput
from .post_processing_radio import IGNORED_CLASS, reading_of


CUT_SHARE = 0.01  # our choice: of a tile's side, how near its inner edge a box ends where the tile cuts the object
LARGEST_SCALE = 16.0  # our choice: far above any use


class View(NamedTuple):
    """One look at a batch of images.

    Attributes:
        pixel_values: `(batch, channels, height, width)`.
        place: Left, top, right and bottom as shares of the whole image.
        is_flipped: Whether it is mirrored.
    """

    pixel_values: Tensor
    place: tuple[float, float, float, float]
    is_flipped: bool


@dataclass(frozen=True)
class ViewOptions:
    """Which looks are taken; a model answers once for each.

    Attributes:
        tile_size: Side of square tiles in pixels; `None` for whole images. A side that is shorter is one tile.
        tile_overlap: Share of a tile that the next one also has, in [0, 1).
        scales: Factors on the sides of the image, each of them a look.
        flip: Also look at the mirror image.

    Raises:
        ValueError: If one of them cannot be.
    """

    tile_size: int | None = None
    tile_overlap: float = 0.25  # our choice, near SAHI's 0.2: a multiple of the patch for usual tiles
    scales: Sequence[float] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        if self.tile_size is not None and (type(self.tile_size) is not int or self.tile_size < 1):
            raise ValueError(f"`tile_size` must be a number of pixels or None, got {self.tile_size!r}.")
        if not 0 <= self.tile_overlap < 1:
            raise ValueError(f"`tile_overlap` must be in [0, 1), got {self.tile_overlap!r}.")
        if not self.scales or not all(0 < scale <= LARGEST_SCALE for scale in self.scales):
            raise ValueError(f"`scales` must be numbers in (0, {LARGEST_SCALE:g}], got {self.scales!r}.")

    def refuse(self, name: str, why: str) -> None:
        """Raise a `ValueError` if an option has another value than its default."""
        value, default = getattr(self, name), getattr(ViewOptions, name)
        if value != default and (name != "scales" or tuple(value) != default):
            raise ValueError(f"`{name}` must be {default!r}, got {value!r}: {why}.")

    def take(self, config: RadioConfig, pixel_values: Tensor) -> Iterator[View]:
        """Return the views of images.

        Args:
            config: Of the model, which says what sizes it takes.
            pixel_values: `(batch, channels, height, width)`, of any size where there are tiles.

        Raises:
            ValueError: If a tile is none of a model's sizes.
        """
        tile = None if self.tile_size is None else self._tile(config)
        for scale in self.scales:
            image = self._scaled(config, pixel_values, scale)
            height, width = image.shape[-2:]
            for top, left, rows, cols in _tiles(height, width, tile, self.tile_overlap, config.resolution_step):
                crop = image[..., top : top + rows, left : left + cols]
                place = (left / width, top / height, (left + cols) / width, (top + rows) / height)
                yield View(crop, place, is_flipped=False)
                if self.flip:
                    yield View(crop.flip(-1), place, is_flipped=True)

    def _tile(self, config: RadioConfig) -> int:
        side = self.tile_size
        nearest = config.nearest_resolution(side or 0, side or 0).height
        if side != nearest:
            raise ValueError(
                f"`tile_size` must be a multiple of {config.resolution_step} and at most {config.largest_side}, got "
                f"{side}. The nearest is {nearest}."
            )
        return nearest

    def _scaled(self, config: RadioConfig, images: Tensor, scale: float) -> Tensor:
        height, width = images.shape[-2:]
        if scale == 1:
            return images
        # Tiles bound what the model sees, so that the image itself may be of any size.
        bound = config.largest_side if self.tile_size is None else int(LARGEST_SCALE * max(height, width))
        return _resized(images, nearest_multiple(height * scale, width * scale, config.resolution_step, bound))


def _resized(images: Tensor, size: Resolution) -> Tensor:
    """Return images with values in [0, 1] in another size, in float32 between: CPUs have no kernel for less."""
    resized = F.interpolate(images.float(), size, mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(0, 1).to(images.dtype)


def _tiles(height: int, width: int, tile: int | None, overlap: float, step: int) -> Iterator[tuple[int, ...]]:
    """Return top, left, height and width of each tile; the last ones end with the image."""
    if tile is None:
        yield 0, 0, height, width
        return
    stride = max(int(tile * (1 - overlap)) // step, 1) * step
    for top in _starts(height, tile, stride):
        for left in _starts(width, tile, stride):
            yield top, left, min(tile, height), min(tile, width)


def _starts(side: int, tile: int, stride: int) -> list[int]:
    last = max(side - tile, 0)
    return [*range(0, last, stride), last]


def average_maps(views: Iterator[tuple[View, Tensor]], size: Resolution) -> Tensor:
    """Return the mean of maps over all views that show a pixel.

    Args:
        views: Each with what the model made of it, `(batch, channels, rows, cols)`.
        size: Height and width of the whole images in pixels.

    Returns:
        `(batch, channels, height, width)`.
    """
    total = count = None
    for view, maps in views:
        maps = maps.flip(-1) if view.is_flipped else maps
        left, top, right, bottom = (
            round(share * side) for share, side in zip(view.place, (size.width, size.height) * 2, strict=True)
        )
        fitted = F.interpolate(maps, (bottom - top, right - left), mode="bilinear", align_corners=False)
        if total is None or count is None:
            total, count = maps.new_zeros(*maps.shape[:2], *size), maps.new_zeros(1, 1, *size)
        total[..., top:bottom, left:right] += fitted
        count[..., top:bottom, left:right] += 1
    assert total is not None
    assert count is not None
    return total / count


class ObjectsOfViews:
    """Boxes of several views as those of the whole images, of which one is kept where several show one object.

    Args:
        nms_threshold: Boxes of one class that overlap by more (intersection over union) are one object.
    """

    def __init__(self, nms_threshold: float) -> None:
        if not 0 <= nms_threshold <= 1:
            raise ValueError(f"`nms_threshold` must be in [0, 1], got {nms_threshold!r}.")
        self.nms_threshold = nms_threshold
        self.logits: list[Tensor] = []
        self.corners: list[Tensor] = []

    def add(self, view: View, logits: Tensor, boxes: Tensor) -> None:
        """Add what a model saw in a view.

        Boxes that end at an edge where the image goes on are left out: the object is cut there, and its whole stands in
        another tile or in the view of the whole image.

        Args:
            view: The view.
            logits: `(batch, num_queries, num_labels)`.
            boxes: Center x, center y, width and height as shares of the view, `(batch, num_queries, 4)`.
        """
        corners = box_convert(boxes, "cxcywh", "xyxy")
        if view.is_flipped:
            left, top, right, bottom = corners.unbind(-1)
            corners = torch.stack([1 - right, top, 1 - left, bottom], dim=-1)
        place = corners.new_tensor(view.place)
        is_inner = place != place.new_tensor([0, 0, 1, 1])
        is_at_edge = torch.cat([corners[..., :2] < CUT_SHARE, corners[..., 2:] > 1 - CUT_SHARE], dim=-1)
        is_cut = (is_inner & is_at_edge).any(dim=-1, keepdim=True)
        start, extent = place[:2].repeat(2), (place[2:] - place[:2]).repeat(2)
        self.logits.append(logits.masked_fill(is_cut, -torch.inf))
        self.corners.append(start + corners * extent)

    def merge(self) -> tuple[Tensor, Tensor]:
        """Return the logits and boxes of all views side by side, -inf for what another one shows better.

        Returns:
            `(batch, all_queries, num_labels)`, and `(batch, all_queries, 4)` as `add` takes them.
        """
        logits, corners = torch.cat(self.logits, dim=1), torch.cat(self.corners, dim=1)
        merged = torch.stack([self._suppress(*image) for image in zip(logits, corners, strict=True)])
        return merged, box_convert(corners, "xyxy", "cxcywh")

    def _suppress(self, logits: Tensor, corners: Tensor) -> Tensor:
        num_queries, num_classes = logits.shape
        # As in post-processing, the best pairs of query and class compete, of each view as many as it has queries.
        scores, pairs = logits.float().flatten().topk(num_queries)
        queries, classes = pairs // num_classes, pairs % num_classes
        known = scores > -torch.inf
        scores, queries, classes, pairs = scores[known], queries[known], classes[known], pairs[known]
        kept = batched_nms(corners[queries].float(), scores, classes, self.nms_threshold)
        result = torch.full_like(logits, -torch.inf).flatten()
        result[pairs[kept]] = logits.flatten()[pairs[kept]]
        return result.unflatten(0, (num_queries, num_classes))


def mean_of_probabilities(logits: Sequence[Tensor], config: RadioConfig) -> Tensor:
    """Return logits whose probabilities are the means of those of several views, or for regression the mean number.

    Args:
        logits: Of each view, `(batch, num_labels)`.
        config: Of the classifier.

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
    """Return images made so small that they have no more pixels than a tile, and if they are long, few less.

    A detector needs as many patches as it has queries, which a long image as wide as a tile would not have.
    """
    height, width = pixel_values.shape[-2:]
    factor = min(1.0, tile_size / (height * width) ** 0.5, config.largest_side / max(height, width))
    return _resized(pixel_values, config.nearest_resolution(round(height * factor), round(width * factor)))


def require_pixels(pixel_values: Any) -> Resolution:
    """Return the size of images `(batch, channels, height, width)`.

    Raises:
        ValueError: If they are none.
    """
    if not isinstance(pixel_values, Tensor) or pixel_values.ndim != 4:
        found = tuple(pixel_values.shape) if isinstance(pixel_values, Tensor) else type(pixel_values).__name__
        raise ValueError(f"`pixel_values` must be (batch, channels, height, width), got {found}.")
    return Resolution(*pixel_values.shape[-2:])


FIRST_STD = "first_std"
"""Attribute of a convolution: the standard deviation that its weights start with; see `keep_variance`."""


class RadioTaskModel(NewHeadReport, RadioPreTrainedModel):
    """A backbone without adaptors, which a task model adds its head to.

    It opens every folder of RADIO: the backbone's weights have equal keys, and what is only there for adaptors and
    texts is passed over without a warning.

    The `forward` of each task model also takes:

    - `window_size`: Windows of the backbone, as in `RadioModel.forward`.
    - `pixel_mask`: 1 on the image and 0 on padding, `(batch, height, width)`, as `RadioImageProcessor` returns it with
      `do_pad=True`. It is accepted so that `model(**inputs)` works; only detectors read it, the others see the padding
      as gray image. Let labels ignore padding.
    - `output_hidden_states`: Also return the backbone's tokens before the first block and after every block, or some of
      them, as `hidden_states`; see `RadioModel.forward`.
    - `output_attentions`: Also return the backbone's attention weights, as `attentions`; the call then takes eager
      attention.
    - `return_dict`: `False` returns a tuple of the fields that are not `None`.
    - `kwargs`: What transformers, peft and other models' callers add (`FOREIGN_ARGUMENTS`); others are refused by name.

    `None` takes the configuration's value in each of them.
    """

    _keys_to_ignore_on_load_unexpected = [*IGNORED_KEYS, rf"{re.escape(ADAPTORS)}\."]
    _no_split_modules = [*WHOLE_PARTS, "DPTFeatureFusionLayer"]

    def __init__(self, config: RadioConfig) -> None:
        super().__init__(config)
        self.radio_model = build_network(self.config, use_adaptors=False)

    @staticmethod
    def kept_of(config: RadioConfig) -> RadioConfig:
        return config.without_adaptors()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d)):
            # Only heads have these; transformers' parts then start as they do in transformers.
            PreTrainedModel._init_weights(self, module)
        else:
            super()._init_weights(module)
        std = getattr(module, FIRST_STD, None)
        if std is not None:
            init.normal_(module.get_parameter("weight"), std=std)

    def class_weights(self, logits: Tensor) -> Tensor:
        """Return the weight of each class in the loss, `(num_labels,)`, 1 where the configuration gives none.

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
        """Raise a `ValueError` that calls the labels `name` unless all of them are classes or `ignore_index`.

        Labels are integers of any shape, `(batch,)` of images or `(batch, height, width)` of pixels.
        On a GPU a wrong label would otherwise end the process without telling which it was. Compiled models skip this.
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
    """DPT's neck, which fuses the outputs of four blocks, of transformers' own parts.

    Each block's output is normalized first, since their scales differ (our choice; DPT's ViT has no such need).

    Shapes of `forward`: a pass with `blocks` kept, to four maps `(batch, dpt_hidden_size, ...)`, the last one with 8
    rows and columns a patch.

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
        # The coarsest map has nothing to be fused with: this layer would never run, which DDP refuses.
        del self.neck.fusion_stage.layers[0].residual_layer1
        keep_variance(self.neck)
        for layer in self.neck.fusion_stage.layers:
            layer.register_forward_pre_hook(_fit_residual)

    def forward(self, passed: NetworkPass) -> list[Tensor]:
        outputs = {**passed.kept, self.last_block: passed.tokens}  # the last one with the final norm
        # `DPTNeck` drops the first token, so one prefix token is left in front.
        tokens = [
            norm(outputs[block][:, self.first_token :]) for norm, block in zip(self.norms, self.blocks, strict=True)
        ]
        return self.neck(tokens, *passed.grid)


def keep_variance(decoder: nn.Module) -> None:
    """Let a decoder's convolutions start so that each answers with the variance of what it gets, whatever its width.

    transformers' fixed standard deviation of 0.02 does so for the 256 channels of DPT. With 32 the last of some twenty
    convolutions would answer with a thousandth, and learn hardly anything in hundreds of steps. Weights of standard
    deviation `1 / sqrt(inputs)` are LeCun's; transposed convolutions have strides as wide as their kernels, so that
    each place has one tap of every input.

    References:
        Efficient BackProp, section 4.6. http://yann.lecun.com/exdb/publis/pdf/lecun-98b.pdf
    """
    for module in decoder.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            inputs = module.weight[0].numel() if isinstance(module, nn.Conv2d) else module.in_channels
            setattr(module, FIRST_STD, inputs**-0.5)


def _fit_residual(_layer: nn.Module, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Bring maps of unknown size to one size: DPT does so where theirs differ, which export would settle for all."""
    hidden_state, *residual = maps
    if not residual or not any(isinstance(side, torch.SymInt) for side in hidden_state.shape[-2:]):
        return maps
    size = hidden_state.shape[-2:]
    return hidden_state, F.interpolate(residual[0], size, mode="bilinear", align_corners=False)


def count_classes(config: RadioConfig) -> int:
    """Return `config.num_labels`, which transformers declares as optional and always sets."""
    assert config.num_labels is not None
    return config.num_labels


def build_dpt_config(config: RadioConfig) -> DPTConfig:
    """Return the configuration of transformers' DPT parts; what decides the shapes of weights is given in full.

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
    """Return the weighted mean cross-entropy over all labels but `ignore_index`, and 0 if there are no others.

    Args:
        logits: `(batch, num_labels, ...)`.
        labels: `(batch, ...)`.
        class_weights: `(num_labels,)`.
        ignore_index: Label that does not count.
        num_items: What divides the sum in place of the weight of all labels.

    Returns:
        Scalar. torch's own mean would be NaN without any label.
    """
    total = F.cross_entropy(logits, labels, weight=class_weights, ignore_index=ignore_index, reduction="sum")
    if num_items is not None:
        return total / num_items
    counted = labels != ignore_index
    weight = (class_weights[labels.where(counted, 0)] * counted).sum()
    return total / weight.clamp(min=torch.finfo(weight.dtype).tiny)


ProblemType = Literal["regression", "single_label_classification", "multi_label_classification"]

IGNORED_LABEL = -100  # torch's and transformers' value for single labels


class RadioClassifier(nn.Sequential):
    """Layer norm and one linear layer, `(batch, in_features)` to `(batch, out_features)`."""

    def __init__(self, in_features: int, out_features: int, eps: float) -> None:
        super().__init__(nn.LayerNorm(in_features, eps=eps), nn.Linear(in_features, out_features))
        self.in_features, self.out_features = in_features, out_features


class RadioForImageClassification(RadioTaskModel):
    """RADIO with an image classifier; see `forward`.

    The classifier normalizes what it reads: RADIO has no final norm, and its scale would else decide which learning
    rate works. Another head reads the same `(batch, model.classifier.in_features)`, not normalized.

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
        """Whether `Trainer` gives `num_items_in_batch`, which counts all classes alike."""
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
            labels: By `config.problem_type`: classes `(batch,)` in [0, num_labels), -100 being ignored
                ("single_label_classification"); probabilities, mostly 0 or 1, `(batch, num_labels)`
                ("multi_label_classification"); or numbers `(batch, num_labels)`, also `(batch,)` of a single one
                ("regression"). Where the type is `None`, the first labels decide, as in transformers: one output is
                regression, integers are single labels, and floats multiple ones.
            num_items_in_batch: Labels in all batches of an optimizer's step. It divides the sum of losses and not the
                number of labels here, so that steps of several batches learn as one large batch does.
            pixel_values_videos: In place of images clips, as in `RadioModel.forward`. The classifier reads the mean of
                what it would read of each group of frames: CLIP4Clip's mean pooling, section 3.3 of
                https://arxiv.org/abs/2104.08860.

        Returns:
            `logits` `(batch, num_labels)`, and with labels the `loss`, scalar: cross-entropy, binary cross-entropy or
            squared error.

        Raises:
            ValueError: On labels that cannot be right; otherwise as `RadioModel.forward`.
        """
        check_call_arguments(self, kwargs)
        given = pixel_values if pixel_values_videos is None else pixel_values_videos
        if labels is not None and isinstance(given, Tensor):
            labels = self._check_labels(labels, len(given))
        passed = self.radio_model(
            pixel_values,
            window_size=window_size,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            pixel_values_videos=pixel_values_videos,
        )
        output = self.radio_model.read_out(passed)
        pooled = self._pool(output)
        logits = self.classifier(pooled if passed.num_clips is None else pooled.mean(dim=1))
        return ImageClassifierOutput(
            loss=None if labels is None else self._loss(logits.float(), labels.to(logits.device), num_items_in_batch),
            logits=logits,
            hidden_states=output.hidden_states,  # pyrefly: ignore[bad-argument-type]
            attentions=output.attentions,
        )

    @torch.no_grad()
    def predict(self, pixel_values: Tensor, window_size: WindowSize = None, **options: Any) -> ImageClassifierOutput:
        """Classify images by several looks at each, whose probabilities are averaged.

        Args:
            pixel_values: As in `forward`.
            window_size: As in `forward`.
            options: Of `ViewOptions`: `scales`, `flip`; a tile would show a part of what is classified.

        Returns:
            `logits` `(batch, num_labels)`.

        Raises:
            ValueError: If an option cannot be; otherwise as `forward`.
        """
        require_pixels(pixel_values)
        chosen = ViewOptions(**options)
        chosen.refuse("tile_size", "a class is that of a whole image")
        views = chosen.take(self.config, pixel_values)
        logits = [self(view.pixel_values, window_size=window_size, return_dict=True).logits for view in views]
        return ImageClassifierOutput(logits=mean_of_probabilities(logits, self.config))

    def _pool(self, output: RadioModelOutput) -> Tensor:
        """Return what the classifier reads, `(batch, width)`, or of clips `(batch, groups, width)`."""
        assert output.summary is not None
        assert output.features is not None
        if self.config.classifier_pooling == "summary":
            return output.summary
        return torch.cat([output.summary, output.features.mean(dim=-2)], dim=-1)

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
        """Return labels in the type that the loss needs, after checks; the first ones decide what they are."""
        if not isinstance(labels, Tensor):
            raise ValueError(f"`labels` must be a tensor, got a {type(labels).__name__}. Use `torch.tensor(labels)`.")
        problem_type = self.config.problem_type or self._guess_problem_type(labels)
        check_choice("problem_type", problem_type, get_args(ProblemType))
        if problem_type == "single_label_classification":
            labels = self._check_single_labels(labels, batch_size)
        else:
            labels = self._check_rows(labels, batch_size, problem_type)
        self.config.problem_type = problem_type
        return labels

    def _guess_problem_type(self, labels: Tensor) -> ProblemType:
        if self.config.num_labels == 1:
            return "regression"
        return "multi_label_classification" if labels.is_floating_point() else "single_label_classification"

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
    """Batch norm and one linear layer: the backbone's features as a map to logits, one for each patch.

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
    """DPT's decoder: a pass as `RadioDPTNeck` takes it to logits, 16 rows and columns for each patch."""

    def __init__(self, config: RadioConfig) -> None:
        super().__init__()
        dpt_config = build_dpt_config(config)
        self.neck = RadioDPTNeck(config, dpt_config)
        self.head = DPTSemanticSegmentationHead(dpt_config)
        keep_variance(self.head)

    def forward(self, passed: NetworkPass) -> Tensor:
        return self.head(self.neck(passed))


class RadioForSemanticSegmentation(RadioTaskModel):
    """RADIO with a head that gives each pixel a class; see `forward`. `config.segmentation_head` chooses the head.

    Raises:
        ValueError: If the default of `semantic_loss_ignore_index` is one of the classes, which would not be learned.
    """

    def __init__(self, config: RadioConfig) -> None:
        super().__init__(config)
        config = self.config
        if config.semantic_loss_ignore_index == IGNORED_CLASS < count_classes(config):
            raise ValueError(
                f"`semantic_loss_ignore_index` must not be its default, {IGNORED_CLASS}, with {count_classes(config)} "
                "classes, of which that is one: set -100, and give it to pixels that do not count."
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
                `config.semantic_loss_ignore_index`. They may be of another size than the images.

        Returns:
            `logits` `(batch, num_labels, ...)`, with one row and column for each patch ("linear") or more ("dpt"), and
            with labels the `loss`, scalar: the mean cross-entropy of logits resized to the labels.
            `RadioImageProcessor.post_process_semantic_segmentation` resizes them to the original images.

        Raises:
            ValueError: On labels that cannot be right; otherwise as `RadioModel.forward`.
        """
        check_call_arguments(self, kwargs)
        if labels is not None:
            labels = self._check_labels(labels, len(pixel_values))
        is_dpt = self.config.segmentation_head == "dpt"
        passed = self.radio_model(
            pixel_values,
            window_size=window_size,
            keep=self.config.dpt_blocks if is_dpt else (),
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        if is_dpt:
            logits = self.decode_head(passed)
        else:
            logits = self.decode_head(self.radio_model.read_out(passed, feature_format="NCHW").features)
        return SemanticSegmenterOutput(
            loss=None if labels is None else self._loss(logits, labels.to(logits.device)),
            logits=logits,
            hidden_states=passed.hidden_states,
            attentions=passed.attentions,
        )

    @torch.no_grad()
    def predict(self, pixel_values: Tensor, window_size: WindowSize = None, **options: Any) -> SemanticSegmenterOutput:
        """Segment images by several looks at each, whose probabilities are averaged in each pixel.

        Args:
            pixel_values: As in `forward`, with tiles of any size that the patch divides.
            window_size: As in `forward`.
            options: Of `ViewOptions`: `tile_size`, `tile_overlap`, `scales`, `flip`.

        Returns:
            `logits` `(batch, num_labels, height, width)`, logarithms of probabilities, a row and column for each pixel.

        Raises:
            ValueError: If an option cannot be; otherwise as `forward`.
        """
        size = require_pixels(pixel_values)
        views = ViewOptions(**options).take(self.config, pixel_values)

        def answer(view: View) -> Tensor:
            logits = self(view.pixel_values, window_size=window_size, return_dict=True).logits.float()
            sides = view.pixel_values.shape[-2:]
            return F.interpolate(logits, sides, mode="bilinear", align_corners=False).softmax(dim=1)

        shares = average_maps(((view, answer(view)) for view in views), size)
        return SemanticSegmenterOutput(logits=shares.clamp(min=torch.finfo(shares.dtype).tiny).log())

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = F.interpolate(logits.float(), labels.shape[-2:], mode="bilinear", align_corners=False)
        ignore_index = self.config.semantic_loss_ignore_index
        return weighted_cross_entropy(logits, labels, self.class_weights(logits), ignore_index)

    def _check_labels(self, labels: Tensor, batch_size: int) -> Tensor:
        """Return labels in the type that the loss needs, after checks."""
        if labels.ndim != 3 or len(labels) != batch_size or not labels.numel():
            raise ValueError(
                f"`labels` must have the shape ({batch_size}, height, width), a map for each image, got "
                f"{tuple(labels.shape)}."
            )
        if labels.is_floating_point():
            raise ValueError(f"`labels` must be integers, the class of each pixel, got {labels.dtype}.")
        labels = labels.long()
        self.check_classes(labels, self.config.semantic_loss_ignore_index)
        return labels


SCALE_INVARIANCE = 0.5  # lambda of Eigen et al.
MIN_DEPTH = 1e-3  # meters; our choice: below what cameras measure, so that the loss's logarithm stays finite


class RadioDepthHead(nn.Module):
    """DPT's neck and depth head: a pass as `RadioDPTNeck` takes it to depth, 16 rows and columns for each patch."""

    def __init__(self, config: RadioConfig) -> None:
        super().__init__()
        dpt_config = build_dpt_config(config)
        self.neck = RadioDPTNeck(config, dpt_config)
        self.head = DPTDepthEstimationHead(dpt_config)
        keep_variance(self.head)
        # DPT ends in a ReLU, where pixels that start at depth 0 would get no gradient.
        self.head.head[-1] = nn.Softplus()

    def forward(self, passed: NetworkPass) -> Tensor:
        return self.head(self.neck(passed)) + MIN_DEPTH


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
            labels: The depth of each pixel in meters, `(batch, height, width)`, floats. Pixels whose depth is not
                known hold 0, a negative number, infinity or NaN, and do not count.

        Returns:
            `predicted_depth` `(batch, height, width)`, positive, in meters if trained on meters, and with labels the
            `loss`, scalar (`scale_invariant_loss`). `RadioImageProcessor.post_process_depth_estimation` resizes depth
            to the original images.

        Raises:
            ValueError: On labels that cannot be right; otherwise as `RadioModel.forward`.
        """
        check_call_arguments(self, kwargs)
        if labels is not None:
            _check_labels(labels, pixel_values)
        passed = self.radio_model(
            pixel_values,
            window_size=window_size,
            keep=self.config.dpt_blocks,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        depth = self.depth_head(passed)
        # Not the image's own size with patches of 14 pixels, or an odd number of them, which DPT rounds up.
        depth = F.interpolate(depth.unsqueeze(1), pixel_values.shape[-2:], mode="bilinear", align_corners=False)
        depth = depth.squeeze(1)
        return DepthEstimatorOutput(
            loss=None if labels is None else scale_invariant_loss(depth.float(), labels.to(depth.device)),
            predicted_depth=depth,
            hidden_states=passed.hidden_states,
            attentions=passed.attentions,
        )

    @torch.no_grad()
    def predict(self, pixel_values: Tensor, window_size: WindowSize = None, **options: Any) -> DepthEstimatorOutput:
        """Estimate depth by several looks at each image, averaged in each pixel.

        Args:
            pixel_values: As in `forward`, with tiles of any size that the patch divides.
            window_size: As in `forward`.
            options: Of `ViewOptions`: `tile_size`, `tile_overlap`, `flip`; other scales look nearer or farther.

        Returns:
            `predicted_depth` `(batch, height, width)`.

        Raises:
            ValueError: If an option cannot be; otherwise as `forward`.
        """
        size = require_pixels(pixel_values)
        chosen = ViewOptions(**options)
        chosen.refuse("scales", "an image of another scale shows things nearer or farther")
        views = chosen.take(self.config, pixel_values)
        depth = average_maps(((view, self._depth_of(view, window_size)) for view in views), size)
        return DepthEstimatorOutput(predicted_depth=depth.squeeze(1))

    def _depth_of(self, view: View, window_size: WindowSize) -> Tensor:
        return self(view.pixel_values, window_size=window_size, return_dict=True).predicted_depth.unsqueeze(1)


def scale_invariant_loss(predicted: Tensor, true: Tensor) -> Tensor:
    """Return the squared error of log depth, half of it forgiven where an image is wrong by one factor only.

    Args:
        predicted: Depth of each pixel, `(batch, height, width)`, positive.
        true: The same unit and shape; pixels that are not positive and finite do not count.

    Returns:
        Scalar, the mean over images with any depth, and 0 if there are none. Dimensionless.

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
