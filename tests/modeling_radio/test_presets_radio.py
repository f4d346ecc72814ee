"""The presets are the published networks: counted without memory, they have the published numbers of parameters.

The numbers are those of the files on the Hub (C-RADIOv3, counted by Hugging Face) and of the C-RADIOv4 tech report.
"""

import math

import pytest
import torch

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.model_cards.rendering import ParameterCounts, count_parameters
from modeling_radio.presets_radio import mlp_ratio_for


TIMM_REGISTERS = 4
"""Rows of `reg_token`, which the files of C-RADIOv3-B and -L hold beside the registers that are used."""


CONDITIONER = 6
"""Numbers that the files hold beside the parameters: mean and standard deviation of three channels."""


def count(name: str) -> ParameterCounts:
    return count_parameters(RadioConfig.from_preset(name))


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
    counts, unused = count(name), unused_registers * RadioConfig.from_preset(name).hidden_size
    assert counts.backbone + counts.position_table + CONDITIONER + unused == published


@pytest.mark.parametrize(
    ("name", "num_tensors"),
    [
        ("c-radio_v4-so400m", 330),  # as a holder of the file counted
        ("c-radio_v4-h", 390),  # the same of 32 blocks; nobody has told it
    ],
)
def test_tensors_of_a_folder_of_c_radio_v4(name, num_tensors):
    with torch.device("meta"):
        assert len(RadioModel(RadioConfig.from_preset(name)).state_dict()) == num_tensors


@pytest.mark.parametrize(
    ("name", "published", "with_table"),
    [("c-radio_v4-h", 630_673_920, 651_645_440), ("c-radio_v4-so400m", 412_362_864, 431_237_232)],
)
def test_network_of_c_radio_v4(name, published, with_table):
    counts = count(name)
    assert counts.backbone == published
    assert counts.backbone + counts.position_table == with_table


def test_network_of_radio1d():
    """1.14 G in the encoder and 314 M in the decoder (table 4 of the paper), 5.81 GB in float32 on the Hub."""
    counts = count("c-radio_v4-1d-h")
    assert counts.backbone + counts.position_table == 1_454_095_360
    assert 4 * (counts.backbone + counts.position_table) == pytest.approx(5.81e9, rel=2e-3)
    config = RadioConfig.from_preset("c-radio_v4-1d-h")
    with torch.device("meta"):
        decoder = RadioModel(config).radio_model.model.decoder
    assert sum(parameter.numel() for parameter in decoder.parameters()) == 314_063_360


@pytest.mark.parametrize(
    ("name", "published_m", "position_table"),
    [
        ("radio-s", 22, 128**2 * 384),  # DeiT, table 1; these and the next are with a classifier
        ("radio-ti", 5.7, 128**2 * 192),
        ("radio-mobile", 8, 32**2 * 256),  # TinyCLIP's name of it
    ],
)
def test_our_small_ones_have_the_size_of_their_namesakes(name, published_m, position_table):
    counts = count(name)
    assert counts.backbone / 1e6 == pytest.approx(published_m, rel=0.05)
    assert counts.position_table == position_table


@pytest.mark.parametrize("name", ["tiny", "small", "base", "large", "huge"])
def test_a_navit_has_the_blocks_of_the_vit_of_its_name(name):
    """12 weights a block, of 12 widths squared and 13 widths; patches with a bias, ten tokens, no table."""
    config = RadioConfig.from_preset(f"navit_{name}")
    width, counts = config.hidden_size, count(f"navit_{name}")
    blocks = config.num_hidden_layers * (12 * width**2 + 13 * width)
    assert (counts.backbone, counts.position_table) == (blocks + (768 + 1 + 10) * width, 0)


@pytest.mark.parametrize("hidden_size", [7, 32, 36, 192, 768, 1152, 1536])
def test_ratio_is_the_smallest_that_gives_the_width(hidden_size):
    for width in range(1, 5 * hidden_size):
        ratio = mlp_ratio_for(width, hidden_size)
        assert int(hidden_size * ratio) == width
        assert int(hidden_size * math.nextafter(ratio, 0)) == width - 1
