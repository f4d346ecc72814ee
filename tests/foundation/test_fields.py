"""What a declaration says in words, and what a text on the command line stands for."""

from pathlib import Path
from typing import Annotated

import pytest
from annotated_types import Ge, Gt, Lt
from toy_settings import Section, Toy

from core.settings import (
    Settings,
    describe_type,
    field_texts,
    list_settings,
    read_names,
    read_text,
    read_yaml,
)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("source", "001", "001"),
        ("source", "path/{0..9}.tar", "path/{0..9}.tar"),
        ("source", "*.parquet", "*.parquet"),
        ("source", "'a: b'", "a: b"),
        ("source", "{a: b}", "{a: b}"),
        ("source", "#1", "#1"),
        ("source", "&a b", "&a b"),
        ("source", '"a #1"', "a #1"),
        ("source", "'a' or 'b'", "'a' or 'b'"),
        ("source", "~", None),
        ("output", "2024", "2024"),
        ("output", "runs/exp #2", "runs/exp #2"),
        ("names", "null", None),
        ("names", "01", ["01"]),
        ("names", "a, b", ["a", "b"]),
        ("names", "[a, b]", ["a", "b"]),
        ("sizes", "3", ["3"]),
        ("weights", "balanced", "balanced"),
        ("weights", "1,2.5", ["1", "2.5"]),
        ("window", "8", 8),
        ("window", "auto", "auto"),
        ("side", "8", [8, 8]),
        ("side", "large", "large"),
        ("is_quick", "true", True),
        ("section", "{rate: 1e-3}", {"rate": 1e-3}),
    ],
)
def test_texts_become_values(name, text, value):
    assert read_text(text, Toy.model_fields[name]) == value


def test_without_a_declaration_a_text_is_yaml():
    assert read_text("[1, a]", None) == [1, "a"]
    with pytest.raises(ValueError, match="not YAML"):
        read_text("[1", None)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("2.5e3", 2500.0),
        ("1.0e-3", 1e-3),
        ("300_000", 300_000),
        ("2024-01-02", "2024-01-02"),
        ("e3", "e3"),
        ("no", False),
        ("{1: {2: a}}", {"1": {"2": "a"}}),
    ],
)
def test_yaml(text, value):
    assert read_yaml(text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0b_", "'0b_' is no value of the type 'int'"),
        ("!!float ''", "'' is no value of the type 'float'"),
        ("!!bool maybe", "'maybe' is no value of the type 'bool'"),
        ("!!map a", "expected a mapping node"),
        ("!!timestamp 2020-01-01", "could not determine a constructor"),
        ("!!binary YQ==", "could not determine a constructor"),
        ("!!set {a}", "could not determine a constructor"),
        ("!!python/name:os.system x", "could not determine a constructor"),
        ("&a [*a]", "nested deeper than 50 levels"),
        ("[" * 60 + "]" * 60, "nested deeper than 50 levels"),
        ("[" * 5000, "nested deeper than 50 levels"),
        ("[&a [" + "1, " * 1000 + "]" + ", *a" * 100 + "]", "stands for more than 100,000 values"),
    ],
)
def test_only_plain_values_of_sensible_size(text, message):
    with pytest.raises(ValueError, match=f"^not YAML: .*{message}"):
        read_yaml(text)


def test_aliases_are_copied():
    value = read_yaml("a: &x {k: [1]}\nb: *x\nc: {<<: *x, l: 2}")
    assert value == {"a": {"k": [1]}, "b": {"k": [1]}, "c": {"k": [1], "l": 2}}
    assert value["a"]["k"] is not value["b"]["k"]


def test_keys_stand_once():
    with pytest.raises(ValueError, match="the key 'a' stands twice"):
        read_yaml("a: 1\nb: 2\na: 3\n")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("source", "a text"),
        ("side", "PX, or null"),
        ("window", "an integer or 'auto' or 'global', or null"),
        ("bits", "one of [4, 8], or null"),
        ("sizes", "[an integer, ...]"),
        ("weights", "'balanced' or [a number, ...], or null"),
        ("output", "a path"),
        ("is_quick", "true or false"),
    ],
)
def test_types_in_words(name, words):
    assert describe_type(Toy.model_fields[name]) == words


def test_items_and_their_ranges_in_words():
    class Ranges(Settings):
        counts: list[Annotated[int, Gt(0)]] | None = None
        pair: tuple[Annotated[float, Ge(0), Lt(1)], float] = (0, 0)
        size: int = 1

    fields = Ranges.model_fields
    assert describe_type(fields["counts"]) == "[an integer above 0, ...], or null"
    assert describe_type(fields["pair"]) == "[a number in [0, 1), a number]"
    kinds = [(fields[name].annotation) for name in ("counts", "pair", "size")]
    assert kinds == [{int}, {float}, set()]


def test_texts_have_the_words_of_yaml():
    class Words(Settings):
        """Words.

        Attributes:
            size: None for no size, True or False for nothing; Nonesuch stays.
        """

        size: int | None = None

    assert field_texts(Words) == {"size": "null for no size, true or false for nothing; Nonesuch stays."}


def test_every_setting_is_listed_with_its_text():
    listed = {setting.path: setting.text for setting in list_settings(Toy)}
    assert listed["entries.NAME.size"] == "How large it is."
    assert listed["section.rate"] == "How fast, over two lines."
    assert listed["output"] == "A folder."
    assert "section" not in listed


def test_texts_of_parents_are_inherited():
    class Child(Section):
        """A child.

        Attributes:
            loss: Another text.
            more: More.
        """

        more: Path | None = None

    assert field_texts(Child) == {
        "rate": "How fast, over two lines.",
        "loss": "Another text.",
        "free": "Free keys.",
        "more": "More.",
    }


def test_lists_of_names():
    assert read_names("sam3, dino_v3") == ["sam3", "dino_v3"]
    assert (read_names("all"), read_names("none")) == (None, [])
