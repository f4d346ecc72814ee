"""The published models, NVIDIA's and our small ones, as data.

Widths, depths and prefix tokens are those of the published checkpoints (C-RADIOv4 tech report,
https://arxiv.org/abs/2601.17237; RADIOv2.5, https://arxiv.org/abs/2412.07679). The split of C-RADIOv4's ten prefix
tokens into 3 class and 7 register tokens is the one that NVIDIA's TAO toolkit documents. Blocks with global attention
and sizes in pixels are those that NVIDIA's hub code sets by version. RADIO1D is that of table 4 of
https://arxiv.org/abs/2607.03624, but for the prefix tokens, which that table gives as 8 in all: a user of the release
counts 4 class tokens and 6 registers.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .checks_radio import mlp_ratio_for


@dataclass(frozen=True)
class Size:
    """Shape of a ViT's blocks.

    Attributes:
        hidden_size: Width of the tokens.
        num_hidden_layers: Blocks.
        num_attention_heads: Heads of each block.
        intermediate_size: Width of the MLP; None is four times that of the tokens.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int | None = None

    @property
    def mlp_ratio(self) -> float:
        """Width of the MLP divided by that of the tokens."""
        return mlp_ratio_for(self.intermediate_size or 4 * self.hidden_size, self.hidden_size)

    def config_fields(self) -> dict[str, Any]:
        """Return keyword arguments of `RadioConfig`; the MLP as a ratio, which keeps if the width is overridden."""
        return {
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "mlp_ratio": self.mlp_ratio,
        }


SIZES = {
    "tiny": Size(192, 12, 3),
    "small": Size(384, 12, 6),
    "base": Size(768, 12, 12),
    "large": Size(1024, 24, 16),
    "so400m": Size(1152, 27, 16, intermediate_size=4304),
    "so400m_v2": Size(1152, 27, 16, intermediate_size=4320),  # a multiple of 32, for tensor parallelism in FP8
    "huge": Size(1280, 32, 16),
    "giant": Size(1536, 40, 24),  # NVIDIA's own; timm's narrower one has the same name
}
"""By the name of timm's architecture, after which NVIDIA's students are named."""

DINO_FIELDS = {"patch_size": 14, "use_layer_scale": True, "use_final_norm": True, "use_patch_bias": True}
"""Fields in which DINOv2's ViTs differ from timm's. DINOv2's g also has SwiGLU."""


class Tokens(NamedTuple):
    """Prefix tokens: class tokens, registers, and the class tokens that make the summary."""

    num_cls_tokens: int
    num_registers: int
    summary_idxs: tuple[int, ...]

    def config_fields(self) -> dict[str, Any]:
        """Return keyword arguments of `RadioConfig`."""
        return {**self._asdict(), "summary_idxs": list(self.summary_idxs)}


# A class token for each teacher; the segmenter, the last one, has no part in the summary.
FOUR_TEACHERS = Tokens(4, 4, (0, 1, 2))  # DFN CLIP, SigLIP or SigLIP2, DINOv2-g, SAM
THREE_TEACHERS = Tokens(3, 7, (0, 1))  # SigLIP2-g, DINOv3-7B, SAM3
MORE_TOKENS = Tokens(4, 6, (0, 1))
ONE_FOR_ALL = Tokens(1, 4, (0,))


@dataclass(frozen=True, kw_only=True)
class Release:
    """A model that NVIDIA published.

    Attributes:
        version: NVIDIA's name for it.
        size: Shape of its blocks, by name in `SIZES`; None where it has none.
        tokens: Prefix tokens; None makes no preset of it.
        preferred_px: Image side that its users start from.
        max_px: Largest image side. 2048 is that of every model of patch 16, whatever its position table.
        fields: Further fields of `RadioConfig`.
    """

    version: str
    size: str | None
    tokens: Tokens | None = None
    preferred_px: int
    max_px: int = 2048
    fields: dict[str, Any] = field(default_factory=dict)

    def config_fields(self) -> dict[str, Any]:
        """Return keyword arguments of `RadioConfig` for a preset."""
        tokens = {} if self.tokens is None else self.tokens.config_fields()
        preferred = {"preferred_resolution": [self.preferred_px] * 2}
        size = {} if self.size is None else SIZES[self.size].config_fields()
        return {**size, **tokens, **preferred, **self.fields}


# Aligned corners: timm's vision_transformer.py names the two models whose position table is resized so. NVIDIA's own
# code does it for none since June 2025.
_ALIGNED = {"pos_embed_align_corners": True}
_V25: dict[str, Any] = {"tokens": FOUR_TEACHERS, "preferred_px": 768}
_V3: dict[str, Any] = {"tokens": FOUR_TEACHERS, "preferred_px": 512}
_V4: dict[str, Any] = {"tokens": THREE_TEACHERS, "preferred_px": 512}
_V25_G = {**DINO_FIELDS, "use_swiglu_ffn": True, "max_img_size": 1792, "vitdet_num_global": 8}

