import pytest
import torch

from conversion.text_tower import canonicalizing
from modeling_radio import RadioConfig, RadioForZeroShotImageClassification, RadioModel
from modeling_radio.text_radio import OPENAI_TEMPLATES
from training.demo_kit.assets import DemoAssets
from training.demo_kit.evaluation_sets import ClassificationSet, SegmentationSet
from training.evaluation.checkpoint import CheckpointEvaluation, EvaluationSettings
from training.evaluation.data.demo import DemoData
from training.evaluation.text_encoder import embed_with_packed_tower
from training.recipe import load_recipe


@pytest.fixture
def packed(build_dual_encoder, word_tokenizer, tmp_path):
    """A folder with a text tower, and the model and the tokenizer in it."""
    adaptor = {"name": "siglip2-g", "summary_dim": 12, "feature_dim": 10, "hidden_size": 16}
    radio = RadioModel(RadioConfig.from_preset("radio-test", adaptors=[adaptor])).eval()
    model = RadioForZeroShotImageClassification.from_parts(radio, build_dual_encoder("siglip", 12))
    tokenizer = canonicalizing(word_tokenizer, 16)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path, model, tokenizer


def test_packed_tower_embeds_classes_with_openais_templates(packed):
    folder, model, tokenizer = packed
    expected = model.embed_classes(tokenizer, ["cat", "dog"], OPENAI_TEMPLATES)
    torch.testing.assert_close(embed_with_packed_tower(folder, ["cat", "dog"]), expected)


def test_packed_tower_without_a_tokenizer_is_refused(packed):
    folder, _, _ = packed
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises((OSError, ValueError), match=r"tokenizer"):
        embed_with_packed_tower(folder, ["cat"])


def test_evaluation_of_a_packed_folder_needs_no_teacher(packed):
    folder, model, tokenizer = packed
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    nearest = [
        (
            model.get_image_features(images[i : i + 1] / 255).pooler_output
            @ model.embed_classes(tokenizer, ["cat", "dog"], OPENAI_TEMPLATES).T
        )
        .argmax()
        .item()
        for i in range(5)
    ]
    labels = torch.tensor(nearest)
    labels[0] = 1 - labels[0]
    scenes = SegmentationSet(images, labels, images, labels, ())
    data = DemoData(
        "toy",
        DemoAssets((), (), (), ("cat", "dog"), (), ""),
        ClassificationSet(images, labels, images, labels, ("cat", "dog")),
        scenes,
        images,
    )
    model, settings = RadioModel.from_pretrained(folder).eval(), EvaluationSettings(checkpoint=folder)
    evaluation = CheckpointEvaluation(model, load_recipe("demo"), data, settings)
    (found,) = evaluation.zero_shot()
    assert found.model == "adaptor siglip2-g"
    assert found.value == pytest.approx(4 / 5)
