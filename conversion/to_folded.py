"""Folds the LayerScale of a checkpoint into its linear layers; heads, adaptors, texts and other files stay.

transformers' native RADIO, vLLM and SGLang leave LayerScale out without an error, and llama.cpp refuses it. Outputs of
the folded folder are the same up to rounding, and all of these open it.
"""

import json
import shutil
import sys
from functools import partial
from pathlib import Path

from safetensors.torch import save_file

from modeling_radio import RadioConfig
from modeling_radio.checks_radio import read_json
from modeling_radio.conversion.opening import FolderSettings
from modeling_radio.core.checkpoints import MODEL_FOLDER
from modeling_radio.core.command_line import Command, one_line_warnings
from modeling_radio.core.files import check_output, write_folder
from modeling_radio.core.hub import find_folder
from modeling_radio.core.opening import check_not_quantized, open_model, read_config
from modeling_radio.core.trust import COPIED_FILES, allowed_files
from modeling_radio.engines import engine_verdicts
from modeling_radio.model_cards.build import write_card
from modeling_radio.nvidia.source import load_tensors
from modeling_radio.nvidia.stored_tensors import INDEX, changed_index, index_of, stored_tensors, weight_files
from modeling_radio.nvidia.tensors import fold_layer_scale


def fold_folder(checkpoint: Path, folder: Path) -> None:
    """Write a checkpoint with folded LayerScale into a folder that exists.

    Args:
        checkpoint: A folder of ours, with or without a head.
        folder: Gets the same files; the card is written anew.

    Raises:
        ValueError: If it has no LayerScale that could be folded, is damaged, quantized, or no folder of ours.
    """
    config = read_config(checkpoint)
    check_not_quantized(checkpoint, config)
    names = weight_files(checkpoint)
    _check_foldable(open_model(checkpoint, device="cpu", dtype=None, as_backbone=True).model.config)
    files = {name: load_tensors(checkpoint / name) for name in names}
    state = {key: tensor for tensors in files.values() for key, tensor in tensors.items()}
    folded = fold_layer_scale(state)
    for name, tensors in files.items():
        kept = {key: folded[key].contiguous() for key in tensors if key in folded}
        save_file(kept, folder / name, metadata={"format": "pt"})
    if (index := index_of(checkpoint)) is not None:
        before, after = (stored_tensors(each, files=names) for each in (checkpoint, folder))
        _write_json(folder / INDEX, changed_index(read_json(index), before, after))
    _write_json(folder / "config.json", {**config, "use_layer_scale": False, "layerscale_value": 1.0})
    for name, path in allowed_files(checkpoint, (*COPIED_FILES, "results.json")).items():
        if not (folder / name).exists():
            shutil.copyfile(path, folder / name)
    write_card(folder)


def _check_foldable(config: RadioConfig) -> None:
    if not config.use_layer_scale:
        raise ValueError("`use_layer_scale` of the checkpoint must be true for LayerScale to be folded, got false.")
    for name in ("downscale_levels", "navit"):
        if getattr(config, name) is not None:
            raise ValueError(
                f"`{name}` of the checkpoint must be null, got {getattr(config, name)!r:.60}: no other engine reads "
                "such a network, so that nothing is won by folding its LayerScale."
            )


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


COMMAND = Command(
    "radio convert --to folded",
    __doc__,
    FolderSettings,
    positionals=("checkpoint", "output"),
    examples=("radio convert --to folded my-folder folded",),
)


@one_line_warnings(COMMAND.name)
def _run(settings: FolderSettings) -> None:
    checkpoint = find_folder(settings.checkpoint, "checkpoint")
    check_output(settings.output, overwrite=settings.overwrite, inputs=[checkpoint], kind=MODEL_FOLDER)
    write_folder(settings.output, partial(fold_folder, checkpoint), overwrite=settings.overwrite)
    print(f"{settings.output}: LayerScale is folded")
    for verdict in engine_verdicts(RadioConfig.from_pretrained(settings.output)):
        print(verdict.line)


main = partial(COMMAND.run, _run, extra="commands")


if __name__ == "__main__":
    sys.exit(main())
