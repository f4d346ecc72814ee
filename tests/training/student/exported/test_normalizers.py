from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import RadioModel as NativeModel
from two_forks import run_two_forks

from conversion.from_nvidia import convert
from core.ranks import rank_and_count
from model_cards.build import build_card
from modeling_radio import RadioConfig, RadioModel
from modeling_radio.native import native_differences
from training.recipe import RecipeError
from training.recipe_sections import ExportRecipe
from training.student.export import (
    Normalizers,
    add_normalizers,
    check_normalizers,
    export_student,
    fit_normalizers,
    remove_normalizers,
)


REFERENCE = Path(__file__).parents[3] / "data/reference"
FINAL = ExportRecipe(feature_normalizer=True)
BOTH = ExportRecipe(feature_normalizer=True, intermediate_normalizers="per_block")
SHARED = ExportRecipe(intermediate_normalizers="shared")


def build(**adaptor) -> RadioModel:
    heads = [
        {"name": "t", "summary_dim": 4, "feature_dim": 8, "hidden_size": 8, "upsample_factor": 2},
        {"name": "summary", "summary_dim": 4, "hidden_size": 8},
        {"name": "old", "feature_dim": 8, "hidden_size": 8, "mlp_version": "v1", **adaptor},
    ]
    return RadioModel(RadioConfig.from_preset("radio-test", num_hidden_layers=2, adaptors=heads)).eval()


def images(num_batches: int = 3, sizes: tuple[int, ...] = (64,)) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [[torch.rand(4, 3, size, 64, generator=generator) for size in sizes] for _ in range(num_batches)]


