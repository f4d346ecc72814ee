"""Recognizes a published release by what its file or folder holds, where that does not name the version."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from modeling_radio.presets_radio import RELEASES, SIZES, Release

from .arguments import ERADIO, is_eradio
from .navit import is_navit
from .radio1d import is_radio1d


class GenerationTraits(NamedTuple):
    """Properties that distinguish the releases of one generation from others.

    Attributes:
        teachers: Names of all teachers.
        mark: Names of which one is among the teachers of no other generation of this shape.
        patch_size: Side of a patch in pixels.
        is_dino_shaped: Whether the trunk is a ViT of DINOv2's, whose patch embedding has a bias.
        has_first_heads: Whether heads are MLPs of the first version.
        has_normalizer: Whether features are normalized.
    """

    teachers: frozenset[str] = frozenset()
    mark: tuple[str, ...] = ()
    patch_size: int = 16
    is_dino_shaped: bool = False
    has_first_heads: bool = False
    has_normalizer: bool = False


_SIGLIP = {"teachers": frozenset(("clip", "siglip", "dino_v2", "sam")), "mark": ("siglip",)}
_SIGLIP2_TEACHERS = frozenset(("clip", "siglip2", "dino_v2", "sam"))
_SIGLIP2 = GenerationTraits(_SIGLIP2_TEACHERS, ("siglip2", "siglip2-g"))  # README has the latter
_SAM3 = GenerationTraits(frozenset(("siglip2-g", "dino_v3_7b", "sam3")), ("sam3",))
TRAITS = {
    "radio_v1": GenerationTraits(patch_size=14),
    # RADIOv2 differs in nothing that could be seen or matters here.
    "radio_v2.1": GenerationTraits(has_first_heads=True),
    **dict.fromkeys(("radio_v2.5-b", "radio_v2.5-l", "radio_v2.5-h"), GenerationTraits(**_SIGLIP)),
    "radio_v2.5-h-norm": GenerationTraits(**_SIGLIP, has_normalizer=True),
    "radio_v2.5-g": GenerationTraits(patch_size=14, is_dino_shaped=True),
    **dict.fromkeys(("c-radio_v2-g", "c-radio_v2-vlm-h"), GenerationTraits(**_SIGLIP)),
    **dict.fromkeys(("c-radio_v3-b", "c-radio_v3-l", "c-radio_v3-h", "c-radio_v3-g"), _SIGLIP2),
    **dict.fromkeys(("c-radio_v4-so400m", "c-radio_v4-h"), _SAM3),
}
"""By version. Names of teachers are those that holders of the files report, and NVIDIA's README where nobody does."""
MATTERING = ("pos_embed_align_corners", "vitdet_num_global", "vitdet_num_windowed")
"""Fields whose values change the outputs, and which no tensor shows."""


class Recognized(NamedTuple):
    """Result of a recognition.

    Attributes:
        release: The release; None for another network, or where only the generation can be told.
        fields: Fields of `MATTERING` that the release, or every release of the generation, sets.
    """

    release: Release | None
    fields: Mapping[str, Any]


def recognize(args: Mapping[str, Any], shape: Mapping[str, Any], *, has_normalizer: bool) -> Recognized:
    """Return the release that a file or folder holds.

    A network of another size, architecture or set of teachers than any release has is no release.

    Args:
        args: Arguments of the training run.
        shape: `hidden_size`, `num_hidden_layers`, `patch_size` and `use_patch_bias` of the network.
        has_normalizer: Whether it normalizes features.

    Raises:
        ValueError: If several releases with other positions or windows fit.
    """
    if is_navit(args):  # none is published
        return Recognized(None, {})
    if is_radio1d(args) or is_eradio(args):
        return _alone(args, shape)
    teachers = {teacher["name"] for teacher in args.get("teachers") or []}
    fitting = [
        release
        for version, release in RELEASES.items()
        if version in TRAITS and _fits(TRAITS[version], teachers, args, shape, has_normalizer=has_normalizer)
    ]
    is_exact = any(teachers == TRAITS[release.version].teachers for release in fitting)
    sized = [release for release in fitting if _has_size(release, args, shape, by_name=is_exact)]
    found = sized or fitting
    if not found:
        return Recognized(None, {})
    first = _mattering(found[0])
    if all(_mattering(release) == first for release in found):
        return Recognized(found[0] if len(sized) == 1 else None, first)
    if not sized and not is_exact:
        return Recognized(None, {})
    raise ValueError(_ambiguous(found))


def _alone(args: Mapping[str, Any], shape: Mapping[str, Any]) -> Recognized:
    """Return the only release of an architecture of its own."""
    release = RELEASES["e-radio_v2" if is_eradio(args) else "c-radio_v4-1d-h"]
    is_it = args.get("model") == ERADIO if is_eradio(args) else _has_size(release, args, shape, by_name=False)
    return Recognized(release if is_it else None, {})


def _fits(
    traits: GenerationTraits,
    teachers: set[str],
    args: Mapping[str, Any],
    shape: Mapping[str, Any],
    *,
    has_normalizer: bool,
) -> bool:
    others = {name for each in TRAITS.values() for name in each.mark} - set(traits.mark)
    if traits.mark == _SAM3.mark:
        others = set()  # whatever else is there, no other generation has SAM3
    return (
        traits.is_dino_shaped == bool(shape["use_patch_bias"])
        and (traits.is_dino_shaped or traits.patch_size == shape["patch_size"])
        and traits.has_first_heads == (args.get("mlp_version") == "v1" and traits.patch_size == 16)
        and traits.has_normalizer == has_normalizer
        and (not traits.mark or (bool(teachers & set(traits.mark)) and not teachers & others))
    )


def _has_size(release: Release, args: Mapping[str, Any], shape: Mapping[str, Any], *, by_name: bool) -> bool:
    """Return whether a network has a release's width and depth, or by name its architecture."""
    size = SIZES[release.size or ""]
    if (size.hidden_size, size.num_hidden_layers) == (shape["hidden_size"], shape["num_hidden_layers"]):
        return True
    any_size = any(
        (each.hidden_size, each.num_hidden_layers) == (shape["hidden_size"], shape["num_hidden_layers"])
        for each in SIZES.values()
    )
    name = re.match(r"vit_([a-z0-9]+)_patch16_(v2_)?\d+$", str(args.get("model")))
    is_named = (
        name is not None and name[1] == release.size and bool(name[2]) == bool(release.fields.get("use_layer_scale"))
    )
    return by_name and is_named and not any_size


def _mattering(release: Release) -> dict[str, Any]:
    return {name: release.fields[name] for name in MATTERING if name in release.fields}


def _ambiguous(found: Sequence[Release]) -> str:
    versions = [release.version for release in found]
    differing = [name for name in MATTERING if len({str(release.fields.get(name)) for release in found}) > 1]
    return (
        f"`version` must be given: by its teachers and sizes this may be {' or '.join(versions)}, which differ in "
        f"{' and '.join(f'`{name}`' for name in differing)}, and nothing in the file tells which. Convert it with "
        f"--version, for example {versions[0]}."
    )
