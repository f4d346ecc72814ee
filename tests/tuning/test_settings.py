"""Wrong settings are refused by name before anything is loaded."""

from pathlib import Path

import pytest
from tiny_tuning import tuning_settings

from modeling_radio import TASK_MODELS
from modeling_radio.core.settings import SettingsError
from modeling_radio.tasks_radio import TASKS
from modeling_radio.tuning.settings import FinetuneSettings
from modeling_radio.tuning.tasks import find_task


STREAM = {"streaming": True, "steps": 2, "evaluate_every": 1}


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"task": "image-clasification"}, "task"),
        ({"tune": "lorra"}, "tune"),
        ({"lora_rank": 0}, "lora_rank"),
        ({"quantize": 4}, "quantize"),
        ({"merge": True, "tune": "full"}, "merge"),
        ({"class_weights": "balance"}, "class_weights"),
        ({"class_weights": (1.0, -1.0)}, "class_weights"),
        ({"class_weights": ()}, "class_weights"),
        ({"size": (0, 16)}, "size"),
        ({"size": "large"}, "size"),
        ({"output": ""}, "output"),
        ({**STREAM, "steps": None}, "steps"),
        ({**STREAM, "evaluate_every": None}, "evaluate_every"),
        ({**STREAM, "sampler": "balanced"}, "sampler"),
        ({**STREAM, "class_weights": "balanced"}, "class_weights"),
    ],
)
def test_a_wrong_setting_is_the_only_one_named(options, name):
    with pytest.raises(SettingsError) as error:
        tuning_settings(**options)
    assert str(error.value).startswith(f"`{name}`")
    assert "`output`" not in str(error.value) or name == "output"


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"task": "object-detection", "class_weights": "balanced"}, "class_weights"),
        ({"task": "depth-estimation", "sampler": "balanced"}, "sampler"),
        ({**STREAM, "task": "depth-estimation"}, "streaming"),
    ],
)
def test_a_setting_without_use_for_the_task_is_refused(options, name):
    settings = tuning_settings(**options)
    with pytest.raises(ValueError, match=f"^`{name}`"):
        find_task(settings.task).check_settings(settings)


def test_every_task_of_the_table_has_its_model_its_labels_and_a_folder():
    names = [name for name, task in TASKS.items() if task.tuning is not None]
    for name in names:
        assert find_task(name).model_class is TASK_MODELS[TASKS[name].class_name]
        assert find_task(name).targets.columns
        assert tuning_settings(name).task == name
    settings = FinetuneSettings(checkpoint="c", task="depth-estimation", data="d")
    assert settings.output == Path("runs/finetune-depth-estimation")


@pytest.mark.parametrize("name", ["json:loads", "json:nothing", "modeling_radio:RadioModel"])
def test_a_task_of_ones_own_is_a_class_that_can_be_imported(name):
    assert tuning_settings(name).task == name
    with pytest.raises(ValueError, match=r"^`task`"):
        find_task(name)
