import pytest
import torch
from tiny_words import NAMES, TinyClassifier, TinySentences, build_student
from torch.nn import functional as F

from modeling_radio import RadioImageProcessor
from modeling_radio.text_radio import SIMPLE_TEMPLATES
from training.evaluation.models.base import TextModel
from training.evaluation.models.radio import PatchTextModel, open_radio
from training.evaluation.task_settings import TaskSettings
from training.evaluation.tasks import zero_shot
from training.words.measurement import TeacherWords, measure_words, segment_scenes
from training.words.names import learn_map
from training.words.student import ask, build_words, save_words


SETTINGS = TaskSettings(templates="simple", dense_source="features", resamples=100)


@pytest.fixture
def teacher():
    return TinyClassifier()


@pytest.fixture
def student(teacher, data, tmp_path):
    """A folder with words, opened as evaluations do."""
    encoder, radio = TinySentences(), build_student()
    answers = ask(radio, teacher.name, teacher, data.unlabeled)
    model, tokenizer = build_words(radio, teacher.name, encoder, learn_map(encoder, NAMES, teacher.rows), answers)
    save_words(model, tokenizer, RadioImageProcessor(size={"height": 64, "width": 64}), tmp_path / "words")
    return open_radio(tmp_path / "words", size_px=64)


def test_the_teacher_has_the_words_of_its_student(student, teacher):
    own, pixels = TeacherWords(teacher, student), torch.rand(2, 3, 64, 64)
    assert isinstance(own, TextModel)
    assert isinstance(own, PatchTextModel)
    assert torch.equal(own.embed_texts(["cat"]), student.embed_texts(["cat"]))
    patches = own.aligned_patches(pixels, "features")
    assert patches.shape == (2, 6, 4, 4)
    torch.testing.assert_close(patches.mean((2, 3)), teacher.answer(pixels).summary, atol=5e-2, rtol=0)


def test_every_row_is_measured_as_it_says(student, teacher, data, monkeypatch):
    monkeypatch.setattr(zero_shot, "SentenceEncoder", TinySentences)
    monkeypatch.setattr(zero_shot, "imagenet_class_names", lambda: NAMES)
    found = measure_words(student, teacher, data, SETTINGS)
    rows = {(each.model, each.task, each.metric): each.value for each in found}
    names = ["teacher efficientnet-lite0", "student"]
    conse = ["teacher efficientnet-lite0, ConSE", "adaptor efficientnet-lite0, ConSE"]
    assert {model for model, task, _ in rows if task == "zero_shot"} >= {*names, *conse}
    dense = {(model, metric) for model, task, metric in rows if task == "open_vocabulary"}
    assert dense == {(model, metric) for model in names for metric in ("mIoU", "pixel accuracy", "mIoU, no background")}
    pixels, labels = data.classification.query_images / 255, data.classification.query_labels
    classes = student.embed_classes(data.classification.class_names, SIMPLE_TEMPLATES)
    with torch.no_grad():
        summaries = student.model(pixels, adaptor_names=[student.text_adaptor]).adaptors[student.text_adaptor].summary
    for model, said in (("student", summaries), (names[0], teacher.answer(pixels).summary)):
        accuracy = ((F.normalize(said) @ classes.T).argmax(1) == labels).float().mean().item()
        assert rows[model, "zero_shot", "accuracy"] == pytest.approx(accuracy)


def test_scenes_are_segmented_as_the_model_itself_does(student, data):
    images, names = data.segmentation.test_images, data.segmentation.class_names
    found = segment_scenes(student, images, names, SETTINGS)
    tower = student._text_tower()[0]
    with torch.no_grad():
        logits = tower.segment(images / 255, student.embed_classes(names, SIMPLE_TEMPLATES), source="features").logits
    expected = F.interpolate(logits, (64, 64), mode="bilinear").argmax(1)
    assert (found == expected).float().mean() > 0.99
