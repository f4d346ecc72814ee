import pytest
import torch
from packaged import build_packaged


@pytest.mark.packages
def test_a_layer_is_the_hidden_state_of_that_number():
    deep, shallow = build_packaged("dinov2-s-saliency", layer=4), build_packaged("dinov2-s-saliency", layer=2)
    pixel_values = torch.rand(1, 3, 64, 64)
    normalized = (
        torch.nn.functional.interpolate(pixel_values, (56, 56), mode="bicubic", antialias=True).clamp(0, 1) - deep.mean
    ) / deep.std
    states = deep.network(normalized, output_hidden_states=True).hidden_states
    assert len(states) == 5
    torch.testing.assert_close(shallow.answer(pixel_values).summary, states[2][:, 0])
