"""Methods of NVIDIA's names that few models are asked for; a plain model opens this file when they are called."""

import warnings
from collections.abc import Sequence
from typing import Any, get_args

from torch import Tensor, nn

from .checks_radio import COUNT, check_blocks, check_choice, optional
from .configuration_radio import RadioConfig
from .hub_radio import import_sibling
from .inputs_radio import Aggregation, ScaleOrder, check_feature_format, check_widths, count_from_first, group_blocks
from .layers_radio import RadioInputConditioner, is_compiling_or_tracing
from .outputs_radio import FeatureFormat, RadioPair


class OutsideConditioner(RadioInputConditioner):
    """Stands where pixels come normalized: it changes nothing, and warns if its first images are not normalized.

    Mean and deviation stay, so that a folder saved from here normalizes inside, like every other.
    """

    is_new = True

    def forward(self, pixel_values: Tensor) -> Tensor:
        if self.is_new and not is_compiling_or_tracing():
            self.is_new = not look_for_raw_pixels(pixel_values)
        return pixel_values


def look_for_raw_pixels(pixel_values: Tensor) -> bool:
    """Warn if all pixels lie in [0, 1], where those of normalized images do not; return whether they tell anything.

    Pixels that are all equal, with which programs warm up, do not.
    """
    low, high = (bound.item() for bound in pixel_values.detach()[..., ::4, ::4].aminmax())
    if 0 <= low < high <= 1:
        warnings.warn(
            f"`pixel_values` lie in [{low:.2f}, {high:.2f}] and look not normalized. Since "
            "`make_preprocessor_external()` was called, the model does not normalize them: call it as "
            "`model(conditioner(pixel_values))`, with the conditioner that was returned.",
            stacklevel=2,
        )
    return low < high


def conditioners(
    inside: RadioInputConditioner, config: RadioConfig
) -> tuple[RadioInputConditioner, RadioInputConditioner]:
    """Return what normalizes pixels for the caller of a model, and what stands in its place inside."""
    outside = OutsideConditioner(config).to(inside.norm_mean)
    outside.load_state_dict(inside.state_dict())
    return inside, outside


def windows_of(network: Any, argument: str) -> Any:
    """Return the trunk whose windows can be set.

    Args:
        network: The `radio_model`.
        argument: Argument of a call that other networks have instead, for the message.

    Raises:
        ValueError: If the network is not an E-RADIO.
    """
    if network.config.eradio is None:
        raise ValueError(
            f"Windows can be set only for E-RADIO. Call this model with {argument}, or set `config.vitdet_window_size`."
        )
    return network.model


class AdaptorTexts:
    """Texts in the space of an adaptor, for `model.adaptors[name].tokenizer` and `.encode_text`.

    The folder's tokenizer and its text tower are opened with the first text.

    Args:
        model: As `from_pretrained` opened it.
    """

    _processor: Any = None

    def __init__(self, model: Any) -> None:
        self.model = model

    def give_to(self, adaptor: Any) -> None:
        """Give an adaptor the two methods; they are no part of its weights."""
        adaptor.tokenizer, adaptor.encode_text = self.tokenizer, self.encode_text

    def tokenizer(self, texts: str | Sequence[str]) -> Tensor:
        """Return tokens of texts, padded and cut as the tower was trained, `(num_texts, length)`.

        Raises:
            LookupError: If the model was not opened from a folder with a text tower.
        """
        if self._processor is None:
            if self.model.source is None:
                raise LookupError(
                    "`tokenizer` needs the folder of a text tower, and this model was not opened from one."
                )
            name, options = self.model.source
            self._processor = import_sibling("processing_radio").RadioProcessor.from_pretrained(name, **options)
        return self._processor(text=[texts] if isinstance(texts, str) else list(texts), return_tensors="pt")[
            "input_ids"
        ]

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Return embeddings of tokens `(num_texts, length)`, `(num_texts, summary_dim)`; on request unit vectors."""
        embeds = self.model.get_text_features(text, return_dict=True).pooler_output
        return embeds / embeds.norm(dim=-1, keepdim=True) if normalize else embeds


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
        tokens = final_norm(network.average_blocks(result, group, norm_alpha_scheme))
        as_map = output_fmt == "NCHW"
        features = network.block_map(tokens, result.grid, group[-1]) if as_map else network.patch_features(tokens)
        outputs.append(RadioPair(network.summarize(tokens), features) if return_prefix_tokens else features)
    if intermediates_only:
        return outputs
    if result.encoded is None:  # else the final output is the decoder's
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
