"""Towers out of Nemotrons and into them: out, in and out again gives equal tensors, and nothing else changes."""

import json
import shutil

import pytest
import torch
from local_hub import Repository, hub_in_place
from safetensors.torch import load_file, save_file
from tiny_nemotron import OUTPUT_SIZE, build_tower, save_nemotron
from transformers.models.nemotron_h_omni.configuration_nemotron_h_omni import NemotronH_Omni_Reasoning_V3_Config
from transformers.models.nemotron_h_omni.modeling_nemotron_h_omni import (
    NemotronH_Omni_Reasoning_V3,
    NemotronH_Omni_Reasoning_V3MultiModalProjector,
)
from transformers.models.radio import RadioConfig as NativeConfig

from modeling_radio import RadioConfig, RadioForImageClassification, RadioModel, engines
from modeling_radio.conversion.convert import main as convert
from modeling_radio.conversion.to_nemotron import main as put_in
from modeling_radio.nvidia.nemotron import files_of_tower
from modeling_radio.presets_radio import Size
from modeling_radio.projector import RadioProjector


SCALED = {"use_layer_scale": True}
VARIANTS = {
    "plain": ({}, {}),
    "one file": ({}, {"is_sharded": False}),
    "bare LayerScale, final norm": ({**SCALED, "use_final_norm": True}, {"scale": "ls{}"}),
    "grandma": (SCALED, {"scale": "ls{}.grandma"}),
    "transformers' LayerScale": (SCALED, {"scale": "layer_scale{}.lambda1", "has_args": False}),
    "native names": (SCALED, {"names": "native", "scale": "layer_scale{}.lambda1", "has_args": False}),
    "SGLang's names": ({"video_temporal_patch_size": 2}, {"names": "sglang", "has_args": False}),
    "bfloat16, video, registers": (
        {"video_temporal_patch_size": 2, "num_cls_tokens": 4, "num_registers": 6},
        {"dtype": torch.bfloat16},
    ),
}


@pytest.fixture(autouse=True)
def _tiny_towers_are_known(monkeypatch):
    """Engines hold published sizes alone."""
    monkeypatch.setitem(engines.TOWER_NAMES, "vit_huge_patch16_224", Size(32, 2, 2))


def tensors_of(folder):
    return {
        key: tensor for file in sorted(folder.glob("model*.safetensors")) for key, tensor in load_file(file).items()
    }


def assert_same(left, right):
    assert left.keys() == right.keys()
    assert [key for key in left if not torch.equal(left[key], right[key]) or left[key].dtype != right[key].dtype] == []


def last_error(capsys):
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.splitlines()[-1]


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_out_in_and_out_again_are_equal(variant, tmp_path, capsys):
    fields, layout = VARIANTS[variant]
    tower = build_tower(**fields)
    nemotron = save_nemotron(tmp_path / "nemotron", tower, **layout)
    assert convert([str(nemotron), str(tmp_path / "tower")]) == 0
    taken = RadioModel.from_pretrained(tmp_path / "tower").eval()
    tower.to(layout.get("dtype", torch.float32)).to(taken.dtype)
    assert_same(taken.state_dict(), tower.state_dict())
    images = torch.rand(2, 3, 64, 96, dtype=taken.dtype)
    assert torch.equal(taken(images).features, tower(images).features)
    assert put_in([str(tmp_path / "tower"), str(nemotron), str(tmp_path / "back")]) == 0
    assert "vLLM" in capsys.readouterr().out
    assert_same(tensors_of(tmp_path / "back"), tensors_of(nemotron))
    for name in ("config.json", "model.safetensors.index.json", "modeling_nemotron.py", "tokenizer.json"):
        if (nemotron / name).exists():
            assert (tmp_path / "back" / name).read_bytes() == (nemotron / name).read_bytes()
    assert convert([str(tmp_path / "back"), str(tmp_path / "again")]) == 0
    assert_same(tensors_of(tmp_path / "again"), tensors_of(tmp_path / "tower"))


@torch.no_grad()
def test_features_as_the_language_model_sees_them_are_those_of_transformers(tmp_path):
    tower = build_tower()
    nemotron = save_nemotron(tmp_path / "nemotron", tower)
    assert convert([str(nemotron), str(tmp_path / "tower"), "--projector"]) == 0
    projector, images = RadioProjector.from_pretrained(tmp_path / "tower"), torch.rand(2, 3, 64, 96)
    ours = projector(RadioModel.from_pretrained(tmp_path / "tower").eval()(images, feature_format="NCHW").features)
    assert ours.shape == (2, OUTPUT_SIZE, 2, 3)
    theirs = NemotronH_Omni_Reasoning_V3MultiModalProjector(128, 40, OUTPUT_SIZE)
    names = {"mlp1.0": "layer_norm", "mlp1.1": "linear_1", "mlp1.3": "linear_2"}
    stored = tensors_of(nemotron)
    theirs.load_state_dict({f"{name}.weight": stored[f"{key}.weight"] for key, name in names.items()})
    shuffled = NemotronH_Omni_Reasoning_V3.pixel_shuffle(None, tower(images).features.unflatten(1, (4, 6)))
    torch.testing.assert_close(ours, theirs(shuffled).movedim(-1, 1), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="`features`"):
        projector(torch.rand(1, 32, 3, 4))


