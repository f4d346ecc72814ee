"""Zero-shot classification and segmentation with a teacher's text tower."""

import copy
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from comparisons import assert_same_weights
from refusals import refused, wrong
from tiny_sentences import build_sentence_encoder, build_sentence_tower
from torch import nn
from torch.nn.functional import normalize
from transformers import AutoTokenizer, BertModel, RobertaConfig, RobertaModel, pipeline
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.radio import RadioModel as NativeRadioModel

from modeling_radio import RadioConfig, RadioForZeroShotImageClassification, RadioImageProcessor, RadioModel
from modeling_radio.conversion.text_tower import canonicalizing
from modeling_radio.pipelines_radio import RadioWordSegmentationPipeline, RadioZeroShotObjectDetectionPipeline
from modeling_radio.zero_shot_radio import (
    TEXT_TOWERS,
    MissingTextTowerError,
    SentenceTower,
    SentenceTowerConfig,
    fill_templates,
    text_tower_kind,
    tower_attention,
)


KINDS = ("siglip", "siglip2", "clip")
WIDTH = 12
PHOTOGRAPH = Path(__file__).parents[2] / "docs" / "photograph.jpg"
LABELS = ["cat", "dog", "grass"]
PLAIN = dict.fromkeys(("scra", "scga", "sliding", "denoising"))

CLASSIFY_ELSEWHERE = """
import json, sys
from PIL import Image
from transformers import AutoModelForZeroShotImageClassification, AutoTokenizer, pipeline

def classify_elsewhere(folder, photograph, url, labels):
    classify = pipeline("zero-shot-image-classification", model=folder, trust_remote_code=True)
    image = Image.open(photograph)
    inputs = {"path": photograph, "url": url, "image": image, "list": [image, image], "batch": [image] * 3}
    results = {
        name: classify(value, candidate_labels=labels, batch_size=2 if name == "batch" else 1)
        for name, value in inputs.items()
    }
    results["generator"] = list(classify((path for path in [photograph, url]), candidate_labels=labels))
    classify.save_pretrained(folder + "-again")
    again = pipeline("zero-shot-image-classification", model=folder + "-again", trust_remote_code=True)
    results["again"] = again(image, candidate_labels=labels)
    model = AutoModelForZeroShotImageClassification.from_pretrained(folder, trust_remote_code=True)
    classify.image_processor.size = {"shortest_edge": 64}
    unequal = [image, image.rotate(90, expand=True), image]
    results["unequal"] = classify(unequal, candidate_labels=labels, batch_size=3)
    results["unequal alone"] = [classify(one, candidate_labels=labels) for one in unequal]
    results["classes"] = model.embed_classes(AutoTokenizer.from_pretrained(folder), labels).tolist()
    segment = pipeline("image-segmentation", model=folder, trust_remote_code=True)
    masks = segment([image, image], candidate_labels=labels, denoising=None)
    results["masks"] = [[mask["label"], mask["score"], mask["mask"].histogram()[255]] for mask in masks[1]]
    detect = pipeline("zero-shot-object-detection", model=folder, trust_remote_code=True)
    results["boxes"] = detect({"image": image, "candidate_labels": labels}, denoising=None, threshold=0.0)
    return results

photograph, url, labels, *folders = sys.argv[1:]
print(json.dumps({folder: classify_elsewhere(folder, photograph, url, labels.split(",")) for folder in folders}))
"""


@pytest.fixture
def radio():
    head = {"summary_dim": WIDTH, "feature_dim": WIDTH, "hidden_size": 24}
    config = RadioConfig.from_preset(
        "radio-test",
        vitdet_num_windowed=1,
        adaptors=[
            {"name": "siglip2-g", **head},
            {"name": "clip", "token_index": 1, **head, "feature_dim": 20},
            {"name": "dino_v3", "token_index": 2, **head},
        ],
    )
    return RadioModel(config).eval()


@pytest.fixture(params=KINDS)
def pair(request, radio, build_dual_encoder):
    """A zero-shot model and the teacher whose text tower it has."""
    teacher = build_dual_encoder(request.param, WIDTH)
    with torch.no_grad():
        teacher.logit_scale.fill_(1.7)
    return SimpleNamespace(
        model=RadioForZeroShotImageClassification.from_parts(radio, teacher), teacher=teacher, kind=request.param
    )


