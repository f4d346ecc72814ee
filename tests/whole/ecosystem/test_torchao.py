"""8 bits by torchao: one line opens a folder so, it acts, and what is saved opens again and answers the same."""

import pytest
import torch
from task_models import EVERY_MODEL, THREE_MODELS, build, images, tensors_of
from torch.nn.functional import cosine_similarity
from transformers import AutoModel, TorchAoConfig

from modeling_radio import RadioModel
from modeling_radio.core.opening import open_model
from modeling_radio.evaluation.models.radio import RadioFeatures


quantization = pytest.importorskip("torchao.quantization", reason="needs the extra `dev`")
pytestmark = pytest.mark.usefixtures("one_thread")


def config(**options):
    return TorchAoConfig(quantization.Int8DynamicActivationInt8WeightConfig(), **options)


@pytest.mark.parametrize("name", THREE_MODELS)
def test_every_model_opens_acts_and_opens_again(name, tmp_path):
    model_class, _ = EVERY_MODEL[name]
    plain = build(name).eval()
    plain.save_pretrained(tmp_path / "plain")
    quantized = model_class.from_pretrained(tmp_path / "plain", quantization_config=config()).eval()
    quantized.save_pretrained(tmp_path / "int8")
    again = model_class.from_pretrained(tmp_path / "int8").eval()
    pixel_values = images(2)
    with torch.no_grad():
        expected, output, repeated = (
            tensors_of(model(pixel_values=pixel_values))[0] for model in (plain, quantized, again)
        )
    assert not torch.equal(output, expected)
    assert cosine_similarity(output.flatten(), expected.flatten(), dim=0) > 0.99
    assert torch.equal(output, repeated)
    sizes = [(tmp_path / folder / "model.safetensors").stat().st_size for folder in ("int8", "plain")]
    assert sizes[0] < sizes[1]


def test_a_saved_folder_opens_as_strangers_open_it_and_as_our_commands_do(tmp_path):
    build("backbone with adaptors").save_pretrained(tmp_path / "plain")
    model = AutoModel.from_pretrained(tmp_path / "plain", trust_remote_code=True, quantization_config=config()).eval()
    model.save_pretrained(tmp_path / "int8")
    pixel_values = images(2)
    with torch.no_grad():
        expected = model(pixel_values).features
        for again in (
            AutoModel.from_pretrained(tmp_path / "int8", trust_remote_code=True),
            open_model(tmp_path / "int8", dtype=None, as_backbone=True).model,
        ):
            assert torch.equal(again.eval()(pixel_values).features, expected)


def test_evaluations_know_a_folder_in_8_bits_from_others(tmp_path):
    build("backbone with adaptors").save_pretrained(tmp_path / "plain")
    quantized = RadioModel.from_pretrained(tmp_path / "plain", quantization_config=config()).eval()
    quantized.save_pretrained(tmp_path / "int8")
    plain, int8, again = (RadioFeatures.open(tmp_path / name, size_px=64) for name in ("plain", "int8", "int8"))
    assert plain.fingerprint() != int8.fingerprint() == again.fingerprint()


def test_broken_weights_in_8_bits_are_refused(tmp_path):
    model = build("backbone with adaptors")
    with torch.no_grad():
        model.radio_model.model.blocks[0].mlp.fc1.weight[0, 0] = torch.nan
    model.save_pretrained(tmp_path / "plain")
    RadioModel.from_pretrained(tmp_path / "plain", quantization_config=config()).save_pretrained(tmp_path / "int8")
    with pytest.raises(ValueError, match=r"NaN or infinity: radio_model\.model\.blocks\.0\.mlp\.fc1\.weight"):
        open_model(tmp_path / "int8", dtype=None, as_backbone=True)
