"""Checkpoints of others, damaged or changed at random: they convert and open, or are refused by an error of ours."""

import json
import math
import shutil
import warnings
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import changed
from reference_cases import REFERENCE, load_training_file, write_hub_folder

from modeling_radio import RadioModel
from modeling_radio.conversion.from_nvidia import convert


pytestmark = [pytest.mark.fuzz, pytest.mark.usefixtures("one_thread")]
CASE = "c_radio_v4_slots_tiny"
FEWER = settings(max_examples=max(settings.default.max_examples // 2, 20))
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 9)
    | st.sampled_from([2**31, 10**12, 10**40, -(10**40), 0.5, math.nan, math.inf, -math.inf, 1e-300])
    | st.sampled_from(["", "x", "a\nb", "a.b", "../x", "sam3", "v1", "attn", "\ud800", "vit_base_patch0_224", "0"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2)
)
CHANGES = st.lists(st.tuples(st.integers(0, 10_000), VALUES | st.just(...)), min_size=1, max_size=3)


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Path:
    return write_hub_folder(CASE, tmp_path_factory.mktemp("fuzz") / "hub")


@pytest.fixture(scope="module")
def training_bytes() -> bytes:
    return (REFERENCE / CASE / "checkpoint.pth.tar").read_bytes()


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes, int], bytes]:
    """Draw a damage to the bytes of a file, most often to its first part, the pickle or the header."""
    flips = draw(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255), st.booleans()), max_size=4))
    cut = draw(st.none() | st.floats(0, 1))

    def damage(content: bytes, num_first: int) -> bytes:
        changed = bytearray(content)
        for place, value, is_first in flips:
            changed[int(place * (num_first if is_first else len(content)))] = value
        return bytes(changed if cut is None else changed[: int(cut * len(content))])

    return damage


def open_or_refuse(opened: Callable[[], Any]) -> bool:
    """Return whether something opens; only our own errors, of one line, may say that it does not."""
    refusals: list[ValueError] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            opened()
        except ValueError as error:
            refusals.append(error)
    assert not any("\n" in str(error) or type(error) is not ValueError for error in refusals), refusals
    return not refusals


@FEWER
@given(damage=damages())
def test_damaged_training_files(damage, training_bytes, tmp_path):
    file = tmp_path / "damaged.pth.tar"
    file.write_bytes(damage(training_bytes, 20_000))
    open_or_refuse(lambda: convert(file))


@FEWER
@given(damage=damages())
def test_damaged_safetensors(damage, hub, tmp_path):
    folder = tmp_path / "hub"
    shutil.copytree(hub, folder, dirs_exist_ok=True)
    content = (hub / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    (folder / "model.safetensors").write_bytes(damage(content, header))
    converts = open_or_refuse(lambda: convert(folder))
    opens = open_or_refuse(lambda: RadioModel.from_pretrained(folder))
    assert opens or not converts


@FEWER
@given(changes=CHANGES)
def test_changed_configurations(changes, hub, tmp_path):
    folder = tmp_path / "hub"
    shutil.copytree(hub, folder, dirs_exist_ok=True)
    config = changed(json.loads((hub / "config.json").read_text()), changes)
    (folder / "config.json").write_text(json.dumps(config))
    open_or_refuse(lambda: convert(folder))
    if "args" in config and isinstance(config["args"], dict):  # or it is not NVIDIA's, and transformers' to refuse
        open_or_refuse(lambda: RadioModel.from_pretrained(folder))


@FEWER
@given(changes=CHANGES)
def test_changed_training_arguments(changes, tmp_path):
    content = load_training_file(CASE)
    content["args"] = Namespace(**{str(key): value for key, value in changed(vars(content["args"]), changes).items()})
    torch.save(content, tmp_path / "changed.pth.tar")
    open_or_refuse(lambda: convert(tmp_path / "changed.pth.tar"))