@pytest.fixture
def model(radio, build_dual_encoder):
    return RadioForZeroShotImageClassification.from_parts(radio, build_dual_encoder("siglip", WIDTH))


def random_texts(num_texts):
    texts = torch.randint(4, 17, (num_texts, 16))
    texts[:, 9:] = 3  # the end token, then padding, which the SigLIP tower reads and the CLIP tower does not
    return texts


def give_image_embeddings(monkeypatch, teacher, embeddings):
    """Let the teacher's image tower answer with embeddings of ours."""
    output = BaseModelOutputWithPooling(pooler_output=embeddings)
    monkeypatch.setattr(teacher.vision_model, "forward", lambda *_args, **_options: output)
    if hasattr(teacher, "visual_projection"):
        teacher.visual_projection = nn.Identity()


def test_features_and_classes_of_a_model_that_returns_tuples(model, word_tokenizer):
    texts, pixels = random_texts(2), torch.rand(1, 3, 32, 48)
    expected = model.get_text_features(texts).to_tuple() + model.get_image_features(pixels).to_tuple()
    classes, embeds = model.embed_texts(word_tokenizer, LABELS), model.encode_text(texts)
    model.config.return_dict = False
    outputs = model.get_text_features(texts), model.get_image_features(pixels)
    assert [type(output) for output in outputs] == [tuple, tuple]
    torch.testing.assert_close(sum(outputs, ()), expected)
    assert torch.equal(model.embed_texts(word_tokenizer, LABELS), classes)
    assert torch.equal(model.encode_text(texts), embeds)


@torch.no_grad()
def test_what_automodel_opens_of_such_a_folder_has_images_and_texts_in_one_space(pair, tmp_path):
    pair.model.save_pretrained(tmp_path)
    texts, pixels = random_texts(2), torch.rand(1, 3, 32, 48)
    model = RadioModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    expected = pair.model.get_image_features(pixels, output_hidden_states=True)
    found = model.get_image_features(pixels, output_hidden_states=True)
    torch.testing.assert_close(found.to_tuple(), expected.to_tuple())
    assert found.pooler_output.shape[1] == model.config.projection_dim == WIDTH
    names = set(model.state_dict())
    read = pair.model.get_text_features(texts).pooler_output
    torch.testing.assert_close(model.get_text_features(texts).pooler_output, read)
    assert set(model.state_dict()) == names, "the tower is no part of the model"
    copied = copy.deepcopy(model)
    assert torch.equal(copied.get_text_features(texts)[1], model.get_text_features(texts, return_dict=False)[1])
    base = pair.model.base_model
    assert torch.equal(base.get_text_features(texts).pooler_output, read)
    torch.testing.assert_close(base.get_image_features(pixels).pooler_output, expected.pooler_output)
    model.save_pretrained(tmp_path / "again")
    again = RadioModel.from_pretrained(tmp_path / "again").eval()
    torch.testing.assert_close(again.get_image_features(pixels).pooler_output, expected.pooler_output)
    for without in (again, RadioModel(again.config)):
        with pytest.raises(MissingTextTowerError, match="text"):
            without.get_text_features(texts)


def test_attention_implementation_reaches_the_text_tower(pair, tmp_path):
    pair.model.save_pretrained(tmp_path)
    model = RadioForZeroShotImageClassification.from_pretrained(tmp_path, attn_implementation="eager")
    assert model.text_tower.config._attn_implementation == "eager"
    model.set_attn_implementation("sdpa")
    assert model.text_tower.config._attn_implementation == "sdpa"


def test_logits_and_loss_equal_transformers_own(pair, monkeypatch):
    pixels, texts = torch.rand(3, 3, 64, 96), random_texts(3)
    with torch.no_grad():
        give_image_embeddings(monkeypatch, pair.teacher, pair.model.get_image_features(pixels).pooler_output)
        expected = pair.teacher(input_ids=texts, pixel_values=pixels, return_loss=True)
        actual = pair.model(texts, pixels, return_loss=True)
    for name in ("loss", "logits_per_image", "logits_per_text", "text_embeds", "image_embeds"):
        torch.testing.assert_close(actual[name], expected[name], atol=1e-6, rtol=1e-6)


