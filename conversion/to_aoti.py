"""Compiles a checkpoint ahead of time with AOTInductor: one file that runs without Python, compared with the model."""

import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch._inductor import aoti_compile_and_package, aoti_load_package
from torch.export import ExportedProgram

from conversion.graphs.models import FlatModel, FlatRadio, FlatTask
from conversion.graphs.parity import Parity, compare_graph, print_parities, require_difference
from conversion.opening import check_file_output, open_model, open_task_model
from foundation.command import one_line_warnings
from foundation.command_line import Command
from foundation.fields import Spelling, read_names
from foundation.files import write_file
from foundation.settings import Settings, require


DEFAULT_TOLERANCE = 1e-3
"""Largest absolute difference to PyTorch in float32: fused loops add up in another order, and take faster functions."""


def export_program(wrapped: FlatModel) -> ExportedProgram:
    """Return a wrapped model as a program of any batch, height and width, unless its size is fixed."""
    inputs = wrapped.example_inputs()
    with torch.no_grad():
        return torch.export.export(wrapped, (), inputs, dynamic_shapes=wrapped.dynamic_shapes())


def compile_program(program: ExportedProgram, path: Path) -> None:
    """Compile a program for the device that its weights are on, and write it as a package.

    Raises:
        ValueError: If there is no compiler for C++ here, or it fails.
    """
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of the compiler about its own options
            aoti_compile_and_package(program, package_path=str(path))
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"The package could not be compiled: {str(error)[:300]}. A CPU needs a compiler for C++ such as g++, which "
            "the variable CXX names; a GPU also its CUDA toolkit."
        ) from error


def check_package(wrapped: FlatModel, path: Path) -> dict[str, Parity]:
    """Open a package and run it at several sizes and batches, beside the model itself.

    Returns:
        Per output name, how far the two are apart.
    """
    package = aoti_load_package(str(path))

    def run(inputs: Mapping[str, Tensor]) -> Sequence[Tensor]:
        return package(**inputs)

    return compare_graph(wrapped, run)


class AotiSettings(Settings):
    """What shall be compiled.

    Attributes:
        checkpoint: Folder with config.json and weights.
        output: File to write, .pt2.
        adaptors: Adaptors to compile; by default all that the checkpoint's `adaptor_names` lists.
        window_size: ViTDet window in tokens; height and width must then be multiples of patch x window.
        head: Compile the model of a task with its head, in place of features.
        fixed_size: Height and width in pixels where the package shall take no others; detectors need it.
        verify: Compare with the model at several sizes.
        tolerance: Largest absolute difference that is accepted.
        overwrite: Replace the output if it exists.
    """

    checkpoint: Path
    output: Path
    adaptors: Annotated[list[str] | None, Spelling(read_names, "A,B|all|none")] = None
    window_size: int | None = Field(None, ge=1)
    head: bool = False
    fixed_size: list[Annotated[int, Field(gt=0)]] | None = Field(None, min_length=2, max_length=2)
    verify: bool = True
    tolerance: float = Field(DEFAULT_TOLERANCE, ge=0)
    overwrite: bool = False

    @model_validator(mode="after")
    def _check_head(self) -> "AotiSettings":
        rule = "left out with `head`, whose outputs are those of the task"
        require(not (self.head and self.adaptors), "adaptors", self.adaptors, rule)
        return self


COMMAND = Command("conversion.to_aoti", __doc__, AotiSettings, positionals=("checkpoint", "output"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    with one_line_warnings(COMMAND.name):
        return COMMAND.run(_run, arguments, extra="commands")


def _run(settings: AotiSettings) -> None:
    check_file_output(settings.output, settings.checkpoint, endings=(".pt2",), overwrite=settings.overwrite)
    wrapped = _open(settings)
    write_file(settings.output, partial(_compile_and_check, wrapped, settings))
    outputs = ", ".join(wrapped.names)
    print(f"{settings.output}: pixel_values of any batch, {wrapped.sizes_in_words()}; outputs {outputs}")


def _open(settings: AotiSettings) -> FlatModel:
    if settings.head:
        return FlatTask(open_task_model(settings.checkpoint).float(), settings.window_size, settings.fixed_size)
    model = open_model(settings.checkpoint).float()
    names = (model.config.adaptor_names or []) if settings.adaptors is None else settings.adaptors
    return FlatRadio(model, names, settings.window_size, settings.fixed_size)


def _compile_and_check(wrapped: FlatModel, settings: AotiSettings, path: Path) -> None:
    compile_program(export_program(wrapped), path)
    if settings.verify:
        parities = check_package(wrapped, path)
        print_parities(parities)
        require_difference(parities, settings.tolerance)


if __name__ == "__main__":
    sys.exit(main())
