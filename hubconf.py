"""Models for `torch.hub.load`, by the calls of NVIDIA's repository."""

from modeling_radio.torch_hub import TorchHubRadio, open_for_torch_hub


dependencies = ["torch", "torchvision", "transformers", "safetensors"]


def radio_model(
    version: str = "",
    progress: bool = True,
    adaptor_names: str | list[str] | None = None,
    vitdet_window_size: int | None = None,
) -> TorchHubRadio:
    """Open a model whose answers are pairs `(summary, features)`.

    Args:
        version: A folder, a name on the Hub, or a version of NVIDIA's such as "c-radio_v4-h", which is opened there.
        progress: Ignored: transformers shows progress, or does not, for all of its downloads.
        adaptor_names: Adaptors to run, such as "siglip2-g".
        vitdet_window_size: Side of the ViTDet windows in tokens; `None` takes the model's own.
    """
    return open_for_torch_hub(version, adaptor_names, vitdet_window_size)
