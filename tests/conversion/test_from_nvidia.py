"""NVIDIA's checkpoints, opened: every stored output is reproduced, and what does not fit is refused by name."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.conversion.convert import main
from modeling_radio.conversion.from_nvidia import convert
from modeling_radio.conversion.verification import compare_with_reference, largest_difference


pytestmark = [
    pytest.mark.filterwarnings("ignore:The checkpoint does not tell its number of attention heads"),
    pytest.mark.filterwarnings("ignore:The summary head of 'dino_v3' reads token 4"),
]
TOLERANCE = 1e-5
TOKEN_CASES = (
    *("c_radio_v4_slots_tiny", "c_radio_v4_partitions_tiny", "c_radio_v4_register_slot_tiny"),
    *("c_radio_v4_one_token_tiny", "c_radio_v3_aligned_tiny"),
)
MERGED_CASES = ("radio1d_tiny", "radio1d_progressive_tiny")
NAVIT_CASES = ("navit_tiny", "navit_windows_tiny", "navit_attn_pool_tiny", "navit_post_norm_tiny", "navit_xattn_tiny")
CASES = (
    *("c_radio_v4_tiny", "c_radio_v3_tiny", "radio_v2.5_tiny", "radio_v2.5_g_tiny", "radio_v2_tiny"),
    *("radio_video_tiny", "e_radio_tiny", *TOKEN_CASES, *MERGED_CASES, *NAVIT_CASES),
)
INPUTS = ("_uint8", "training/draws", "/num_tokens", "list/sizes", "homography/matrix")
NO_HUB_FOLDER = (
    *("radio_v2.5_g_tiny", "c_radio_v4_one_token_tiny", "radio1d_progressive_tiny", "e_radio_tiny"),
    "navit_xattn_tiny",
)
HUB_CASES = tuple(case for case in CASES if case not in NO_HUB_FOLDER)
# The attention head of "siglip2-g" cannot be expressed there; the release of RADIO1D has no heads at all.
NOT_IN_HUB_FOLDER = {"radio1d_tiny": {"siglip2-g", "dino_v3", "sam3"}}
# A training file does not say its version, and these networks do not have its size.
VERSIONS = {"c_radio_v3_aligned_tiny": "c-radio_v3-b"}


@pytest.mark.parametrize("case", CASES)
def test_training_file_gives_every_stored_output(case, reference):
    expected = reference / case / "expected.safetensors"
    model = convert(reference / case / "checkpoint.pth.tar", version=VERSIONS.get(case))
    comparisons = compare_with_reference(model, expected)
    assert {c.key for c in comparisons} == {key for key in load_file(expected) if not key.endswith(INPUTS)}
    assert all(comparison.difference is not None for comparison in comparisons)
    assert largest_difference(comparisons) <= TOLERANCE


@pytest.mark.parametrize("case", HUB_CASES)
def test_hub_folder_opened_directly_gives_every_stored_output(case, reference, hub_folder):
    model = RadioModel.from_pretrained(hub_folder(case)).eval()
    comparisons = compare_with_reference(model, reference / case / "expected.safetensors")
    assert largest_difference(comparisons) <= TOLERANCE
    assert absent_adaptors(comparisons) <= NOT_IN_HUB_FOLDER.get(case, {"siglip2-g"})


@pytest.mark.parametrize("case", HUB_CASES)
def test_hub_folder_opened_directly_has_the_configuration_of_the_converted(case, hub_folder):
    folder = hub_folder(case)
    direct, converted = RadioModel.from_pretrained(folder).config, convert(folder).config
    folded = {"use_layer_scale", "intermediate_size", "mlp_ratio"}
    for field in {field.name for field in dataclasses.fields(RadioConfig)} - folded:
        assert plain(getattr(direct, field)) == plain(getattr(converted, field)), field


def plain(value):
    """A value with its numbers as float32 has them: buffers of the file are less exact than constants."""
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    return torch.tensor(value).item() if isinstance(value, float) else value


def absent_adaptors(comparisons) -> set[str]:
    return {c.key.split("/")[-2] for c in comparisons if c.difference is None}


@pytest.mark.parametrize("case", HUB_CASES)
def test_hub_folder_and_training_file_agree(case, reference, hub_folder):
    left = convert(reference / case / "checkpoint.pth.tar", version=VERSIONS.get(case)).state_dict()
    right = convert(hub_folder(case)).state_dict()
    assert all(torch.equal(left[key], tensor) for key, tensor in right.items())


@pytest.mark.parametrize("case", ["c_radio_v4_tiny", "radio_v2.5_g_tiny", "e_radio_tiny", "radio1d_tiny", *VERSIONS])
def test_command_writes_a_folder_that_opens(case, reference, tmp_path, capsys):
    output, expected = tmp_path / "out", reference / case / "expected.safetensors"
    version = ["--version", VERSIONS[case]] if case in VERSIONS else []
    assert main([str(reference / case / "checkpoint.pth.tar"), str(output), "--verify", str(expected), *version]) == 0
    assert "beyond" not in capsys.readouterr().out
    model, info = RadioModel.from_pretrained(output, output_loading_info=True)
    assert not any(info.values())
    assert largest_difference(compare_with_reference(model.eval(), expected)) <= TOLERANCE
    files = {file.name for file in output.iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md", "modeling_radio.py"} <= files
    assert json.loads((output / "config.json").read_text())["auto_map"]["AutoModel"] == "modeling_radio.RadioModel"
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_moving_average_is_preferred_and_wrappers_are_stripped(reference, edited):
    def edit(content):
        average = content["state_dict_ema"]
        content["state_dict"] = {f"module.{key}": torch.full_like(value, 7.0) for key, value in average.items()}
        content["state_dict_ema"] = {f"module.{key}": value for key, value in average.items()}

    model = convert(edited("radio_v2_tiny", edit))
    original = convert(reference / "radio_v2_tiny" / "checkpoint.pth.tar").state_dict()
    assert all(torch.equal(value, original[key]) for key, value in model.state_dict().items())


def test_untold_number_of_heads_is_warned_about(reference):
    with pytest.warns(UserWarning, match="took 4 for width 48"):
        convert(reference / "radio_v2.5_g_tiny" / "checkpoint.pth.tar")


@pytest.mark.parametrize("case", ["c_radio_v4_tiny", "c_radio_v3_tiny"])
def test_native_transformers_opens_the_folder(case, reference, tmp_path):
    """Without trust: nothing missing, and the backbone's outputs are ours, bit for bit."""
    from transformers.models.radio import RadioModel as NativeRadioModel

    assert main([str(reference / case / "checkpoint.pth.tar"), str(tmp_path / "out")]) == 0
    native, info = NativeRadioModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert all("adaptors" in key for key in info["unexpected_keys"])
    ours, stored = (
        RadioModel.from_pretrained(tmp_path / "out").eval(),
        load_file(reference / case / "expected.safetensors"),
    )
    for key in (key for key in stored if key.endswith("image_uint8")):
        size = key.split("/")[0]
        with torch.no_grad():
            left, right = ours(stored[key] / 255), native.eval()(stored[key] / 255)
        for field in ("summary", "features"):
            assert torch.equal(left[field], right[field])
            difference = (right[field] - stored[f"{size}/global/backbone/{field}"]).abs().max()
            assert difference <= TOLERANCE


