"""Precisions are chosen by agreement and time."""

from pathlib import Path

import pytest

from modeling_radio.conversion.web.precision import Candidate, choose, describe, time_in_wasm


def candidate(tmp_path, precision, megabytes, agreement, milliseconds):
    path = tmp_path / precision
    path.write_bytes(bytes(int(megabytes * 1e6)))
    return Candidate(precision, path, agreement, milliseconds)


@pytest.mark.parametrize(
    ("int8", "fp16", "chosen"),
    [
        ((0.9996, 40), (1.0, 200), "int8"),
        ((0.9980, 40), (1.0, 200), "fp32"),  # it does not agree
        ((0.9996, 150), (1.0, 200), "fp32"),  # both are slower
        ((0.9996, 108), (1.0, 105), "int8"),  # as fast as float32, and smaller
        ((0.9996, None), (1.0, 200), "int8"),  # not all were timed
        ((0.9, None), (1.0, None), "fp16"),
    ],
)
def test_the_fastest_that_agrees_and_of_equals_the_smallest(tmp_path, int8, fp16, chosen):
    found = [
        candidate(tmp_path, "fp32", 4, 1.0, 100),
        candidate(tmp_path, "fp16", 2, *fp16),
        candidate(tmp_path, "int8", 1, *int8),
    ]
    taken = choose(found)
    assert taken.precision == chosen
    (line,) = [line for line in describe(found, taken, "model").splitlines() if "<- chosen" in line]
    assert line.startswith(chosen)


def test_weights_beside_a_file_are_counted_and_not_chosen(tmp_path):
    found = [candidate(tmp_path, "fp32", 1, 1.0, None), candidate(tmp_path, "fp16", 2, 1.0, 100)]
    (tmp_path / "fp32.0123abcd.data").write_bytes(bytes(3_000_000))
    assert found[0].megabytes == 4
    assert choose(found).precision == "fp16"
    (tmp_path / "fp16.0123abcd.data").write_bytes(bytes(1_000_000))
    with pytest.raises(ValueError, match=r"fp16 0.0 GB.*int8"):
        choose(found)


def test_without_node_nothing_is_timed(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert time_in_wasm({"fp32": Path("a.onnx")}, {}, {}) == {}
