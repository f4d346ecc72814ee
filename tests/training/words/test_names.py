import pytest
import torch
from tiny_words import NAMES, SUMMARY_DIM, TinySentences

from training.words.names import PENALTIES, PROMPTS, learn_map
from training.words.ridge import recognition


def test_each_name_is_read_in_every_prompt():
    encoder, rows = TinySentences(), torch.randn(len(NAMES), SUMMARY_DIM)
    learned = learn_map(encoder, NAMES, rows)
    assert learned.layer.weight.shape == (SUMMARY_DIM, 16)
    assert tuple(learned.curve) == PENALTIES
    assert learned.curve[learned.penalty] == max(learned.curve.values())
    expected = encoder.encode([prompt.replace("{}", "dog") for prompt in PROMPTS])
    torch.testing.assert_close(learned.pairs.sources[1], expected, atol=1e-5, rtol=1e-4)


def test_rows_that_follow_from_names_are_recognized():
    encoder = TinySentences()
    embeddings = encoder.encode(NAMES)
    rows = (embeddings - embeddings.mean(0)) @ torch.randn(16, SUMMARY_DIM)
    learned = learn_map(encoder, NAMES, rows)
    others = learn_map(encoder, NAMES, torch.randn(len(NAMES), SUMMARY_DIM))
    assert recognition(learned.layer, learned.pairs) > recognition(others.layer, learned.pairs) + 0.2


def test_each_row_has_a_name():
    with pytest.raises(ValueError, match=r"`names` must be 13, one for each row of the classifier, got 12"):
        learn_map(TinySentences(), NAMES, torch.randn(13, SUMMARY_DIM))
