"""Features after chosen blocks: `get_intermediate_features`, and NVIDIA's `forward_intermediates`.

A model opens this file when one of them is called.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .checks_radio import COUNT, LARGEST, check_blocks, check_choice, integer, optional
from .configuration_radio import RadioConfig
from .inputs_radio import Aggregation, WindowSize, check_feature_format
from .outputs_radio import FeatureFormat, NetworkOutput, RadioIntermediateOutput, RadioPair


ScaleOrder = Literal["post-alpha", "pre-alpha", "none"]
"""Normalizers scale the mean of a group by its mean scale, scale each block before, or do not run at all."""


def count_from_first(indices: Sequence[int], depth: int) -> list[int]:
    """Return 0-based blocks, of which negative ones were counted from the last.

    Raises:
        ValueError: If there is something else than integers.
    """
    if not isinstance(indices, Sequence) or not all(integer(-LARGEST).holds(index) for index in indices):
        raise ValueError(f"`indices` must be a list of integers, got {indices!r}.")
    return [index + depth if index < 0 else index for index in indices]


def group_blocks(blocks: Sequence[int], aggregation: Aggregation) -> list[list[int]]:
    """Return the blocks whose outputs are averaged, for each one in `blocks`, which ascend."""
    if aggregation == "sparse":
        return [[block] for block in blocks]
    starts = [0, *(block + 1 for block in blocks)]
    return [list(range(start, block + 1)) for start, block in zip(starts, blocks, strict=False)]


def check_widths(config: RadioConfig, groups: Sequence[Sequence[int]]) -> None:
    """Refuse to average blocks of different widths, as RADIO1D has them.

    Raises:
        ValueError: If a group has some.
    """
    mixed = next((group for group in groups if len({config.count_merges(block) for block in group}) > 1), None)
    if mixed is not None:
        raise ValueError(
            f"`aggregation` must be 'sparse' for blocks {list(mixed)}, got 'dense'. Tokens are merged before "
            f"blocks {config.downscale_levels} and become wider: outputs before and after cannot be averaged."
        )


def average_blocks(
    network: Any, result: NetworkOutput, blocks: list[int], scale_order: ScaleOrder = "post-alpha"
) -> Tensor:
    """Return the mean output of some blocks, `(batch, length, hidden)`.

    Normalizers do not touch prefix tokens, but for those of NaViT, as in NVIDIA's code.

    Args:
        network: The `radio_model`.
        result: Output of `forward`, with all of `blocks` kept.
        blocks: 0-based, ascending.
        scale_order: Order in which normalizers scale a mean.
    """
    outputs = [result.kept[block].to(result.tokens.device) for block in blocks]
    tokens = torch.stack(outputs).mean(dim=0)
    normalizer = network.inter_feature_normalizer
    if normalizer is None or scale_order == "none":
        return tokens
    start = network.config.num_prefix_tokens if network.config.navit is None else 0
    if scale_order == "post-alpha":
        features = normalizer(tokens[:, start:], blocks)
    else:
        features = normalizer.scale_each([output[:, start:] for output in outputs], blocks)
    return torch.cat([tokens[:, :start], features], dim=1)


def summarize_block(network: Any, tokens: Tensor) -> Tensor:
    """Return the summary of an intermediate block: of NaViT, as of NVIDIA's, other class tokens than the final one."""
    return network.summarize(tokens) if network.config.navit is None else network.summarize_block(tokens)


def read_blocks(
    network: Any,
    pixel_values: Tensor,
    indices: Sequence[int],
    aggregation: Aggregation,
    feature_format: FeatureFormat,
    window_size: WindowSize,
) -> list[RadioIntermediateOutput]:
    """Return summary and features after chosen blocks; arguments and errors are those of `get_intermediate_features`.

    Args:
        network: The `radio_model`.
        pixel_values: As there.
        indices: As there.
        aggregation: As there.
        feature_format: As there.
        window_size: As there.
    """
    depth = network.config.num_hidden_layers
    blocks = count_from_first(indices, depth)
    check_blocks("indices", blocks, depth)
    check_choice("aggregation", aggregation, get_args(Aggregation))
    check_feature_format(feature_format, is_packed=False)
    groups = group_blocks(blocks, aggregation)
    check_widths(network.config, groups)
    keep = [block for group in groups for block in group]
    result = network(pixel_values, window_size=window_size, keep=keep, output_hidden_states=False, full_length=True)
    tokens = [average_blocks(network, result, group) for group in groups]
    as_maps = feature_format == "NCHW"
    return [
        RadioIntermediateOutput(
            summary=summarize_block(network, each),
            features=network.block_map(each, result.grid, block) if as_maps else network.patch_features(each),
        )
        for each, block in zip(tokens, blocks, strict=True)
    ]


