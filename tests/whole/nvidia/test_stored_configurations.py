"""Configurations of all presets and of NVIDIA's releases are the stored ones: no restructuring may move a value.

`tests/reference/configurations.json` holds the defaults of every field, and what differs from them by preset and by
release. Change a number there only together with the sentence in the commit that says why.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.nvidia.sizes import build_config_fields
from modeling_radio.nvidia.source import NvidiaCheckpoint


STORED = json.loads((Path(__file__).parents[2] / "reference" / "configurations.json").read_text())
TEACHERS = {
    "v2": {"clip": True, "dino_v2": True, "sam": False},
    "v2.5": {"clip": True, "siglip": True, "dino_v2": True, "sam": False},
    "v3": {"clip": True, "siglip2-g": True, "dino_v2": True, "sam": False},
    "v4": {"siglip2-g": True, "dino_v3": True, "sam3": False},
}
RELEASES = {
    "radio_v1": ("vit_huge_patch16_224", "v2"),
    "radio_v2": ("vit_huge_patch16_224", "v2"),
    "radio_v2.1": ("vit_huge_patch16_224", "v2"),
    "radio_v2.5-b": ("vit_base_patch16_224", "v2.5"),
    "radio_v2.5-l": ("vit_large_patch16_224", "v2.5"),
    "radio_v2.5-h": ("vit_huge_patch16_224", "v2.5"),
    "radio_v2.5-h-norm": ("vit_huge_patch16_224", "v2.5"),
    "radio_v2.5-g": ("dino_v2_g_student", "v2.5"),
    "c-radio_v2-g": ("vit_giant_patch16_224", "v2.5"),
    "c-radio_v2-vlm-h": ("vit_huge_patch16_224", "v2.5"),
    "c-radio_v3-b": ("vit_base_patch16_v2_224", "v3"),
    "c-radio_v3-l": ("vit_large_patch16_v2_224", "v3"),
    "c-radio_v3-h": ("vit_huge_patch16_224", "v3"),
    "c-radio_v3-g": ("vit_giant_patch16_224", "v3"),
    "c-radio_v4-so400m": ("vit_so400m_patch16_224", "v4"),
    "c-radio_v4-h": ("vit_huge_patch16_224", "v4"),
    "c-radio_v4-1d-h": ("radio1d_huge_patch16_224", "v4"),
}
"""Architecture and generation of teachers in the training arguments of each release."""


MODEL_KWARGS = {
    "radio1d_huge_patch16_224": {
        "img_size": 1024,
        "cpe_max_size": 2048,
        "num_cls_tokens": 4,
        "num_registers": 6,
        "downscale_levels": [24],
        "decoder_depth": 6,
        "decoder_upscale_levels": [3],
    }
}


def stored(changes: dict[str, Any]) -> dict[str, Any]:
    return STORED["defaults"] | changes


def values(config: RadioConfig) -> dict[str, Any]:
    """The stored fields of a configuration, as JSON has them."""
    return json.loads(json.dumps({name: getattr(config, name) for name in STORED["defaults"]}))


def training_arguments(version: str) -> dict[str, Any]:
    model, generation = RELEASES[version]
    is_dino = model.startswith("dino")
    return {
        "model": model,
        "model_kwargs": MODEL_KWARGS.get(model, {}),
        "cpe_max_size": 1792 if is_dino else 2048,
        "cls_token_per_teacher": not is_dino,
        "register_multiple": None if is_dino else {"v4": 10}.get(generation, 8),
        "teachers": [{"name": name, "use_summary": used} for name, used in TEACHERS[generation].items()],
        "mlp_version": "v1" if generation == "v2" else "v2",
    }


def test_stored_are_all_presets_and_releases() -> None:
    assert list(STORED["presets"]) == list(RadioConfig.presets)
    assert list(STORED["hub_releases"]) == list(STORED["file_releases"]) == list(RELEASES)


def test_defaults() -> None:
    assert values(RadioConfig()) == stored({})


@pytest.mark.parametrize("name", STORED["presets"])
def test_preset(name: str) -> None:
    config = RadioConfig.from_preset(name)
    assert values(config) == stored(STORED["presets"][name])
    assert int(config.hidden_size * config.mlp_ratio) == config.intermediate_size  # how native transformers has it


@pytest.mark.parametrize("version", RELEASES)
def test_release_from_its_hub_configuration(version: str) -> None:
    config = RadioConfig.from_dict({"args": training_arguments(version), "version": version})
    assert config.nvidia_source is not None
    assert config.nvidia_source["args"] == training_arguments(version)
    config.nvidia_source = None
    assert values(config) == stored(STORED["hub_releases"][version])


@pytest.mark.parametrize("version", RELEASES)
def test_release_from_its_file(version: str) -> None:
    args = training_arguments(version)
    # The weights as published, without memory: LayerScale is folded before the configuration is built.
    shape = RadioConfig.from_dict({"args": args, "version": version})
    shape.use_layer_scale = False
    with torch.device("meta"):
        state = RadioModel(shape).state_dict()
    for name in ("norm_mean", "norm_std"):
        buffer = torch.tensor(getattr(shape, name), dtype=torch.float64)  # as exact as the stored numbers
        state[f"radio_model.input_conditioner.{name}"] = buffer.view(3, 1, 1)
    del state["radio_model.summary_idxs"]
    config = RadioConfig(**build_config_fields(state, NvidiaCheckpoint("file", state, args), version))
    assert values(config) == stored(STORED["file_releases"][version])
