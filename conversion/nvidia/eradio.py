"""What NVIDIA's E-RADIO stores beside weights, and our network computes."""

import torch
from torch import Tensor

from conversion.nvidia.keys import TrainingFileLayout, training_file_key
from modeling_radio import RadioModel
from modeling_radio.eradio_radio import EradioPositionBias


@torch.no_grad()
def relative_positions(model: RadioModel) -> dict[str, Tensor]:
    """Return the buffers of every position MLP under the keys of a training file, at the window of the training.

    Args:
        model: An E-RADIO.

    Returns:
        By key the coordinates that the MLP reads, `(1, 2 * w - 1, 2 * w - 1, 2)`, the place of each pair of tokens
        among them, `(w**2, w**2)`, and the bias that NVIDIA's code keeps once it is frozen, zeros here: until then it
        computes it anew in every pass.
    """
    buffers: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, EradioPositionBias):
            window = module.trained_window
            heads = len(module.cpb_mlp[-1].weight)  # pyrefly: ignore[bad-argument-type]
            values = {
                "relative_coords_table": module.coordinates(window).unsqueeze(0),
                "relative_position_index": module.index(window),
                "relative_bias": torch.zeros(1, heads, window**2, window**2),
            }
            for buffer, value in values.items():
                key = training_file_key(f"{name}.{buffer}", TrainingFileLayout(heads={}))
                assert key is not None
                buffers[key] = value
    return buffers
