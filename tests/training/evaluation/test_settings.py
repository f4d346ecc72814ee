import pytest

from core.settings import SettingsError
from training.evaluation.settings import PRESETS, EvaluationSettings
from training.evaluation.tasks.registry import task_names


def test_something_must_be_measured():
    with pytest.raises(SettingsError, match=r"`tasks` must be some of .*, got \[\]"):
        EvaluationSettings(checkpoint="x", tasks=[])


def test_a_preset_gives_what_is_not_given():
    chosen = EvaluationSettings(checkpoint="x", data="ade", preset="ade20k", probe_steps=3)
    assert chosen.probe_steps == 3
    assert (chosen.window_px, chosen.reduce_labels, chosen.tasks) == (512, True, ["segmentation_probe"])
    chosen = EvaluationSettings(checkpoint="x", data="in", preset="imagenet-1k")
    assert (chosen.neighbors, chosen.temperature, chosen.templates) == (20, 0.07, "openai")
    for name in PRESETS:
        EvaluationSettings(checkpoint="x", preset=name)
    with pytest.raises(SettingsError, match="Did you mean 'ade20k'"):
        EvaluationSettings(checkpoint="x", preset="ade20")


def test_the_demo_has_few_images_of_a_class():
    """Where `data` is left out they are the recipe's, which may be anybody's."""
    left_out = EvaluationSettings(checkpoint="x")
    assert left_out.for_source("mine") == left_out
    assert left_out.neighbors == 20
    demo = left_out.for_source("demo")
    assert (demo.neighbors, demo.of_tasks()["preset"]) == (5, "demo")
    assert EvaluationSettings(checkpoint="x", neighbors=9).for_source("demo").neighbors == 9
    assert EvaluationSettings(checkpoint="x", preset="imagenet-1k").for_source("demo").neighbors == 20


def test_what_decides_the_numbers_is_told():
    told = EvaluationSettings(checkpoint="x", data="mine").of_tasks()
    assert {"neighbors", "random_seed", "size", "max_images", "precision"} <= set(told)
    assert not {"checkpoint", "output", "cache", "recipe"} & set(told)


def test_retrieval_is_what_the_data_have_something_for():
    settings = EvaluationSettings(checkpoint="x", tasks=["knn", "retrieval", "image_retrieval"])
    assert task_names(settings.tasks, {"labels"}) == ["knn", "image_retrieval"]
    assert task_names(settings.tasks, {"labels", "captions"}) == ["knn", "image_retrieval", "image_text_retrieval"]
    assert task_names(["retrieval"], {"images"}) == ["image_retrieval"]


def test_without_tasks_it_is_what_the_data_have_something_for():
    asked = EvaluationSettings(checkpoint="x", data="mine").tasks
    assert task_names(asked, {"images", "labels"}) == ["knn"]
    assert task_names(asked, {"images", "masks"}) == ["segmentation_probe"]
    assert task_names(asked, {"labels", "masks"}) == ["knn", "segmentation_probe"]
    assert task_names(asked, {"images"}) == ["knn"]
