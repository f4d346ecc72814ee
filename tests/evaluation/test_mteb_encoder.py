"""Models in `mteb`: its mock tasks, and vectors beside the models' own."""

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from modeling_radio.evaluation.models.pretrained import RawPixels
from modeling_radio.evaluation.models.radio import RadioFeatures
from modeling_radio.evaluation.mteb_encoder import image_vectors, mteb_encoder


def test_images_of_any_mode_and_shape_become_the_models_summaries(tiny_model):
    model = RadioFeatures(tiny_model, size_px=32)
    gray = torch.full((3, 40, 40), 90, dtype=torch.uint8)
    with torch.no_grad():
        expected = tiny_model(model.preprocess(gray)[None]).summary[0]
    for images in (
        [Image.new("L", (40, 40), 90), Image.new("RGBA", (80, 40), (9, 90, 200, 255)), torch.rand(3, 50, 50)],
        [gray, torch.rand(1, 40, 40)],
    ):
        vectors = image_vectors(model, images)
        assert vectors.shape == (len(images), len(expected))
        torch.testing.assert_close(vectors[0], expected)


def scores(encoder, kinds):
    """Run all mock tasks of images with these modalities; return the score of each."""
    mteb = pytest.importorskip("mteb", reason="needs `pip install mteb`")
    from mteb.mocks.mock_run import get_compatible_mock_tasks

    tasks = [task for task in get_compatible_mock_tasks(encoder) if "image" in task.metadata.modalities]
    tasks = [task for task in tasks if set(task.metadata.modalities) <= kinds]
    results = mteb.evaluate(encoder, tasks, cache=None, show_progress_bar=False)
    return {result.task_name: result.get_score() for result in results.task_results}


def test_all_mock_tasks_of_images_run(tiny_model):
    pytest.importorskip("mteb", reason="needs `pip install mteb`")
    encoder = mteb_encoder(RadioFeatures(tiny_model, size_px=32))
    found = scores(encoder, {"image"})
    assert {"MockImageClassification", "MockImageClusteringTask", "MockVisualSTSTask"} & found.keys(), sorted(found)
    assert len(found) >= 8
    with pytest.raises(ValueError, match="'student'"):
        encoder.encode([{"text": ["cat"]}])


def test_all_mock_tasks_of_images_and_texts_run(zero_shot_folder):
    pytest.importorskip("mteb", reason="needs `pip install mteb`")
    model = RadioFeatures.open(zero_shot_folder)
    encoder = mteb_encoder(model)
    found = scores(encoder, {"image", "text"})
    assert len(found) > len(scores(mteb_encoder(RawPixels(8, 32)), {"image"}))
    assert any("ZeroShot" in name for name in found), sorted(found)
    texts = encoder.encode([{"text": ["cat", "a photo of a dog"]}])
    torch.testing.assert_close(texts, model.embed_texts(["cat", "a photo of a dog"]))
    image = Image.new("RGB", (32, 32), (200, 30, 30))
    (both,), (alone,) = encoder.encode([{"image": [image], "text": ["cat"]}]), encoder.encode([{"image": [image]}])
    torch.testing.assert_close(both, F.normalize(alone + texts[0], dim=0))
