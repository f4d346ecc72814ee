import sys

import pytest

from modeling_radio.evaluation.data import KINDS
from modeling_radio.evaluation.features import Wanted
from modeling_radio.evaluation.models.pretrained import RawPixels
from modeling_radio.evaluation.settings import EvaluationSettings
from modeling_radio.evaluation.tasks.registry import TASKS, find_task, task_names


def test_every_task_says_what_it_needs():
    for name in TASKS:
        task = find_task(name)
        assert task.kind in KINDS
        assert (task.measure.__doc__ or "").startswith("Measure")
        if name != "image_text_retrieval":  # which refuses a model without texts
            assert isinstance(task.wanted(RawPixels(8, 16)), Wanted)


@pytest.mark.parametrize(
    ("asked", "kinds", "names"),
    [
        (["knn", "retrieval", "image_retrieval"], {"labels"}, ["knn", "image_retrieval"]),
        (["retrieval"], {"labels", "captions"}, ["image_retrieval", "image_text_retrieval"]),
        (["retrieval"], {"images"}, ["image_retrieval"]),
        (None, {"images", "labels"}, ["knn"]),
        (None, {"images", "masks"}, ["segmentation_probe"]),
        (None, {"labels", "masks"}, ["knn", "segmentation_probe"]),
        (None, {"images"}, ["knn"]),
    ],
)
def test_tasks_are_those_that_the_data_allow(asked, kinds, names):
    assert task_names(asked, kinds) == names


def test_a_task_of_ones_own_by_its_import_path(tmp_path, monkeypatch):
    text = "from modeling_radio.evaluation.tasks.base import Task\nOWN, NONE = Task(len, 'masks'), 3\n"
    (tmp_path / "own_tasks.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert find_task("own_tasks:OWN").kind == "masks"
    assert task_names(["knn", "own_tasks:OWN"], {"labels"}) == ["knn", "own_tasks:OWN"]
    assert EvaluationSettings(checkpoint=tmp_path, tasks=["own_tasks:OWN"]).tasks == ["own_tasks:OWN"]
    with pytest.raises(ValueError, match="`tasks` 'own_tasks:NONE'"):
        find_task("own_tasks:NONE")
    sys.modules.pop("own_tasks")