def moments(parts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean and variance of each channel of features `(batch, tokens, channels)`."""
    tokens = torch.cat([part.double().flatten(0, 1) for part in parts])
    return tokens.mean(0), tokens.var(0, correction=0)


@torch.no_grad()
def test_features_of_the_fitted_images_have_zero_mean_and_unit_variance_in_each_channel() -> None:
    model, batches = build(), images()
    plain = [model(groups[0]).features for groups in batches]
    add_normalizers(model, fit_normalizers(model, batches, FINAL))
    normalized = [model(groups[0]).features for groups in batches]
    mean, variance = moments(normalized)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-4)
    torch.testing.assert_close(variance, torch.ones_like(variance), rtol=1e-3, atol=0)
    assert not torch.allclose(moments(plain)[1], variance, rtol=0.1)
    # One scale for all directions: distances keep their proportions.
    ratios = torch.cdist(normalized[0][0], normalized[0][0]) / torch.cdist(plain[0][0], plain[0][0])
    ratios = ratios[~torch.eye(len(ratios), dtype=torch.bool)]
    torch.testing.assert_close(ratios, ratios.mean().expand_as(ratios), rtol=1e-2, atol=0)


@pytest.mark.parametrize("kind", ["per_block", "shared"])
@torch.no_grad()
def test_features_of_blocks_are_standardized(kind: str) -> None:
    model, batches = build(), images()
    recipe = ExportRecipe(intermediate_normalizers=kind)
    plain = model.get_intermediate_features(batches[0][0], [0, 1])
    final = model(batches[0][0]).features
    add_normalizers(model, fit_normalizers(model, batches, recipe))
    answers = [model.get_intermediate_features(groups[0], [0, 1], feature_format="NLC") for groups in batches]
    variances = []
    for block in (0, 1):
        mean, variance = moments([answer[block].features for answer in answers])
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-4)
        variances.append(variance)
    assert not torch.allclose(plain[0].features.flatten(2).transpose(1, 2), answers[0][0].features)
    ones = torch.ones_like(variances[0])
    torch.testing.assert_close(torch.stack(variances).mean(0), ones, rtol=1e-3, atol=0)
    is_each_even = all(torch.allclose(variance, ones, rtol=1e-3) for variance in variances)
    assert is_each_even == (kind == "per_block")
    assert (model.radio_model.inter_feature_normalizer.rotation.ndim == 3) == (kind == "per_block")
    torch.testing.assert_close(model(batches[0][0]).features, final)  # the final ones are not touched


@torch.no_grad()
def test_adaptors_answer_as_without_and_normalizers_can_be_taken_away() -> None:
    model, batches = build(), images()
    pixel_values = batches[0][0]
    before = model(pixel_values)
    add_normalizers(model, fit_normalizers(model, batches, BOTH))
    between = model(pixel_values)
    assert not torch.allclose(between.features, before.features, atol=0.1)
    remove_normalizers(model)
    after = model(pixel_values)
    torch.testing.assert_close(after.features, before.features)
    for output in (between, after):
        for name in ("t", "old"):
            torch.testing.assert_close(
                output.adaptors[name].features, before.adaptors[name].features, rtol=1e-3, atol=1e-4
            )
        torch.testing.assert_close(output.adaptors["summary"].summary, before.adaptors["summary"].summary)
    assert not model.config.use_feature_normalizer
    assert not model.config.num_intermediate_normalizers
    assert model.state_dict().keys() == build().state_dict().keys()


def tensors_of(normalizers: Normalizers) -> list[Tensor]:
    return [tensor for part in normalizers if part is not None for tensor in part]


def test_images_of_several_sizes_count_by_their_patches() -> None:
    model, batches = build(), images(sizes=(64, 32))
    apart = [[group] for groups in batches for group in groups]
    for together, alone in zip(
        tensors_of(fit_normalizers(model, batches, BOTH)), tensors_of(fit_normalizers(model, apart, BOTH)), strict=True
    ):
        torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-3)


def test_two_ranks_fit_what_one_does(tmp_path: Path) -> None:
    model, batches = build(), images(num_batches=3)
    alone = [(recipe, tensors_of(fit_normalizers(model, batches, recipe))) for recipe in (BOTH, SHARED)]

    def check() -> None:
        rank, count = rank_and_count()
        for recipe, expected in alone:
            found = tensors_of(fit_normalizers(model, batches[rank::count], recipe))  # two batches and one
            for own, theirs in zip(found, expected, strict=True):
                torch.testing.assert_close(own, theirs, rtol=1e-6, atol=1e-6)

    run_two_forks(check, tmp_path)


def test_the_network_is_left_as_it_was() -> None:
    model = build().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fit_normalizers(model, images(), BOTH)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@torch.no_grad()
def test_the_exported_folder_opens_with_and_without_trust(tmp_path: Path) -> None:
    model, pixel_values = build(), images()[0][0]
    expected = model(pixel_values)
    normalizers = fit_normalizers(model, images(), BOTH)
    export_student(model, {}, tmp_path / "both", normalizers)
    export_student(model, {}, tmp_path / "blocks", normalizers._replace(final=None))
    assert not model.config.use_feature_normalizer
    opened = RadioModel.from_pretrained(tmp_path / "both").eval()
    mean, matrix = (tensor.float() for tensor in normalizers.final)
    torch.testing.assert_close(
        opened(pixel_values).features, (expected.features - mean) @ matrix.T, rtol=1e-4, atol=1e-4
    )
    for folder in ("both", "blocks"):
        native = NativeModel.from_pretrained(tmp_path / folder).eval()(pixel_values)
        torch.testing.assert_close(native.features, expected.features, rtol=1e-4, atol=1e-5)
    assert native_differences(opened.config) == ["a feature normalizer"]
    assert "The reason:\na feature normalizer." in build_card(tmp_path / "both").content
    assert native_differences(RadioConfig.from_pretrained(tmp_path / "blocks")) == []


def test_nvidias_normalizers_have_the_shape_of_phi_s_and_so_have_ours() -> None:
    prefix = "radio_model."
    given = convert(REFERENCE / "radio_v2.5_tiny/checkpoint.pth.tar").state_dict()
    model = build()
    add_normalizers(model, fit_normalizers(model, images(), BOTH))
    for state in (given, model.state_dict()):
        matrix = state[f"{prefix}feature_normalizer.tx"].double()
        product = matrix @ matrix.T
        isotropic = product.diagonal().mean() * torch.eye(len(matrix), dtype=torch.float64)
        torch.testing.assert_close(product, isotropic, rtol=1e-4, atol=1e-4 * float(isotropic.max()))
        rotations = state[f"{prefix}inter_feature_normalizer.rotation"].double()
        identity = torch.eye(rotations.shape[-1], dtype=torch.float64).expand_as(rotations)
        torch.testing.assert_close(rotations @ rotations.transpose(1, 2), identity, rtol=0, atol=1e-5)
        assert state[f"{prefix}inter_feature_normalizer.alphas"].shape == (len(rotations),)
        assert (state[f"{prefix}inter_feature_normalizer.alphas"] > 0).all()


def test_what_cannot_be_normalized_is_refused_before_the_run() -> None:
    attention = build(feature_head="attention", feature_num_attention_heads=2, mlp_version="v2").config
    with pytest.raises(RecipeError, match=r"`export.feature_normalizer` must be false with dense heads .* \['old'\]"):
        check_normalizers(FINAL, attention)
    check_normalizers(SHARED, attention)
    config = build().config
    config.use_feature_normalizer, config.num_intermediate_normalizers = True, 2
    with pytest.raises(RecipeError, match=r"must be false with `student.config.use_feature_normalizer`"):
        check_normalizers(FINAL, config)
    with pytest.raises(RecipeError, match=r"must be 'none' with `student.config.num_intermediate_normalizers`"):
        check_normalizers(SHARED, config)
    check_normalizers(ExportRecipe(), config)
    config.downscale_levels = [1]
    with pytest.raises(
        RecipeError, match=r"`export` must be without normalizers with `student.config.downscale_levels`"
    ):
        check_normalizers(SHARED, config)
    with pytest.raises(RecipeError, match="its dense head 'old' reads normalized features"):
        remove_normalizers(RadioModel(RadioConfig.from_dict({**attention.to_dict(), "use_feature_normalizer": True})))
