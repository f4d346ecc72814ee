"""Newton-Schulz iteration: the nearest orthogonal matrix, roughly, of many matrices at once."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor


COEFFICIENTS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
"""Of the odd polynomial of each iteration, fitted to bring singular values near 1 in five steps.

https://leloykun.github.io/ponder/muon-opt-coeffs
"""
EPSILON = 1e-7  # least norm that is divided by; Muon's own
MAX_BATCH_NUMBERS = 2**26
"""Numbers in one batch, 256 MB in float32. Our choice: few matrices of such a size keep any device busy."""


def orthogonalize(matrices: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Bring all singular values of each matrix near 1, from 0.7 to 1.2, but for those that are zero.

    Matrices of one shape, or of its transpose, go through the iteration as one batch.

    Args:
        matrices: Each `(rows, columns)`, of any shapes.
        dtype: What to compute in: bfloat16 where it is fast; it errs by about a hundredth.

    Returns:
        Matrices of the same shapes, in that precision.
    """
    places: dict[tuple[int, int], list[int]] = defaultdict(list)
    for place, matrix in enumerate(matrices):
        rows, columns = matrix.shape
        places[min(rows, columns), max(rows, columns)].append(place)
    results = list(matrices)
    for (rows, columns), members in places.items():
        size = max(1, MAX_BATCH_NUMBERS // (rows * columns))
        for batch in (members[start : start + size] for start in range(0, len(members), size)):
            wide = [matrices[place] if matrices[place].shape[0] == rows else matrices[place].mT for place in batch]
            for place, result in zip(batch, _iterate(torch.stack(wide), dtype), strict=True):
                results[place] = result if matrices[place].shape[0] == rows else result.mT
    return results


def _iterate(stack: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the orthogonal factors of wide matrices `(batch, rows, columns)`."""
    norms = torch.linalg.vector_norm(stack, dim=(1, 2), keepdim=True).clamp_(min=EPSILON)  # above the spectral norms
    result = (stack / norms).to(dtype)
    for linear, cubic, quintic in COEFFICIENTS:
        square = result @ result.mT
        factor = torch.baddbmm(square, square, square, beta=cubic, alpha=quintic)
        result = torch.baddbmm(result, factor, result, beta=linear)
    return result
