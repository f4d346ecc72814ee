"""Back to NVIDIA's training file: bit-equal wherever nothing was folded, and the same network again."""

import json
from argparse import Namespace

import pytest
import torch
from reference_cases import REFERENCE, load_training_file
from refusals import wrong
from safetensors.torch import save_file
from tiny_navit import build_navit
from tiny_radio1d import build_radio1d

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.conversion.convert import main as from_nvidia
from modeling_radio.conversion.from_nvidia import convert
from modeling_radio.conversion.to_nvidia import main as to_nvidia
from modeling_radio.conversion.to_nvidia import training_file_content
from modeling_radio.conversion.verification import compare_with_reference, largest_difference
from modeling_radio.eradio_radio import eradio_fields
from modeling_radio.nvidia import eradio


pytestmark = [
    pytest.mark.filterwarnings("ignore:The checkpoint does not tell its number of attention heads"),
    pytest.mark.filterwarnings("ignore:The summary head of 'dino_v3' reads token 4"),
]
TOKEN_CASES = (
    *("c_radio_v4_slots_tiny", "c_radio_v4_partitions_tiny", "c_radio_v4_register_slot_tiny"),
    *("c_radio_v4_one_token_tiny", "radio1d_tiny", "radio1d_progressive_tiny"),
    *("navit_tiny", "navit_windows_tiny", "navit_attn_pool_tiny", "navit_post_norm_tiny", "navit_xattn_tiny"),
)
CASES = ("c_radio_v4_tiny", "c_radio_v3_tiny", "radio_v2.5_tiny", "radio_v2.5_g_tiny", "radio_v2_tiny", *TOKEN_CASES)
HEAD = {"summary_dim": 12, "feature_dim": 8, "hidden_size": 16}


def load(path) -> dict:
    with torch.serialization.safe_globals([Namespace]):
        return torch.load(path, weights_only=True)


def assert_same_model(left: RadioModel, right: RadioModel) -> None:
    configs = [model.config.to_dict() for model in (left, right)]
    for config in configs:
        config["nvidia_source"]["args"]["spectral_reparam"] = None  # the one argument that folding changes
    assert configs[0] == configs[1]
    tensors = right.state_dict()
    assert left.state_dict().keys() == tensors.keys()
    for key, tensor in left.state_dict().items():
        assert torch.equal(tensor, tensors[key]), key


@pytest.mark.parametrize("case", CASES)
def test_there_back_and_there_again_is_bit_equal(case, reference, tmp_path):
    source, folder, back = reference / case / "checkpoint.pth.tar", tmp_path / "out", tmp_path / "back.pth.tar"
    assert from_nvidia([str(source), str(folder)]) == 0
    assert to_nvidia([str(folder), str(back)]) == 0
    assert_same_model(convert(source), convert(back))


@pytest.mark.parametrize("case", CASES)
def test_what_was_not_folded_is_bit_equal(case, reference, training_file):
    original = training_file(case)
    state = original.get("state_dict_ema") or original["state_dict"]
    back = training_file_content(convert(reference / case / "checkpoint.pth.tar"))
    written = back["state_dict"]
    folded = (
        ("attn.proj.", "mlp.fc2.", "mlp.w3.", ".ls1.", ".ls2.") if any(key.endswith("grandma") for key in state) else ()
    )
    for key, tensor in state.items():
        if case == "navit_attn_pool_tiny":  # older names
            key = key.replace("norm1.", "norm_attn_pre.").replace("norm2.", "norm_mlp_pre.")
        in_block = ".blocks." in key and key.startswith("base_model")
        if "parametrizations" in key or key.endswith(("reg_token", "mask_token")) or "base_model.input_cond" in key:
            assert key not in written
        elif in_block and any(part in key for part in folded):
            assert written[key].shape == tensor.shape
        else:
            assert torch.equal(written[key], tensor), key
    assert all((tensor == 1).all() for key, tensor in written.items() if key.endswith("grandma"))
    assert (back["arch"], back["epoch"]) == (original["arch"], original["epoch"])
    unfolded = {**vars(original["args"]), "spectral_reparam": False}
    assert vars(back["args"]) == unfolded


