"""What the page must know of texts."""

import pytest
import torch
from tiny_sentences import build_sentence_tower
from tiny_site import WIDTH, build_radio, build_tokenizer, save_words
from tiny_texts import build_dual_encoder

from modeling_radio import RadioForZeroShotImageClassification
from modeling_radio.conversion.graphs.files import open_graph
from modeling_radio.conversion.web.texts import TOKENIZER_FILES, Texts, open_texts, write_tokenizer, write_tower


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return open_texts(save_words(tmp_path_factory.mktemp("words")))


def test_tokens_are_those_of_the_model(texts):
    tokens = texts.tokens(["a photo of the sky", "otter"])
    assert tokens.tolist()[1] == [2, 12, 3, 0, 0, 0, 0]
    embeds = texts.model.get_text_features(tokens).pooler_output
    wanted = texts.model.embed_texts(texts.tokenizer, ["a photo of the sky", "otter"])
    torch.testing.assert_close(torch.nn.functional.normalize(embeds, dim=-1), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sentence", "clip", "siglip", "siglip2"])
def test_towers_of_all_kinds_are_exported_for_any_number_and_length_of_texts(kind, tmp_path):
    pytest.importorskip("onnxscript")
    source = build_sentence_tower(WIDTH) if kind == "sentence" else build_dual_encoder(kind, WIDTH)
    model = RadioForZeroShotImageClassification.from_parts(build_radio(), source, "clip-a").eval()
    model.text_tower.set_attn_implementation("eager")
    texts = Texts(model, build_tokenizer())
    write_tower(texts, tmp_path / "texts.onnx")
    for prompts in (["otter"], ["a photo of the sky", "otter", "rock"]):
        tokens = texts.tokens(prompts)
        with torch.no_grad():
            wanted = model.get_text_features(tokens).pooler_output
        (found,) = open_graph(tmp_path / "texts.onnx")({"input_ids": tokens})
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_the_tokenizer_is_two_files_and_needed(tmp_path):
    write_tokenizer(build_tokenizer(), tmp_path / "tokenizer")
    assert {path.name for path in (tmp_path / "tokenizer").iterdir()} == set(TOKENIZER_FILES)
    save_words(tmp_path / "words")
    for path in (tmp_path / "words").glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ValueError, match="tokenizer of"):
        open_texts(tmp_path / "words")
