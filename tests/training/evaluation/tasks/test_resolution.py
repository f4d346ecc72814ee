import numpy as np
import pytest
import torch
from PIL import Image

from modeling_radio import RadioConfig, RadioModel
from training.evaluation.data_tables import TableData
from training.evaluation.models.radio import RadioFeatures
from training.evaluation.tasks.base import Evaluation, TaskSettings
from training.evaluation.tasks.dense_prediction import (
    measure_mode_switching,
    measure_resolution_consistency,
    measure_window_consistency,
)


@pytest.fixture
def student(tiny_model, noisy_folders):
    """Builds the evaluation of the tiny model on noisy images."""

    def build(model=tiny_model, **settings):
        return Evaluation(RadioFeatures(model, size_px=32), TableData(str(noisy_folders)), TaskSettings(**settings))

    return build


def test_consistency_is_measured_at_sizes_that_the_model_takes(student):
    found = {each.metric: each for each in measure_resolution_consistency(student(consistency_sizes_px=[14, 64, 512]))}
    assert list(found) == ["16 to 64 px", "16 to 64 px, centered"]
    assert all(each.low < each.value < each.high < 1 for each in found.values())


@pytest.fixture
def wide(tmp_path) -> TableData:
    """Images twice as wide as high: at 16 px and above they all fill the longer side of a model of 32 px."""
    for number in range(6):
        folder = tmp_path / "wide" / ("ant" if number % 2 else "bee")
        folder.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (32, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    return TableData(str(tmp_path / "wide"))


def test_images_are_not_compared_with_themselves_where_the_longer_side_is_bounded(wide):
    config = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8, "max_img_size": 32}
    model = RadioFeatures(RadioModel(RadioConfig(**config)).eval(), size_px=16)
    evaluation = Evaluation(
        model, wide, TaskSettings(consistency_sizes_px=[16, 32], switching_sizes_px=[16, 32], neighbors=1)
    )
    for each in measure_resolution_consistency(evaluation):
        assert each.value < 0.999
    cosines = {each.metric: each.value for each in measure_mode_switching(evaluation)}
    assert cosines["16 px, centered cosine with 16 px"] == pytest.approx(1, abs=1e-5)
    assert cosines["32 px, centered cosine with 16 px"] < 0.999


def test_sizes_that_are_one_to_the_model(student):
    with pytest.raises(ValueError, match=r"`consistency_sizes_px` \[31, 32\] are all 32 px to this model"):
        measure_resolution_consistency(student(consistency_sizes_px=[31, 32]))


def test_colors_are_the_same_at_every_size_and_queries_switch_alone(pixels, noisy_folders):
    evaluation = pixels(TableData(str(noisy_folders)), switching_sizes_px=[8, 16], neighbors=5)
    found = {each.metric: each.value for each in measure_mode_switching(evaluation)}
    assert found["16 px, gallery alike"] == found["16 px, gallery at 16 px"]
    assert found["16 px, centered cosine with 16 px"] == pytest.approx(1, abs=1e-5)
    assert found["8 px, centered cosine with 16 px"] < 0.99


@pytest.fixture
def windowed() -> RadioModel:
    config = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8, "max_img_size": 64}
    return RadioModel(RadioConfig(**config, vitdet_num_global=1)).eval()


def test_windows_change_features_and_their_size_matters(student, windowed):
    values = []
    for window in (2, 4):
        evaluation = student(windowed, switching_sizes_px=[16, 64], compared_window=window)
        plain, centered = measure_window_consistency(evaluation)
        assert plain.metric == f"window {window} at 64 px"
        assert centered.value < plain.value < 1
        values.append(centered.value)
    assert values[0] != values[1]


def test_windows_that_cannot_be_compared(student, windowed, tiny_model):
    with pytest.raises(ValueError, match="`compared_window` must be below the 8 patches of 64 px, got 8: else"):
        measure_window_consistency(student(windowed, switching_sizes_px=[16, 64], compared_window=8))
    with pytest.raises(ValueError, match="`window_consistency` needs a RADIO model with windowed blocks"):
        measure_window_consistency(student(tiny_model))
    assert torch.is_grad_enabled()
