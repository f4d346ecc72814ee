"""One pass is timed beside its teachers: all run, in proportion, and the sums are right."""

from collections.abc import Callable

import pytest
import torch
from transformers import DINOv3ViTConfig, PreTrainedConfig, Sam3ViTConfig, SiglipVisionConfig

from benchmarks import stack
from benchmarks.measuring.turns import Turns
from benchmarks.stack import StackSettings
from modeling_radio import RadioConfig


SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
ADAPTORS = [{"name": name, "hidden_size": 32, "feature_dim": 24, "summary_dim": 24} for name in ("a", "b", "c")]


def tiny_config(source: str) -> PreTrainedConfig:
    if "siglip" in source:
        return SiglipVisionConfig(**SMALL, num_hidden_layers=8, image_size=48, patch_size=16)
    if "dinov3" in source:
        return DINOv3ViTConfig(**SMALL, num_hidden_layers=8, num_register_tokens=4, image_size=32)
    if "sam3" in source:
        places = [1, 3, 5, 7]
        sides = {"image_size": 56, "patch_size": 14, "window_size": 2, "pretrain_image_size": 28}
        return Sam3ViTConfig(**SMALL, **sides, num_hidden_layers=8, global_attn_indexes=places)
    depth = {"num_hidden_layers": 4, "vitdet_num_global": 2}
    return RadioConfig.from_preset("radio-test", **depth, adaptors=ADAPTORS, preferred_resolution=[48, 48])


@pytest.fixture
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "published_config", tiny_config)
    monkeypatch.setattr(stack, "SAM3_GRID_PX", 64)
    monkeypatch.setattr(stack, "IMAGE_PX", 80)


@pytest.mark.usefixtures("_tiny")
def test_every_contender_goes_from_an_image_to_features() -> None:
    students = stack.build_students("radio", 2, torch.float32, "cpu", windowed=True)
    teachers = [stack.build_teacher(source, 2, torch.float32, "cpu") for source in stack.TEACHERS]
    image = torch.randint(0, 256, (3, 80, 80), dtype=torch.uint8)
    seen = [each.preprocess([image, image]) for each in (*students, *teachers)]
    assert [tuple(pixels.shape) for pixels in seen] == [(2, 3, side, side) for side in (48, 64, 48, 32, 56)]
    with torch.no_grad():
        answers = [each.network(pixels) for each, pixels in zip((*students, *teachers), seen, strict=True)]
    assert [tuple(answer.adaptors) for answer in answers[:2]] == 2 * [("a", "b", "c")]
    assert [answer.last_hidden_state.shape[1] for answer in answers[2:]] == [9, 1 + 4 + 4, 16]
    assert all(torch.isfinite(answer.last_hidden_state).all() for answer in answers)
    assert teachers[2].model.config.global_attn_indexes == [1, 3]
    assert not torch.equal(answers[0].features[0, :9], answers[1].features[0, :9])


@pytest.mark.usefixtures("_tiny")
def test_a_share_of_blocks_is_that_share_of_their_operations() -> None:
    def flops(share: int) -> float:
        return stack.count_flops(stack.build_teacher("sam3", share, torch.float32, "cpu"), 1)["network"]

    whole, half, quarter = (flops(share) for share in (1, 2, 4))
    assert (half - quarter) * 2 == pytest.approx(whole - half)
    assert quarter > whole / 4  # patches are embedded all the same


@pytest.mark.usefixtures("_tiny")
def test_attention_is_counted() -> None:
    (student,) = stack.build_students("radio", 1, torch.float32, "cpu", windowed=False)
    config = student.model.config
    fused = stack.count_flops(student, 1)
    config._attn_implementation = "eager"
    assert stack.count_flops(student, 1) == fused


def test_a_whole_counts_the_backbone_as_often_as_its_share_fits_in() -> None:
    assert stack.whole_of({"preprocessing": 1, "network": 7, "backbone": 5}, 4) == 1 + 4 * 5 + 2
    assert stack.whole_of({"preprocessing": 1, "network": 7}, 4) == 1 + 4 * 7


@pytest.mark.usefixtures("_tiny")
def test_adaptors_are_counted_once() -> None:
    (half,) = stack.build_students("radio", 2, torch.float32, "cpu", windowed=False)
    (published,) = stack.build_students("radio", 1, torch.float32, "cpu", windowed=False)
    whole = stack.count_flops(published, 1)
    assert whole["network"] > whole["backbone"]
    patches = 2 * 9 * 768 * 32  # are of the backbone, and no block
    assert stack.whole_of(stack.count_flops(half, 1), 2) == whole["network"] + patches


@pytest.mark.usefixtures("_tiny")
def test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(calls: dict[tuple[str, str], Callable[[], object]], **_: object) -> Turns[tuple[str, str]]:
        for call in calls.values():
            call()
        return Turns({name: [0.1, 0.2] if "radio" in str(name).lower() else [0.5, 1.0] for name in calls})

    monkeypatch.setattr(stack, "take_turns", timed)
    rows = stack.measure(StackSettings(depth_share=2, dtype="float32", windowed=True))
    student, windowed, *teachers, together = rows
    assert [row["blocks"] for row in teachers] == [4, 4, 4]
    assert student["whole, ms"] == pytest.approx(150 + 2 * 150)  # what adaptors add takes no time here
    assert together["whole, ms"] == pytest.approx(1000 * 3 * (0.75 + 2 * 0.75))
    assert student["times as fast as all teachers"] == "15.00 (15.00 to 15.00)"
    assert together["TFLOP"] == pytest.approx(sum(row["TFLOP"] for row in teachers), rel=0.02)
    assert windowed["network"] == f"{stack.STUDENTS[0]}, window 8"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--depth-share=3", "`depth_share` must be a number that divides the (32, 4) blocks of nvidia/C-RADIOv4-H"),
        ("--depth-share=16", "`depth_share` must be a number that divides the (32, 4) blocks of nvidia"),
        ("--teachers=facebook/sam3,resnet", "`teachers` must be "),
        ("--batch-size=0", "`batch_size` must be "),
    ],
)
def test_what_cannot_be_timed_is_one_line(argument: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert stack.main([argument]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
