"""What the task models share: a backbone without adaptors, DPT's neck, and checks of their labels."""

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DPTConfig, PreTrainedModel
from transformers import initialization as init
from transformers.models.dpt.modeling_dpt import DPTNeck

from .configuration_radio import RadioConfig
from .load_report_radio import NewHeadReport
from .modeling_radio import IGNORED_KEYS, WHOLE_PARTS, RadioPreTrainedModel
from .network_radio import ADAPTORS
from .nvidia_interface_radio import build_network
from .outputs_radio import NetworkPass


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
