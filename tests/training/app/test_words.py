"""Words in photographs: masks that divide it, and what else competes."""

import numpy as np
import pytest
import torch

from training.app import words
from training.app.words import find_words, read_words


def find(opened, photograph, wanted="cat, dog", others="grass", source="features", windows="off"):
    return find_words(opened, photograph, wanted, others, source, 128, windows)


def test_words_are_read_with_commas_and_lines():
    assert read_words(" cat,  a  dog\nice,, cat ") == ["cat", "a dog", "ice"]


def test_regions_are_those_of_the_models_own_segmentation(opened, photograph):
    found = find(opened, photograph)
    picture, regions = found.masks
    pixels = opened.processor.process_image(picture, do_convert_rgb=True)
    inputs = opened.processor(pixels, size={"shortest_edge": 128}, return_tensors="pt")["pixel_values"]
    embeds = opened.model.embed_classes(opened.tokenizer, ["cat", "dog", "grass"])
    with torch.no_grad():
        outputs = opened.model.segment(inputs, embeds, source="features", window_size="global")
    expected = opened.processor.post_process_semantic_segmentation(outputs, [(360, 640)])[0].numpy()
    for mask, word in regions:
        np.testing.assert_array_equal(mask, expected == ["cat", "dog"].index(word))
    assert sum(mask.sum() for mask, _ in regions) == (expected < 2).sum()
    assert [caption for _, caption in found.heats] == ["cat", "dog"]
    assert {picture.size for picture, _ in found.heats} == {(640, 360)}


def test_scores_are_the_models_probabilities(opened, photograph):
    scores = find(opened, photograph).scores
    assert list(scores) == ["cat", "dog", "grass"]
    assert all(0 < score < 1 for score in scores.values())
    assert len(set(scores.values())) == 3


def test_source_and_windows_act(opened, photograph):
    usual = find(opened, photograph)
    for other in (find(opened, photograph, source="summary_head"), find(opened, photograph, windows="2")):
        assert [one.tobytes() for one, _ in other.heats] != [one.tobytes() for one, _ in usual.heats]


def test_what_else_is_there_competes_but_is_not_drawn(opened, photograph):
    alone, against = find(opened, photograph, "cat", "dog"), find(opened, photograph, "dog", "cat")
    covered = sum(mask.sum() for found in (alone, against) for mask, _ in found.masks[1])
    assert covered == 640 * 360, "each patch is given to one of the two"
    assert {word for found in (alone, against) for _, word in found.masks[1]} <= {"cat", "dog"}
    assert all(len(found.masks[1]) <= 1 for found in (alone, against))


def test_bad_words_are_refused(opened, photograph, monkeypatch, save_tuned):
    with pytest.raises(ValueError, match="`words` must be words with commas between"):
        find(opened, photograph, " , ")
    with pytest.raises(ValueError, match="`others` must say what else may be there"):
        find(opened, photograph, "cat", "")
    with pytest.raises(ValueError, match="`source` must be one of"):
        find(opened, photograph, source="feature")
    monkeypatch.setattr(words, "MAX_WORDS", 2)
    with pytest.raises(ValueError, match="`words` must be at most 2 with those of `others`, got 3"):
        find(opened, photograph)


def test_a_model_without_texts_has_no_words(photograph, tmp_path):
    from modeling_radio import RadioConfig, RadioModel
    from training.app.opening import open_model

    RadioModel(RadioConfig.from_preset("radio-test")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"`words` need a checkpoint with a text tower, which .* has not"):
        find(open_model(str(tmp_path), "cpu"), photograph)
