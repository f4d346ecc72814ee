"""Students that are no ViT of ours: their configuration, what they refuse, and what is frozen."""

import pytest
import torch
from small_recipes import small_recipe
from tiny_networks import STUDENTS

from modeling_radio.training.distillation.optimizers import parameter_groups
from modeling_radio.training.recipes.recipe import Recipe, RecipeError
from modeling_radio.training.recipes.sections import StudentRecipe
from modeling_radio.training.student.build import build_student, check_student_views, regularize, student_patch_size
from modeling_radio.training.student.foreign import global_window
from modeling_radio.training.teachers.outputs import TeacherWidths


pytestmark = pytest.mark.usefixtures("one_thread")

TEACHERS = {"language": TeacherWidths(12, 10), "segmenter": TeacherWidths(None, 20)}


LARGE_WINDOWS = {
    "architecture": "transformers:swin",
    "arguments": {"embed_dim": 8, "depths": [2], "num_heads": [1], "window_size": 7},
}
"""A network that takes no images of fewer patches than a window."""


def recipe_of(name: str, student: dict | None = None, **sections) -> Recipe:
    sections = {"partitions": [{"name": "low", "sizes_px": [64], "batch_size": 2}], **sections}
    return small_recipe(*TEACHERS, student={**STUDENTS[name]._asdict(), **(student or {})}, **sections)


@pytest.mark.parametrize("name", ["ConvNeXt", "DINOv2", "E-RADIO"])
def test_each_teacher_has_a_query_unless_the_network_has_its_own_summary(name):
    recipe = recipe_of(name)
    check_student_views(recipe)
    config = build_student(recipe, TEACHERS).config
    has_one = name != "ConvNeXt"
    assert config.num_cls_tokens == (1 if has_one else 2)
    assert config.summary_idxs == [0]
    assert [adaptor.token_index for adaptor in config.adaptor_configs] == ([0, 0] if has_one else [0, 1])
    assert student_patch_size(recipe) == {"ConvNeXt": 32}.get(name, 16)
    assert global_window(config) == (None if name == "E-RADIO" else "global")


def test_weights_without_a_gradient_and_frozen_stages_are_not_trained():
    student = build_student(recipe_of("ResNet", {"frozen_stages": 1}), TEACHERS)
    frozen = {name for name, each in student.named_parameters() if not each.requires_grad}
    assert {name.split(".")[3] for name in frozen} == {"conv1", "bn1"}
    student = build_student(recipe_of("ConvNeXt"), TEACHERS)
    frozen = {name for name, each in student.named_parameters() if not each.requires_grad}
    assert {name.rpartition(".")[0] for name in frozen} == {"radio_model.model.network.head.norm"}


def test_frozen_statistics_stay_and_norms_still_learn():
    student = build_student(recipe_of("ResNet", {"frozen_stages": 1, "frozen_statistics": True}), TEACHERS).train()
    network = student.radio_model.model.network
    before = {name: each.clone() for name, each in network.named_buffers()}
    student(torch.rand(2, 3, 64, 64)).features.sum().backward()
    assert all(torch.equal(each, before[name]) for name, each in network.named_buffers())
    assert network.layer4[0].bn1.weight.grad is not None


def low(**fields) -> dict:
    return {"partitions": [{"name": "low", **fields}]}


@pytest.mark.parametrize(
    ("name", "student", "sections", "named"),
    [
        ("ConvNeXt", {"positions": "sincos"}, {}, "student.positions"),
        ("ConvNeXt", {"compile": True}, {}, "student.compile"),
        ("ConvNeXt", {"gradient_checkpointing": True}, {}, "student.gradient_checkpointing"),
        ("ConvNeXt", {"attention": "eager"}, {}, "student.attention"),
        ("ResNet", {"passes_at_once": 2}, {}, "student.passes_at_once"),
        ("E-RADIO", {"frozen_stages": 1}, {}, "student.frozen_stages"),
        ("E-RADIO", {"frozen_statistics": True}, {}, "student.frozen_statistics"),
        ("E-RADIO", {}, low(sizes_px=[48], batch_size=2), "sizes_px"),
        ("ConvNeXt", LARGE_WINDOWS, low(sizes_px=[16], batch_size=2), "sizes_px"),
        ("ConvNeXt", {}, low(sizes_px=[64], token_budget=8), "token_budget"),
        ("ConvNeXt", {}, low(sizes_px=[64], batch_size=2, vitdet_windows=[1]), "vitdet_windows"),
    ],
)
def test_what_it_cannot_do_is_refused(name, student, sections, named):
    with pytest.raises(RecipeError, match=rf"^`{named.replace('.', '[.]')}|{named}"):
        check_student_views(recipe_of(name, student, **sections))


@pytest.mark.parametrize(
    "student",
    [
        {"architecture": "timm:no_such_network"},
        {"architecture": "transformers:no/such"},
        {"architecture": "convnext"},
        {"architecture": "tiny_networks:Missing"},
        {"architecture": "tiny_networks:NoMap", "arguments": {}, "levels": [-1]},
        {"levels": [9]},
        {"arguments": {"no_such_argument": 1}},
    ],
)
def test_an_unknown_or_unfit_network_is_one_line(student):
    with pytest.raises(RecipeError, match="`student`") as caught:
        student_patch_size(recipe_of("ConvNeXt", student))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong", [{"arguments": {"a": 1}}, {"levels": [0]}, {"frozen_stages": 1}, {"frozen_statistics": True}]
)
def test_settings_of_other_architectures_are_refused_for_ours(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        StudentRecipe(**wrong)


def test_noise_and_scales_need_linear_layers():
    for section in ({"damp": {"sigma": 0.1}}, {"spectral": {"is_used": True}}):
        recipe = recipe_of("ConvNeXt", {"arguments": {**STUDENTS["ConvNeXt"].arguments, "conv_mlp": False}}, **section)
        student = build_student(recipe, TEACHERS)
        before = student.eval()(torch.ones(1, 3, 32, 32)).features
        regularize(student, recipe)
        torch.testing.assert_close(student(torch.ones(1, 3, 32, 32)).features, before, rtol=1e-4, atol=1e-5)
        kinds = {type(module).__name__ for module in student.radio_model.model.network.modules()}
        assert kinds & {"DampLinear", "ParametrizedLinear"}
        without = recipe_of("ResNet", **section)
        with pytest.raises(RecipeError, match="linear layers"):
            regularize(build_student(without, TEACHERS), without)


def test_fields_that_follow_from_the_network_are_refused():
    with pytest.raises(RecipeError, match=r"`config`.*num_registers"):
        student_patch_size(recipe_of("ConvNeXt", {"config": {"num_registers": 2, "norm_mean": [0.5, 0.5, 0.5]}}))


def test_muon_orthogonalizes_the_linear_layers_of_a_network():
    student = build_student(recipe_of("Swin"), TEACHERS)
    groups = parameter_groups(student, 0.1)
    matrices = {id(each) for group in groups if group["num_matrices"] for each in group["params"]}
    network = student.radio_model.model.network
    assert id(network.layers[0].blocks[0].mlp.fc1.weight) in matrices
    assert id(network.patch_embed.proj.weight) not in matrices
    (qkv,) = [
        group["num_matrices"]
        for group in groups
        if any(each is network.layers[0].blocks[0].attn.qkv.weight for each in group["params"])
    ]
    assert qkv == 3
