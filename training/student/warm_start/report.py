"""What a student got from where it started."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class WarmStart:
    """What came along from a source, and what did not; each entry is a few words.

    Attributes:
        source: As `student.init_from` names it, and what was found there.
        kept: Teachers whose heads came along; their dense heads predict features in the teacher's own space.
        taken: Weights of the source that the student has now.
        resized: What had to be brought to another size, or was folded into something else.
        added: What the student has beyond the source, and how it starts.
        left_out: What the source has and the student does not.
    """

    source: str
    kept: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """Return one line for the source, and one for each list that is not empty."""
        lists = {"taken": self.taken, "resized": self.resized, "added": self.added, "left out": self.left_out}
        lines = [f"  {name}: {'; '.join(entries)}" for name, entries in lists.items() if entries]
        return "\n".join([f"Start from {self.source}.", *lines])
