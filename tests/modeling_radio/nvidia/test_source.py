"""Reading files of strangers: nothing of theirs runs, and every refusal is one clear line."""

import json
import os
import pickle
from argparse import Namespace

import pytest
import torch

from modeling_radio.conversion.convert import main
from modeling_radio.nvidia.source import read_checkpoint


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


@pytest.mark.parametrize(
    "damage", [lambda _: b"", lambda _: b"PK\x03\x04 half a zip", lambda content: content[: len(content) // 2]]
)
def test_a_damaged_file_is_one_line(damage, reference, tmp_path, capsys):
    content = (reference / "radio_v2_tiny" / "checkpoint.pth.tar").read_bytes()
    (tmp_path / "bad.pth.tar").write_bytes(damage(content))
    assert main([str(tmp_path / "bad.pth.tar"), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "damaged or no PyTorch file" in error


def test_sources_that_are_nothing_are_named(tmp_path):
    for source in (tmp_path / "absent.pth.tar", "nobody/no-such-radio", tmp_path):
        with pytest.raises(ValueError, match=str(source)):
            read_checkpoint(source)


def test_a_folder_may_hold_one_training_file_whose_arguments_become_plain_values(reference):
    checkpoint = read_checkpoint(reference / "radio_v2_tiny")
    assert (checkpoint.arch, checkpoint.args["dtype"]) == ("vit_tiny_patch16_224", "torch.float32")
    assert checkpoint.args["teachers"][3] == {"name": "sam", "type": "sam", "model": "vit-h", "use_summary": False}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"state_dict": [1]}, "`state_dict`"),
        ({"state_dict": {5: torch.ones(1)}}, "no tensors: 5"),
        ({"state_dict": {"weight": 1}}, "no tensors: weight"),
        ({"args": None}, "`args`"),
        ({"args": Namespace(model="vit_base_patch16_224")}, r"`args\.teachers`"),
        ({"arch": 5}, "`arch`"),
        ({"epoch": "x"}, "`epoch`"),
    ],
)
def test_contents_of_wrong_types_are_refused_by_name(changes, named, edited, tmp_path):
    with pytest.raises(ValueError, match=named):
        read_checkpoint(edited("c_radio_v4_tiny", lambda content: content.update(changes)))
    torch.save({"model": {}}, tmp_path / "other.pth.tar")
    with pytest.raises(ValueError, match="`args` and `state_dict`"):
        read_checkpoint(tmp_path / "other.pth.tar")


@pytest.mark.parametrize("text", ["[]", "{", "[" * 100_000, "\ud800", '{"model_type": "radio", "hidden_size": 64}'])
def test_damaged_configurations_of_a_hub_folder_are_refused(text, hub_folder):
    folder = hub_folder("c_radio_v4_tiny")
    (folder / "config.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(ValueError, match=r"config\.json"):
        read_checkpoint(folder)


def test_a_part_that_an_index_names_and_the_folder_lacks_is_named(hub_folder):
    folder = hub_folder("c_radio_v4_tiny")
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"weight": "model-00001.safetensors"}, "metadata": {}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"lacks model-00001\.safetensors"):
        read_checkpoint(folder)
