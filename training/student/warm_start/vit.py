"""The trunk of a plain ViT in RADIO's words, read from the names that transformers and timm give to its weights."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


Block = dict[str, Tensor]
"""Weights of one block under the names of `RadioBlock`; biases that are missing there are missing here."""


@dataclass
class VitTrunk:
    """A plain ViT: what `fit_vit` needs to know of it.

    Attributes:
        name: What it is, for messages.
        patch: Patch projection, `(hidden, channels, patch, patch)`.
        patch_bias: Its bias, `(hidden,)`; zeros for none.
        class_token: `(hidden,)`, with its position added; None for none.
        registers: `(count, hidden)`.
        positions: Table of positions, `(rows, cols, hidden)`; None where it has none, or rotates queries and keys.
        blocks: In their order.
        final_norm: `weight` and `bias` of the norm after the last block; None for none.
        num_heads: Attention heads of each block.
        hidden_act: Activation of the MLP, by its name in transformers; not looked at where the MLP is gated.
        layer_norm_eps: Of the blocks' norms.
        mean: Per channel, of the pixels in [0, 1] that it expects.
        std: Per channel.
        left_out: What it has beyond that, in a few words each.
    """

    name: str
    patch: Tensor
    patch_bias: Tensor
    class_token: Tensor | None
    registers: Tensor
    positions: Tensor | None
    blocks: list[Block]
    final_norm: dict[str, Tensor] | None
    num_heads: int
    hidden_act: str
    layer_norm_eps: float
    mean: list[float]
    std: list[float]
    left_out: list[str] = field(default_factory=list)

    @property
    def is_gated(self) -> bool:
        """Whether the MLP is SwiGLU."""
        return "mlp.w12.weight" in self.blocks[0]

    @property
    def mlp_width(self) -> int:
        """Hidden width of the MLP, of the gated one after its gate."""
        return self.blocks[0]["mlp.w3.weight" if self.is_gated else "mlp.fc2.weight"].shape[1]


class UnknownTrunkError(ValueError):
    """A ViT that cannot be told in RADIO's words; the message is one line."""


_BLOCK = re.compile(r"(?:encoder\.|model\.)?(?:layers?|blocks)\.(\d+)\.(.+)")
_ATTENTION = r"(?:attention|self_attn|attn)"
_IN_BLOCK = {
    "norm1": r"norm1|layernorm_before|layer_norm1",
    "norm2": r"norm2|layernorm_after|layer_norm2",
    "attn.qkv": r"attn\.qkv",
    "attn.q": rf"attention\.attention\.query|{_ATTENTION}\.q_proj",
    "attn.k": rf"attention\.attention\.key|{_ATTENTION}\.k_proj",
    "attn.v": rf"attention\.attention\.value|{_ATTENTION}\.v_proj",
    "attn.proj": rf"attention\.output\.dense|{_ATTENTION}\.(?:o_proj|out_proj|proj)",
    "mlp.fc1": r"mlp\.fc1|intermediate\.dense",
    "mlp.fc2": r"mlp\.fc2|output\.dense|mlp\.down_proj",
    "mlp.w12": r"mlp\.weights_in",
    "mlp.w3": r"mlp\.weights_out",
    "mlp.gate": r"mlp\.gate_proj|mlp\.fc1_g",
    "mlp.value": r"mlp\.up_proj|mlp\.fc1_x",
}
_PARAMETERS_IN_BLOCK = {
    "ls1.grandma": r"layer_scale1\.lambda1|ls1\.gamma|gamma_1",
    "ls2.grandma": r"layer_scale2\.lambda1|ls2\.gamma|gamma_2",
    "attn.q.bias": r"attn\.q_bias",
    "attn.k.bias": r"attn\.k_bias",
    "attn.v.bias": r"attn\.v_bias",
}
_OUTSIDE = {
    "patch": r"embeddings\.patch_embeddings?(?:\.projection)?|patch_embed\.proj",
    "norm": r"norm|layernorm|post_layernorm",
}
_PARAMETERS_OUTSIDE = {
    "class_token": r"(?:embeddings\.)?cls_token",
    "registers": r"embeddings\.register_tokens|reg_token",
    "positions": r"embeddings\.position_embeddings|embeddings\.position_embedding\.weight|pos_embed",
}
_BEFORE_BLOCKS = re.compile(r"(?:norm_pre|pre_layrnorm|pre_layernorm|patch_embed|embeddings)\..*")
_WITHOUT_EFFECT = re.compile(r"(?:embeddings\.)?mask_token|embeddings\.position_ids")


