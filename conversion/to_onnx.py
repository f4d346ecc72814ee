"""Exports a checkpoint to ONNX with dynamic batch, height and width, and checks it against onnxruntime."""

import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.export import Dim
from torch.onnx import ONNXProgram

from conversion.graphs.files import remove_stale_weights, write_graph
from conversion.graphs.parity import Parity, compare, require_cosine, require_difference
from conversion.onnx_precision import LEAST_COSINE, Precision, convert_precision
from conversion.opening import check_file_output, open_model
from foundation.command import one_line_warnings
from foundation.command_line import Command
from foundation.fields import Spelling, read_names
from foundation.files import scratch_folder, write_beside
from foundation.settings import Settings
from modeling_radio import RadioModel
from modeling_radio.eradio_config_radio import trained_window
from modeling_radio.outputs_radio import RadioModelOutput


DEFAULT_OPSET = 20
"""Oldest operator set that has GELU as one operator."""
DEFAULT_TOLERANCE = 1e-4
"""Largest absolute difference to PyTorch in float32: the two runtimes add up in different orders."""

AnyPrecision = Literal["fp32", Precision]


class OnnxRadio(nn.Module):
    """A model whose outputs are a flat tuple: pixels `(batch, channels, height, width)` to the tensors of `names`.

    Attributes:
        names: "summary", "features" and, per adaptor, "NAME_summary" and "NAME_features" as far as it has them.
            Features are token sequences `(batch, tokens, channels)`.
    """

    def __init__(self, model: RadioModel, adaptors: Sequence[str], window_size: int | None) -> None:
        super().__init__()
        self.model = model
        self.adaptors = list(adaptors)
        of_network = "global" if model.config.eradio is None else None
        self.window_size = of_network if window_size is None else window_size
        self.names = ["summary", "features"]
        for adaptor in model.config.adaptor_configs:
            if adaptor.name in self.adaptors:
                parts = {"summary": adaptor.summary_dim, "features": adaptor.feature_dim}
                self.names += [f"{adaptor.name}_{part}" for part, size in parts.items() if size is not None]

    @property
    def example(self) -> tuple[Tensor, ...]:
        """Inputs after the pixels."""
        return ()

    @property
    def checked_sizes(self) -> tuple[tuple[int, int, int], ...]:
        """Batches, rows and columns to check a graph with; rows and columns count the least steps of a side."""
        return (1, 1, 1), (1, 3, 2), (3, 2, 5), (2, 4, 4)

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


class OnnxRadioEncoder(OnnxRadio):
    """RADIO1D's encoder, with a second input: the number of global tokens, an integer without dimensions.

    Attributes:
        names: "global_tokens" `(batch, num_tokens, channels)` and "global_summary".
    """

    def __init__(self, model: RadioModel) -> None:
        super().__init__(model, [], None)
        self.names = ["global_tokens", "global_summary"]

    @property
    def example(self) -> tuple[Tensor, ...]:
        return (torch.tensor(1),)

    @property
    def checked_sizes(self) -> tuple[tuple[int, int, int], ...]:
        return super().checked_sizes[1:]  # an image of one patch has no global token to ask for

    def forward(self, pixel_values: Tensor, num_tokens: Tensor) -> tuple[Tensor, ...]:  # pyrefly: ignore[bad-override]
        output = self.model(pixel_values, num_tokens=num_tokens, decode=False, return_dict=True)
        return output.global_tokens, output.global_summary


