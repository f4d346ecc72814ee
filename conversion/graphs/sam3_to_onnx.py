"""Exports SAM3 on RADIO to ONNX: image encoder, text encoder and detector, each with a dynamic batch and checked.

The image encoder runs once for an image, the text encoder once for a text, and the detector for each pair.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.export import Dim
from transformers import Sam3Model
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

from modeling_radio.conversion.graphs.files import export_graph, open_graph, write_graph
from modeling_radio.conversion.graphs.parity import compare_graph, print_parities, require_difference
from modeling_radio.conversion.graphs.settings import DEFAULT_TOLERANCE
from modeling_radio.core.command_line import Command, one_line_warnings
from modeling_radio.core.files import FolderKind, check_output, write_folder
from modeling_radio.core.ids import ModelFolder
from modeling_radio.core.opening import read_config
from modeling_radio.core.settings import Settings
from modeling_radio.sam3_radio import RadioSam3Model, RadioSam3Trunk


CHECKED_BATCHES = (1, 3)


class Sam3Part(nn.Module):
    """A part of SAM3 as a graph.

    Attributes:
        inputs: Names of the inputs.
        names: Names of the outputs.
    """

    inputs: tuple[str, ...]
    names: tuple[str, ...]

    def __init__(self, model: Sam3Model) -> None:
        super().__init__()
        self.model = model.eval()
        num_levels = len(cast(Any, model.config.vision_config).scale_factors) - 1
        self.levels = tuple(f"fpn_{level}" for level in range(num_levels))


class ImageEncoder(Sam3Part):
    """Images `(batch, 3, side, side)` in [-1, 1], as SAM3's processor makes them, to the inputs of the detector.

    Attributes:
        names: Maps "fpn_0", "fpn_1", ..., the finest first, and "position", the position encoding of the last.
    """

    def __init__(self, model: Sam3Model) -> None:
        super().__init__(model)
        self.inputs, self.names = ("pixel_values",), (*self.levels, "position")

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        output = self.model.get_vision_features(pixel_values)
        # As in `Sam3Model.forward`, the coarsest level is not used.
        return *output.fpn_hidden_states[:-1], output.fpn_position_encoding[-2]


class TextEncoder(Sam3Part):
    """Tokens and their mask, both `(batch, length)`, to "text_embeds" `(batch, length, channels)`."""

    inputs, names = ("input_ids", "attention_mask"), ("text_embeds",)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        return (self.model.get_text_features(input_ids=input_ids, attention_mask=attention_mask).pooler_output,)


class Detector(Sam3Part):
    """Outputs of both encoders and the texts' mask to objects.

    Attributes:
        names: "pred_masks" `(batch, queries, rows, cols)`, "pred_boxes" `(batch, queries, 4)` as corners in [0, 1],
            "pred_logits" `(batch, queries)`, "presence_logits" `(batch, 1)`, "semantic_seg" `(batch, 1, rows, cols)`.
    """

    names = ("pred_masks", "pred_boxes", "pred_logits", "presence_logits", "semantic_seg")

    def __init__(self, model: Sam3Model) -> None:
        super().__init__(model)
        self.inputs = (*self.levels, "position", "text_embeds", "attention_mask")

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        *maps, position, text_embeds, attention_mask = given
        vision = Sam3VisionEncoderOutput(
            fpn_hidden_states=(*maps, maps[-1]), fpn_position_encoding=(position,) * (len(maps) + 1)
        )
        text = BaseModelOutputWithPooling(pooler_output=text_embeds)
        with _sizes_as_numbers(self.model):
            output = self.model(vision_embeds=vision, text_embeds=text, attention_mask=attention_mask)
        return tuple(output[name] for name in self.names)


class _SizesAsNumbers(nn.Module):
    """SAM3's encoder, with the sizes of its maps as numbers: a tracer would leave those in a tensor open."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, vision_features: list[Tensor], **others: Any) -> Any:
        output = self.encoder(vision_features=vision_features, **others)
        output.spatial_shapes = np.array([tuple(each.shape[-2:]) for each in vision_features], dtype=object)
        return output


@contextmanager
def _sizes_as_numbers(model: Sam3Model) -> Iterator[None]:
    encoder = model.detr_encoder
    model.detr_encoder = _SizesAsNumbers(encoder)  # pyrefly: ignore[bad-assignment]
    try:
        yield
    finally:
        model.detr_encoder = encoder