def test_our_own_network_describes_itself(tmp_path):
    """What this repository trains goes there too: arguments are made up from the configuration."""
    config = RadioConfig.from_preset(
        "radio-test",
        hidden_size=64,
        use_layer_scale=True,
        layerscale_value=0.3,
        adaptors=[
            {"name": "siglip2-g", "token_index": 0, **HEAD, "feature_head": "attention"},
            {"name": "sam3", "token_index": 2, **HEAD, "upsample_factor": 2},
        ],
    )
    model = RadioModel(config).eval()
    model.save_pretrained(tmp_path / "ours")
    assert to_nvidia([str(tmp_path / "ours"), str(tmp_path / "back.pth.tar")]) == 0
    args = load(tmp_path / "back.pth.tar")["args"]
    assert [teacher["name"] for teacher in args.teachers] == ["siglip2-g", "teacher_1", "sam3"]
    assert [teacher["use_summary"] for teacher in args.teachers] == [True, True, False]
    again = convert(tmp_path / "back.pth.tar")
    batch = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        left, right = model(batch), again(batch)
    torch.testing.assert_close(left.summary, right.summary, rtol=0, atol=1e-5)  # LayerScale is folded now
    for name in ("siglip2-g", "sam3"):
        for part in ("summary", "features"):
            torch.testing.assert_close(left.adaptors[name][part], right.adaptors[name][part], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "positions", "slots"),
    [
        ((2, 0, 1), ["b", "c", "a"], [None, None, None]),
        ((0, 0, 1), ["a", "c", "b"], [None, None, 0]),  # two heads of one token
        ((1, 1, 1), ["b", "a", "c"], [1, None, 1]),
    ],
)
def test_heads_of_other_tokens_than_their_position_get_slots(tokens, positions, slots, tmp_path):
    heads = [{"name": name, "token_index": token, **HEAD} for name, token in zip("abc", tokens, strict=True)]
    model = RadioModel(RadioConfig.from_preset("radio-test", adaptors=heads, summary_idxs=[0, 2])).eval()
    content = training_file_content(model)
    assert [teacher["name"] for teacher in content["args"].teachers] == positions
    assert [teacher.get("token_slot") for teacher in content["args"].teachers] == slots
    torch.save(content, tmp_path / "back.pth.tar")
    again = convert(tmp_path / "back.pth.tar")
    assert again.config.summary_idxs == [0, 2]
    assert_same_outputs(model, again)


@torch.no_grad()
def assert_same_outputs(left: RadioModel, right: RadioModel) -> None:
    batch = torch.rand(1, 3, 64, 96)
    one, other = left(batch), right(batch)
    torch.testing.assert_close(one.summary, other.summary, rtol=0, atol=1e-6)
    for name, head in one.adaptors.items():
        torch.testing.assert_close(head.summary, other.adaptors[name].summary, rtol=0, atol=1e-6)


def test_a_summary_of_a_hub_folder_that_no_training_file_tells(hub_folder):
    """There every entry with a summary counts, in a training file only the first of a name."""
    folder = hub_folder("c_radio_v4_partitions_tiny")
    model = RadioModel.from_pretrained(folder)
    assert training_file_content(model)["args"].teachers == model.config.nvidia_source["args"]["teachers"]
    model.config.summary_idxs = [0, 1, 2]
    with pytest.raises(ValueError, match=r"`summary_idxs` .* got \[0, 1, 2\]"):
        training_file_content(model)


