"""The command: refused input in one line, the page that it serves, and the Space that it writes."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from modeling_radio.core.files import PHOTOGRAPH
from modeling_radio.serving.app import page
from modeling_radio.serving.app.__main__ import main


@pytest.fixture
def launched(monkeypatch):
    """Pages that were launched, and how."""
    calls = []
    monkeypatch.setattr(page.gr.Blocks, "launch", lambda self, **options: calls.append((self, options)))
    return calls


@pytest.mark.parametrize(
    ("arguments", "address", "described", "may_reopen"),
    [
        ([], ("127.0.0.1", None, False), "float32.", True),
        (
            ["--port", "7999", "--device", "cpu", "--dtype", "bfloat16", "--host", "0.0.0.0", "--share"],
            ("0.0.0.0", 7999, True),
            "on cpu, bfloat16.",
            False,  # one visitor would choose for all
        ),
    ],
)
def test_it_serves_at_its_address_from_any_folder(
    texts, launched, tmp_path, monkeypatch, arguments, address, described, may_reopen
):
    monkeypatch.chdir(tmp_path)
    assert main([str(texts), *arguments]) == 0
    ((served, options),) = launched
    assert (options["server_name"], options["server_port"], options["share"]) == address
    assert not served.analytics_enabled
    texts_shown = [block.value for block in served.blocks.values() if isinstance(block, page.gr.Markdown)]
    assert described in texts_shown[1]
    dropdowns = {block.label for block in served.blocks.values() if isinstance(block, page.gr.Dropdown)}
    assert ({"Device", "Precision"} <= dropdowns) == may_reopen


def test_a_model_of_a_run_opens_with_its_validation_images_on_this_machine_alone(texts, launched, tmp_path):
    checkpoint, own = tmp_path / "run" / "final", tmp_path / "run" / "pictures" / "examples" / "0.jpg"
    shutil.copytree(texts, checkpoint)
    own.parent.mkdir(parents=True)
    shutil.copy(PHOTOGRAPH, own)
    for is_of_run, options, shown in (
        (False, [], PHOTOGRAPH),  # whoever made the folder beside it
        (True, [], own),
        (True, ["--share"], PHOTOGRAPH),
        (True, ["--host", "0.0.0.0"], PHOTOGRAPH),
        (True, ["--examples", str(texts / "photo.png")], texts / "photo.png"),
    ):
        if is_of_run:
            (tmp_path / "run" / "run.txt").write_text("radio finetune\n")
        if "--examples" in options:
            Image.new("RGB", (64, 64)).save(shown)
        assert main([str(checkpoint), *options]) == 0
        served, _ = launched.pop()
        (image,) = [block for block in served.blocks.values() if block.elem_id == "photograph"]
        assert Path(image.value["orig_name"]).name == shown.name
    assert main([str(checkpoint), "--space", str(tmp_path / "space")]) == 0
    assert [path.name for path in (tmp_path / "space" / "examples").iterdir()] == ["00-photograph.jpg"]
    assert not (tmp_path / "space" / "checkpoint" / "pictures").exists()


def test_a_space_is_written_whole_or_not_at_all(texts, tmp_path, capsys, launched):
    space, mine = tmp_path / "space", tmp_path / "mine"
    command = [str(texts), "--space", str(space)]
    assert main(command) == 0
    assert "`python app.py` in it shows it" in capsys.readouterr().out
    assert (space / "examples" / "00-photograph.jpg").is_file()
    assert main(command) == 1
    assert "exists already" in capsys.readouterr().err
    (space / "examples" / "old.jpg").write_text("")
    assert main([*command, "--overwrite"]) == 0
    assert not (space / "examples" / "old.jpg").exists()
    (space / ".git").mkdir()
    mine.mkdir()
    (mine / "thesis.tex").touch()
    for folder, named in ((space, ".git"), (mine, "--overwrite replaces Spaces of this app only")):
        assert main([str(texts), "--space", str(folder), "--overwrite"]) == 1
        error = capsys.readouterr().err
        assert "`space`" in error
        assert named in error
    assert (mine / "thesis.tex").exists()
    assert launched == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nowhere/at/all"], "nowhere/at/all"),
        (["{texts}", "--device", "tpu"], "`device`"),
        (["{texts}", "--dtype", "int8"], "`dtype`"),
        (["{texts}", "--port", "0"], "`port`"),
        (["{texts}", "--examples", "missing.jpg"], "`examples`"),
        (["{texts}", "--examples", "{texts}/config.json"], "`examples`"),
        (["{texts}", "--space", "{texts}/space"], "`space`"),
        (["no where", "--space", "{tmp}/space"], "`checkpoint`"),
        (["{texts}", "--space", "{texts}", "--overwrite"], "`space`"),
    ],
)
def test_bad_input_is_one_line(texts, tmp_path, arguments, named, capsys, launched):
    assert main([each.format(texts=texts, tmp=tmp_path) for each in arguments]) == 1
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert named in errors
    assert launched == []
    assert not (tmp_path / "space").exists()
