"""`--overwrite` replaces an earlier model folder and never loses anything else."""

import json
import shutil

import pytest

from conversion.from_nvidia import main
from conversion.output_folder import check_model_output
from modeling_radio import RadioConfig
from modeling_radio.image_processing_radio import RadioImageProcessor


@pytest.fixture
def source(reference, tmp_path):
    (tmp_path / "in").mkdir()
    return shutil.copy(reference / "radio_v2_tiny" / "checkpoint.pth.tar", tmp_path / "in" / "checkpoint.pth.tar")


@pytest.fixture
def model_folder(tmp_path):
    """What stands for a converted folder: its small files."""
    config = RadioConfig.from_preset("radio-test")
    config.save_pretrained(tmp_path / "out")
    RadioImageProcessor.from_model_config(config).save_pretrained(tmp_path / "out")
    for name in ("model.safetensors", "README.md", "modeling_radio.py"):
        (tmp_path / "out" / name).touch()
    return tmp_path / "out"


@pytest.mark.parametrize("output", ["in", "in/checkpoint.pth.tar", "in/../in", "."])
def test_an_output_that_is_or_holds_the_source_loses_nothing(output, source, tmp_path, monkeypatch, capsys):
    (tmp_path / "in" / "precious.txt").write_text("mine")
    content = source.read_bytes()
    monkeypatch.chdir(tmp_path)
    assert main(["in/checkpoint.pth.tar", output, "--overwrite"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "`output` must not be or hold what is read, 'in/checkpoint.pth.tar', got " in error
    assert source.read_bytes() == content
    assert (tmp_path / "in" / "precious.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_the_expected_outputs_are_kept_too(source, model_folder, capsys):
    (model_folder / "expected.safetensors").touch()
    arguments = [str(source), str(model_folder), "--overwrite", "--verify", str(model_folder / "expected.safetensors")]
    assert main(arguments) == 1
    assert "must not be or hold what is read" in capsys.readouterr().err


def test_a_folder_that_is_no_model_is_kept(source, tmp_path, capsys):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").touch()
    assert main([str(source), str(tmp_path / "home"), "--overwrite"]) == 1
    assert "--overwrite replaces RADIO model folders only, and " in capsys.readouterr().err
    assert (tmp_path / "home" / "thesis.txt").exists()


@pytest.mark.parametrize("config", ["{", "[]", '{"model_type": "bert"}', "[" * 100_000])
def test_another_models_folder_is_kept(config, model_folder):
    (model_folder / "config.json").write_text(config)
    with pytest.raises(ValueError, match="replaces RADIO model folders only"):
        check_model_output(model_folder, overwrite=True)


def test_files_of_others_in_a_model_folder_are_kept(model_folder):
    (model_folder / "notes.txt").touch()
    (model_folder / "runs").mkdir()
    with pytest.raises(ValueError, match=r"no part of a model from .*out': notes\.txt, runs\. Move it away"):
        check_model_output(model_folder, overwrite=True)


def test_a_model_folder_and_an_empty_one_may_be_replaced(model_folder, tmp_path):
    check_model_output(model_folder, overwrite=True)
    (tmp_path / "empty").mkdir()
    check_model_output(tmp_path / "empty", overwrite=True)
    check_model_output(tmp_path / "new", overwrite=False)
    with pytest.raises(ValueError, match="exists already"):
        check_model_output(model_folder, overwrite=False)


def test_the_working_directory_and_files_are_kept(model_folder, monkeypatch):
    with pytest.raises(ValueError, match="`output` must be a folder, got the file"):
        check_model_output(model_folder / "README.md", overwrite=True)
    monkeypatch.chdir(model_folder)
    for path in (".", "..", str(model_folder)):
        with pytest.raises(ValueError, match="must not be or hold the working directory"):
            check_model_output(model_folder / path, overwrite=True)


def test_what_the_command_wrote_can_be_written_again(source, tmp_path):
    arguments = [str(source), str(tmp_path / "out")]
    assert main(arguments) == 0
    assert main([*arguments, "--overwrite"]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "radio"
