"""Releases of NVIDIA's, as their holders describe them: converted, opened without this package, converted back."""

import json

import pytest
import torch
from nvidia_twin import TWINS, training_state, twin_config, write_repository

from modeling_radio.conversion.from_nvidia import convert, save
from modeling_radio.conversion.to_nvidia import training_file_content


OPEN_ALL = """
import json, sys
from pathlib import Path
from transformers import AutoModel

assert sys.modules.get("modeling_radio") is None  # it cannot be imported there
opened = {}
for folder in sorted(Path(".").iterdir()):
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    opened[folder.name] = [list(model.adaptors), model.config.version]
print(json.dumps(opened))
"""
RELEASES = [name for name, twin in TWINS.items() if twin.archive is not None]


@pytest.mark.tour
def test_all_open_without_this_package_after_conversion(tmp_path, elsewhere):
    wanted = {}
    for name in RELEASES:
        twin = TWINS[name]
        archive = write_repository(twin.archive_in or name, tmp_path / "files" / name) / twin.archive
        folder = tmp_path / "folders" / name.partition("/")[2]
        save(convert(archive, version=twin.version), folder, name)
        wanted[folder.name] = [[teacher.name for teacher in twin.teachers], twin.version]
    done = elsewhere.run(OPEN_ALL, tmp_path / "folders")
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == wanted


@pytest.mark.parametrize("name", ["nvidia/C-RADIOv4-H", "nvidia/C-RADIOv3-B", "nvidia/RADIO-L", "nvidia/RADIO-g"])
def test_converted_back_a_file_has_the_same_names(name, tmp_path):
    twin = TWINS[name]
    wanted = training_state(twin)
    torch.save(wanted, tmp_path / "file.pth.tar")
    content = training_file_content(convert(tmp_path / "file.pth.tar", version=twin.version))
    unused = {"base_model.reg_token"} if twin.reg_token else set()
    assert content["state_dict"].keys() == wanted["state_dict"].keys() - unused
    assert [each["name"] for each in content["args"].teachers] == [each.name for each in twin.teachers]
    assert twin_config(twin).all_adaptor_names == [each.name for each in twin.teachers]
