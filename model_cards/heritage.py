"""What a checkpoint was made from, in a file beside its weights, so that its card can say what it inherits."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import ConfigDict

from foundation.files import write_text
from model_cards.results import Source
from model_cards.typed_json import load_typed


FILE = "learned_from.json"


@dataclass(frozen=True)
class Heritage:
    """What a student learned from, and whose weights it holds changed.

    Attributes:
        teachers: Their answers were learned; of a teacher that is a student itself, its teachers too.
        weights: Those that it started from.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    teachers: list[Source] = field(default_factory=list)
    weights: list[Source] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write the file into a checkpoint's folder."""
        write_text(folder / FILE, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def find(cls, folder: Path) -> Heritage:
        """Return what the file in a folder says; nothing where there is none.

        Raises:
            ValueError: If the file is no such file.
        """
        path = folder / FILE
        return load_typed(cls, path, "list of what a student learned from") if path.is_file() else cls()

    def seen_through(self, name: str) -> list[Source]:
        """Return the teachers, as those of a teacher called `name`."""
        return [
            Source(f"{name}: {each.name}", f"teacher of {name}", each.license, each.origin, each.size, each.hub_id)
            for each in (*self.teachers, *self.weights)
        ]
