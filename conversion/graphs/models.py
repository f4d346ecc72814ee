"""Models whose outputs are a flat tuple of named tensors, as graphs need them."""

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers.utils import ModelOutput

from modeling_radio import RadioModel
from modeling_radio.checks_radio import own_names
from modeling_radio.configuration_radio import RadioConfig
from modeling_radio.conversion.graphs.settings import OnnxSettings, Window
from modeling_radio.core.opening import open_for_export, require_head
from modeling_radio.detection_radio import RadioDetectionModel
from modeling_radio.eradio_radio import trained_window
from modeling_radio.heads_radio import RadioTaskModel
from modeling_radio.outputs_radio import RadioModelOutput
from modeling_radio.tasks_radio import FEATURE_EXTRACTION, task_of


MAX_BATCH = 2**31 - 1
"""Torch 2.6 and 2.7 treat a batch without an upper bound as a constant."""

UNEXPORTED = {"loss", "last_hidden_state"}
"""Tensors in the output of a task model that are not its results."""


class FlatModel(nn.Module):
    """A model whose outputs are a flat tuple: pixels `(batch, channels, height, width)` to the tensors of `names`.

    Args:
        model: It is put into evaluation mode.
        window_size: Side of the ViTDet windows in tokens; `None` is the model's own default, "global" none.
        fixed_size: The only height and width in pixels of the graph; `None` leaves them open.

    Attributes:
        names: Names of the outputs.
        step: Height and width are multiples of this number of pixels.

    Raises:
        ValueError: If the window does not fit the largest image twice, or the model does not take the fixed size.
    """

    names: list[str]

    def __init__(self, model: Any, window_size: Window = None, fixed_size: Sequence[int] | None = None) -> None:
        super().__init__()
        self.model = model.eval()
        if window_size is None and self.config.eradio is None:
            window_size = (self.config.vitdet_window_size if self.config.has_windowed_blocks else None) or "global"
        self.window_size = window_size
        self.step, self.fixed_size = size_step(self.config, window_size), fixed_size
        if self.config.largest_side // self.step < 2:
            raise ValueError(
                f"`window_size` must leave two windows in {self.config.largest_side} px, got {window_size}."
            )
        if fixed_size is not None:
            self.config.check_resolution(*fixed_size, argument="fixed_size")
        self.eval()

    @property
    def config(self) -> RadioConfig:
        """The model's configuration."""
        return self.model.config

    @property
    def example(self) -> dict[str, Tensor]:
        """Inputs after the pixels, by name."""
        return {}

    @property
    def checked_sizes(self) -> tuple[tuple[int, int, int], ...]:
        """Batches, rows and columns of the images that check a graph; rows and columns in steps."""
        return (1, 1, 1), (1, 3, 2), (3, 2, 5), (2, 4, 4)

    def example_inputs(self) -> dict[str, Tensor]:
        """Return inputs to trace with, by name.

        The sizes differ and none is 1, so that a tracer takes none for a constant and no two for the same.
        """
        largest = self.config.largest_side // self.step
        size = self.fixed_size or (2 * self.step, min(3, largest) * self.step)
        return {"pixel_values": self._images(2, *size), **self.example}

    def dynamic_shapes(self) -> dict[str, dict[int, Any]]:
        """Return the open dimensions of the inputs, as for `torch.export`."""
        largest = self.config.largest_side // self.step
        rows, cols = Dim("rows", min=1, max=largest), Dim("cols", min=1, max=largest)
        sides = {2: self.step * rows, 3: self.step * cols} if self.fixed_size is None else {}
        return {"pixel_values": {0: Dim("batch", min=1, max=MAX_BATCH), **sides}, **{name: {} for name in self.example}}

    def checked_inputs(self) -> Iterator[dict[str, Tensor]]:
        """Yield inputs to check a graph with, by name."""
        largest = self.config.largest_side // self.step
        for batch_size, rows, cols in self.checked_sizes:
            size = self.fixed_size or tuple(min(count, largest) * self.step for count in (rows, cols))
            yield {"pixel_values": self._images(batch_size, *size), **self.example}

    def metadata(self) -> dict[str, str]:
        """Return what a program must know to use the graph alone, each value as JSON.

        `task`, a pipeline of transformers; `input`, the colors and the range of the pixels; `patch_size`; `size_step`,
        of which height and width are multiples; `largest_size`, in pixels; `preferred_size`, height and width;
        `fixed_size` where the graph has one; `id2label` where the outputs are classes.
        """
        config = self.config
        values = {
            "task": FEATURE_EXTRACTION,
            "input": {"colors": "RGB", "pixel_range": [0, 1]},
            "patch_size": config.patch_size,
            "size_step": self.step,
            "largest_size": config.largest_side // self.step * self.step,
            "preferred_size": list(config.preferred_resolution),
            **({} if self.fixed_size is None else {"fixed_size": list(self.fixed_size)}),
            **self._output_facts(),
        }
        return {name: json.dumps(value) for name, value in values.items()}

    def _output_facts(self) -> dict[str, Any]:
        """Return the entries of the metadata about the outputs."""
        return {}

    def sizes_in_words(self) -> str:
        """Return the heights and widths of the graph in words."""
        if self.fixed_size is None:
            return f"height and width multiples of {self.step} px"
        return "{} x {} px".format(*self.fixed_size)

    def _images(self, batch_size: int, height: int, width: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        shape = (batch_size, self.config.num_channels, height, width)
        return torch.rand(shape, generator=generator, dtype=self.model.dtype)


class FlatRadio(FlatModel):
    """A RADIO model.

    Args:
        model: The model.
        adaptors: Adaptors whose outputs are exported; `None` takes the model's own list.
        window_size: See `FlatModel`.
        fixed_size: See `FlatModel`.

    Attributes:
        names: "summary", "features" and, for each adaptor, those of "NAME_summary" and "NAME_features" that it has.
            Features are token sequences `(batch, tokens, channels)`.
    """

    def __init__(
        self,
        model: RadioModel,
        adaptors: Sequence[str] | None = None,
        window_size: Window = None,
        fixed_size: Sequence[int] | None = None,
    ) -> None:
        super().__init__(model, window_size, fixed_size)
        given = (model.config.adaptor_names or []) if adaptors is None else adaptors
        self.adaptors = own_names("adaptors", given, model.config.all_adaptor_names)
        for name in self.adaptors:
            model.config.adaptor(name, argument="adaptors")
        self.names = ["summary", "features"]
        for adaptor in model.config.adaptor_configs:
            if adaptor.name in self.adaptors:
                parts = {"summary": adaptor.summary_dim, "features": adaptor.feature_dim}
                self.names += [f"{adaptor.name}_{part}" for part, size in parts.items() if size is not None]

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        output = self.model(pixel_values, window_size=self.window_size, adaptor_names=self.adaptors, return_dict=True)
        tensors = self.read(output)
        return tuple(tensors[name] for name in self.names)

    def read(self, output: RadioModelOutput) -> dict[str, Tensor]:
        """Return the tensors of an output by name."""
        tensors: dict[str, Any] = {"summary": output.summary, "features": output.features}
        for name, adaptor in (output.adaptors or {}).items():
            tensors |= {f"{name}_summary": adaptor.summary, f"{name}_features": adaptor.features}
        return tensors


class FlatEncoder(FlatModel):
    """RADIO1D's encoder, with a second input: the number of global tokens, an integer without dimensions.

    Attributes:
        names: "global_tokens" `(batch, num_tokens, channels)` and "global_summary".

    Raises:
        ValueError: If the model is another network, or one whose tokens depend on their number.
    """

    def __init__(self, model: RadioModel) -> None:
        if not model.config.num_mergings or model.config.progressive_reduction:
            raise ValueError(
                "`encoder` must be false but for a RADIO1D without `progressive_reduction`, got true. Other networks "
                "have no global tokens, or a graph for each number of them."
            )
        super().__init__(model)
        self.names = ["global_tokens", "global_summary"]

    @property
    def example(self) -> dict[str, Tensor]:
        return {"num_tokens": torch.tensor(1)}

    @property
    def checked_sizes(self) -> tuple[tuple[int, int, int], ...]:
        return super().checked_sizes[1:]  # an image of one patch has no global tokens

    def forward(self, pixel_values: Tensor, num_tokens: Tensor) -> tuple[Tensor, ...]:
        output = self.model(pixel_values, num_tokens=num_tokens, decode=False, return_dict=True)
        return output.global_tokens, output.global_summary


class FlatTask(FlatModel):
    """A task model with its head.

    Attributes:
        names: Names of its outputs: "logits" of classifiers and segmenters, "predicted_depth", and "logits",
            "pred_boxes" and "pred_masks" of detectors.

    Raises:
        ValueError: If it is a detector without a fixed size.
    """

    def __init__(
        self, model: RadioTaskModel, window_size: Window = None, fixed_size: Sequence[int] | None = None
    ) -> None:
        is_detector = isinstance(model, RadioDetectionModel)
        super().__init__(model, "global" if is_detector and window_size is None else window_size, fixed_size)
        if is_detector and fixed_size is None:
            raise ValueError(
                "`fixed_size` must be given for a detector, such as 512,512: its graph has a grid of proposals for one "
                "size of images."
            )
        if is_detector and window_size is None:
            self.window_size = None  # that of its tuning
        with torch.no_grad():
            output = self._run(self.example_inputs()["pixel_values"])
        self.names = [name for name, value in output.items() if isinstance(value, Tensor) and name not in UNEXPORTED]

    def _output_facts(self) -> dict[str, Any]:
        task = task_of([type(self.model).__name__])
        assert task is not None  # `require_head` returns no others
        has_classes = task.has_classes and self.config.problem_type != "regression"
        return {"task": task.pipeline, **({"id2label": self.config.id2label} if has_classes else {})}

    def _run(self, pixel_values: Tensor) -> ModelOutput:
        return self.model(pixel_values=pixel_values, window_size=self.window_size, return_dict=True)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        output = self._run(pixel_values)
        return tuple(output[name] for name in self.names)


def size_step(config: RadioConfig, window_size: Window) -> int:
    """Return the pixels of which height and width of an exported model are multiples.

    The graph of an E-RADIO does not pad maps to whole windows: these must fit the coarsest level.
    """
    arguments, window_size = config.eradio, None if window_size == "global" else window_size
    if arguments is None:
        return config.resolution_step * (window_size or 1)
    trained = math.lcm(*(trained_window(arguments, level) for level in (2, 3)))
    return config.resolution_step * (window_size or config.vitdet_window_size or trained)


def open_flat(settings: OnnxSettings) -> FlatModel:
    """Open the checkpoint of an export in float32, with a flat tuple of outputs.

    Raises:
        ValueError: As `open_for_export`, `require_head` and the wrapping classes.
    """
    if settings.head:
        tuned = require_head(open_for_export(settings.checkpoint, as_backbone=False))
        return FlatTask(tuned.float(), settings.window_size, settings.fixed_size)
    model = open_for_export(settings.checkpoint, adaptors=settings.adaptors or ()).backbone.float()
    return FlatRadio(model, settings.adaptors, settings.window_size, settings.fixed_size)
