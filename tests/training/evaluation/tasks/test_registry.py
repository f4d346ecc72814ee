from training.evaluation.data import KINDS
from training.evaluation.features import Wanted
from training.evaluation.models.pretrained import RawPixels
from training.evaluation.tasks.registry import TASKS


def test_every_task_says_what_it_needs():
    model = RawPixels(8, 16)
    for name, task in TASKS.items():
        assert task.kind in KINDS
        assert (task.measure.__doc__ or "").startswith("Measure")
        if name != "image_text_retrieval":  # which refuses a model without texts
            assert isinstance(task.wanted(model), Wanted)
