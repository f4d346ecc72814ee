"""What the models refuse, and how they say it; and how often positions are resized."""

import warnings

import pytest
import torch
from releases import needs_exporter
from torch import nn

from modeling_radio import RadioConfig, RadioImageProcessor, RadioModel


@pytest.fixture
def model() -> RadioModel:
    return RadioModel(RadioConfig.from_preset("radio-test")).eval()


@pytest.mark.parametrize(
    ("pixel_values", "message"),
    [
        (
            torch.rand(1, 3, 60, 33),
            "multiples of 16 and at most 256 pixels, got 60 x 33. The nearest valid size is 64 x 32",
        ),
        (torch.rand(1, 3, 272, 64), "The nearest valid size is 256 x 64"),
        (torch.rand(1, 3, 4, 64), "The nearest valid size is 16 x 64"),
        (torch.rand(1, 4, 64, 64), "must have 3 channels, got 4"),
        (torch.rand(3, 64, 64), r"shape \(batch, channels, height, width\) .*, got \(3, 64, 64\)"),
        (torch.tensor(0.5), r"`pixel_values` must have the shape .*, got \(\)"),
        (torch.rand(0, 3, 64, 64), r"`pixel_values` must .* with at least one image, got \(0, 3, 64, 64\)"),
        ([[0.5]], "`pixel_values` must be a tensor, got a list. The image processor returns one"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "Divide by 255 or use the image processor"),
    ],
)
def test_bad_images(model, pixel_values, message):
    with pytest.raises(ValueError, match=message):
        model(pixel_values)


def test_bad_format_and_blocks(model):
    batch = torch.rand(1, 3, 32, 32)
    with pytest.raises(ValueError, match=r"must be one of \['NLC', 'NCHW'\], got 'NHWC'. Did you mean 'NCHW'"):
        model(batch, feature_format="NHWC")
    with pytest.raises(ValueError, match=r"ascending blocks in \[0, 4\), got \[2, 1\]"):
        model.get_intermediate_features(batch, indices=[2, 1])
    with pytest.raises(ValueError, match=r"`aggregation` must be one of \['sparse', 'dense'\], got 'mean'"):
        model.get_intermediate_features(batch, indices=[1], aggregation="mean")


@pytest.mark.parametrize(
    ("patches", "grids", "message"),
    [
        (torch.rand(()), [[2, 3]], r"`pixel_values` must have the shape \(6, 768\) .*, got \(\)"),
        (torch.zeros(6, 768, dtype=torch.long), [[2, 3]], "`pixel_values` must be floating point .*, got torch.int64"),
        (torch.rand(6, 768), [[2.0, 3.0]], "`image_grid_hw` must be integers of the shape .*, got torch.float32"),
        (torch.rand(6, 768), [], r"`image_grid_hw` must be .* with at least one image, got .* of \(0,\)"),
        (torch.rand(6, 768), [[-2, -3]], r"`image_grid_hw` must lie in \[1, 16\] patches, got \[\(-2, -3\)\]"),
        (torch.rand(0, 768), [[0, 3]], r"`image_grid_hw` must lie in \[1, 16\] patches, got \[\(0, 3\)\]"),
        ([[0.5]], [[2, 3]], "`pixel_values` must be a tensor, got a list"),
    ],
)
def test_bad_packs(model, patches, grids, message):
    with pytest.raises(ValueError, match=message):
        model(patches, image_grid_hw=torch.tensor(grids))


@pytest.mark.parametrize("names", ["sam3", 5, [5], {"sam3": 1}])
def test_names_of_adaptors_are_a_list(model, names):
    with pytest.raises(ValueError, match="`adaptor_names` must be a list of which each entry is a string, got"):
        model(torch.rand(1, 3, 32, 32), adaptor_names=names)


@pytest.mark.parametrize("indices", ["01", 3, [0.0], [True], [None], torch.tensor([1])])
def test_indices_are_integers(model, indices):
    with pytest.raises(ValueError, match="`indices` must be a list of integers, got"):
        model.get_intermediate_features(torch.rand(1, 3, 32, 32), indices)


def test_draws_are_a_tensor(model):
    with pytest.raises(ValueError, match="`draws` must be a tensor, got a list"):
        model(torch.rand(1, 3, 32, 32), draws=[0.5])


def test_pixels_far_outside_the_range_warn_once(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.rand(1, 3, 32, 32) * 1.1 - 0.05)
    with pytest.warns(UserWarning, match="divided by 255"):
        model(torch.rand(1, 3, 32, 32) * 255)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.rand(1, 3, 32, 32) * 255)


def test_unknown_preset_and_field():
    with pytest.raises(ValueError, match="Did you mean 'c-radio_v4-h'"):
        RadioConfig.from_preset("c-radio-v4-h")
    with pytest.raises(ValueError, match="Did you mean 'hidden_size'"):
        RadioConfig.from_preset("radio-test", hiden_size=3)
    with pytest.raises(ValueError, match="Did you mean 'feature_dim'"):
        RadioConfig(adaptors=[{"name": "a", "hidden_size": 4, "features_dim": 4}])


def test_nearest_supported_resolution(model):
    assert model.get_nearest_supported_resolution(100, 37) == (96, 32)
    assert model.get_nearest_supported_resolution(3, 5000) == (16, 256)
    assert (model.patch_size, model.min_resolution_step, model.max_resolution) == (16, 16, 256)
    assert model.preferred_resolution == (64, 64)
    for height in (0, -5, float("nan"), float("inf"), "64", True):
        with pytest.raises(ValueError, match="`height` must be a number in"):
            model.get_nearest_supported_resolution(height, 64)


