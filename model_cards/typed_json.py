"""Reads files of typed values, and says in one line what is wrong with one."""

from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError


T = TypeVar("T")


def load_typed(kind: type[T], path: Path, what: str) -> T:
    """Return what a JSON file holds.

    Args:
        kind: Class of it, a dataclass that pydantic can check.
        path: The file.
        what: What the file should be, for the message, such as "results file of `training.evaluate`".

    Raises:
        ValueError: If the file is missing, is not JSON, or has unknown or missing fields or values of other types; all
            are named.
    """
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes(), strict=True)
    except (OSError, ValidationError) as error:
        found = _faults(error) if isinstance(error, ValidationError) else str(error)
        raise ValueError(f"{path} is no {what}: {found}.") from error


def _faults(error: ValidationError) -> str:
    """Return what is wrong in one line: where, what must be, what is given."""
    found = [
        f"{'.'.join(map(str, entry['loc'])) or 'the file'}: {entry['msg']}, got {entry['input']!r:.60}"
        for entry in error.errors(include_url=False)
    ]
    return "; ".join(" ".join(fault.split()) for fault in found)
