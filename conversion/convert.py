"""Converts NVIDIA's RADIO checkpoints (.pth.tar file, Hub folder or Hub name) to a folder that AutoModel opens.

Of a Nemotron, a language model with a RADIO, it takes the vision tower.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from modeling_radio.core.command_line import Command, one_line_warnings
from modeling_radio.core.files import check_output, write_folder
from modeling_radio.core.ids import ModelId
from modeling_radio.core.settings import Settings, SettingsError, Spelling, read_names


DEFAULT_TOLERANCE = 1e-5
"""Largest absolute difference to stored float32 outputs: what a faithful port reaches in float32."""


class ConvertSettings(Settings):
    """Settings of the conversion.

    Attributes:
        source: A .pth.tar file, a folder with config.json, or a name on the Hub; adaptors that NVIDIA's folder lacks
            are taken from the .pth.tar beside it. Of a Nemotron only the files with its vision tower are read.
        output: Folder to write.
        adaptors: Adaptors to keep; all by default.
        version: Published version, for example c-radio_v4-h.
        config: Fields of the model's configuration that the checkpoint does not have, such as `num_attention_heads`.
        text_tower: SigLIP, SigLIP2 or CLIP in transformers' format, a folder or a Hub id, or "auto" for that of the
            text adaptor, or Meta's PE-Core-*.pt: pack its text tower and tokenizer for zero-shot tasks.
        text_adaptor: Adaptor of the text tower's teacher; by default the one of its family and width.
        verify: File of stored outputs, .safetensors, to compare with.
        tolerance: Largest absolute difference that `verify` accepts.
        projector: Take a Nemotron's projector too, as projector.safetensors.
        nvidia_outputs: Write a folder whose model returns what NVIDIA's returns: the pair `(summary, features)`, and
            adaptors only on request.
        overwrite: Replace the output if it exists.
    """

    source: ModelId
    output: Path
    adaptors: Annotated[list[str] | None, Spelling(read_names, "A,B|all|none")] = None
    version: str | None = None
    config: dict[str, Any] = {}
    text_tower: str | None = None
    text_adaptor: str | None = None
    verify: Path | None = None
    tolerance: float = Field(DEFAULT_TOLERANCE, ge=0)
    projector: bool = False
    nvidia_outputs: bool = False
    overwrite: bool = False

    @model_validator(mode="after")
    def _check(self) -> "ConvertSettings":
        if self.text_adaptor is not None and self.text_tower is None:
            raise SettingsError(f"`text_adaptor` {self.text_adaptor} needs `text_tower`, to which it belongs.")
        return self


COMMAND = Command(
    "radio convert",
    __doc__,
    ConvertSettings,
    positionals=("source", "output"),
    examples=(
        "radio convert C-RADIOv4-H.pth.tar my-folder",
        "radio convert nvidia/C-RADIOv4-H my-folder --text-tower auto",
        "radio convert C-RADIOv4-H.pth.tar my-folder --version c-radio_v4-h --adaptors all",
        "radio convert nvidia/NVIDIA-Nemotron-Nano-12B-v2-VL-BF16 tower --projector",
        "radio convert --to nvidia my-folder back.pth.tar",
    ),
)


@one_line_warnings(COMMAND.name)
def _run(settings: ConvertSettings) -> None:
    # These import torch, which takes seconds.
    from modeling_radio.conversion.from_nvidia import HUB_ID, convert, find_nemotron, read_label, save, verify
    from modeling_radio.conversion.text_tower import AUTO, add_text_tower, find_tower
    from modeling_radio.conversion.verification import OutputDifference, list_unchecked
    from modeling_radio.core.checkpoints import MODEL_FOLDER
    from modeling_radio.core.hub import find_folder
    from modeling_radio.nvidia.beside import folder_with_all_adaptors
    from modeling_radio.nvidia.nemotron import check_nemotron, read_projector

    inputs = [Path(each) for each in (settings.source, settings.text_tower, settings.verify) if each is not None]
    check_output(settings.output, overwrite=settings.overwrite, inputs=inputs, kind=MODEL_FOLDER)
    source, nemotron = settings.source, find_nemotron(settings.source, with_projector=settings.projector)
    if settings.projector:
        check_nemotron(nemotron or source, "source")
    if nemotron is not None:
        source = str(nemotron)
    elif settings.adaptors is None and not Path(source).is_file():
        source = str(folder_with_all_adaptors(find_folder(source, "source") if HUB_ID.fullmatch(source) else source))
    model = convert(source, adaptors=settings.adaptors, version=settings.version, overrides=settings.config)
    tokenizer, text_source = None, None
    if settings.text_tower is not None:
        tower, text_adaptor = settings.text_tower, settings.text_adaptor
        if tower == AUTO:
            tower, text_adaptor = find_tower(model.config, text_adaptor)
        model, tokenizer = add_text_tower(model, tower, text_adaptor)
        text_source = read_label(tower)
    if settings.nvidia_outputs:
        model.config.nvidia_outputs, model.config.adaptor_names = True, []
    comparisons: list[OutputDifference] = []

    def save_and_verify(folder: Path) -> None:
        save(model, folder, read_label(settings.source), tokenizer, text_source)
        if settings.projector:
            read_projector(source).save_pretrained(folder)
        if settings.verify is not None:
            comparisons.extend(verify(folder, settings.verify, settings.tolerance))

    write_folder(settings.output, save_and_verify, overwrite=settings.overwrite)
    names = ", ".join(adaptor.name for adaptor in model.config.adaptor_configs) or "none"
    label, num_parameters = model.config.version or "RADIO", model.num_parameters()
    print(f"{settings.output}: {label}, {num_parameters:,} parameters, adaptors: {names}")
    unchecked = "; ".join(list_unchecked(model.config, comparisons)) or "nothing"
    hint = "" if settings.verify else " --verify compares with outputs of NVIDIA's code, stored in a file."
    print(f"Not checked: {unchecked}.{hint}")


main = partial(COMMAND.run, _run, extra="train")


if __name__ == "__main__":
    sys.exit(main())
