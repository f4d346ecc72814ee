"""Adaptors: small heads that map the backbone's summary and features into one teacher's output space."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from .configuration_radio import RadioAdaptorConfig, RadioConfig
from .encoder_radio import RadioAttention, RadioLayerScale, RadioMLP


@dataclass
class RadioAdaptorOutput(ModelOutput):
    """What one adaptor predicts of its teacher.

    Attributes:
        summary: `(batch, summary_dim)`, or `None` if the teacher has no summary.
        features: `(batch, tokens, feature_dim)`, or `(batch, feature_dim, rows, cols)` in the "NCHW" format; an
            upsampling adaptor has `upsample_factor` times more rows and columns than the backbone.
    """

    summary: Tensor | None = None
    features: Tensor | None = None


class RadioHeadMLPv1(nn.Module):
    """Linear, norm, ReLU, linear (RADIOv2): `(..., input)` to `(..., output)`."""

    def __init__(self, input_size: int, hidden_size: int, output_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(input_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)
        self.fc2 = nn.Linear(hidden_size, output_size)

    @property
    def output_linear(self) -> nn.Linear:
        """The last linear layer."""
        return self.fc2

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.relu(self.norm(self.fc1(tokens))))


class RadioHeadMLP(nn.Module):
    """Linear, residual blocks [norm, GELU, linear], norm, GELU, linear: `(..., input)` to `(..., output)`.

    References:
        AM-RADIO, section 3.2. https://arxiv.org/abs/2312.06709
    """

    def __init__(self, input_size: int, hidden_size: int, output_size: int, num_inner_blocks: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(input_size, hidden_size)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size))
            for _ in range(num_inner_blocks)
        )
        self.final = nn.Sequential(nn.LayerNorm(hidden_size), nn.GELU(), nn.Linear(hidden_size, output_size))

    @property
    def output_linear(self) -> nn.Linear:
        """The last linear layer."""
        return self.final[-1]  # pyrefly: ignore[bad-return]

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.fc1(tokens)
        for block in self.blocks:
            tokens = tokens + block(tokens)
        return self.final(tokens)


class RadioHeadBlock(nn.Module):
    """Transformer block of an attention head: no bias in the qkv projection, always with LayerScale."""

    def __init__(self, config: RadioConfig, adaptor: RadioAdaptorConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = RadioAttention(config, adaptor.feature_num_attention_heads, qkv_bias=False)
        self.ls1 = RadioLayerScale(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = RadioMLP(config, 4 * config.hidden_size)  # whatever the backbone's own ratio
        self.ls2 = RadioLayerScale(config)

    def forward(self, tokens: Tensor) -> Tensor:
        attended, _ = self.attn(self.norm1(tokens), ((1, tokens.shape[1]),))
        tokens = tokens + self.ls1(attended)
        return tokens + self.ls2(self.mlp(self.norm2(tokens)))


class RadioHeadAttention(nn.Module):
    """Transformer blocks, then an MLP: the dense siglip2-g head of C-RADIOv4."""

    def __init__(self, config: RadioConfig, adaptor: RadioAdaptorConfig, mlp: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(RadioHeadBlock(config, adaptor) for _ in range(adaptor.feature_num_blocks))
        self.mlp = mlp

    @property
    def output_linear(self) -> nn.Linear:
        """The last linear layer."""
        return self.mlp.output_linear  # pyrefly: ignore[bad-return]

    def forward(self, tokens: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens)
        return self.mlp(tokens)


class RadioAdaptor(nn.Module):
    """Summary head and dense head of one teacher; a head that its configuration leaves out is `None`.

    Shapes of `forward`: class tokens `(batch, num_cls_tokens, hidden)` and features `(batch, rows * cols, hidden)` to
    `RadioAdaptorOutput` with features `(batch, tokens, feature_dim)`.
    """

    def __init__(self, config: RadioConfig, adaptor: RadioAdaptorConfig) -> None:
        super().__init__()
        self.token_index = adaptor.token_index
        self.upsample_factor = adaptor.upsample_factor
        self.head_mlp = _build_summary_head(config, adaptor)
        self.feat_mlp = _build_feature_head(config, adaptor)

    def forward(self, class_tokens: Tensor, features: Tensor, rows: int, cols: int) -> RadioAdaptorOutput:
        summary = None if self.head_mlp is None else self.head_mlp(class_tokens[:, self.token_index])
        if self.feat_mlp is not None:
            features = self._upsample(self.feat_mlp(features), rows, cols)
        return RadioAdaptorOutput(summary=summary, features=None if self.feat_mlp is None else features)

    def _upsample(self, features: Tensor, rows: int, cols: int) -> Tensor:
        """Spread each token's channels over `upsample_factor` x `upsample_factor` finer tokens."""
        factor = self.upsample_factor
        if factor == 1:
            return features
        features = features.unflatten(1, (rows, cols)).unflatten(-1, (factor, factor, -1))
        # (batch, rows, cols, factor, factor, dim) -> (batch, rows * factor * cols * factor, dim)
        return features.transpose(2, 3).flatten(1, 4)


def _build_mlp(
    adaptor: RadioAdaptorConfig, input_size: int, hidden_size: int, output_size: int, inner: int
) -> nn.Module:
    if adaptor.mlp_version == "v1":
        return RadioHeadMLPv1(input_size, hidden_size, output_size)
    return RadioHeadMLP(input_size, hidden_size, output_size, inner)


def _build_summary_head(config: RadioConfig, adaptor: RadioAdaptorConfig) -> nn.Module | None:
    if adaptor.summary_dim is None:
        return None
    return _build_mlp(adaptor, config.hidden_size, adaptor.hidden_size, adaptor.summary_dim, adaptor.num_inner_blocks)


def _build_feature_head(config: RadioConfig, adaptor: RadioAdaptorConfig) -> nn.Module | None:
    if adaptor.feature_dim is None:
        return None
    hidden_size = adaptor.feature_hidden_size or adaptor.hidden_size
    inner = adaptor.num_inner_blocks if adaptor.feature_num_inner_blocks is None else adaptor.feature_num_inner_blocks
    mlp = _build_mlp(adaptor, config.hidden_size, hidden_size, adaptor.feature_dim * adaptor.upsample_factor**2, inner)
    return mlp if adaptor.feature_head == "mlp" else RadioHeadAttention(config, adaptor, mlp)
