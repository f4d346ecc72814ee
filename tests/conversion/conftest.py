"""The reference cases in both of NVIDIA's formats."""

import json
import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from conversion.folding import fold_spectral


REFERENCE = Path(__file__).parents[1] / "data" / "reference"
HUB_PREFIXES = {
    "base_model.": "radio_model.model.",
    "input_conditioner.": "radio_model.input_conditioner.",
    "_feature_normalizer.": "radio_model.feature_normalizer.",
    "_intermediate_feature_normalizer.": "radio_model.inter_feature_normalizer.",
}


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """Use one thread in all tests of this folder."""


@pytest.fixture
def reference() -> Path:
    return REFERENCE


@pytest.fixture
def training_file() -> Callable[[str], dict]:
    """What a case's training file holds."""
    return _load_training_file


@pytest.fixture
def edited(tmp_path) -> Callable[[str, Callable[[dict], None]], Path]:
    """Write a case's training file with changed contents."""

    def write(case: str, edit: Callable[[dict], None]) -> Path:
        content = _load_training_file(case)
        edit(content)
        torch.save(content, tmp_path / "edited.pth.tar")
        return tmp_path / "edited.pth.tar"

    return write


@pytest.fixture
def hub_folder(tmp_path) -> Callable[[str], Path]:
    """Write a case's Hub folder: its `config.json`, and the training file's weights under the Hub's keys."""
    return lambda case: _write_hub_folder(case, tmp_path / "hub")


def _load_training_file(case: str) -> dict:
    with torch.serialization.safe_globals([Namespace]):
        return torch.load(REFERENCE / case / "checkpoint.pth.tar", weights_only=True)


def _write_hub_folder(case: str, folder: Path) -> Path:
    folder.mkdir(parents=True)
    config = json.loads((REFERENCE / case / "hf" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    content = _load_training_file(case)
    state = fold_spectral(content.get("state_dict_ema") or content["state_dict"])
    teachers = [teacher["name"] for teacher in config["args"]["teachers"]]
    summaries = [index for index, teacher in enumerate(config["args"]["teachers"]) if teacher["use_summary"]]
    tensors = {"radio_model.summary_idxs": torch.tensor(summaries)}
    for key, tensor in state.items():
        if (ours := _hub_key(key, teachers, config["adaptor_names"])) is not None:
            tensors[ours] = tensor.contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _hub_key(key: str, teachers: list[str], adaptors: list[str]) -> str | None:
    head = re.fullmatch(r"_(heads|feature_projections)\.([^.]+)\.(.+)", key)
    if head is not None:
        name = teachers[int(head[2])] if head[2].isdecimal() else head[2]
        half = {"heads": "head_mlp", "feature_projections": "feat_mlp"}[head[1]]
        return f"radio_model.adaptors.{name}.{half}.{head[3]}" if name in adaptors else None
    prefix = next(prefix for prefix in HUB_PREFIXES if key.startswith(prefix))
    return HUB_PREFIXES[prefix] + key.removeprefix(prefix)
