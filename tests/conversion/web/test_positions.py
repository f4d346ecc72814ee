"""A cropped position table gives what the whole one gives, for the sizes that are offered."""

import copy

import pytest
import torch
from tiny_eradio import build_eradio
from tiny_site import build_radio

from conversion.web.plan import keep_offered_positions


@pytest.mark.parametrize("fields", [{}, {"use_cropped_positions": False}, {"pos_embed_align_corners": True}])
def test_offered_sizes_give_the_same_features(fields):
    model = build_radio(**fields)
    cropped = copy.deepcopy(model)
    keep_offered_positions(cropped, [2, 4])
    for height, width in ((64, 48), (32, 64), (32, 32), (16, 32)):
        images = torch.rand(1, 3, height, width)
        with torch.no_grad():
            assert torch.equal(cropped(images).features, model(images).features)


def test_nothing_else_is_kept_and_other_sizes_fail():
    model = build_radio()
    keep_offered_positions(model, [2, 4])
    generator = model.radio_model.model.patch_generator
    assert generator.pos_embed.shape == (1, 2 * 2 + 4 * 4, model.config.hidden_size)
    with torch.no_grad(), pytest.raises((IndexError, RuntimeError), match="out of"):
        model(torch.rand(1, 3, 48, 48))


def test_one_table_whatever_the_grid_keeps_its_corner():
    model = build_radio(use_cropped_positions=False)
    keep_offered_positions(model, [2, 4])
    assert model.radio_model.model.patch_generator.pos_embed.shape[1] == 4 * 4
    with torch.no_grad():
        model(torch.rand(1, 3, 48, 48))


def test_a_network_without_a_table_stays_as_it_is():
    model = build_eradio()
    before = str(model)
    keep_offered_positions(model, [8])
    assert str(model) == before
