"""Exports a checkpoint to ONNX with dynamic batch, height and width, and checks it against onnxruntime."""

import sys
from functools import partial
from pathlib import Path

from modeling_radio.conversion.graphs.settings import OnnxSettings
from modeling_radio.core.command_line import Command, one_line_warnings
from modeling_radio.core.files import write_beside


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


@one_line_warnings(COMMAND.name)
def _run(settings: OnnxSettings) -> None:
    # These import torch, for which `--help` need not wait.
    from modeling_radio.conversion.graphs.files import remove_stale_weights
    from modeling_radio.conversion.graphs.models import FlatEncoder, open_flat
    from modeling_radio.conversion.graphs.parity import print_parities, require_cosine, require_difference
    from modeling_radio.conversion.onnx_precision import LEAST_COSINE
    from modeling_radio.conversion.opening import check_file_output
    from modeling_radio.conversion.to_onnx import check_onnx, export_flat, save_onnx
    from modeling_radio.core.opening import open_for_export

    check_file_output(settings.output, settings.checkpoint, endings=(".onnx",), overwrite=settings.overwrite)
    wrapped = (
        FlatEncoder(open_for_export(settings.checkpoint).backbone.float()) if settings.encoder else open_flat(settings)
    )
    program = export_flat(wrapped, settings.opset)

    def save_and_check(path: Path) -> None:
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

    write_beside(settings.output, save_and_check)
    remove_stale_weights(settings.output)
    tokens = ", num_tokens an integer from 0 to what an image has" if settings.encoder else ""
    print(f"{settings.output}: pixel_values of any batch, {wrapped.sizes_in_words()}{tokens}")


main = partial(COMMAND.run, _run, extra="export")


if __name__ == "__main__":
    sys.exit(main())
