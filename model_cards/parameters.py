"""How many numbers a checkpoint has learned, from its configuration alone."""

from dataclasses import dataclass

import torch

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.modeling_radio import POSITIONS


@dataclass(frozen=True)
class ParameterCounts:
    """Learned numbers of a checkpoint, by part.

    Attributes:
        backbone: Without the position table, as the papers count.
        position_table: The position table alone.
        adaptors: Per adaptor name.
    """

    backbone: int
    position_table: int
    adaptors: dict[str, int]


def count_parameters(config: RadioConfig) -> ParameterCounts:
    """Count the parameters of the network that a configuration describes, without allocating it."""
    with torch.device("meta"):
        network = RadioModel(config).radio_model
    backbone = _num_parameters(network.model)
    tables = [parameter for name, parameter in network.named_parameters() if POSITIONS.endswith(f".{name}")]
    position_table = sum(table.numel() for table in tables)  # E-RADIO has none
    adaptors = {name: _num_parameters(network.adaptors[name]) for name in network.adaptors}
    return ParameterCounts(backbone - position_table, position_table, adaptors)


def _num_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
