"""Compares a model with outputs of NVIDIA's code, stored in a file."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from modeling_radio import RadioConfig, RadioModel, RadioPair


_KEY = re.compile(
    r"(?P<size>\d+x\d+)/(?P<mode>global|window\d+|attention_window\d+|optimal|frames|packed|packed_padded|intermediates/(?:sparse|dense))"
    r"/(?P<name>[^/]+)/(?P<kind>\w+)"
)
_RADIO1D_CALL = re.compile(
    r"(?P<size>\d+x\d+)/(?P<mode>tokens(?:\d+|max)|mixed)/(?P<neck>encoder|decoder|decoder_adaptors/[^/]+)/(?P<kind>\w+)"
)
_RADIO1D_BLOCK = re.compile(r"(?P<size>\d+x\d+)/encoder_blocks/(?P<block>\d+)/features")
_LIST = re.compile(r"list/[^/]+/backbone/(?P<kind>summary|features)(?:/(?P<image>\d+))?")
_NORMED = re.compile(r"(?P<size>\d+x\d+)/intermediates/sparse_norm/(?P<block>\d+)/(?P<kind>\w+)")
_WARPED = re.compile(r"(?P<size>\d+x\d+)/homography/(?P<name>[^/]+)/(?P<kind>summary|features)")
_CLIP_MODES = ("frames", "packed", "packed_padded")
_POSITIONS = "/training/positions"
_INPUTS = (
    "/image_uint8",
    "list/sizes",
    "/homography/matrix",
    "/clip_uint8",
    "/training/draws",
    "/mixed/num_tokens",
    "/mixed/mask_uint8",
)


@dataclass(frozen=True)
class OutputDifference:
    """Difference between one stored output and the model's.

    Attributes:
        key: Its key in the file.
        difference: Largest absolute difference, infinite where the shapes differ; `None` if the model has no such
            output.
    """

    key: str
    difference: float | None


def check_tolerance(tolerance: float) -> None:
    """Refuse a meaningless tolerance.

    Raises:
        ValueError: If it is negative, infinite or NaN.
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"`tolerance` must be a finite number of at least 0, got {tolerance}.")


def compare_with_reference(model: RadioModel, reference: str | Path) -> list[OutputDifference]:
    """Run a model on the images of a file and compare every output that it stores.

    Args:
        model: In evaluation mode, in float32.
        reference: A safetensors file with keys `HxW/image_uint8`, `HxW/global|windowN/NAME/summary|features` (NAME is
            `backbone` or an adaptor, features are token sequences) and `HxW/intermediates/sparse|dense/BLOCK/...`
            (features are maps); for video `HxW/clip_uint8` and `HxW/frames|packed|packed_padded/backbone/...`: each
            frame as an image, temporal patches of all frames, and of all but the last one; and `HxW/training/draws`
            with the `positions` of clips that share a crop; for E-RADIO `HxW/attention_windowN|optimal/backbone/...`;
            for RADIO1D those of `radio1d_outputs`, for NaViT those of `navit_outputs`.

    Returns:
        One comparison per stored output.

    Raises:
        ValueError: If the file cannot be read, lacks the images of an output, or holds no output of the model.
    """
    try:
        stored = load_file(reference)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"Cannot read the reference {str(reference)!r}: {error}") from error
    needed = {_input_key(match) for key in stored if (match := _KEY.fullmatch(key))}
    lacking = sorted(needed - set(stored))
    if lacking:
        raise ValueError(f"The reference {str(reference)!r} lacks {', '.join(lacking)}: the images of its outputs.")
    if model.config.navit is not None:
        stored = _in_float32(stored, rounded=bool(model.config.navit.get("rounded_angles")))
    groups: dict[tuple[str, str], list[re.Match[str]]] = {}
    for key in stored:
        if match := _KEY.fullmatch(key):
            groups.setdefault((match["size"], match["mode"]), []).append(match)
    elastic = radio1d_outputs(model, stored) if model.config.num_mergings else {}
    if model.config.navit is not None:
        elastic = navit_outputs(model, stored)
    unknown = [key for key in stored if not (_KEY.fullmatch(key) or key.endswith(_INPUTS) or key in elastic)]
    comparisons = [
        OutputDifference(match[0], _difference(outputs.get(f"{match['name']}/{match['kind']}"), stored[match[0]]))
        for (_, mode), matches in groups.items()
        for outputs in [_run(model, stored[_input_key(matches[0])] / 255, mode, matches)]
        for match in matches
    ]
    positions = [key for key in unknown if key.endswith(_POSITIONS)]
    comparisons += [
        OutputDifference(key, _difference(_positions(model, key, stored), stored[key])) for key in positions
    ]
    comparisons += [OutputDifference(key, _difference(output, stored[key])) for key, output in elastic.items()]
    if all(comparison.difference is None for comparison in comparisons):
        raise ValueError(f"The reference {str(reference)!r} holds no output of this model.")
    return [*comparisons, *(OutputDifference(key, None) for key in unknown if key not in positions)]


