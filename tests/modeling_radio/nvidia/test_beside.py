"""Adaptors that NVIDIA's folders lack come from the training file of the same release."""

import errno
import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants, hf_api
from local_hub import hub_in_place
from nvidia_twin import serve_twin, write_repository
from safetensors.torch import load_file

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.conversion import convert as convert_command
from modeling_radio.conversion.from_nvidia import convert
from modeling_radio.core.hub import find_folder
from modeling_radio.evaluation.models.radio import RadioFeatures
from modeling_radio.nvidia import beside
from modeling_radio.nvidia.translation import translate_adaptor
from modeling_radio.torch_hub import open_for_torch_hub
from modeling_radio.training.teachers.radio import RadioTeacher


NAME, ARCHIVE = "nvidia/C-RADIOv4-H", "c-radio_v4-h_half.pth.tar"
TOWER = "google/siglip2-giant-opt-patch16-384"
opened: list[str] = []
sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)


@pytest.fixture
def caches(tmp_path, monkeypatch):
    for kind in ("HUB", "ASSETS"):
        monkeypatch.setattr(constants, f"HF_{kind}_CACHE", str(tmp_path / kind.lower()))
    return tmp_path


@pytest.fixture
def hub(caches, monkeypatch):
    with hub_in_place(monkeypatch) as hub:
        monkeypatch.setattr(hf_api.api, "endpoint", hub.endpoint)
        serve_twin(hub, NAME)
        yield hub


@pytest.fixture
def folder(caches):
    return write_repository(NAME, caches / "folder")


def opened_archives():
    found = [name for name in opened if name.endswith(".pth.tar")]
    opened.clear()
    return found


def test_they_are_fetched_once_and_the_next_start_does_not_open_the_file(hub, caplog):
    opened.clear()
    model = RadioModel.from_pretrained(NAME, adaptor_names=["dino_v3_7b", "sam3"])
    assert (list(model.adaptors), model.config.adaptor_names) == (["dino_v3_7b", "sam3"],) * 2
    assert opened_archives()
    assert RadioConfig.from_pretrained(NAME, adaptor_names=["sam3"]).adaptor_names == ["sam3"]
    [line] = [record.message for record in caplog.records if ARCHIVE in record.message]
    assert all(part in line for part in ("MB", NAME, "nvidia-open-model-license"))
    assert sum(ARCHIVE in path for method, path in hub.requests if method == "GET") == 1
    whole = convert(find_folder(NAME).parent / find_folder(NAME).name / ARCHIVE)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        wanted = whole.eval().float()(images, adaptor_names=["sam3"]).adaptors["sam3"].features
        given = model.eval().float()(images, adaptor_names=["sam3"]).adaptors["sam3"].features
    assert torch.allclose(given, wanted, atol=2e-2)  # the folder's backbone has float32 weights, the file's float16
    opened.clear()
    again = RadioModel.from_pretrained(NAME, adaptor_names=["dino_v3_7b", "sam3"])
    assert opened_archives() == []
    assert all(
        torch.equal(again.state_dict()[key], value) for key, value in model.state_dict().items() if "adaptors" in key
    )
    assert hub.unknown == []


def test_every_way_to_open_a_model_gets_them(hub, tmp_path):
    assert list(open_for_torch_hub(NAME, "siglip2-g").adaptors) == ["siglip2-g"]
    teacher = RadioTeacher("text", source=NAME, adaptor_name="siglip2-g")
    assert (teacher.summary_dim, teacher.feature_dim) == (24, 24)
    assert RadioFeatures.open(Path(NAME), teachers=["sam3", "of another release"]).adaptor_names == ("sam3",)
    serve_twin(hub, TOWER)
    assert convert_command.main([NAME, str(tmp_path / "out"), "--text-tower", "auto"]) == 0
    whole = RadioModel.from_pretrained(tmp_path / "out")
    assert set(whole.adaptors) == {"siglip2-g", "dino_v3_7b", "sam3"}
    assert whole.config.text_adaptor == "siglip2-g"
    assert TOWER in (tmp_path / "out" / "README.md").read_text()


