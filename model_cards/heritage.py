"""What a checkpoint was made from, in a file beside its weights, so that its card can say what it inherits."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from pydantic import ConfigDict

from core.files import write_text
from model_cards.results import Source, load_typed


FILE = "learned_from.json"


@dataclass(frozen=True)
class Heritage:
    """What a student learned from, and whose weights it holds changed.

    Attributes:
        teachers: Their answers were learned; of a teacher that is a student itself, its teachers too.
        weights: Those that it started from.
        images: What it was trained on, and students that it learned or started from.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    teachers: list[Source] = field(default_factory=list)
    weights: list[Source] = field(default_factory=list)
    images: list[Source] = field(default_factory=list)

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
        if not path.is_file():
            return cls()
        try:
            return load_typed(cls, path, "list of what a student learned from")
        except ValueError as error:
            raise ValueError(
                f"{error} Restore it from a copy, or delete it: then cards name only what the recipe does."
            ) from error

    def seen_through(self, name: str) -> Heritage:
        """Return it as the heritage of a teacher called `name`: its starting weights count as teachers."""

        def renamed(sources: list[Source], role: str) -> list[Source]:
            return [replace(each, name=f"{name}: {each.name}", role=f"{role} of {name}") for each in sources]

        return Heritage(renamed([*self.teachers, *self.weights], "teacher"), [], renamed(self.images, "images"))

    def joined(self, other: Heritage) -> Heritage:
        """Return it with what the other adds: of the same name and role this one's stay."""

        def both(own: list[Source], others: list[Source]) -> list[Source]:
            known = {(each.name, each.role) for each in own}
            return [*own, *(each for each in others if (each.name, each.role) not in known)]

        return Heritage(
            both(self.teachers, other.teachers), both(self.weights, other.weights), both(self.images, other.images)
        )