def test_text_features_equal_transformers_own_with_a_mask(pair):
    texts = random_texts(2)
    mask = (torch.arange(16) < 10).long().expand(2, -1)
    with torch.no_grad():
        expected = pair.teacher.get_text_features(input_ids=texts, attention_mask=mask).pooler_output
        actual = pair.model.get_text_features(texts, attention_mask=mask).pooler_output
    assert torch.equal(actual, expected)


@torch.no_grad()
def test_texts_have_positions(pair):
    model = pair.model
    input_ids, pixels = random_texts(2), torch.rand(1, 3, 64, 64)
    positions = torch.arange(input_ids.shape[1]).expand(2, -1)
    plain = model(input_ids, pixels).logits_per_image
    assert torch.equal(model(input_ids, pixels, position_ids=positions).logits_per_image, plain)
    assert not torch.equal(model(input_ids, pixels, position_ids=positions.flip(1)).logits_per_image, plain)


@pytest.mark.parametrize("method", ["get_image_features", "get_text_features"])
def test_misspelt_arguments_are_refused(model, method):
    inputs = random_texts(1) if method == "get_text_features" else torch.rand(1, 3, 64, 64)
    getattr(model, method)(inputs, interpolate_pos_encoding=True, num_items_in_batch=torch.tensor(1))
    with pytest.raises(TypeError, match="attention_masks"):
        getattr(model, method)(inputs, attention_masks=None)


def test_image_features_are_the_summary_of_the_teachers_adaptor(pair, radio):
    pixels = torch.rand(2, 3, 64, 96)
    name = {"siglip": "siglip2-g", "siglip2": "siglip2-g", "clip": "clip"}[pair.kind]
    with torch.no_grad():
        actual = pair.model.get_image_features(pixels, window_size=2).pooler_output
        expected = radio(pixels, window_size=2).adaptors[name].summary
        assert not torch.equal(actual, pair.model.get_image_features(pixels).pooler_output)
    assert pair.model.config.text_adaptor == name
    torch.testing.assert_close(actual, expected)


def test_what_the_processor_returns_of_padded_images_is_accepted(model):
    processor = RadioImageProcessor(size={"longest_edge": 64}, do_pad=True)
    pictures = [torch.randint(256, (3, *size), dtype=torch.uint8) for size in ((64, 32), (32, 64))]
    inputs = processor(pictures, return_tensors="pt")
    pixels = inputs["pixel_values"]
    with torch.no_grad():
        features = model.get_image_features(**inputs).pooler_output
        assert torch.equal(features, model.get_image_features(pixels).pooler_output)


def test_probabilities_are_sigmoid_or_softmax(pair):
    logits = torch.tensor([[0.0, math.log(3.0)]])
    expected = [[0.25, 0.75]] if pair.kind == "clip" else [[0.5, 0.75]]
    torch.testing.assert_close(pair.model.probabilities(logits), torch.tensor(expected))


@torch.no_grad()
def test_saved_folder_opens_as_the_plain_model_ours_or_native(model, radio, tmp_path):
    model.save_pretrained(tmp_path)
    pixels = torch.rand(1, 3, 64, 64)
    plain, info = RadioModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert_same_weights(plain, radio)
    native, info = NativeRadioModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    for opened in (plain, native):
        torch.testing.assert_close(opened(pixels).summary, radio(pixels).summary, rtol=0, atol=1e-6)


def test_plain_model_of_a_packed_folder_is_saved_without_the_tower(model, tmp_path):
    model.save_pretrained(tmp_path / "packed")
    RadioModel.from_pretrained(tmp_path / "packed").save_pretrained(tmp_path / "plain")
    config = RadioConfig.from_pretrained(tmp_path / "plain")
    assert (config.text_tower, config.text_adaptor) == (None, "siglip2-g")  # whose vectors images keep
    pipelines = json.loads((tmp_path / "plain" / "config.json").read_text())["custom_pipelines"]
    assert "zero-shot-image-classification" not in pipelines
    assert config.adaptor_configs == model.config.adaptor_configs


