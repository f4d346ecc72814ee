"""The command `distill` with one phase that takes a minute, and makes the file "begun" once it is there."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_distillation import TinyTeacher, install_tiny_world
from torch.utils.data._utils import worker

from modeling_radio.core import packages
from modeling_radio.demo.assets import fetch_at_once
from modeling_radio.training import distill
from modeling_radio.training.distillation import build, inputs, trainer


def wait(*arguments: Any, **options: Any) -> None:
    """Take a minute."""
    Path("begun").touch()
    time.sleep(60)


def fetch(*arguments: Any, **options: Any) -> None:
    """Fetch two packages by a program that takes a minute."""
    fetch_at_once(["scikit-image", "scikit-learn"])


def sleeping_client(*arguments: Any) -> list[str]:
    """Return the command of that program."""
    Path("begun").touch()
    return ["sleep", "60"]


def count_steps(set_rate: Callable) -> Callable:
    """Return what begins a step, which also tells of the third."""

    def begin_step(distiller: trainer.Distiller) -> None:
        if distiller.step == 2:
            Path("begun").touch()
        set_rate(distiller)

    return begin_step


def install(phase: str, patch: pytest.MonkeyPatch) -> None:
    """Let a phase take long, and data workers look for their parent every half second, not every five."""
    install_tiny_world(patch)
    patch.setattr(worker, "MP_STATUS_CHECK_INTERVAL", 0.5)
    if phase == "fetching":
        patch.setattr(packages, "_client_command", sleeping_client)
        patch.setattr(inputs, "load_teachers", fetch)
    elif phase == "building":
        patch.setattr(build, "build_student", wait)
    elif phase in ("calibrating", "caching"):
        patch.setattr(TinyTeacher, "encode", wait)
    elif phase == "training":
        patch.setattr(trainer.Distiller, "_set_learning_rate", count_steps(trainer.Distiller._set_learning_rate))
    else:
        patch.setattr(trainer, "export_student", wait)


def main(words: list[str]) -> int:
    """Run `distill`.

    Args:
        words: The phase that takes long, and the words of the command.
    """
    phase, *words = words
    install(phase, pytest.MonkeyPatch())
    return distill.main(words)
