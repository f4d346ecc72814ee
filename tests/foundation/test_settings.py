"""Settings are layers of plain data with changes, checked once; what is wrong is one line with path, rule and value."""

import copy
import pickle

import pytest
from toy_settings import MARK, Toy

from core.settings import (
    Problem,
    Settings,
    SettingsError,
    differences,
    hash_of,
    load,
    marked,
    merged,
    order_differences,
    with_defaults,
    without,
    without_unknown,
)


def test_later_layers_and_changes_win():
    layers = [{"source": "a", "section": {"rate": 0.2}}, {"section": {"free": {"x": 1}}, "sizes": [3]}]
    changes = ["section.rate=5e-1", "section.free.y=[1, two]", "entries.high.size=9", "entries.0.size=7", "window=8"]
    settings = load(Toy, layers, changes)
    assert (settings.source, settings.sizes, settings.window) == ("a", [3], 8)
    assert (settings.section.rate, settings.section.free) == (0.5, {"x": 1, "y": [1, "two"]})
    assert [entry.size for entry in settings.entries] == [7, 9]
    assert load(Toy, [{"source": "a"}]).entries[0].size == 8  # defaults are nobody's to change


def test_mappings_are_merged_and_lists_replaced():
    assert load(Toy, [{"source": "a", "section": {"rate": 0.2}}], ["section={loss: cosine}"]).section.rate == 0.2
    assert [entry.name for entry in load(Toy, [{"source": "a"}], ["entries=[{name: only}]"]).entries] == ["only"]
    assert merged({"a": {"b": 1}, "c": 2}, {"a": {"d": [3]}, "c": {"e": 4}}) == {
        "a": {"b": 1, "d": [3]},
        "c": {"e": 4},
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("section.rat=1", "Unknown key 'section.rat' (Section). Did you mean 'rate'? Valid: ['rate', 'loss', 'free']."),
        ("sectoin.rate=1", "Unknown key 'sectoin' (Toy). Did you mean 'section'?"),
        ("entries.low.siz=1", "Unknown key 'entries.low.siz' (Entry). Did you mean 'size'?"),
        (
            "entries.lwo.size=1",
            "'entries.lwo.size=1': Unknown entry 'lwo' of 'entries'. Did you mean 'low'? Entries: ['low', 'high'].",
        ),
        ("entries.2.size=1", "'entries.2.size=1': Unknown entry '2' of 'entries'."),
        ("entries.low.size=0", "`entries.low.size` must be an integer above 0, got 0."),
        ("entries.1.size=big", "`entries.high.size` must be an integer above 0, got 'big'."),
        ("section.rate=1", "`section.rate` must be a number in [0, 1), got 1."),
        (
            "window=None",
            "`window` must be an integer or 'auto' or 'global', or null, got 'None'. Write null for no value.",
        ),
        ("names=None", "`names` must be [a text, ...], or null, got 'None'. Write null for no value."),
        ("sizes=[1, true]", "`sizes` must be [an integer, ...], got [1, True]."),
        ("section.rate=true", "`section.rate` must be a number in [0, 1), got True."),
        ("section.rate=.nan", "`section.rate` must be a finite number in [0, 1), got nan."),
        ("section.loss=msa", "`section.loss` must be one of ['mse', 'cosine'], got 'msa'. Did you mean 'mse'?"),
        ("section=fast", "`section` must be a mapping, got 'fast'."),
        ("window=atuo", "`window` must be an integer or 'auto' or 'global', or null, got 'atuo'. Did you mean 'auto'?"),
        ("bits=3", "`bits` must be one of [4, 8], or null, got 3."),
        ("bits=4", "`bits` must be 8 unless `is_quick`, got 4."),
        ("sizes=1,two", "`sizes` must be [an integer, ...], got ['1', 'two']."),
        ("side=large", "`side` must be PX, or null, got 'large'."),
        ("section.rate=[1", "'section.rate=[1': not YAML: while parsing a flow sequence"),
        ("section.rate", "'section.rate' must have the form field=value, within a section section.field=value."),
        ("=1", "'=1' must have the form field=value"),
    ],
)
def test_what_cannot_be_is_one_line(change, message):
    with pytest.raises(SettingsError) as error:
        load(Toy, [{"source": "a"}], [change])
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_all_faults_are_named_each_once():
    with pytest.raises(SettingsError) as error:
        load(Toy, [{"section": {"rate": 2}, "window": "x"}])
    assert str(error.value) == (
        "`source` has no value: add source=... to the command. `section.rate` must be a number in [0, 1), got 2. "
        "`window` must be an integer or 'auto' or 'global', or null, got 'x'."
    )
    assert [problem.path for problem in error.value.below("stages", "a")][1] == ("stages", "a", "section", "rate")