def test_fresh_model_starts_with_the_teachers_temperature(pair):
    fresh = RadioForZeroShotImageClassification(pair.model.config)
    scale = 1 / 0.07 if pair.kind == "clip" else 10.0
    torch.testing.assert_close(fresh.logit_scale.exp().item(), scale, atol=1e-2, rtol=0)
    assert (fresh.logit_bias is None) if pair.kind == "clip" else (fresh.logit_bias.item() == -10)


def test_short_texts_of_a_siglip_tower_are_warned_of_once(model, recwarn):
    pixels, texts = torch.rand(1, 3, 64, 64), random_texts(2)[:, :10]
    with pytest.warns(UserWarning, match=r"has 10 tokens, but SigLIP's .* padded to 16.*padding='max_length'"):
        model(texts, pixels)
    model(texts, pixels)
    assert len(recwarn) == 0


def test_texts_that_do_not_fit_are_refused(pair, word_tokenizer):
    model, pixels = pair.model, torch.rand(1, 3, 64, 64)
    refused("input_ids", lambda: model.get_text_features(torch.zeros(1, 17, dtype=torch.long)))
    refused("return_loss", lambda: model(random_texts(2), pixels, return_loss=True))
    refused("texts", lambda: model.embed_texts(word_tokenizer, []))
    refused("text_embeds", lambda: model.segment(pixels, torch.randn(3, 11)))
    refused("source", lambda: model.segment(pixels, torch.randn(3, WIDTH), source="dense"))


def test_class_embedding_is_the_mean_of_its_prompts(pair, word_tokenizer):
    tokenizer = canonicalizing(word_tokenizer, 16)
    templates = ["a photo of a {}", "this is a {}", "{}"]
    classes = pair.model.embed_classes(tokenizer, ["cat", "dog"], templates, batch_size=2)
    prompts = pair.model.embed_texts(tokenizer, ["a photo of a dog", "this is a dog", "dog"])
    torch.testing.assert_close(prompts.norm(dim=1), torch.ones(3))
    mean = prompts.mean(dim=0)
    torch.testing.assert_close(classes[1], mean / mean.norm())
    assert classes.shape == (2, WIDTH)


@pytest.mark.parametrize("window_size", [None, 2])
def test_segmentation_equals_the_summary_head_by_hand(pair, radio, window_size):
    pixels, texts = torch.rand(2, 3, 64, 96), torch.randn(3, WIDTH)
    with torch.no_grad():
        logits = pair.model.segment(pixels, texts, window_size=window_size, **PLAIN).logits
        features = radio(pixels, window_size=window_size, adaptor_names=[]).features
        aligned = radio.radio_model.adaptors[pair.model.config.text_adaptor].head_mlp(features)
    cosines = torch.cosine_similarity(aligned.unsqueeze(2), texts, dim=-1).transpose(1, 2).unflatten(2, (4, 6))
    bias = 0 if pair.model.logit_bias is None else pair.model.logit_bias
    expected = cosines * pair.model.logit_scale.exp() + bias
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_segmentation_equals_the_dense_features_by_hand(model, radio):
    pixels, texts = torch.rand(1, 3, 64, 96), torch.randn(3, WIDTH)
    with torch.no_grad():
        logits = model.segment(pixels, texts, source="features", **PLAIN).logits
        features = radio(pixels, feature_format="NCHW").adaptors["siglip2-g"].features
    cosines = torch.cosine_similarity(features.unsqueeze(1), texts[None, :, :, None, None], dim=2)
    expected = cosines * model.logit_scale.exp() + model.logit_bias
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_parts_that_do_not_fit_are_refused(radio, model, build_dual_encoder):
    def of(source, adaptor=None):
        return RadioForZeroShotImageClassification.from_parts(radio, source, adaptor)

    clip = build_dual_encoder("clip", WIDTH)
    refused("text_adaptor", lambda: of(build_dual_encoder("siglip", 16)))
    refused("text_adaptor", lambda: of(clip, "dino"))
    refused("summary_dim", lambda: of(build_dual_encoder("clip", 16), "clip"))
    refused("text_source", lambda: of(radio))
    refused("feature_dim", lambda: of(clip).segment(torch.rand(1, 3, 64, 64), torch.randn(3, WIDTH), source="features"))
    model.config.text_adaptor = None
    refused("text_adaptor", lambda: RadioForZeroShotImageClassification(model.config))


