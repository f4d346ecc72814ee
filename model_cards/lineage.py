"""The file beside a checkpoint's weights that lists its teachers, initial weights and training images, for its card."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from pydantic import ConfigDict

from modeling_radio.core.files import write_text
from modeling_radio.metrics.results import Source, load_typed


FILE = "learned_from.json"


@dataclass(frozen=True)
class Lineage:
    """Teachers, initial weights and training images of a student.

    Attributes:
        teachers: Teachers of the student; for a teacher that is a student itself, its teachers too.
        weights: Weights that it started from.
        images: Training images, also of students that it learned or started from.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    teachers: list[Source] = field(default_factory=list)
    weights: list[Source] = field(default_factory=list)
    images: list[Source] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write the file into a checkpoint's folder."""
        write_text(folder / FILE, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def find(cls, folder: Path) -> Lineage:
        """Return the content of the file in a folder; an empty one where there is no file.

        Raises:
            ValueError: If the file holds something else.
        """
        path = folder / FILE
        if not path.is_file():
            return cls()
        try:
            return load_typed(cls, path, "list of what a student learned from")
        except ValueError as error:
            raise ValueError(
                f"{error} Restore it from a copy, or delete it: cards then name only the teachers of the recipe."
            ) from error

    def followed_through(self, name: str) -> Lineage:
        """Return the lineage of a student of this one, called `name`: initial weights count as teachers."""

        def renamed(sources: list[Source], role: str) -> list[Source]:
            return [replace(each, name=f"{name}: {each.name}", role=f"{role} of {name}") for each in sources]

        return Lineage(renamed([*self.teachers, *self.weights], "teacher"), [], renamed(self.images, "images"))

    def joined(self, other: Lineage) -> Lineage:
        """Return the union of both; entries of this one win over those of the same name and role."""

        def both(own: list[Source], others: list[Source]) -> list[Source]:
            known = {(each.name, each.role) for each in own}
            return [*own, *(each for each in others if (each.name, each.role) not in known)]

        return Lineage(
            both(self.teachers, other.teachers), both(self.weights, other.weights), both(self.images, other.images)
        )
