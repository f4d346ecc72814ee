"""A class of settings with one field of every sort."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from modeling_radio.core.settings import Mark, OneOf, Settings, Spelling, require


MARK = Mark("marked")
REGISTRY = {"mse": 1, "cosine": 2}


class Entry(Settings):
    """An entry.

    Attributes:
        name: What it is called.
        size: How large it is.
    """

    name: str
    size: Annotated[int, MARK] = Field(8, gt=0)


class Section(Settings):
    """A section.

    Attributes:
        rate: How fast,
            over two lines.
        loss: Which loss.
        free: Free keys.
    """

    rate: float = Field(0.1, ge=0, lt=1)
    loss: Annotated[str, OneOf(REGISTRY)] = "mse"
    free: dict[str, Any] = {}


class Toy(Settings):
    """Everything.

    Attributes:
        source: Where from.
        entries: Some entries.
        section: A section.
        side: A side.
        window: A window.
        bits: Bits.
        sizes: Sizes.
        names: Names.
        weights: Weights.
        output: A folder.
        is_quick: Whether it is quick.
    """

    source: str
    entries: list[Entry] = [Entry(name="low"), Entry(name="high")]
    section: Section = Section()
    side: Annotated[tuple[int, int] | None, Spelling(lambda text: [int(text)] * 2, "PX")] = None
    window: int | Literal["auto", "global"] | None = None
    bits: Literal[4, 8] | None = None
    sizes: list[int] = [1]
    names: list[str] | None = None
    weights: Literal["balanced"] | list[float] | None = None
    output: Annotated[Path, MARK] = Path("out")
    is_quick: bool = False

    @model_validator(mode="after")
    def _check(self) -> "Toy":
        require(self.bits != 4 or self.is_quick, "bits", self.bits, "8 unless `is_quick`")
        return self