@pytest.fixture
def resizes(model, monkeypatch) -> list[tuple[int, int]]:
    """Grids for which the position table was resized."""
    calls: list[tuple[int, int]] = []
    generator = model.radio_model.model.patch_generator
    original = generator._resize_positions

    def count(rows, cols):
        calls.append((rows, cols))
        return original(rows, cols)

    monkeypatch.setattr(generator, "_resize_positions", count)
    return calls


@torch.no_grad()
def test_positions_are_resized_once_per_size(model, resizes):
    for _ in range(3):
        model(torch.rand(1, 3, 32, 48))
        model(torch.rand(1, 3, 64, 64))
    assert resizes == [(2, 3), (4, 4)]
    model.to(torch.float64)
    model(torch.rand(1, 3, 32, 48, dtype=torch.float64))
    assert len(resizes) == 3


@torch.no_grad()
@pytest.mark.parametrize("window_size", ["global", 2])
@pytest.mark.parametrize("is_training", [False, True])
def test_no_value_is_looked_at_on_the_way_of_an_image(window_size, is_training):
    """On the meta device there are no values to look at: what works there does not wait for a GPU either."""
    adaptors = [{"name": "sam3", "summary_dim": 8, "feature_dim": 8, "hidden_size": 8, "upsample_factor": 2}]
    config = RadioConfig.from_preset("radio-test", adaptors=adaptors, drop_path_rate=0.2, vitdet_num_windowed=1)
    model = RadioModel(config).to("meta").train(is_training)
    batch, draws = torch.rand(2, 3, 48, 64, device="meta"), torch.rand(2, model.num_draws, device="meta")
    output = model(batch, window_size=window_size, draws=draws, output_hidden_states=True)
    assert output.adaptors["sam3"].features.shape == (2, 6 * 8, 8)
    assert len(model.get_intermediate_features(batch, [1, 3], "dense", window_size=window_size)) == 2


CHANGES = {
    "in place": lambda table: table.mul_(2),
    "through .data": lambda table: table.data.mul_(2),
    "new data": lambda table: setattr(table, "data", table.data * 2),
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_positions_never_go_stale(model, change):
    batch = torch.rand(1, 3, 32, 48)
    before = model(batch).features
    CHANGES[change](model.radio_model.model.patch_generator.pos_embed)
    after = model(batch).features
    assert not torch.equal(before, after)
    fresh = RadioModel(model.config).eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(batch).features, after)


@torch.no_grad()
def test_loading_weights_and_optimizer_steps_refresh_positions(model):
    batch = torch.rand(1, 3, 32, 48)
    model(batch)
    other = RadioModel(model.config).eval()
    model.load_state_dict(other.state_dict())
    assert torch.equal(model(batch).features, other(batch).features)
    with torch.enable_grad():
        nn.functional.mse_loss(model(batch).features, torch.zeros(1, 6, 32)).backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(batch).features, other(batch).features)


@pytest.mark.parametrize("window_size", [None, 2])
def test_compiles_without_a_graph_break(model, window_size):
    torch.compiler.reset()
    batch = torch.rand(1, 3, 48, 80)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        expected = model(batch, window_size=window_size).features
        torch.testing.assert_close(compiled(batch, window_size=window_size).features, expected, rtol=0, atol=2e-6)


@needs_exporter
def test_exports_with_dynamic_shapes(model):
    class Features(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, pixel_values):
            return self.model(pixel_values).features

    rows, cols = torch.export.Dim("rows", min=2, max=16), torch.export.Dim("cols", min=2, max=16)
    shapes = ({0: torch.export.Dim("batch", min=1, max=8), 2: 16 * rows, 3: 16 * cols},)
    program = torch.export.export(Features(), (torch.rand(2, 3, 48, 80),), dynamic_shapes=shapes)
    batch = torch.rand(3, 3, 112, 64)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(batch), model(batch).features, rtol=0, atol=2e-6)


def test_device_map_and_dtype(model, tmp_path):
    model.save_pretrained(tmp_path)
    placed = RadioModel.from_pretrained(tmp_path, device_map="cpu", dtype=torch.bfloat16, attn_implementation="eager")
    assert placed.dtype == torch.bfloat16
    assert placed.config._attn_implementation == "eager"
    assert placed(torch.rand(1, 3, 32, 32)).features.dtype == torch.bfloat16  # float32 pixels are fine


@torch.no_grad()
def test_takes_what_the_processor_returns(model):
    """Padded and packed batches go straight in; packing equals one image at a time."""
    images = [torch.randint(0, 256, (3, rows, cols), dtype=torch.uint8) for rows, cols in ((48, 64), (80, 32))]
    processor = RadioImageProcessor.from_model_config(model.config, do_resize=False)
    padded = model(**processor(images, do_pad=True, return_tensors="pt"))
    assert padded.features.shape == (2, 5 * 4, 32)
    packed = model(**processor(images, do_pack=True, return_tensors="pt"))
    single = [model(processor(image, return_tensors="pt").pixel_values).features[0] for image in images]
    torch.testing.assert_close(packed.features, torch.cat(single), rtol=0, atol=2e-6)
