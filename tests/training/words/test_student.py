import json
import math
from types import SimpleNamespace

import pytest
import torch
from tiny_words import NAMES, TinyClassifier, TinySentences, build_student
from torch.nn import functional as F
from torchvision.io import write_png
from transformers import AutoTokenizer

from foundation.packages.pinned import PackageUnavailableError
from modeling_radio import RadioForZeroShotImageClassification, RadioImageProcessor
from modeling_radio.sentences_radio import SentenceTower
from training.evaluation.models.sentences import SentenceEncoder
from training.words.names import learn_map
from training.words.ridge import as_layer
from training.words.student import (
    ask,
    build_words,
    check_adaptor,
    fit_logit_scale,
    save_words,
    with_dense_summaries,
    without_token_types,
)


NAME = "efficientnet-lite0"

ELSEWHERE = """
import json, sys
from transformers import pipeline

folder, picture = sys.argv[1:]
classify = pipeline("zero-shot-image-classification", model=folder, trust_remote_code=True)
print(json.dumps(classify(picture, candidate_labels=["cat", "dog"])))
"""


@pytest.fixture
def images():
    return torch.randint(0, 256, (40, 3, 64, 64), dtype=torch.uint8)


@pytest.fixture
def words(images):
    """What student and teacher say, the map, and the student with words."""
    radio, teacher, encoder = build_student(), TinyClassifier(), TinySentences()
    answers = ask(radio, NAME, teacher, images)
    learned = learn_map(encoder, NAMES, teacher.rows)
    model, tokenizer = build_words(radio, NAME, encoder, learned, answers)
    return SimpleNamespace(answers=answers, learned=learned, model=model, tokenizer=tokenizer)


def test_student_and_teacher_answer_the_same_images(images):
    radio, teacher = build_student(), TinyClassifier()
    answers = ask(radio, NAME, teacher, images)
    with torch.no_grad():
        summaries = radio(images / 255, adaptor_names=[NAME]).adaptors[NAME].summary
        last = teacher.last_map(images / 255, 4, 4)
        torch.testing.assert_close(answers.probabilities, teacher.classify(last.mean((2, 3))).softmax(1))
    assert last.shape == (40, 6, 4, 4)
    torch.testing.assert_close(answers.summaries, summaries, atol=1e-5, rtol=1e-4)
    assert answers.regression.count == 40 * 16


def test_the_dense_head_comes_nearer_to_the_teachers_last_map_than_its_mean(images):
    images = images // 8 + torch.randint(0, 200, (40, 3, 1, 1), dtype=torch.uint8)  # noise, and a color for each
    radio, teacher = build_student(), TinyClassifier()
    wider = with_dense_summaries(radio, NAME, ask(radio, NAME, teacher, images).regression)
    assert wider.config.adaptor_names == radio.config.adaptor_names  # it runs where it is asked for
    with torch.no_grad():
        pixels = images / 255
        last = teacher.last_map(pixels, 4, 4)
        found = wider(pixels, adaptor_names=[f"{NAME}-words", NAME], feature_format="NCHW").adaptors
        old = radio(pixels, feature_format="NCHW").adaptors[NAME]
    error = (found[f"{NAME}-words"].features - last).square().mean()
    assert error < 0.5 * (last - last.mean((0, 2, 3), keepdim=True)).square().mean()
    torch.testing.assert_close(found[f"{NAME}-words"].summary, old.summary)
    torch.testing.assert_close(found[NAME].features, old.features)


def test_texts_stand_at_right_angles_to_the_mean_summary(words):
    texts = words.model.embed_texts(words.tokenizer, ["cat", "a photo of a dog"])
    mean = F.normalize(words.answers.summaries.mean(0), dim=0)
    torch.testing.assert_close(texts @ mean, torch.zeros(2), atol=1e-4, rtol=0)


def test_names_are_embedded_as_the_map_was_told(words):
    prompts = ["dog", "This is a photo of dog."]
    expected = F.normalize(words.model.text_tower.projection(words.learned.pairs.sources[1, :2]), dim=-1)
    actual = words.model.embed_texts(words.tokenizer, prompts)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-3)