def test_a_local_file_is_taken_in_place_of_a_folder_and_beside_one(folder):
    from_file = RadioModel.from_pretrained(folder / ARCHIVE)
    assert set(from_file.adaptors) == {"siglip2-g", "dino_v3_7b", "sam3"}
    assert find_folder(folder / ARCHIVE).is_dir()
    assert RadioConfig.from_pretrained(folder / ARCHIVE).all_adaptor_names == ["siglip2-g", "dino_v3_7b", "sam3"]
    joined = RadioModel.from_pretrained(folder, adaptor_names=["sam3"])
    tensors = load_file(folder / "model.safetensors")
    assert all(torch.equal(joined.state_dict()[key], tensor) for key, tensor in tensors.items())


def test_two_ranks_at_once_convert_it_once(folder, monkeypatch):
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        return translate_adaptor(*arguments)

    monkeypatch.setattr(beside, "translate_adaptor", counted)
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: beside.folder_with_adaptors(folder, ["sam3"]), range(4)))
    assert (len(folders), len(calls)) == (1, 1)


def test_what_is_missing_is_said_in_one_line_before_anything_is_fetched(folder, hub):
    (folder / ARCHIVE).unlink()
    with pytest.raises(ValueError, match=rf"{ARCHIVE} of {NAME}.*--local-dir {folder}") as caught:
        RadioModel.from_pretrained(folder, adaptor_names=["sam3"])
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"`adaptor_names` .*'siglip2-g'"):
        RadioModel.from_pretrained(NAME, adaptor_names=["siglip2"])
    assert not any(ARCHIVE in path for _, path in hub.requests)


def test_offline_it_says_what_to_fetch_and_where_to_put_it(hub, monkeypatch):
    RadioModel.from_pretrained(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=rf"hf download {NAME} {ARCHIVE}.*{constants.HF_HUB_CACHE}") as caught:
        RadioModel.from_pretrained(NAME, adaptor_names=["sam3"])
    assert "\n" not in str(caught.value)


def test_only_the_tensors_of_an_adaptor_are_read_and_damaged_ones_refused(folder):
    archive = folder / ARCHIVE
    content = archive.read_bytes()
    state = torch.load(archive, weights_only=False)["state_dict"]
    weights = state["_heads.sam3.fc1.weight"].numpy().tobytes()
    assert content.count(weights) == 1
    archive.write_bytes(content.replace(weights, bytes(len(weights))))
    RadioModel.from_pretrained(folder, adaptor_names=["dino_v3_7b"])
    with pytest.raises(ValueError, match=r"_heads\.sam3\.fc1\.weight"):
        RadioModel.from_pretrained(folder, adaptor_names=["sam3"])
    archive.write_bytes(content)
    assert list(RadioModel.from_pretrained(folder, adaptor_names=["sam3"]).adaptors) == ["sam3"]


def test_a_full_disk_and_a_killed_process_leave_nothing_that_is_read_later(folder, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(beside, "save_file", fail)
        with pytest.raises(ValueError, match="HF_HOME"):
            RadioModel.from_pretrained(folder, adaptor_names=["sam3"])
    assert not list(Path(constants.HF_ASSETS_CACHE).rglob("*.safetensors"))
    RadioModel.from_pretrained(folder, adaptor_names=["sam3"])
    [adaptor] = Path(constants.HF_ASSETS_CACHE).rglob("adaptor.safetensors")
    shutil.rmtree(adaptor.parent)  # links that lead nowhere are written again
    assert list(RadioModel.from_pretrained(folder, adaptor_names=["sam3"]).adaptors) == ["sam3"]


def test_a_name_that_is_a_path_writes_nothing_elsewhere(folder, tmp_path):
    outside = str(tmp_path / "outside")
    config = json.loads((folder / "config.json").read_text())
    config["args"]["teachers"][2]["name"] = outside
    (folder / "config.json").write_text(json.dumps(config))
    content = torch.load(folder / ARCHIVE, weights_only=False)
    content["args"].teachers[2]["name"] = outside
    renamed = {key.replace(".sam3.", f".{outside}."): value for key, value in content["state_dict"].items()}
    torch.save({**content, "state_dict": renamed}, folder / ARCHIVE)
    beside.folder_with_all_adaptors(folder)
    assert not Path(outside).exists()
    assert len(list(Path(constants.HF_ASSETS_CACHE).rglob("adaptor.safetensors"))) == 3  # it was converted all the same
