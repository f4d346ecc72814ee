import pytest
import torch
from torch import Tensor, nn

from training.targets.phi_s import (
    STANDARDIZERS,
    ChannelStandardizer,
    FeatureStandardizer,
    GlobalStandardizer,
    PhiS,
    equalizing_rotation,
    spreading_rotation,
)


WIDTHS = [1, 2, 5, 12, 33, 92, 112, 128]


def correlated_features(num_channels: int, rank: int | None = None, seed: int = 0) -> Tensor:
    """Features of very unequal scales around a large mean, `(4, channels, 16, 16)`."""
    generator = torch.Generator().manual_seed(seed)
    rank = rank or num_channels
    factors = torch.randn(4, 16, 16, rank, generator=generator, dtype=torch.float64) * torch.logspace(-1, 1, rank)
    mixing = torch.randn(rank, num_channels, generator=generator, dtype=torch.float64)
    return (factors @ mixing + 10 * torch.randn(num_channels, generator=generator)).movedim(-1, 1).float()


def fitted(features: Tensor, build: type[FeatureStandardizer] = PhiS) -> FeatureStandardizer:
    standardizer = build(features.shape[1])
    for part in features.chunk(2):
        standardizer.update(part)
    standardizer.end_step()
    standardizer.refit()
    return standardizer


def variances(features: Tensor) -> Tensor:
    return features.double().var((0, 2, 3), correction=0)


@pytest.mark.parametrize("num_channels", WIDTHS)
def test_every_channel_has_zero_mean_and_unit_variance(num_channels: int) -> None:
    features = correlated_features(num_channels)
    standardized = fitted(features).standardize(features)
    torch.testing.assert_close(variances(standardized), torch.ones(num_channels).double(), rtol=1e-4, atol=0)
    assert standardized.mean((0, 2, 3)).abs().max() < 1e-4


@pytest.mark.parametrize("num_channels", WIDTHS)
@pytest.mark.parametrize("method", STANDARDIZERS)
def test_inverse_is_exact(num_channels: int, method: str) -> None:
    features = correlated_features(num_channels)
    standardizer = fitted(features, STANDARDIZERS[method])
    torch.testing.assert_close(standardizer.invert(standardizer.standardize(features)), features, rtol=1e-4, atol=1e-3)


def test_without_standardization_the_mean_alone_is_taken_off() -> None:
    features = correlated_features(5)
    standardized = fitted(features, STANDARDIZERS["none"]).standardize(features)
    torch.testing.assert_close(standardized, features - features.mean((0, 2, 3), keepdim=True), rtol=0, atol=1e-3)


@pytest.mark.parametrize("num_channels", [5, 12, 128])
def test_map_is_a_rotation_and_one_scale(num_channels: int) -> None:
    standardizer = fitted(correlated_features(num_channels))
    assert isinstance(standardizer, PhiS)
    rotation = standardizer.matrix * standardizer.scale
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(num_channels).double())


@pytest.mark.parametrize("num_channels", [12, 33, 128])
def test_rank_deficient_features(num_channels: int) -> None:
    features = correlated_features(num_channels, rank=3)
    standardizer = fitted(features)
    standardized = standardizer.standardize(features)
    torch.testing.assert_close(variances(standardized), torch.ones(num_channels).double(), rtol=1e-3, atol=0)
    torch.testing.assert_close(standardizer.invert(standardized), features, rtol=1e-4, atol=1e-3)


def test_constant_features_give_zeros() -> None:
    features = torch.full((2, 4, 3, 3), 7.0)
    assert torch.equal(fitted(features).standardize(features), torch.zeros(2, 4, 3, 3))


@pytest.mark.parametrize("num_channels", [3, 92])
def test_fallback_equalises_variances(num_channels: int) -> None:
    eigenvalues = torch.logspace(-3, 3, num_channels, dtype=torch.float64)
    rotation = spreading_rotation(eigenvalues)
    assert torch.equal(rotation, equalizing_rotation(eigenvalues))
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(num_channels).double())
    diagonal = (rotation @ eigenvalues.diag() @ rotation.T).diagonal()
    torch.testing.assert_close(diagonal, eigenvalues.mean().expand(num_channels))


@pytest.mark.parametrize("scale", [1e-2, 30.0])
def test_rescaled_and_shifted_teacher_gives_the_same_targets(scale: float) -> None:
    features = correlated_features(12)
    changed = features * scale + 5
    torch.testing.assert_close(
        fitted(changed).standardize(changed), fitted(features).standardize(features), rtol=0, atol=2e-3
    )


@pytest.mark.parametrize("upsampling", [1, 4])
def test_folded_layer_answers_in_the_teachers_space(upsampling: int) -> None:
    features = correlated_features(12)
    standardizer = fitted(features)
    linear = nn.Linear(6, 12 * upsampling)
    tokens = torch.randn(5, 6)
    before = linear(tokens).detach().view(5 * upsampling, 12, 1, 1)
    standardizer.fold_inverse_into_linear(linear)
    after = linear(tokens).detach().view(5 * upsampling, 12, 1, 1)
    torch.testing.assert_close(after, standardizer.invert(before), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("upsampling", [1, 4])
def test_the_two_folds_undo_each_other(upsampling: int) -> None:
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
    with pytest.raises(ValueError, match="`linear` must have a bias and a multiple of 12 outputs"):
        fitted(correlated_features(12)).fold_inverse_into_linear(linear)


def test_channel_and_global_standardization() -> None:
    features = correlated_features(12)
    by_channel = variances(fitted(features, ChannelStandardizer).standardize(features))
    torch.testing.assert_close(by_channel, torch.ones(12).double(), rtol=1e-4, atol=0)
    globally = variances(fitted(features, GlobalStandardizer).standardize(features))
    assert globally.mean().item() == pytest.approx(1, rel=1e-4)
    assert globally.std() > 0.1


def test_frozen_statistics_do_not_change() -> None:
    standardizer = fitted(correlated_features(12))
    standardizer.freeze()
    with pytest.raises(RuntimeError, match="frozen"):
        standardizer.update(correlated_features(12))


def test_non_finite_batch_is_left_out() -> None:
    standardizer = fitted(correlated_features(12))
    state = {key: value.clone() for key, value in standardizer.state_dict().items()}
    bad = correlated_features(12, seed=1)
    bad[0, 0, 0, 0] = float("nan")
    standardizer.update(bad)
    standardizer.end_step()
    assert all(torch.equal(value, state[key]) for key, value in standardizer.state_dict().items())


def test_refit_without_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one batch"):
        PhiS(4).refit()


def test_state_restores_the_map() -> None:
    features = correlated_features(12)
    standardizer, restored = fitted(features), PhiS(12)
    restored.load_state_dict(standardizer.state_dict())
    assert torch.equal(restored.standardize(features), standardizer.standardize(features))


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
    before = standardizer.standardize(features)
    with monkeypatch.context() as patch:
        patch.setattr(PhiS, "_cast", lambda self: pytest.fail("cast anew"))
        standardizer.standardize(features)
    standardizer.update(correlated_features(12, seed=3))
    standardizer.end_step()
    standardizer.refit()
    assert not torch.equal(standardizer.standardize(features), before)
    assert "float_matrix" not in standardizer.state_dict()
    restored.load_state_dict(standardizer.state_dict())
    assert torch.equal(restored.standardize(features), standardizer.standardize(features))
