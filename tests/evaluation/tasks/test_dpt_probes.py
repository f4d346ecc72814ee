"""Probes with a DPT head: bins, seeds, and the preset of NYU to the end."""

import math

import numpy as np
import pytest
import torch

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.evaluation.data_tables import open_data
from modeling_radio.evaluation.models.radio import RadioFeatures
from modeling_radio.evaluation.settings import DataOptions, EvaluationSettings
from modeling_radio.evaluation.tasks import dpt_probes
from modeling_radio.evaluation.tasks.base import Evaluation
from modeling_radio.evaluation.tasks.dpt_probes import (
    DptProbe,
    augmented,
    depth_loss,
    depth_of_bins,
    fit_dpt_probe,
    normal_loss,
    rate_at,
)
from modeling_radio.evaluation.tasks.registry import find_task
from modeling_radio.evaluation.tasks.settings import TaskSettings


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_bins_are_averaged_as_in_numpy():
    outputs = normal(2, 16, 3, 3, seed=0)
    shares = np.maximum(outputs.double().numpy(), 0) + 0.1
    bins = np.linspace(0.001, 10, 16)
    expected = (shares * bins[:, None, None]).sum(1) / shares.sum(1)
    np.testing.assert_allclose(depth_of_bins(outputs).numpy(), expected, rtol=1e-6)


def test_losses_without_a_known_pixel_are_zero():
    assert depth_loss(normal(2, 14, 14, seed=0).exp(), torch.zeros(2, 14, 14)) == 0
    predicted, true = normal(2, 4, 5, 5, seed=0), normal(2, 3, 5, 5, seed=1)
    assert normal_loss(predicted, true, torch.zeros(2, 5, 5, dtype=torch.bool)) == 0


def test_the_rate_rises_and_falls():
    settings = TaskSettings(probe_steps=100, probe_warmup_steps=20)
    rates = [rate_at(step, settings) for step in (0, 10, 20, 60, 100)]
    assert rates == pytest.approx([0.01, 0.505, 1, 0.99 * math.cos(math.pi / 4) + 0.01, 0.01])
    assert rate_at(0, TaskSettings(probe_steps=10)) == 1


def test_targets_are_cut_like_their_image():
    image = torch.arange(64, dtype=torch.uint8).repeat(3, 64, 1)
    torch.manual_seed(0)
    widths = set()
    for _ in range(20):
        changed, target = augmented(image, image[:1].float())
        assert changed.shape == image.shape
        widths.add(int(target[0, 0, -1] - target[0, 0, 0]))
        assert torch.equal(target[0, 0], target[0, -1])
    assert max(widths) == 63
    assert 40 <= min(widths) < 63


def test_the_head_has_sixteen_pixels_for_a_patch():
    probe = DptProbe(6, 5, hidden_dim=8)
    outputs = probe([normal(2, 6, 3, 3, seed=seed) for seed in range(4)])
    assert outputs.shape == (2, 5, 48, 48)
    outputs.sum().backward()
    assert all(parameter.grad is not None for parameter in probe.parameters())


def test_the_preset_of_nyu_runs_to_the_end(nyu_folder, reference, monkeypatch, tmp_path):
    monkeypatch.setattr(dpt_probes, "HIDDEN_DIM", 8)
    small = {"size": 32, "probe_steps": 3, "probe_warmup_steps": 1}
    settings = EvaluationSettings(checkpoint=tmp_path, data=str(nyu_folder), preset="nyu", **small)
    data = open_data(str(nyu_folder), settings, size_px=32)
    model = RadioFeatures(reference, size_px=32)
    for name in settings.tasks:
        measured = find_task(name).measure(Evaluation(model, data, settings))
        angles = [f"within {angle} degrees" for angle in ("11.25", "22.5", "30")]
        metrics = ["delta1", "rmse"] if name == "depth_dpt_probe" else angles
        assert [each.metric for each in measured] == metrics
        assert all(0 <= each.value < 30 for each in measured)
    weights = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        loss = lambda outputs, depth: depth_loss(depth_of_bins(outputs), depth[:, 0])  # noqa: E731
        weights.append(fit_dpt_probe(model, data.part("depth").train, "depth", 4, loss, settings).outputs[0].weight)
        assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(*weights)


def test_four_blocks_are_those_of_probe3d(tiny_model):
    torch.manual_seed(0)
    network = RadioModel(RadioConfig.from_preset("radio-test", num_hidden_layers=9)).eval()
    pixels = torch.rand(1, 3, 32, 32)
    every = network.get_intermediate_features(pixels, list(range(9)))
    found = RadioFeatures(network, size_px=32).encode_blocks(pixels)
    for own, block in zip(found, (1, 3, 5, 8), strict=True):
        torch.testing.assert_close(own, network.model.norm(every[block].features.movedim(1, -1)).movedim(-1, 1))
    with pytest.raises(ValueError, match="four"):
        RadioFeatures(tiny_model, size_px=32).encode_blocks(pixels)


def test_a_probe_needs_blocks_and_a_train_split(nyu_folder, pixels, depth_folder):
    for folder, options, message in ((nyu_folder, {"layout": "nyu"}, "RADIO model"), (depth_folder, {}, "`data`")):
        data = open_data(str(folder), DataOptions(**options), size_px=16)
        with pytest.raises(ValueError, match=message):
            find_task("depth_dpt_probe").measure(pixels(data))
