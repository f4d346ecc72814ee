"""Serving engines, and which of them hold the network of a configuration.

An engine reads the weights as they lie in a folder of ours or in the vision tower of a Nemotron model; all but
transformers only as such a tower. Each row states the version whose code was read or run, and the day.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

from .configuration_radio import RadioConfig
from .native import native_differences
from .presets_radio import SIZES, Size


Outcome = Literal["loads", "loads with other outputs", "does not load"]

TOWER_NAMES = {f"vit_{name}_patch16_224": SIZES[name] for name in ("small", "base", "large", "huge")}
"""Sizes that vLLM and SGLang know, by the name that a Nemotron's `vision_config.args.model` has; they read no other."""

_EDGE_HEAD_SIZE = 80
_EDGE_PREFIX_TOKENS = 10


class EngineVerdict(NamedTuple):
    """Answer of one engine to a network.

    Attributes:
        engine: Name of the engine.
        version: Version that was looked at.
        evidence: Whether it was run or its code was read, and the day.
        stops: Reasons why it does not load the weights.
        differs: Reasons why features differ where it does load them.
    """

    engine: str
    version: str
    evidence: str
    stops: list[str]
    differs: list[str]

    @property
    def outcome(self) -> Outcome:
        """Whether it loads the weights, and computes the same features."""
        return "does not load" if self.stops else "loads with other outputs" if self.differs else "loads"

    @property
    def reasons(self) -> list[str]:
        """The reasons of the outcome; none where features are equal."""
        return self.stops or self.differs

    @property
    def line(self) -> str:
        """The verdict in one line, for commands."""
        text = ": ".join(filter(None, [self.outcome, "; ".join(self.reasons)]))
        return f"{self.engine} {self.version} ({self.evidence}): {text}"


def engine_verdicts(config: RadioConfig) -> list[EngineVerdict]:
    """Return what each engine does with a network, transformers first.

    Summaries do not count: language models read the features alone.

    Args:
        config: Configuration of the folder; a LayerScale that was folded does not show in it.
    """
    return [
        EngineVerdict(name, version, evidence, *find(config)) for name, (version, evidence, find) in _ENGINES.items()
    ]


def tower_name(config: RadioConfig) -> str | None:
    """Return the name of a network's size in vLLM's and SGLang's tables; None where these lack it."""
    return next((name for name, size in TOWER_NAMES.items() if _has_size(config, size)), None)


def _has_size(config: RadioConfig, size: Size) -> bool:
    own = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size)
    mlp = size.intermediate_size or 4 * size.hidden_size
    return own == (size.hidden_size, size.num_hidden_layers, size.num_attention_heads, mlp)


def _transformers(config: RadioConfig) -> tuple[list[str], list[str]]:
    differences = native_differences(config)
    if _other_networks(config) or not config.return_dict:
        return differences, []
    return [], differences


def _vllm(config: RadioConfig) -> tuple[list[str], list[str]]:
    stops = _other_towers(config)
    if not stops and tower_name(config) is None:
        stops = [f"none of its sizes, ViT-S, ViT-B, ViT-L and ViT-H: {_size_in_words(config)}"]
    differs = {
        "LayerScale that is not folded, which it skips": config.use_layer_scale,
        "a final norm, which it skips": config.use_final_norm,
        "a biased patch projection, whose bias it skips": config.use_patch_bias,
        "SwiGLU, whose weights it does not read": config.use_swiglu_ffn,
        "a position table resized with aligned corners": config.pos_embed_align_corners,
        **_other_outputs(config),
    }
    return stops, _applying(differs)


def _llama_cpp(config: RadioConfig) -> tuple[list[str], list[str]]:
    stops = {
        "LayerScale that is not folded": config.use_layer_scale,
        "a final norm": config.use_final_norm,
        "a biased patch projection": config.use_patch_bias,
        "SwiGLU": config.use_swiglu_ffn,
        f"another size than ViT-H: {_size_in_words(config)}": not _has_size(config, SIZES["huge"]),
    }
    differs = {
        "a position table, which it resizes with aligned corners": not config.pos_embed_align_corners,
        **_other_outputs(config),
    }
    return _other_towers(config) or _applying(stops), _applying(differs)


def _edge_llm(config: RadioConfig) -> tuple[list[str], list[str]]:
    heads, prefix = config.num_attention_heads, config.num_prefix_tokens
    stops = {
        "LayerScale that is not folded": config.use_layer_scale,
        "a final norm": config.use_final_norm,
        "a biased patch projection": config.use_patch_bias,
        "SwiGLU": config.use_swiglu_ffn,
        "queries, keys and values without a bias": not config.qkv_bias,
        f"{heads} heads of {config.hidden_size // heads} channels: it has heads of {_EDGE_HEAD_SIZE} only": (
            config.hidden_size != heads * _EDGE_HEAD_SIZE
        ),
        f"{prefix} class tokens and registers: it has {_EDGE_PREFIX_TOKENS} only": prefix != _EDGE_PREFIX_TOKENS,
    }
    return _other_towers(config) or _applying(stops), _applying(_other_outputs(config))


def _other_networks(config: RadioConfig) -> list[str]:
    """Return why no engine has such a network at all."""
    return _applying(
        {
            "tokens that are merged, and a decoder": config.num_mergings > 0,
            "E-RADIO, or a network of a library": config.is_foreign,
            "rotary positions": config.navit is not None,
        }
    )


def _other_towers(config: RadioConfig) -> list[str]:
    """Return why no engine but transformers has such a tower."""
    return _other_networks(config) or _applying({f"images of {config.num_channels} channels": config.num_channels != 3})


def _other_outputs(config: RadioConfig) -> dict[str, bool]:
    """Return what engines other than transformers leave out alike, and whether the network has it."""
    return {
        "a feature normalizer": config.use_feature_normalizer,
        "a position table cropped instead of fitted to each grid": not config.use_cropped_positions,
        "another activation than GELU, or another epsilon of norms than 1e-6": (
            config.hidden_act != "gelu" or config.layer_norm_eps != 1e-6
        ),
        "windowed attention by default": config.vitdet_window_size is not None and config.has_windowed_blocks,
    }


def _applying(reasons: dict[str, bool]) -> list[str]:
    return [reason for reason, applies in reasons.items() if applies]


def _size_in_words(config: RadioConfig) -> str:
    return (
        f"{config.num_hidden_layers} blocks, width {config.hidden_size}, {config.num_attention_heads} heads, MLPs of "
        f"{config.intermediate_size}"
    )


_Find = Callable[[RadioConfig], tuple[list[str], list[str]]]
_ENGINES: dict[str, tuple[str, str, _Find]] = {
    "transformers": ("5.24.0", "run 2026-12-01", _transformers),
    "vLLM": ("0.32.0", "run 2026-12-01", _vllm),  # 0.33.0 was read: it loads weights alike
    "SGLang": ("0.5.23", "run 2026-12-01 with a plain encoder in place of its kernels", _vllm),
    "llama.cpp": ("in llama-cpp-python 0.3.36", "its converter run 2026-12-01", _llama_cpp),
    "TensorRT-Edge-LLM": ("main", "read 2026-12-01", _edge_llm),
}
