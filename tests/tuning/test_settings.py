"""Wrong settings are refused by name before anything is loaded."""

from pathlib import Path
from typing import get_args

import pytest
from tiny_tuning import tuning_settings

from modeling_radio.core.settings import SettingsError
from modeling_radio.tuning.data import TARGET_COLUMNS
from modeling_radio.tuning.settings import FinetuneSettings
from modeling_radio.tuning.tasks import TASK_CLASSES


STREAM = {"streaming": True, "steps": 2, "evaluate_every": 1}


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"task": "image-clasification"}, "task"),
        ({"tune": "lorra"}, "tune"),
        ({"lora_rank": 0}, "lora_rank"),
        ({"quantize": 4}, "quantize"),
        ({"merge": True, "tune": "full"}, "merge"),
        ({"train_norms": True}, "train_norms"),
        ({"class_weights": "balance"}, "class_weights"),
        ({"task": "object-detection", "class_weights": "balanced"}, "class_weights"),
        ({"class_weights": (1.0, -1.0)}, "class_weights"),
        ({"class_weights": ()}, "class_weights"),
        ({"task": "depth-estimation", "sampler": "balanced"}, "sampler"),
        ({"size": (0, 16)}, "size"),
        ({"size": "large"}, "size"),
        ({"output": ""}, "output"),
        ({**STREAM, "task": "depth-estimation"}, "streaming"),
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


def test_every_task_has_a_class_columns_and_a_folder():
    names = set(get_args(FinetuneSettings.model_fields["task"].annotation))
    assert set(TASK_CLASSES) == set(TARGET_COLUMNS) == names
    settings = FinetuneSettings(checkpoint="c", task="depth-estimation", data="d")
    assert settings.output == Path("runs/finetune-depth-estimation")
