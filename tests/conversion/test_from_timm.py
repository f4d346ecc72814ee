"""Weights that timm trained come back into a folder of ours, whose tokens are then timm's."""

import pytest
import torch
from safetensors.torch import save_file

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.conversion.from_timm import from_timm, main
from modeling_radio.conversion.to_timm import main as to_timm


timm = pytest.importorskip("timm")
pytestmark = pytest.mark.usefixtures("one_thread")
ADAPTORS = [{"name": "sam3", "hidden_size": 8, "feature_dim": 6, "summary_dim": 4}]


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    folder = tmp_path_factory.mktemp("timm") / "ours"
    RadioModel(RadioConfig.from_preset("radio-test", adaptors=ADAPTORS)).save_pretrained(folder)
    return folder


@pytest.fixture
def trained(ours, tmp_path):
    """timm's network with a classifier, with other weights everywhere."""
    assert to_timm([str(ours), str(tmp_path / "timm")]) == 0
    model = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True, img_size=64, num_classes=3).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def test_the_command_writes_a_folder_with_timms_tokens(ours, trained, tmp_path):
    save_file(trained.state_dict(), tmp_path / "trained.safetensors")
    assert main([str(tmp_path / "trained.safetensors"), str(ours), str(tmp_path / "back")]) == 0
    model, before = RadioModel.from_pretrained(tmp_path / "back").eval(), RadioModel.from_pretrained(ours)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = trained.forward_features(model.input_conditioner(images))
        torch.testing.assert_close(model(images).last_hidden_state, expected, rtol=0, atol=1e-4)
        assert model(torch.rand(1, 3, 96, 32)).features.shape[1] == 12
    assert model.max_resolution == before.max_resolution
    for name, tensor in before.adaptors.state_dict().items():
        assert torch.equal(model.adaptors.state_dict()[name], tensor)


def test_weights_of_another_network_are_named(ours, trained):
    state, model = trained.state_dict(), RadioModel.from_pretrained(ours)
    with pytest.raises(ValueError, match="`trained` lacks reg_token"):
        from_timm({key: tensor for key, tensor in state.items() if key != "reg_token"}, model)
    with pytest.raises(ValueError, match=r"missing: .*blocks\.0\.attn\.qkv\.weight"):
        from_timm({key: tensor for key, tensor in state.items() if key != "blocks.0.attn.qkv.weight"}, model)
    with pytest.raises(ValueError, match="`trained` has 8 positions"):
        from_timm({**state, "pos_embed": torch.zeros(1, 8, 32)}, model)
