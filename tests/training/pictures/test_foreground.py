import torch

from training.pictures.foreground import clearest, foreground_map, most_salient_places


def with_squares(sign: float = 1.0) -> torch.Tensor:
    """Noise around a square of another feature, at another place of each image."""
    features = 0.03 * torch.randn(2, 5, 12, 12, generator=torch.Generator().manual_seed(0))
    features[0, 3, 3:7, 4:8] += 2.0 * sign
    features[1, 3, 5:9, 6:10] += 2.0 * sign
    return features


def test_things_are_positive_whatever_the_sign_of_their_features():
    for sign in (1.0, -1.0):
        foreground = foreground_map(with_squares(sign)) > 0
        assert foreground[0, 3:7, 4:8].all()
        assert foreground[1, 5:9, 6:10].all()
        assert foreground.sum() == 32


def test_the_middle_of_the_thing_is_chosen_but_not_at_the_border():
    foreground = foreground_map(with_squares())
    first, second = most_salient_places(foreground)
    assert first in {(row, col) for row in (4, 5, 6) for col in (5, 6, 7)}
    assert second in {(row, col) for row in (6, 7, 8) for col in (7, 8)}
    foreground[0, 0, 0] = 1e3
    assert most_salient_places(foreground)[0] == first


def test_the_clearest_features_are_those_of_one_direction():
    noise = torch.randn(2, 5, 12, 12, generator=torch.Generator().manual_seed(1))
    assert clearest([noise, with_squares(), noise * 9]) is not noise
    assert torch.equal(clearest([noise, with_squares()]), with_squares())