@pytest.mark.parametrize("versions", [("v1", "v2"), ("v2", "v1")])
@torch.no_grad()
def test_heads_of_two_versions_in_one_adaptor_go_there_and_back(versions, tmp_path):
    torch.manual_seed(0)
    summary, dense = versions
    head = {"name": "clip", "token_index": 1, "hidden_size": 16, "summary_dim": 12, "feature_dim": 8}
    head |= {"mlp_version": summary, "feature_mlp_version": dense}
    model = RadioModel(RadioConfig.from_preset("radio-test", adaptors=[head])).eval()
    kinds = [type(part).__name__ for part in (model.adaptors["clip"].head_mlp, model.adaptors["clip"].feat_mlp)]
    assert kinds == [{"v1": "RadioHeadMLPv1", "v2": "RadioHeadMLP"}[version] for version in versions]
    content = training_file_content(model)
    torch.save(content, tmp_path / "model.pth.tar")
    again, images = convert(tmp_path / "model.pth.tar", overrides={"num_attention_heads": 2}), torch.rand(1, 3, 32, 48)
    assert again.config.adaptor("clip").feature_mlp_version == dense
    for left, right in zip(
        model(images).adaptors["clip"].values(), again(images).adaptors["clip"].values(), strict=True
    ):
        assert torch.equal(left, right)
    entry = {"output_dim": 8, "hidden_dim": 16, "num_inner": 1, "upsample_factor": None}
    described = {"clip": {"summary": {**entry, "output_dim": 12}, "feature": entry}}
    args = {name: value for name, value in vars(content["args"]).items() if not isinstance(value, torch.dtype)}
    config = RadioConfig.from_dict({"args": args, "adaptor_names": ["clip"], "adaptor_configs": described})
    assert (config.adaptor("clip").mlp_version, config.adaptor("clip").feature_mlp_version) == versions


ERADIO = REFERENCE / "e_radio_tiny"
ERADIO_ARGUMENTS = json.loads((ERADIO / "eradio_arguments.json").read_text())


def test_round_trip_through_a_folder(tmp_path):
    assert from_nvidia([str(ERADIO / "checkpoint.pth.tar"), str(tmp_path / "ours"), "--version", "e-radio_v2"]) == 0
    assert RadioConfig.from_pretrained(tmp_path / "ours").version == "e-radio_v2"
    (tmp_path / "back").mkdir()
    file = tmp_path / "back" / "model.pth.tar"
    assert to_nvidia([str(tmp_path / "ours"), str(file)]) == 0
    with torch.serialization.safe_globals([type(load_training_file("e_radio_tiny")["args"])]):
        content = torch.load(file, weights_only=True)
    theirs = load_training_file("e_radio_tiny")
    assert vars(content["args"]) == vars(theirs["args"])
    assert content["state_dict"].keys() == theirs["state_dict"].keys()
    assert all(torch.equal(content["state_dict"][key], tensor) for key, tensor in theirs["state_dict"].items())
    assert json.loads((file.parent / "eradio_arguments.json").read_text()) == ERADIO_ARGUMENTS
    again = compare_with_reference(convert(file), ERADIO / "expected.safetensors")
    assert largest_difference(again) <= 1e-5


def write_eradio_hub_layout(folder, **changes):
    content = load_training_file("e_radio_tiny")
    state = {
        key.replace("base_model.", "radio_model.model.").replace("input_cond", "radio_model.input_cond"): tensor
        for key, tensor in content["state_dict"].items()
    }
    teachers = content["args"].teachers  # the file lists them, though the mean of the features stands for all
    places = [place for place, teacher in enumerate(teachers) if teacher.get("use_summary", True)]
    state["radio_model.summary_idxs"] = torch.tensor(places)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    args = {**vars(content["args"]), "amp_dtype": "bfloat16", "dtype": "float32", **changes}
    (folder / "config.json").write_text(json.dumps({"args": args, "version": "e-radio_v2"}))


RADIO1D_KINDS = {
    "plain": {},
    "two mergings": {"downscale_levels": [0, 2], "decoder_depth": 3, "decoder_upscale_levels": [1, 2]},
    "three mergings": {
        "downscale_levels": [0, 1, 2],
        "decoder_depth": 4,
        "decoder_upscale_levels": [1, 2, 3],
        "hidden_size": 8,
    },
    "normed": {"qk_norm": True, "use_final_norm": True, "use_layer_scale": True, "layerscale_value": 0.5},
    "progressive": {"progressive_reduction": True, "qkv_bias": False, "num_registers": 6},
    "odd width": {"mlp_ratio": 3.74, "merged_intermediate_sizes": [119], "filler_grid_size": 3},
}


@pytest.fixture(params=list(RADIO1D_KINDS))
def radio1d(request) -> RadioModel:
    radio1d = build_radio1d(**RADIO1D_KINDS[request.param])
    for name, tensor in radio1d.named_parameters():
        torch.nn.init.normal_(tensor, std=0.3) if "norm" in name or "grandma" in name else None
    return radio1d