PARTS: dict[str, type[Sam3Part]] = {"image_encoder": ImageEncoder, "text_encoder": TextEncoder, "detector": Detector}
"""Parts by the name of their file."""
EXPORT = FolderKind(
    "exports of SAM3",
    tuple(f"{name}.onnx*" for name in PARTS),
    lambda folder: all((folder / f"{name}.onnx").is_file() for name in PARTS),
)


def _image_side(model: Sam3Model) -> int:
    """Return the side of the images in pixels."""
    return cast(Any, model.vision_encoder.config.backbone_config).image_size


def example_inputs(model: Sam3Model, batch_size: int) -> dict[str, dict[str, Tensor]]:
    """Return random inputs by part and name; those of the detector come from the two encoders."""
    generator = torch.Generator().manual_seed(0)
    side = _image_side(model)
    text = cast(Any, model.config.text_config)
    shape = (batch_size, text.max_position_embeddings)
    ids = torch.randint(4, text.vocab_size, shape, generator=generator)
    mask = torch.ones(shape, dtype=torch.long)
    mask[:, shape[1] // 2 :] = 0  # texts are padded
    given = {
        "image_encoder": {"pixel_values": torch.rand(batch_size, 3, side, side, generator=generator) * 2 - 1},
        "text_encoder": {"input_ids": ids, "attention_mask": mask},
    }
    found: dict[str, Tensor] = {"attention_mask": mask}
    for name, inputs in given.items():
        part = PARTS[name](model)
        with torch.no_grad():
            found |= dict(zip(part.names, part(**inputs), strict=True))
    return given | {"detector": {name: found[name] for name in Detector(model).inputs}}


def export_part(part: Sam3Part, inputs: Mapping[str, Tensor], path: Path) -> None:
    """Write one part as an ONNX file with an open batch."""
    batch = Dim("batch", min=1)
    open_batches = tuple({0: batch} for _ in inputs)
    # The detector takes any number of maps: all of its inputs are one argument to the tracer.
    shapes = (open_batches,) if isinstance(part, Detector) else open_batches
    named = dict(zip(part.inputs, inputs.values(), strict=True))
    write_graph(export_graph(part, named, part.names, shapes).model, path)


class Sam3Settings(Settings):
    """Settings of the export.

    Attributes:
        checkpoint: Folder that `save_attached` wrote.
        output: Folder to write: image_encoder.onnx, text_encoder.onnx and detector.onnx.
        tolerance: Largest accepted absolute difference.
        overwrite: Replace the output if it exists.
    """

    checkpoint: ModelFolder
    output: Path
    tolerance: float = Field(DEFAULT_TOLERANCE, ge=0)
    overwrite: bool = False


COMMAND = Command(
    "radio export --to sam3",
    __doc__,
    Sam3Settings,
    positionals=("checkpoint", "output"),
    examples=("radio export --to sam3 my-sam3 sam3-onnx",),
)


@one_line_warnings(COMMAND.name)
def _run(settings: Sam3Settings) -> None:
    check_output(settings.output, overwrite=settings.overwrite, inputs=[settings.checkpoint], kind=EXPORT)
    model = open_sam3(settings.checkpoint)
    write_folder(settings.output, partial(_write_parts, model, settings.tolerance), overwrite=settings.overwrite)
    side = _image_side(model)
    print(f"{settings.output}: images of {side} x {side} px, any batch; the detector takes pairs of image and text")


def open_sam3(checkpoint: Path) -> Sam3Model:
    """Open SAM3 on RADIO in float32.

    Raises:
        ValueError: If the folder holds another model.
    """
    kind = read_config(checkpoint).get("architectures")
    if kind not in (["Sam3Model"], [RadioSam3Model.__name__]):
        raise ValueError(
            f"`checkpoint` must be a folder that `save_attached` wrote, got {str(checkpoint)!r} with the class {kind}."
        )
    model = RadioSam3Model.from_pretrained(checkpoint).float().eval()
    if not isinstance(model.vision_encoder.backbone, RadioSam3Trunk):
        raise ValueError(f"`checkpoint` must run on RADIO, got {str(checkpoint)!r} with a trunk of its own.")
    return model


def _write_parts(model: Sam3Model, tolerance: float, folder: Path) -> None:
    inputs = example_inputs(model, 2)
    checked = [example_inputs(model, batch_size) for batch_size in CHECKED_BATCHES]
    for name, part_class in PARTS.items():
        part, path = part_class(model), folder / f"{name}.onnx"
        export_part(part, inputs[name], path)
        parities = compare_graph(part, open_graph(path), [each[name] for each in checked])
        print(name)
        print_parities(parities)
        require_difference(parities, tolerance)


main = partial(COMMAND.run, _run, extra="export")


if __name__ == "__main__":
    sys.exit(main())
