"""Settings are layers of plain data with changes, checked once; a refused value is one line with path and rule."""

import copy
import pickle

import pytest
from toy_settings import MARK, Section, Toy

from modeling_radio.core.settings import (
    Problem,
    Settings,
    SettingsError,
    differences,
    hash_of,
    load,
    marked,
    merged,
    order_differences,
    read_names,
    read_text,
    read_yaml,
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
    assert load(Toy, [{"source": "a", "section": {"rate": 0.2}}], ["section={loss: cosine}"]).section.rate == 0.2
    assert [entry.name for entry in load(Toy, [{"source": "a"}], ["entries=[{name: only}]"]).entries] == ["only"]


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ("section.rat=1", "Unknown key 'section.rat' (Section).|Did you mean 'rate'?|['rate', 'loss', 'free']"),
        ("sectoin.rate=1", "Unknown key 'sectoin' (Toy).|'section'?"),
        ("entries.low.siz=1", "'entries.low.siz'|'size'?"),
        ("entries.lwo.size=1", "'lwo' of 'entries'|'low'?|['low', 'high']"),
        ("entries.2.size=1", "'2' of 'entries'"),
        ("entries.low.size=0", "`entries.low.size`|an integer above 0|got 0."),
        ("entries.1.size=big", "`entries.high.size`|an integer above 0|'big'"),
        ("section.rate=1", "`section.rate`|a number in [0, 1)|got 1."),
        ("window=None", "`window`|'None'|Write null"),
        ("names=None", "`names`|'None'|Write null"),
        ("sizes=[1, true]", "`sizes`|[an integer, ...]|[1, True]"),
        ("section.rate=true", "`section.rate`|True"),
        ("section.rate=.nan", "`section.rate`|a finite number|nan"),
        ("section.free={x: [.inf]}", "`section.free`|finite numbers|inf"),
        ("section.loss=msa", "`section.loss`|['mse', 'cosine']|'msa'|'mse'?"),
        ("section={loss: {mse: 1}}", "`section.loss`|['mse', 'cosine']|{'mse': 1}"),
        ("section=fast", "`section`|a mapping|'fast'"),
        ("window=atuo", "`window`|'atuo'|'auto'?"),
        ("bits=3", "`bits`|[4, 8], or null|got 3."),
        ("bits=4", "`bits`|8 unless `is_quick`|got 4."),
        ("sizes=1,two", "`sizes`|['1', 'two']"),
        ("side=large", "`side`|PX, or null|'large'"),
        ("output=", "`output`|a path|''"),
        ("section.rate=[1", "'section.rate=[1'|not YAML"),
        ("section.ra\n\x85te\u2028=1", "'section.ra\\n\\x85te\\u2028'"),
        ("größe=1", "'größe'"),
        ("section.rate", "'section.rate'|field=value"),
        ("=1", "'=1'|field=value"),
    ],
)
def test_a_refused_change_is_one_line_with_path_rule_and_value(change, parts):
    with pytest.raises(SettingsError) as error:
        load(Toy, [{"source": "a"}], [change])
    message = str(error.value)
    assert [part for part in parts.split("|") if part not in message] == []
    assert message.isprintable()


def test_all_faults_are_named_each_once():
    with pytest.raises(SettingsError) as error:
        load(Toy, [{"section": {"rate": 2}, "window": "x"}])
    paths = [problem.path for problem in error.value.problems]
    assert paths == [("source",), ("section", "rate"), ("window",)]
    assert error.value.below("stages", "a")[1].path == ("stages", "a", "section", "rate")

    class Outer(Settings):
        inner: Section
        path: str

    with pytest.raises(SettingsError, match=r"`path` .*path="):
        load(Outer, [{}])


def test_errors_are_those_of_their_class_and_survive_pickling():
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


def test_copies_are_checked_and_plain_data_read_back():
    settings = load(Toy, [{"source": "a"}], ["side=3", "weights=1,2", "output=somewhere"])
    values = settings.to_dict()
    assert (values["side"], values["weights"], values["output"]) == ([3, 3], [1.0, 2.0], "somewhere")
    assert load(Toy, [values]) == copy.deepcopy(settings) == pickle.loads(pickle.dumps(settings)) == settings
    assert (settings.replace(sizes=[2]).sizes, settings.sizes) == ([2], [1])
    with pytest.raises(SettingsError, match="seizes"):
        settings.replace(seizes=[2])
    with pytest.raises(ValueError, match="sizes"):
        settings.sizes = "x"


def test_entries_keep_what_a_later_layer_does_not_say():
    base = {"list": [{"name": "a", "size": 1, "free": {"x": 1}}, {"name": "b", "size": 2}], "plain": [1, 2]}
    layer = {"list": [{"name": "c"}, {"name": "a", "free": {"y": None}}, {"size": 3}], "plain": [3]}
    assert merged(base, layer) == {
        "list": [{"name": "c"}, {"name": "a", "size": 1, "free": {"x": 1, "y": None}}, {"size": 3}],
        "plain": [3],
    }
    toy, other = {"source": "a", "entries": [{"name": "high", "size": 9}]}, [{"name": "high"}]
    assert [entry.size for entry in load(Toy, [toy, {"entries": other}]).entries] == [9]
    assert load(Toy, [toy], ["entries=[{name: high}]"]) == load(Toy, [toy | {"entries": other}])


