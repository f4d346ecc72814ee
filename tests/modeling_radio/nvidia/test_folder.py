"""NVIDIA's Hub folders, opened as they are: weights tell what `config.json` does not, and all of them must fit."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from comparisons import assert_same_weights
from packaging.version import Version
from peft import LoraConfig, get_peft_model
from reference_cases import REFERENCE, load_training_file, write_hub_folder
from safetensors.torch import load_file, save_file

from modeling_radio import RadioConfig, RadioForImageClassification, RadioModel
from modeling_radio.conversion.from_nvidia import convert
from modeling_radio.conversion.verification import compare_with_reference, largest_difference


READS_HEADS = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.18"), reason="transformers leaves out the head"
)
SLOTS = "c_radio_v4_slots_tiny"
SUMMARY = "radio_model.summary_idxs"


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_hub_folder(SLOTS, tmp_path / "hub")


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **args) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["args"] |= args
    (folder / "config.json").write_text(json.dumps(config))


@torch.no_grad()
def outputs(model: RadioModel) -> list[torch.Tensor]:
    out = model.eval()(torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1)))
    heads = [head[part] for head in out.adaptors.values() for part in ("summary", "features")]
    return [out.summary, out.features, *heads]


@pytest.mark.parametrize("tokens", [[1, 2], [2, 0], [1], [0, 1, 2], [0, 5]])
def test_the_stored_summary_wins(tokens, folder, tmp_path):
    edit_weights(folder, lambda tensors: tensors.update({SUMMARY: torch.tensor(tokens)}))
    direct, converted = RadioModel.from_pretrained(folder), convert(folder)
    assert direct.config.summary_idxs == converted.config.summary_idxs == tokens
    with torch.no_grad():
        out = direct(torch.rand(1, 3, 32, 32))
    assert torch.equal(out.summary, out.last_hidden_state[:, tokens].flatten(1))
    for left, right in zip(outputs(direct), outputs(converted), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-6)
    direct.save_pretrained(tmp_path / "saved")
    again = RadioModel.from_pretrained(tmp_path / "saved")
    assert again.config.summary_idxs == tokens
    assert all(torch.equal(left, right) for left, right in zip(outputs(direct), outputs(again), strict=True))


def test_a_summary_behind_the_prefix_tokens_is_refused(folder):
    edit_weights(folder, lambda tensors: tensors.update({SUMMARY: torch.tensor([0, 8])}))
    for opened in (RadioModel.from_pretrained, convert):
        with pytest.raises(ValueError, match="`summary_idxs`"):
            opened(folder)


@pytest.mark.parametrize("field", ["hidden_dim", "output_dim"])
@pytest.mark.parametrize(("head", "width"), [("summary", 2**20), ("feature", 10**9)])
def test_a_width_that_no_tensor_of_an_adaptor_has_is_refused_before_it_is_built(
    head, field, width, folder, monkeypatch
):
    config = json.loads((folder / "config.json").read_text())
    config["adaptor_configs"]["sam3"][head][field] = width
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(RadioModel, "__init__", None)  # transformers would take the memory when it is built
    with pytest.raises(ValueError, match=rf"`adaptor_configs\.sam3\.{head}\.{field}` .* got {width}"):
        RadioModel.from_pretrained(folder)


def test_the_weights_tell_the_number_of_registers(folder):
    edit_config(folder, register_multiple=None, cpe_num_registers=0)
    assert RadioModel.from_pretrained(folder).config.num_registers == 5
    config = RadioConfig.from_pretrained(folder)
    assert config.num_registers == 0
    model = RadioModel.from_pretrained(folder, config=config)
    assert model.config.num_registers == 5
    assert largest_difference(compare_with_reference(model.eval(), REFERENCE / SLOTS / "expected.safetensors")) <= 1e-5


def test_arguments_of_the_call_win(folder):
    model = RadioModel.from_pretrained(folder, vitdet_window_size=2, dtype=torch.bfloat16)
    assert (model.config.vitdet_window_size, model.dtype) == (2, torch.bfloat16)
    model, loaded = RadioModel.from_pretrained(folder, output_loading_info=True)
    assert not any(loaded.values())
    assert isinstance(model, RadioModel)


def test_weights_in_several_files(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {key: f"model-{index % 2}.safetensors" for index, key in enumerate(tensors)}
    for name in set(names.values()):
        part = {key: tensor for key, tensor in tensors.items() if names[key] == name}
        save_file(part | ({SUMMARY: torch.tensor([2])} if SUMMARY in part else {}), folder / name, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names, "metadata": {}}))
    assert RadioModel.from_pretrained(folder).config.summary_idxs == [2]


def write_dino_folder(folder: Path) -> Path:
    """The DINOv2-shaped model in the Hub's layout, with all that its wrapper leaves in the file."""
    case = "radio_v2.5_g_tiny"
    content = load_training_file(case)
    args = {
        key: str(value) if isinstance(value, torch.dtype) else value for key, value in vars(content["args"]).items()
    }
    args["model_kwargs"] = {"embed_dim": 48, "depth": 6, "num_heads": 4}
    state, names = content["state_dict"], [teacher["name"] for teacher in args["teachers"]]
    heads = {"summary": "_heads", "feature": "_feature_projections"}
    shapes = {
        name: {
            part: {
                "hidden_dim": state[f"{prefix}.{name}.fc1.weight"].shape[0],
                "output_dim": state[f"{prefix}.{name}.final.2.weight"].shape[0],
                "num_inner": sum(key.startswith(f"{prefix}.{name}.blocks") for key in state) // 4,
                "upsample_factor": None,
            }
            for part, prefix in heads.items()
        }
        for name in names
        if f"_heads.{name}.fc1.weight" in state
    }
    config = {
        "args": args,
        "adaptor_names": list(shapes),
        "adaptor_configs": {name: {**parts, "head_idx": names.index(name)} for name, parts in shapes.items()},
        "version": "radio_v2.5-g",
    }
    return write_hub_folder(case, folder, config)