@pytest.mark.parametrize("case", ["radio_v2_tiny", "c_radio_v3_tiny"])
def test_verification_beyond_tolerance_fails_and_leaves_nothing(case, reference, hub_folder, tmp_path, capsys):
    """Other outputs are stored, or positions are resized in another way."""
    expected, changes = tmp_path / "expected.safetensors", []
    stored = load_file(reference / case / "expected.safetensors")
    if case == "radio_v2_tiny":
        stored = {key: value + 0.5 if value.is_floating_point() else value for key, value in stored.items()}
    else:
        changes = ["config.pos_embed_align_corners=true"]
    save_file(stored, expected)
    arguments = [str(hub_folder(case)), str(tmp_path / "out"), "--verify", str(expected), *changes]
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert "beyond" in captured.out
    assert "more than 1e-05" in captured.err
    assert not (tmp_path / "out").exists()
    assert main([*arguments, "--tolerance", "100"]) == 0


def test_unknown_and_missing_tensors_are_all_named(edited):
    def edit(content):
        state = content["state_dict"]
        del state["base_model.blocks.1.attn.proj.bias"], state["_heads.2.fc1.weight"]
        state["base_model.blocks.0.attn.q_norm.weight"] = state["_lora.down"] = torch.ones(4)
        state["base_model.blocks.2.norm1.bias"] = torch.ones(3)

    with pytest.raises(ValueError, match="do not fit") as error:
        convert(edited("c_radio_v4_tiny", edit))
    for part in (
        "2 unknown: base_model.blocks.0.attn.q_norm.weight, _lora.down",
        "2 missing: radio_model.model.blocks.1.attn.proj.bias, radio_model.adaptors.sam3.head_mlp.fc1.weight",
        "1 of another shape: base_model.blocks.2.norm1.bias (3,) instead of (64,)",
    ):
        assert part in str(error.value)


