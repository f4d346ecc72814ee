"""Whatever byte of a file changes: it is refused by name, or what is read is what was written."""

import pytest
import torch
from safetensors.torch import save_file

from modeling_radio.core.checked_tensors import CheckedTensors, DamagedFileError, save_tensors


TENSORS = {
    "a": torch.arange(3.0).bfloat16(),
    "b": torch.tensor([[True], [False]]),
    "c": torch.tensor(7),
    "d": torch.zeros(0, 2),
}
FACTS = {"step": 3, "name": "x"}


def check(opened: CheckedTensors) -> None:
    assert opened.facts == FACTS
    torch.testing.assert_close(opened.read_all(), TENSORS, rtol=0, atol=0)


@pytest.fixture
def file(tmp_path):
    save_tensors(TENSORS, tmp_path / "x.safetensors", FACTS)
    return tmp_path / "x.safetensors"


def test_tensors_and_facts_come_back(file):
    opened = CheckedTensors(file)
    check(opened)
    assert opened.read("c") == TENSORS["c"]
    assert ("a" in opened, "e" in opened) == (True, False)


def test_no_byte_can_change_unseen(file):
    content, refused = file.read_bytes(), []
    for index in range(len(content)):
        changed = bytearray(content)
        changed[index] ^= 0x10
        file.write_bytes(changed)
        try:
            check(CheckedTensors(file))
        except DamagedFileError as error:
            refused.append(error.path)
    assert set(refused) == {file}
    assert len(refused) > 0.9 * len(content)


def test_files_that_are_cut_or_of_others_are_refused(file):
    content = file.read_bytes()
    for changed in (b"", content[:5], content[: len(content) // 2], content[:-1], bytes(len(content))):
        file.write_bytes(changed)
        with pytest.raises(DamagedFileError):
            CheckedTensors(file)
    save_file({"a": torch.zeros(2)}, file)
    with pytest.raises(DamagedFileError):
        CheckedTensors(file)
