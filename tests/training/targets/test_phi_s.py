import pytest
import torch
from torch import Tensor, nn

from modeling_radio.training.targets.phi_s import (
    STANDARDIZERS,
    FeatureStandardizer,
    PhiS,
    equalizing_rotation,
    spreading_rotation,
)


def correlated_features(num_channels: int, rank: int | None = None, seed: int = 0) -> Tensor:
    """Features of very unequal scales around a large mean, `(4, channels, 16, 16)`."""
    generator = torch.Generator().manual_seed(seed)
    rank = rank or num_channels
    factors = torch.randn(4, 16, 16, rank, generator=generator, dtype=torch.float64) * torch.logspace(-1, 1, rank)
    mixing = torch.randn(rank, num_channels, generator=generator, dtype=torch.float64)
    return (factors @ mixing + 10 * torch.randn(num_channels, generator=generator)).movedim(-1, 1).float()


def fitted(features: Tensor, method: str = "phi_s") -> FeatureStandardizer:
    standardizer = STANDARDIZERS[method](features.shape[1])
    for part in features.chunk(2):
        standardizer.update(part)
    standardizer.end_step()
    standardizer.refit()
    return standardizer


def variances(features: Tensor) -> Tensor:
    return features.double().var((0, 2, 3), correction=0)


# Widths with a Hadamard matrix and without, and features that do not fill all dimensions.
@pytest.mark.parametrize(("width", "rank"), [(1, 1), (2, 2), (5, 5), (12, 3), (33, 33), (33, 3), (92, 92), (128, 128)])
def test_every_channel_has_zero_mean_and_unit_variance_by_a_rotation_and_a_scale(width: int, rank: int) -> None:
    features = correlated_features(width, rank)
    standardizer = fitted(features)
    standardized = standardizer.standardize(features)
    torch.testing.assert_close(variances(standardized), torch.ones(width).double(), rtol=1e-3, atol=0)
    assert standardized.mean((0, 2, 3)).abs().max() < 1e-4
    rotation = standardizer.matrix * standardizer.scale
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(width).double())


@pytest.mark.parametrize("method", STANDARDIZERS)
@pytest.mark.parametrize("width", [5, 128])
def test_every_method_has_an_exact_inverse_and_its_own_variances(method: str, width: int) -> None:
    features = correlated_features(width)
    standardizer = fitted(features, method)
    standardized = standardizer.standardize(features)
    torch.testing.assert_close(standardizer.invert(standardized), features, rtol=1e-4, atol=1e-3)
    found, own = variances(standardized), variances(features)
    expected = {"phi_s": torch.ones_like(own), "channel": torch.ones_like(own), "global": own / own.mean(), "none": own}
    torch.testing.assert_close(found, expected[method], rtol=1e-3, atol=0)


def test_constant_features_give_zeros() -> None:
    features = torch.full((2, 4, 3, 3), 7.0)
    assert torch.equal(fitted(features).standardize(features), torch.zeros(2, 4, 3, 3))


@pytest.mark.parametrize("num_channels", [3, 92])
def test_a_width_without_hadamard_matrix_has_equal_variances_too(num_channels: int) -> None:
    eigenvalues = torch.logspace(-3, 3, num_channels, dtype=torch.float64)
    rotation = spreading_rotation(eigenvalues)
    assert torch.equal(rotation, equalizing_rotation(eigenvalues))
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(num_channels).double())
    diagonal = (rotation @ eigenvalues.diag() @ rotation.T).diagonal()
    torch.testing.assert_close(diagonal, eigenvalues.mean().expand(num_channels))


@pytest.mark.parametrize("upsampling", [1, 4])
def test_folded_layer_returns_standardized_features_and_back(upsampling: int) -> None:
    standardizer, tokens = fitted(correlated_features(12)), torch.randn(5, 6)
    linear = nn.Linear(6, 12 * upsampling)
    raw = linear(tokens).detach()
    standardizer.fold_into_linear(linear)
    standardized = standardizer.standardize(raw.view(5 * upsampling, 12, 1, 1)).flatten(1)
    torch.testing.assert_close(linear(tokens).view(-1, 12), standardized, rtol=1e-4, atol=1e-5)
    standardizer.fold_inverse_into_linear(linear)
    torch.testing.assert_close(linear(tokens), raw, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("linear", [nn.Linear(6, 13), nn.Linear(6, 12, bias=False)])
def test_unfoldable_layer_is_refused(linear: nn.Linear) -> None:
    with pytest.raises(ValueError, match="`linear`"):
        fitted(correlated_features(12)).fold_inverse_into_linear(linear)


def test_frozen_statistics_and_non_finite_batches_change_nothing() -> None:
    standardizer, bad = fitted(correlated_features(12)), correlated_features(12, seed=1)
    state = {key: value.clone() for key, value in standardizer.state_dict().items()}
    bad[0, 0, 0, 0] = float("nan")
    standardizer.update(bad)
    standardizer.end_step()
    assert all(torch.equal(value, state[key]) for key, value in standardizer.state_dict().items())
    standardizer.freeze()
    with pytest.raises(RuntimeError, match="frozen"):
        standardizer.update(correlated_features(12))
    with pytest.raises(ValueError, match="at least one batch"):
        PhiS(4).refit()


@pytest.mark.parametrize("num_channels", [12, 128, 300])
def test_moments_are_those_of_all_tokens(num_channels: int) -> None:
    features = torch.randn(3, num_channels, 4, 5) + torch.linspace(1, 3, num_channels).view(1, -1, 1, 1)
    standardizer = PhiS(num_channels)
    for part in (features[:1], features[1:]):
        standardizer.update(part)
    standardizer.end_step()
    tokens = features.movedim(1, -1).flatten(0, -2).double()
    assert standardizer.count == 60
    torch.testing.assert_close(standardizer.total, tokens.sum(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(standardizer.outer_total, tokens.T @ tokens, rtol=1e-12, atol=1e-12)


def test_the_map_is_cast_once_and_follows_refits_and_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    features, standardizer, restored = correlated_features(12), fitted(correlated_features(12)), PhiS(12)
    with monkeypatch.context() as patch:
        patch.setattr(PhiS, "_cast", lambda self: pytest.fail("cast anew"))
        before = standardizer.standardize(features)
    standardizer.update(correlated_features(12, seed=3))
    standardizer.end_step()
    change = standardizer.refit()
    after = standardizer.standardize(features)
    assert not torch.equal(after, before)
    moved = torch.einsum("ij,njrc->nirc", change.matrix, before.double()) + change.offset[:, None, None]
    torch.testing.assert_close(after.double(), moved, rtol=1e-4, atol=1e-4)
    assert "float_matrix" not in standardizer.state_dict()
    restored.load_state_dict(standardizer.state_dict())
    assert torch.equal(restored.standardize(features), after)
