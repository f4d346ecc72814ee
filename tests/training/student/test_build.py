import shutil
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from comparisons import assert_close_by_name
from small_recipes import small_recipe

from modeling_radio import RadioModel
from modeling_radio.modeling_radio import ADAPTORS
from modeling_radio.training.recipes.recipe import PartitionRecipe, Recipe, RecipeError, StudentRecipe, load_recipe
from modeling_radio.training.student import build
from modeling_radio.training.student.build import (
    build_student,
    check_student_views,
    checkpoint_blocks,
    compile_blocks,
    in_faster_precision,
    is_bfloat16_faster,
    student_config,
    student_patch_size,
)
from modeling_radio.training.student.parameters import CLIPS
from modeling_radio.training.views.shapes import Grid
from modeling_radio.training.views.windows import fitting_windows


TEACHERS = {
    "language": SimpleNamespace(summary_dim=12, feature_dim=10),
    "segmenter": SimpleNamespace(summary_dim=None, feature_dim=20),
    "dense": SimpleNamespace(summary_dim=6, feature_dim=6),
}


def recipe_with(student: StudentRecipe | None = None, **adaptor) -> Recipe:
    recipe = small_recipe(*TEACHERS, student=student or {"preset": "radio-test"})
    recipe.teachers[1].adaptor = adaptor
    return recipe


def student_with(**config) -> RadioModel:
    return build_student(recipe_with(StudentRecipe(preset="radio-test", config=config)), TEACHERS)


class TestConfiguration:
    def test_every_teacher_has_its_class_token_and_those_with_a_summary_form_it(self) -> None:
        config = student_config(recipe_with(), TEACHERS)
        assert config.num_cls_tokens == 3
        assert config.summary_idxs == [0, 2]
        found = [(a.token_index, a.summary_dim, a.feature_dim) for a in config.adaptor_configs]
        assert found == [(0, 12, 10), (1, None, 20), (2, 6, 6)]

    def test_adaptors_are_as_wide_as_the_widest_teacher_by_default(self) -> None:
        student = StudentRecipe(preset="radio-test", adaptor={"hidden_size": 16})
        for recipe, widths in ((recipe_with(), [20, 20, 20]), (recipe_with(student, hidden_size=8), [16, 8, 16])):
            assert [a.hidden_size for a in student_config(recipe, TEACHERS).adaptor_configs] == widths

    @pytest.mark.parametrize(
        ("student", "named"),
        [
            ({"preset": "radio-tst"}, "`preset`.*'radio-test'"),
            ({"preset": "e-radio_v2"}, "`preset`.*'e-radio_v2'.*'e_radio'"),
            ({"config": {"hiden_size": 3}}, r"'student\.config\.hiden_size'.*'hidden_size'"),
            ({"config": {"hidden_size": 33}}, "`hidden_size`"),
            ({"adaptor": {"hidden": 3}}, r"'student\.adaptor\.hidden'.*'hidden_size'"),
        ],
    )
    def test_bad_student_is_refused(self, student: dict, named: str) -> None:
        with pytest.raises(RecipeError, match=named):
            student_config(recipe_with(StudentRecipe(**student)), TEACHERS)

    def test_patch_is_known_before_the_teachers_and_sizes_must_be_multiples(self) -> None:
        assert student_patch_size(recipe_with(StudentRecipe(preset="radio-test", config={"patch_size": 8}))) == 8
        recipe = recipe_with()
        check_student_views(recipe.replace(partitions=[PartitionRecipe(name="low", sizes_px=[64])]))
        with pytest.raises(RecipeError, match=r"^`partitions\.low\.sizes_px`"):
            check_student_views(recipe.replace(partitions=[PartitionRecipe(name="low", sizes_px=[64, 72])]))

    @pytest.mark.parametrize("images", [{"batch_size": 2}, {"batch_size": None, "token_budget": 2 * 16}])
    def test_a_teacher_that_would_see_no_image_of_a_step_is_refused(self, images: dict) -> None:
        low = PartitionRecipe(name="low", sizes_px=[64], teachers_per_image=1, **images)
        check_student_views(recipe_with().replace(partitions=[low.replace(teachers_per_image=2)]))
        with pytest.raises(RecipeError, match=r"^`partitions\.low\.teachers_per_image`"):
            check_student_views(recipe_with().replace(partitions=[low]))

    def test_teachers_see_rgb(self) -> None:
        config = {"num_channels": 5, "norm_mean": [0.5] * 5, "norm_std": [0.2] * 5}
        with pytest.raises(RecipeError, match=r"`student\.config\.num_channels`"):
            check_student_views(recipe_with(StudentRecipe(preset="radio-test", config=config)))

    @pytest.mark.parametrize(("name", "size"), [("c_radio_v4_so400m", 431_237_232), ("c_radio_v4_h", 651_645_440)])
    def test_real_recipes_build_the_published_backbones(self, name: str, size: int) -> None:
        shapes = {
            "siglip2-g": SimpleNamespace(summary_dim=1536, feature_dim=1536),
            "dino_v3_7b": SimpleNamespace(summary_dim=4096, feature_dim=4096),
            "sam3": SimpleNamespace(summary_dim=None, feature_dim=1024),
        }
        config = student_config(load_recipe(name, ["data.source=images"]), shapes)
        with torch.device("meta"):
            model = RadioModel(config)
        num_adaptor = sum(parameter.numel() for parameter in model.radio_model.adaptors.parameters())
        assert model.num_parameters() - num_adaptor == size
        assert config.summary_idxs == [0, 1]


