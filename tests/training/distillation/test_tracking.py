from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from accelerate import Accelerator
from PIL import Image

from training.distillation import tracking
from training.distillation.tracking import check_trackers
from training.recipe import RecipeError, load_recipe


@pytest.mark.parametrize(
    ("name", "message"),
    [("tensorbord", "Did you mean 'tensorboard'"), ("wandb", "'wandb' needs a package .*run `pip install wandb`")],
)
def test_unusable_trackers_are_refused(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: ["tensorboard"])
    check_trackers(["tensorboard"])
    with pytest.raises(RecipeError, match=message):
        check_trackers(["tensorboard", name])


def test_pictures_go_to_the_trackers_that_take_them(tmp_path: Path) -> None:
    class Tracker:
        def __init__(self, name: str) -> None:
            self.name, self.calls = name, []

        def log_images(self, values: dict, step: int, **options: str) -> None:
            self.calls.append((values["held_out"], step, options))

    trackers = [Tracker(name) for name in ("tensorboard", "wandb", "mlflow")]
    accelerator = cast(Accelerator, SimpleNamespace(trackers=trackers, is_main_process=True))
    log = tracking.ProgressLog(accelerator, load_recipe("demo").logging, 0, 10, 4)
    Image.new("RGBA", (5, 3), (10, 20, 30, 255)).save(tmp_path / "picture.png")
    log.record_picture(7, tmp_path / "picture.png")
    log.close()
    for tracker, options in zip(trackers[:2], ({"dataformats": "NHWC"}, {}), strict=True):
        ((pixels, step, given),) = tracker.calls
        assert (pixels.shape, pixels[0, 0, 0].tolist(), step, given) == ((1, 3, 5, 3), [10, 20, 30], 7, options)
    assert trackers[2].calls == []