def test_a_missing_field_of_a_section_is_named():
    class Inner(Settings):
        path: str

    class Outer(Settings):
        inner: Inner

    with pytest.raises(SettingsError, match=r"`inner\.path` has no value"):
        load(Outer, [{}])


def test_errors_are_those_of_their_kind():
    class OwnError(SettingsError):
        pass

    class Own(Settings):
        error_class = OwnError
        size: int = 1

    for make in (lambda: Own(size="x"), lambda: load(Own, [], ["size"]), lambda: Own(seize=1)):
        with pytest.raises(OwnError):
            make()
    error = pickle.loads(pickle.dumps(SettingsError(Problem(("a", "b"), "`{path}` is wrong."), "So is this.")))
    assert str(error) == "`a.b` is wrong. So is this."


def test_copies_are_checked():
    settings = Toy(source="a")
    assert settings.replace(sizes=[2]).sizes == [2]
    assert settings.sizes == [1]
    with pytest.raises(SettingsError, match="Unknown key 'seizes'"):
        settings.replace(seizes=[2])
    assert copy.deepcopy(settings) == pickle.loads(pickle.dumps(settings)) == settings
    with pytest.raises(ValueError, match="sizes"):
        settings.sizes = "x"


def test_plain_data_reads_back():
    settings = load(Toy, [{"source": "a"}], ["side=3", "weights=1,2", "output=somewhere"])
    values = settings.to_dict()
    assert (values["side"], values["weights"], values["output"]) == ([3, 3], [1.0, 2.0], "somewhere")
    assert load(Toy, [values]) == settings


def test_marked_fields_can_be_left_out():
    paths = list(marked(Toy, MARK))
    assert paths == [("entries", "size"), ("output",)]
    left = without(Toy(source="a").to_dict(), paths)
    assert left["entries"] == [{"name": "low"}, {"name": "high"}]
    assert "output" not in left
    assert "section" in left


def test_differences_and_hash_follow_values():
    old, new = (load(Toy, [{"source": "a"}], changes).to_dict() for changes in ([], ["entries.low.size=9"]))
    assert differences(old, new) == ["entries.low.size: 8 -> 9"]
    assert differences({"a": 1}, {"b": {"c": 2}}) == ["a: 1 -> (absent)", "b.c: (absent) -> 2"]
    assert hash_of(old) == hash_of(dict(reversed(list(old.items())))) != hash_of(new)


def test_what_can_be_no_key_of_a_registry_is_refused_too():
    with pytest.raises(SettingsError, match=r"`section.loss` must be one of \['mse', 'cosine'\], got \{'mse': 1\}\."):
        Toy(source="a", section={"loss": {"mse": 1}})


def test_a_key_that_would_break_the_line_is_escaped():
    with pytest.raises(SettingsError, match=r"^Unknown key 'section\.ra\\n\\x85te\\u2028' \(Section\)"):
        load(Toy, [{"source": "a", "section": {"ra\n\x85te\u2028": 1}}])
    with pytest.raises(SettingsError, match=r"^Unknown key 'größe' \(Toy\)"):
        load(Toy, [{"source": "a", "größe": 1}])


def test_an_empty_path_is_not_the_working_directory():
    with pytest.raises(SettingsError, match=r"^`output` must be a path, got ''\.$"):
        Toy(source="a", output="")


def test_another_order_of_named_entries_is_a_difference_of_its_own():
    old = Toy(source="a").to_dict()
    new = {**old, "entries": old["entries"][::-1]}
    assert differences(old, new) == []
    assert order_differences(old, new) == ["order of entries: low, high -> high, low"]
    assert order_differences(old, {**old, "entries": [{"name": "first"}, *old["entries"]]}) == []
    assert order_differences({"deep": old}, {"deep": new}) == ["order of deep.entries: low, high -> high, low"]


def test_older_data_are_filled_with_the_defaults_of_newer_fields():
    full = Toy(source="a", side=[3, 4]).to_dict()
    old = copy.deepcopy(full)
    del old["section"], old["side"], old["entries"][0]["size"], old["output"]
    assert with_defaults(Toy, old) == {**full, "side": None}
    assert with_defaults(Toy, {"section": {"rate": 7}})["section"] == {"rate": 7, "loss": "mse", "free": {}}
    assert "source" not in with_defaults(Toy, {})  # it has none
    assert with_defaults(Toy, {"removed": 1})["removed"] == 1


def test_fields_that_a_class_no_longer_has_can_be_left_out():
    values = load(Toy, [{"source": "a"}], ["section.free={x: 1}"]).to_dict()
    old = copy.deepcopy(values)
    old["removed"], old["section"]["removed"], old["entries"][0]["removed"] = 1, {"a": 2}, 3
    assert without_unknown(Toy, old) == values
