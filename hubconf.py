"""Models for `torch.hub.load`, by the calls of NVIDIA's repository."""

import warnings
from typing import Any

from modeling_radio.conversion.to_nvidia import training_file_content
from modeling_radio.torch_hub import TorchHubRadio, open_for_torch_hub


dependencies = ["torch", "torchvision", "transformers", "safetensors"]


def radio_model(  # noqa: PLR0913
    version: str | None = "",
    progress: bool = True,
    adaptor_names: str | list[str] | None = None,
    neck_name: str | None = None,
    vitdet_window_size: int | None = None,
    return_checkpoint: bool = False,
    use_ema: bool = True,
    return_spatial_features: bool = True,
    adaptor_ckpt_path: str | None = None,
    use_naclip: bool = False,
) -> TorchHubRadio | tuple[TorchHubRadio, dict[str, Any]]:
    """Open a model whose answers are pairs `(summary, features)`.

    The arguments are those of NVIDIA's entry, of its branches, and of programs that are written for them.

    Args:
        version: A folder, a training file, a name on the Hub, or a version of NVIDIA's such as "c-radio_v4-h", which
            is opened there; none is "c-radio_v4-h".
        progress: Ignored: transformers shows progress, or does not, for all of its downloads.
        adaptor_names: Adaptors to run, such as "siglip2-g".
        neck_name: Refused: no released model has necks.
        vitdet_window_size: Side of the ViTDet windows in tokens; `None` takes the model's own.
        return_checkpoint: Return the model and the content of its training file: `args`, and in `state_dict` its
            weights by the names that they have there.
        use_ema: Refused if False: a file that has averaged weights is opened with these.
        return_spatial_features: False has no effect but a warning, as NVIDIA's entry ignores it: answers are pairs.
        adaptor_ckpt_path: Refused: texts need a folder that has their tower.
        use_naclip: Refused if True: the attention of the last block is the model's own.

    Raises:
        ValueError: If an argument asks for something that is refused, or there is no such version or adaptor.
    """
    remedies = {
        "neck_name": (neck_name, None, "none of NVIDIA's released models has necks"),
        "use_ema": (use_ema, True, "a file that has averaged weights is opened with these"),
        "adaptor_ckpt_path": (adaptor_ckpt_path, None, "convert the model with `radio convert --text-tower`"),
        "use_naclip": (use_naclip, False, "`RadioForZeroShotImageClassification.segment` offers RADSeg's attention"),
    }
    for name, (value, only, remedy) in remedies.items():
        if value != only:
            raise ValueError(f"`{name}` must be {only}, got {value!r}: {remedy}.")
    if not return_spatial_features:
        warnings.warn("`return_spatial_features` has no effect: the model returns (summary, features).", stacklevel=2)
    model = open_for_torch_hub(version, adaptor_names, vitdet_window_size)
    answering = TorchHubRadio(model.radio_model)
    return (answering, training_file_content(model)) if return_checkpoint else answering
