"""Words of a command line become settings; what is wrong with them is one line."""

from pathlib import Path

import pytest
from toy_settings import Section, Toy

from core.command_line import Command
from core.settings import Settings


class WithChanges(Settings):
    """Options of a command that changes something else.

    Attributes:
        files: What to read.
        changes: Changes of the toy.
        steps: How many.
        check: Whether to look twice.
    """

    files: list[Path]
    changes: list[str] = []
    steps: int = 3
    check: bool = True


TOY = Command("package.toy", "Plays.", Toy, positionals=("source",))
CHANGING = Command("package.change", "Changes.", WithChanges, positionals=("files",), changes=Toy)


def test_flags_and_changes_set_the_same_fields():
    flags = TOY.read(["a", "--sizes", "1,2", "--weights", "balanced", "--side", "4", "--is-quick", "--output", "007"])
    changes = TOY.read(["sizes=1,2", "weights=balanced", "a", "side=4", "is_quick=true", "output=007"])
    assert flags == changes
    assert (flags.source, flags.sizes, flags.side, flags.output) == ("a", [1, 2], (4, 4), Path("007"))


def test_changes_win_over_flags_and_reach_sections():
    settings = TOY.read(["a", "--window", "8", "window=auto", "section.rate=0.3", "entries.low.size=2"])
    assert (settings.window, settings.section.rate, settings.entries[0].size) == ("auto", 0.3, 2)


def test_changes_of_something_else_are_told_from_files_by_the_sign():
    settings = CHANGING.read(["x", "./a=b", "section.rate=0.3", "y", "--steps", "5", "source=z"])
    assert settings.files == [Path("x"), Path("./a=b"), Path("y")]
    assert settings.changes == ["section.rate=0.3", "source=z"]
    assert settings.steps == 5
    assert CHANGING.read(["x", "steps=6"]).steps == 6


def test_what_is_true_by_default_can_be_left_out():
    assert CHANGING.read(["x"]).check
    assert not CHANGING.read(["x", "--no-check"]).check


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "--sises", "1"], "Unknown option '--sises'. Did you mean '--sizes'? --help lists all."),
        (["a", "--sises=1"], "Unknown option '--sises=1'. Did you mean '--sizes'?"),
        (["a", "--sizes"], "argument --sizes: expected one argument"),
        (["a", "--bits", "5"], "`bits` must be one of [4, 8], or null, got 5."),
        (["a", "--window", "[1"], "`window` is not YAML"),
        (
            ["a", "--window", ""],
            "`window` must be an integer or 'auto' or 'global', or null, got ''. Leave it out for its default.",
        ),
        (["a", "--output= "], "`output` must be a path, got ' '."),
        ([""], "`source` must be a text, got ''."),
        (["a", "sises=1"], "Unknown key 'sises' (Toy). Did you mean 'sizes'?"),
        (["a", "b"], "'b' must have the form field=value"),
    ],
)
def test_what_cannot_be_is_one_line(words, message, capsys):
    assert TOY.run(lambda settings: None, words) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"toy: error: {message}")
    assert error.count("\n") == 1


def test_usage_stands_before_what_is_missing(capsys):
    assert TOY.run(lambda settings: None, []) == 1
    usage, error = capsys.readouterr().err.split("toy: error: ")
    assert usage.startswith("usage: python -m package.toy [-h]")
    assert error.startswith("the following arguments are required: SOURCE")
    assert error.count("\n") == 1


def test_a_misspelt_section_is_sought_in_both(capsys):
    assert CHANGING.run(lambda settings: None, ["x", "sectoin.rate=1"]) == 1
    assert CHANGING.run(lambda settings: None, ["x", "stebs=1"]) == 1
    errors = capsys.readouterr().err
    assert "Unknown key 'sectoin'. Did you mean 'section'?" in errors
    assert "Unknown key 'stebs'. Did you mean 'steps'?" in errors


def test_traceback_shows_where_an_error_came_from():
    with pytest.raises(ValueError, match="bits"):
        TOY.run(lambda settings: None, ["a", "--bits", "5", "--traceback"])


def test_help_lists_every_setting(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    for command in (TOY, CHANGING):
        with pytest.raises(SystemExit) as end:
            command.read(["--help"])
        assert end.value.code == 0
    toy, changing = capsys.readouterr().out.split("usage: ")[1:]
    assert "--weights balanced|A,B" in toy
    assert "--bits {4,8}" in toy
    assert "--no-check" in changing
    assert "How many. (default: 3)" in changing
    assert "  section.rate: a number in [0, 1) (default: 0.1)\n      How fast, over two lines.\n" in changing
    assert "  entries.NAME.size: an integer above 0 (default: 8)\n" in changing
    assert "  source: a text (required)\n" in changing
    assert "  is_quick: true or false (default: false)\n" in changing
    assert "Switch off: Whether to look twice.\n" in changing


def test_a_class_with_a_title_is_a_group_of_its_own(capsys):
    class Titled(Section):
        """A group.

        Attributes:
            power: How strong.
        """

        title = "speed"

        power: int = 1

    class Grouped(Titled):
        """More.

        Attributes:
            depth: How deep.
        """

        title = ""

        depth: int = 0

    with pytest.raises(SystemExit):
        Command("package.grouped", "Groups.", Grouped).read(["--help"])
    text = capsys.readouterr().out
    assert "\nspeed:\n" in text
    assert text.index("--depth") < text.index("\nspeed:\n") < text.rindex("--power")
    assert "free.KEY=value\n      Free keys." in text


def test_a_plain_option_may_have_the_name_of_a_section_of_something_else():
    class WithSection(Settings):
        """An option that is called like a section of the toy.

        Attributes:
            changes: Changes of the toy.
            section: Plain.
        """

        changes: list[str] = []
        section: str = "x"

    command = Command("package.shared", "Shares a name.", WithSection, changes=Toy)
    settings = command.read(["section=y", "section.rate=0.3"])
    assert settings.section == "y"
    assert settings.changes == ["section.rate=0.3"]


def test_a_list_may_be_given_in_parts():
    assert TOY.read(["a", "--sizes", "1,2", "--sizes", "3"]).sizes == [1, 2, 3]


def test_what_a_flag_asks_for_is_no_change():
    settings = TOY.read(["a", "--output", "x=y", "--is-quick", "side=4"])
    assert (settings.output, settings.is_quick, settings.side) == (Path("x=y"), True, (4, 4))
