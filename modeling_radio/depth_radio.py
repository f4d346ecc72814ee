"""RADIO for depth estimation: DPT's decoder over four blocks, trained with a scale-invariant loss."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import DepthEstimatorOutput
from transformers.models.dpt.modeling_dpt import DPTDepthEstimationHead
from transformers.processing_utils import Unpack
from transformers.utils.generic import TransformersKwargs, can_return_tuple

from .call_arguments_radio import check_call_arguments
from .configuration_radio import RadioConfig
from .heads_radio import RadioDPTNeck, RadioTaskModel, build_dpt_config, keep_variance
from .outputs_radio import NetworkPass
from .requested_outputs_radio import StatesWanted
from .views_radio import View, ViewOptions, average_maps, require_pixels
from .window_choice_radio import WindowSize


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
