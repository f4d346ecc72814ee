"""Projector between the vision tower and the language model of a Nemotron: features as the language model sees them."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from .checks_radio import integer, read_json


CONFIG_FILE, WEIGHTS_FILE = "projector.json", "projector.safetensors"
"""Files of a projector beside those of its tower."""
NORM_EPSILON = 1e-5
"""Epsilon of the projector's RMSNorm, in transformers 5.24 (`nemotron_h_omni`) and vLLM 0.32."""
_SIZE, _MERGE = integer(1, 1_000_000), integer(1, 64)  # our choice: no model is as wide, or joins as many patches


class SquaredReLU(nn.Module):
    """The square of ReLU."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Return `relu(hidden)**2`."""
        return F.relu(hidden).square()


class RadioProjector(nn.Module):
    """2 x 2 patches joined to one token, then RMSNorm, linear, squared ReLU, linear; the linear layers have no bias.

    `radio convert NEMOTRON_FOLDER tower --projector` writes it beside the tower:

        features = RadioModel.from_pretrained("tower")(pixel_values, feature_format="NCHW").features
        tokens = RadioProjector.from_pretrained("tower")(features)

    Weights have the names that they have in a Nemotron: `mlp1.0`, `mlp1.1`, `mlp1.3`.

    Args:
        hidden_size: Width of the tower's features.
        projector_hidden_size: Width between the linear layers.
        output_size: Width of the language model.
        merge_size: Rows, and columns, of patches that make one token; 1 / `downsample_ratio` of a Nemotron.

    Raises:
        ValueError: If a size is no positive integer, or larger than any model has it.
    """

    def __init__(self, hidden_size: int, projector_hidden_size: int, output_size: int, merge_size: int = 2) -> None:
        super().__init__()
        self.hidden_size, self.projector_hidden_size = hidden_size, projector_hidden_size
        self.output_size, self.merge_size = output_size, merge_size
        for name, value in self.sizes().items():
            (_MERGE if name == "merge_size" else _SIZE).check(name, value)
        width = hidden_size * merge_size**2
        self.mlp1 = nn.Sequential(
            nn.RMSNorm(width, eps=NORM_EPSILON),
            nn.Linear(width, projector_hidden_size, bias=False),
            SquaredReLU(),
            nn.Linear(projector_hidden_size, output_size, bias=False),
        )

    def sizes(self) -> dict[str, int]:
        """Return the arguments that it was built with."""
        names = ("hidden_size", "projector_hidden_size", "output_size", "merge_size")
        return {name: getattr(self, name) for name in names}

    def forward(self, features: Tensor) -> Tensor:
        """Project a map of features.

        Args:
            features: Output of the tower, `(batch, hidden_size, rows, cols)`; rows and columns are multiples of
                `merge_size`.

        Returns:
            Tokens of the language model as a map, `(batch, output_size, rows / merge_size, cols / merge_size)`; its
            order of tokens is that of `flatten(2)`.

        Raises:
            ValueError: If the shape is another one.
        """
        merge = self.merge_size
        if features.ndim != 4 or features.shape[1] != self.hidden_size or any(n % merge for n in features.shape[2:]):
            raise ValueError(
                f"`features` must have the shape (batch, {self.hidden_size}, rows, cols) with multiples of {merge} as "
                f"rows and cols, got {tuple(features.shape)}."
            )
        merged = features.unflatten(2, (-1, merge)).unflatten(4, (-1, merge))
        merged = merged.permute(0, 2, 4, 3, 5, 1).flatten(3)  # -> (batch, rows, cols, merge * merge * hidden_size)
        return self.mlp1(merged).movedim(-1, 1)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `projector.json` and `projector.safetensors` into a folder."""
        text = json.dumps(self.sizes(), indent=2) + "\n"
        Path(folder, CONFIG_FILE).write_text(text, encoding="utf-8")
        state = {key: tensor.contiguous() for key, tensor in self.state_dict().items()}
        save_file(state, Path(folder, WEIGHTS_FILE), metadata={"format": "pt"})

    @classmethod
    def from_config(cls, folder: str | Path) -> "RadioProjector":
        """Return a projector with random weights, of the sizes in a folder's `projector.json`.

        Raises:
            ValueError: If there is no such file, or it holds something else.
        """
        path = Path(folder, CONFIG_FILE)
        if not path.is_file():
            raise ValueError(
                f"{str(folder)!r} holds no projector: it lacks {CONFIG_FILE}, which `radio convert NEMOTRON_FOLDER "
                "tower --projector` writes."
            )
        sizes: dict[str, Any] = read_json(path)
        try:
            return cls(**sizes)
        except TypeError as error:
            raise ValueError(f"{str(path)!r} must hold the sizes of a projector, got {sizes!r:.200}.") from error

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "RadioProjector":
        """Open the projector of a folder, in evaluation mode and in the data type of its file.

        Raises:
            ValueError: If the folder holds none, or it is damaged.
        """
        with torch.device("meta"):
            projector = cls.from_config(folder)
        path = Path(folder, WEIGHTS_FILE)
        try:
            state = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{str(path)!r} is missing, damaged or no safetensors file: {error}") from error
        projector.load_weights(state, str(path))
        return projector.eval()

    def load_weights(self, state: dict[str, Tensor], source: str) -> None:
        """Take weights under the module's own names.

        Raises:
            ValueError: If they are no finite floating-point numbers, or not those of this projector.
        """
        own = self.state_dict()
        wrong = [key for key in own.keys() | state.keys() if key not in own or key not in state]
        wrong += [key for key in own if key in state and state[key].shape != own[key].shape]
        wrong += [key for key, tensor in state.items() if not (tensor.is_floating_point() and tensor.isfinite().all())]
        if wrong:
            raise ValueError(f"{source!r} holds no projector of these sizes; missing, unknown or damaged: {wrong}.")
        self.load_state_dict(state, assign=True)


def merge_size_of(downsample_ratio: Any) -> int:
    """Return how many rows of patches a Nemotron joins to one.

    Raises:
        ValueError: If it is no whole number.
    """
    is_number = isinstance(downsample_ratio, float | int) and 0 < downsample_ratio <= 1
    merge = 1 / downsample_ratio if is_number else math.nan
    if not is_number or merge != round(merge):
        raise ValueError(f"`downsample_ratio` must be 1, 1/2, 1/3 ..., got {downsample_ratio!r}.")
    return round(merge)