def _in_float32(stored: Mapping[str, Tensor], *, rounded: bool) -> dict[str, Tensor]:
    """Return the outputs of NVIDIA's NaViT that were computed in float32, under plain keys; all if none are marked.

    Args:
        stored: Its code runs under autocast alone; `HxW/float32/...` is of the same code without it, and
            `HxW/rounded/...` with the angles of autocast.
        rounded: Whether the model's angles are so.
    """
    mark = re.compile(r"(?<=/)(float32|rounded)/")
    if not any(map(mark.search, stored)):
        return dict(stored)
    wanted = "rounded" if rounded else "float32"
    return {
        mark.sub("", key): tensor
        for key, tensor in stored.items()
        if key.endswith(_INPUTS) or ((found := mark.search(key)) and found[1] == wanted)
    }


def format_comparisons(comparisons: list[OutputDifference], tolerance: float) -> str:
    """Return a table with one line per image size and mode."""
    groups: dict[str, list[OutputDifference]] = {}
    for comparison in comparisons:
        group = " ".join(comparison.key.split("/")[:-2])  # without the name and the kind
        groups.setdefault(group or comparison.key, []).append(comparison)
    return "\n".join([f"{'outputs':<36}{'compared':>9}{'max |difference|':>18}", *_lines(groups, tolerance)])


def _lines(groups: dict[str, list[OutputDifference]], tolerance: float) -> Iterator[str]:
    for group, members in groups.items():
        differences = [member.difference for member in members if member.difference is not None]
        if not differences:
            yield f"{group:<36}{0:>9}{'not in this model':>18}"
            continue
        verdict = "ok" if max(differences) <= tolerance else f"beyond {tolerance:g}"
        yield f"{group:<36}{len(differences):>9}{max(differences):>18.2e}  {verdict}"


def largest_difference(comparisons: list[OutputDifference]) -> float:
    """Return the largest absolute difference of all outputs."""
    return max(comparison.difference for comparison in comparisons if comparison.difference is not None)


def list_unchecked(config: RadioConfig, comparisons: Sequence[OutputDifference]) -> list[str]:
    """List the parts of a converted model that no stored output has confirmed.

    Sizes and weights are the file's own. The token of each head, the resizing of positions and the blocks with global
    attention follow from the training arguments and the version, not from tensors.

    Args:
        config: The model's configuration.
        comparisons: Comparisons of its outputs with stored ones; may be empty.
    """
    compared = [comparison.key.split("/") for comparison in comparisons if comparison.difference is not None]
    images = {size for size, mode, *_ in compared}
    modes = {mode for _, mode, *_ in compared}
    compared_names = {name for _, mode, name, *_ in compared if mode != "intermediates"}
    compared_names |= {parts[-2] for parts in compared if "decoder_adaptors" in parts}
    if "decoder" in compared_names:
        compared_names.add("backbone")
    found = []
    if "backbone" not in compared_names:
        facts = f"{config.num_attention_heads} attention heads, summary of tokens {_list(config.summary_idxs or [])}"
        facts = facts if config.eradio is None else "the arguments of E-RADIO"
        found.append(f"the backbone's outputs ({facts})")
    missing = [adaptor for adaptor in config.adaptor_configs if adaptor.name not in compared_names]
    if missing:
        found.append(f"the outputs of {_list(f'{adaptor.name} (token {adaptor.token_index})' for adaptor in missing)}")
    has_table = config.eradio is None and config.navit is None
    if has_table and all(max(map(int, size.split("x"))) == config.max_img_size for size in images):
        found.append(f"resized positions (with{'' if config.pos_embed_align_corners else 'out'} aligned corners)")
    has_choice = config.eradio is None and not config.num_mergings
    if has_choice and not any(mode.startswith("window") for mode in modes):
        found.append(f"windowed attention (global in blocks {_list(config.global_blocks)})")
    if config.text_tower is not None:
        found.append("texts")
    absent = [comparison.key for comparison in comparisons if comparison.difference is None]
    if absent:
        found.append(f"{len(absent)} stored outputs that this model does not have, {absent[0]} and such")
    return found


