"""A model as an ONNX program with dynamic batch, height and width; writing it, and checking it against onnxruntime."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch.onnx import ONNXProgram

from modeling_radio import RadioModel
from modeling_radio.conversion.graphs.files import export_graph, open_graph, write_graph
from modeling_radio.conversion.graphs.models import FlatEncoder, FlatModel, FlatRadio
from modeling_radio.conversion.graphs.parity import OutputParity, compare_graph
from modeling_radio.conversion.graphs.settings import DEFAULT_OPSET, ENCODER_RULE, AnyPrecision, Window
from modeling_radio.conversion.onnx_precision import convert_precision
from modeling_radio.core.files import scratch_folder


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
            raise ValueError(f"`{name}` must be {ENCODER_RULE}, got {value!r}.")
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


def check_onnx(wrapped: FlatModel, path: Path) -> dict[str, OutputParity]:
    """Compare an exported file in onnxruntime with the model at several sizes and batches.

    Returns:
        The differences by output name.
    """
    return compare_graph(wrapped, open_graph(path), wrapped.checked_inputs())
