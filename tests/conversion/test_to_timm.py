"""timm opens what the command writes, and its tokens are ours."""

import json

import pytest
import torch
from reference_cases import REFERENCE
from refusals import refused, wrong
from safetensors.torch import load_file

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.conversion.convert import main as from_nvidia
from modeling_radio.conversion.to_timm import main, timm_config


timm = pytest.importorskip("timm")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:The checkpoint does not tell its number of attention heads"),
]


@pytest.fixture(scope="module", params=["c_radio_v4_tiny", "c_radio_v3_aligned_tiny"])
def case(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folders(case, tmp_path_factory):
    root = tmp_path_factory.mktemp("timm")
    aligned = [f"config.pos_embed_align_corners={'aligned' in case}"]  # which the training file does not tell
    assert from_nvidia([str(REFERENCE / case / "checkpoint.pth.tar"), str(root / "ours"), *aligned]) == 0
    assert main([str(root / "ours"), str(root / "timm")]) == 0
    return root


def test_timm_gives_the_tokens_of_nvidia_at_their_sizes(case, folders):
    stored = load_file(REFERENCE / case / "expected.safetensors")
    config = RadioConfig.from_pretrained(folders / "ours")
    sizes = [key.split("/")[0] for key in stored if key.endswith("global/backbone/features")]
    assert sizes
    for size in sizes:
        shape = [int(side) for side in size.split("x")]
        model = timm.create_model(f"local-dir:{folders / 'timm'}", pretrained=True, img_size=shape).eval()
        mean, std = (torch.tensor(model.pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
        with torch.no_grad():
            tokens = model.forward_features((stored[f"{size}/image_uint8"] / 255 - mean) / std)
        features = tokens[:, config.num_prefix_tokens :]
        assert (features - stored[f"{size}/global/backbone/features"]).abs().max() <= 1e-4
        summary = tokens[:, config.summary_idxs].flatten(1)
        assert (summary - stored[f"{size}/global/backbone/summary"]).abs().max() <= 1e-4


def test_timms_own_size_is_the_preferred_one_and_it_makes_maps(folders):
    config = json.loads((folders / "timm" / "config.json").read_text())
    assert config["architecture"] in timm.list_models("*radio*")
    size = config["pretrained_cfg"]["input_size"]
    assert size[1:] == list(RadioConfig.from_pretrained(folders / "ours").preferred_resolution)
    model = timm.create_model(
        f"local-dir:{folders / 'timm'}", pretrained=True, features_only=True, img_size=64, out_indices=(0, 1)
    )
    assert [tuple(each.shape[2:]) for each in model(torch.rand(1, 3, 64, 64))] == [(4, 4), (4, 4)]


def test_layer_scale_and_own_sizes_come_along(tmp_path):
    config = RadioConfig.from_preset("radio-test", use_layer_scale=True, qkv_bias=False, patch_size=8)
    model = RadioModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "grandma" in name:
                parameter.uniform_(0.5, 1.5)
    model.save_pretrained(tmp_path / "ours")
    assert main([str(tmp_path / "ours"), str(tmp_path / "timm")]) == 0
    theirs = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True, img_size=(32, 48)).eval()
    images = torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        tokens = theirs.forward_features(model.input_conditioner(images))
        torch.testing.assert_close(tokens, model(images).last_hidden_state, rtol=0, atol=1e-4)


@wrong(use_final_norm=[True], use_swiglu_ffn=[True], use_patch_bias=[True])
def test_what_timm_lacks_is_named(name, value):
    refused(name, lambda: timm_config(RadioConfig.from_preset("radio-test", **{name: value})))


def test_a_folder_of_another_kind_stays(folders, tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert main([str(folders / "ours"), str(tmp_path), "--overwrite"]) == 1
    assert "`output`" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
