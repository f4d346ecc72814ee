import json
import re
import shutil
import subprocess
from pathlib import Path

import huggingface_hub
import pytest
from local_hub import Repository, hub_in_place
from nvidia_twin import DEPTH, WIDTH, write_repository
from reference_cases import write_release
from safetensors.torch import load_file, save_file

from modeling_radio.conversion.compare_release import FetchedRelease, describe_weights, main
from modeling_radio.conversion.convert import main as convert
from modeling_radio.model_cards.parity import Parity


SMALL = ["--sizes", "64x96", "--windows", "2"]


@pytest.fixture(autouse=True)
def quick_processes(elsewhere, monkeypatch):
    monkeypatch.setattr(subprocess, "run", elsewhere.run_command)


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    return write_release("c_radio_v4_tiny", tmp_path_factory.mktemp("release") / "C-RADIOv4-H")


@pytest.fixture(scope="module")
def converted(release) -> Path:
    folder = release.with_name("converted")
    assert convert([str(release), str(folder)]) == 0
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_in_place(monkeypatch) as server:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield server


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_one_command_fetches_pins_runs_both_and_writes_the_table(release, hub, tmp_path, capsys, monkeypatch):
    """By name: a tag is resolved to its commit, and neither what main has since nor the network is asked again."""
    repository = hub.repositories["models/nvidia/C-RADIOv4-H"] = Repository(private=False)
    repository.tags["v1"] = repository.commit(files_of(release))
    repository.commit(files_of(release) | {"hf_model.py": b"raise RuntimeError('of main')"})
    monkeypatch.chdir(tmp_path)
    words = ["nvidia/C-RADIOv4-H", "--revision", "v1", *SMALL]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Backbone of nvidia/C-RADIOv4-H: ")
    assert f"Running the code of nvidia/C-RADIOv4-H, commit {repository.tags['v1']}, in a process" in shown
    folder = tmp_path / "runs" / "parity" / "C-RADIOv4-H"
    assert sorted(path.name for path in folder.iterdir()) == ["parity.json", "parity.md"]
    parity = Parity.load(folder / "parity.json")
    assert (parity.source, parity.revision) == ("nvidia/C-RADIOv4-H", repository.tags["v1"])
    outputs = ["summary", "features", "dino_v3 summary", "dino_v3 features", "sam3 summary", "sam3 features"]
    assert [(each.window, each.output) for each in parity.agreements] == [(w, o) for w in (None, 2) for o in outputs]
    assert parity.worst.relative < 1e-6
    assert [(cost.size, cost.window) for cost in parity.costs] == [("64x96", None), ("64x96", 2)]
    text = (folder / "parity.md").read_text()
    assert "| sam3 features | windows of 2 |" in text
    assert f"`nvidia/C-RADIOv4-H` at commit `{repository.tags['v1']}`" in text
    assert "adaptors of siglip2-g, which are not in this repository" in text
    hub.faults += [(".*", "503")] * 99  # what was fetched is enough
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert main(words) == 1
    assert "exists already" in capsys.readouterr().err
    assert main([*words, "--overwrite", "--adaptors", "none", "--windows", "none"]) == 0
    assert {each.output for each in Parity.load(folder / "parity.json").agreements} == {"summary", "features"}


def test_windows_change_what_both_say(release, tmp_path, monkeypatch):
    """Else windows that neither side applied would count as equal."""
    asked = []
    monkeypatch.setattr(
        "modeling_radio.conversion.compare_release.compare_outputs", lambda *pair: asked.extend(pair) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        main([str(release), "--output", str(tmp_path / "parity"), *SMALL])
    for outputs in asked:
        difference = outputs["64x96/None/backbone/features"] - outputs["64x96/2/backbone/features"]
        assert difference.abs().max() > 1e-2


def test_another_network_is_found_out(release, converted, tmp_path, capsys):
    """One bias of one late block: small, and far beyond what rounding gives."""
    folder = shutil.copytree(converted, tmp_path / "converted")
    weights = load_file(folder / "model.safetensors")
    weights["radio_model.model.blocks.7.mlp.fc2.bias"][0] += 0.1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert main([str(release), "--converted", str(folder), *SMALL]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"error: .* at 64x96 px with .* differs by .* of its size, more than 0\.0001", error)
    parity = Parity.load(folder / "parity.json")  # what was found is there to look at
    assert parity.worst.relative > parity.tolerance
    assert parity.worst.cosine < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--adaptors", "sam3,siglip2-g"], "`adaptors` must be one of"),
        (["--sizes", "big"], "`sizes` must be like 512"),
        (["--revision", "v1"], "`revision` must be left out for a folder"),
        (["--converted", "."], "`converted` must be a folder that radio convert wrote, got '.'"),
        (["--windows", "0"], "`windows"),
        (["--windows", "wide"], "`windows"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_and_nothing_is_written(release, tmp_path, capsys, options, message):
    assert main([str(release), "--output", str(tmp_path / "parity"), *options]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert not list(tmp_path.rglob("parity.*"))


def test_without_a_network_one_line_says_so(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["nvidia/C-RADIOv4-H", "--sizes", "512,big"]) == 1
    assert "`sizes`" in capsys.readouterr().err  # before anything is fetched
    assert main(["nvidia/C-RADIOv4-H"]) == 1
    assert "the Hub has no" in capsys.readouterr().err
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert main(["nvidia/C-RADIOv4-H"]) == 1
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0
    assert "`source` must be a folder or ORG/NAME on the Hub, got 'nvidia/C-RADIOv4-H'" in error
    assert "the Hub cannot be reached" in error
    assert list(tmp_path.iterdir()) in ([], [tmp_path / "cache"])


def test_weights_are_counted_first_beside_our_preset(tmp_path):
    folder = write_repository("nvidia/C-RADIOv3-B", tmp_path / "C-RADIOv3-B")
    release = FetchedRelease("nvidia/C-RADIOv3-B", None, folder)
    first, second, *alone = describe_weights(release).splitlines()
    numbers = sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values())
    assert f"{numbers:,} numbers in {14 * DEPTH + 7} tensors" in first
    # Without timm's registers the file has 98,251,782 numbers, and `summary_idxs`.
    assert f"c-radio_v3-b: {98_251_782 + 3:,} numbers in {14 * 12 + 6} tensors" in second
    assert f"radio_model.model.reg_token (1 x 4 x {WIDTH})" in alone[0]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "version": "c-radio_v2-g"}))
    assert "No preset has the version 'c-radio_v2-g'" in describe_weights(release)
