import json
import re
from pathlib import Path

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from tiny_vits import IMAGE, SIZES, TIMM, build_vit
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipConfig, SiglipModel

from training.student.warm_start.vit import TRANSFORMERS_MODELS, UnknownTrunkError, VitTrunk, open_vit, vit_of


def assert_same_trunk(one: VitTrunk, other: VitTrunk) -> None:
    assert one.name == other.name
    assert torch.equal(one.patch, other.patch)
    for own, theirs in zip(one.blocks, other.blocks, strict=True):
        assert own.keys() == theirs.keys()
        assert all(torch.equal(own[key], theirs[key]) for key in own)


@pytest.mark.parametrize("name", ["vit", "vit_mae", "dinov2_registers", "dinov3", "siglip", "siglip2_flexible"])
def test_a_folder_of_transformers_opens_as_its_network(name: str, tmp_path: Path) -> None:
    network = build_vit(name)
    network.save_pretrained(tmp_path)
    trunk = open_vit(str(tmp_path))
    assert trunk is not None
    assert_same_trunk(trunk, vit_of(network))


@pytest.mark.gpu
def test_weights_are_read_from_a_gpu() -> None:
    """Where a teacher is the source it lies there, and the new student does not yet."""
    assert_same_trunk(vit_of(build_vit("siglip").cuda()), vit_of(build_vit("siglip")))


def test_the_vision_tower_of_a_whole_siglip_opens(tmp_path: Path) -> None:
    vision = {**SIZES, **IMAGE}
    whole = SiglipModel(SiglipConfig(vision_config=vision, text_config=SIZES))
    whole.save_pretrained(tmp_path)
    trunk = open_vit(str(tmp_path))
    assert trunk is not None
    assert torch.equal(trunk.blocks[1]["mlp.fc1.weight"], whole.vision_model.encoder.layers[1].mlp.fc1.weight)
    assert trunk.mean == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("processor", "mean", "std"),
    [
        ({"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}, [0.1, 0.2, 0.3], [1, 2, 3]),
        ({"do_normalize": False, "image_mean": [0.1] * 3, "image_std": [0.1] * 3}, [0.0] * 3, [1.0] * 3),
    ],
)
def test_the_expected_pixels_are_those_of_the_checkpoints_processor(
    processor: dict, mean: list, std: list, tmp_path: Path
) -> None:
    build_vit("vit").save_pretrained(tmp_path)
    assert open_vit(str(tmp_path)).mean == [0.5] * 3
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    trunk = open_vit(str(tmp_path))
    assert (trunk.mean, trunk.std) == (mean, std)


def test_a_folder_of_timm_opens_as_its_network(tmp_path: Path) -> None:
    network = build_vit("timm_dinov2")
    arguments = {**TIMM, "reg_tokens": 4, "no_embed_class": True}
    content = {
        "architecture": "vit_small_patch14_reg4_dinov2",
        "num_classes": 0,
        "model_args": arguments,
        "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 32, 32]},
    }
    (tmp_path / "config.json").write_text(json.dumps(content))
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    trunk = open_vit(str(tmp_path))
    assert trunk is not None
    assert_same_trunk(trunk, vit_of(network))
    assert list(trunk.mean) == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("content", [None, "no JSON", "[1]", '{"model_type": "radio"}', '{"model_type": "clip"}'])
def test_what_is_no_such_vit_is_left_to_others(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert open_vit(str(tmp_path)) is None


def test_every_class_is_one_of_transformers() -> None:
    assert all(hasattr(transformers, name) for name in TRANSFORMERS_MODELS.values())


def test_a_checkpoint_without_some_weights_is_refused(tmp_path: Path) -> None:
    network = build_vit("vit")
    network.save_pretrained(tmp_path)
    state = {key: value for key, value in network.state_dict().items() if not key.startswith("layers.1.")}
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        UnknownTrunkError, match=r"16 of its weights are missing or of another shape, such as 'layers\.1"
    ):
        open_vit(str(tmp_path))


def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path) -> None:
    build_vit("vit").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UnknownTrunkError, match="it does not load: ") as error:
        open_vit(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_pickle_runs_no_code(tmp_path: Path) -> None:
    """transformers takes tensors alone from `pytorch_model.bin`."""
    network = build_vit("vit")
    network.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    marker = tmp_path / "marker"

    class Harmful:
        def __reduce__(self):
            return Path.touch, (marker,)

    torch.save({**network.state_dict(), "harm": Harmful()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UnknownTrunkError, match="it does not load"):
        open_vit(str(tmp_path))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CLIPVisionModel(CLIPVisionConfig(**SIZES, **IMAGE)), "it is a CLIPVisionModel, and must be one of"),
        (
            lambda: timm.create_model("vit_base_patch16_clip_224", **TIMM),
            "it has a layer before the first block that RADIO has not, 'norm_pre.weight'",
        ),
        (
            lambda: timm.create_model("vit_small_patch16_224", qk_norm=True, **TIMM),
            "its blocks have a weight that RADIO's have no place for, 'blocks.0.attn.q_norm.weight'",
        ),
        (
            lambda: timm.create_model("vit_relpos_base_patch16_224", **TIMM),
            "it is a VisionTransformerRelPos",
        ),
        (
            lambda: timm.create_model("vit_small_patch16_18x2_224", **{**TIMM, "depth": 1}),
            "its blocks are ParallelThingsBlock, and must be ordinary pre-norm ones",
        ),
    ],
)
def test_vits_with_more_than_a_radio_trunk_are_refused(build, message: str) -> None:
    with pytest.raises(UnknownTrunkError, match=re.escape(message)):
        vit_of(build())
