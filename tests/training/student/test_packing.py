"""A batch of images of several shapes, answered in one pass, against each image alone."""

import pytest
import torch

from modeling_radio import RadioConfig, RadioModel
from training.student.packing import answer_groups


@pytest.fixture(scope="module")
def model() -> RadioModel:
    adaptors = [
        {"name": "plain", "summary_dim": 5, "feature_dim": 6, "hidden_size": 8},
        {"name": "fine", "feature_dim": 4, "hidden_size": 8, "upsample_factor": 2},
    ]
    return RadioModel(RadioConfig.from_preset("radio-test", adaptors=adaptors, use_cropped_positions=False)).eval()


@pytest.mark.parametrize("sizes", [[(2, 48, 32)], [(2, 48, 32), (1, 32, 80), (3, 32, 32)]], ids=["one", "several"])
def test_answers_equal_those_of_each_group_alone(model: RadioModel, sizes: list[tuple[int, int, int]]) -> None:
    groups = [torch.rand(count, 3, height, width) for count, height, width in sizes]
    answer = answer_groups(model, groups, 16, window_size="global")
    alone = [model(images, feature_format="NCHW", window_size="global") for images in groups]
    assert answer.adaptors["fine"].summary is None
    summaries = torch.cat([each.adaptors["plain"].summary for each in alone])
    torch.testing.assert_close(answer.adaptors["plain"].summary, summaries)
    for number, each in enumerate(alone):
        torch.testing.assert_close(answer.features[number], each.features)
        for name in ("plain", "fine"):
            torch.testing.assert_close(answer.adaptors[name].features[number], each.adaptors[name].features)
    assert answer.adaptors["fine"].features[0].shape[2] == 2 * answer.features[0].shape[2]


def test_options_reach_the_model(model: RadioModel) -> None:
    groups = [torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 48)]
    answers = [answer_groups(model, groups, 16, window_size=size, adaptor_names=[]) for size in ("global", 2)]
    assert answers[0].adaptors == {}
    assert not torch.allclose(answers[0].features[1], answers[1].features[1], atol=1e-4)
