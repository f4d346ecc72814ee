"""Options of the command become settings, wrong ones an error of one line."""

from pathlib import Path

import pytest

from modeling_radio.tuning.finetune import COMMAND, main


def test_options_become_settings():
    def read(*words):
        return COMMAND.read(["base", "--task", "object-detection", "--data", "x=y", *words])

    changes = ["config.detection_num_queries=50", "config.detection_indices=[1,3]", "config.version=mine"]
    parsed = read("--lora", "8", "--size", "64x96", "--lora-targets", "qkv,fc1", *changes)
    assert (parsed.tune, parsed.lora_rank, parsed.size, parsed.data) == ("lora", 8, (64, 96), "x=y")
    assert parsed.lora_targets == ("qkv", "fc1")
    assert parsed.config == {"detection_num_queries": 50, "detection_indices": [1, 3], "version": "mine"}
    assert parsed.output == Path("runs/finetune-object-detection")
    parsed = read("--lora", "steps=100")
    assert (parsed.tune, parsed.lora_rank, parsed.size, parsed.steps) == ("lora", 16, None, 100)
    parsed = read("--lora", "--tune", "dora", "size=64")
    assert (parsed.tune, parsed.size) == ("dora", (64, 64))


@pytest.mark.parametrize(
    ("extra", "name"),
    [
        ([], "`checkpoint`"),
        (["--lora", "0"], "`lora_rank`"),
        (["--window-size=-1"], "`window_size`"),
        (["--head-learning-rate", "inf"], "`head_learning_rate`"),
        (["--head-learning-rate", ".inf"], "`head_learning_rate`"),
        (["--output", ""], "`output`"),
        (["config.drop_path_rate"], "'config.drop_path_rate'"),
        (["--lerning-rate", "1e-3"], "'--learning-rate'"),
        (["lerning_rate=1e-3"], "'learning_rate'"),
    ],
)
def test_bad_input_is_one_line(extra, name, capsys):
    assert main(["missing", "--task", "image-classification", "--data", "x", *extra]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("radio finetune: error: ")
    assert errors.count("\n") == 1
    assert name in errors


@pytest.mark.usefixtures("own_datasets_cache", "one_figure_image")
def test_command(base, class_folders, tmp_path, capsys):
    command = [str(base), "--task", "image-classification", "--data", str(class_folders), "--output"]
    command += [str(tmp_path / "run"), "--steps", "2", "--batch-size", "2", "--num-workers", "0"]
    assert main(command) == 0
    assert "Validation: accuracy " in capsys.readouterr().out
    assert (tmp_path / "run" / "final" / "config.json").is_file()
    assert list((tmp_path / "run" / "runs").rglob("events.*"))  # TensorBoard's
