"""Converts a checkpoint around a network of timm, transformers or yours to that network alone, for its own library.

Adaptors, the pool of the summary and projections of levels stay behind. In the folder are:
- of timm `config.json` and `model.safetensors`, for `timm.create_model("local-dir:FOLDER", pretrained=True)`, or
  `timm.create_model(NAME, num_classes=0, checkpoint_path="FOLDER/model.safetensors")`;
- of transformers a folder for `AutoModel` and `AutoImageProcessor`;
- of a class of yours its `state_dict`, `model.safetensors`, and in `config.json` its name, arguments and normalization.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import PreTrainedModel, ViTImageProcessor

from modeling_radio import RadioModel
from modeling_radio.checks_radio import read_json
from modeling_radio.conversion.opening import FolderSettings
from modeling_radio.core.command_line import Command, one_line_warnings
from modeling_radio.core.files import FolderKind, check_output, write_folder
from modeling_radio.core.opening import open_for_export


NETWORK_FOLDER = FolderKind(
    "folders of a network", ("config.json", "model.safetensors"), lambda path: _is_network(path)
)
"""The only kind of folder that the command may replace."""


def save_network(model: RadioModel, folder: Path) -> None:
    """Write the network of a model into a folder that exists.

    Raises:
        ValueError: If the model is a network of ours.
    """
    wrapped, network = _wrapped(model), model.radio_model.model.network
    if isinstance(network, PreTrainedModel):
        config = model.config
        network.save_pretrained(folder)
        height, width = config.preferred_resolution
        size = {"height": height, "width": width}
        ViTImageProcessor(size=size, image_mean=config.norm_mean, image_std=config.norm_std).save_pretrained(folder)
        return
    content = _timm_config(model, wrapped) if wrapped["source"] == "timm" else _class_config(model, wrapped)
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    state = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def _wrapped(model: RadioModel) -> dict[str, Any]:
    if model.config.wrapped is None:
        raise ValueError("`checkpoint` must be around a network of a library, got a RADIO. Take `--to timm`.")
    return model.config.wrapped


def _timm_config(model: RadioModel, wrapped: dict[str, Any]) -> dict[str, Any]:
    config, network = model.config, model.radio_model.model.network
    height, width = config.preferred_resolution
    own = network.pretrained_cfg
    # timm forgets the size that a network was built for once its arguments let it take any, and resamples positions.
    built_for = {"img_size": list(own["input_size"][1:])} if own.get("fixed_input_size") else {}
    return {
        "architecture": wrapped["name"],
        "num_classes": 0,
        "num_features": network.num_features,
        "model_args": {**built_for, **wrapped["arguments"]},
        "pretrained_cfg": {
            "input_size": [3, height, width],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": list(config.norm_mean),
            "std": list(config.norm_std),
            "num_classes": 0,
            "first_conv": own["first_conv"],
            "classifier": own["classifier"],
        },
    }


def _class_config(model: RadioModel, wrapped: dict[str, Any]) -> dict[str, Any]:
    normalization = {"image_mean": list(model.config.norm_mean), "image_std": list(model.config.norm_std)}
    return {"class": wrapped["name"], "arguments": wrapped["arguments"], **normalization}


def _is_network(folder: Path) -> bool:
    """Return whether a folder was written by this command."""
    path = folder / "config.json"
    return path.is_file() and read_json(path).get("model_type") != "radio"


COMMAND = Command("radio convert --to network", __doc__, FolderSettings, positionals=("checkpoint", "output"))


@one_line_warnings(COMMAND.name)
def _run(settings: FolderSettings) -> None:
    check_output(settings.output, overwrite=settings.overwrite, inputs=[settings.checkpoint], kind=NETWORK_FOLDER)
    model = open_for_export(settings.checkpoint).backbone
    wrapped = _wrapped(model)
    write_folder(settings.output, partial(save_network, model), overwrite=settings.overwrite)
    print(f"{settings.output}: {wrapped['source']}:{wrapped['name']}")


main = partial(COMMAND.run, _run, extra="commands")


if __name__ == "__main__":
    sys.exit(main())
