"""The reference cases: checkpoints of NVIDIA's with NVIDIA's outputs, and their Hub folders."""

import json
import re
import shutil
from argparse import Namespace
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from modeling_radio.nvidia.tensors import fold_spectral


REFERENCE = Path(__file__).parents[2] / "reference"
STAND_IN = REFERENCE / "nvidia_stand_in"
"""Remote code in place of NVIDIA's: our own words, its names."""
HUB_PREFIXES = {
    "base_model.": "radio_model.model.",
    "input_conditioner.": "radio_model.input_conditioner.",
    "_feature_normalizer.": "radio_model.feature_normalizer.",
    "_intermediate_feature_normalizer.": "radio_model.inter_feature_normalizer.",
}


def load_training_file(case: str) -> dict:
    """Return what a case's training file holds."""
    with torch.serialization.safe_globals([Namespace]):
        return torch.load(REFERENCE / case / "checkpoint.pth.tar", weights_only=True)


def write_hub_folder(case: str, folder: Path, config: dict | None = None) -> Path:
    """Write a case's Hub folder: its `config.json`, and the training file's weights under the Hub's keys."""
    folder.mkdir(parents=True)
    config = config or json.loads((REFERENCE / case / "hf" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    content = load_training_file(case)
    state = fold_spectral(content.get("state_dict_ema") or content["state_dict"])
    tensors = hub_tensors(state, config["args"]["teachers"], config["adaptor_names"] or [])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def hub_tensors(state: Mapping[str, Tensor], teachers: Sequence[dict], adaptors: Collection[str]) -> dict[str, Tensor]:
    """Return the weights of a training file as a Hub folder has them, with those adaptors."""
    names = [teacher["name"] for teacher in teachers]
    summaries = [index for index, teacher in enumerate(teachers) if teacher["use_summary"]]
    tensors = {"radio_model.summary_idxs": torch.tensor(summaries)}
    for key, tensor in state.items():
        if (ours := _hub_key(key, names, adaptors)) is not None:
            tensors[ours] = tensor.contiguous()
    return tensors


def write_release(case: str, folder: Path) -> Path:
    """Write a case's Hub folder with code that `trust_remote_code` runs, as NVIDIA's repositories have it."""
    write_hub_folder(case, folder)
    for file in STAND_IN.glob("*.py"):
        shutil.copy(file, folder)
    return folder


def _hub_key(key: str, teachers: Sequence[str], adaptors: Collection[str]) -> str | None:
    head = re.fullmatch(r"_(heads|feature_projections)\.([^.]+)\.(.+)", key)
    if head is not None:
        name = teachers[int(head[2])] if head[2].isdecimal() else head[2]
        half = {"heads": "head_mlp", "feature_projections": "feat_mlp"}[head[1]]
        return f"radio_model.adaptors.{name}.{half}.{head[3]}" if name in adaptors else None
    prefix = next(prefix for prefix in HUB_PREFIXES if key.startswith(prefix))
    return HUB_PREFIXES[prefix] + key.removeprefix(prefix)


@pytest.fixture
def reference() -> Path:
    return REFERENCE


@pytest.fixture
def training_file() -> Callable[[str], dict]:
    """What a case's training file holds."""
    return load_training_file


@pytest.fixture
def edited(tmp_path) -> Callable[[str, Callable[[dict], None]], Path]:
    """Write a case's training file with changed contents."""

    def write(case: str, edit: Callable[[dict], None]) -> Path:
        content = load_training_file(case)
        edit(content)
        torch.save(content, tmp_path / "edited.pth.tar")
        return tmp_path / "edited.pth.tar"

    return write


@pytest.fixture
def hub_folder(tmp_path) -> Callable[[str], Path]:
    """Write a case's Hub folder: its `config.json`, and the training file's weights under the Hub's keys."""
    return lambda case: write_hub_folder(case, tmp_path / "hub")
