import shutil
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from comparisons import assert_close_by_name
from small_recipes import small_recipe
from torch import nn

from modeling_radio import RadioModel
from modeling_radio.modeling_radio import ADAPTORS
from training.recipe import PartitionRecipe, Recipe, RecipeError, StudentRecipe, load_recipe
from training.student.build import (
    build_student,
    check_student_views,
    checkpoint_blocks,
    compile_blocks,
    student_config,
    student_patch_size,
)
from training.student.parameters import CLIPS
from training.views.plan import Grid, fitting_windows


TEACHERS = {
    "language": SimpleNamespace(summary_dim=12, feature_dim=10),
    "segmenter": SimpleNamespace(summary_dim=None, feature_dim=20),
    "dense": SimpleNamespace(summary_dim=6, feature_dim=6),
}


def recipe_with(student: StudentRecipe | None = None, **adaptor) -> Recipe:
    recipe = small_recipe(*TEACHERS, student=student or {"preset": "radio-test"})
    recipe.teachers[1].adaptor = adaptor
    return recipe


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
        (StudentRecipe(preset="radio-tst"), "`student`: `preset` must .* got 'radio-tst'. Did you mean 'radio-test'"),
        (
            StudentRecipe(config={"hiden_size": 3}),
            "Unknown key 'student.config.hiden_size'. Did you mean 'hidden_size'",
        ),
        (StudentRecipe(adaptor={"hidden": 3}), "Unknown key 'student.adaptor.hidden'. Did you mean 'hidden_size'"),
        (StudentRecipe(preset="e-radio_v2"), "^`student`: `preset` must be a ViT's, got 'e-radio_v2': an E-RADIO"),
        (StudentRecipe(config={"hidden_size": 33}), "`student`: `hidden_size` "),
    ],
)
def test_bad_student_is_one_clear_line(student: StudentRecipe, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        student_config(recipe_with(student), TEACHERS)


def test_patch_is_known_before_the_teachers() -> None:
    student = StudentRecipe(preset="radio-test", config={"patch_size": 8})
    assert student_patch_size(recipe_with(student)) == 8


def gradients(student: RadioModel) -> dict[str, torch.Tensor]:
    """Of a training pass with position crops and dropped paths."""
    torch.manual_seed(0)
    images, draws = torch.rand(2, 3, 32, 48), torch.rand(2, student.num_draws)
    output = student.train()(images, draws=draws)
    (output.features.square().mean() + output.adaptors["dense"].summary.square().mean()).backward()
    return {name: p.grad for name, p in student.named_parameters() if p.grad is not None}


def test_no_gradient_is_waited_for_that_images_do_not_give() -> None:
    config = {"video_temporal_patch_size": 2}
    student = build_student(recipe_with(StudentRecipe(preset="radio-test", config=config)), TEACHERS)
    trained = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    assert set(student.state_dict()) - trained - {name for name, _ in student.named_buffers()} == {CLIPS}
    assert all(name.startswith(ADAPTORS) for name in trained - set(gradients(student)))


COMPILED = (
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="compiling on a CPU needs a C++ compiler"),
)


def compile_inductor(student: RadioModel) -> None:
    compile_blocks(student, recipe_with())


@pytest.mark.parametrize("change", [checkpoint_blocks, pytest.param(compile_inductor, marks=COMPILED)])
def test_other_ways_to_compute_blocks_give_the_same_gradients_and_keys(change: Callable[[RadioModel], None]) -> None:
    recipe = recipe_with(StudentRecipe(preset="radio-test", config={"drop_path_rate": 0.3}))
    plain, changed = build_student(recipe, TEACHERS), build_student(recipe, TEACHERS)
    change(changed)
    expected, actual = gradients(plain), gradients(changed)
    assert list(changed.state_dict()) == list(plain.state_dict())
    assert_close_by_name(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("partition", "expected"),
    [
        ({"sizes_px": [64]}, 2),
        ({"sizes_px": [64, 96, 128]}, 2),
        ({"sizes_px": [64, 96, 128], "vitdet_windows": [2, 3, 4]}, 4),
        pytest.param(
            {"sizes_px": [64, 96, 160], "vitdet_windows": [2, 3, 4], "vitdet_ragged": True}, 12, marks=pytest.mark.slow
        ),
    ],
)
def test_graphs_are_as_many_as_foretold_over_all_sizes_and_windows(partition: dict, expected: int) -> None:
    torch._dynamo.reset()
    config = {"num_hidden_layers": 4, "vitdet_num_global": 2, "drop_path_rate": 0.1, "max_img_size": 256}
    student = build_student(recipe_with(StudentRecipe(preset="radio-test", config=config)), TEACHERS).train()
    graphs = []

    def count(module: torch.fx.GraphModule, _: object) -> Callable:
        graphs.append(module)
        return module

    images = PartitionRecipe(**partition)
    with torch._dynamo.config.patch(cache_size_limit=1, fail_on_cache_limit_hit=True):
        assert compile_blocks(student, recipe_with().replace(partitions=[images]), backend=count) == expected
        for size_px in images.sizes_px:
            cells = size_px // student.patch_size
            for window in ["global", *fitting_windows(images, Grid(cells, cells))]:
                output = student(torch.rand(3, 3, size_px, size_px), window_size=window, adaptor_names=[])
                output.features.sum().backward()
    assert len(graphs) == expected
    torch._dynamo.reset()


def test_the_limit_of_graphs_is_raised_under_the_name_that_torch_2_6_has_for_it(monkeypatch) -> None:
    student, older = build_student(recipe_with(), TEACHERS), SimpleNamespace(cache_size_limit=1)
    monkeypatch.setattr(torch._dynamo, "config", older)
    monkeypatch.setattr(nn.Module, "compile", lambda *_, **options: None)
    num_graphs = compile_blocks(student, recipe_with())
    assert older.cache_size_limit == 2 * num_graphs


def test_packed_images_are_not_compiled() -> None:
    recipe = recipe_with().replace(partitions=[PartitionRecipe(name="low", token_budget=100)])
    with pytest.raises(RecipeError, match=r"`student.compile` must be false with `partitions.low.token_budget`, got"):
        compile_blocks(build_student(recipe_with(), TEACHERS), recipe)


def test_checkpointed_blocks_keep_less_for_the_backward_pass() -> None:
    kept = []
    for change in (lambda student: None, checkpoint_blocks):
        student = build_student(recipe_with(), TEACHERS).train()
        change(student)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            student(torch.rand(1, 3, 64, 64), adaptor_names=[])
        kept.append(sum(sizes))
    assert kept[1] < 0.5 * kept[0]


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


def test_sizes_that_are_no_whole_number_of_patches_are_refused() -> None:
    recipe = recipe_with().replace(partitions=[PartitionRecipe(name="low", sizes_px=[64, 72])])
    with pytest.raises(RecipeError, match=r"^`partitions.low.sizes_px` must be multiples of the patch, \d+ px, got"):
        check_student_views(recipe)
    check_student_views(recipe.replace(partitions=[PartitionRecipe(name="low", sizes_px=[64])]))
