"""A sentence encoder of transformers as the text tower of one of RADIO's adaptors."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from comparisons import assert_same_weights
from tiny_sentences import build_sentence_encoder, build_sentence_tower
from torch import nn
from torch.nn.functional import normalize
from transformers import BertModel, RobertaConfig, RobertaModel

from modeling_radio import RadioConfig, RadioForZeroShotImageClassification, RadioImageProcessor, RadioModel
from modeling_radio.zero_shot_radio import SentenceTower, SentenceTowerConfig


WIDTH = 12
PHOTOGRAPH = Path(__file__).parents[2] / "docs" / "photograph.jpg"
LABELS = ["cat", "dog", "grass"]

ELSEWHERE = """
import json, sys
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForZeroShotImageClassification, AutoTokenizer, pipeline

folder, photograph, labels = sys.argv[1], sys.argv[2], sys.argv[3].split(",")
classify = pipeline("zero-shot-image-classification", model=folder, trust_remote_code=True)
classify.save_pretrained(folder + "-again")
again = pipeline("zero-shot-image-classification", model=folder + "-again", trust_remote_code=True)
model = AutoModelForZeroShotImageClassification.from_pretrained(folder, trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
classes = model.embed_classes(AutoTokenizer.from_pretrained(folder), labels)
pixels = processor(Image.open(photograph), return_tensors="pt")
with torch.no_grad():
    logits = model.segment(**pixels, text_embeds=classes).logits
print(json.dumps({
    "scores": [each(photograph, candidate_labels=labels) for each in (classify, again)],
    "classes": classes.tolist(),
    "logits": logits.tolist(),
}))
"""


@pytest.fixture
def radio():
    head = {"summary_dim": WIDTH, "feature_dim": 8, "hidden_size": 24}
    adaptors = [{"name": "lite0", **head}, {"name": "dino_v3", "token_index": 1, **head, "summary_dim": 20}]
    return RadioModel(RadioConfig.from_preset("radio-test", adaptors=adaptors)).eval()


@pytest.fixture
def model(radio):
    return RadioForZeroShotImageClassification.from_parts(radio, build_sentence_tower(WIDTH))


def texts_of_two_lengths():
    """Return two texts, the second shorter and padded with 0, and their mask."""
    texts = torch.randint(4, 17, (2, 9))
    texts[1, 5:] = 0
    return texts, (texts != 0).long()


def test_a_sentence_is_the_mean_of_its_tokens_made_a_unit_vector_and_mapped(model):
    texts, mask = texts_of_two_lengths()
    tower = model.text_tower
    with torch.no_grad():
        actual = model.get_text_features(texts, mask).pooler_output
        for index, length in enumerate((9, 5)):  # without padding, by hand
            states = tower.encoder(texts[index : index + 1, :length]).last_hidden_state
            expected = tower.projection(normalize(states.mean(dim=1)))
            torch.testing.assert_close(actual[index : index + 1], expected, atol=1e-6, rtol=1e-5)


def test_padding_is_known_without_a_mask(model):
    texts, mask = texts_of_two_lengths()
    with torch.no_grad():
        expected = model.get_text_features(texts, mask).pooler_output
        assert torch.equal(model.get_text_features(texts).pooler_output, expected)
        assert torch.equal(model.encode_text(texts), expected)
        assert not torch.allclose(model.get_text_features(texts, torch.ones_like(mask)).pooler_output, expected)


def test_encoders_without_a_padding_token_read_all(radio):
    tower = build_sentence_tower(WIDTH)
    tower.encoder.config.pad_token_id = None
    texts, mask = texts_of_two_lengths()
    with torch.no_grad():
        expected = tower(texts, torch.ones_like(mask)).pooler_output
        assert torch.equal(tower(texts).pooler_output, expected)


def test_the_projection_decides(model):
    texts, pixels = texts_of_two_lengths()[0], torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        plain = model(texts, pixels)
        model.text_tower.projection.weight.neg_()
        model.text_tower.projection.bias.neg_()
        turned = model(texts, pixels)
    torch.testing.assert_close(turned.text_embeds, -plain.text_embeds)
    torch.testing.assert_close(turned.logits_per_image, -plain.logits_per_image)
    torch.testing.assert_close(turned.image_embeds, plain.image_embeds)


def test_one_text_of_all_is_right(model):
    assert not model.use_sigmoid
    torch.testing.assert_close(model.probabilities(torch.tensor([[0.0, math.log(3.0)]])), torch.tensor([[0.25, 0.75]]))


def test_adaptor_is_found_by_its_width_or_named(radio):
    assert (
        RadioForZeroShotImageClassification.from_parts(radio, build_sentence_tower(20)).config.text_adaptor == "dino_v3"
    )
    with pytest.raises(
        ValueError, match=r"a model with embeddings 16 wide, got None, and no adaptor would fit.*lite0 \(12\)"
    ):
        RadioForZeroShotImageClassification.from_parts(radio, build_sentence_tower(16))
    with pytest.raises(ValueError, match=r"`summary_dim` of adaptor 'dino_v3' must be 12, .* got 20"):
        RadioForZeroShotImageClassification.from_parts(radio, build_sentence_tower(WIDTH), "dino_v3")


def test_temperature_is_the_towers(radio):
    encoder = build_sentence_encoder()
    tower = SentenceTower.from_parts(encoder, nn.Linear(16, WIDTH), max_length=16, logit_scale=1.5)
    model = RadioForZeroShotImageClassification.from_parts(radio, tower)
    assert model.logit_scale.item() == 1.5
    assert model.logit_bias is None


def test_any_encoder_of_transformers_is_a_tower(radio):
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
    model = RadioForZeroShotImageClassification.from_parts(radio, tower)
    texts = torch.tensor([[4, 5, 6, 1, 1]])
    with torch.no_grad():
        expected = model.get_text_features(texts[:, :3]).pooler_output
        torch.testing.assert_close(model.get_text_features(texts).pooler_output, expected, atol=1e-6, rtol=1e-5)


def test_saved_folder_opens_with_equal_weights(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".py", ".safetensors"}
    again, info = RadioForZeroShotImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert_same_weights(again, model)
    assert isinstance(again.text_tower.encoder, BertModel)
    plain = RadioModel.from_pretrained(tmp_path)
    assert plain.config.text_tower is None


@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_whole_tower_opens_in_the_type_that_is_asked_for(model, saved, dtype, tmp_path):
    model.to(saved).save_pretrained(tmp_path)
    again = RadioForZeroShotImageClassification.from_pretrained(tmp_path, dtype=dtype)
    assert {weight.dtype for weight in again.text_tower.parameters()} == {dtype}
    texts, mask = texts_of_two_lengths()
    embeds = again.get_text_features(texts, mask).pooler_output
    assert embeds.dtype == dtype
    expected = model.float().get_text_features(texts, mask).pooler_output
    torch.testing.assert_close(embeds.float(), expected, atol=0.05, rtol=0.05)


def test_texts_of_another_precision_than_the_images_are_taken(model):
    texts, pixels = normalize(torch.rand(3, WIDTH), dim=1), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(pixel_values=pixels, text_embeds=texts).logits_per_image
        found = model.bfloat16()(pixel_values=pixels.bfloat16(), text_embeds=texts).logits_per_image
        assert model.segment(pixels.bfloat16(), texts, source="summary_head").logits.shape[:2] == (2, 3)
    torch.testing.assert_close(found.float(), expected, atol=0.3, rtol=0.05)


def test_attention_implementation_reaches_the_encoder(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = RadioForZeroShotImageClassification.from_pretrained(tmp_path, attn_implementation="eager")
    assert again.text_tower.encoder.config._attn_implementation == "eager"
    again.set_attn_implementation("sdpa")
    assert again.text_tower.encoder.config._attn_implementation == "sdpa"


@torch.no_grad()
def test_hidden_states_and_attentions_on_request(model):
    model.set_attn_implementation("eager")
    texts, mask = texts_of_two_lengths()
    output = model.get_text_features(texts, mask, output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == 3
    assert len(output.attentions) == 2
    assert model.get_text_features(texts, mask).hidden_states is None


@torch.no_grad()
def test_texts_have_positions(model):
    texts, mask = texts_of_two_lengths()
    positions = torch.arange(9).expand(2, -1)
    plain = model.get_text_features(texts, mask).pooler_output
    assert torch.equal(model.get_text_features(texts, mask, position_ids=positions).pooler_output, plain)
    assert not torch.allclose(model.get_text_features(texts, mask, positions.flip(1)).pooler_output, plain)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_gradients_reach_encoder_and_map_with_and_without_checkpointing(model):
    texts, mask = texts_of_two_lengths()
    gradients = []
    for is_checkpointed in (False, True):
        if is_checkpointed:
            model.gradient_checkpointing_enable()
        model.train().zero_grad()
        torch.manual_seed(1)
        model(texts, torch.rand(2, 3, 64, 64), mask, return_loss=True).loss.backward()
        named = {name: weight.grad for name, weight in model.text_tower.named_parameters() if "pooler" not in name}
        assert all(gradient is not None for gradient in named.values())
        gradients.append(copy.deepcopy(named))
    torch.testing.assert_close(gradients[1], gradients[0])


def test_folder_runs_in_the_stock_pipeline_in_a_fresh_process(model, word_tokenizer, run_elsewhere, tmp_path):
    folder, processor = tmp_path / "folder", RadioImageProcessor(size={"height": 64, "width": 64})
    word_tokenizer.model_input_names = ["input_ids", "attention_mask"]
    for part in (model, processor, word_tokenizer):
        part.save_pretrained(folder)
    result = json.loads(run_elsewhere(ELSEWHERE, tmp_path, folder, PHOTOGRAPH, ",".join(LABELS)).splitlines()[-1])
    pixels = processor(str(PHOTOGRAPH), return_tensors="pt")
    prompts = word_tokenizer([f"This is a photo of {label}." for label in LABELS], padding=True, return_tensors="pt")
    with torch.no_grad():
        scores = model.probabilities(model(**prompts, **pixels).logits_per_image)[0].tolist()
        classes = model.embed_classes(word_tokenizer, LABELS)
        logits = model.segment(**pixels, text_embeds=classes).logits
    for found in result["scores"]:
        assert {entry["label"]: pytest.approx(entry["score"], abs=1e-5) for entry in found} == dict(
            zip(LABELS, scores, strict=True)
        )
    torch.testing.assert_close(torch.tensor(result["classes"]), classes)
    torch.testing.assert_close(torch.tensor(result["logits"]), logits, atol=1e-5, rtol=1e-4)


def test_tower_is_saved_and_shown_alone(tmp_path):
    tower = build_sentence_tower(WIDTH)
    assert '"model_type": "bert"' in repr(tower.config)
    tower.save_pretrained(tmp_path)
    again = SentenceTower.from_pretrained(tmp_path)
    assert_same_weights(again, tower)
    assert again.config.projection_dim == WIDTH


def test_maps_of_another_width_are_refused():
    with pytest.raises(ValueError, match="`projection` must take 16 numbers, the width of the encoder, got 17"):
        SentenceTower.from_parts(build_sentence_encoder(), nn.Linear(17, WIDTH), max_length=16)


@pytest.mark.parametrize(
    ("encoder", "got"), [(None, "None"), ({}, "None"), ({"model_type": "bart-ish"}, "'bart-ish'"), (5, "5")]
)
def test_encoders_that_transformers_does_not_have_are_refused(encoder, got):
    with pytest.raises(ValueError, match=f"`text_tower.encoder` must be the configuration of a text model.*got {got}"):
        SentenceTowerConfig.from_dict({"model_type": "sentence_encoder", "encoder": encoder, "projection_dim": 12})
