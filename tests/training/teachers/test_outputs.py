import pytest
import torch
from torch import nn

from modeling_radio.training.teachers.outputs import (
    TeacherWidths,
    check_teacher_output,
    longest_list,
    resample_features,
    resize_images,
    tokens_to_map,
)


def test_sizes_are_changed_only_where_they_differ() -> None:
    tokens = torch.arange(6.0).view(1, 6, 1)
    assert tokens_to_map(tokens, torch.zeros(1, 3, 28, 42), 14)[0, 0].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    features = torch.rand(1, 2, 4, 4)
    assert resample_features(features, 4, 4) is resize_images(features, (4, 4)) is features
    torch.testing.assert_close(resample_features(torch.full((1, 2, 9, 9), 3.0), 4, 6), torch.full((1, 2, 4, 6), 3.0))
    edge = torch.zeros(1, 3, 8, 8)
    edge[..., 4:] = 1
    resized = resize_images(edge, (16, 16))  # bicubic overshoots at the edge
    assert (resized.min(), resized.max()) == (0, 1)


SUMMARY, FEATURES = torch.rand(2, 3), torch.rand(2, 3, 2, 2)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((SUMMARY, torch.rand(2, 4, 2, 2)), r"features .*\(2, 4, 2, 2\)"),
        ((SUMMARY, FEATURES.flatten(2)), r"features .*\(2, 3, 4\)"),
        ((SUMMARY, FEATURES.long()), "features .*int64"),
        ((SUMMARY, FEATURES + 0j), "features .*complex64"),
        ((SUMMARY, None), "features .*NoneType"),
        ((None, FEATURES), "summary .*NoneType"),
        ((SUMMARY[:, :2], FEATURES), r"summary .*\(2, 2\)"),
        ((SUMMARY > 0, FEATURES), "summary .*bool"),
        (FEATURES, r"pair .*\(2, 3, 2, 2\)"),
        ({"features": FEATURES}, "pair .*dict"),
    ],
)
def test_outputs_of_other_widths_name_the_teacher_and_the_output(answer: object, message: str) -> None:
    assert check_teacher_output((SUMMARY, FEATURES), "echo", TeacherWidths(3, 3)) == (SUMMARY, FEATURES)
    with pytest.raises(ValueError, match=f"^Teacher 'echo': `encode` .*{message}"):
        check_teacher_output(answer, "echo", TeacherWidths(3, 3))
    with pytest.raises(ValueError, match=r"^Teacher 'echo': .*None .*summary"):
        check_teacher_output((SUMMARY, FEATURES), "echo", TeacherWidths(None, 3))


def test_the_blocks_are_the_longest_list_of_modules_of_one_class() -> None:
    network = nn.Module()
    network.mixed = nn.ModuleList([nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1), nn.ReLU()])
    network.short = nn.ModuleList([nn.ReLU()])
    network.blocks = nn.ModuleList([nn.Linear(1, 1) for _ in range(3)])
    assert list(longest_list(network)) == list(network.blocks)
    assert list(longest_list(nn.Linear(1, 1))) == []
