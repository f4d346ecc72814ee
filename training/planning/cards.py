"""GPUs by name, or by the numbers that their maker names.

Peaks are those of dense matrix products in bfloat16, summed in float32: half of what data sheets print "with sparsity".
Memory is in GiB as PyTorch counts; a maker's 80 GB is taken as 80 GiB less what the driver keeps, see `MEMORY_SHARE`.
"""

from typing import NamedTuple

from foundation.errors import check_choice
from foundation.settings import SettingsError


class Card(NamedTuple):
    """A GPU.

    Attributes:
        name: As it is called.
        peak_flops: Dense bfloat16 operations per second.
        memory_gib: Its memory.
        source: Where both are from.
    """

    name: str
    peak_flops: float
    memory_gib: float
    source: str


_AMPERE = "NVIDIA A100 data sheet, June 2021"
_GA102 = "NVIDIA Ampere GA102 whitepaper v2.1, 2021"
_ADA = "NVIDIA Ada whitepaper v2.01, 2023"

CARDS = {
    card.name: card
    for card in (
        Card("A100", 312e12, 80, _AMPERE),
        Card("A100-40GB", 312e12, 40, _AMPERE),
        Card("H100", 989e12, 80, "NVIDIA H100 data sheet (SXM), 2023: 1,979 with sparsity"),
        Card("H200", 989e12, 141, "NVIDIA H200 data sheet (SXM), 2024: 1,979 with sparsity"),
        Card("B200", 2250e12, 180, "NVIDIA HGX data sheet, 2025: 36,000 with sparsity for 8"),
        Card("A10", 125e12, 24, "NVIDIA A10 data sheet, 2021"),
        Card("A40", 149.7e12, 48, "NVIDIA A40 data sheet, 2021"),
        Card("L4", 121e12, 24, "NVIDIA L4 data sheet, 2023: 242 with sparsity"),
        Card("L40S", 362e12, 48, "NVIDIA L40S data sheet, 2023"),
        Card("RTX-3090", 71e12, 24, _GA102),
        Card("RTX-4090", 165.2e12, 24, _ADA),
    )
}
"""Those whose peak in bfloat16 was found; older ones (V100, T4) have none."""

MEMORY_SHARE = 0.9
"""Of a card's memory that a plan may fill. Our choice: the rest is for the driver, PyTorch's own, the working space of
teachers and fragmentation."""


def choose_cards(name: str | None, peak_tflops: float | None, memory_gib: float | None) -> list[Card]:
    """Return the cards that a plan is for: the named one, one of given numbers, or all.

    Args:
        name: One of `CARDS`; with both numbers any name.
        peak_tflops: Dense bfloat16 operations per second, in units of 10^12; None for the known card's.
        memory_gib: Memory; None for the known card's.

    Raises:
        SettingsError: If a number is missing and there is no card of that name to have it from.
    """
    if name is None and peak_tflops is None and memory_gib is None:
        return list(CARDS.values())
    if peak_tflops is not None and memory_gib is not None:
        return [Card(name or "yours", 1e12 * peak_tflops, memory_gib, "given")]
    if name is None:
        missing, given = ("memory_gib", "peak_tflops") if memory_gib is None else ("peak_tflops", "memory_gib")
        raise SettingsError(f"`{missing}` must be given with `{given}`, got None. Or name a known card with `gpu`.")
    check_choice("gpu", name, CARDS, error=SettingsError)
    known = CARDS[name]
    if peak_tflops is None and memory_gib is None:
        return [known]
    peak = known.peak_flops if peak_tflops is None else 1e12 * peak_tflops
    memory = known.memory_gib if memory_gib is None else memory_gib
    return [Card(name, peak, memory, f"given, else {known.source}")]