def _list(items: Iterable[object]) -> str:
    return ", ".join(map(str, items))


def _input_key(match: re.Match[str]) -> str:
    """Return the key of an output's images or clip."""
    return f"{match['size']}/{'clip_uint8' if match['mode'] in _CLIP_MODES else 'image_uint8'}"


@torch.no_grad()
def _run(model: RadioModel, images: Tensor, mode: str, wanted: list[re.Match[str]]) -> dict[str, Tensor]:
    """Return the outputs of one mode under `NAME/summary` and `NAME/features`."""
    if mode.startswith("intermediates/"):
        blocks = sorted({int(match["name"]) for match in wanted})
        window = "global" if model.config.navit is None else None  # NVIDIA's NaViT has the configuration's
        levels = model.get_intermediate_features(
            images, blocks, aggregation="dense" if mode.endswith("dense") else "sparse", window_size=window
        )
        named = {str(block): level for block, level in zip(blocks, levels, strict=True)}
    elif mode in ("packed", "packed_padded"):
        clip = images if mode == "packed" else images[:-1]
        output = model(pixel_values_videos=clip[None], window_size="global", adaptor_names=[], return_dict=True)
        named = {"backbone": RadioPair(output.summary[0], output.features[0])}
    else:
        window_size = _window_of(mode, model.config)
        names = list(model.radio_model.adaptors)
        output = model(images, window_size=window_size, adaptor_names=names, return_dict=True)
        named = {"backbone": output, **output.adaptors}
    return {
        f"{name}/{kind}": value
        for name, entry in named.items()
        for kind, value in (("summary", entry.summary), ("features", entry.features))
        if value is not None
    }


def _window_of(mode: str, config: RadioConfig) -> Any:
    """Return the `window_size` of the call for a mode."""
    if mode == "optimal":  # a mode of E-RADIO
        return "auto"
    if size := re.fullmatch(r"(?:attention_)?window(\d+)", mode):
        return int(size[1])
    return "global" if config.eradio is None else None