def test_marked_fields_can_be_left_out():
    assert list(marked(Toy, MARK)) == [("entries", "size"), ("output",)]
    left = without(Toy(source="a").to_dict(), list(marked(Toy, MARK)))
    assert left["entries"] == [{"name": "low"}, {"name": "high"}]
    assert "output" not in left
    assert "section" in left


def test_differences_orders_and_hash_follow_values():
    old, new = (load(Toy, [{"source": "a"}], changes).to_dict() for changes in ([], ["entries.low.size=9"]))
    assert differences(old, new) == ["entries.low.size: 8 -> 9"]
    assert differences({"a": 1}, {"b": {"c": 2}}) == ["a: 1 -> (absent)", "b.c: (absent) -> 2"]
    assert hash_of(old) == hash_of(dict(reversed(list(old.items())))) != hash_of(new)
    turned = {**old, "entries": old["entries"][::-1]}
    assert differences(old, turned) == []
    assert order_differences({"deep": old}, {"deep": turned}) == ["order of deep.entries: low, high -> high, low"]
    assert order_differences(old, {**old, "entries": [{"name": "first"}, *old["entries"]]}) == []


def test_data_of_other_versions_are_filled_up_and_cut():
    full = Toy(source="a", side=[3, 4]).to_dict()
    old = copy.deepcopy(full)
    del old["section"], old["side"], old["entries"][0]["size"], old["output"]
    assert with_defaults(Toy, old) == {**full, "side": None}
    assert with_defaults(Toy, {"section": {"rate": 7}})["section"] == {"rate": 7, "loss": "mse", "free": {}}
    assert "source" not in with_defaults(Toy, {})  # it has none
    old = copy.deepcopy(full)
    old["removed"], old["section"]["removed"], old["entries"][0]["removed"] = 1, {"a": 2}, 3
    assert without_unknown(Toy, old) == full
    assert with_defaults(Toy, old) == old


# Declarations and texts


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("source", "001", "001"),
        ("source", "path/{0..9}.tar", "path/{0..9}.tar"),
        ("source", "'a: b'", "a: b"),
        ("source", "{a: b}", "{a: b}"),
        ("source", "#1", "#1"),
        ("source", '"a #1"', "a #1"),
        ("source", "'a' or 'b'", "'a' or 'b'"),
        ("source", "~", None),
        ("output", "runs/exp #2", "runs/exp #2"),
        ("names", "null", None),
        ("names", "01", ["01"]),
        ("names", "a, b", ["a", "b"]),
        ("names", "[a, b]", ["a", "b"]),
        ("sizes", "3", ["3"]),
        ("weights", "balanced", "balanced"),
        ("weights", "1,2.5", ["1", "2.5"]),
        ("window", "8", 8),
        ("side", "8", [8, 8]),
        ("side", "large", "large"),
        ("is_quick", "true", True),
        ("section", "{rate: 1e-3}", {"rate": 1e-3}),
        (None, "[1, a]", [1, "a"]),
    ],
)
def test_texts_become_values(name, text, value):
    assert read_text(text, Toy.model_fields[name] if name else None) == value


def test_yaml_is_plain_values():
    text = "[1e-3, 2.5e3, 300_000, 2024-01-02, e3, no, {1: {2: a}}]"
    assert read_yaml(text) == [1e-3, 2500.0, 300_000, "2024-01-02", "e3", False, {"1": {"2": "a"}}]
    value = read_yaml("a: &x {k: [1]}\nb: *x\nc: {<<: *x, l: 2}")
    assert value == {"a": {"k": [1]}, "b": {"k": [1]}, "c": {"k": [1], "l": 2}}
    assert value["a"]["k"] is not value["b"]["k"]
    assert (read_names("all"), read_names("none"), read_names("a, b")) == (None, [], ["a", "b"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((text, "") for text in ("[1", "0b_", "!!float ''", "!!bool maybe", "!!map a", "!!binary YQ==", "!!set {a}")),
        *((text, "") for text in ("!!timestamp 2020-01-01", "!!python/name:os.system x", "!!omap [a: 1]")),
        ("a: 1\nb: 2\na: 3\n", "'a' stands twice"),
        ("&a [*a]", "deeper than 50 levels"),
        ("[" * 60 + "]" * 60, "deeper than 50 levels"),
        ("[" * 2000, "deeper than 50 levels"),
        ("[&a [" + "1, " * 1000 + "]" + ", *a" * 100 + "]", "more than 100,000 values"),
        ("a" * 1_000_001, "1,000,000 characters"),
    ],
)
def test_other_yaml_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=f"^not YAML.*{message}") as error:
        read_yaml(text)
    assert "\n" not in str(error.value)
