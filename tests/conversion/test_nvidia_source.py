"""Reading files of strangers: nothing of theirs runs, and every refusal is one clear line."""

import os
import pickle
from argparse import Namespace

import pytest
import torch

from conversion.from_nvidia import main
from conversion.nvidia_source import read_checkpoint


class Touch:
    """Creates a file when it is unpickled without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("place", ["args", "state_dict", "arch"])
def test_malicious_pickle_runs_nothing(place, tmp_path, training_file, capsys):
    content = training_file("c_radio_v4_tiny")
    bait = Touch(tmp_path / "touched")
    content[place] = Namespace(model=bait) if place == "args" else {"weight": bait} if place == "state_dict" else bait
    torch.save(content, tmp_path / "bad.pth.tar")
    assert main([str(tmp_path / "bad.pth.tar"), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"its pickle asks for `{os.mkdir.__module__}.mkdir`" in error
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bad.pth.tar"]


def test_the_bait_bites_without_care(tmp_path):
    pickle.loads(pickle.dumps(Touch(tmp_path / "touched")))
    assert (tmp_path / "touched").exists()


def test_malicious_legacy_file_runs_nothing(tmp_path):
    content = {"args": Namespace(), "state_dict": {}, "arch": Touch(tmp_path / "touched")}
    torch.save(content, tmp_path / "bad.pth.tar", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="none of its code was run"):
        read_checkpoint(tmp_path / "bad.pth.tar")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("content", [b"", b"no pickle at all", b"PK\x03\x04 half a zip", b"\x80\x04\x95"])
def test_damaged_file_is_one_line(content, tmp_path, capsys):
    (tmp_path / "bad.pth.tar").write_bytes(content)
    assert main([str(tmp_path / "bad.pth.tar"), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "damaged or no PyTorch file" in error


def test_truncated_file_is_refused(reference, tmp_path):
    content = (reference / "radio_v2_tiny" / "checkpoint.pth.tar").read_bytes()
    (tmp_path / "half.pth.tar").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="damaged or no PyTorch file"):
        read_checkpoint(tmp_path / "half.pth.tar")


def test_other_contents_are_refused(tmp_path):
    torch.save({"model": {}}, tmp_path / "other.pth.tar")
    with pytest.raises(ValueError, match="must hold `args` and `state_dict`"):
        read_checkpoint(tmp_path / "other.pth.tar")
    torch.save({"args": Namespace(), "state_dict": {"weight": 1}}, tmp_path / "other.pth.tar")
    with pytest.raises(ValueError, match="no tensors: weight"):
        read_checkpoint(tmp_path / "other.pth.tar")


def test_sources_that_are_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"name a \.pth\.tar file, a folder or a Hub repository"):
        read_checkpoint(tmp_path / "absent.pth.tar")
    with pytest.raises(ValueError, match="could not be fetched from the Hub"):
        read_checkpoint("nobody/no-such-radio")
    with pytest.raises(ValueError, match=r"no config\.json and 0 \.pth\.tar files"):
        read_checkpoint(tmp_path)


def test_hub_folders_that_are_none(hub_folder):
    folder = hub_folder("c_radio_v4_tiny")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks model\.safetensors"):
        read_checkpoint(folder)
    (folder / "config.json").write_text('{"model_type": "radio", "hidden_size": 64}')
    with pytest.raises(ValueError, match="no training arguments `args`"):
        read_checkpoint(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="no valid JSON"):
        read_checkpoint(folder)


def test_folder_with_one_training_file(reference):
    assert read_checkpoint(reference / "radio_v2_tiny").arch == "vit_tiny_patch16_224"


def test_arguments_are_plain_values(reference):
    args = read_checkpoint(reference / "radio_v2_tiny" / "checkpoint.pth.tar").args
    assert args["dtype"] == "torch.float32"
    assert args["teachers"][3] == {"name": "sam", "type": "sam", "model": "vit-h", "use_summary": False}
