"""The command: what it refuses in one line, what it serves, and the Space that it writes."""

import pytest

from training.app import page
from training.app.__main__ import main


@pytest.fixture
def launched(monkeypatch):
    """How pages were launched."""
    calls = []
    monkeypatch.setattr(page.gr.Blocks, "launch", lambda self, **options: calls.append((self, options)))
    return calls


def labels_of(served):
    return {getattr(block, "label", None) for block in served.blocks.values()}


def test_it_serves_where_it_is_told(texts, photograph, launched):
    arguments = ["--port", "7999", "--device", "cpu", "--dtype", "bfloat16", "--host", "0.0.0.0", "--share"]
    assert main([str(texts), *arguments, "--examples", photograph]) == 0
    ((served, options),) = launched
    assert (options["server_name"], options["server_port"], options["share"]) == ("0.0.0.0", 7999, True)
    assert not served.analytics_enabled
    texts_shown = [block.value for block in served.blocks.values() if isinstance(block, page.gr.Markdown)]
    assert "on cpu, bfloat16." in texts_shown[1]
    assert not labels_of(served) & {"Device", "Precision"}, "one visitor would choose for all"


def test_by_default_this_machine_alone_is_served(texts, launched):
    assert main([str(texts)]) == 0
    ((served, options),) = launched
    assert (options["server_name"], options["server_port"], options["share"]) == ("127.0.0.1", None, False)
    assert labels_of(served) >= {"Device", "Precision"}


def test_it_is_run_from_any_folder(texts, tmp_path, launched, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([str(texts)]) == 0
    assert len(launched) == 1


def test_a_space_is_written_whole_or_not_at_all(texts, tmp_path, capsys, launched):
    space = tmp_path / "space"
    assert main([str(texts), "--space", str(space)]) == 0
    assert "`python app.py` in it shows it" in capsys.readouterr().out
    assert (space / "examples" / "00-photograph.jpg").is_file()
    assert main([str(texts), "--space", str(space)]) == 1
    assert "exists already" in capsys.readouterr().err
    (space / "examples" / "old.jpg").write_text("")
    assert main([str(texts), "--space", str(space), "--overwrite"]) == 0
    assert not (space / "examples" / "old.jpg").exists()
    (space / ".git").mkdir()
    capsys.readouterr()
    assert main([str(texts), "--space", str(space), "--overwrite"]) == 1
    assert "`space`" in (error := capsys.readouterr().err)
    assert ".git" in error
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    assert main([str(texts), "--space", str(tmp_path / "mine"), "--overwrite"]) == 1
    assert "--overwrite replaces Spaces of this app only" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.tex").exists()
    assert launched == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere/at/all"], "nowhere/at/all"),
        (["{texts}", "--device", "tpu"], "`device` must be one of"),
        (["{texts}", "--dtype", "int8"], "`dtype` must be"),
        (["{texts}", "--port", "0"], "`port` must be"),
        (["{texts}", "--examples", "missing.jpg"], "`examples` must be files of photographs, got 'missing.jpg'"),
        (["{texts}", "--examples", "{texts}/config.json"], "`examples` must be files of photographs, got"),
        (["{texts}", "--space", "{texts}/space"], "`space` must not lie in the checkpoint"),
        (["no where", "--space", "{tmp}/space"], "`checkpoint` must be a folder or a Hub id"),
        (["{texts}", "--space", "{texts}", "--overwrite"], "must not be or hold what is read"),
    ],
)
def test_bad_input_is_one_line(texts, tmp_path, arguments, message, capsys, launched):
    assert main([each.format(texts=texts, tmp=tmp_path) for each in arguments]) == 1
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert message in errors
    assert launched == []
    assert not (tmp_path / "space").exists()
