"""Teachers in 8 bits: layers that compute so, their error, devices and networks that cannot, and a run to its card."""

import sys

import pytest
import torch
import transformers
from deep_teacher import DeepTeacher
from tiny_adaptors import build_model_with_adaptors
from tiny_distillation import distil, install_tiny_world, write_command_recipe
from torch import Tensor, nn

from modeling_radio.model_cards.lineage import Lineage
from modeling_radio.training.recipes.recipe import RecipeError, TeacherRecipe
from modeling_radio.training.targets.feature_cache import weights_fingerprint
from modeling_radio.training.teachers.eight_bits import check_eight_bits, describe_blocks, quantize_blocks
from modeling_radio.training.teachers.registry import place_teacher, share_network, teacher_of_recipe


CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _torchao():
    pytest.importorskip("torchao.quantization", reason="needs the extra `dev`")


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    """A DINOv2 of transformers with random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dino")
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
    transformers.Dinov2Model(transformers.Dinov2Config(**sizes)).save_pretrained(folder)
    return TeacherRecipe(name="dino", kind="dinov2", source=str(folder), precision="int8")


def placed(entry):
    return place_teacher(teacher_of_recipe(entry), entry, CPU)


def error_of(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).square().mean() / expected.var())


@pytest.mark.parametrize("is_timm", [False, True])
def test_blocks_compute_in_int8_and_all_else_stays(dino, is_timm):
    entry = dino
    if is_timm:
        entry = TeacherRecipe(name="t", kind="timm", source="test_vit", options={"weights": "random"}, precision="int8")
    answers = {}
    for precision in ("float32", "bfloat16", "int8"):
        torch.manual_seed(0)
        teacher = placed(entry.replace(precision=precision))
        answers[precision] = teacher.extract_features(torch.rand(2, 3, 64, 96, generator=torch.manual_seed(1)))
    quantized = {name.rpartition(".")[0] for name, each in teacher.named_parameters() if type(each.data) is not Tensor}
    in_blocks = {name for name, each in teacher.named_modules() if type(each) is nn.Linear and "head" not in name}
    assert quantized == in_blocks
    assert describe_blocks(teacher).startswith(
        f"Teacher {entry.name}: {len(quantized)} of the {len(quantized)} linear layers in its blocks compute in int8"
    )
    for part in ("features", "summary"):
        expected, half, eight = (getattr(answer, part) for answer in answers.values())
        assert eight.dtype == torch.float32
        assert error_of(eight, expected) > error_of(half, expected) > 0
        assert error_of(eight, expected) < 2e-3


def test_a_shared_network_is_quantized_once_and_heads_stay(tmp_path):
    build_model_with_adaptors("segmenter").save_pretrained(tmp_path)
    source = {"kind": "radio", "source": str(tmp_path), "precision": "int8"}
    entries = [TeacherRecipe(name="a", options={"adaptor_name": name}, **source) for name in ("segmenter", None)]
    first = placed(entries[0])
    weight = first.network.radio_model.model.blocks[0].attn.qkv.weight
    second = teacher_of_recipe(entries[1])
    share_network(second, entries[1], [(first, entries[0])])
    place_teacher(second, entries[1], CPU)
    assert second.network.radio_model.model.blocks[0].attn.qkv.weight is weight
    assert len(second.network.radio_model.model.blocks[0].attn.qkv._forward_pre_hooks) == 1
    assert all(type(each.data) is Tensor for each in first.network.radio_model.adaptors.parameters())
    outputs = first.extract_features_for(torch.rand(1, 3, 32, 32), [first, second])
    assert all(output.features.isfinite().all() for output in outputs)


def test_weights_in_8_bits_have_a_fingerprint_of_their_own(dino):
    prints = [weights_fingerprint(placed(dino.replace(precision=each))) for each in ("bfloat16", "int8", "int8")]
    assert prints[0] != prints[1] == prints[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp8 may be there")
def test_what_has_no_8_bits_is_refused_in_one_line_before_it_is_loaded(dino, monkeypatch, tmp_path):
    refused = [dino.replace(precision="fp8"), dino.replace(device="no-device")]
    for entry in refused:
        with pytest.raises(ValueError, match=r"^Teacher 'dino': `precision` ") as error:
            check_eight_bits(entry.name, entry.precision, entry.device or CPU)
        assert "\n" not in str(error.value)
    install_tiny_world(monkeypatch)
    recipe = str(write_command_recipe(tmp_path))
    with pytest.raises(ValueError, match="`precision` 'fp8'"):
        distil(recipe, str(tmp_path / "run"), "teachers.semantic.source=nowhere", "teachers.semantic.precision=fp8")
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ValueError, match=r"`precision` 'int8' .*`pip install torchao`"):
        placed(dino)


@pytest.mark.parametrize("width", [8, 0])
def test_a_network_without_fitting_layers_is_refused(width):
    teacher = DeepTeacher("deep", feature_dim=width or 16, num_blocks=bool(width) * 2)
    with pytest.raises(ValueError, match=r"^Teacher 'deep': `precision` must be 'float32' or 'bfloat16', got 'int8'"):
        quantize_blocks(teacher, "int8")


def test_8_bits_cannot_be_sharded():
    with pytest.raises(ValueError, match="shard"):
        TeacherRecipe(name="a", kind="k", precision="int8", shard=True)


def test_a_run_tells_of_8_bits_and_its_cache_serves_no_other_precision(tmp_path, monkeypatch, capsys):
    install_tiny_world(monkeypatch)
    recipe = str(write_command_recipe(tmp_path, "deep_teacher:DeepTeacher"))
    settings = ["views.teachers=cached", f"views.cache_dir={tmp_path / 'cache'}", "data.source=noise"]
    settings += ["schedule.num_steps=1", "teachers.semantic.options=null", "teachers.semantic.options.feature_dim=16"]
    final = distil(recipe, str(tmp_path / "run"), *settings, "teachers.semantic.precision=int8")
    assert "Teacher semantic: 4 of the 4 linear layers in its blocks compute in int8" in capsys.readouterr().out
    assert [each.role for each in Lineage.find(final).teachers] == ["features (16), computed in int8", "features (9)"]
    for precision in ("float32", "bfloat16"):
        with pytest.raises(RecipeError, match=r"stale .*teachers.semantic.precision"):
            distil(recipe, str(tmp_path / precision), *settings, f"teachers.semantic.precision={precision}")
