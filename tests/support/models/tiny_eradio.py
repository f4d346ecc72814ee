"""An E-RADIO with a block in each of its four stages."""

from typing import Any

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.eradio_radio import eradio_fields
from modeling_radio.nvidia.eradio import PUBLISHED


def build_eradio(**fields: Any) -> RadioModel:
    """Return it with random weights; its windows divide multiples of 128 px."""
    small = {"dim": 8, "in_dim": 8, "depths": [1, 1, 1, 1], "full_features_head_dim": 12, "cpb_mlp_hidden": 8}
    arguments = PUBLISHED["eradio"] | small | {"window_size": [None, None, [4, 4], 4], "num_heads": [1, 1, 2, 4]}
    return RadioModel(RadioConfig(**eradio_fields(arguments), **fields)).eval()
