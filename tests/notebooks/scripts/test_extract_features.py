import json

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from modeling_radio import RadioImageProcessor


pytestmark = pytest.mark.tour


def test_features_are_those_of_the_model(output_of, radio, model, pictures, tmp_path):
    printed = output_of("extract_features", model, pictures, "features.safetensors", "--batch-size", 3)
    assert "20 of 20" in printed
    with safe_open(tmp_path / "features.safetensors", "pt") as file:
        names = json.loads(file.metadata()["names"])
        summary, features = file.get_tensor("summary"), file.get_tensor("features")
    assert len(names) == 20
    assert names[0] == "blue/0.png"
    image = Image.open(pictures / names[7])
    pixels = RadioImageProcessor.from_pretrained(model)(image, size=(64, 64), return_tensors="pt")
    with torch.inference_mode():
        out = radio(**pixels, feature_format="NCHW")
    torch.testing.assert_close(summary[7:8], out.summary, rtol=0, atol=1e-5)
    torch.testing.assert_close(features[7:8], out.features, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--adaptor", "cat"], "must be one of words, dense"),
        (["--batch-size", 0], "--batch-size must be 1 or more, got 0"),
        ([], "no images below"),
    ],
)
def test_what_cannot_be_is_told_and_writes_nothing(options, message, run_script, model, pictures, tmp_path):
    done = run_script("extract_features", model, pictures if options else tmp_path, "features.safetensors", *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


def test_photographs_are_turned_as_their_camera_says(output_of, model, tmp_path):
    upright = Image.linear_gradient("L").convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    (tmp_path / "both").mkdir()
    upright.save(tmp_path / "both" / "0.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "both" / "1.png", exif=exif)
    output_of("extract_features", model, "both", "features.safetensors")
    with safe_open(tmp_path / "features.safetensors", "pt") as file:
        summary = file.get_tensor("summary")
    torch.testing.assert_close(summary[1], summary[0], rtol=0, atol=1e-5)
