"""The code of the page on EoMT trains RADIO's blocks for panoptic segmentation on eight scenes."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from documentation import blocks
from PIL import Image
from tiny_folders import save_with_processor

from modeling_radio import RadioConfig, RadioModel


SMALLER = (
    ("20_000", "40"),
    ("lr=1e-4", "lr=2e-3"),
    ("EomtConfig(", "EomtConfig(image_size=64, num_queries=12, num_blocks=2, train_num_points=256, "),
    ("EomtImageProcessor(", 'EomtImageProcessor(size={"shortest_edge": 64, "longest_edge": 64}, '),
)
"""Sizes that fit a tiny model, and a learning rate for few steps."""
CATEGORIES = (
    {"id": 5, "name": "grass", "isthing": 0, "color": (60, 160, 60)},
    {"id": 7, "name": "brick", "isthing": 1, "color": (220, 40, 40)},
    {"id": 9, "name": "pool", "isthing": 1, "color": (40, 40, 220)},
)
GRASS, BRICK, POOL = range(3)
CROWD = 70_000
"""A segment of bricks that no loss must read, with a number of three bytes."""


def draw_scenes(folder):
    """Draw two bricks and a pool on grass, eight times; return the last scene's segments, and their classes."""
    folder.mkdir()
    rng, annotations = np.random.default_rng(0), []
    for scene in range(8):
        height, width = (64, 96) if scene % 2 else (96, 64)
        pixels = np.full((height, width, 3), CATEGORIES[GRASS]["color"], np.uint8)
        segments, classes = np.ones((height, width), int), {1: GRASS, 300: BRICK, 301: BRICK, 302: POOL}
        for number, each in enumerate([300, 301, 302]):
            along, across = 32 * number + rng.integers(8), 16 + rng.integers(8)
            top, left = (along, across) if height > width else (across, along)
            place = slice(top, top + 24), slice(left, left + 24)
            pixels[place], segments[place] = CATEGORIES[classes[each]]["color"], each
        segments[:2], segments[2:4] = 0, CROWD
        Image.fromarray(pixels).save(folder / f"{scene}.jpg")
        encoded = np.stack([segments % 256, segments // 256 % 256, segments // 256**2], axis=-1)
        Image.fromarray(encoded.astype(np.uint8)).save(folder / f"{scene}.png")
        infos = [{"id": each, "category_id": CATEGORIES[index]["id"], "iscrowd": 0} for each, index in classes.items()]
        infos.append({"id": CROWD, "category_id": CATEGORIES[BRICK]["id"], "iscrowd": 1})
        annotations.append({"image_id": scene, "file_name": f"{scene}.png", "segments_info": infos})
    labels = {"annotations": annotations, "categories": CATEGORIES}
    (folder / "panoptic.json").write_text(json.dumps(labels))
    Image.open(folder / "7.jpg").save("photo.jpg")
    return segments, classes


@pytest.mark.usefixtures("one_thread")
def test_radio_learns_the_segments_of_eight_scenes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    torch.manual_seed(0)
    radio = RadioModel(RadioConfig.from_preset("radio-test", adaptors=[], use_layer_scale=True)).eval()
    save_with_processor(radio, Path("runs/demo/final"))
    segments, classes = draw_scenes(tmp_path / "scenes")
    model_code, training = (block.text for block in blocks("python") if block.page == "docs/how-to/eomt.md")
    Path("radio_eomt.py").write_text(model_code)
    for old, new in SMALLER:
        assert old in training
        training = training.replace(old, new)
    names = {}
    exec(training, names)
    monkeypatch.delitem(sys.modules, "radio_eomt")

    losses = [float(loss) for loss in re.findall(r"^\d+ (\S+)$", capsys.readouterr().out, re.MULTILINE)]
    assert len(losses) == 40
    assert losses[-1] < losses[0] / 2
    found, infos = names["found"]["segmentation"], names["found"]["segments_info"]
    assert found.shape == segments.shape
    for number, expected in classes.items():
        values, counts = found[torch.from_numpy(segments == number)].unique(return_counts=True)
        assert counts.max() > counts.sum() / 2
        assert [each["label_id"] for each in infos if each["id"] == values[counts.argmax()]] == [expected]

    pixels, model = torch.rand(1, 3, 64, 64), names["model"]
    with torch.no_grad():
        tokens = model.embeddings(pixels)
        for layer in model.layers:
            tokens = layer(tokens)
        expected = names["radio"](pixels).features  # the trained blocks are its own
    assert torch.allclose(tokens[:, radio.config.num_prefix_tokens :], expected, atol=1e-5)
