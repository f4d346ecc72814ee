import pytest
import torch
from torch import nn

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.modeling_radio import DECODER_PREFIX, FILLERS, POSITIONS, PREFIX_TOKENS
from training.student.parameters import is_decayed, is_of_trunk
from training.student.regularizers import SCALE_SUFFIX


@pytest.fixture(scope="module")
def model() -> RadioModel:
    adaptor = {"name": "t", "summary_dim": 4, "feature_dim": 4, "hidden_size": 8}
    return RadioModel(RadioConfig.from_preset("radio-test", num_hidden_layers=1, adaptors=[adaptor]))


def test_trunk_is_everything_but_the_adaptors(model: RadioModel) -> None:
    of_adaptors = {id(parameter) for parameter in model.radio_model.adaptors.parameters()}
    for name, parameter in model.named_parameters():
        assert is_of_trunk(name) is (id(parameter) not in of_adaptors)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("blocks.0.mlp.fc1.weight", (8, 4), True),
        (f"blocks.0.mlp.fc1.{SCALE_SUFFIX}", (1, 1), True),
        ("blocks.0.mlp.fc1.bias", (8,), False),
        ("blocks.0.norm1.weight", (4,), False),
        (POSITIONS, (1, 16, 4), False),
        (f"base_model.model.{POSITIONS}", (1, 16, 4), False),
        (PREFIX_TOKENS, (8, 4), False),
        (DECODER_PREFIX, (8, 4), False),
        (FILLERS, (16, 4), False),
    ],
)
def test_matrices_decay_but_not_positions_and_prefix_tokens(name: str, shape: tuple[int, ...], expected: bool) -> None:
    assert is_decayed(name, nn.Parameter(torch.zeros(shape))) is expected
