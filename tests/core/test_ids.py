"""An id has one spelling, and the other is taken by every setting that names a model."""

import shutil

import pytest
from pydantic import TypeAdapter

from modeling_radio.core.ids import ModelId, model_folder, name_of_folder, standard_id
from modeling_radio.training.recipes.sections import StudentRecipe, TeacherRecipe
from modeling_radio.tuning.settings import FinetuneSettings


@pytest.mark.parametrize(
    ("written", "standard"),
    [
        ("hub:org/name", "org/name"),
        ("org/name", "org/name"),
        ("timm/vit_tiny.a_in1k", "timm:vit_tiny.a_in1k"),
        ("hub:timm/vit_tiny", "timm:vit_tiny"),
        ("timm:vit_tiny", "timm:vit_tiny"),
        ("transformers:org/name", "transformers:org/name"),
        ("timm/folder/name", "timm/folder/name"),
        ("my_package.my_module:MyNetwork", "my_package.my_module:MyNetwork"),
    ],
)
def test_both_spellings_are_one_id(written, standard):
    assert standard_id(written) == TypeAdapter(ModelId).validate_python(written) == standard
    student = StudentRecipe(architecture=written, init_from=written)
    teacher = TeacherRecipe(name="a", kind="timm", source=written)
    tuning = FinetuneSettings(checkpoint=written, task="image-classification", data="pets")
    assert {student.architecture, student.init_from, teacher.source, tuning.checkpoint} == {standard}


def test_a_folder_stays_what_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("timm/net", "hub:org/net"):
        (tmp_path / name).mkdir(parents=True)
        assert standard_id(name) == name


def test_the_folder_of_a_run_stands_for_its_model(tmp_path, capsys):
    run = tmp_path / "run"
    for name, config in (("final", "adapter_config.json"), ("merged", "config.json")):
        (run / name).mkdir(parents=True)
        assert model_folder(run) == run  # nothing is in it yet, or only in the folder before
        (run / name / config).write_text("{}")
        assert model_folder(run) == run / name
        assert standard_id(str(run)) == str(run / name)
        assert str(run / name) in capsys.readouterr().err
        assert model_folder(run / name) == run / name
        assert not capsys.readouterr().err
        assert name_of_folder(run / name) == name_of_folder(run) == "run"
        shutil.rmtree(run / name)
