from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import RadioModel as NativeModel

from modeling_radio import RadioConfig, RadioImageProcessor, RadioModel
from modeling_radio.conversion.from_nvidia import convert
from modeling_radio.core.files import WriteError
from modeling_radio.model_cards.build import build_card
from modeling_radio.native import native_differences
from modeling_radio.training.recipes.recipe import RecipeError
from modeling_radio.training.recipes.sections import ExportRecipe
from modeling_radio.training.student.export import (
    Normalizers,
    add_normalizers,
    check_export_settings,
    export_student,
    fit_normalizers,
    remove_normalizers,
)
from modeling_radio.training.student.regularizers import add_damp, add_spectral_scales
from modeling_radio.training.targets.phi_s import PhiS


REFERENCE = Path(__file__).parents[2] / "reference"
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


def images(sizes: tuple[int, ...] = (64,)) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [[torch.rand(4, 3, size, 64, generator=generator) for size in sizes] for _ in range(3)]


def tensors_of(normalizers: Normalizers) -> list[Tensor]:
    return [tensor for part in normalizers if part is not None for tensor in part.values()]


def moments(parts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean and variance of each channel of features `(batch, tokens, channels)`."""
    tokens = torch.cat([part.double().flatten(0, 1) for part in parts])
    return tokens.mean(0), tokens.var(0, correction=0)


def test_exported_adaptors_predict_in_the_teachers_own_space_with_plain_weights(tmp_path: Path) -> None:
    """From a student as it is in training: with noise and reparametrized weights."""
    student, standardizer, pixel_values = build(), PhiS(8), torch.rand(2, 3, 32, 48)
    add_damp(student, 0.1)
    add_spectral_scales(student)
    standardizer.update(torch.randn(4, 8, 5, 5) * torch.arange(1.0, 9.0).view(8, 1, 1) + 3)
    standardizer.end_step()
    standardizer.refit()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    export_student(student, {"t": standardizer}, tmp_path / "final")
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    expected = student.eval()(pixel_values, feature_format="NCHW")
    opened = RadioModel.from_pretrained(tmp_path / "final").eval()
    output = opened(pixel_values, feature_format="NCHW")
    torch.testing.assert_close(output.features, expected.features, atol=1e-5, rtol=1e-4)
    own_space = standardizer.invert(expected.adaptors["t"].features)
    torch.testing.assert_close(output.adaptors["t"].features, own_space, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.adaptors["t"].summary, expected.adaptors["t"].summary, atol=1e-5, rtol=1e-4)
    assert opened.state_dict().keys() == build().state_dict().keys()
    RadioImageProcessor.from_pretrained(tmp_path / "final")


@torch.no_grad()
def test_layer_scale_is_folded_into_the_exported_folder_alone(tmp_path: Path) -> None:
    config = RadioConfig.from_preset("radio-test", num_hidden_layers=2, use_layer_scale=True, layerscale_value=0.5)
    student, pixel_values = RadioModel(config).eval(), images()[0][0]
    for block in student.radio_model.model.blocks:
        block.ls1.grandma.copy_(torch.rand(config.hidden_size))
    expected = student(pixel_values).features
    export_student(student, {}, tmp_path / "final", folds_layer_scale=True)
    assert student.config.use_layer_scale
    opened = RadioModel.from_pretrained(tmp_path / "final").eval()
    assert native_differences(opened.config) == []
    for model in (opened, NativeModel.from_pretrained(tmp_path / "final").eval()):
        torch.testing.assert_close(model(pixel_values).features, expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(RecipeError, match=r"`export\.fold_layer_scale`"):
        check_export_settings(ExportRecipe(fold_layer_scale=True), build().config)


def test_a_failed_export_leaves_the_older_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "final"
    export_student(build(), {}, folder)
    written = (folder / "model.safetensors").read_bytes()

    def fail(self: RadioImageProcessor, path: Path) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(RadioImageProcessor, "save_pretrained", fail)
    with pytest.raises(WriteError, match="No space left"):
        export_student(build(), {}, folder)
    assert (folder / "model.safetensors").read_bytes() == written
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


class TestNormalizers:
    @torch.no_grad()
    def test_final_features_of_the_fitted_images_have_zero_mean_and_unit_variance(self) -> None:
        model, batches = build().train(), images()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        normalizers = fit_normalizers(model, batches, FINAL)
        assert model.training
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        plain = [model.eval()(groups[0]).features for groups in batches]
        add_normalizers(model, normalizers)
        normalized = [model(groups[0]).features for groups in batches]
        mean, variance = moments(normalized)
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-4)
        torch.testing.assert_close(variance, torch.ones_like(variance), rtol=1e-3, atol=0)
        # One scale for all directions: distances keep their proportions.
        ratios = torch.cdist(normalized[0][0], normalized[0][0]) / torch.cdist(plain[0][0], plain[0][0])
        ratios = ratios[~torch.eye(len(ratios), dtype=torch.bool)]
        torch.testing.assert_close(ratios, ratios.mean().expand_as(ratios), rtol=1e-2, atol=0)

    @pytest.mark.parametrize("kind", ["per_block", "shared"])
    @torch.no_grad()
    def test_features_of_blocks_are_standardized_and_the_final_ones_stay(self, kind: str) -> None:
        model, batches = build(), images()
        final = model(batches[0][0]).features
        add_normalizers(model, fit_normalizers(model, batches, ExportRecipe(intermediate_normalizers=kind)))
        outputs = [model.get_intermediate_features(groups[0], [0, 1], feature_format="NLC") for groups in batches]
        variances = []
        for block in (0, 1):
            mean, variance = moments([output[block].features for output in outputs])
            torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-4)
            variances.append(variance)
        ones = torch.ones_like(variances[0])
        torch.testing.assert_close(torch.stack(variances).mean(0), ones, rtol=1e-3, atol=0)
        is_each_even = all(torch.allclose(variance, ones, rtol=1e-3) for variance in variances)
        assert is_each_even == (kind == "per_block")
        assert (model.radio_model.inter_feature_normalizer.rotation.ndim == 3) == (kind == "per_block")
        torch.testing.assert_close(model(batches[0][0]).features, final)

    @torch.no_grad()
    def test_outputs_of_adaptors_stay_and_normalizers_can_be_removed(self) -> None:
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
                features = output.adaptors[name].features, before.adaptors[name].features
                torch.testing.assert_close(*features, rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(output.adaptors["summary"].summary, before.adaptors["summary"].summary)
        assert (model.config.use_feature_normalizer, model.config.num_intermediate_normalizers) == (False, 0)
        assert model.state_dict().keys() == build().state_dict().keys()

    def test_images_of_several_sizes_count_by_their_patches(self) -> None:
        model, batches = build(), images(sizes=(64, 32))
        apart = [[group] for groups in batches for group in groups]
        together, alone = (tensors_of(fit_normalizers(model, each, BOTH)) for each in (batches, apart))
        torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-3)

    @torch.no_grad()
    def test_the_exported_folder_opens_with_and_without_trust(self, tmp_path: Path) -> None:
        model, pixel_values = build(), images()[0][0]
        expected = model(pixel_values).features
        normalizers = fit_normalizers(model, images(), BOTH)
        export_student(model, {}, tmp_path / "both", normalizers)
        export_student(model, {}, tmp_path / "blocks", normalizers._replace(final=None))
        assert not model.config.use_feature_normalizer
        opened = RadioModel.from_pretrained(tmp_path / "both").eval()
        normalized = (expected - normalizers.final["mean"].float()) @ normalizers.final["tx"].float().T
        torch.testing.assert_close(opened(pixel_values).features, normalized, rtol=1e-4, atol=1e-4)
        for folder in ("both", "blocks"):
            native = NativeModel.from_pretrained(tmp_path / folder).eval()(pixel_values)
            torch.testing.assert_close(native.features, expected, rtol=1e-4, atol=1e-5)
        assert native_differences(opened.config) == ["a feature normalizer"]
        assert "The reason:\na feature normalizer." in build_card(tmp_path / "both").content
        assert native_differences(RadioConfig.from_pretrained(tmp_path / "blocks")) == []

    def test_ours_have_the_shape_of_nvidias(self) -> None:
        """A rotation times a scale, and rotations."""
        model = build()
        add_normalizers(model, fit_normalizers(model, images(), BOTH))
        for each in (convert(REFERENCE / "radio_v2.5_tiny/checkpoint.pth.tar"), model):
            state = each.state_dict()
            for name in ("feature_normalizer.tx", "inter_feature_normalizer.rotation"):
                matrix = state[f"radio_model.{name}"].double()
                product = matrix @ matrix.mT
                scale = product.diagonal(dim1=-2, dim2=-1).mean() if name.endswith("tx") else 1.0
                isotropic = (scale * torch.eye(matrix.shape[-1], dtype=torch.float64)).expand_as(product)
                torch.testing.assert_close(product, isotropic, rtol=1e-4, atol=1e-4 * float(isotropic.max()))

    def test_impossible_normalizers_are_refused_before_the_run(self) -> None:
        attention = build(feature_head="attention", feature_num_attention_heads=2, mlp_version="v2").config
        check_export_settings(SHARED, attention)
        has_some, merging = build().config, build().config
        has_some.use_feature_normalizer, has_some.num_intermediate_normalizers = True, 2
        check_export_settings(ExportRecipe(), has_some)
        merging.downscale_levels = [1]
        for recipe, config, named in (
            (FINAL, attention, r"`export\.feature_normalizer`.*\['old'\]"),
            (FINAL, has_some, r"`export\.feature_normalizer`.*`student\.config\.use_feature_normalizer`"),
            (SHARED, has_some, r"`export\.intermediate_normalizers`"),
            (SHARED, merging, r"`export` .*`student\.config\.downscale_levels`"),
        ):
            with pytest.raises(RecipeError, match=named):
                check_export_settings(recipe, config)
        with pytest.raises(RecipeError, match="'old'"):
            remove_normalizers(
                RadioModel(RadioConfig.from_dict({**attention.to_dict(), "use_feature_normalizer": True}))
            )