def test_a_wrapped_dino_has_one_token_whatever_its_buffer_lists(tmp_path):
    folder = write_dino_folder(tmp_path / "hub")
    assert len(load_file(folder / "model.safetensors")[SUMMARY]) == 3
    for model in (RadioModel.from_pretrained(folder).eval(), convert(folder)):
        assert (model.config.num_cls_tokens, model.config.num_registers, model.config.summary_idxs) == (1, 4, [0])
        comparisons = compare_with_reference(model, REFERENCE / "radio_v2.5_g_tiny" / "expected.safetensors")
        assert all(comparison.difference is not None for comparison in comparisons)
        assert largest_difference(comparisons) <= 1e-5


def write_radio1d_folder(folder: Path) -> Path:
    """A RADIO1D with LayerScale, which its files name as torch's other networks do."""
    write_hub_folder("radio1d_tiny", folder)
    config = json.loads((folder / "config.json").read_text())
    config["args"]["model_kwargs"]["init_values"] = 1e-5
    (folder / "config.json").write_text(json.dumps(config))
    keys = {f"radio_model.model.blocks.{block}.ls{branch}.gamma": block for block in range(5) for branch in (1, 2)}
    scales = {key: torch.rand(16 if block < 3 else 32) for key, block in keys.items()}
    edit_weights(folder, lambda tensors: tensors.update(scales))
    return folder


@pytest.mark.parametrize("write_folder", [write_dino_folder, write_radio1d_folder])
def test_what_is_saved_again_has_our_keys(write_folder, tmp_path):
    direct = RadioModel.from_pretrained(write_folder(tmp_path / "hub"))
    direct.save_pretrained(tmp_path / "saved")
    assert load_file(tmp_path / "saved" / "model.safetensors").keys() == direct.state_dict().keys()
    assert_same_weights(RadioModel.from_pretrained(tmp_path / "saved"), direct)


# peft asks a model for `is_gradient_checkpointing`, which transformers is renaming.
trains_adapters = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def save_adapter(base: Path, folder: Path) -> RadioForImageClassification:
    """Save an adapter with a head as our training does, and return its model."""
    model = RadioForImageClassification.from_pretrained(base, num_labels=3)
    lora = LoraConfig(r=2, target_modules=["qkv"], modules_to_save=["classifier"], init_lora_weights=False)
    adapted = get_peft_model(model, lora)
    adapted.save_pretrained(folder)
    model.config.save_pretrained(folder)
    return adapted.eval()


@READS_HEADS
@trains_adapters
@torch.no_grad()
def test_an_adapter_is_opened_on_its_base(tmp_path):
    base = write_dino_folder(tmp_path / "hub")
    pixels = torch.rand(1, 3, 28, 42)
    expected = save_adapter(base, tmp_path / "adapter")(pixels).logits
    opened = RadioForImageClassification.from_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(opened(pixels).logits, expected)
    (tmp_path / "adapter" / "config.json").unlink()  # transformers itself then finds the base
    opened = RadioForImageClassification.from_pretrained(tmp_path / "adapter", num_labels=3)
    torch.testing.assert_close(opened(pixels).logits, expected)


@READS_HEADS
@trains_adapters
def test_an_adapter_whose_base_does_not_fit_is_refused(folder, tmp_path):
    save_adapter(folder, tmp_path / "adapter")
    edit_weights(folder, lambda tensors: tensors.update({"radio_model.model.blocks.2.norm1.bias": torch.ones(3)}))
    with pytest.raises(ValueError, match=r"1 of another shape: radio_model\.model\.blocks\.2\.norm1\.bias"):
        RadioForImageClassification.from_pretrained(tmp_path / "adapter")


