"""Options of the command become settings, wrong ones an error of one line."""

import logging
from pathlib import Path

import pytest

from training.finetune import COMMAND, main
from training.finetuning.settings import FinetuneSettings


def test_every_setting_has_an_option(capsys):
    with pytest.raises(SystemExit):
        COMMAND.read(["--help"])
    text = capsys.readouterr().out
    fields = set(FinetuneSettings.model_fields) - {"checkpoint", "config"}
    assert [name for name in fields if f"--{name.replace('_', '-')}" not in text] == []
    assert "config.KEY=value" in text


def test_options_become_settings():
    command = ["base", "--task", "object-detection", "--data", "x", "--lora", "8", "--size", "64x96", "--lora-targets"]
    command += ["qkv,fc1", "config.detection_num_queries=50", "config.detection_indices=[1,3]", "config.version=mine"]
    parsed = COMMAND.read(command)
    assert (parsed.tune, parsed.lora_rank, parsed.size) == ("lora", 8, (64, 96))
    assert parsed.lora_targets == ("qkv", "fc1")
    assert parsed.config == {"detection_num_queries": 50, "detection_indices": [1, 3], "version": "mine"}
    assert parsed.output == Path("runs/finetune-object-detection")
    parsed = COMMAND.read(["base", "--task", "object-detection", "--data", "x", "--lora"])
    assert (parsed.tune, parsed.lora_rank, parsed.size) == ("lora", 16, None)
    parsed = COMMAND.read(["base", "--task", "object-detection", "--data", "x", "--lora", "--tune", "dora", "size=64"])
    assert (parsed.tune, parsed.size) == ("dora", (64, 64))
    parsed = COMMAND.read(["base", "--task", "object-detection", "--data", "x=y", "--lora", "steps=100"])
    assert (parsed.tune, parsed.lora_rank, parsed.steps, parsed.data) == ("lora", 16, 100, "x=y")


@pytest.mark.parametrize(("text", "window"), [("8", 8), ("global", "global"), ("auto", "auto")])
def test_windows_on_the_command_line(text, window):
    command = ["base", "--task", "object-detection", "--data", "x", f"--window-size={text}"]
    assert COMMAND.read(command).window_size == window


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ([], "`checkpoint` must be a folder or Hub id with a config.json, got 'missing'."),
        (["--lora", "0"], "`lora_rank` must be an integer of at least 1, got 0"),
        (["--window-size=-1"], "`window_size` must be at least 1 (tokens), 'auto', 'global' or None, got -1."),
        (["--head-learning-rate", "inf"], "`head_learning_rate` must be a number of at least 0, or null, got 'inf'."),
        (["--head-learning-rate", ".inf"], "must be a finite number of at least 0, or null, got inf."),
        (["--output", ""], "`output` must be a path, got ''."),
        (["config.drop_path_rate"], "'config.drop_path_rate' must have the form field=value"),
        (["--lerning-rate", "1e-3"], "Unknown option '--lerning-rate'. Did you mean '--learning-rate'?"),
        (["lerning_rate=1e-3"], "Unknown key 'lerning_rate' (FinetuneSettings). Did you mean 'learning_rate'?"),
    ],
)
def test_bad_input_is_one_line(extra, message, capsys):
    assert main(["missing", "--task", "image-classification", "--data", "x", *extra]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("finetune: error: ")
    assert errors.count("\n") == 1
    assert message in errors


@pytest.mark.usefixtures("own_datasets_cache", "one_picture")
def test_command(base, class_folders, tmp_path, capsys):
    command = [str(base), "--task", "image-classification", "--data", str(class_folders), "--output"]
    command += [str(tmp_path / "run"), "--steps", "2", "--batch-size", "2", "--num-workers", "0"]
    assert main(command) == 0
    assert "Validation: accuracy " in capsys.readouterr().out
    assert (tmp_path / "run" / "final" / "config.json").is_file()
    assert list((tmp_path / "run" / "runs").rglob("events.*"))  # TensorBoard's


@pytest.mark.parametrize(("extra", "speaks"), [([], False), (["--lora", "--quantize", "4"], True)])
def test_bitsandbytes_speaks_where_it_is_asked_for(extra, speaks):
    logger = logging.getLogger("bitsandbytes")
    logger.setLevel(logging.NOTSET)
    try:
        assert main(["missing", "--task", "image-classification", "--data", "x", *extra]) == 1
        assert logger.isEnabledFor(logging.WARNING) == speaks
    finally:
        logger.setLevel(logging.NOTSET)
