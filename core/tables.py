"""Tables as Markdown, and texts that stand in them."""

from collections.abc import Sequence


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], *, aligned: bool = False) -> str:
    """Return a Markdown table.

    Args:
        header: Title of each column.
        rows: Cells of each row, as many as `header`.
        aligned: Pad the cells to equal widths, for readers of the plain text.
    """
    table = [list(header), *(list(row) for row in rows)]
    widths = [max(len(cell) for cell in column) if aligned else 0 for column in zip(*table, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in table
    ]
    separator = "| " + " | ".join("-" * (width or 3) for width in widths) + " |"
    return "\n".join([lines[0], separator, *lines[1:]])


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless the number is 1: "1 file", "2 files"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def one_line(text: str) -> str:
    """Return a text in one line, with single spaces."""
    return " ".join(text.split())


def plain_cell(text: str) -> str:
    """Return a text as a cell of a Markdown table: one line, with the signs escaped that end a cell or begin HTML."""
    return one_line(text).replace("|", r"\|").replace("<", "&lt;")