class TestPrecision:
    @pytest.mark.parametrize(("is_faster", "expected"), [(True, ("bf16", "bfloat16")), (False, ("no", "float32"))])
    def test_the_faster_precision_is_taken_for_student_and_teachers(self, is_faster, expected, monkeypatch):
        monkeypatch.setattr(build, "is_bfloat16_faster", lambda: is_faster)
        monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
        recipe = in_faster_precision(load_recipe("demo"))
        assert (recipe.mixed_precision, *{entry.dtype for entry in recipe.teachers}) == expected

    @pytest.mark.parametrize("slow", [torch.float32, torch.bfloat16])
    def test_both_precisions_are_timed_on_one_layer(self, slow, monkeypatch):
        now = [0.0]
        monkeypatch.setattr(time, "perf_counter", lambda: now[0])

        def linear(hidden, weight):
            assert hidden.dtype == weight.dtype
            now[0] += 2.0 if hidden.dtype == slow else 1.0

        monkeypatch.setattr(build.F, "linear", linear)
        assert is_bfloat16_faster() == (slow == torch.float32)


def gradients(student: RadioModel) -> dict[str, torch.Tensor]:
    """Return the gradients of a training pass with position crops and dropped paths."""
    torch.manual_seed(0)
    images, draws = torch.rand(2, 3, 32, 48), torch.rand(2, student.num_draws)
    output = student.train()(images, draws=draws)
    (output.features.square().mean() + output.adaptors["dense"].summary.square().mean()).backward()
    return {name: p.grad for name, p in student.named_parameters() if p.grad is not None}


def test_same_seed_same_weights_and_all_that_are_trained_get_a_gradient() -> None:
    first = student_with(video_temporal_patch_size=2)
    torch.rand(5)
    second = student_with(video_temporal_patch_size=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    trained = {name for name, parameter in first.named_parameters() if parameter.requires_grad}
    assert {name for name, _ in first.named_parameters()} - trained == {CLIPS}
    assert all(name.startswith(ADAPTORS) for name in trained - set(gradients(first)))


COMPILED = (
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="compiling on a CPU needs a C++ compiler"),
)


class TestBlocks:
    @pytest.mark.parametrize(
        "change",
        [checkpoint_blocks, pytest.param(lambda student: compile_blocks(student, recipe_with()), marks=COMPILED)],
        ids=["checkpointed", "compiled"],
    )
    def test_other_ways_to_compute_give_the_same_gradients_and_keys(self, change: Callable) -> None:
        plain, changed = (student_with(drop_path_rate=0.3) for _ in range(2))
        change(changed)
        assert list(changed.state_dict()) == list(plain.state_dict())
        assert_close_by_name(gradients(changed), gradients(plain), rtol=1e-4, atol=1e-6)

    def test_checkpointed_blocks_keep_less_for_the_backward_pass(self) -> None:
        kept = []
        for change in (lambda student: None, checkpoint_blocks):
            student = student_with().train()
            change(student)
            sizes: list[int] = []
            with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
                student(torch.rand(1, 3, 64, 64), adaptor_names=[])
            kept.append(sum(sizes))
        assert kept[1] < 0.5 * kept[0]

    @pytest.mark.parametrize(
        ("partition", "expected"),
        [
            ({"sizes_px": [64, 96, 128]}, 2),
            pytest.param(
                {"sizes_px": [64, 96, 128], "vitdet_windows": [2, 3, 4]},
                4,
                marks=pytest.mark.slow,
            ),
            pytest.param(
                {"sizes_px": [64, 96, 160], "vitdet_windows": [2, 3, 4], "vitdet_ragged": True},
                12,
                marks=pytest.mark.slow,
            ),
        ],
    )
    def test_graphs_are_as_many_as_forecast_over_all_sizes_and_windows(self, partition: dict, expected: int) -> None:
        torch._dynamo.reset()
        student = student_with(num_hidden_layers=4, vitdet_num_global=2, drop_path_rate=0.1, max_img_size=256).train()
        graphs = []

        def count(module: torch.fx.GraphModule, _: object) -> Callable:
            graphs.append(module)
            return module

        images = PartitionRecipe(**partition)
        with torch._dynamo.config.patch(cache_size_limit=1, fail_on_cache_limit_hit=True):
            assert compile_blocks(student, recipe_with().replace(partitions=[images]), backend=count) == expected
            for size_px in images.sizes_px:
                side = size_px // student.patch_size
                for window in ["global", *fitting_windows(images, Grid(side, side))]:
                    output = student(torch.rand(3, 3, size_px, size_px), window_size=window, adaptor_names=[])
                    output.features.sum().backward()
        assert len(graphs) == expected
        torch._dynamo.reset()


def test_a_student_of_ones_own_by_its_import_path(tmp_path, monkeypatch) -> None:
    text = "from modeling_radio import RadioConfig\n"
    text += "def tiny(**fields): return RadioConfig.from_preset('radio-test', num_hidden_layers=3, **fields)\n"
    (tmp_path / "own_students.py").write_text(text + "def none(**fields): return fields\n")
    monkeypatch.chdir(tmp_path)
    own = recipe_with(StudentRecipe(preset="own_students:tiny", config={"max_img_size": 512}))
    config = student_config(own, TEACHERS)
    assert (config.num_hidden_layers, config.max_img_size, config.num_cls_tokens) == (3, 512, 3)
    with pytest.raises(RecipeError, match="`preset` 'own_students:none'"):
        student_config(recipe_with(StudentRecipe(preset="own_students:none")), TEACHERS)
    sys.modules.pop("own_students")
