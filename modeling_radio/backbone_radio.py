"""RADIO as a transformers backbone: feature maps of chosen blocks, or a simple feature pyramid, for standard heads."""

import inspect
import re
from typing import Any

import torch
from torch import Tensor, nn
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput
from transformers.processing_utils import Unpack
from transformers.utils.generic import TransformersKwargs, can_return_tuple

from .configuration_radio import RadioConfig
from .inputs_radio import StatesWanted, WindowSize, check_call_arguments
from .modeling_radio import ADAPTORS, IGNORED_KEYS, RadioPreTrainedModel, build_network
from .new_head_radio import NewHeadReport
from .outputs_radio import NetworkOutput


class RadioMapNorm(nn.LayerNorm):
    """Layer norm over the channels of maps `(batch, channels, rows, cols)`."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class RadioFeaturePyramid(nn.Module):
    """Four maps at strides 1/4, 1/2, 1 and 2 patches from the last feature map alone.

    Shapes of `forward`: `(batch, hidden, rows, cols)` to four maps `(batch, feature_pyramid_size, ...)`, finest first.

    References:
        Simple feature pyramid: ViTDet, section 3. https://arxiv.org/abs/2203.16527
    """

    def __init__(self, config: RadioConfig) -> None:
        super().__init__()
        hidden, size, eps = config.hidden_size, config.feature_pyramid_size, config.layer_norm_eps
        self.scales = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(hidden, hidden // 2, 2, stride=2),
                    RadioMapNorm(hidden // 2, eps=eps),
                    nn.GELU(),
                    nn.ConvTranspose2d(hidden // 2, hidden // 4, 2, stride=2),
                ),
                nn.ConvTranspose2d(hidden, hidden // 2, 2, stride=2),
                nn.Identity(),
                nn.MaxPool2d(2, ceil_mode=True),
            ]
        )
        self.outputs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, size, 1, bias=False),
                RadioMapNorm(size, eps=eps),
                nn.Conv2d(size, size, 3, padding=1, bias=False),
                RadioMapNorm(size, eps=eps),
            )
            for channels in (hidden // 4, hidden // 2, hidden, hidden)
        )

    def forward(self, maps: Tensor) -> list[Tensor]:
        return [output(scale(maps)) for scale, output in zip(self.scales, self.outputs, strict=True)]


class RadioBackbone(NewHeadReport, BackboneMixin, RadioPreTrainedModel):
    """RADIO under the backbone interface; adaptors are not built.

    `config.out_indices` or `config.out_features` choose the maps: index 0 ("stem") is the patch embedding, index `i`
    ("stage{i}") the output of block `i`, the last one with final norm and feature normalizer where the checkpoint has
    them. Of RADIO1D the last one is the decoder's, and maps of blocks behind a merging are coarser and wider. With
    `config.use_feature_pyramid` the maps are "p2" to "p5" instead.
    """

    # A backbone needs no adaptors; folders that hold them open without a warning.
    _keys_to_ignore_on_load_unexpected = [*IGNORED_KEYS, rf"{re.escape(ADAPTORS)}\."]

    def __init__(self, config: RadioConfig) -> None:
        super().__init__(config)
        config = self.config
        config._out_features, config._out_indices = (
            config.out_features,
            config.out_indices,
        )  # `BackboneMixin` reads these
        self.radio_model = build_network(config, use_adaptors=False)
        self.feature_pyramid = RadioFeaturePyramid(config) if config.use_feature_pyramid else None
        channels = config.feature_pyramid_size if config.use_feature_pyramid else config.hidden_size
        self.num_features = [channels for _ in config.stage_names]
        if config.num_mergings and not config.use_feature_pyramid:
            inner = range(config.num_hidden_layers - 1)
            self.num_features[1:-1] = [config.block_hidden_size(block) for block in inner]
        self.post_init()

    @staticmethod
    def restrict_config(config: RadioConfig) -> RadioConfig:
        return config.without_adaptors()

    @can_return_tuple
    def forward(  # noqa: D417  # pyrefly: ignore[bad-override]
        self,
        pixel_values: Tensor,
        window_size: WindowSize = None,
        output_hidden_states: StatesWanted = None,
        output_attentions: bool | None = None,
        pixel_mask: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BackboneOutput:
        """Compute feature maps.

        Args:
            pixel_values: RGB images in [0, 1], `(batch, channels, height, width)`, sides multiples of the patch; other
                arguments are those of `RadioTaskModel`.

        Returns:
            `BackboneOutput` with one map `(batch, channels, rows, cols)` per name in `out_features`. Without
            `config.reshape_hidden_states` these are sequences of the first class token and the patches,
            `(batch, 1 + rows * cols, channels)`.

        Raises:
            ValueError: As `RadioModel.forward`.
        """
        check_call_arguments(self, kwargs)
        stages = [self.stage_names.index(name) for name in self.out_features or []]
        result = self.radio_model(
            pixel_values,
            window_size=window_size,
            keep=self._blocks_behind(stages),
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        if self.feature_pyramid is None:
            maps = [self._stage_map(result, stage) for stage in stages]
        else:
            pyramid = self.feature_pyramid(self.radio_model.make_output(result, feature_format="NCHW").features)
            maps = [pyramid[stage] for stage in stages]
        return BackboneOutput(
            feature_maps=tuple(maps),  # pyrefly: ignore[bad-argument-type]
            hidden_states=result.hidden_states,
            attentions=result.attentions,
        )

    def forward_with_filtered_kwargs(self, *args: Any, **kwargs: Any) -> Any:
        """Compute feature maps without the arguments that `forward` does not know: composite models pass on theirs."""
        known = {*inspect.signature(self.forward).parameters, "return_dict"}
        return self(*args, **{name: value for name, value in kwargs.items() if name in known})

    def _blocks_behind(self, stages: list[int]) -> list[int]:
        """Return the blocks to keep: the last stage, and all of a pyramid, is made of the final tokens."""
        if self.feature_pyramid is not None:
            return []
        return [stage - 1 for stage in stages if 0 < stage < self.config.num_hidden_layers]

    def _stage_map(self, result: NetworkOutput, stage: int) -> Any:
        """Return the map of a stage, `(batch, hidden, rows, cols)`, or its sequence."""
        if stage == self.config.num_hidden_layers:
            tokens, features = result.tokens, self.radio_model.make_output(result, feature_format="NCHW").features
        else:
            tokens = result.kept[stage - 1] if stage else result.embedded
            features = self.radio_model.block_map(tokens, result.grid, stage - 1)
        if self.config.reshape_hidden_states:
            return features
        return torch.cat([tokens[:, :1], features.flatten(2).transpose(1, 2)], dim=1)
