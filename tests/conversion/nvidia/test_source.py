"""Reading files of strangers: nothing of theirs runs, and every refusal is one clear line."""

import json
import os
import pickle
from argparse import Namespace

import pytest
import torch
from safetensors.torch import save_file

from conversion.from_nvidia import main
from conversion.nvidia.source import read_checkpoint


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


def test_malicious_file_of_the_format_before_zip_runs_nothing(tmp_path):
    content = {"args": Namespace(), "state_dict": {}, "arch": Touch(tmp_path / "touched")}
    torch.save(content, tmp_path / "bad.pth.tar", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"torch\.save writes a zip archive"):
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state_dict": [1]}, r"`state_dict` in '.*' must be dict, got \[1\]"),
        ({"state_dict": {5: torch.ones(1)}}, "state entries that are no tensors: 5"),
        ({"args": None}, r"`args` in '.*' must be argparse\.Namespace \| dict, got None"),
        ({"args": "x"}, r"`args` in '.*' must be argparse\.Namespace \| dict, got 'x'"),
        ({"args": Namespace(model="vit_base_patch16_224")}, r"`args\.teachers` must be given"),
        ({"arch": 5}, r"`arch` in '.*' must be str \| None, got 5"),
        ({"epoch": "x"}, r"`epoch` in '.*' must be int \| None, got 'x'"),
    ],
)
def test_contents_of_wrong_types_are_one_line(changes, message, edited):
    path = edited("c_radio_v4_tiny", lambda content: content.update(changes))
    with pytest.raises(ValueError, match=message):
        read_checkpoint(path)


@pytest.mark.parametrize("text", ["[]", "5", "[" * 100_000, "\ud800"])
def test_a_configuration_that_is_no_object_is_refused_by_name(text, hub_folder):
    folder = hub_folder("c_radio_v4_tiny")
    (folder / "config.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(ValueError, match=r"hub/config\.json' (is no valid JSON|must hold a JSON object)"):
        read_checkpoint(folder)


def damaged(content):
    """A safetensors file that is cut, empty, of zeros, or whose header lies about its length or its tensors."""
    yield content[:-1]
    yield content[:40]
    yield b""
    yield bytes(len(content))
    yield (2**62).to_bytes(8, "little") + content[8:]
    yield content.replace(b'"data_offsets":[0,', b'"data_offsets":[4,', 1)


@pytest.mark.parametrize("number", range(6))
def test_damaged_weights_of_a_hub_folder_are_refused_by_name(number, hub_folder, tmp_path, capsys):
    file = hub_folder("c_radio_v4_tiny") / "model.safetensors"
    file.write_bytes(list(damaged(file.read_bytes()))[number])
    assert main([str(file.parent), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"from_nvidia: error: {str(file)!r} is damaged or no safetensors file: " in error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no valid JSON"),
        ("{}", "`weight_map` in '.*' must map tensors to files, got None"),
        ('{"weight_map": ["model.safetensors"]}', "`weight_map` in '.*' must map tensors to files"),
        ('{"weight_map": {"weight": 5}}', "must name .safetensors files beside it, got 5 for 'weight'"),
        ('{"weight_map": {"weight": "config.json"}}', "must name .safetensors files beside it, got 'config.json'"),
        ('{"weight_map": {"weight": "model-00001.safetensors"}, "metadata": {}}', "lacks model-00001.safetensors"),
    ],
)
def test_damaged_indices_are_refused_by_name(text, message, hub_folder):
    folder = hub_folder("c_radio_v4_tiny")
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_checkpoint(folder)


@pytest.mark.parametrize("place", ["../elsewhere/model.safetensors", "/{}/elsewhere/model.safetensors", "a/../b"])
def test_an_index_reads_nothing_outside_of_its_folder(place, hub_folder, tmp_path):
    folder = hub_folder("c_radio_v4_tiny")
    (tmp_path / "elsewhere").mkdir()
    (folder / "model.safetensors").rename(tmp_path / "elsewhere" / "model.safetensors")
    index = {"weight_map": {"weight": place.format(tmp_path)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"`weight_map` in .* must name \.safetensors files beside it, got '"):
        read_checkpoint(folder)


def test_an_index_names_the_files_beside_it(hub_folder):
    folder = hub_folder("c_radio_v4_tiny")
    whole = read_checkpoint(folder).state
    keys = sorted(whole)
    (folder / "model.safetensors").unlink()
    names = {key: f"model-0000{1 + (key in keys[:20])}-of-00002.safetensors" for key in keys}
    for name in set(names.values()):
        save_file({key: whole[key] for key in keys if names[key] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names, "metadata": {}}))
    assert read_checkpoint(folder).state.keys() == whole.keys()
