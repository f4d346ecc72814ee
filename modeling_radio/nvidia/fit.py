"""Refuses weights that are not those of a network."""

from collections.abc import Sequence


def check_fit(unknown: Sequence[str], missing: Sequence[str], misshapen: Sequence[str]) -> None:
    """Refuse weights that are not those of the network.

    Raises:
        ValueError: If there are any; the message names all.
    """
    problems = {"unknown": unknown, "missing": missing, "of another shape": misshapen}
    found = [f"{len(keys)} {kind}: {', '.join(keys)}" for kind, keys in problems.items() if keys]
    if found:
        raise ValueError(f"The tensors do not fit the architecture. {'; '.join(found)}.")
