"""Models open by their names: folders of all kinds, teachers, baselines."""

import pytest
import timm
import torch
import transformers as t
from reference_cases import write_hub_folder
from timm.models import save_for_hf

from modeling_radio import RadioImageProcessor
from modeling_radio.evaluation.models.opening import open_compared
from modeling_radio.evaluation.models.pretrained import PretrainedFeatures, TimmFeatures
from modeling_radio.evaluation.models.radio import RadioFeatures
from modeling_radio.metrics.feature_model import FeatureModel
from modeling_radio.training.teachers.registry import build_teacher


VIT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32}


@pytest.fixture
def beside(tiny_model):
    return RadioFeatures(tiny_model, size_px=32)


def save_radio(folder, tiny_model):
    tiny_model.save_pretrained(folder)
    RadioImageProcessor.from_model_config(tiny_model.config).save_pretrained(folder)


def save_transformers(folder, tiny_model):
    torch.manual_seed(0)
    t.Dinov2Model(t.Dinov2Config(**VIT, patch_size=8)).save_pretrained(folder)
    t.BitImageProcessor(size={"shortest_edge": 40}, crop_size=32).save_pretrained(folder)


def save_timm(folder, tiny_model):
    torch.manual_seed(0)
    save_for_hf(timm.create_model("test_convnext"), folder, safe_serialization=True)


@pytest.mark.parametrize(
    ("save", "expected"),
    [(save_radio, RadioFeatures), (save_transformers, PretrainedFeatures), (save_timm, TimmFeatures)],
)
def test_folders_open_as_what_they_are(tmp_path, tiny_model, beside, save, expected):
    save(tmp_path / "model", tiny_model)
    name = str(tmp_path / "model")
    opened = open_compared(name, beside=beside)
    assert type(opened) is expected
    assert isinstance(opened, FeatureModel)
    assert opened.name == name
    assert open_compared(name, beside=beside, size_px=64).size_px == 64
    pixels = opened.preprocess(torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8))
    assert opened.encode(pixels[None]).features.isfinite().all()


def test_folders_in_nvidias_layout_open(beside, tmp_path):
    opened = open_compared(str(write_hub_folder("c_radio_v4_tiny", tmp_path / "hub")), beside=beside)
    assert isinstance(opened, RadioFeatures)
    assert opened.adaptor_names


def test_teachers_run_at_the_students_size_and_patch(tmp_path, tiny_model, beside):
    save_transformers(tmp_path / "dino", tiny_model)
    opened = open_compared(f"teacher:dinov2:{tmp_path / 'dino'}", beside=beside)
    assert (opened.patch_size, opened.size_px) == (8, 32)
    pixels = torch.rand(1, 3, 32, 32)
    teacher = build_teacher("any", kind="dinov2", source=str(tmp_path / "dino"), grid_stride=8)
    assert torch.equal(opened.encode(pixels).features, teacher.extract_features(pixels).features)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nobody/nothing", "'nobody/nothing' .* must be a folder, ORG/NAME on the Hub"),
        ("a/b/c", "'a/b/c' .* must be a folder"),
        ("teacher:dinov22", "'teacher:dinov22' .*'dinov2'"),
        ("teacher:dinov2", "'teacher:dinov2' .*`source`"),
        ("timm-random:vit_tyni", "'vit_tyni'"),
        ("{}/empty", r"config\.json"),
        ("{}/model", r"preprocessor_config\.json"),
    ],
)
def test_names_that_do_not_open(beside, name, message, tmp_path, tiny_model):
    (tmp_path / "empty").mkdir()
    save_transformers(tmp_path / "model", tiny_model)
    (tmp_path / "model" / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=f"`compare` .*{message}"):
        open_compared(name.format(tmp_path), beside=beside)


@pytest.mark.packages
def test_embedded_teachers_open(beside):
    opened = open_compared("teacher:efficientnet-lite0", beside=beside)
    assert opened.encode(torch.rand(1, 3, 32, 32)).summary.shape == (1, 1280)


def test_baselines_and_networks_of_timm_by_name(beside, tiny_model):
    pixels = open_compared("pixels", beside=beside)
    assert (pixels.patch_size, pixels.size_px, pixels.device) == (8, 32, beside.device)
    untrained = open_compared("random-vit", beside=beside, size_px=64)
    assert untrained.size_px == 64
    assert not torch.equal(next(untrained.model.parameters()), next(tiny_model.parameters()))
    assert type(open_compared("timm-random:test_vit", beside=beside)) is TimmFeatures
