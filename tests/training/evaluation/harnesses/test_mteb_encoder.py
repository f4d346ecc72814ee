"""Models in `mteb`: its mock tasks, and vectors beside the models' own."""

import pytest
import torch
from PIL import Image

from training.evaluation.harnesses.mteb_encoder import image_vectors, mteb_encoder
from training.evaluation.models.base import TextModel
from training.evaluation.models.pretrained import RawPixels
from training.evaluation.models.radio import RadioFeatures, open_radio


def test_images_of_any_mode_and_shape_become_the_models_summaries(tiny_model):
    model = RadioFeatures(tiny_model, size_px=32)
    images = [Image.new("L", (40, 40), 90), Image.new("RGBA", (80, 40), (9, 90, 200, 255)), torch.rand(3, 50, 50)]
    vectors = image_vectors(model, images)
    gray = torch.full((3, 40, 40), 90, dtype=torch.uint8)
    with torch.no_grad():
        expected = tiny_model(model.preprocess(gray)[None]).summary[0]
    torch.testing.assert_close(vectors[0], expected)
    assert vectors.shape == (3, len(expected))
    same = image_vectors(model, [gray, torch.rand(1, 40, 40)])
    torch.testing.assert_close(same[0], expected)


@pytest.fixture
def mteb():
    return pytest.importorskip("mteb", reason="needs `pip install mteb`")


def scores(mteb, encoder, kinds):
    """Run all mock tasks of these modalities; return the score of each."""
    from mteb.mocks.mock_run import get_compatible_mock_tasks

    tasks = [task for task in get_compatible_mock_tasks(encoder) if set(task.metadata.modalities) & {"image"}]
    tasks = [task for task in tasks if set(task.metadata.modalities) <= kinds]
    results = mteb.evaluate(encoder, tasks, cache=None, show_progress_bar=False)
    return {result.task_name: result.get_score() for result in results.task_results}


def test_all_mock_tasks_of_images_run(mteb, tiny_model):
    encoder = mteb_encoder(RadioFeatures(tiny_model, size_px=32))
    answers = scores(mteb, encoder, {"image"})
    assert {"MockImageClassification", "MockImageClusteringTask", "MockVisualSTSTask"} & answers.keys(), sorted(answers)
    assert len(answers) >= 8
    with pytest.raises(ValueError, match="'student' must have a text tower for texts"):
        encoder.encode([{"text": ["cat"]}])


def test_all_mock_tasks_of_images_and_texts_run(mteb, zero_shot_folder):
    model = open_radio(zero_shot_folder)
    assert isinstance(model, TextModel)
    encoder = mteb_encoder(model)
    answers = scores(mteb, encoder, {"image", "text"})
    assert len(answers) > len(scores(mteb, mteb_encoder(RawPixels(8, 32)), {"image"}))
    assert any("ZeroShot" in name for name in answers), sorted(answers)
    texts = encoder.encode([{"text": ["cat", "a photo of a dog"]}])
    torch.testing.assert_close(texts, model.embed_texts(["cat", "a photo of a dog"]))
    image = Image.new("RGB", (32, 32), (200, 30, 30))
    (both,) = encoder.encode([{"image": [image], "text": ["cat"]}])
    (alone,) = encoder.encode([{"image": [image]}])
    torch.testing.assert_close(both, torch.nn.functional.normalize(alone + texts[0], dim=0))
