"""What the page must know of texts."""

import pytest
import torch
from tiny_site import build_tokenizer, save_words

from conversion.web.texts import TOKENIZER_FILES, open_texts, write_tokenizer


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return open_texts(save_words(tmp_path_factory.mktemp("words")))


def test_tokens_are_those_of_the_model(texts):
    tokens = texts.tokens(["a photo of the sky", "otter"])
    assert tokens.tolist()[1] == [2, 12, 3, 0, 0, 0, 0]
    embeds = texts.model.get_text_features(tokens).pooler_output
    wanted = texts.model.embed_texts(texts.tokenizer, ["a photo of the sky", "otter"])
    torch.testing.assert_close(torch.nn.functional.normalize(embeds, dim=-1), wanted)


def test_the_page_is_told_padding_prompts_and_scale(texts):
    told = texts.describe()
    assert told["padding"] == {"id": 0, "to": "longest"}
    assert (told["width"], told["max_length"]) == (12, 16)
    assert all(template.count("{}") == 1 for template in told["templates"])
    assert told["scale"] == pytest.approx(texts.model.logit_scale.exp().item())


def test_the_tokenizer_is_two_files(tmp_path):
    write_tokenizer(build_tokenizer(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(TOKENIZER_FILES)


def test_a_folder_without_a_tokenizer_is_refused_in_one_line(tmp_path):
    save_words(tmp_path)
    for path in tmp_path.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"tokenizer of .* cannot be opened"):
        open_texts(tmp_path)