def read_trunk(  # noqa: PLR0913
    name: str,
    state: Mapping[str, Tensor],
    *,
    num_heads: int,
    hidden_act: str,
    layer_norm_eps: float,
    mean: Iterable[float],
    std: Iterable[float],
    num_prefix_positions: int,
    grid: tuple[int, int] | None = None,
    left_out: Iterable[str] = (),
) -> VitTrunk:
    """Return a trunk from the weights of a ViT, in float32.

    Args:
        name: What it is.
        state: Its weights by name, as transformers' or timm's plain ViTs have them.
        num_heads: Attention heads of each block.
        hidden_act: Activation of the MLP.
        layer_norm_eps: Of its norms.
        mean: Of the pixels that it expects.
        std: Of them.
        num_prefix_positions: Entries of its position table that are those of class token and registers.
        grid: Rows and columns of the others; None for a square.
        left_out: What it has that no weight shows.

    Raises:
        UnknownTrunkError: If a weight would change the tokens and has no place in a RADIO trunk.
    """
    blocks: dict[int, Block] = defaultdict(dict)
    outside: dict[str, Tensor] = {}
    others: list[str] = []
    for full_key, tensor in state.items():
        key = full_key.removeprefix("vision_model.")
        if (match := _BLOCK.fullmatch(key)) is not None:
            own = _rename(match[2], _IN_BLOCK, _PARAMETERS_IN_BLOCK)
            if own is None:
                raise UnknownTrunkError(f"its blocks have a weight that RADIO's have no place for, {full_key!r}")
            blocks[int(match[1])][own] = tensor.detach().float().cpu()
        elif (own := _rename(key, _OUTSIDE, _PARAMETERS_OUTSIDE)) is not None:
            outside[own] = tensor.detach().float().cpu()
        elif _WITHOUT_EFFECT.fullmatch(key) is None:
            if _BEFORE_BLOCKS.fullmatch(key):
                raise UnknownTrunkError(f"it has a layer before the first block that RADIO has not, {full_key!r}")
            others.append(key)
    if not blocks or "patch.weight" not in outside:
        raise UnknownTrunkError("it has no blocks or no patch projection under the names of a plain ViT")
    patch = _as_kernel(outside["patch.weight"])
    width = len(patch)
    class_token, registers, positions = _tokens(outside, width, num_prefix_positions, grid)
    heads = sorted({key.split(".")[0] for key in others})
    return VitTrunk(
        name=name,
        patch=patch,
        patch_bias=outside.get("patch.bias", torch.zeros(width)),
        class_token=class_token,
        registers=registers,
        positions=positions,
        blocks=[_joined(blocks[index]) for index in sorted(blocks)],
        final_norm={part: outside[f"norm.{part}"] for part in ("weight", "bias")} if "norm.weight" in outside else None,
        num_heads=num_heads,
        hidden_act=hidden_act,
        layer_norm_eps=layer_norm_eps,
        mean=list(mean),
        std=list(std),
        left_out=[*left_out, *([f"weights behind the blocks ({', '.join(heads)})"] if heads else [])],
    )


def _rename(key: str, layers: Mapping[str, str], parameters: Mapping[str, str]) -> str | None:
    """Return our name of a weight: of a layer's `weight` or `bias`, or of a parameter of its own."""
    for own, pattern in parameters.items():
        if re.fullmatch(pattern, key):
            return own
    layer, _, part = key.rpartition(".")
    if part in ("weight", "bias"):
        for own, pattern in layers.items():
            if re.fullmatch(pattern, layer):
                return f"{own}.{part}"
    return None


def _as_kernel(weight: Tensor) -> Tensor:
    """Return a patch projection as `(hidden, channels, patch, patch)`.

    SigLIP2's flexible one is a matrix over patches whose rows, columns and channels lie in this order.
    """
    if weight.ndim == 4:
        return weight
    channels = 3
    side = math.isqrt(weight.shape[1] // channels)
    return weight.unflatten(1, (side, side, channels)).permute(0, 3, 1, 2)


def _tokens(
    outside: Mapping[str, Tensor], width: int, num_prefix_positions: int, grid: tuple[int, int] | None
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Return class token, registers and positions; tokens that have a position get it added."""
    prefix = [outside[name].reshape(-1, width) for name in ("class_token", "registers") if name in outside]
    tokens = torch.cat([torch.zeros(0, width), *prefix])
    positions = outside.get("positions")
    if positions is not None:
        positions = positions.reshape(-1, width)
        tokens = tokens.clone()
        tokens[:num_prefix_positions] += positions[:num_prefix_positions]
        positions = positions[num_prefix_positions:]
        side = math.isqrt(len(positions))
        rows, cols = grid or (side, side)
        if rows * cols != len(positions):
            raise UnknownTrunkError(f"its {len(positions)} positions make no grid of {rows} x {cols}")
        positions = positions.unflatten(0, (rows, cols))
    num_class_tokens = len(prefix[0]) if "class_token" in outside else 0
    return (tokens[0] if num_class_tokens else None), tokens[num_class_tokens:], positions


def _joined(block: Block) -> Block:
    """Return a block with query, key and value in one matrix, and a gated MLP's gate and value in another."""
    own = dict(block)
    if "attn.q.weight" in own:
        own["attn.qkv.weight"] = torch.cat([own.pop(f"attn.{part}.weight") for part in "qkv"])
    biases = {part: own.pop(f"attn.{part}.bias") for part in "qkv" if f"attn.{part}.bias" in own}
    if biases:  # DINOv3 has none for keys, where it would change nothing
        width = own["attn.qkv.weight"].shape[1]
        own["attn.qkv.bias"] = torch.cat([biases.get(part, torch.zeros(width)) for part in "qkv"])
    if "mlp.gate.weight" in own:
        for part in ("weight", "bias"):
            if f"mlp.gate.{part}" in own:
                own[f"mlp.w12.{part}"] = torch.cat([own.pop(f"mlp.gate.{part}"), own.pop(f"mlp.value.{part}")])
        _move(own, "mlp.fc2", "mlp.w3")
    else:
        _move(own, "mlp.value", "mlp.fc1")
    if "mlp.fc1.weight" in own and len(own["mlp.fc1.weight"]) == 2 * own["mlp.fc2.weight"].shape[1]:
        _move(own, "mlp.fc1", "mlp.w12")  # timm's packed SwiGLU
        _move(own, "mlp.fc2", "mlp.w3")
    return own


def _move(block: Block, old: str, new: str) -> None:
    for part in ("weight", "bias"):
        if f"{old}.{part}" in block:
            block[f"{new}.{part}"] = block.pop(f"{old}.{part}")