def lose_last_block(content):
    state = content["state_dict"]
    last = max(int(key.split(".")[2]) for key in state if key.startswith("base_model.blocks."))
    for key in [key for key in state if key.startswith(f"base_model.blocks.{last}.")]:
        del state[key]


def name_twice(content):
    content["state_dict"]["_heads.sam3.fc1.bias"] = content["state_dict"]["_heads.2.fc1.bias"]


def add_block(number):
    return lambda content: content["state_dict"].update({f"base_model.blocks.{number}.norm1.bias": torch.ones(64)})


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lose_last_block, r"missing: radio_model\.model\.blocks\.\d+\.$"),
        (add_block("9" * 5000), r"1 unknown: base_model\.blocks\.9999"),
        (add_block("9999"), r"missing: .* and 9,98\d more\.$"),
        (add_block("007"), r"1 unknown: base_model\.blocks\.007\.norm1\.bias"),
        (lambda content: content["args"].model_kwargs.update(depth=999_999), r"missing: .* and 999,9\d+ more\.$"),
        (name_twice, r"_heads\.(sam3|2)\.fc1\.bias and _heads\.(sam3|2)\.fc1\.bias"),
        (lambda content: content["args"].teachers[1].update(token_slot=1000), r"`adaptors\.dino_v3\.token_index`"),
        (lambda content: setattr(content["args"], "model", "radio1d_large_patch16_224"), r"`args\.model_kwargs\.down"),
    ],
)
def test_contradictions_in_a_file_are_refused_at_once_by_name(edit, named, edited):
    """Numbers of blocks that are made up neither hide a loss nor ask for blocks without end."""
    with pytest.raises(ValueError, match=named):
        convert(edited("c_radio_v4_tiny", edit))


def test_adaptors_and_fields_are_chosen_by_name(reference, tmp_path, capsys):
    source = str(reference / "c_radio_v4_tiny" / "checkpoint.pth.tar")
    assert convert(source, adaptors=["sam3", "siglip2-g"]).config.adaptor_names == ["siglip2-g", "sam3"]
    words = ["--adaptors", "none", "config.num_attention_heads=8", "config.vitdet_num_global=2"]
    assert main([source, str(tmp_path / "none"), *words]) == 0
    assert not any("adaptors" in key for key in load_file(tmp_path / "none" / "model.safetensors"))
    config = AutoConfig.from_pretrained(tmp_path / "none", trust_remote_code=True)
    assert (config.num_attention_heads, config.vitdet_num_global, config.adaptor_names) == (8, 2, [])
    for word, hint in (("--adaptors=dinov3", "dino_v3"), ("config.num_attention_head=6", "num_attention_heads")):
        assert main([source, str(tmp_path / "typo"), word]) == 1
        assert f"Did you mean '{hint}'?" in capsys.readouterr().err


@pytest.mark.parametrize(("slot", "token"), [(2, "a register"), (4, "the first patch")])
def test_a_head_of_another_token_is_warned_of(slot, token, edited):
    with pytest.warns(UserWarning, match=f"'dino_v3' reads token {slot}, {token}"):
        model = convert(
            edited("c_radio_v4_register_slot_tiny", lambda content: content["args"].teachers[1].update(token_slot=slot))
        )
    assert model.config.adaptor("dino_v3").token_index == slot


def test_half_precision_is_kept(edited, tmp_path):
    def edit(content):
        content["state_dict"] = {key: value.bfloat16() for key, value in content["state_dict"].items()}

    assert main([str(edited("c_radio_v3_tiny", edit)), str(tmp_path / "out")]) == 0
    stored = load_file(tmp_path / "out" / "model.safetensors").values()
    assert {tensor.dtype for tensor in stored} == {torch.bfloat16, torch.int64}
    assert RadioModel.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def test_an_earlier_folder_is_replaced_on_request_and_nothing_else(reference, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("mine")
    archive = shutil.copy(reference / "radio_v2_tiny" / "checkpoint.pth.tar", tmp_path / "in")
    content, source = Path(archive).read_bytes(), "in/checkpoint.pth.tar"
    for output in ("in", source, "in/../in", ".", "home"):
        assert main([source, output, "--overwrite"]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "`output`" in error
    assert Path(archive).read_bytes() == content
    assert (tmp_path / "home" / "thesis.txt").read_text() == "mine"
    assert main([source, "out"]) == 0
    stale = tmp_path / "out" / "model-00001-of-00002.safetensors"
    stale.write_text("old")
    assert main([source, "out"]) == 1
    assert stale.read_text() == "old"
    assert main([source, "out", "--overwrite", "--verify", "out/model.safetensors"]) == 1
    assert stale.read_text() == "old"
    assert main([source, "out", "--overwrite"]) == 0
    assert not stale.exists()
