"""Whatever byte of a file changes: it is refused by name, or what is read is what was written."""

import pytest
import torch
from safetensors.torch import save_file

from modeling_radio.core.checked_tensors import DamagedFileError, load_tensors, save_tensors, stored_names


TENSORS = {
    "a": torch.arange(3.0).bfloat16(),
    "b": torch.tensor([[True], [False]]),
    "c": torch.tensor(7),
    "d": torch.zeros(0, 2),
}
FACTS = {"step": 3, "name": "x"}


def check(file) -> None:
    tensors, facts = load_tensors(file)
    assert facts == FACTS
    torch.testing.assert_close(tensors, TENSORS, rtol=0, atol=0)


@pytest.fixture
def file(tmp_path):
    save_tensors(TENSORS, tmp_path / "x.safetensors", FACTS)
    return tmp_path / "x.safetensors"


def test_tensors_and_facts_come_back(file):
    check(file)
    assert stored_names(file) == TENSORS.keys()


def test_no_byte_can_change_unseen(file):
    content, refused = file.read_bytes(), []
    for index in range(len(content)):
        changed = bytearray(content)
        changed[index] ^= 0x10
        file.write_bytes(changed)
        try:
            check(file)
        except DamagedFileError as error:
            refused.append(error.path)
    assert set(refused) == {file}
    assert len(refused) > 0.9 * len(content)


def test_files_that_are_cut_or_of_others_are_refused(file):
    content = file.read_bytes()
    for changed in (b"", content[: len(content) // 2], content[:-1]):
        file.write_bytes(changed)
        for read in (load_tensors, stored_names):
            with pytest.raises(DamagedFileError):
                read(file)
    save_file({"a": torch.zeros(2)}, file)
    with pytest.raises(DamagedFileError):
        load_tensors(file)
