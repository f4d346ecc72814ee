"""The command: what it prints, what it refuses in one line."""

import pytest
from datasets import load_dataset
from tiny_networks import build_wrapped

from modeling_radio.extraction.extract import main


@pytest.mark.usefixtures("own_datasets_cache")
def test_a_folder_becomes_a_data_set(base, class_folders, tmp_path, capsys):
    command = [str(base), "--data", str(class_folders), "--output", str(tmp_path / "features"), "--num-workers", "0"]
    assert main(command) == 0
    assert "features: 6 images in 1 file, 0.0 MB (6 encoded now" in capsys.readouterr().out
    leftover = tmp_path / "features" / ".partial-README.md-abc"  # of a run that was killed as it wrote its card
    leftover.mkdir()
    (leftover / "README.md").write_text("half")
    assert main(command) == 0
    assert "(all were there)" in capsys.readouterr().out
    assert not leftover.exists()
    rows = load_dataset(str(tmp_path / "features"), split="train")
    assert len(rows) == 6
    assert rows.features["label"].names == ["cat", "dog"]


@pytest.mark.usefixtures("own_datasets_cache")
def test_features_of_a_network_of_a_library(class_folders, tmp_path, capsys):
    build_wrapped("ConvNeXt").save_pretrained(tmp_path / "base")
    command = [str(tmp_path / "base"), "--data", str(class_folders), "--output", str(tmp_path / "out")]
    assert main([*command, "--num-workers", "0"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing", "--output", "x"], "`data`"),
        (["missing", "--output", "x", "--data", "y"], "`checkpoint`"),
        (["missing", "--output", "x", "--data", "y", "--vector-dtype", "int4"], "`vector_dtype`"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
    assert main(arguments) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("radio extract: error: ")
    assert message in error
