"""Checks that many files share, and the one form of their errors: `` `name` must be RULE, got VALUE. WHAT TO DO. ``.

What each field of the configuration may hold: one rule a field, checked wherever a value is set.

Numbers are Python's own, since those of numpy and torch cannot be written to `config.json`; truth values are none.
What several fields must be together is checked where those fields are declared.
"""

import difflib
import json
import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.activations import ACT2FN


def did_you_mean(word: Any, choices: Collection[str], *, at_least: float = 0.6) -> str:
    """Return `" Did you mean ...?"`, or nothing if no choice is near: `at_least` is difflib's ratio, 1 for equal."""
    near = difflib.get_close_matches(str(word), list(choices), n=1, cutoff=at_least)
    return f" Did you mean {near[0]!r}?" if near else ""


def check_choice(
    name: str, value: Any, choices: Collection[str], *, error: Callable[[str], Exception] = ValueError
) -> None:
    """Refuse a value that is none of the choices.

    Args:
        name: What has the value, as the user wrote it, for example `"views.teachers"`.
        value: The value.
        choices: All valid values.
        error: Class of what is raised, or a function that makes it of the message.

    Raises:
        error: If `value` is no choice; the message lists all and suggests the nearest.
    """
    if not isinstance(value, str) or value not in choices:
        raise error(f"`{name}` must be one of {list(choices)}, got {value!r}.{did_you_mean(value, choices)}")


def check_blocks(name: str, blocks: Sequence[int], depth: int, *, count: int | None = None) -> None:
    """Refuse block numbers that do not ascend or do not exist.

    Args:
        name: What lists them.
        blocks: 0-based blocks.
        depth: Number of blocks of the network.
        count: How many there must be; a block may then stand there more than once, since shallow networks have fewer.
            None takes any number from 1, all different.

    Raises:
        ValueError: If the list is empty or of another length, does not ascend, leaves [0, depth) or holds something
            else than integers.
    """
    if not isinstance(blocks, Sequence) or not all(type(block) is int for block in blocks):
        raise ValueError(f"`{name}` must be a list of integers, got {blocks!r}.")
    is_ascending = list(blocks) == sorted(blocks if count else set(blocks))
    is_counted = bool(blocks) if count is None else len(blocks) == count
    if not (is_ascending and is_counted and all(0 <= block < depth for block in blocks)):
        number = "" if count is None else f"{count} "
        raise ValueError(f"`{name}` must be {number}ascending blocks in [0, {depth}), got {list(blocks)}.")


LARGEST = 2**20
"""Largest width, size or count (our choice: far above any network): what is mistyped fails here, not in memory."""
MOST_BLOCKS = 1000
"""Largest number of blocks in a row (our choice, for the same reason: each one is a module)."""
SHOWN_CHARACTERS = 200  # our choice: enough to recognize a value in a message

# Those two have weights, which no checkpoint holds.
ACTIVATIONS = tuple(name for name in ACT2FN if name not in ("prelu", "xielu"))
DTYPE_NAMES = tuple(
    name for name, value in vars(torch).items() if isinstance(value, torch.dtype) and value.is_floating_point
)
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
NAMES_IN_USE = (*dir(nn.ModuleDict()), "backbone")
"""Names that no adaptor can have: attributes of the module that holds them, and the key of the backbone's answers."""


@dataclass(frozen=True)
class Rule:
    """What one value must be.

    Attributes:
        text: The same in words, which follow "must be".
        holds: Whether a value, of any type, is right.
        choices: All right values where they are few; a wrong one is answered with the nearest.
    """

    text: str
    holds: Callable[[Any], bool]
    choices: Collection[str] = ()

    def check(self, name: str, value: Any) -> None:
        """Raise a `ValueError` that names `name`, the value and the rule, unless the rule holds."""
        if self.holds(value):
            return
        hint = did_you_mean(value, self.choices)
        if type(value).__module__.partition(".")[0] in ("numpy", "torch") and not isinstance(value, torch.dtype):
            hint = " Python's own numbers and lists come from `.item()` and `.tolist()`."
        shown = repr(value)
        shown = shown if len(shown) <= SHOWN_CHARACTERS else f"{shown[:SHOWN_CHARACTERS]}..."
        raise ValueError(f"`{name}` must be {self.text}, got {shown}.{hint}")


