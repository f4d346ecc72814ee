"""Cards of hostile names and damaged results: our own errors, or cards whose front matter and headings are ours."""

import itertools
import json
import re
import shutil
import warnings
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from mutations import changed

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.metrics.results import Measurement, Results, Source
from modeling_radio.model_cards.build import build_card


pytestmark = pytest.mark.fuzz
FEWER = settings(max_examples=max(settings.default.max_examples // 2, 20))
MARKUP = [
    *("# ", "\n# ", "\n---\n", "---", "|", "`", "``", "```", "<b>", "<!--", "-->", "*", "_", "[x](y)", "![x](y)", "\\"),
    *("\r", "\u2028", "\u0085", "\x00", "\x1b", "{{ config }}", "{% raw %}", ": ", "&amp;", "~~", "> ", "1. ", "\t"),
    *('"""', "'", '"', "!!python/object:os.system", "!", "%", "@", "\ufeff", "\u202e", "$$", "http://a.b", "\n\n"),
]
TEXTS = st.lists(st.sampled_from(MARKUP) | st.text(max_size=3), max_size=6).map("".join)
UNWRITABLE = re.compile("[\ud800-\udfff]")
NAMES = TEXTS.filter(lambda text: UNWRITABLE.search(text) is None)
SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.just(10**400) | TEXTS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2), max_leaves=4
)
RESULTS = Results(
    measurements=[Measurement("student", "knn", "accuracy", "stamps", 0.5, 0), Measurement("a", "b", "c", "d", 0.1)],
    teachers=[Source("teacher_a", "dense features", "CC-BY-NC-4.0", "package a 1.0", hub_id="org/teacher-a")],
    datasets=[Source("stamps", "kNN", "GPL-2.0-or-later", "package c 3.0", "99 images of 14 classes")],
    run={"command": "make demo", "seconds": {"train": 12.0}},
    remarks=["small"],
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "radio-tiny"
    config = RadioConfig.from_preset(
        "radio-test", num_hidden_layers=1, adaptors=[{"name": "a", "hidden_size": 8, "feature_dim": 6}]
    )
    RadioModel(config).save_pretrained(folder)
    return folder


def headings(text: str) -> list[str]:
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    return [after.content for token, after in itertools.pairwise(tokens) if token.type == "heading_open"]


def check_card(card: str, honest: str) -> None:
    """The front matter is YAML of the keys that we write, no heading is added but the title, and no HTML."""
    front, text = re.fullmatch(r"---\n(.*?)\n---\n(.*)", card, re.DOTALL).groups()
    keys = yaml.safe_load(re.fullmatch(r"---\n(.*?)\n---\n(.*)", honest, re.DOTALL)[1]).keys()
    assert set(yaml.safe_load(front)) <= {*keys, "model-index", "base_model"}
    expected = headings(honest.split("\n---\n", 1)[1])
    found = headings(text)
    assert len(found) <= len(expected)
    assert set(found[1:]) <= set(expected[1:])
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    kinds = {each.type for token in tokens for each in [token, *(token.children or [])]}
    assert not {"html_block", "html_inline"} & kinds


@FEWER
@given(names=st.lists(NAMES, min_size=8, max_size=8), values=st.dictionaries(NAMES, VALUES, max_size=2))
def test_hostile_names(names, values, checkpoint):
    one, two, *rest = names
    results = Results(
        [Measurement("student", one, two, rest[0], 0.5, 0), Measurement(rest[1], one, two, rest[0], 0.25)],
        [Source(*rest[:5], hub_id=None)],
        [Source(*rest[1:6])],
        run=json.loads(UNWRITABLE.sub("", json.dumps(values, ensure_ascii=False))),
        remarks=[*rest[:2]],
    )
    honest = str(build_card(checkpoint, RESULTS))
    check_card(str(build_card(checkpoint, results, name=one or None)), honest)


CHANGES = st.lists(st.tuples(st.integers(0, 10_000), VALUES), min_size=1, max_size=3)


def card_or_refusal(checkpoint: Path, results: Path | None) -> str | None:
    """Return a card, or nothing where an error of ours, of one line, says why there is none."""
    refusals: list[ValueError] = []
    card = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            card = str(build_card(checkpoint, None if results is None else Results.load(results)))
        except ValueError as error:
            refusals.append(error)
    assert not any("\n" in str(error) or type(error) is not ValueError for error in refusals), refusals
    return card


@FEWER
@given(changes=CHANGES)
def test_changed_results(changes, checkpoint, tmp_path):
    file = tmp_path / "results.json"
    file.write_text(json.dumps(changed(asdict(RESULTS), changes)))
    card = card_or_refusal(checkpoint, file)
    if card is not None:
        check_card(card, str(build_card(checkpoint, RESULTS)))


@FEWER
@given(changes=CHANGES)
def test_changed_configurations(changes, checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "radio-tiny", dirs_exist_ok=True)
    config = json.loads((checkpoint / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(changed(config, changes)))
    card = card_or_refusal(folder, None)
    if card is not None:
        check_card(card, str(build_card(checkpoint)))
