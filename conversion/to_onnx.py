"""Exports a checkpoint to ONNX with dynamic batch, height and width, and checks it against onnxruntime."""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator
from torch.onnx import ONNXProgram

from modeling_radio import RadioModel
from modeling_radio.conversion.graphs.files import (
    DEFAULT_OPSET,
    export_graph,
    open_graph,
    remove_stale_weights,
    write_graph,
)
from modeling_radio.conversion.graphs.models import FlatEncoder, FlatModel, FlatRadio, GraphSettings, Window
from modeling_radio.conversion.graphs.parity import (
    Parity,
    compare_graph,
    print_parities,
    require_cosine,
    require_difference,
)
from modeling_radio.conversion.onnx_precision import LEAST_COSINE, Precision, convert_precision
from modeling_radio.conversion.opening import check_file_output, open_model
from modeling_radio.core.command_line import Command, one_line_warnings
from modeling_radio.core.files import scratch_folder, write_beside
from modeling_radio.core.settings import require


DEFAULT_TOLERANCE = 1e-4
"""Largest absolute difference to PyTorch in float32: the two runtimes sum in different orders."""

AnyPrecision = Literal["fp32", Precision]

_ENCODER_RULE = "left out with `encoder`, which has global tokens alone, no windows, and takes any size"


def export_onnx(
    model: RadioModel,
    *,
    adaptors: Sequence[str] | None = None,
    window_size: Window = None,
    opset: int = DEFAULT_OPSET,
    encoder: bool = False,
) -> tuple[FlatModel, ONNXProgram]:
    """Return a model as an ONNX program; nothing is written.

    Input `pixel_values`: RGB in [0, 1], any batch; height and width are multiples of the patch, or of patch times
    window in ViTDet mode, since the exported graph has no partial windows at the edges.

    Args:
        model: It is put into evaluation mode.
        adaptors: Adaptors whose outputs are exported; `None` takes the model's own list.
        window_size: Side of the ViTDet windows in tokens; `None` is the model's own default, "global" none.
        opset: ONNX operator set.
        encoder: Export RADIO1D's encoder alone, with the number of global tokens as the input `num_tokens`, from 0 to
            the image's largest; `adaptors` and `window_size` must then be left out. Otherwise that number is the
            configuration's.

    Returns:
        The wrapped model, whose `names` are those of the outputs, and the program.

    Raises:
        ValueError: If an adaptor is unknown, `encoder` is combined with adaptors or windows, or given for another
            network or one whose tokens depend on their number, the window does not fit the largest image, or the
            exporter does not know the operator set.
    """
    for name, value in {"adaptors": adaptors, "window_size": window_size}.items():
        if encoder and value:
            raise ValueError(f"`{name}` must be {_ENCODER_RULE}, got {value!r}.")
    wrapped = FlatEncoder(model) if encoder else FlatRadio(model, adaptors, window_size)
    return wrapped, export_flat(wrapped, opset)


def export_flat(wrapped: FlatModel, opset: int = DEFAULT_OPSET) -> ONNXProgram:
    """Return a wrapped model as an ONNX program of any batch, height and width, unless its size is fixed.

    Raises:
        ValueError: If the exporter does not know the operator set.
    """
    return export_graph(wrapped, wrapped.example_inputs(), wrapped.names, wrapped.dynamic_shapes(), opset)


def save_onnx(
    program: ONNXProgram, path: Path, precision: AnyPrecision = "fp32", metadata: Mapping[str, str] | None = None
) -> None:
    """Write a program of `export_onnx`, in float32 or another precision of `convert_precision`.

    More than 2 GB of weights go to `NAME.xxxxxxxx.data` beside the file.

    Args:
        program: The program.
        path: The file.
        precision: Its precision.
        metadata: Metadata of the file, such as `FlatModel.metadata` returns.
    """
    properties = program.model.metadata_props
    properties.clear()  # the exporter's own
    properties.update(metadata or {})
    if precision == "fp32":
        write_graph(program.model, path)
    else:
        with scratch_folder(path.parent) as scratch:
            write_graph(program.model, scratch / "fp32.onnx")
            convert_precision(scratch / "fp32.onnx", path, precision)


def check_onnx(wrapped: FlatModel, path: Path) -> dict[str, Parity]:
    """Compare an exported file in onnxruntime with the model at several sizes and batches.

    Returns:
        The differences by output name.
    """
    return compare_graph(wrapped, open_graph(path), wrapped.checked_inputs())


class OnnxSettings(GraphSettings):
    """Settings of the export, to a file .onnx.

    Attributes:
        opset: ONNX operator set.
        encoder: Export RADIO1D's encoder alone, with the number of global tokens as a second input.
        precision: "fp16" for GPUs and "int8" for CPUs; inputs and outputs are float32 in any case.
        tolerance: Largest absolute difference accepted for "fp32".
        least_cosine: Smallest mean cosine with PyTorch accepted for "fp16" and "int8"; by default .999 and .995.
    """

    opset: int = Field(DEFAULT_OPSET, ge=1)
    encoder: bool = False
    precision: AnyPrecision = "fp32"
    tolerance: float = Field(DEFAULT_TOLERANCE, ge=0)
    least_cosine: float | None = Field(None, ge=-1, le=1)

    @model_validator(mode="after")
    def _check_encoder(self) -> "OnnxSettings":
        rule = "left out with `head`, whose outputs are those of the task"
        require(not (self.head and self.encoder), "encoder", self.encoder, rule)
        for name in ("adaptors", "window_size", "fixed_size"):
            require(not (self.encoder and getattr(self, name)), name, getattr(self, name), _ENCODER_RULE)
        return self

    def wrap(self) -> FlatModel:
        return FlatEncoder(open_model(self.checkpoint).float()) if self.encoder else super().wrap()


COMMAND = Command(
    "radio export",
    __doc__,
    OnnxSettings,
    positionals=("checkpoint", "output"),
    examples=(
        "radio export my-folder model.onnx",
        "radio export my-classifier classifier.onnx --head",
        "radio export --to web my-folder site",
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    with one_line_warnings(COMMAND.name):
        return COMMAND.run(_run, arguments, extra="export")


def _run(settings: OnnxSettings) -> None:
    check_file_output(settings.output, settings.checkpoint, endings=(".onnx",), overwrite=settings.overwrite)
    wrapped = settings.wrap()
    program = export_flat(wrapped, settings.opset)
    write_beside(settings.output, partial(_save_and_check, wrapped, program, settings))
    remove_stale_weights(settings.output)
    tokens = ", num_tokens an integer from 0 to what an image has" if settings.encoder else ""
    print(f"{settings.output}: pixel_values of any batch, {wrapped.sizes_in_words()}{tokens}")


def _save_and_check(wrapped: FlatModel, program: ONNXProgram, settings: OnnxSettings, path: Path) -> None:
    save_onnx(program, path, settings.precision, wrapped.metadata())
    if not settings.verify:
        return
    parities = check_onnx(wrapped, path)
    print_parities(parities)
    if settings.precision == "fp32":
        require_difference(parities, settings.tolerance)
    else:
        least = settings.least_cosine
        require_cosine(parities, LEAST_COSINE[settings.precision] if least is None else least)


if __name__ == "__main__":
    sys.exit(main())
