import mmap
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from reference_cases import REFERENCE
from safetensors.torch import load_file
from tiny_eradio import build_eradio
from tiny_radio1d import build_radio1d

from modeling_radio.conversion.release import worker
from modeling_radio.conversion.release.comparison import Question, ask


CASES = [(None, ["128x192", "256x128"]), (2, ["128x192", "256x128"]), (4, ["128x192", "256x128"]), (8, ["256x128"])]


@pytest.fixture(scope="module")
def stored():
    return load_file(REFERENCE / "c_radio_v4_tiny" / "expected.safetensors")


@pytest.fixture
def question(release):
    return Question(
        name="nvidia/C-RADIOv4-H",
        source=str(release),
        is_theirs=True,
        adaptors=["dino_v3", "sam3"],
        device="cpu",
        dtype="float32",
        rounds=1,
        cases=CASES,
    )


@pytest.fixture
def images(stored):
    return {key.partition("/")[0]: value for key, value in stored.items() if key.endswith("/image_uint8")}


def test_the_stand_in_answers_as_nvidias_code_does(question, images, stored, quick_processes):
    """Its answers through the worker are NVIDIA's stored ones: what the comparison is tested with can be trusted."""
    answers = ask(question, images)
    compared = 0
    for key, output in answers.outputs.items():
        size, window, rest = key.split("/", 2)
        expected = stored.get(f"{size}/{'global' if window == 'None' else f'window{window}'}/{rest}")
        if expected is not None:
            torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)
            compared += 1
    assert compared == 18
    assert [key.split("/", 2)[2] for key in answers.outputs][:4] == [
        f"{name}/{kind}" for name in ("backbone", "dino_v3") for kind in ("summary", "features")
    ]
    assert [(cost["window"], cost["size"]) for cost in answers.costs] == [(w, s) for w, sizes in CASES for s in sizes]
    assert all(cost["seconds"] > 0 for cost in answers.costs)
    assert answers.left_out == {}


def test_code_without_windows_is_left_out_and_said(question, images, release, tmp_path, quick_processes):
    folder = shutil.copytree(release, tmp_path / "old")
    (folder / "vitdet.py").unlink()
    code = (folder / "hf_model.py").read_text()
    (folder / "hf_model.py").write_text(
        code.replace("from .vitdet import apply_vitdet_arch, from_windows, to_windows", "")
    )
    answers = ask(replace(question, source=str(folder), adaptors=[]), images)
    assert answers.left_out == {str(window): "this revision's code has no vitdet.py" for window in (2, 4, 8)}
    assert {key.split("/", 1)[1] for key in answers.outputs} == {"None/backbone/summary", "None/backbone/features"}


@pytest.mark.parametrize("build", [build_eradio, build_radio1d])
def test_ours_answers_without_windows_where_there_are_none(build, question, tmp_path, quick_processes):
    model, pixels = build(), torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    model.save_pretrained(tmp_path)
    asked = replace(question, source=str(tmp_path), is_theirs=False, adaptors=[], cases=[(None, ["64x96"])])
    outputs = ask(asked, {"64x96": pixels}).outputs
    with torch.no_grad():
        expected = model(pixels / 255, adaptor_names=[]).features
    torch.testing.assert_close(outputs["64x96/None/backbone/features"], expected, atol=1e-5, rtol=0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can begin anew to look for the peak")
def test_the_peak_is_that_of_the_call_alone():
    def call(num_mib: int):
        def run():
            with mmap.mmap(-1, num_mib * 2**20) as held:  # pages of its own: what was freed before is not used again
                pages = np.frombuffer(held, np.uint8)
                pages[:: mmap.PAGESIZE] = 1
                del pages
            return {"backbone": (torch.ones(1), None)}

        return run

    _, _, large = worker._measure(call(300), rounds=1)
    _, _, small = worker._measure(call(1), rounds=1)
    assert 250 < large - small < 350