def integer(low: int, high: int = LARGEST) -> Rule:
    """Return the rule of an integer within bounds, both included."""
    return Rule(
        f"an integer in [{low}, {high}]",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high,
    )


def number(interval: str) -> Rule:
    """Return the rule of a finite number within an interval, for example `"[0, 1)"`."""
    low, high = (float(bound) for bound in interval[1:-1].split(","))

    def holds(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            return False
        return (interval[0] == "[" or value > low) and (interval[-1] == "]" or value < high)

    return Rule(f"a number in {interval}", holds)


def choice(choices: Collection[str]) -> Rule:
    """Return the rule of one of some words."""
    return Rule(f"one of {list(choices)}", lambda value: isinstance(value, str) and value in choices, choices)


def optional(rule: Rule) -> Rule:
    """Return a rule that also allows `None`."""
    return Rule(f"{rule.text} or None", lambda value: value is None or rule.holds(value), rule.choices)


def listed(rule: Rule, count: int | None = None) -> Rule:
    """Return the rule of a list whose entries keep a rule, `count` of them or any number."""
    text = f"a list of which each entry is {rule.text}" if count is None else f"a list of {count}, each {rule.text}"

    def holds(value: Any) -> bool:
        is_list = isinstance(value, (list, tuple)) and (count is None or len(value) == count)
        return is_list and all(map(rule.holds, value))

    return Rule(text, holds)


def check_file(values: Mapping[str, Any]) -> None:
    """Refuse what transformers would take from a parsed `config.json` without a look at it.

    Raises:
        ValueError: If a field of transformers' own is of another kind than it takes, or names kernels of a Hub
            repository, which are code.
    """
    for name, value in values.items():
        if name in FILE_RULES:
            FILE_RULES[name].check(name, value)
        if name.endswith(("_implementation", "_implementation_internal")):
            IMPLEMENTATION.check(name, value)


def _are_labels(value: Any) -> bool:
    """Whether a value maps the numbers from 0 on, or what JSON makes of them, to names."""
    if not isinstance(value, dict) or not value or not all(isinstance(name, str) for name in value.values()):
        return False
    is_number = all(type(key) is int or (isinstance(key, str) and key.isdecimal()) for key in value)
    return is_number and sorted(map(int, value)) == list(range(len(value)))


def _is_json(value: Any) -> bool:
    """Whether a value can be written to `config.json`, where keys are sorted; labels' numbers may be keys too."""
    if isinstance(value, dict):
        has_one_type = any(all(type(key) is kind for key in value) for kind in (str, int))
        return has_one_type and all(map(_is_json, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_json, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _are_numbers_of_labels(value: Any) -> bool:
    """Whether a value maps names to numbers, or to the digits that JSON may hold."""
    is_named = isinstance(value, dict) and len(value) > 0 and all(isinstance(name, str) for name in value)
    return is_named and any(all(type(entry) is kind for entry in value.values()) for kind in (int, str))


def _is_auto_map(value: Any) -> bool:
    """Whether a value maps names to names, tokenizers' to two, one of which may be missing."""
    return isinstance(value, dict) and all(isinstance(name, str | list) for name in value.values())


FLAG = Rule("True or False", lambda value: isinstance(value, bool))
WORD = Rule("a string", lambda value: isinstance(value, str))
MAPPING = Rule("a mapping", lambda value: isinstance(value, dict))
IMPLEMENTATION = optional(Rule("a name without '/'", lambda value: isinstance(value, str) and "/" not in value))
OBJECT = Rule("a mapping of what JSON can hold", lambda value: isinstance(value, dict) and _is_json(value))
COUNT = integer(1)
DEPTH = integer(0, MOST_BLOCKS)
SHARE = number("[0, 1)")
WINDOW = Rule(
    "an integer of at least 1 (tokens), 'auto' or 'global'",
    lambda value: COUNT.holds(value) or (isinstance(value, str) and value in ("auto", "global")),
)
WEIGHTS = Rule(
    "numbers of at least 0 and not all 0",
    lambda value: listed(number(f"[0, {LARGEST}]")).holds(value) and any(value),
)
ADAPTOR_NAME = Rule(
    "a name without dots that is no attribute of torch's `ModuleDict`, which holds adaptors, and not 'backbone'",
    lambda value: isinstance(value, str) and value != "" and "." not in value and value not in NAMES_IN_USE,
)
DTYPE = Rule(
    "a floating point type of torch or the name of one",
    lambda value: value.is_floating_point if isinstance(value, torch.dtype) else choice(DTYPE_NAMES).holds(value),
)

RULES: dict[str, Rule] = {
    # the trunk
    "hidden_size": COUNT,
    "num_hidden_layers": integer(1, MOST_BLOCKS),
    "num_attention_heads": COUNT,
    "intermediate_size": integer(0),
    "mlp_ratio": number(f"[0, {LARGEST}]"),
    "hidden_act": choice(ACTIVATIONS),
    "layer_norm_eps": number("(0, 1]"),
    "attention_probs_dropout_prob": SHARE,
    "hidden_dropout_prob": SHARE,
    "drop_path_rate": SHARE,
    "use_swiglu_ffn": FLAG,
    "qkv_bias": FLAG,
    "use_layer_scale": FLAG,
    "layerscale_value": number(f"[-{LARGEST}, {LARGEST}]"),
    "use_patch_bias": FLAG,
    "use_final_norm": FLAG,
    "num_channels": COUNT,
    "patch_size": COUNT,
    "image_size": COUNT,
    "max_img_size": COUNT,
    "max_resolution": optional(COUNT),
    "preferred_resolution": listed(COUNT, 2),
    "norm_mean": listed(number(f"[-{LARGEST}, {LARGEST}]")),
    # Our choice of a bound: smaller ones make pixels so large that their squares overflow.
    "norm_std": listed(number(f"[1e-6, {LARGEST}]")),
    "use_cropped_positions": FLAG,
    "pos_embed_align_corners": FLAG,
    "num_cls_tokens": COUNT,
    "num_registers": integer(0),
    "summary_idxs": optional(listed(integer(0))),
    "use_feature_normalizer": FLAG,
    "num_intermediate_normalizers": DEPTH,
    "intermediate_rotation_per_layer": FLAG,
    "video_temporal_patch_size": optional(integer(2)),
    "initializer_range": number("(0, 1]"),
    "eradio": optional(OBJECT),
    # windows
    "vitdet_window_size": optional(COUNT),
    "vitdet_num_global": COUNT,
    "vitdet_num_windowed": optional(integer(0)),
    # merging
    "downscale_levels": optional(listed(integer(0))),
    "merged_intermediate_sizes": optional(listed(COUNT)),
    "qk_norm": FLAG,
    "progressive_reduction": FLAG,
    "decoder_depth": integer(1, MOST_BLOCKS),
    "decoder_upscale_levels": optional(listed(integer(0))),
    "filler_grid_size": optional(COUNT),
    "num_tokens": optional(integer(0)),
    # adaptors; what stands in them has rules of its own
    "adaptors": listed(MAPPING),
    "adaptor_names": optional(listed(WORD)),
    # heads
    "classifier_pooling": choice(("summary", "summary_and_features")),
    "segmentation_head": choice(("linear", "dpt")),
    "class_weights": optional(WEIGHTS),
    "temperature": number("(0, 1000]"),
    "score_thresholds": optional(listed(number("[0, 1]"))),
    "semantic_loss_ignore_index": integer(-LARGEST),
    "dpt_indices": optional(listed(integer(0))),
    "dpt_hidden_size": integer(2),
    "detection_indices": optional(listed(integer(0))),
    "detection_hidden_size": integer(32),
    "detection_num_layers": integer(1, MOST_BLOCKS),
    "detection_num_queries": COUNT,
    "detection_num_groups": COUNT,
    "detection_window_size": optional(WINDOW),
    "text_tower": optional(OBJECT),
    "text_adaptor": optional(WORD),
    "use_feature_pyramid": FLAG,
    "feature_pyramid_size": COUNT,
    "out_features": optional(listed(WORD)),
    "out_indices": optional(listed(integer(-LARGEST))),
    # where the weights come from
    "version": optional(WORD),
    "nvidia_source": optional(OBJECT),
    # transformers' own
    "transformers_version": optional(WORD),
    "architectures": optional(listed(WORD)),
    "output_hidden_states": optional(FLAG),
    "output_attentions": optional(FLAG),
    "return_dict": optional(FLAG),
    "dtype": optional(DTYPE),
    "chunk_size_feed_forward": integer(0),
    "is_encoder_decoder": FLAG,
    "num_labels": COUNT,
    "id2label": optional(Rule("a mapping of the classes 0, 1, ... to their names", _are_labels)),
    "label2id": optional(Rule("a mapping of the names of classes to their numbers", _are_numbers_of_labels)),
    "problem_type": optional(choice(PROBLEM_TYPES)),
}
"""By field, and by property that is set like one."""

FILE_RULES: dict[str, Rule] = {
    "architectures": RULES["architectures"],
    "auto_map": Rule("a mapping of the names of classes to theirs", _is_auto_map),
    "custom_pipelines": MAPPING,
    "quantization_config": optional(MAPPING),
    "transformers_weights": optional(WORD),
}
"""What transformers takes from `config.json` beside the fields above."""

ADAPTOR_RULES: dict[str, Rule] = {
    "name": ADAPTOR_NAME,
    "token_index": integer(0),
    "summary_dim": optional(COUNT),
    "feature_dim": optional(COUNT),
    "hidden_size": COUNT,
    "num_inner_blocks": DEPTH,
    "mlp_version": choice(("v1", "v2")),
    "feature_mlp_version": optional(choice(("v1", "v2"))),
    "feature_head": choice(("mlp", "attention")),
    "upsample_factor": COUNT,
    "feature_hidden_size": optional(COUNT),
    "feature_num_inner_blocks": optional(DEPTH),
    "feature_num_blocks": DEPTH,
    "feature_num_attention_heads": COUNT,
}
"""By key of an entry of `adaptors`."""


def check_field(name: str, value: Any) -> None:
    """Refuse what a field of the configuration cannot hold; any other attribute may hold anything.

    Raises:
        ValueError: If the field's rule does not hold.
    """
    if name in RULES:
        RULES[name].check(name, value)


class Resolution(NamedTuple):
    """A height and a width, in pixels or in patches."""

    height: int
    width: int


def round_to_step(size: float, step: int) -> int:
    """Return the multiple of `step` nearest to `size`, at least one; of two as near the even one, as NVIDIA's code."""
    return max(round(size / step), 1) * step


def mlp_ratio_for(intermediate_size: int, hidden_size: int) -> float:
    """Return the smallest number whose product with `hidden_size` truncates to `intermediate_size`.

    transformers' native RADIO, timm and NVIDIA's code have no width of the MLP, they compute it from this ratio.
    """
    ratio = intermediate_size / hidden_size
    while int(hidden_size * ratio) < intermediate_size:
        ratio = math.nextafter(ratio, math.inf)
    while int(hidden_size * math.nextafter(ratio, 0)) == intermediate_size:
        ratio = math.nextafter(ratio, 0)
    return ratio


def nearest_multiple(height: float, width: float, step: int, largest: int) -> Resolution:
    """Return the size nearest to `height` x `width` pixels whose sides are multiples of `step`, at most `largest`."""
    limit = largest // step * step
    return Resolution(*(min(round_to_step(side, step), limit) for side in (height, width)))


def check_multiple(name: str, height: int, width: int, step: int, largest: int) -> None:
    """Refuse a size with a side that is no positive multiple of `step`, or longer than `largest` pixels.

    Args:
        name: What has the size, as the message begins, for example "`size`".
        height: Height in pixels.
        width: Width in pixels.
        step: What both must be multiples of.
        largest: Longest side.

    Raises:
        ValueError: It names the nearest valid size.
    """
    if height % step or width % step or not height or not width or max(height, width) > largest:
        nearest = nearest_multiple(height, width, step, largest)
        raise ValueError(
            f"{name} must have sides that are multiples of {step} and at most {largest} pixels, got "
            f"{height} x {width}. The nearest valid size is {nearest.height} x {nearest.width}."
        )


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number, and no truth value."""
    largest = sys.float_info.max  # compared, since an integer may be too large to become a float
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -largest <= value <= largest


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Raises:
        ValueError: If it holds another thing.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is no valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} must hold a JSON object, got {content!r:.60}.")
    return content
