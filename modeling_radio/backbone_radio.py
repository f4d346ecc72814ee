"""RADIO as a transformers backbone: feature maps of chosen blocks, or a simple feature pyramid, for standard heads."""

from torch import Tensor, nn
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput

from .configuration_radio import RadioConfig
from .modeling_radio import RadioModelOutput, RadioNetwork, RadioPreTrainedModel


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


class RadioBackbone(BackboneMixin, RadioPreTrainedModel):
    """RADIO under the backbone interface; adaptors are not built.

    `config.out_indices` or `config.out_features` choose the maps: index 0 ("stem") is the patch embedding, index `i`
    ("stage{i}") the output of block `i`, the last one with final norm and feature normaliser where the checkpoint has
    them. With `config.use_feature_pyramid` the maps are "p2" to "p5" instead.
    """

    # A backbone needs no adaptors; folders that hold them open without a warning.
    _keys_to_ignore_on_load_unexpected = [r"radio_model\.adaptors\.", r"radio_model\.model\.reg_token"]

    def __init__(self, config: RadioConfig) -> None:
        super().__init__(config)
        self.radio_model = RadioNetwork(config, use_adaptors=False)
        self.feature_pyramid = RadioFeaturePyramid(config) if config.use_feature_pyramid else None
        channels = config.feature_pyramid_size if config.use_feature_pyramid else config.hidden_size
        self.num_features = [channels for _ in config.stage_names]
        self.post_init()

    def forward(  # pyrefly: ignore[bad-override]
        self,
        pixel_values: Tensor,
        window_size: int | str | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BackboneOutput | tuple:
        """Compute feature maps.

        Args:
            pixel_values: RGB images in [0, 1], `(batch, channels, height, width)`, sides multiples of the patch.
            window_size: As in `RadioModel.forward`.
            output_hidden_states: Also return every block's tokens.
            output_attentions: Also return attention weights (eager attention only).
            return_dict: `False` returns a tuple.

        Returns:
            `BackboneOutput` with one map `(batch, channels, rows, cols)` per name in `out_features`.

        Raises:
            ValueError: As `RadioModel.forward`.
        """
        output = self.encode(
            pixel_values,
            window_size=window_size,
            adaptor_names=[],
            feature_format="NCHW",
            output_hidden_states=True,
            output_attentions=output_attentions,
        )
        maps = dict(zip(self.stage_names, self._stage_maps(output, pixel_values), strict=True))
        result = BackboneOutput(
            feature_maps=tuple(maps[name] for name in self.out_features or []),  # pyrefly: ignore[bad-argument-type]
            hidden_states=output.hidden_states if output_hidden_states else None,
            attentions=output.attentions,
        )
        return result if return_dict is not False else result.to_tuple()

    def _stage_maps(self, output: RadioModelOutput, pixel_values: Tensor) -> list[Tensor]:
        """Return one map per name in `stage_names`."""
        assert output.features is not None
        assert output.hidden_states is not None
        if self.feature_pyramid is not None:
            return self.feature_pyramid(output.features)
        grid = tuple(self.radio_model.grid(pixel_values))
        early = [self.radio_model.patch_features(tokens) for tokens in output.hidden_states[:-1]]
        return [*(tokens.transpose(1, 2).unflatten(2, grid) for tokens in early), output.features]
