"""Pages of README and docs, and the code in them."""

import re
import sys
from pathlib import Path
from typing import NamedTuple


if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
"""The package's metadata."""
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (
        *ROOT.glob("*.md"),
        ROOT / "notebooks" / "README.md",
        ROOT / "training" / "README.md",
        *(ROOT / "docs").rglob("*.md"),
    )
)
"""From the repository's root."""

NVIDIA_NAME = re.compile(r"nvidia/(?:C-|E-)?RADIO[\w.-]*\w|nvidia/RADIO")
"""A repository of NVIDIA's with a RADIO model."""


class Block(NamedTuple):
    """Fenced code.

    Attributes:
        page: Where it stands, from the repository's root.
        line: Number of the line that opens it.
        language: What the fence says; empty where it says nothing.
        text: What is in it.
    """

    page: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        """Where to look."""
        return f"{self.page}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """Return the fenced code of all pages in some languages."""
    found: list[Block] = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        fenced = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        found += [Block(page, text.count("\n", 0, match.start()) + 1, *match.groups()) for match in fenced]
    return [block for block in found if block.language in languages]


def first_minute() -> Block:
    """Return README's first lines of Python, which open the model of the package."""
    return next(block for block in blocks("python") if block.page == "README.md")


def photograph_line() -> str:
    """Return README's command that copies the package's photograph."""
    (line,) = [block.text for block in blocks("bash") if block.page == "README.md" and "PHOTOGRAPH" in block.text]
    return line
