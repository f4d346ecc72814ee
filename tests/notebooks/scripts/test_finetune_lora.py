import re

import pytest
from PIL import Image
from transformers import pipeline


pytestmark = pytest.mark.tour


def test_it_learns_and_opens_in_a_pipeline(output_of, model, pictures, tmp_path):
    words = ["--steps", 30, "--batch-size", 8, "--rank", 4, "--learning-rate", "3e-3", "--size", 32]
    printed = output_of("finetune_lora", model, pictures, "tuned", *words)
    assert "16 images to learn from, 4 held out" in printed
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", printed)]
    assert losses[-1] < 0.5 * losses[0]
    assert "accuracy after: 1.000" in printed
    classify = pipeline("image-classification", model=str(tmp_path / "tuned"), trust_remote_code=True)
    assert [classify(Image.open(pictures / name / "9.png"))[0]["label"] for name in ("red", "blue")] == ["red", "blue"]


def test_what_cannot_be_is_told(run_script, model, pictures, tmp_path):
    (tmp_path / "there").mkdir()
    for data, output, message in (
        (pictures, "there", "is there already"),
        (pictures / "red", "tuned", "two or more folders"),
    ):
        done = run_script("finetune_lora", model, data, output)
        assert done.returncode == 2
        assert message in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
