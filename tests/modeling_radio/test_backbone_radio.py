"""RADIO under transformers' backbone interface."""

import pytest
import torch

from modeling_radio import RadioBackbone, RadioConfig, RadioModel


def test_maps_of_chosen_blocks():
    config = RadioConfig.from_preset("radio-test")
    config.out_indices = [0, 2, 4]
    backbone = RadioBackbone(config).eval()
    model = RadioModel(config).eval()
    model.load_state_dict(backbone.state_dict())
    batch = torch.rand(2, 3, 48, 80)
    with torch.no_grad():
        maps = backbone(batch, window_size=2).feature_maps
        out = model(batch, window_size=2, output_hidden_states=True, feature_format="NCHW")
    assert backbone.channels == [32, 32, 32]
    assert backbone.out_features == ["stem", "stage2", "stage4"]
    for feature_map, state in zip(maps[:2], (out.hidden_states[0], out.hidden_states[2]), strict=True):
        torch.testing.assert_close(feature_map.flatten(2).transpose(1, 2), state[:, 10:], rtol=0, atol=0)
    torch.testing.assert_close(maps[2], out.features, rtol=0, atol=0)


def test_feature_pyramid(tmp_path):
    config = RadioConfig.from_preset("radio-test", use_feature_pyramid=True, feature_pyramid_size=24)
    backbone = RadioBackbone(config)
    maps = backbone(torch.rand(2, 3, 48, 80)).feature_maps
    assert [tuple(m.shape[1:]) for m in maps] == [(24, 12, 20), (24, 6, 10), (24, 3, 5), (24, 2, 3)]
    sum(m.square().mean() for m in maps).backward()
    assert not [name for name, parameter in backbone.named_parameters() if parameter.grad is None]
    backbone.save_pretrained(tmp_path)
    batch = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        again = RadioBackbone.from_pretrained(tmp_path)(batch).feature_maps
        for left, right in zip(again, backbone.eval()(batch).feature_maps, strict=True):
            torch.testing.assert_close(left, right, rtol=0, atol=2e-6)


def test_sequences_for_heads_that_read_those():
    config = RadioConfig.from_preset("radio-test", out_indices=[0, 2, 4])
    backbone, batch = RadioBackbone(config).eval(), torch.rand(2, 3, 48, 80)
    with torch.no_grad():
        maps = backbone(batch).feature_maps
        backbone.config.reshape_hidden_states = False
        sequences = backbone(batch, output_hidden_states=True)
    for one, sequence, stage in zip(maps, sequences.feature_maps, (0, 2, 4), strict=True):
        torch.testing.assert_close(sequence[:, 1:], one.flatten(2).transpose(1, 2))
        if stage < 4:
            torch.testing.assert_close(sequence[:, 0], sequences.hidden_states[stage][:, 0])
    with pytest.raises(ValueError, match="`reshape_hidden_states`"):
        RadioConfig.from_preset("radio-test", use_feature_pyramid=True, reshape_hidden_states=False)


def test_a_saved_backbone_promises_no_adaptors(tmp_path):
    adaptors = [{"name": "dino_v3", "feature_dim": 8, "hidden_size": 8}]
    RadioModel(RadioConfig.from_preset("radio-test", adaptors=adaptors)).save_pretrained(tmp_path / "full")
    RadioBackbone.from_pretrained(tmp_path / "full").save_pretrained(tmp_path / "backbone")
    model, info = RadioModel.from_pretrained(tmp_path / "backbone", output_loading_info=True)
    assert not info["missing_keys"]
    assert not model.config.adaptors
