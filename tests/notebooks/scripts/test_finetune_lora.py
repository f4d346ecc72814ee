import re

import pytest
from documentation import ROOT
from PIL import Image
from transformers import pipeline


SCRIPTS = ROOT / "notebooks" / "scripts"
pytestmark = pytest.mark.tour
WATCH = """
import torch
from PIL import Image
opened, argmax = Image.open, torch.Tensor.argmax
Image.open = lambda *path, **options: print("image") or opened(*path, **options)
torch.Tensor.argmax = lambda *each: print("answer") or argmax(*each)
"""


def test_it_learns_and_opens_in_a_pipeline(output_of, model, pictures, tmp_path):
    words = ["--steps", 30, "--batch-size", 8, "--rank", 4, "--learning-rate", "3e-3", "--size", 32]
    printed = output_of("finetune_lora", model, pictures, "tuned", *words)
    assert "16 images to learn from, 4 held out" in printed
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", printed)]
    assert losses[-1] < 0.5 * losses[0]
    assert "accuracy after: 1.000" in printed
    classify = pipeline("image-classification", model=str(tmp_path / "tuned"), trust_remote_code=True)
    assert [classify(Image.open(pictures / name / "9.png"))[0]["label"] for name in ("red", "blue")] == ["red", "blue"]


def test_held_out_images_are_read_batch_by_batch(elsewhere, model, pictures, tmp_path):
    text = (SCRIPTS / "finetune_lora.py").read_text(encoding="utf-8")
    words = ["tuned", "--steps", 1, "--batch-size", 1, "--size", 32]
    printed = elsewhere.run(WATCH + text, tmp_path, model, pictures, *words).stdout
    assert printed.count("image\nanswer\n") == 8  # four, before and after


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
