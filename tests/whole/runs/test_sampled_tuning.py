"""Runs with a sampler: which images the model is shown, how often, and again after a stop."""

from collections import Counter
from math import ceil, floor

import pytest
import torch
from datasets import ClassLabel
from datasets import Image as ImageFeature
from tiny_tuning import TINY_DETECTOR, object_features, objects, run_settings, save_splits, stop_after, stripes

from modeling_radio.tuning.run import FinetuningRun


pytestmark = [
    pytest.mark.usefixtures("one_thread", "own_datasets_cache", "one_figure_image"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]

NAMES = ClassLabel(names=["common", "rare"])
RARELY = {"sampler": "repeat-factor"}
ONCE_OR_THRICE = [1.0] * 9 + [3.0]  # the root of 0.9 over a share of 0.1
CASES = {
    "image-classification": (NAMES, [0] * 8 + [1] * 2, {"sampler": "balanced"}, [0.625] * 8 + [2.5] * 2),
    "object-detection": (
        object_features(NAMES),
        [objects(0)] * 9 + [objects(0, 1, 1)],
        {**RARELY, "num_workers": 2, "config": TINY_DETECTOR},
        ONCE_OR_THRICE,
    ),
    "semantic-segmentation": (ImageFeature(), [stripes(0)] * 9 + [stripes(0, 1)], RARELY, ONCE_OR_THRICE),
}
"""Labels of the images, how they are sampled, and how often an epoch shall have each on average."""


@pytest.mark.parametrize(
    "task", ["image-classification", "semantic-segmentation", pytest.param("object-detection", marks=pytest.mark.tour)]
)
def test_images_are_seen_as_often_as_the_sampler_says_also_after_a_stop(task, base, tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_radio.tuning.data.REPEAT_THRESHOLD", 0.9)
    feature, labels, options, expected = CASES[task]
    data = save_splits(tmp_path / "data", feature, labels, labels[-2:])
    length = round(sum(expected))  # images an epoch
    options = {"tune": "lora", "steps": length, "evaluate_every": 8, "augment": "none", **options}
    crops, states = {"stopped": [], "whole": []}, {}
    for name, stops in {"stopped": [8, length], "whole": [length]}.items():  # within and after the second epoch
        for stop in stops:
            run = FinetuningRun(run_settings(base, data, tmp_path / name, task, target_column="label", **options))
            record(run.trainer.model, crops[name])
            stop_after(run, stop)
        states[name] = {key: weight for key, weight in run.trainer.model.named_parameters() if weight.requires_grad}
    epochs = [crops["whole"][start:][:length] for start in (0, length)]
    assert len(crops["whole"]) == 2 * length
    counts = [Counter(epoch) for epoch in epochs]
    for number, often in enumerate(expected):
        assert all(floor(often) <= count[number] <= ceil(often) for count in counts)
    assert (counts[0] == counts[1]) is all(often.is_integer() for often in expected), "each epoch draws anew"
    assert crops["stopped"] == crops["whole"]
    for key, weight in states["whole"].items():
        assert torch.equal(states["stopped"][key], weight), key


def record(model, crops):
    """Note the number of each image that the model is trained on; its gray level tells it."""

    def note(model, _positional, inputs):
        if model.training:
            levels = inputs["pixel_values"].mean(dim=(1, 2, 3)) * 255
            crops.extend((levels / 20).round().int().tolist())

    model.register_forward_pre_hook(note, with_kwargs=True)
