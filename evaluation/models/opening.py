"""Models by name, to compare with: folders, models of the Hub, teachers and baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from modeling_radio import RadioConfig
from modeling_radio.core.hub import find_folder
from modeling_radio.core.ids import standard_id
from modeling_radio.core.opening import read_config, without_reports
from modeling_radio.evaluation.models.pretrained import RawPixels, open_huggingface, open_timm, random_network
from modeling_radio.evaluation.models.radio import RadioFeatures
from modeling_radio.evaluation.models.teachers import TeacherFeatures
from modeling_radio.metrics.feature_model import FeatureModel
from modeling_radio.training.teachers.registry import build_teacher


FORMS = (
    "a folder, ORG/NAME on the Hub, timm:NAME, timm-random:NAME, teacher:KIND, teacher:KIND:SOURCE, pixels, or "
    "random-vit"
)


def open_compared(
    name: str,
    *,
    beside: RadioFeatures,
    size_px: int | None = None,
    dtype: torch.dtype | None = None,
) -> FeatureModel:
    """Open a model to compare a RADIO model with, in eval mode on the same device.

    Its row in tables has this name; a baseline has a name of its own.

    Args:
        name: One of these forms:

            - a folder: of ours, in the layout of NVIDIA's repositories, of transformers, or of timm;
            - `ORG/NAME`: the same, from the Hub;
            - `timm:NAME`: a network of timm with its published weights, `timm-random:NAME` with random ones;
            - `teacher:KIND` or `teacher:KIND:SOURCE`: as in a recipe, at the size and patch of `beside`;
            - `pixels` and `random-vit`: baselines of the size and patch of `beside`.
        beside: The model to compare with.
        size_px: Shorter side of the images; None for each model's own preprocessing.
        dtype: Autocast type; None computes in the model's own type.

    Raises:
        ValueError: If the name has another form, or the model does not open or cannot run at `size_px`.
        PackageError: If the package of a teacher cannot be fetched.
    """
    try:
        with without_reports():
            return _open(standard_id(name), beside, {"name": name, "size_px": size_px, "dtype": dtype})
    except (ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"`compare` {name!r} does not open: {reason}") from error


def _open(name: str, beside: RadioFeatures, options: dict[str, Any]) -> FeatureModel:
    kind, is_prefixed, rest = name.partition(":")
    size_px = options["size_px"] or beside.size_px
    if name == "pixels":
        return RawPixels(beside.patch_size, size_px, beside.device)
    if name == "random-vit":
        return random_network(beside.model.config, size_px=size_px, device=beside.device)
    if kind == "teacher":
        kind, _, source = rest.partition(":")
        teacher = build_teacher(name, kind=kind, source=source or None, grid_stride=beside.patch_size)
        return TeacherFeatures(teacher.to(beside.device), patch_size=beside.patch_size, size_px=size_px, name=name)
    if kind in ("timm", "timm-random") and is_prefixed:
        return open_timm(rest, pretrained=kind == "timm", device=beside.device, **options)
    try:
        folder = find_folder(name)
    except ValueError as error:
        raise ValueError(f"it must be {FORMS}, and {str(error).removeprefix('it ')}") from error
    return _open_folder(folder, beside.device, options)


def _open_folder(folder: Path, device: torch.device, options: dict[str, Any]) -> FeatureModel:
    config = read_config(folder)
    if "args" in config or config.get("model_type") == RadioConfig.model_type:
        return RadioFeatures.open(folder, device=device, **options)
    if "architecture" in config and "model_type" not in config:
        return open_timm(f"local-dir:{folder}", pretrained=True, device=device, **options)
    if not (folder / "preprocessor_config.json").is_file():
        raise ValueError(f"{str(folder)!r} must hold a preprocessor_config.json: save its image processor there.")
    return open_huggingface(folder, device=device, **options)
