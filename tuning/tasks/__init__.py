"""Tuning tasks by name; a file for each group of tasks reads, scores and draws its data."""

from __future__ import annotations

from modeling_radio import TASK_MODELS
from modeling_radio.core.imports import import_object
from modeling_radio.saving_radio import own_classes
from modeling_radio.tasks_radio import TASKS
from modeling_radio.tuning.tasks.base import FinetuningTask


def find_task(name: str) -> type[FinetuningTask]:
    """Return the class of a tuning task.

    Args:
        name: A key of `TASKS`, or the import path of a class of the user's, "my_package.my_module:MyTask".

    Raises:
        ValueError: If there is no such class, or its model is neither ours nor registered for an Auto class.
    """
    path = f"{__name__}.{TASKS[name].tuning}" if name in TASKS else name
    found = import_object(path, "task")
    if not (isinstance(found, type) and issubclass(found, FinetuningTask)):
        raise ValueError(f"`task` must be a subclass of `FinetuningTask`, got {name!r}, {found!r:.200}.")
    model = found.model_class.__name__
    if model not in {*TASK_MODELS, *own_classes}:
        raise ValueError(
            f"`task` {name!r} has the model {model}, which no folder could name: call `{model}.register_for_auto_class"
            '("AutoModelFor...")` in its file.'
        )
    return found
