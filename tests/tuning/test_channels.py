"""Images of five channels and 16 bits, from files to a tuned model."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_tuning import run_settings, tuning_settings
from tuning_fixtures import _short_and_apart

from modeling_radio import RadioConfig, RadioForImageClassification, RadioImageProcessor, RadioModel
from modeling_radio.api import evaluate
from modeling_radio.core.opening import open_model, require_rgb
from modeling_radio.data.arrays import read_channels
from modeling_radio.data.labeled.images import load_images
from modeling_radio.tuning.channels import FIRST_LAYER, widen_first_layer
from modeling_radio.tuning.run import FinetuningRun
from modeling_radio.tuning.tasks import find_task


__all__ = ["_short_and_apart"]

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

SIZE = (32, 48)
CHANNELS = 5


def array(number, dtype=np.uint16):
    """Values up to a sixteenth of white, as of many sensors."""
    return np.random.default_rng(number).integers(0, np.iinfo(dtype).max // 16, (CHANNELS, *SIZE), dtype=dtype)


def save_tiff(path, values):
    rasterio = pytest.importorskip("rasterio")
    count, height, width = values.shape
    facts = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": values.dtype, "nodata": 7}
    with rasterio.open(path, "w", **facts, crs="EPSG:32617", transform=rasterio.Affine(1, 0, 0, 0, -1, 0)) as file:
        file.write(values)


@pytest.fixture
def fields(tmp_path):
    """Class folders of arrays, channels first and last."""
    for number in range(8):
        folder = tmp_path / "fields" / ("corn", "rye")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        values = array(number)
        np.save(folder / f"{number}.npy", values.transpose(1, 2, 0) if number < 4 else values)
    return tmp_path / "fields"


def test_files_of_each_kind_have_the_same_pixels(tmp_path):
    values = array(0)
    values[:, :2, :2] = 7  # no data
    save_tiff(tmp_path / "a.tif", values)
    values[values == 7] = 0
    np.save(tmp_path / "b.npy", values.transpose(1, 2, 0))
    np.save(tmp_path / "c.npy", (values / 65535).astype(np.float32))
    np.save(tmp_path / "d.npy", values.astype(">u2"))
    for name in ("a.tif", "b.npy", "c.npy", "d.npy"):
        torch.testing.assert_close(read_channels(tmp_path / name, CHANNELS), torch.tensor(values / 65535).float())
    eight = array(0, np.uint8)
    np.save(tmp_path / "e.npy", eight[0])
    torch.testing.assert_close(read_channels(tmp_path / "e.npy", 1)[0], torch.tensor(eight[0]) / 255)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (array(0)[:4], "`num_channels` is 5"),
        (array(0).astype(np.int16), "without a sign"),
        (array(0) / 100, r"\[0, 1\]"),
        (np.full((CHANNELS, 2, 2), np.nan), r"\[0, 1\]"),
        (np.zeros((CHANNELS, 0, 2)), "shape"),
        (np.array([{"a": 1}], dtype=object), "npy file"),
    ],
)
def test_files_that_cannot_be_right(values, message, tmp_path):
    np.save(tmp_path / "x.npy", values, allow_pickle=values.dtype == object)
    with pytest.raises(ValueError, match=message):
        read_channels(tmp_path / "x.npy", CHANNELS)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00\x02\x00{("])
def test_files_that_are_no_arrays(content, tmp_path):
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npy"):
        read_channels(tmp_path / "x.npy", CHANNELS)


def test_the_first_layer_keeps_the_sum_of_channels_that_are_alike():
    weight, patch = torch.randn(4, 3 * 4), torch.rand(1, 4)
    for count in (1, 5):
        wide = widen_first_layer(weight, count, (0, 1, 2) if count > 2 else ())
        torch.testing.assert_close(wide @ patch.repeat(count, 1).flatten(), weight @ patch.repeat(3, 1).flatten())
    wide = widen_first_layer(weight, 5, (2, 1, 4)).unflatten(1, (5, -1)) * (5 / 3)
    torch.testing.assert_close(wide[:, [2, 1, 4]].flatten(1), weight)
    assert torch.equal(widen_first_layer(weight, 3, (0, 1, 2)), weight)


def test_a_new_first_layer_learns_with_the_head(base, fields, tmp_path):
    run = FinetuningRun(run_settings(base, fields, tmp_path / "run", num_channels=CHANNELS))
    trained = {name for name, weight in run.model.named_parameters() if weight.requires_grad}
    assert {name for name in trained if name.startswith("radio_model.")} == {f"{FIRST_LAYER}.weight"}
    assert len(trained) > 1


def test_a_run_from_files_to_a_folder(base, fields, tmp_path):
    settings = run_settings(base, fields, tmp_path / "run", num_channels=CHANNELS, tune="full")
    before = RadioModel.from_pretrained(base).state_dict()[f"{FIRST_LAYER}.weight"]
    run = FinetuningRun(settings)
    expected = widen_first_layer(before, CHANNELS, (0, 1, 2))
    torch.testing.assert_close(run.model.state_dict()[f"{FIRST_LAYER}.weight"], expected)
    metrics = run.run()
    model = RadioForImageClassification.from_pretrained(tmp_path / "run" / "final").eval()
    last = load_file(tmp_path / "run" / "checkpoint-2" / "model.safetensors")  # the best state may be the first one
    assert not torch.equal(last[f"{FIRST_LAYER}.weight"], expected)
    pixels = torch.cat([read_channels(path, CHANNELS).flatten(1) for path in run.task.images.train["image"]], dim=1)
    torch.testing.assert_close(torch.tensor(model.config.norm_mean), pixels.mean(1), rtol=1e-4, atol=0)
    torch.testing.assert_close(torch.tensor(model.config.norm_std), pixels.std(1), rtol=1e-3, atol=0)
    processor = RadioImageProcessor.from_pretrained(tmp_path / "run" / "final")
    inputs = processor(array(5), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(inputs[0], torch.tensor(array(5) / 65535).float())
    assert model(inputs).logits.shape == (1, 2)
    with pytest.raises(ValueError, match=r"`pixel_values` .*got 3"):
        model(inputs[:, :3])
    with pytest.raises(ValueError, match="`checkpoint`"):
        require_rgb(open_model(str(tmp_path / "run" / "final"), device="cpu"))
    picture = Image.open(next((tmp_path / "run" / "pictures" / "examples").glob("*.jpg")))
    assert picture.getextrema()[0][1] > 200  # brightened
    found = evaluate(checkpoint=str(tmp_path / "run" / "final"), data=str(fields), num_workers=0, resamples=100)
    scores = {name.partition(" ")[2]: value for name, value in found.scores.items()}
    assert scores["accuracy"] == pytest.approx(metrics["accuracy"])


def test_maps_of_geotiffs(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for number in range(3):
        save_tiff(tmp_path / "data" / "images" / f"{number}.tif", array(number))
        ids = np.random.default_rng(number).integers(0, 2, SIZE, dtype=np.uint8)
        Image.fromarray(ids).save(tmp_path / "data" / "masks" / f"{number}.png")
    settings = tuning_settings("semantic-segmentation", data=tmp_path / "data", num_channels=CHANNELS, size=SIZE)
    task_class = find_task(settings.task)
    task = task_class(settings, load_images(settings, task_class.targets))
    row = task.images.train[0]
    sample = task.read(row, "image 0")
    torch.testing.assert_close(sample["image"], read_channels(row["image"], CHANNELS), check_stride=False)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"num_channels": 4}, "num_channels"),
        ({"tune": "lora"}, "tune"),
        ({"rgb_channels": (0, 1, 5)}, "rgb_channels"),
        ({"num_channels": None, "rgb_channels": (2, 1, 0)}, "rgb_channels"),
        ({"streaming": True, "evaluate_every": 1}, "streaming"),
    ],
)
def test_channels_that_do_not_fit(options, name, base, fields, tmp_path):
    with pytest.raises(ValueError, match=f"`{name}`"):
        FinetuningRun(run_settings(base, fields, tmp_path / "run", **{"num_channels": CHANNELS, **options}))
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_other_channels_says_how_many(fields, tmp_path):
    config = RadioConfig.from_preset(
        "radio-test", num_channels=4, norm_mean=[0.5] * 4, norm_std=[0.2] * 4, preferred_resolution=[32, 48]
    )
    RadioModel(config).save_pretrained(tmp_path / "four")
    for count in (None, CHANNELS):
        with pytest.raises(ValueError, match=r"`num_channels`.*4"):
            FinetuningRun(run_settings(tmp_path / "four", fields, tmp_path / "run", num_channels=count))
