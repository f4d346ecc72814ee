"""What counts as equal to stored outputs, and how it is shown."""

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from modeling_radio import RadioConfig
from modeling_radio.conversion.from_nvidia import convert
from modeling_radio.conversion.verification import (
    OutputDifference,
    check_tolerance,
    compare_with_reference,
    largest_difference,
    list_unchecked,
)


@pytest.fixture
def model(reference):
    return convert(reference / "radio_v2_tiny" / "checkpoint.pth.tar")


@pytest.fixture
def write_changed(reference, tmp_path):
    """Return a function that writes the stored outputs of a case with one of them changed."""
    stored = load_file(reference / "radio_v2_tiny" / "expected.safetensors")
    size = next(key for key in stored if key.endswith("/image_uint8")).partition("/")[0]

    def write(key, change):
        name = f"{size}/{key}"
        changed = {**stored, name: change(stored[f"{size}/global/backbone/summary"])}
        save_file({key: tensor.contiguous() for key, tensor in changed.items()}, tmp_path / "stored.safetensors")
        return name, tmp_path / "stored.safetensors"

    return write


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda summary: summary + 0.5, pytest.approx(0.5, abs=1e-4)),
        (lambda summary: summary[:, 1:], float("inf")),
        (lambda summary: summary * float("nan"), float("inf")),
    ],
    ids=["values", "shape", "not a number"],
)
def test_every_kind_of_difference_is_seen(change, difference, model, write_changed):
    key, path = write_changed("global/backbone/summary", change)
    found = {comparison.key: comparison.difference for comparison in compare_with_reference(model, path)}
    assert found.pop(key) == difference
    assert max(found.values()) <= 1e-5


def config_with_heads(**fields) -> RadioConfig:
    heads = [{"name": name, "hidden_size": 8, "token_index": index} for index, name in enumerate(("clip", "sam"))]
    return RadioConfig.from_preset("radio-test", adaptors=heads, **fields)


def test_without_stored_outputs_nothing_is_checked():
    assert list_unchecked(config_with_heads(pos_embed_align_corners=True), []) == [
        "the backbone's outputs (2 attention heads, summary of tokens 0, 1)",
        "the outputs of clip (token 0), sam (token 1)",
        "resized positions (with aligned corners)",
        "windowed attention (global in blocks 1, 3)",
    ]


@pytest.mark.parametrize(
    ("keys", "unchecked"),
    [
        (("64x96/global/backbone/summary",), ["the outputs of clip", "windowed attention"]),
        (("256x256/global/backbone/summary",), ["the outputs of clip", "resized positions", "windowed attention"]),
        (("64x96/window2/backbone/summary", "64x96/global/clip/features"), ["the outputs of sam"]),
        (("64x96/intermediates/sparse/1/summary",), ["the backbone's", "the outputs of clip", "windowed attention"]),
        (("64x96/window2/backbone/summary", "64x96/global/clip/features", "64x96/global/sam/features"), []),
    ],
)
def test_what_stored_outputs_leave_open(keys, unchecked):
    """The position table is for 256 pixels: only other sizes tell how it is resized."""
    found = list_unchecked(config_with_heads(), [OutputDifference(key, 0.0) for key in keys])
    assert len(found) == len(unchecked)
    assert all(line.startswith(start) for line, start in zip(found, unchecked, strict=True))


@pytest.mark.parametrize("key", ["window3/absent/summary", "tokens3/encoder/summary/extra"])
def test_outputs_that_the_model_lacks_are_no_difference_and_are_counted(key, model, write_changed):
    name, path = write_changed(key, torch.clone)
    comparisons = compare_with_reference(model, path)
    assert {comparison.key: comparison.difference for comparison in comparisons}[name] is None
    assert largest_difference(comparisons) <= 1e-5
    assert list_unchecked(model.config, comparisons)[-1].startswith("1 stored outputs")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "Cannot read"),
        (b"text", "Cannot read"),
        (save({"64x64/global/backbone/summary": torch.ones(1, 4)}), "lacks 64x64/image_uint8"),
        (save({"x": torch.zeros(1)}), "holds no output"),
    ],
)
def test_another_file_is_refused_by_name(content, message, model, tmp_path):
    if content is not None:
        (tmp_path / "stored.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        compare_with_reference(model, tmp_path / "stored.safetensors")


@pytest.mark.parametrize("tolerance", [float("nan"), float("inf"), -1e-9])
def test_a_meaningless_tolerance_is_refused(tolerance):
    with pytest.raises(ValueError, match="`tolerance`"):
        check_tolerance(tolerance)
    check_tolerance(0)