def test_one_token_for_all_in_a_hub_folder(folder):
    """NVIDIA's own class cannot open such a folder: there the answer is that of the same training file."""
    edit_config(folder, cls_token_per_teacher=False)
    direct, converted = RadioModel.from_pretrained(folder), convert(folder)
    for model in (direct, converted):
        assert (model.config.num_cls_tokens, model.config.num_registers, model.config.summary_idxs) == (1, 7, [0])
        assert {adaptor.token_index for adaptor in model.config.adaptor_configs} == {0}
    for left, right in zip(outputs(direct), outputs(converted), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-6)


@pytest.mark.parametrize("frames", [2, 3])
def test_the_width_of_a_weight_tells_the_frames_of_a_temporal_patch(frames, folder):
    key = "radio_model.model.patch_generator.video_embedder.weight"
    edit_weights(folder, lambda tensors: tensors.update({key: torch.ones(32, frames * 768)}))
    for opened in (RadioModel.from_pretrained, convert):
        model = opened(folder)
        assert model.config.video_temporal_patch_size == frames
        assert torch.equal(model.state_dict()[key], torch.ones(32, frames * 768))


@pytest.mark.parametrize("shape", [(32, 768), (32, 2000), (16, 1536)])
def test_a_projection_of_no_whole_number_of_frames_is_refused(shape, folder):
    key = "radio_model.model.patch_generator.video_embedder.weight"
    edit_weights(folder, lambda tensors: tensors.update({key: torch.ones(shape)}))
    for opened in (RadioModel.from_pretrained, convert):
        with pytest.raises(ValueError, match=rf"got \({shape[0]}, "):
            opened(folder)


def test_tensors_that_do_not_fit_are_all_named(folder):
    """transformers alone would draw the missing ones at random and go on."""

    def edit(tensors):
        del tensors["radio_model.model.blocks.1.attn.proj.bias"]
        del tensors["radio_model.adaptors.sam3.head_mlp.fc1.weight"]
        tensors["radio_model.model.blocks.0.ls1.grandma"] = torch.ones(32)
        tensors["radio_model.adaptors.sam3.head_mlp.norm.weight"] = torch.ones(32)
        tensors["radio_model.model.blocks.2.norm1.bias"] = torch.ones(3)

    edit_weights(folder, edit)
    with pytest.raises(ValueError, match="do not fit the architecture") as error:
        RadioModel.from_pretrained(folder)
    for part in (
        "2 unknown: radio_model.adaptors.sam3.head_mlp.norm.weight, radio_model.model.blocks.0.ls1.grandma",
        "2 missing: radio_model.adaptors.sam3.head_mlp.fc1.weight, radio_model.model.blocks.1.attn.proj.bias",
        "1 of another shape: radio_model.model.blocks.2.norm1.bias (3,) instead of (32,)",
    ):
        assert part in str(error.value)


def test_adaptors_that_are_not_asked_for_may_be_there(folder):
    model = RadioModel.from_pretrained(folder, adaptors=[], adaptor_names=[])
    assert not model.radio_model.adaptors
    classifier = RadioForImageClassification.from_pretrained(folder, num_labels=3)
    with torch.no_grad():
        assert classifier(torch.rand(1, 3, 32, 32)).logits.shape == (1, 3)


def name_no_adaptors(folder: Path) -> None:
    """Let the configuration say what NVIDIA's do: which adaptors there are, and to run none."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "adaptor_names": None}))


def test_adaptors_that_the_folder_describes_are_opened_by_name(folder):
    expected = RadioModel.from_pretrained(folder)
    name_no_adaptors(folder)
    assert not RadioModel.from_pretrained(folder).radio_model.adaptors
    asked = RadioModel.from_pretrained(folder, adaptor_names=["sam3"])
    assert list(asked.radio_model.adaptors) == asked.config.adaptor_names == ["sam3"]
    pixels = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(asked(pixels).adaptors["sam3"].features, expected(pixels).adaptors["sam3"].features)
    with pytest.raises(ValueError, match="`adaptor_names`"):
        RadioModel.from_pretrained(folder, adaptor_names=["clip"])


@pytest.mark.parametrize("shape", [(), (3,), (8, 31)])
def test_prefix_tokens_of_another_shape_are_named(shape, folder):
    key = "radio_model.model.patch_generator.cls_token.token"
    edit_weights(folder, lambda tensors: tensors.update({key: torch.ones(shape)}))
    with pytest.raises(ValueError, match=re.escape("`args.model_kwargs.embed_dim`, 32, got the shape")):
        RadioModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("size", "message"),
    [({"depth": 999_999}, "depth` .*999999"), ({"embed_dim": 999_996}, "embed_dim`, 9")],
)
def test_arguments_of_a_network_without_end_are_refused_at_once(size, message, folder):
    edit_config(folder, model_kwargs={"depth": 4, "embed_dim": 32, "num_heads": 4, **size})
    with pytest.raises(ValueError, match=rf"`args\.model_kwargs\.{message}"):
        RadioModel.from_pretrained(folder)