def expected_scores(model, processor, tokenizer, image):
    """Score the labels by hand, with the stock pipeline's template."""
    prompts = tokenizer(
        [f"This is a photo of {label}." for label in LABELS], padding="max_length", max_length=16, return_tensors="pt"
    )
    with torch.no_grad():
        logits = model(prompts["input_ids"], **processor(image, return_tensors="pt")).logits_per_image
    scores = model.probabilities(logits)[0].tolist()
    return sorted(zip(scores, LABELS, strict=True), reverse=True)


def save_folder(model, folder, word_tokenizer):
    processor = RadioImageProcessor(size={"height": 64, "width": 64})
    tokenizer = canonicalizing(word_tokenizer, 16) if model.use_sigmoid else word_tokenizer
    for part in (model, processor, tokenizer):
        part.save_pretrained(folder)
    return expected_scores(model, processor, tokenizer, str(PHOTOGRAPH))


def assert_scores(result, expected):
    assert [entry["label"] for entry in result] == [label for _, label in expected]
    torch.testing.assert_close(
        [entry["score"] for entry in result], [score for score, _ in expected], atol=1e-5, rtol=0
    )


def test_pipeline_gives_the_towers_probabilities_in_a_fresh_process(
    radio, build_dual_encoder, word_tokenizer, run_elsewhere, url, tmp_path
):
    models = {
        str(tmp_path / kind): RadioForZeroShotImageClassification.from_parts(radio, build_dual_encoder(kind, WIDTH))
        for kind in ("siglip", "clip")
    }
    sentences = RadioForZeroShotImageClassification.from_parts(radio, build_sentence_tower(WIDTH), "dino_v3")
    models[str(tmp_path / "sentences")] = sentences
    expected = {folder: save_folder(model, folder, word_tokenizer) for folder, model in models.items()}
    output = run_elsewhere(CLASSIFY_ELSEWHERE, tmp_path, PHOTOGRAPH, url, ",".join(LABELS), *models)
    results = json.loads(output.splitlines()[-1])
    for folder, model in models.items():
        result = results[folder]
        single = [result[name] for name in ("path", "url", "image", "again")]
        several = [scores for name in ("list", "batch", "generator") for scores in result[name]]
        assert len(several) == 7
        for scores in single + several:
            assert_scores(scores, expected[folder])
        for together, alone in zip(result["unequal"], result["unequal alone"], strict=True):
            assert_scores(together, [(entry["score"], entry["label"]) for entry in alone])
        tokenizer = AutoTokenizer.from_pretrained(folder)
        classes = model.embed_classes(tokenizer, LABELS)
        torch.testing.assert_close(torch.tensor(result["classes"]), classes)
        parts = {"model": model, "tokenizer": tokenizer, "image_processor": RadioImageProcessor.from_pretrained(folder)}
        masks = RadioWordSegmentationPipeline(**parts)(str(PHOTOGRAPH), LABELS, denoising=None)
        assert [mask["label"] for mask in masks] == [label for label, _, _ in result["masks"]]
        assert [mask["score"] for mask in masks] == pytest.approx([score for _, score, _ in result["masks"]], abs=1e-4)
        boxes = RadioZeroShotObjectDetectionPipeline(**parts)(str(PHOTOGRAPH), LABELS, denoising=None, threshold=0.0)
        assert {box["label"] for box in boxes} == {box["label"] for box in result["boxes"]}


def test_pipeline_on_a_folder_without_texts_says_what_is_missing(radio, tmp_path):
    """transformers goes on with its own backbone after a `ValueError`, and then misses a tokenizer."""
    radio.save_pretrained(tmp_path)
    RadioImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(LookupError, match="`text_tower`"):
        pipeline("zero-shot-image-classification", model=str(tmp_path), trust_remote_code=True)


@wrong(
    templates=[[], ["a cat"], ["{} {}"]],
    text_tower=[{"model_type": "bert"}, {"model_type": "siglip_text"}, {}, {"model_type": "sentence_encoders"}],
)
def test_templates_and_towers_that_cannot_be_are_refused(name, value):
    config = RadioConfig.from_preset("radio-test", text_tower=value if name == "text_tower" else None)
    with pytest.raises(ValueError, match=f"`{name}"):
        fill_templates("cat", value) if name == "templates" else text_tower_kind(config)