def export_onnx(
    model: RadioModel,
    *,
    adaptors: Sequence[str] | None = None,
    window_size: int | None = None,
    opset: int = DEFAULT_OPSET,
    encoder: bool = False,
) -> tuple[OnnxRadio, ONNXProgram]:
    """Return a model as an ONNX program; nothing is written.

    Input `pixel_values`: RGB in [0, 1], any batch; height and width are multiples of the patch, or of patch times
    window in ViTDet mode, since the exported graph has no smaller windows at the edges.

    Args:
        model: Taken in evaluation mode.
        adaptors: Adaptors whose outputs are wanted; `None` takes the model's own list.
        window_size: Side of the ViTDet windows in tokens; `None` is global attention.
        opset: ONNX operator set.
        encoder: RADIO1D's encoder alone, with the number of global tokens as the input `num_tokens`: from 0 to what an
            image has. Without, that number is the configuration's.

    Returns:
        The wrapped model, whose `names` are those of the outputs, and the program.

    Raises:
        ValueError: If an adaptor is unknown, `encoder` is asked for of another network or of one whose tokens depend on
            their number, the window does not fit the largest image, or the exporter does not know
            the operator set.
    """
    names = (model.config.adaptor_names or []) if adaptors is None else adaptors
    for name in names:
        model.config.adaptor(name, argument="adaptors")
    if encoder and (not model.config.num_mergings or model.config.progressive_reduction):
        raise ValueError(
            "`encoder` must be false but for a RADIO1D without `progressive_reduction`, got true. Other networks have "
            "no global tokens, or a graph for each number of them."
        )
    step = size_step(model, window_size)
    largest = model.max_resolution // step
    if largest < 2:
        raise ValueError(f"`window_size` must leave two windows in {model.max_resolution} px, got {window_size}.")
    wrapped = OnnxRadioEncoder(model.eval()) if encoder else OnnxRadio(model.eval(), names, window_size)
    return wrapped, export_wrapped(wrapped, step, opset)


def export_wrapped(wrapped: OnnxRadio, step: int, opset: int = DEFAULT_OPSET) -> ONNXProgram:
    """Return a wrapped model as an ONNX program of any batch, height and width.

    Args:
        wrapped: It is put into evaluation mode.
        step: Number of pixels that height and width are multiples of, at least twice; see `size_step`.
        opset: ONNX operator set.

    Raises:
        ValueError: If the exporter does not know the operator set.
    """
    wrapped.eval()
    model, largest = wrapped.model, wrapped.model.max_resolution // step
    rows, cols = Dim("rows", min=1, max=largest), Dim("cols", min=1, max=largest)
    # Different sizes, none of them 1, so that the tracer takes none for a constant or two for one.
    example = torch.rand(2, model.config.num_channels, 2 * step, min(3, largest) * step, dtype=model.dtype)
    inputs = ["pixel_values", *(["num_tokens"] if wrapped.example else [])]
    shapes = {"pixel_values": {0: Dim("batch", min=1), 2: step * rows, 3: step * cols}, "num_tokens": {}}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's notes about its own rewriting
        program = torch.onnx.export(
            wrapped,
            (example, *wrapped.example),
            dynamo=True,
            opset_version=opset,
            input_names=inputs,
            output_names=wrapped.names,
            dynamic_shapes={name: shapes[name] for name in inputs},
            verbose=False,
        )
    assert program is not None  # the old exporter alone returns nothing
    if program.model.opset_imports[""] != opset:  # the exporter only warns
        raise ValueError(
            f"`opset` must be one that PyTorch can export to, got {opset}: it wrote {program.model.opset_imports['']}."
        )
    return program


def save_onnx(program: ONNXProgram, path: Path, precision: AnyPrecision = "fp32") -> None:
    """Write what `export_onnx` returned, in float32 or another precision of `convert_precision`.

    More than 2 GB of weights go to `NAME.xxxxxxxx.data` beside the file.
    """
    if precision == "fp32":
        write_graph(program.model, path)
    else:
        with scratch_folder(path.parent) as scratch:
            write_graph(program.model, scratch / "fp32.onnx")
            convert_precision(scratch / "fp32.onnx", path, precision)


def size_step(model: RadioModel, window_size: int | None) -> int:
    """Return the number of pixels that height and width of an exported model are multiples of.

    The graph of an E-RADIO stretches no map to whole windows, so that they must fit the coarsest level.
    """
    arguments = model.config.eradio
    if arguments is None:
        return model.patch_size * (window_size or 1)
    trained = math.lcm(*(trained_window(arguments, level) for level in (2, 3)))
    return model.config.resolution_step * (window_size or model.config.vitdet_window_size or trained)