def radio1d_tensors(radio1d: RadioModel) -> list[torch.Tensor]:
    torch.manual_seed(1)
    batch = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        out = radio1d(batch, num_tokens=1, adaptor_names=[])
    return [out.summary, out.features, out.global_tokens, out.global_summary]


def test_the_hub_layout_opens_directly_and_by_conversion(radio1d, tmp_path):
    content = training_file_content(radio1d)
    args = {name: value for name, value in vars(content["args"]).items() if "dtype" not in name}
    backbone = "base_model."
    tensors = {
        key.replace(backbone, "radio_model.model.").replace("input_cond", "radio_model.input_cond"): tensor
        for key, tensor in content["state_dict"].items()
        if key.startswith((backbone, "input_cond"))
    }
    tensors["radio_model.summary_idxs"] = torch.tensor(radio1d.config.summary_idxs)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps({"args": args, "adaptor_names": None, "adaptor_configs": {}}))
    for again in (RadioModel.from_pretrained(tmp_path).eval(), convert(tmp_path)):
        for left, right in zip(radio1d_tensors(radio1d), radio1d_tensors(again), strict=True):
            torch.testing.assert_close(left, right, rtol=0, atol=1e-5)


@wrong(
    SwiGLU=[{"use_swiglu_ffn": True}],
    patch_size=[{"patch_size": 8}],
    summary_idxs=[{"summary_idxs": [1, 0]}],
    hidden_act=[{"hidden_act": "quick_gelu"}],
    layer_norm_eps=[{"layer_norm_eps": 1e-5}],
    adaptors=[{"adaptors": [{"name": name, **HEAD} for name in "abcd"]}],
    name=[{"adaptors": [{"name": "a\nb", **HEAD}]}],
)
def test_what_nvidias_code_cannot_build_is_refused(name, value):
    with pytest.raises(ValueError, match=name):
        training_file_content(RadioModel(RadioConfig.from_preset("radio-test", **value)))


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ({"args": 5}, "args"),
        ({"args": {"model": "x", "teachers": 5}}, "args.teachers"),
        ({"args": {"teachers": [{"name": "a"}]}}, "args.model"),
        ({"heads": {"sam3": 7}}, "heads.sam3"),
        ({"epoch": "x"}, "epoch"),
    ],
)
def test_a_source_that_no_conversion_wrote_is_refused_by_name(source, named):
    model = RadioModel(RadioConfig.from_preset("radio-test", num_hidden_layers=1))
    model.config.nvidia_source = source
    with pytest.raises(ValueError, match=rf"`nvidia_source\.{named}`"):
        training_file_content(model)


def test_a_hub_folder_becomes_a_training_file_beside_which_an_earlier_one_is_replaced(hub_folder):
    folder = hub_folder("c_radio_v3_tiny")
    (folder / "back.pth.tar").touch()
    assert to_nvidia([str(folder), str(folder / "back.pth.tar")]) == 1
    assert to_nvidia([str(folder), str(folder / "back.pth.tar"), "--overwrite"]) == 0
    left, right = convert(folder).state_dict(), convert(folder / "back.pth.tar").state_dict()
    assert all(torch.equal(tensor, right[key]) for key, tensor in left.items())
    name = convert(folder).config.adaptor_names[-1]
    back = training_file_content(convert(folder, adaptors=[name]))["state_dict"]
    assert len({key.split(".")[1] for key in back if key.startswith(("_heads", "_feature"))}) == 1


def test_an_e_radio_of_ours_needs_the_arguments_beside_its_file(tmp_path, capsys):
    model = RadioModel(RadioConfig(**eradio_fields(ERADIO_ARGUMENTS), adaptors=[{"name": "clip", **HEAD}])).eval()
    model.save_pretrained(tmp_path / "ours")
    file, beside = tmp_path / "model.pth.tar", tmp_path / "eradio_arguments.json"
    assert to_nvidia([str(tmp_path / "ours"), str(file)]) == 0
    assert_same_outputs(model, convert(file))
    beside.write_text(json.dumps({**ERADIO_ARGUMENTS, "cpb_mlp_hidden": 4}))
    assert to_nvidia([str(tmp_path / "ours"), str(tmp_path / "second.pth.tar")]) == 1
    assert "arguments of another E-RADIO" in capsys.readouterr().err
    assert not (tmp_path / "second.pth.tar").exists()
    with pytest.raises(ValueError, match="cpb_mlp"):
        convert(file)
    beside.unlink()
    with pytest.raises(ValueError, match=r"eradio_arguments\.json"):
        convert(file)
    content = training_file_content(model)
    del content["state_dict"]["input_conditioner.norm_std"]
    torch.save(content, file)
    beside.write_text(json.dumps(ERADIO_ARGUMENTS))
    with pytest.raises(ValueError, match="norm_std"):
        convert(file)


