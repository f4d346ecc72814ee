"""The window that is chosen for a budget, and what `window_size="auto"` does."""

import warnings

import pytest
import torch
from refusals import refused, wrong

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.inputs_radio import WindowChoice, choose_without_budget
from modeling_radio.window_budget_radio import fit_costs


B = RadioConfig.from_preset("c-radio_v3-b")
H = RadioConfig.from_preset("c-radio_v4-h")


@pytest.mark.parametrize(
    ("config", "px", "expected"),
    [
        (B, 224, None),
        (B, 512, None),
        (B, 768, 24),
        (B, 1024, 32),
        (H, 512, None),
        (H, 768, 24),
        (H, 1024, 32),
        (H, 2048, 32),
    ],
)
def test_auto_is_global_until_attention_costs(config, px, expected):
    assert choose_without_budget(config, px // 16, px // 16) == expected


@torch.no_grad()
def test_forward_takes_auto_and_choices():
    config = RadioConfig.from_preset("radio-test", max_img_size=1024, vitdet_num_global=2)
    model = RadioModel(config).eval()
    batch = torch.rand(1, 3, 256, 384)
    window = choose_without_budget(config, 16, 24)
    assert window == 9
    auto = model(batch, window_size="auto").features
    assert torch.equal(auto, model(batch, window_size=window).features)
    assert torch.equal(auto, model(batch, window_size=WindowChoice(window, 1.0, 1.0)).features)
    small = torch.rand(1, 3, 32, 32)
    assert torch.equal(model(small, window_size="auto").features, model(small).features)


def known_costs(model: RadioModel, *costs: float) -> dict:
    """Return the record of a calibration: milliseconds of a call, a token and a pair."""
    key = (str(model.device), model.dtype, model.config._attn_implementation)
    return {key: torch.tensor(costs, dtype=torch.float64)}


@pytest.fixture
def shallow() -> RadioModel:
    """A model whose four blocks are all global."""
    model = RadioModel(RadioConfig.from_preset("radio-test", max_img_size=1024, vitdet_num_global=4)).eval()
    assert not model.config.has_windowed_blocks
    return model


@torch.no_grad()
@pytest.mark.parametrize("by_default", [False, True])
def test_a_window_without_effect_is_told(shallow, by_default):
    batch = torch.rand(1, 3, 64, 64)
    whole = shallow(batch, window_size="global").features
    if by_default:
        shallow.config.vitdet_window_size = 2
    message = r"`window_size` has no effect, got 2: all 4 blocks attend globally.* `vitdet_num_global` of half"
    with pytest.warns(UserWarning, match=message):
        windowed = shallow(batch, window_size=None if by_default else 2).features
    assert torch.equal(windowed, whole)
    deeper = RadioModel(RadioConfig.from_preset("radio-test", vitdet_num_global=2)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        deeper(batch, window_size=2)


@torch.no_grad()
def test_nothing_is_chosen_or_told_where_windows_have_no_effect(shallow):
    assert choose_without_budget(shallow.config, 16, 24) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shallow(torch.rand(1, 3, 64, 64), window_size="auto")
    shallow._block_costs = known_costs(shallow, 1.0, 0.1, 0.01)
    with pytest.warns(UserWarning, match="No window fits"):
        assert shallow.choose_window_size(256, 256, max_latency_ms=1e-9).window_size is None


CANDIDATES = [WindowChoice(None, 90.0, 2.0), WindowChoice(32, 60.0, 1.5), WindowChoice(16, 40.0, 1.5)]


@pytest.mark.parametrize(
    ("latency", "memory", "expected"),
    [(100, None, None), (70, None, 32), (45, None, 16), (None, 1.6, 32), (45, 1.6, 16), (1, None, 16)],
)
@pytest.mark.filterwarnings("ignore:No window fits")
def test_largest_attention_within_the_budget(latency, memory, expected, monkeypatch):
    model = RadioModel(RadioConfig.from_preset("radio-test", max_img_size=1024, vitdet_num_global=2))
    costs = {choice.window_size: choice for choice in CANDIDATES}
    never = WindowChoice(0, 1e9, 1e9)
    monkeypatch.setattr(model, "predict_window_cost", lambda height, width, window, batch: costs.get(window, never))
    assert model.choose_window_size(1024, 1024, latency, memory).window_size == expected


def test_fit_recovers_costs_and_is_never_negative():
    torch.manual_seed(0)
    sizes = torch.rand(8, 3, dtype=torch.float64) * 100 + 1
    costs = torch.tensor([1.0, 0.5, 0.01], dtype=torch.float64)
    torch.testing.assert_close(fit_costs(sizes, sizes @ costs), costs)
    negative = sizes @ torch.tensor([1.0, 0.5, -0.01], dtype=torch.float64)
    assert fit_costs(sizes, negative).min() >= 0


def test_prediction_adds_up_over_the_blocks():
    model = RadioModel(RadioConfig.from_preset("radio-test", vitdet_num_global=2))
    model._block_costs = known_costs(model, 1.0, 0.1, 0.01)
    prefix = model.config.num_prefix_tokens
    whole = model.predict_window_cost(4 * model.patch_size, 4 * model.patch_size, None, batch_size=2)
    length = prefix + 16
    per_global = 1 + 2 * (0.1 * length + 0.01 * length**2)
    assert whole.latency_ms == pytest.approx(4 * per_global)
    per_windowed = 1 + 2 * (0.1 * 16 + 0.01 * 4 * 16)
    windowed = model.predict_window_cost(4 * model.patch_size, 4 * model.patch_size, 2, batch_size=2)
    assert windowed.latency_ms == pytest.approx(2 * per_global + 2 * per_windowed)
    weights = sum(p.numel() * 4 for p in model.radio_model.model.parameters())
    assert whole.memory_gib > weights / 2**30


@wrong(window_size=[True, 0, -1, 2.0, float("nan"), "2", torch.tensor(2), [2], WindowChoice(0, 1.0, 1.0)])
def test_windows_that_are_none(name, value):
    model = RadioModel(RadioConfig.from_preset("radio-test"))
    refused(name, lambda: model(torch.rand(1, 3, 32, 32), window_size=value))


@wrong(window_size=[0, "auto"], batch_size=[0], height=[64.0])
def test_costs_of_what_cannot_be(name, value):
    model, others = RadioModel(RadioConfig.from_preset("radio-test")), {"height": 64, "width": 64, "window_size": None}
    refused(name, lambda: model.predict_window_cost(**{**others, name: value}))


def test_measures_once_per_device_and_warns_when_nothing_fits():
    model = RadioModel(RadioConfig.from_preset("radio-test")).train()
    choice = model.choose_window_size(256, 256, max_latency_ms=1e9)
    assert choice.window_size is None
    assert choice.latency_ms > 0
    costs = model._block_costs
    with pytest.warns(UserWarning, match="No window fits"):
        model.choose_window_size(256, 256, max_latency_ms=1e-9)
    assert model._block_costs is costs
    assert model.radio_model.model.blocks[0].training
    with pytest.raises(ValueError, match="`height`"):
        model.choose_window_size(250, 230, max_latency_ms=1.0)
