"""The command: what it refuses in one line, and the page that it writes."""

import pytest
from drawn_assets import draw_photograph

from training.demo_kit.republishing import Credited
from training.showcase import gallery
from training.showcase.gallery import main


@pytest.fixture
def small_world(base, tmp_path, monkeypatch):
    held_out = [Credited(draw_photograph(tmp_path / f"{name}.png", "held_out", "CC0-1.0"), "nobody") for name in "ab"]
    monkeypatch.setattr(gallery, "load_demo_assets", lambda: None)
    monkeypatch.setattr(gallery, "republishable_photographs", lambda _: held_out)
    return base


def test_a_page_without_teachers(small_world, tmp_path, capsys):
    output = tmp_path / "gallery"
    assert main([str(small_world), "--output", str(output), "--alone", "--shifts", "2"]) == 0
    assert capsys.readouterr().out == f"Open {output / 'index.html'}: 2 photographs.\n"
    page = (output / "index.html").read_text(encoding="utf-8")
    assert "a, by nobody (CC0-1.0, package drawn)" in page
    assert "alike the ring: backbone" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "`checkpoint` must be"),
        (["missing", "--shifts", "0"], "`shifts` must be"),
        (["{checkpoint}", "--alone", "--shifts", "3"], "`shifts` must divide the 16 pixels of a patch, got 3"),
        (["{checkpoint}", "--alone", "--words", "cat"], "`words` must be left out"),
        (["{checkpoint}"], "names none of the checkpoint's adaptors"),
    ],
)
def test_bad_input_is_one_line(small_world, tmp_path, arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(gallery, "reachable_teachers", lambda recipe: recipe.teachers)
    arguments = [each.format(checkpoint=small_world) for each in arguments]
    assert main([*arguments, "--output", str(tmp_path / "gallery")]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("gallery: error: ")
    assert errors.count("\n") == 1
    assert message in errors
    assert not (tmp_path / "gallery" / "index.html").exists()
