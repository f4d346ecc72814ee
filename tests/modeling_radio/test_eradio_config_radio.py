"""Arguments of E-RADIO: the published ones make a preset, and wrong ones are refused by name."""

import json

import pytest
from reference_cases import REFERENCE

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.eradio_radio import check_eradio, eradio_fields
from modeling_radio.nvidia.arguments import is_eradio
from modeling_radio.nvidia.eradio import PUBLISHED, arguments_of, published_name


ARGUMENTS = json.loads((REFERENCE / "e_radio_tiny" / "eradio_arguments.json").read_text())


def test_the_preset_is_the_published_network():
    config = RadioConfig.from_preset("e-radio_v2")
    assert config.eradio == PUBLISHED["eradio"]
    assert (config.hidden_size, config.resolution_step, config.num_prefix_tokens) == (1536, 32, 1)
    assert published_name(config.eradio) == "eradio"
    assert published_name(ARGUMENTS) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 7}, "`eradio.dim` must be even, got 7"),
        ({"depths": [1, 1, 1]}, r"`eradio.depths` must be a list of 4"),
        ({"num_heads": [1, 1, 3, 4]}, r"`eradio.num_heads\[2\]` must divide the level's width, 32, got 3"),
        ({"window_size": [None, None, [4, 8], 4]}, r"`eradio.window_size\[2\]` must be an integer .* equal ones"),
        ({"window_size": [None, None, None, 4]}, r"`eradio.window_size\[2\]` must be"),
        ({"sr_ratio": [1, 1, [4, 1], 1]}, "`eradio.sr_ratio` must be a list of 4"),
        ({"use_swiglu": True}, "`eradio.use_swiglu` must be False, the only one that is built here, got True"),
        ({"neck_start_stage": 1}, "`eradio.neck_start_stage` must be 2"),
        ({"cpb_hidden": 4}, "`eradio.cpb_hidden` is no argument of E-RADIO. Did you mean 'cpb_mlp_hidden'"),
    ],
)
def test_arguments_that_cannot_be_right(changes, message):
    check_eradio(ARGUMENTS)
    with pytest.raises(ValueError, match=message):
        check_eradio({**ARGUMENTS, **changes})


def test_arguments_that_are_off_need_not_be_known():
    check_eradio({**ARGUMENTS, "use_shift": False, "drop_rate": 0.0, "norm": None})
    with pytest.raises(ValueError, match=r"`eradio.use_shift` is no argument of E-RADIO"):
        check_eradio({**ARGUMENTS, "use_shift": True})


def test_arguments_that_are_missing():
    with pytest.raises(ValueError, match=r"`eradio.depths` must be given"):
        check_eradio({name: value for name, value in ARGUMENTS.items() if name != "depths"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 32}, "`hidden_size` must be 24 with this `eradio`, got 32"),
        ({"num_registers": 1}, "`num_registers` must be 0 with this `eradio`, got 1"),
        ({"video_temporal_patch_size": 2}, "`video_temporal_patch_size` must be None with this `eradio`, got 2"),
        ({"eradio": {"dim": 4}}, "`eradio.in_dim` must be given"),
        ({"eradio": [1]}, "`eradio` must be a mapping"),
    ],
)
def test_fields_that_contradict_the_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        RadioModel(RadioConfig(**{**eradio_fields(ARGUMENTS), **changes}))


def test_whose_arguments_they_are():
    assert is_eradio({"model": "eradio"})
    assert is_eradio({"model": "e-radio_v2"})
    assert not is_eradio({"model": "vit_base_patch16_224"})
    assert arguments_of({"model": "eradio"}, ARGUMENTS) == PUBLISHED["eradio"]
    assert arguments_of({"model": "eradio_other"}, ARGUMENTS) == ARGUMENTS
    with pytest.raises(ValueError, match=r"Put the arguments .* into `eradio_arguments.json`"):
        arguments_of({"model": "eradio_other"})