@pytest.mark.parametrize(
    ("implementation", "is_supported", "expected"),
    [
        ("eager", False, "eager"),
        ("flash_attention_2", True, "flash_attention_2"),
        ("flash_attention_2", False, "sdpa"),
    ],
)
def test_tower_attends_as_the_backbone_does_where_it_can(implementation, is_supported, expected, monkeypatch):
    kind = TEXT_TOWERS["siglip2_text_model"]
    monkeypatch.setattr(kind.model_class, "_supports_flash_attn", is_supported)  # releases of transformers differ
    assert tower_attention(kind, implementation) == expected


@pytest.fixture
def sentences_radio():
    head = {"summary_dim": WIDTH, "feature_dim": 8, "hidden_size": 24}
    adaptors = [{"name": "lite0", **head}, {"name": "dino_v3", "token_index": 1, **head, "summary_dim": 20}]
    return RadioModel(RadioConfig.from_preset("radio-test", adaptors=adaptors)).eval()


@pytest.fixture
def sentences_model(sentences_radio):
    return RadioForZeroShotImageClassification.from_parts(sentences_radio, build_sentence_tower(WIDTH))


def texts_of_two_lengths():
    """Return two texts, the second shorter and padded with 0, and their mask."""
    texts = torch.randint(4, 17, (2, 9))
    texts[1, 5:] = 0
    return texts, (texts != 0).long()


def test_a_sentence_is_the_mean_of_its_tokens_made_a_unit_vector_and_mapped(sentences_model):
    texts, mask = texts_of_two_lengths()
    tower = sentences_model.text_tower
    with torch.no_grad():
        actual = sentences_model.get_text_features(texts, mask).pooler_output
        for index, length in enumerate((9, 5)):  # without padding, by hand
            states = tower.encoder(texts[index : index + 1, :length]).last_hidden_state
            expected = tower.projection(normalize(states.mean(dim=1)))
            torch.testing.assert_close(actual[index : index + 1], expected, atol=1e-6, rtol=1e-5)


def test_padding_is_known_without_a_mask(sentences_model):
    texts, mask = texts_of_two_lengths()
    with torch.no_grad():
        expected = sentences_model.get_text_features(texts, mask).pooler_output
        assert torch.equal(sentences_model.get_text_features(texts).pooler_output, expected)
        assert torch.equal(sentences_model.encode_text(texts), expected)
        assert not torch.allclose(
            sentences_model.get_text_features(texts, torch.ones_like(mask)).pooler_output, expected
        )


def test_encoders_without_a_padding_token_read_all(sentences_radio):
    tower = build_sentence_tower(WIDTH)
    tower.encoder.config.pad_token_id = None
    texts, mask = texts_of_two_lengths()
    with torch.no_grad():
        expected = tower(texts, torch.ones_like(mask)).pooler_output
        assert torch.equal(tower(texts).pooler_output, expected)


def test_adaptor_is_found_by_its_width_or_named(sentences_radio):
    model = RadioForZeroShotImageClassification.from_parts(sentences_radio, build_sentence_tower(20))
    assert model.config.text_adaptor == "dino_v3"
    with pytest.raises(ValueError, match=r"lite0 \(12\)"):
        RadioForZeroShotImageClassification.from_parts(sentences_radio, build_sentence_tower(16))


def test_temperature_is_the_towers(sentences_radio):
    encoder = build_sentence_encoder()
    tower = SentenceTower.from_parts(encoder, nn.Linear(16, WIDTH), max_length=16, logit_scale=1.5)
    sentences_model = RadioForZeroShotImageClassification.from_parts(sentences_radio, tower)
    assert not sentences_model.use_sigmoid
    assert sentences_model.logit_scale.item() == 1.5
    assert sentences_model.logit_bias is None


def test_any_encoder_of_transformers_is_a_tower(sentences_radio):
    config = RobertaConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=32,
        max_position_embeddings=20,
        pad_token_id=1,
    )
    tower = SentenceTower.from_parts(RobertaModel(config).eval(), nn.Linear(16, WIDTH), max_length=16)
    sentences_model = RadioForZeroShotImageClassification.from_parts(sentences_radio, tower)
    texts = torch.tensor([[4, 5, 6, 1, 1]])
    with torch.no_grad():
        expected = sentences_model.get_text_features(texts[:, :3]).pooler_output
        torch.testing.assert_close(
            sentences_model.get_text_features(texts).pooler_output, expected, atol=1e-6, rtol=1e-5
        )


