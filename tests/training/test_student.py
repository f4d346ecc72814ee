from types import SimpleNamespace

import pytest
import torch

from modeling_radio import RadioModel
from training.recipe import Recipe, RecipeError, StudentRecipe, TeacherRecipe, load_recipe
from training.student import build_student, student_config, student_patch_size


TEACHERS = {
    "language": SimpleNamespace(summary_dim=12, feature_dim=10),
    "segmenter": SimpleNamespace(summary_dim=None, feature_dim=20),
    "dense": SimpleNamespace(summary_dim=6, feature_dim=6),
}


def recipe_with(student: StudentRecipe | None = None, **adaptor) -> Recipe:
    entries = [TeacherRecipe(name=name, kind="k") for name in TEACHERS]
    entries[1].adaptor = adaptor
    return Recipe(name="test", student=student or StudentRecipe(preset="radio-test"), teachers=entries)


def test_every_teacher_has_its_class_token_and_those_with_a_summary_form_it() -> None:
    config = student_config(recipe_with(), TEACHERS)
    assert config.num_cls_tokens == 3
    assert config.summary_idxs == [0, 2]
    assert [a.token_index for a in config.adaptor_configs] == [0, 1, 2]
    assert [(a.summary_dim, a.feature_dim) for a in config.adaptor_configs] == [(12, 10), (None, 20), (6, 6)]


def test_adaptors_are_as_wide_as_the_widest_teacher_unless_told() -> None:
    assert [a.hidden_size for a in student_config(recipe_with(), TEACHERS).adaptor_configs] == [20, 20, 20]
    student = StudentRecipe(preset="radio-test", adaptor={"hidden_size": 16})
    config = student_config(recipe_with(student, hidden_size=8), TEACHERS)
    assert [a.hidden_size for a in config.adaptor_configs] == [16, 8, 16]


def test_same_seed_same_weights_whatever_was_drawn_before() -> None:
    first = build_student(recipe_with(), TEACHERS)
    torch.rand(5)
    second = build_student(recipe_with(), TEACHERS)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (StudentRecipe(preset="radio-tst"), "`student`: Unknown preset 'radio-tst'. Did you mean 'radio-test'"),
        (
            StudentRecipe(config={"hiden_size": 3}),
            "Unknown key 'student.config.hiden_size'. Did you mean 'hidden_size'",
        ),
        (StudentRecipe(adaptor={"hidden": 3}), "Unknown key 'student.adaptor.hidden'. Did you mean 'hidden_size'"),
        (StudentRecipe(config={"hidden_size": 33}), "`student`: `hidden_size` "),
    ],
)
def test_bad_student_is_one_clear_line(student: StudentRecipe, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        student_config(recipe_with(student), TEACHERS)


def test_patch_is_known_before_the_teachers() -> None:
    student = StudentRecipe(preset="radio-test", config={"patch_size": 8})
    assert student_patch_size(recipe_with(student)) == 8


SHAPES = {
    "siglip2-g": SimpleNamespace(summary_dim=1536, feature_dim=1536),
    "dino_v3": SimpleNamespace(summary_dim=4096, feature_dim=4096),
    "sam3": SimpleNamespace(summary_dim=None, feature_dim=1024),
}


@pytest.mark.parametrize(("name", "backbone"), [("c_radio_v4_so400m", 431_237_232), ("c_radio_v4_h", 651_645_440)])
def test_real_recipes_build_the_published_backbones(name: str, backbone: int) -> None:
    config = student_config(load_recipe(name, ["data.source=images"]), SHAPES)
    with torch.device("meta"):
        model = RadioModel(config)
    num_adaptor = sum(parameter.numel() for parameter in model.radio_model.adaptors.parameters())
    assert model.num_parameters() - num_adaptor == backbone
    assert config.summary_idxs == [0, 1]
