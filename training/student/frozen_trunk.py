"""A trunk that is not trained for now: its passes leave nothing behind to go back through."""

import contextlib
from collections.abc import Iterator

import torch

from modeling_radio import RadioModel


@contextlib.contextmanager
def frozen_trunk(student: RadioModel) -> Iterator[None]:
    """Build no graph below the adaptors in the student's passes within this context.

    The trunk's parameters are not marked, since DDP and FSDP look at these marks once, when they wrap the student.

    Args:
        student: Possibly wrapped, sharded or compiled; what the adaptors learn is not changed.
    """
    trunk = student.radio_model  # whose pass ends before the adaptors read it
    hooks = [trunk.register_forward_pre_hook(_stop_recording), trunk.register_forward_hook(_record, always_call=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _stop_recording(*_: object) -> None:
    torch.set_grad_enabled(False)


def _record(*_: object) -> None:
    torch.set_grad_enabled(True)
