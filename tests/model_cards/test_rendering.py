"""Texts of others in cards are shown and mean nothing."""

import re

import jinja2
import pytest
from huggingface_hub import ModelCardData
from markdown_it import MarkdownIt

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.model_cards.kinds import Conversion
from modeling_radio.model_cards.rendering import Raw, code_span, count_parameters, escaped, read_card, render_card


def test_parts_add_up_to_the_whole_model(checkpoint):
    model = RadioModel.from_pretrained(checkpoint)
    counts = count_parameters(model.config)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert counts.backbone + counts.position_table + sum(counts.adaptors.values()) == total
    assert counts.position_table == 8 * 8 * 16


HOSTILE = (
    *("<script>alert(1)</script>", "a|b|c", "# heading", "a\n# heading", "a\n---\nb", "---", "===", "- item", "+ item"),
    *("1. item", "12) item", "`code`", "``", "**bold**", "_stressed_", "~~gone~~", "~~~", "> quoted", "&lt;", "&#35;"),
    *("[link](https://example.org)", "![picture](x)", "\\", "\\|", "a\\", "a\r\nb", "a\u2028# b", "    indented"),
)
PLAIN = ("siglip2-g", "teacher_a", "package a 1.0", "0.251", "-0.5", "0.612 +- 0.010", "GPL-2.0-or-later", "(1, 2)")


def shown(markdown: str) -> list[tuple[str, str]]:
    """Return what a reader of Markdown is shown: kind and text of each block and span."""
    blocks = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown)
    spans = [child for block in blocks for child in block.children or []]
    return [(each.type, each.content) for each in [*blocks, *spans] if each.type != "inline"]


@pytest.mark.parametrize("text", [*HOSTILE, *PLAIN])
def test_a_text_is_shown_as_it_is_and_means_nothing(text):
    kinds = shown(escaped(text))
    assert {kind for kind, _ in kinds} <= {"paragraph_open", "paragraph_close", "text", "text_special"}
    assert "".join(content for _, content in kinds) == " ".join(text.split())


@pytest.mark.parametrize("text", [*HOSTILE, *PLAIN])
def test_a_text_stays_within_its_cell(text):
    rows = shown(f"| {escaped(text)} | {code_span(text)} | last |\n| --- | --- | --- |\n| a | b | c |")
    assert [kind for kind, _ in rows].count("th_open") == 3
    assert not {"html_inline", "heading_open", "link_open", "strong_open"} & {kind for kind, _ in rows}
    assert ("code_inline", " ".join(text.split())) in rows


@pytest.mark.parametrize("front", ["license: [", "a: b: c", "- a"])
def test_a_card_that_cannot_be_read_is_one_line(front):
    with pytest.raises(ValueError, match=r"README\.md") as error:
        read_card(f"---\n{front}\nx: 1\n---\n# title\n")
    assert "\n" not in str(error.value)


def test_plain_texts_and_markdown_stay_as_they_are():
    assert [escaped(text) for text in PLAIN] == list(PLAIN)
    assert escaped(Raw("**bold**")) == "**bold**"
    assert escaped(escaped("a|b")) == escaped("a|b") == r"a\|b"


def test_code_opens_what_it_names_and_nothing_else():
    config, source = RadioConfig.from_preset("radio-test", downscale_levels=[2]), 'a/b"); import evil #'
    with pytest.raises(jinja2.UndefinedError, match="'title' is undefined"):
        render_card("converted.md", config, ModelCardData(), source)
    values = {"title": "t", "conversion": Conversion("n"), "license": None, "is_nvidias": False}
    text = render_card("converted.md", config, ModelCardData(), source, **values, parity=None, tables=[]).text
    assert r'AutoModel.from_pretrained("a/b\"); import evil #", trust_remote_code=True)' in text
    assert "`model(pixel_values, num_tokens=16)`" in text
    assert "transformers' native `RadioModel` does not open it." in text
    assert re.search(r"^\| vLLM \| [\d.]+ \(.*\) \| does not load: .* \|$", text, re.MULTILINE)
