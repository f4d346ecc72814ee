"""Adaptors: the heads that map summary and dense features into the space of a teacher."""

import torch.nn.functional as F
from torch import Tensor, nn

from .checks_radio import own_name
from .configuration_radio import RadioAdaptorConfig, RadioConfig
from .layers_radio import RadioAttention, RadioBlock, RadioMLP
from .outputs_radio import RadioAdaptorOutput


class RadioHeadMLPv1(nn.Module):
    """Linear, norm, ReLU, linear (RADIOv2): `(..., input)` to `(..., output)`."""

    def __init__(self, input_size: int, hidden_size: int, output_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(input_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)
        self.fc2 = nn.Linear(hidden_size, output_size)

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

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.fc1(tokens)
        for block in self.blocks:
            tokens = tokens + block(tokens)
        return self.final(tokens)


class RadioHeadAttention(nn.Module):
    """Transformer blocks, then an MLP: the dense siglip2-g head of C-RADIOv4.

    Its blocks have no bias in the qkv projection, an MLP of four times the width whatever the backbone's own ratio, and
    always LayerScale.
    """

    def __init__(self, config: RadioConfig, adaptor: RadioAdaptorConfig, mlp: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            RadioBlock(
                config,
                RadioAttention(config, adaptor.feature_num_attention_heads, qkv_bias=False),
                RadioMLP(config, 4 * config.hidden_size),
                use_layer_scale=True,
            )
            for _ in range(adaptor.feature_num_blocks)
        )
        self.mlp = mlp

    def forward(self, tokens: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens)
        return self.mlp(tokens)


class RadioAdaptor(nn.Module):
    """Summary head and dense head of one teacher; a head that its configuration leaves out is `None`.

    Shapes of `forward`: final tokens `(batch, length, hidden)`, of which the summary head reads one, and features
    `(batch, rows * cols, hidden)` to `RadioAdaptorOutput` with features `(batch, tokens, feature_dim)`.
    """

    def __init__(self, config: RadioConfig, adaptor: RadioAdaptorConfig) -> None:
        super().__init__()
        self.token_index = self.head_idx = adaptor.token_index  # NVIDIA's name too
        self.upsample_factor = adaptor.upsample_factor
        self.head_mlp = self.feat_mlp = None
        if adaptor.summary_dim is not None:
            self.head_mlp = _build_mlp(
                config, adaptor.mlp_version, adaptor.hidden_size, adaptor.summary_dim, adaptor.num_inner_blocks
            )
        if adaptor.feature_dim is not None:
            self.feat_mlp = _build_dense_head(config, adaptor, adaptor.feature_dim)

    def forward(self, tokens: Tensor, features: Tensor, rows: int, cols: int) -> RadioAdaptorOutput:
        summary = None if self.head_mlp is None else self.head_mlp(tokens[:, self.token_index])
        if self.feat_mlp is not None:
            features = self._upsample(self.feat_mlp(features), rows, cols)
        return RadioAdaptorOutput(summary=summary, features=None if self.feat_mlp is None else features)

    @property
    def first_dense_linear(self) -> nn.Linear | None:
        """The layer that reads the backbone's dense features; None without a dense head, or where blocks read them."""
        return self.feat_mlp.fc1 if isinstance(self.feat_mlp, (RadioHeadMLP, RadioHeadMLPv1)) else None

    @property
    def last_dense_linear(self) -> nn.Linear:
        """The layer that writes the dense features, where a standardization of the teacher's features is folded in."""
        assert self.feat_mlp is not None
        return [module for module in self.feat_mlp.modules() if isinstance(module, nn.Linear)][-1]

    def _upsample(self, features: Tensor, rows: int, cols: int) -> Tensor:
        """Spread each token's channels over `upsample_factor` x `upsample_factor` finer tokens."""
        factor = self.upsample_factor
        if factor == 1:
            return features
        features = features.unflatten(1, (rows, cols)).unflatten(-1, (factor, factor, -1))
        # (batch, rows, cols, factor, factor, dim) -> (batch, rows * factor * cols * factor, dim)
        return features.transpose(2, 3).flatten(1, 4)


def _build_dense_head(config: RadioConfig, adaptor: RadioAdaptorConfig, feature_dim: int) -> nn.Module:
    width = adaptor.feature_hidden_size or adaptor.hidden_size
    inner = adaptor.num_inner_blocks if adaptor.feature_num_inner_blocks is None else adaptor.feature_num_inner_blocks
    version = adaptor.feature_mlp_version or adaptor.mlp_version
    mlp = _build_mlp(config, version, width, feature_dim * adaptor.upsample_factor**2, inner)
    return mlp if adaptor.feature_head == "mlp" else RadioHeadAttention(config, adaptor, mlp)


def _build_mlp(config: RadioConfig, version: str, width: int, output: int, inner: int) -> nn.Module:
    if version == "v1":
        return RadioHeadMLPv1(config.hidden_size, width, output)
    return RadioHeadMLP(config.hidden_size, width, output, inner)


class RadioAdaptors(nn.ModuleDict):
    """The adaptors of a network by the file's names; other names of a teacher (`SAME_TEACHER`) lead to it too."""

    def __getitem__(self, key: str) -> nn.Module:
        return super().__getitem__(own_name(key, self))
