import jinja2
import pytest
from huggingface_hub import ModelCardData
from markdown_it import MarkdownIt

from model_cards.kinds import Conversion
from model_cards.rendering import Raw, code_span, escaped, read_card, render_card
from modeling_radio import RadioConfig
from modeling_radio.native import native_differences


def test_a_name_without_a_value_is_an_error():
    config = RadioConfig.from_preset("radio-test")
    with pytest.raises(jinja2.UndefinedError, match="'title' is undefined"):
        render_card("converted.md", config, ModelCardData(), "folder")


def test_a_radio1d_says_how_many_tokens_and_that_native_does_not_open_it():
    from model_cards.rendering import render_part

    def usage(config: RadioConfig) -> str:
        values = {"unpublished": "", "native_differences": native_differences(config), "task": "x", "source": "folder"}
        return render_part("usage.md", config=config, **values)

    merged = usage(RadioConfig.from_preset("radio-test", downscale_levels=[2]))
    assert "`model(pixel_values, num_tokens=16)`" in merged
    assert "transformers' native `RadioModel` does not open it." in merged
    plain = usage(RadioConfig.from_preset("radio-test", use_final_norm=True))
    assert "num_tokens" not in plain
    assert "gives other outputs" in plain


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


@pytest.mark.parametrize("text", PLAIN)
def test_plain_texts_stay_readable(text):
    assert escaped(text) == text


@pytest.mark.parametrize("text", [*HOSTILE, *PLAIN])
def test_a_text_stays_within_its_cell(text):
    rows = shown(f"| {escaped(text)} | {code_span(text)} | last |\n| --- | --- | --- |\n| a | b | c |")
    assert [kind for kind, _ in rows].count("th_open") == 3
    assert not {"html_inline", "heading_open", "link_open", "strong_open"} & {kind for kind, _ in rows}
    assert ("code_inline", " ".join(text.split())) in rows


def test_what_is_meant_as_markdown_passes_once():
    assert escaped(Raw("**bold**")) == "**bold**"
    assert escaped(escaped("a|b")) == escaped("a|b") == r"a\|b"


def test_code_opens_what_it_names_and_nothing_else():
    config = RadioConfig.from_preset("radio-test")
    source = 'a/b"); import evil #'
    values = {"title": "t", "conversion": Conversion("n"), "license": None, "is_nvidias": False}
    values |= {"parity": None, "tables": []}
    text = render_card("converted.md", config, ModelCardData(), source, **values).text
    assert r'AutoModel.from_pretrained("a/b\"); import evil #", trust_remote_code=True)' in text


@pytest.mark.parametrize("front", ["license: [", "a: b: c", "- a"])
def test_a_card_that_cannot_be_read_is_one_line(front):
    with pytest.raises(ValueError, match=r"README\.md has metadata that cannot be read: .*") as error:
        read_card(f"---\n{front}\nx: 1\n---\n# title\n")
    assert "\n" not in str(error.value)
