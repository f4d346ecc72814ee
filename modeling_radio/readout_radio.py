"""From final tokens to outputs: summary, features, and what the adaptors make of them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .network_radio import RadioNetwork
from .outputs_radio import FeatureFormat, NetworkPass, RadioAdaptorOutput, RadioModelOutput, to_map
from .packs_radio import ImagePack
from .resolution_radio import Resolution


Reading = tuple[Tensor | None, Tensor | None, dict[str, RadioAdaptorOutput]]
"""Summary, features, and what each adaptor makes of them."""


def read_out(
    network: RadioNetwork, passed: NetworkPass, adaptor_names: Sequence[str] = (), feature_format: FeatureFormat = "NLC"
) -> RadioModelOutput:
    """Take summary, features and adaptor outputs from the final tokens.

    Args:
        network: What the images passed through.
        passed: What it returned.
        adaptor_names: Adaptors to run.
        feature_format: "NLC" for token sequences, "NCHW" for maps; packed images have sequences only.

    Returns:
        The output, of clips with a first axis for them before that of their groups.
    """
    tokens, summary, features, adaptors = None, None, None, {}
    if not passed.is_decoded:
        pass  # there is what the encoder gave, and nothing else
    elif passed.pack is None:
        tokens = passed.tokens
        summary, features, adaptors = _read_images(network, tokens, passed.grid, adaptor_names, feature_format)
    else:
        tokens = passed.pack.concatenate(passed.tokens)
        summary, features, adaptors = _read_pack(network, passed.tokens, passed.pack, adaptor_names)
    output = RadioModelOutput(
        summary=summary,
        features=features,
        last_hidden_state=tokens,
        hidden_states=passed.hidden_states,
        attentions=passed.attentions,
        pooler_output=summary,
        adaptors=adaptors,
        global_tokens=None if passed.encoded is None else passed.encoded.tokens,
        global_mask=None if passed.encoded is None else passed.encoded.mask,
        global_summary=None if passed.encoded is None else network.summarize(passed.encoded.prefix),
    )
    if passed.num_clips is None:
        return output
    from .video_radio import by_clip

    return by_clip(output, passed.num_clips)


def _read_images(
    network: RadioNetwork, tokens: Tensor, grid: Resolution, names: Sequence[str], feature_format: FeatureFormat
) -> Reading:
    """Read the final tokens of images of one grid."""
    features = network.patch_features(tokens)
    if network.feature_normalizer is not None:
        features = network.feature_normalizer(features)
    adaptors = {}
    for name in names:
        adaptor = network.adaptor(name)
        output = adaptor(tokens, features, *grid)
        if output.features is not None and feature_format == "NCHW":
            output.features = to_map(output.features, Resolution(*(size * adaptor.upsample_factor for size in grid)))
        adaptors[name] = output
    features = to_map(features, grid) if feature_format == "NCHW" else features
    return network.summarize(tokens), features, adaptors


def _read_pack(network: RadioNetwork, tokens: Tensor, pack: ImagePack, names: Sequence[str]) -> Reading:
    """Read each group of equal grids, then bring the images back into the order of the call."""
    groups = [
        _read_images(network, group_tokens, grid, names, "NLC")
        for grid, group_tokens in zip(pack.groups, pack.group_sequence(tokens), strict=True)
    ]

    def per_image(tensors: list[Tensor | None], join: Callable[[list[Tensor]], Tensor]) -> Tensor | None:
        present = [tensor for tensor in tensors if tensor is not None]
        return join(pack.ungroup(present)) if present else None

    adaptors = {
        name: RadioAdaptorOutput(
            summary=per_image([predicted[name].summary for _, _, predicted in groups], torch.stack),
            features=per_image([predicted[name].features for _, _, predicted in groups], torch.cat),
        )
        for name in names
    }
    summary = per_image([summary for summary, _, _ in groups], torch.stack)
    return summary, per_image([features for _, features, _ in groups], torch.cat), adaptors