@pytest.mark.parametrize("kind", [RadioModel, RadioForImageClassification])
@pytest.mark.filterwarnings("ignore:.*holds more than RADIO")
@torch.no_grad()
def test_another_tower_changes_its_own_tensors_alone(kind, tmp_path):
    """With other tokens and positions, adaptors or a head, and LayerScale folded on request."""
    nemotron = save_nemotron(tmp_path / "nemotron", build_tower(**SCALED))
    for name in ("assets/images/a.txt", ".cache/b.txt"):
        (nemotron / name).parent.mkdir(parents=True)
        (nemotron / name).write_text(name)
    adaptors = [{"name": "sam", "feature_dim": 4, "hidden_size": 8}]
    other = build_tower(
        **SCALED, num_cls_tokens=2, summary_idxs=[0], num_registers=3, max_img_size=128, adaptors=adaptors
    )
    other.save_pretrained(tmp_path / "other")
    arguments = [str(tmp_path / "other"), str(nemotron), str(tmp_path / "new"), "--fold-layer-scale"]
    assert put_in(arguments) == 0
    before, after = tensors_of(nemotron), tensors_of(tmp_path / "new")
    assert {key for key in before if not key.startswith("vision_model.")} <= after.keys()
    assert_same(*({k: v for k, v in each.items() if not k.startswith("vision_model.")} for each in (before, after)))
    assert not any(".ls" in key for key in after)
    untouched = "model-00001-of-00003.safetensors"
    assert (tmp_path / "new" / untouched).read_bytes() == (nemotron / untouched).read_bytes()
    assert (tmp_path / "new/assets/images/a.txt").read_text() == "assets/images/a.txt"
    assert not (tmp_path / "new/.cache").exists()
    index = json.loads((tmp_path / "new/model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == after.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in after.values())
    args = json.loads((tmp_path / "new/config.json").read_text())["vision_config"]["args"]
    assert (args["register_multiple"], args["cpe_max_size"], len(args["teachers"])) == (5, 128, 2)
    assert convert([str(tmp_path / "new"), str(tmp_path / "tower")]) == 0
    images = torch.rand(1, 3, 96, 64)
    features = RadioModel.from_pretrained(tmp_path / "tower").eval()(images).features
    assert (features - other.base_model(images).features).abs().max() <= 1e-6 * features.abs().max()


def test_only_files_of_the_tower_are_fetched_and_read(tmp_path, monkeypatch):
    nemotron = save_nemotron(tmp_path / "nemotron", build_tower())
    assert files_of_tower(nemotron) == ["model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"]
    (nemotron / "model-00001-of-00003.safetensors").write_bytes(b"damaged")
    files = {path.name: path.read_bytes() for path in nemotron.iterdir()}
    repository = Repository(private=False)
    repository.commit(files)
    with hub_in_place(monkeypatch, tmp_path / "cache") as hub:
        hub.repositories["models/nvidia/Nemotron-Tiny"] = repository
        assert convert(["nvidia/Nemotron-Tiny", str(tmp_path / "tower"), "--projector"]) == 0
        fetched = " ".join(map(str, hub.requests))
    assert "model-00002-of-00003" in fetched
    assert "model-00001-of-00003" not in fetched
    assert "modeling_nemotron.py" not in fetched
    assert (tmp_path / "tower" / "projector.safetensors").is_file()


def lose_a_shard(nemotron, checkpoint):
    (nemotron / "model-00002-of-00003.safetensors").unlink()
    return "model-00002-of-00003.safetensors"


def lose_a_shard_of_the_language_model(nemotron, checkpoint):
    (nemotron / "model-00001-of-00003.safetensors").unlink()
    return "model-00001-of-00003.safetensors"


def be_wider(nemotron, checkpoint):
    build_tower(hidden_size=48).save_pretrained(checkpoint)
    return "hidden_size is 48, not 32"


def have_layer_scale(nemotron, checkpoint):
    build_tower(**SCALED).save_pretrained(checkpoint)
    return "--fold-layer-scale"


def have_other_frames(nemotron, checkpoint):
    shutil.rmtree(nemotron)
    save_nemotron(nemotron, build_tower(video_temporal_patch_size=2))
    build_tower(video_temporal_patch_size=4).save_pretrained(checkpoint)
    return "video_temporal_patch_size is 4, not 2"


def have_one_file_beside_the_index(nemotron, checkpoint):
    shutil.copy(nemotron / "model-00002-of-00003.safetensors", nemotron / "model.safetensors")
    return "model.safetensors.index.json"


def change_index(nemotron, **changes):
    path = nemotron / "model.safetensors.index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def have_a_size_that_is_no_number(nemotron, checkpoint):
    change_index(nemotron, metadata={"total_size": "large"})
    return "`total_size`"


def lead_out_of_the_folder(nemotron, checkpoint):
    shutil.copy(nemotron / "model-00001-of-00003.safetensors", checkpoint / "stranger.safetensors")
    weight_map = json.loads((nemotron / "model.safetensors.index.json").read_text())["weight_map"]
    change_index(nemotron, weight_map={**weight_map, "language_model.0.weight": "../tower/stranger.safetensors"})
    return "`weight_map`"


def be_no_nemotron(nemotron, checkpoint):
    shutil.rmtree(nemotron)
    RadioModel(RadioConfig.from_preset("radio-test")).save_pretrained(nemotron)
    return "`nemotron`"


def be_held_by_none(nemotron, checkpoint):
    engines.TOWER_NAMES.pop("vit_huge_patch16_224")
    return "No engine holds this tower"


@pytest.mark.parametrize(
    "spoil",
    [
        *(lose_a_shard, lose_a_shard_of_the_language_model, be_wider, have_layer_scale, have_other_frames),
        *(have_one_file_beside_the_index, have_a_size_that_is_no_number, lead_out_of_the_folder),
        *(be_no_nemotron, be_held_by_none),
    ],
)
def test_failures_are_one_line_and_leave_nothing(spoil, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(engines, "TOWER_NAMES", dict(engines.TOWER_NAMES))
    nemotron = save_nemotron(tmp_path / "nemotron", build_tower())
    build_tower().save_pretrained(tmp_path / "tower")
    named = spoil(nemotron, tmp_path / "tower")
    assert put_in([str(tmp_path / "tower"), str(nemotron), str(tmp_path / "out")]) == 1
    assert named in last_error(capsys)
    assert {path.name for path in tmp_path.iterdir()} == {"nemotron", "tower"}


def test_what_is_no_tower_is_refused(tmp_path, capsys):
    nemotron = save_nemotron(tmp_path / "nemotron", build_tower())
    for open_folder in (RadioModel.from_pretrained, RadioConfig.from_pretrained):
        with pytest.raises(ValueError, match=r"radio convert .* tower"):
            open_folder(nemotron)
    assert convert([str(nemotron), str(tmp_path / "out"), "--adaptors", "sam"]) == 1
    assert "`adaptors`" in last_error(capsys)
    build_tower().save_pretrained(tmp_path / "plain")
    assert convert([str(tmp_path / "plain"), str(tmp_path / "out"), "--projector"]) == 1
    assert "`source`" in last_error(capsys)
    (nemotron / "model-00002-of-00003.safetensors").unlink()
    assert convert([str(nemotron), str(tmp_path / "out")]) == 1
    assert "model-00002-of-00003.safetensors" in last_error(capsys)
    assert not (tmp_path / "out").exists()


def test_a_damaged_projector_is_refused(tmp_path):
    projector = RadioProjector(32, 8, 4)
    projector.save_pretrained(tmp_path)
    sizes = projector.sizes()
    for name, value in (("merge_size", 1_000_000), ("hidden_size", 33)):
        (tmp_path / "projector.json").write_text(json.dumps({**sizes, name: value}))
        with pytest.raises(ValueError, match="merge_size" if name == "merge_size" else r"mlp1\.0\.weight"):
            RadioProjector.from_pretrained(tmp_path)
    projector.save_pretrained(tmp_path)
    state = {key: tensor.int() for key, tensor in projector.state_dict().items()}
    save_file(state, tmp_path / "projector.safetensors")
    with pytest.raises(ValueError, match=r"mlp1\.0\.weight"):
        RadioProjector.from_pretrained(tmp_path)


def test_a_nemotron_of_transformers_is_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"`patch_dim`.*`import modeling_radio`"):
        NemotronH_Omni_Reasoning_V3_Config(vision_config=NativeConfig(video_temporal_patch_size=2).to_dict())


def test_a_folder_without_most_of_the_trunk_is_no_model_at_random(tmp_path):
    model = build_tower()
    model.save_pretrained(tmp_path)
    others = {f"other.{key}": tensor for key, tensor in model.state_dict().items()}
    save_file(others, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"radio_model\.model\."):
        RadioModel.from_pretrained(tmp_path)
