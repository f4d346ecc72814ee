"""Back to NVIDIA's training file: bit-equal wherever nothing was folded, and the same network again."""

from argparse import Namespace

import pytest
import torch

from conversion.from_nvidia import convert
from conversion.from_nvidia import main as from_nvidia
from conversion.to_nvidia import main as to_nvidia
from conversion.to_nvidia import training_file_content
from modeling_radio import RadioConfig, RadioModel


pytestmark = [
    pytest.mark.filterwarnings("ignore:The checkpoint does not tell its number of attention heads"),
    pytest.mark.filterwarnings("ignore:The summary head of 'dino_v3' reads token 4"),
]
TOKEN_CASES = (
    *("c_radio_v4_slots_tiny", "c_radio_v4_partitions_tiny", "c_radio_v4_register_slot_tiny"),
    *("c_radio_v4_one_token_tiny", "radio1d_tiny", "radio1d_progressive_tiny"),
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
    folded = ("attn.proj.", "mlp.fc2.", "mlp.w3.", ".ls1.", ".ls2.") if has_layer_scale(state) else ()
    for key, tensor in state.items():
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


def has_layer_scale(state) -> bool:
    return any(key.endswith("grandma") for key in state)


def test_missing_adaptors_stay_missing(reference):
    model = convert(reference / "c_radio_v4_tiny" / "checkpoint.pth.tar", adaptors=["sam3"])
    back = training_file_content(model)["state_dict"]
    assert {key.split(".")[1] for key in back if key.startswith(("_heads", "_feature"))} == {"2"}


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
    with pytest.raises(ValueError, match=r"`summary_idxs` must be \[0, 2\] of 3 class tokens .* got \[0, 1, 2\] of 3"):
        training_file_content(model)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"use_swiglu_ffn": True}, "no ViT with SwiGLU"),
        ({"patch_size": 8}, "`patch_size` must be 14 or 16 in NVIDIA's code, got 8"),
        ({"summary_idxs": [1, 0]}, "`summary_idxs` must ascend in NVIDIA's code"),
        ({"hidden_act": "quick_gelu"}, "`hidden_act` must be 'gelu' in NVIDIA's code, got 'quick_gelu'"),
        ({"layer_norm_eps": 1e-5}, "`layer_norm_eps` must be 1e-06 in NVIDIA's code, got 1e-05"),
        (
            {"adaptors": [{"name": name, **HEAD} for name in "abcd"]},
            r"`adaptors` must be no more than the class tokens \(3\) in a training file, got 4",
        ),
    ],
)
def test_what_nvidia_has_no_architecture_for(overrides, message):
    with pytest.raises(ValueError, match=message):
        training_file_content(RadioModel(RadioConfig.from_preset("radio-test", **overrides)))


def test_hub_folder_becomes_a_training_file(hub_folder, tmp_path):
    folder = hub_folder("c_radio_v3_tiny")
    assert to_nvidia([str(folder), str(tmp_path / "back.pth.tar")]) == 0
    left, right = convert(folder).state_dict(), convert(tmp_path / "back.pth.tar").state_dict()
    assert all(torch.equal(tensor, right[key]) for key, tensor in left.items())


def test_bad_input_is_one_line(tmp_path, capsys):
    assert to_nvidia([str(tmp_path), str(tmp_path / "back.pth.tar")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "there.pth.tar").write_text("mine")
    assert to_nvidia([str(tmp_path), str(tmp_path / "there.pth.tar")]) == 1
    assert "exists already" in capsys.readouterr().err


def test_a_full_disk_is_one_line_and_leaves_nothing(hub_folder, tmp_path, capsys, full_disk):
    folder, output = hub_folder("c_radio_v3_tiny"), tmp_path / "back.pth.tar"
    with full_disk():
        assert to_nvidia([str(folder), str(output)]) == 1
    assert f"to_nvidia: error: Cannot write {str(output)!r}: " in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("output", ["model.safetensors", "config.json", ".", ".."])
def test_nothing_of_the_checkpoint_is_replaced(output, hub_folder, capsys):
    folder = hub_folder("c_radio_v4_tiny")
    weights = (folder / "model.safetensors").read_bytes()
    assert to_nvidia([str(folder), str(folder / output), "--overwrite"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "`output` must not be or hold what is read, " in error
    assert (folder / "model.safetensors").read_bytes() == weights


def test_an_earlier_export_beside_the_weights_may_be_replaced(hub_folder):
    folder = hub_folder("c_radio_v4_tiny")
    (folder / "checkpoint.pth.tar").touch()
    assert to_nvidia([str(folder), str(folder / "checkpoint.pth.tar"), "--overwrite"]) == 0
    assert load(folder / "checkpoint.pth.tar")["arch"]


@pytest.mark.parametrize("text", ["[]", "{"])
def test_a_configuration_that_is_no_object_is_one_line(text, tmp_path, capsys):
    (tmp_path / "config.json").write_text(text)
    assert to_nvidia([str(tmp_path), str(tmp_path / "out.pth.tar")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "config.json' " in error


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"args": 5}, "`nvidia_source.args` must be a mapping, got 5"),
        ({"args": {"model": "x", "teachers": 5}}, "`nvidia_source.args.teachers` must be a list of at least one entry"),
        ({"args": {"teachers": [{"name": "a"}]}}, "`nvidia_source.args.model` must be given"),
        ({"heads": {"sam3": 7}}, "`nvidia_source.heads.sam3` must be one line of at most 200 characters, got 7"),
        ({"epoch": "x"}, "`nvidia_source.epoch` must be an integer in"),
    ],
)
def test_a_source_that_no_conversion_wrote_is_refused_by_name(source, message):
    model = RadioModel(RadioConfig.from_preset("radio-test", num_hidden_layers=1))
    model.config.nvidia_source = source
    with pytest.raises(ValueError, match=f"'config.json' is damaged, .*{message}"):
        training_file_content(model)


def test_a_name_that_could_not_be_read_back_is_refused():
    heads = [{"name": "a\nb", **HEAD}]
    with pytest.raises(ValueError, match=r"`args\.teachers\.0\.name` must be one line .* got 'a\\nb'|`name` of an ada"):
        training_file_content(RadioModel(RadioConfig.from_preset("radio-test", num_hidden_layers=1, adaptors=heads)))


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
