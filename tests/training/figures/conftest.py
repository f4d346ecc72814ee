"""The figures that are written, tiny checkpoints and photographs."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from tiny_checkpoints import opened, photograph, picture, save_tuned, texts


__all__ = ["opened", "photograph", "picture", "save_tuned", "texts"]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are written."""
    figures: list[Figure] = []
    save = Figure.savefig

    def note(figure: Figure, path: Path) -> None:
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(Figure, "savefig", note)
    return figures
