"""Settings of the export to ONNX."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from modeling_radio.core.ids import ModelFolder
from modeling_radio.core.settings import Settings, Spelling, read_names, read_yaml, require


DEFAULT_OPSET = 20
"""Oldest ONNX operator set that has GELU as one operator."""
DEFAULT_TOLERANCE = 1e-4
"""Largest absolute difference to PyTorch in float32: the two runtimes sum in different orders."""

Window = Annotated[int, Field(ge=1)] | Literal["global"] | None
"""Side of the ViTDet windows of a graph in tokens; None is the model's own default."""

GraphPrecision = Literal["fp16", "int8"]
AnyPrecision = Literal["fp32", GraphPrecision]

ENCODER_RULE = "left out with `encoder`, which has global tokens alone, no windows, and takes any size"


class OnnxSettings(Settings):
    """Settings of the export, to a file .onnx.

    Attributes:
        checkpoint: Folder with config.json and weights, or Hub id.
        output: File to write.
        adaptors: Adaptors whose outputs are exported; by default those of the checkpoint's `adaptor_names`.
        window_size: ViTDet window in tokens, or "global"; by default the model's own. Height and width must be
            multiples of patch x window.
        head: Export the model of a task with its head, in place of features.
        fixed_size: The only height and width in pixels of the graph; detectors need it.
        verify: Compare with the model at several sizes.
        overwrite: Replace the output if it exists.
        opset: ONNX operator set.
        encoder: Export RADIO1D's encoder alone, with the number of global tokens as a second input.
        precision: "fp16" for GPUs and "int8" for CPUs; inputs and outputs are float32 in any case.
        tolerance: Largest absolute difference accepted for "fp32".
        least_cosine: Smallest mean cosine with PyTorch accepted for "fp16" and "int8"; by default .999 and .995.
    """

    checkpoint: ModelFolder
    output: Path
    adaptors: Annotated[list[str] | None, Spelling(read_names, "A,B|all|none")] = None
    window_size: Annotated[Window, Spelling(read_yaml, "TOKENS|global")] = None
    head: bool = False
    fixed_size: list[Annotated[int, Field(gt=0)]] | None = Field(None, min_length=2, max_length=2)
    verify: bool = True
    overwrite: bool = False
    opset: int = Field(DEFAULT_OPSET, ge=1)
    encoder: bool = False
    precision: AnyPrecision = "fp32"
    tolerance: float = Field(DEFAULT_TOLERANCE, ge=0)
    least_cosine: float | None = Field(None, ge=-1, le=1)

    @model_validator(mode="after")
    def _check_parts(self) -> "OnnxSettings":
        rule = "left out with `head`, whose outputs are those of the task"
        for name in ("adaptors", "encoder"):
            require(not (self.head and getattr(self, name)), name, getattr(self, name), rule)
        for name in ("adaptors", "window_size", "fixed_size"):
            require(not (self.encoder and getattr(self, name)), name, getattr(self, name), ENCODER_RULE)
        return self
