import pytest

from core.settings import SettingsError
from training.evaluation.tasks.base import TaskSettings


@pytest.mark.parametrize("sizes", [[], [64], [64, 64], [0, 64], [-8, 64]])
@pytest.mark.parametrize("name", ["consistency_sizes_px", "switching_sizes_px"])
def test_sizes_that_cannot_be_compared(name, sizes):
    with pytest.raises(SettingsError, match=f"`{name}` must be at least two different sizes above 0, got"):
        TaskSettings(**{name: sizes})


def test_ranks_are_above_zero():
    with pytest.raises(SettingsError, match="`recall_at` must be ranks above 0, got"):
        TaskSettings(recall_at=[0, 5])
