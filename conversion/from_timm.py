"""Puts weights that were trained in timm back into the checkpoint that `radio convert --to timm` was given."""

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.conversion.opening import open_model
from modeling_radio.conversion.to_timm import TRUNK
from modeling_radio.core.checkpoints import MODEL_FOLDER
from modeling_radio.core.command_line import Command, one_line_warnings
from modeling_radio.core.files import check_output, write_folder
from modeling_radio.core.settings import Settings
from modeling_radio.image_processing_radio import RadioImageProcessor
from modeling_radio.model_cards.build import write_card
from modeling_radio.nvidia.fit import check_fit
from modeling_radio.nvidia.source import load_tensors


_FIRST = ("patch_embed.proj.weight", "pos_embed", "cls_token", "reg_token")


def from_timm(trained: Mapping[str, Tensor], model: RadioModel) -> RadioModel:
    """Return a model with the backbone of timm's network; adaptors are those of the model, with shared weights.

    Positions are a table for the one size of images that timm was given, resized for others as before.

    Args:
        trained: State of timm's network. Its classifier is left out.
        model: The model whose folder timm opened.

    Raises:
        ValueError: If the weights are of another network, or timm's images were not square.
    """
    missing = [name for name in _FIRST if name not in trained]
    if missing:
        raise ValueError(f"`trained` lacks {', '.join(missing)}: it is no state of timm's RADIO.")
    patches, positions, class_token, others = (trained[name] for name in _FIRST)
    side, bias = round(positions.shape[1] ** 0.5), trained.get("patch_embed.proj.bias")
    if side**2 != positions.shape[1]:
        raise ValueError(f"`trained` has {positions.shape[1]} positions, no square. Train it in timm on square images.")
    trunk = {
        "patch_generator.embedder.weight": patches.flatten(1),
        "patch_generator.pos_embed": positions,
        "patch_generator.cls_token.token": torch.cat([class_token, others], dim=1)[0],
        **{
            name.replace(".gamma", ".grandma"): tensor for name, tensor in trained.items() if name.startswith("blocks.")
        },
    }
    has_bias = bias is not None and bool(bias.any())  # timm begins with zeros
    if has_bias:
        trunk["patch_generator.embedder.bias"] = bias
    sizes = {"max_img_size": side * model.config.patch_size, "max_resolution": model.config.largest_side}
    config = RadioConfig.from_dict({**model.config.to_dict(), **sizes, "use_patch_bias": has_bias})
    with torch.device("meta"):
        changed = RadioModel(config)
    state = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith(TRUNK)}
    state |= {f"{TRUNK}{name}": tensor.contiguous() for name, tensor in trunk.items()}
    own = changed.state_dict()
    check_fit(
        [key for key in state if key not in own],
        [key for key in own if key not in state],
        [key for key, tensor in own.items() if key in state and state[key].shape != tensor.shape],
    )
    changed.load_state_dict(state, assign=True)
    return changed.eval()


class FromTimmSettings(Settings):
    """Settings of the conversion.

    Attributes:
        trained: Weights of timm's network, a file .safetensors or a folder with model.safetensors.
        checkpoint: Folder whose backbone timm trained; its adaptors are kept.
        output: Folder to write.
        overwrite: Replace the output if it exists.
    """

    trained: Path
    checkpoint: Path
    output: Path
    overwrite: bool = False


COMMAND = Command("radio from-timm", __doc__, FromTimmSettings, positionals=("trained", "checkpoint", "output"))


@one_line_warnings(COMMAND.name)
def _run(settings: FromTimmSettings) -> None:
    inputs = [settings.trained, settings.checkpoint]
    check_output(settings.output, overwrite=settings.overwrite, inputs=inputs, kind=MODEL_FOLDER)
    file = settings.trained / "model.safetensors" if settings.trained.is_dir() else settings.trained
    model = from_timm(load_tensors(file), open_model(settings.checkpoint))
    write_folder(settings.output, partial(_save, model), overwrite=settings.overwrite)
    print(f"{settings.output}: {len(model.state_dict())} tensors")


def _save(model: RadioModel, folder: Path) -> None:
    model.save_pretrained(folder)
    RadioImageProcessor.from_model_config(model.config).save_pretrained(folder)
    write_card(folder)


main = partial(COMMAND.run, _run, extra="commands")


if __name__ == "__main__":
    sys.exit(main())
