"""The presets are the published networks: counted without memory, they have the published numbers of parameters.

The numbers are those of the files on the Hub (C-RADIOv3, counted by Hugging Face) and of the C-RADIOv4 tech report.
"""

import pytest
import torch

from modeling_radio import RadioConfig, RadioModel


TIMM_REGISTERS = 4
"""Rows of `reg_token`, which the files of C-RADIOv3-B and -L hold beside the registers that are used."""


def count(name: str) -> dict[str, int]:
    """Numbers in the network, by what they are."""
    with torch.device("meta"):
        network = RadioModel(RadioConfig.from_preset(name)).radio_model
    table = network.model.patch_generator.pos_embed.numel()
    conditioner = sum(buffer.numel() for buffer in network.input_conditioner.buffers())
    backbone = sum(parameter.numel() for parameter in network.model.parameters())
    return {"backbone": backbone - table, "table": table, "conditioner": conditioner}


@pytest.mark.parametrize(
    ("name", "published", "unused_registers"),
    [
        ("c-radio_v3-b", 98_254_854, TIMM_REGISTERS),
        ("c-radio_v3-l", 319_934_470, TIMM_REGISTERS),
        ("c-radio_v3-h", 651_642_886, 0),
        ("c-radio_v3-g", 1_159_618_566, 0),
    ],
)
def test_file_of_c_radio_v3(name, published, unused_registers):
    unused = unused_registers * RadioConfig.from_preset(name).hidden_size
    assert sum(count(name).values()) + unused == published


@pytest.mark.parametrize(
    ("name", "published", "with_table"),
    [("c-radio_v4-h", 630_673_920, 651_645_440), ("c-radio_v4-so400m", 412_362_864, 431_237_232)],
)
def test_network_of_c_radio_v4(name, published, with_table):
    counts = count(name)
    assert counts["backbone"] == published
    assert counts["backbone"] + counts["table"] == with_table


@pytest.mark.parametrize("name", [name for name in RadioConfig.presets if "radio_v" in name])
def test_position_table_is_128_by_128(name):
    assert RadioConfig.from_preset(name).position_grid_size == 128