def test_an_e_radio_opens_from_the_hub_layout(tmp_path, monkeypatch):
    write_eradio_hub_layout(tmp_path, cpe_max_size=2048)
    (tmp_path / "eradio_arguments.json").write_text(json.dumps(ERADIO_ARGUMENTS))
    assert largest_difference(compare_with_reference(convert(tmp_path), ERADIO / "expected.safetensors")) <= 1e-5
    with pytest.raises(ValueError, match=r"radio convert"):
        RadioModel.from_pretrained(tmp_path)
    monkeypatch.setitem(eradio.PUBLISHED, "eradio", ERADIO_ARGUMENTS)  # a small one in its place
    write_eradio_hub_layout(tmp_path, model="eradio")
    model, report = RadioModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert largest_difference(compare_with_reference(model.eval(), ERADIO / "expected.safetensors")) <= 1e-5


def test_the_published_e_radio_needs_no_arguments():
    with torch.device("meta"):  # its weights would be 1.5 GB
        content = training_file_content(RadioModel(RadioConfig.from_preset("e-radio_v2")))
    assert (content["args"].model, content["args"].cpe_max_size) == ("eradio", None)
    table = "base_model.levels.3.blocks.4.attention_blocks.0.attn.pos_emb_funct.relative_coords_table"
    assert content["state_dict"][table].shape == (1, 31, 31, 2)


def test_radio1d_there_and_back(radio1d, tmp_path):
    content = training_file_content(radio1d)
    assert not any("grandma" in key for key in content["state_dict"])
    torch.save(content, tmp_path / "file.pth.tar")
    again = convert(tmp_path / "file.pth.tar")
    assert all(torch.equal(*pair) for pair in zip(radio1d_tensors(radio1d), radio1d_tensors(again), strict=True))
    assert again.state_dict().keys() == radio1d.state_dict().keys()


@pytest.mark.parametrize(("field", "value"), [("patch_size", 8), ("merged_intermediate_sizes", [100])])
def test_a_radio1d_that_nvidia_cannot_build_is_refused(field, value):
    with pytest.raises(ValueError, match=f"`{field}`"):
        training_file_content(build_radio1d(**{field: value}))


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({}, {"vitdet_window_size": 2, "use_layer_scale": True}),
        ({"pool_type": "attn_qknorm", "norm_layer": "rmsnorm", "norm_method": "post"}, {"qkv_bias": False}),
        ({"post_norm_affine": True, "rope_base": 100, "rope_fraction": 0.5, "inner_summary_idxs": [1]}, {}),
        ({"scaled_by_depth": True}, {"use_layer_scale": True, "num_cls_tokens": 0, "summary_idxs": [], "adaptors": []}),
        ({"heads": {"teacher_a": {"num_heads": 1, "use_layer_scale": False, "target_grid": [2, 3]}}}, {}),
    ],
)
def test_a_navit_of_ours_is_the_same_network_again(options, fields, tmp_path):
    model, images = build_navit(options, **fields), torch.rand(1, 3, 20, 28)
    torch.save(training_file_content(model), tmp_path / "there.pth.tar")
    again = convert(tmp_path / "there.pth.tar")
    with torch.no_grad():
        expected, found = (each(images) for each in (model, again))
        assert torch.equal(found.summary, expected.summary)
        assert torch.equal(found.features, expected.features)
        for name, answer in expected.adaptors.items():
            assert torch.equal(found.adaptors[name].features, answer.features)
        blocks = [each.get_intermediate_features(images, [0])[0].summary for each in (model, again)]
    assert torch.equal(*blocks)
