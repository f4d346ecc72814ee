"""Random numbers of training, given per image: position crops and dropped paths."""

import pytest
import torch

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.encoder_radio import RadioDropPath


@pytest.fixture(scope="module")
def model() -> RadioModel:
    return RadioModel(RadioConfig.from_preset("radio-test", drop_path_rate=0.5)).train()


@pytest.mark.parametrize("window_size", ["global", 2])
def test_an_image_trains_the_same_in_any_batch(model: RadioModel, window_size: str | int) -> None:
    pixel_values, draws = torch.rand(5, 3, 64, 48), torch.rand(5, model.num_draws)
    whole = model(pixel_values, window_size=window_size, draws=draws).features
    parts = [
        model(pixel_values[part], window_size=window_size, draws=draws[part]).features
        for part in (slice(0, 2), slice(2, 5))
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-5)


def test_draws_decide_positions_and_paths(model: RadioModel) -> None:
    pixel_values, draws = torch.rand(1, 3, 64, 64), torch.full((1, model.num_draws), 0.6)
    features = model(pixel_values, draws=draws).features
    for place in (0, 1, 2, 3, -1, -2):  # the crop's scale, aspect, column and row; the last block's two branches
        changed = draws.clone()
        changed[:, place] = 0.1
        assert not torch.allclose(model(pixel_values, draws=changed).features, features, atol=1e-4)
    assert torch.equal(model.eval()(pixel_values, draws=draws).features, model(pixel_values).features)
    model.train()


def test_without_draws_the_global_generator_decides(model: RadioModel) -> None:
    pixel_values, features = torch.rand(1, 3, 64, 64), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        features.append(model(pixel_values).features)
    assert torch.equal(features[0], features[1])
    assert not torch.equal(features[0], features[2])


def test_dropped_path_keeps_the_mean() -> None:
    drop_path, branch = RadioDropPath(0.25), torch.ones(4, 2, 3)
    out = drop_path(branch, torch.tensor([0.0, 0.24, 0.25, 0.99]))
    assert out[:, 0, 0].tolist() == pytest.approx([0, 0, 4 / 3, 4 / 3])
    assert drop_path(torch.ones(20_000, 1, 1)).mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(drop_path.eval()(branch), branch)


def test_wrong_draws_are_refused(model: RadioModel) -> None:
    with pytest.raises(ValueError, match=rf"`draws` must have the shape \(2, {model.num_draws}\), got \(2, 3\)"):
        model(torch.rand(2, 3, 32, 32), draws=torch.rand(2, 3))
    patches, grid = torch.rand(4, 768), torch.tensor([[2, 2]])
    with pytest.raises(ValueError, match="`draws` must be None with `image_grid_hw`"):
        model(patches, image_grid_hw=grid, draws=torch.rand(4, model.num_draws))
