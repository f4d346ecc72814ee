"""Stands for the remote code of NVIDIA's Hub repositories: our own words, its names, its file layout.

It opens the reference cases' Hub folders and answers as NVIDIA's class does: a pair of summary and features, or with
adaptors a dictionary of pairs. `tests/conversion/release/test_worker.py` holds it to outputs of NVIDIA's own code.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from .common import RESOURCE_MAP  # noqa: F401  (the file must come along)
from .vitdet import apply_vitdet_arch, from_windows, to_windows  # noqa: F401


class RadioOutput(NamedTuple):
    """What the model answers."""

    summary: Tensor
    features: Tensor


class RADIOConfig(PreTrainedConfig):
    """NVIDIA's `config.json`: arguments of the training run, and shapes of the adaptors."""

    args: dict[str, Any] | None = None
    version: str | None = None
    patch_size: int = 16
    max_resolution: int = 2048
    preferred_resolution: list[int] | None = None
    adaptor_names: list[str] | None = None
    adaptor_configs: dict[str, Any] | None = None
    vitdet_window_size: int | None = None


class Conditioner(nn.Module):
    """Normalizes pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("norm_mean", torch.zeros(3, 1, 1))
        self.register_buffer("norm_std", torch.ones(3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels - self.norm_mean) / self.norm_std


class Prefix(nn.Module):
    """Class tokens and registers."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(count, width))


class PatchGenerator(nn.Module):
    """Patches to tokens, with positions and prefix tokens."""

    def __init__(self, width: int, patch: int, side: int, num_prefix: int, is_aligned: bool) -> None:
        super().__init__()
        self.patch, self.side, self.is_aligned = patch, side, is_aligned
        self.embedder = nn.Linear(3 * patch**2, width, bias=False)
        self.pos_embed = nn.Parameter(torch.zeros(1, side**2, width))
        self.cls_token = Prefix(num_prefix, width)

    def forward(self, pixels: Tensor) -> tuple[Tensor, int, int]:
        rows, cols = pixels.shape[2] // self.patch, pixels.shape[3] // self.patch
        patches = self.embedder(F.unfold(pixels, self.patch, stride=self.patch).transpose(1, 2))
        table = self.pos_embed.reshape(1, self.side, self.side, -1).permute(0, 3, 1, 2).float()
        longer = max(rows, cols)
        table = F.interpolate(table, (longer, longer), mode="bilinear", align_corners=self.is_aligned)
        table = table[:, :, :rows, :cols]
        patches = patches + table.flatten(2).transpose(1, 2).to(patches.dtype)
        return torch.cat([self.cls_token.token.expand(len(pixels), -1, -1), patches], dim=1), rows, cols


class Attention(nn.Module):
    """Attention of all tokens, or of those of a window."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.window = num_heads, None
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, width = tokens.shape
        qkv = self.qkv(tokens).reshape(batch, count, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(*qkv).transpose(1, 2).reshape(batch, count, width))


class Mlp(nn.Module):
    """Two layers."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


class Block(nn.Module):
    """A transformer block; prefix tokens sit windowed ones out."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = Attention(width, num_heads), Mlp(width, 4 * width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class Trunk(nn.Module):
    """The transformer."""

    def __init__(self, config: RADIOConfig) -> None:
        super().__init__()
        args = config.args
        width, depth, num_heads = (args["model_kwargs"][name] for name in ("embed_dim", "depth", "num_heads"))
        side = args["cpe_max_size"] // config.patch_size
        is_aligned = config.version in ("c-radio_v3-b", "c-radio_v3-h")
        self.patch_generator = PatchGenerator(width, config.patch_size, side, args["register_multiple"], is_aligned)
        self.blocks = nn.ModuleList(Block(width, num_heads) for _ in range(depth))

    def forward(self, pixels: Tensor) -> Tensor:
        tokens, rows, cols = self.patch_generator(pixels)
        count = tokens.shape[1] - rows * cols
        for block in self.blocks:
            if block.attn.window is None:
                tokens = block(tokens)
                continue
            windows = to_windows(tokens[:, count:], rows, cols, block.attn.window)
            patches = from_windows(block(windows), rows, cols, block.attn.window)
            tokens = torch.cat([tokens[:, :count], patches], dim=1)
        return tokens


class Head(nn.Module):
    """The MLP of an adaptor."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(input_dim, hidden_dim)
        blocks = [
            nn.Sequential(nn.LayerNorm(hidden_dim), nn.GELU(), nn.Linear(hidden_dim, hidden_dim))
            for _ in range(num_inner)
        ]
        self.blocks = nn.ModuleList(blocks)
        self.final = nn.Sequential(nn.LayerNorm(hidden_dim), nn.GELU(), nn.Linear(hidden_dim, output_dim))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.fc1(tokens)
        for block in self.blocks:
            tokens = tokens + block(tokens)
        return self.final(tokens)


class Adaptor(nn.Module):
    """Maps a class token and the patches into a teacher's space."""

    def __init__(self, heads: dict[str, Any]) -> None:
        super().__init__()
        self.token, self.factor = heads["head_idx"], heads["feature"]["upsample_factor"]
        names = ("input_dim", "hidden_dim", "output_dim", "num_inner")
        self.head_mlp = Head(*(heads["summary"][name] for name in names))
        self.feat_mlp = Head(*(heads["feature"][name] for name in names))

    def forward(self, prefix: Tensor, patches: Tensor, rows: int, cols: int) -> RadioOutput:
        features = self.feat_mlp(patches)
        cells = features.reshape(len(features), rows, cols, self.factor, self.factor, -1).transpose(2, 3)
        features = cells.reshape(len(features), rows * cols * self.factor**2, -1)
        return RadioOutput(self.head_mlp(prefix[:, self.token]), features)


class Network(nn.Module):
    """What NVIDIA's repositories call `radio_model`."""

    def __init__(self, config: RADIOConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.model, self.input_conditioner = Trunk(config), Conditioner()
        num_summaries = sum(teacher["use_summary"] for teacher in config.args["teachers"])
        self.register_buffer("summary_idxs", torch.zeros(num_summaries, dtype=torch.int64))
        names = config.adaptor_names or []
        self.adaptors = nn.ModuleDict({name: Adaptor(config.adaptor_configs[name]) for name in names})

    @property
    def num_summary_tokens(self) -> int:
        return len(self.model.patch_generator.cls_token.token)

    def forward(self, pixels: Tensor) -> Any:
        tokens = self.model(self.input_conditioner(pixels))
        prefix, patches = tokens[:, : self.num_summary_tokens], tokens[:, self.num_summary_tokens :]
        backbone = RadioOutput(prefix[:, self.summary_idxs].flatten(1), patches)
        if not self.adaptors:
            return backbone
        rows, cols = (side // self.patch_size for side in pixels.shape[2:])
        named = {name: adaptor(prefix, patches, rows, cols) for name, adaptor in self.adaptors.items()}
        return {"backbone": backbone, **named}


class RADIOModel(PreTrainedModel):
    """What the Auto classes open."""

    config_class = RADIOConfig
    _no_split_modules = ()

    def __init__(self, config: RADIOConfig) -> None:
        super().__init__(config)
        self.radio_model = Network(config)
        self.post_init()

    def forward(self, x: Tensor) -> Any:
        return self.radio_model(x)