_ERADIO = {
    "eradio": {
        "dim": 192,
        "in_dim": 64,
        "depths": [3, 3, 5, 5],
        "num_heads": [2, 4, 8, 16],
        "window_size": [None, None, [16, 16], 16],
        "mlp_ratio": 4,
        "sr_ratio": [1, 1, [2, 1], 1],
        "cpb_mlp_hidden": 512,
        "full_features_head_dim": 1536,
    },
    "hidden_size": 1536,
    "num_hidden_layers": 16,
    "num_attention_heads": 1,
}

RELEASES = {
    release.version: release
    for release in (
        Release(version="radio_v1", size="huge", preferred_px=378, max_px=1050),
        Release(version="radio_v2", size="huge", preferred_px=432, fields={"vitdet_num_windowed": 5}),
        Release(version="radio_v2.1", size="huge", preferred_px=432, fields={"vitdet_num_windowed": 5}),
        Release(version="e-radio_v2", size=None, tokens=Tokens(1, 0, (0,)), preferred_px=512, fields=_ERADIO),
        Release(version="radio_v2.5-b", size="base", **_V25),
        Release(version="radio_v2.5-l", size="large", **_V25),
        Release(version="radio_v2.5-h", size="huge", **_V25),
        Release(version="radio_v2.5-h-norm", size="huge", preferred_px=768),
        Release(
            version="radio_v2.5-g",
            size="giant",
            tokens=ONE_FOR_ALL,
            preferred_px=896,
            max_px=1792,
            fields=_V25_G,
        ),
        Release(version="c-radio_v2-g", size="giant", preferred_px=768, fields={"vitdet_num_global": 8}),
        Release(version="c-radio_v2-vlm-h", size="huge", preferred_px=768, fields={"vitdet_num_global": 8}),
        Release(version="c-radio_v3-b", size="base", **_V3, fields={**_ALIGNED, "use_layer_scale": True}),
        Release(version="c-radio_v3-l", size="large", **_V3, fields={"use_layer_scale": True}),
        Release(version="c-radio_v3-h", size="huge", **_V3, fields=_ALIGNED),
        Release(version="c-radio_v3-g", size="giant", **_V3),
        Release(version="c-radio_v4-so400m", size="so400m", **_V4),
        Release(version="c-radio_v4-h", size="huge", **_V4),
        Release(
            version="c-radio_v4-1d-h",
            size="huge",
            tokens=MORE_TOKENS,
            preferred_px=512,
            fields={
                "downscale_levels": [24],
                "decoder_depth": 6,
                "decoder_upscale_levels": [3],
                "filler_grid_size": 32,
            },
        ),
    )
}
"""NVIDIA's models by version."""

# Ours, for people without a cluster: DeiT's S and Ti (https://arxiv.org/abs/2012.12877), the image tower of TinyCLIP
# ViT-8M/16 (https://arxiv.org/abs/2309.12314) for phones, and one for tests. Of the mobile one, positions of at most
# 512 px are our choice, 262,144 numbers in place of 4 million, and so is a single register: artifacts that registers
# are for show in large ViTs only (https://arxiv.org/abs/2309.16588, section 2).
OURS: dict[str, dict[str, Any]] = {
    "radio-s": {**SIZES["small"].config_fields(), **THREE_TEACHERS.config_fields()},
    "radio-ti": {**SIZES["tiny"].config_fields(), **THREE_TEACHERS.config_fields()},
    "radio-mobile": {
        **Size(256, 10, 4).config_fields(),
        **Tokens(3, 1, (0, 1)).config_fields(),
        "max_img_size": 512,
        "preferred_resolution": [224, 224],
    },
    "radio-test": {
        **Size(32, 4, 2).config_fields(),
        **THREE_TEACHERS.config_fields(),
        "max_img_size": 256,
        "preferred_resolution": [64, 64],
        "vitdet_num_global": 2,  # with the usual 4 no block of four would be windowed
    },
}

NAVIT_SIZES = {
    **{name: SIZES[name] for name in ("tiny", "small", "base", "large", "huge")},
    "so400m": Size(1152, 27, 16),
    "giant": Size(1408, 40, 16),
}
"""Shapes of the networks of NVIDIA's branch `navit`, by the end of their names there, such as `navit_small`."""
NAVIT_FIELDS = {"use_patch_bias": True, "use_final_norm": True, "max_img_size": 2048 * 16, "max_resolution": 2048}
"""Fields of every NaViT. It has no table of positions: NVIDIA's largest grid has 2048 rows and columns."""
# NVIDIA published none of them, and its default is no class token: tokens as in C-RADIOv4 are our choice, and as in
# NVIDIA's code all class tokens make the summary.
_NAVIT_TOKENS = {"num_cls_tokens": 3, "num_registers": 7, "summary_idxs": [0, 1, 2]}
NAVITS = {
    f"navit_{name}": {**size.config_fields(), **_NAVIT_TOKENS, **NAVIT_FIELDS, "navit": {}}
    for name, size in NAVIT_SIZES.items()
}

PRESETS = {release.version: release.config_fields() for release in RELEASES.values() if release.tokens} | NAVITS | OURS
"""Keyword arguments of `RadioConfig` by architecture; see `RadioConfig.from_preset`."""
