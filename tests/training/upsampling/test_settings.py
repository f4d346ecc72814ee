from pathlib import Path

import pytest

from foundation.settings import SettingsError
from training.upsampling.settings import UpsamplerSettings


def test_folder_follows_from_the_teacher():
    assert UpsamplerSettings(teacher="clip").folder() == Path("runs/upsamplers/clip")
    assert UpsamplerSettings(teacher="clip", output="here").folder() == Path("here")


def test_a_factor_of_one_is_refused():
    with pytest.raises(SettingsError, match=r"`factor` must be .*got 1"):
        UpsamplerSettings(teacher="clip", factor=1)


def test_more_views_in_a_step_than_there_are_are_refused():
    with pytest.raises(SettingsError, match="`views` must be at most `num_views`, 4, got 8"):
        UpsamplerSettings(teacher="clip", views=8)