def test_saved_folder_opens_with_equal_weights_of_sentences(sentences_model, tmp_path):
    sentences_model.save_pretrained(tmp_path)
    again, info = RadioForZeroShotImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert_same_weights(again, sentences_model)
    assert isinstance(again.text_tower.encoder, BertModel)
    plain = RadioModel.from_pretrained(tmp_path)
    assert plain.config.text_tower is None


@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_whole_tower_opens_in_the_type_that_is_asked_for(sentences_model, saved, dtype, tmp_path):
    sentences_model.to(saved).save_pretrained(tmp_path)
    again = RadioForZeroShotImageClassification.from_pretrained(tmp_path, dtype=dtype)
    assert {weight.dtype for weight in again.text_tower.parameters()} == {dtype}
    texts, mask = texts_of_two_lengths()
    embeds = again.get_text_features(texts, mask).pooler_output
    assert embeds.dtype == dtype
    expected = sentences_model.float().get_text_features(texts, mask).pooler_output
    torch.testing.assert_close(embeds.float(), expected, atol=0.05, rtol=0.05)


def test_texts_of_another_precision_than_the_images_are_taken(sentences_model):
    texts, pixels = normalize(torch.rand(3, WIDTH), dim=1), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = sentences_model(pixel_values=pixels, text_embeds=texts).logits_per_image
        found = sentences_model.bfloat16()(pixel_values=pixels.bfloat16(), text_embeds=texts).logits_per_image
        assert sentences_model.segment(pixels.bfloat16(), texts, source="summary_head").logits.shape[:2] == (2, 3)
    torch.testing.assert_close(found.float(), expected, atol=0.3, rtol=0.05)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_gradients_reach_encoder_and_map_with_and_without_checkpointing(sentences_model):
    texts, mask = texts_of_two_lengths()
    gradients = []
    for is_checkpointed in (False, True):
        if is_checkpointed:
            sentences_model.gradient_checkpointing_enable()
        sentences_model.train().zero_grad()
        torch.manual_seed(1)
        sentences_model(texts, torch.rand(2, 3, 64, 64), mask, return_loss=True).loss.backward()
        named = {
            name: weight.grad for name, weight in sentences_model.text_tower.named_parameters() if "pooler" not in name
        }
        assert all(gradient is not None for gradient in named.values())
        gradients.append(copy.deepcopy(named))
    torch.testing.assert_close(gradients[1], gradients[0])


def test_tower_is_saved_and_shown_alone(tmp_path):
    tower = build_sentence_tower(WIDTH)
    assert '"model_type": "bert"' in repr(tower.config)
    tower.save_pretrained(tmp_path)
    again = SentenceTower.from_pretrained(tmp_path)
    assert_same_weights(again, tower)
    assert again.config.projection_dim == WIDTH


def test_maps_of_another_width_are_refused():
    linear = nn.Linear(17, WIDTH)
    refused("projection", lambda: SentenceTower.from_parts(build_sentence_encoder(), linear, max_length=16))


@pytest.mark.parametrize("encoder", [None, {}, {"model_type": "bart-ish"}, 5])
def test_encoders_that_transformers_does_not_have_are_refused(encoder):
    values = {"model_type": "sentence_encoder", "encoder": encoder, "projection_dim": 12}
    refused("text_tower.encoder", lambda: SentenceTowerConfig.from_dict(values))


@pytest.mark.parametrize(
    "encoder",
    [
        {"model_type": "timm_wrapper", "architecture": "hf-hub:someone/something"},
        {"model_type": "llava", "vision_config": {"model_type": "timm_wrapper", "architecture": "local-dir:/"}},
        {"model_type": "upernet", "backbone": "someone/something", "use_pretrained_backbone": True},
        {"model_type": "bert", "_attn_implementation": "someone/kernels"},
    ],
)
def test_encoders_name_nothing_to_fetch(encoder):
    with pytest.raises(ValueError, match=r"timm_wrapper|backbone|_attn_implementation"):
        SentenceTowerConfig(encoder=encoder)