def forward_intermediates(  # noqa: PLR0913
    network: Any,
    x: Tensor,
    indices: int | Sequence[int] | None = None,
    return_prefix_tokens: bool = False,
    norm: bool = False,
    stop_early: bool = False,
    output_fmt: FeatureFormat = "NCHW",
    intermediates_only: bool = False,
    aggregation: Aggregation = "sparse",
    norm_alpha_scheme: ScaleOrder = "post-alpha",
) -> Any:
    """Return features after chosen blocks, as timm's method of this name does; arguments are those of NVIDIA's.

    Args:
        network: The `radio_model`.
        x: RGB images in [0, 1], `(batch, channels, height, width)`.
        indices: 0-based blocks, negative ones from the last, returned in ascending order; or how many of the last;
            `None` is all.
        return_prefix_tokens: Return pairs `(summary, features)` instead of features alone.
        norm: Apply the final norm, where the network has one, to each of them and to the final output.
        stop_early: Take the last of the chosen blocks as the final one.
        output_fmt: "NCHW" for maps, "NLC" for token sequences.
        intermediates_only: Return the list alone.
        aggregation: "sparse" takes each block's own output; "dense" averages all since the previous index.
        norm_alpha_scheme: With normalizers of intermediate features, scale the mean of a dense group
            ("post-alpha"), or each block before ("pre-alpha"), or leave them out ("none").

    Returns:
        The final output, a pair or by adaptor as with `return_dict=False`, and a list with one entry for each
        chosen block.

    Raises:
        ValueError: If an index is no block or an option is unknown; otherwise as `RadioModel.forward`.
    """
    check_feature_format(output_fmt, is_packed=False, argument="output_fmt")
    check_choice("aggregation", aggregation, get_args(Aggregation))
    check_choice("norm_alpha_scheme", norm_alpha_scheme, get_args(ScaleOrder))
    depth = network.config.num_hidden_layers
    blocks = _chosen_blocks(indices, depth)
    groups = group_blocks(blocks, aggregation)
    _check_merged(network.config, groups, norm=norm, stop_early=stop_early)
    last = blocks[-1] if stop_early else depth - 1
    result = network(x, keep={last, *(block for group in groups for block in group)}, output_hidden_states=False)
    final_norm = network.model.norm if norm else nn.Identity()
    outputs: list[Any] = []
    for group in groups:
        tokens = final_norm(average_blocks(network, result, group, norm_alpha_scheme))
        as_map = output_fmt == "NCHW"
        features = network.block_map(tokens, result.grid, group[-1]) if as_map else network.patch_features(tokens)
        outputs.append(RadioPair(summarize_block(network, tokens), features) if return_prefix_tokens else features)
    if intermediates_only:
        return outputs
    if network.config.navit is not None:  # its last norm never stays away
        if last < depth - 1:
            result = result._replace(tokens=network.finish_block(result.kept[last], result.grid))
    elif result.encoded is None:  # else the final output is RADIO1D's decoder's
        result = result._replace(tokens=final_norm(result.kept[last]))
    return network.make_pairs(result, output_fmt), outputs


def _check_merged(config: RadioConfig, groups: Sequence[Sequence[int]], *, norm: bool, stop_early: bool) -> None:
    """Refuse options that ask of RADIO1D's narrow or coarse blocks what only its last ones are made for."""
    check_widths(config, groups)
    for name, value in (("norm", norm), ("stop_early", stop_early)):
        if value and config.num_mergings:
            raise ValueError(f"`{name}` must be False with `downscale_levels`, got True.")


def _chosen_blocks(indices: int | Sequence[int] | None, depth: int) -> list[int]:
    """Return the 0-based blocks that `forward_intermediates` was asked for, ascending."""
    if indices is None or isinstance(indices, int):
        optional(COUNT).check("indices", indices)
        blocks = list(range(0 if indices is None else depth - indices, depth))
    else:
        blocks = sorted(set(count_from_first(indices, depth)))
    check_blocks("indices", blocks, depth)
    return blocks