def check_onnx(wrapped: OnnxRadio, path: Path) -> dict[str, Parity]:
    """Run an exported file with onnxruntime at several sizes and batches, beside the model itself.

    Returns:
        Per output name, how far the two are apart.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    parities = dict.fromkeys(wrapped.names, Parity())
    for images in _sample_images(wrapped):
        inputs = (images, *wrapped.example)
        with torch.no_grad():
            expected = wrapped(*inputs)
        outputs = session.run(wrapped.names, {name: each.numpy() for name, each in zip(names, inputs, strict=True)})
        for name, output, tensor in zip(wrapped.names, outputs, expected, strict=True):
            parities[name] += compare(torch.from_numpy(output), tensor)
    return parities


def _sample_images(wrapped: OnnxRadio) -> Iterator[Tensor]:
    model = wrapped.model
    step = size_step(model, wrapped.window_size if isinstance(wrapped.window_size, int) else None)
    largest = model.max_resolution // step
    generator = torch.Generator().manual_seed(0)
    for batch_size, rows, cols in wrapped.checked_sizes:
        height, width = (min(count, largest) * step for count in (rows, cols))
        yield torch.rand(batch_size, model.config.num_channels, height, width, generator=generator, dtype=model.dtype)


class OnnxSettings(Settings):
    """What shall be exported.

    Attributes:
        checkpoint: Folder with config.json and weights.
        output: File to write, .onnx.
        adaptors: Adaptors to export; by default all that the checkpoint's `adaptor_names` lists.
        window_size: ViTDet window in tokens; height and width must then be multiples of patch x window.
        opset: ONNX operator set.
        encoder: Export RADIO1D's encoder alone, with the number of global tokens as a second input.
        precision: "fp16" for GPUs and "int8" for CPUs; inputs and outputs are float32 in any case.
        verify: Compare with onnxruntime at several sizes.
        tolerance: Largest absolute difference that is accepted of "fp32".
        least_cosine: Smallest mean cosine with PyTorch that is accepted of "fp16" and "int8"; by default .999 and .995.
        overwrite: Replace the output if it exists.
    """

    checkpoint: Path
    output: Path
    adaptors: Annotated[list[str] | None, Spelling(read_names, "A,B|all|none")] = None
    window_size: int | None = Field(None, ge=1)
    opset: int = Field(DEFAULT_OPSET, ge=1)
    encoder: bool = False
    precision: AnyPrecision = "fp32"
    verify: bool = True
    tolerance: float = Field(DEFAULT_TOLERANCE, ge=0)
    least_cosine: float | None = Field(None, ge=-1, le=1)
    overwrite: bool = False


COMMAND = Command("conversion.to_onnx", __doc__, OnnxSettings, positionals=("checkpoint", "output"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    with one_line_warnings(COMMAND.name):
        return COMMAND.run(_run, arguments, extra="export")


def _run(settings: OnnxSettings) -> None:
    check_file_output(settings.output, settings.checkpoint, endings=(".onnx",), overwrite=settings.overwrite)
    model = open_model(settings.checkpoint).float()
    window_size = settings.window_size
    exported = export_onnx(
        model,
        adaptors=settings.adaptors,
        window_size=window_size,
        opset=settings.opset,
        encoder=settings.encoder,
    )
    write_beside(settings.output, partial(_save_and_check, *exported, settings))
    remove_stale_weights(settings.output)
    step = size_step(model, window_size)
    tokens = ", num_tokens an integer from 0 to what an image has" if settings.encoder else ""
    print(f"{settings.output}: pixel_values of any batch, height and width multiples of {step} px{tokens}")


def _save_and_check(wrapped: OnnxRadio, program: ONNXProgram, settings: OnnxSettings, path: Path) -> None:
    save_onnx(program, path, settings.precision)
    if not settings.verify:
        return
    parities = check_onnx(wrapped, path)
    print(f"{'output':<40}{'largest difference':>20}{'mean cosine':>14}{'lowest':>10}")
    for name, parity in parities.items():
        print(f"{name:<40}{parity.largest_difference:>20.2e}{parity.mean_cosine:>14.6f}{parity.lowest_cosine:>10.4f}")
    if settings.precision == "fp32":
        require_difference(parities, settings.tolerance)
    else:
        least = settings.least_cosine
        require_cosine(parities, LEAST_COSINE[settings.precision] if least is None else least)


if __name__ == "__main__":
    sys.exit(main())
