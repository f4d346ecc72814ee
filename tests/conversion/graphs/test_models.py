"""What a graph computes by default: the model's own windows."""

import pytest
import torch
from task_models import tiny_config

from modeling_radio import RadioConfig, RadioForSemanticSegmentation, RadioModel
from modeling_radio.conversion.graphs.models import FlatRadio, FlatTask


@pytest.mark.parametrize(
    ("own", "asked", "window", "step"),
    [(None, None, "global", 16), (2, None, 2, 32), (2, "global", "global", 16), (2, 4, 4, 64), (None, 2, 2, 32)],
)
def test_windows_are_the_models_own_unless_asked(own, asked, window, step):
    torch.manual_seed(0)
    model = RadioModel(RadioConfig.from_preset("radio-test", vitdet_window_size=own)).eval()
    graph = FlatRadio(model, window_size=asked)
    assert (graph.window_size, graph.step) == (window, step)
    images = torch.rand(1, 3, 64, 128)
    with torch.no_grad():
        features = dict(zip(graph.names, graph(images), strict=True))["features"]
        assert torch.equal(features, model(images, window_size=window).features)
        assert torch.equal(features, model(images).features) == (asked is None)


def test_a_tuned_window_stays_in_the_graph_of_a_task():
    model = RadioForSemanticSegmentation(tiny_config(vitdet_window_size=2)).eval()
    assert FlatTask(model).window_size == 2
    assert FlatTask(model, "global").window_size == "global"
