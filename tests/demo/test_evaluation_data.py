import pytest
import torch

from modeling_radio.demo import evaluation_data, images
from modeling_radio.demo.evaluation_data import DemoData, load_photographs
from modeling_radio.demo.images import photographs, segmentation_set
from modeling_radio.evaluation.data_tables import open_data
from modeling_radio.evaluation.settings import DataOptions


def test_loaded_images_are_the_held_out_ones_of_one_size(assets, monkeypatch):
    for module in (evaluation_data, images):
        monkeypatch.setattr(module, "load_demo_assets", lambda source: assets)
    monkeypatch.setattr(evaluation_data, "segmentation_set", lambda assets, size: segmentation_set(assets, size, 2, 3))
    monkeypatch.setattr(evaluation_data, "NUM_UNLABELED", 4)
    data = open_data("demo", DataOptions(), size_px=24)
    assert isinstance(data, DemoData)
    assert data.source == data.name == "demo"
    assert data.unlabeled.shape == (4, 3, 24, 24)
    assert data.unlabeled.dtype == torch.uint8
    assert data.segmentation.train_images.shape == (2, 3, 24, 24)
    assert data.segmentation.test_images.shape == (3, 3, 24, 24)
    middle = data.classification.query_images[:, :, 12, 12]
    assert (middle[:, 2] > middle[:, 0]).all()  # held-out objects are blue, those of the training red


def test_photographs_are_middle_squares(assets):
    chosen = photographs(assets)
    squares = load_photographs(chosen, 20)
    assert squares.shape == (len(chosen), 3, 20, 20)
    assert squares.dtype == torch.uint8
    assert squares.min() > 200  # the held-out ones are light
    with pytest.raises(ValueError, match="no held-out photographs"):
        load_photographs([], 64)
