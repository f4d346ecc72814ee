"""Compiles a checkpoint ahead of time with AOTInductor: one file that runs without Python, compared with the model."""

import sys
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor
from torch._inductor import aoti_compile_and_package, aoti_load_package
from torch.export import ExportedProgram

from modeling_radio.conversion.graphs.files import require_exporter
from modeling_radio.conversion.graphs.models import FlatModel, open_flat
from modeling_radio.conversion.graphs.parity import OutputParity, compare_graph, print_parities, require_difference
from modeling_radio.conversion.graphs.settings import GraphSettings
from modeling_radio.conversion.opening import check_file_output
from modeling_radio.core.command_line import Command, one_line_warnings
from modeling_radio.core.files import write_file
from modeling_radio.core.interruption import raised_signals


DEFAULT_TOLERANCE = 1e-3
"""Largest absolute difference to PyTorch in float32: fused loops change the order of sums and use faster functions."""


def export_program(wrapped: FlatModel) -> ExportedProgram:
    """Return a wrapped model as a program of any batch, height and width, unless its size is fixed.

    Raises:
        ValueError: If torch is too old.
    """
    require_exporter()
    inputs = wrapped.example_inputs()
    with torch.no_grad():
        return torch.export.export(wrapped, (), inputs, dynamic_shapes=wrapped.dynamic_shapes(), strict=False)


def compile_program(program: ExportedProgram, path: Path) -> None:
    """Compile a program for the device of its weights, and write it as a package.

    Raises:
        ValueError: If there is no compiler for C++, or it fails.
    """
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # from the compiler about its own options
            with raised_signals():  # for the compiler's process
                aoti_compile_and_package(program, package_path=str(path))
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"The package could not be compiled: {str(error)[:300]}. A CPU needs a compiler for C++ such as g++, which "
            "the variable CXX names; a GPU also its CUDA toolkit."
        ) from error


def check_package(wrapped: FlatModel, path: Path) -> dict[str, OutputParity]:
    """Open a package and compare it with the model at several sizes and batches.

    Returns:
        The differences by output name.
    """
    package = aoti_load_package(str(path))

    def run(inputs: Mapping[str, Tensor]) -> list[Tensor]:
        return list(package(**inputs))

    return compare_graph(wrapped, run, wrapped.checked_inputs())


class AotiSettings(GraphSettings):
    """Settings of the compilation, to a file .pt2.

    Attributes:
        tolerance: Largest accepted absolute difference.
    """

    tolerance: float = Field(DEFAULT_TOLERANCE, ge=0)


COMMAND = Command(
    "radio export --to aoti",
    __doc__,
    AotiSettings,
    positionals=("checkpoint", "output"),
    examples=("radio export --to aoti my-folder model.pt2",),
)


@one_line_warnings(COMMAND.name)
def _run(settings: AotiSettings) -> None:
    check_file_output(settings.output, settings.checkpoint, endings=(".pt2",), overwrite=settings.overwrite)
    wrapped = open_flat(settings)
    write_file(settings.output, partial(_compile_and_check, wrapped, settings))
    outputs = ", ".join(wrapped.names)
    print(f"{settings.output}: pixel_values of any batch, {wrapped.sizes_in_words()}; outputs {outputs}")


def _compile_and_check(wrapped: FlatModel, settings: AotiSettings, path: Path) -> None:
    compile_program(export_program(wrapped), path)
    if settings.verify:
        parities = check_package(wrapped, path)
        print_parities(parities)
        require_difference(parities, settings.tolerance)


main = partial(COMMAND.run, _run, extra="train")


if __name__ == "__main__":
    sys.exit(main())