def _positions(model: RadioModel, key: str, stored: Mapping[str, Tensor]) -> Tensor | None:
    """Return the training position embeddings of clips that share their crops; `None` without their random draws."""
    draws = stored.get(key.replace(_POSITIONS, "/training/draws"))
    if draws is None:
        return None
    rows, cols = (int(side) // model.config.patch_size for side in key.partition("/")[0].split("x"))
    by_frame = draws.repeat_interleave(len(stored[key]) // len(draws), dim=0)
    return model.radio_model.model.patch_generator.sample_positions(rows, cols, by_frame).detach()


def _difference(output: Tensor | None, stored: Tensor) -> float | None:
    if output is None:
        return None
    if output.shape != stored.shape:
        return float("inf")
    difference = (output.float() - stored.float()).abs().max().item()
    return difference if difference == difference else float("inf")  # NaN counts as a mismatch


@torch.no_grad()
def radio1d_outputs(model: RadioModel, stored: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
    """Return the outputs of a RADIO1D for the stored keys that only such a network has.

    Args:
        model: In evaluation mode.
        stored: `HxW/image_uint8` and `HxW/tokensN/encoder|decoder/summary|features` (N is the requested number, or
            "max"), `HxW/tokensN/decoder_adaptors/NAME/...`, `HxW/encoder_blocks/BLOCK/features`; also
            `HxW/mixed/image_uint8`, `HxW/mixed/num_tokens` and `HxW/mixed/encoder|decoder/...`.

    Returns:
        One entry for each, `None` where the model has no such adaptor.
    """
    calls: dict[tuple[str, str], list[re.Match[str]]] = {}
    outputs: dict[str, Tensor | None] = {}
    for key in stored:
        if match := _RADIO1D_CALL.fullmatch(key):
            calls.setdefault((match["size"], match["mode"]), []).append(match)
        elif match := _RADIO1D_BLOCK.fullmatch(key):
            images = stored[f"{match['size']}/image_uint8"] / 255
            outputs[key] = model.get_intermediate_features(images, [int(match["block"])])[0].features
    for (size, mode), matches in calls.items():
        if mode == "mixed":
            images, num_tokens = stored[f"{size}/mixed/image_uint8"], stored[f"{size}/mixed/num_tokens"].tolist()
        else:
            images, asked = stored[f"{size}/image_uint8"], mode.removeprefix("tokens")
            num_tokens = None if asked == "max" else int(asked)
        names = list(model.radio_model.adaptors)
        output = model(images / 255, num_tokens=num_tokens, adaptor_names=names, return_dict=True)
        necks = {"decoder": (output.summary, output.features), "encoder": (output.global_summary, output.global_tokens)}
        necks |= {f"decoder_adaptors/{name}": (each.summary, each.features) for name, each in output.adaptors.items()}
        for match in matches:
            summary, features = necks.get(match["neck"], (None, None))
            outputs[match[0]] = summary if match["kind"] == "summary" else features
    return outputs


@torch.no_grad()
def navit_outputs(model: RadioModel, stored: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
    """Return the outputs of a NaViT for the stored keys that only such a network has.

    Args:
        model: In evaluation mode.
        stored: `HxW/intermediates/sparse_norm/BLOCK/...`, blocks with the last norm; and of a pack of the images of
            `list/sizes`, each the first of its size, `list/MODE/backbone/summary` `(images, tokens, hidden)` and
            `list/MODE/backbone/features/IMAGE`, in windows of the configuration; and of heads with cross-attention
            `HxW/homography/NAME/...`, their answers under `HxW/homography/matrix`.
    """
    outputs: dict[str, Tensor | None] = {}
    for match in filter(None, map(_WARPED.fullmatch, stored)):
        adaptor: Any = model.adaptors[match["name"]]
        out = model(stored[f"{match['size']}/image_uint8"] / 255, adaptor_names=[], return_dict=True)
        grid = [int(side) // model.config.patch_size for side in match["size"].split("x")]
        token = out.last_hidden_state[:, adaptor.token_index]
        matrix = stored[f"{match['size']}/homography/matrix"]
        pair = adaptor.head_mlp(token, out.features, homography=matrix, grid_sizes=[grid])
        outputs[match[0]] = getattr(RadioPair(*pair), match["kind"])
    for match in filter(None, map(_NORMED.fullmatch, stored)):
        pair = model.forward_intermediates(
            stored[f"{match['size']}/image_uint8"] / 255,
            indices=[int(match["block"])],
            norm=True,
            return_prefix_tokens=True,
            intermediates_only=True,
        )[0]
        outputs[match[0]] = getattr(pair, match["kind"])
    if "list/sizes" in stored:
        patch_size = model.config.patch_size
        images = [stored[f"{height}x{width}/image_uint8"][:1] / 255 for height, width in stored["list/sizes"].tolist()]
        patches = [F.pixel_unshuffle(image, patch_size).flatten(2)[0].T for image in images]
        grids = torch.tensor([[side // patch_size for side in image.shape[2:]] for image in images])
        out = model(torch.cat(patches), image_grid_hw=grids, adaptor_names=[], return_dict=True)
        features = out.features.split(grids.prod(dim=1).tolist())
        summary = out.summary.unflatten(1, (-1, model.config.hidden_size))
        for match in filter(None, map(_LIST.fullmatch, stored)):
            outputs[match[0]] = summary if match["kind"] == "summary" else features[int(match["image"])]
    return outputs