def test_the_scale_is_the_one_nearest_to_the_teacher():
    classes, summaries = torch.eye(3), F.normalize(torch.randn(50, 3), dim=1)
    probabilities = (17 * summaries @ classes).softmax(1)
    assert math.exp(fit_logit_scale(summaries, classes, probabilities)) == pytest.approx(17)
    assert fit_logit_scale(summaries, classes, torch.full((50, 3), 1 / 3)) == 0.0


def test_patches_are_compared_with_texts_by_either_head(words, images):
    classes = words.model.embed_classes(words.tokenizer, ["cat", "dog"])
    with torch.no_grad():
        by_head, dense = (
            words.model.segment(images[:2] / 255, classes, source=source).logits
            for source in ("summary_head", "features")
        )
    assert by_head.shape == dense.shape == (2, 2, 4, 4)
    assert not torch.allclose(by_head, dense)


def test_the_folder_runs_elsewhere(words, run_elsewhere, tmp_path):
    folder, picture = tmp_path / "words", tmp_path / "noise.png"
    processor = RadioImageProcessor(size={"height": 64, "width": 64})
    save_words(words.model, words.tokenizer, processor, folder)
    assert not {path.suffix for path in folder.iterdir()} - {".json", ".py", ".safetensors"}
    again = RadioForZeroShotImageClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("cat").keys() == {"input_ids", "attention_mask"}
    assert tokenizer("A Cat.").input_ids == TinySentences().tokenizer("A Cat.").input_ids
    torch.testing.assert_close(again.embed_texts(tokenizer, NAMES), words.model.embed_texts(words.tokenizer, NAMES))
    write_png(torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8), str(picture))
    found = json.loads(run_elsewhere(ELSEWHERE, tmp_path, folder, picture).splitlines()[-1])
    texts = again.embed_texts(tokenizer, [f"This is a photo of {name}." for name in ("cat", "dog")])
    with torch.no_grad():
        summary = again.get_image_features(**processor(str(picture), return_tensors="pt")).pooler_output
        scores = again.probabilities(F.normalize(summary) @ texts.T * again.logit_scale.exp())[0].tolist()
    expected = dict(zip(("cat", "dog"), scores, strict=True))
    assert {each["label"]: each["score"] for each in found} == pytest.approx(expected, abs=1e-5)


@pytest.mark.packages
def test_the_real_encoder_is_the_tower_and_keeps_its_tokens(tmp_path):
    try:
        encoder = SentenceEncoder()
    except PackageUnavailableError as error:
        pytest.skip(str(error))
    texts = ["a photo of a dog", "a photo of a puppy", "Road sign, beside the road!"]
    tower = SentenceTower.from_parts(encoder.model, as_layer(torch.eye(384), torch.zeros(384)), max_length=256)
    without_token_types(encoder.tokenizer).save_pretrained(tmp_path)
    tokens = AutoTokenizer.from_pretrained(tmp_path)(texts, padding=True, return_tensors="pt")
    assert torch.equal(tokens["input_ids"], encoder.tokenizer(texts, padding=True, return_tensors="pt")["input_ids"])
    with torch.no_grad():
        embeds = tower(**tokens).pooler_output
    torch.testing.assert_close(embeds, encoder.encode(texts), atol=1e-5, rtol=1e-4)
    assert embeds[0] @ embeds[1] > embeds[0] @ embeds[2] + 0.2


@pytest.mark.parametrize(
    ("changes", "name", "message"),
    [
        ({}, "lite0", r"must be one of \['efficientnet-lite0', 'dino'\], got 'lite0'"),
        ({}, "dino", r"`summary_dim` of adaptor 'dino' must be 6, the width of the classifier's rows, got 8"),
        ({"feature_dim": None}, NAME, r"must have a dense head of one answer a patch, got `feature_dim` None"),
        ({"upsample_factor": 2}, NAME, r"and `upsample_factor` 2\. Take a student with dense features"),
    ],
)
def test_students_without_such_an_adaptor_are_refused(changes, name, message):
    with pytest.raises(ValueError, match=message):
        check_adaptor(build_student(**changes), name, 6)
