"""Differences between the outputs of a graph and of the model that it was made from, and their limits."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from modeling_radio.conversion.graphs.files import RunGraph


class NamedOutputs(Protocol):
    """A module whose outputs are a tuple of tensors with names."""

    @property
    def names(self) -> Sequence[str]: ...

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]: ...


@dataclass(frozen=True)
class OutputParity:
    """Differences of one output over several inputs; `+` accumulates them.

    Attributes:
        largest_difference: Largest absolute difference; infinity where one of the two is not a number.
        sum_of_cosines: Sum over all vectors, which run along an output's last dimension.
        num_vectors: Number of vectors.
        lowest_cosine: Smallest cosine of all vectors.
    """

    largest_difference: float = 0.0
    sum_of_cosines: float = 0.0
    num_vectors: int = 0
    lowest_cosine: float = 1.0

    @property
    def mean_cosine(self) -> float:
        """Mean over the vectors; 1 where there are none."""
        return self.sum_of_cosines / self.num_vectors if self.num_vectors else 1.0

    def __add__(self, other: "OutputParity") -> "OutputParity":
        return OutputParity(
            max(self.largest_difference, other.largest_difference),
            self.sum_of_cosines + other.sum_of_cosines,
            self.num_vectors + other.num_vectors,
            min(self.lowest_cosine, other.lowest_cosine),
        )


def compare(output: Tensor, expected: Tensor) -> OutputParity:
    """Compare an output with what is expected, of one shape; cosines are of the vectors along the last dimension.

    Raises:
        ValueError: If the shapes differ.
    """
    if output.shape != expected.shape:
        raise ValueError(f"`output` must have the shape {tuple(expected.shape)}, got {tuple(output.shape)}.")
    if not expected.numel():
        return OutputParity()
    output, expected = output.double(), expected.double()
    if not (output.isfinite().all() and expected.isfinite().all()):
        return OutputParity(float("inf"), 0.0, 1, 0.0)
    cosines = cosine_similarity(output, expected, dim=-1)
    difference = (output - expected).abs().amax().item()
    return OutputParity(difference, cosines.sum().item(), cosines.numel(), cosines.amin().item())


def compare_graph(
    module: NamedOutputs, run: RunGraph, inputs: Iterable[Mapping[str, Tensor]]
) -> dict[str, OutputParity]:
    """Compare a graph with the module that it was made from.

    Args:
        module: The module, called with the inputs in their order.
        run: Runs the graph.
        inputs: Inputs of each comparison, by name.

    Returns:
        The differences by output name.
    """
    parities = dict.fromkeys(module.names, OutputParity())
    for given in inputs:
        with torch.no_grad():
            expected = module(*given.values())
        for name, output, tensor in zip(module.names, run(given), expected, strict=True):
            parities[name] += compare(output, tensor)
    return parities


def print_parities(parities: Mapping[str, OutputParity]) -> None:
    """Print a line for each output."""
    print(f"{'output':<40}{'largest difference':>20}{'mean cosine':>14}{'lowest':>10}")
    for name, parity in parities.items():
        print(f"{name:<40}{parity.largest_difference:>20.2e}{parity.mean_cosine:>14.6f}{parity.lowest_cosine:>10.4f}")


def require_difference(parities: Mapping[str, OutputParity], tolerance: float) -> None:
    """Refuse outputs that differ by more than a tolerance.

    Raises:
        ValueError: If one does.
    """
    largest = max(parity.largest_difference for parity in parities.values())
    if not largest <= tolerance:
        raise ValueError(f"The graph differs from PyTorch by up to {largest:.2e}, more than {tolerance:g}.")


def require_cosine(parities: Mapping[str, OutputParity], least: float) -> None:
    """Refuse outputs whose mean cosine with the expected ones is below a bound.

    Raises:
        ValueError: If one is.
    """
    name, parity = min(parities.items(), key=lambda item: item[1].mean_cosine)
    if not parity.mean_cosine >= least:
        raise ValueError(
            f"The mean cosine of {name!r} with PyTorch is {parity.mean_cosine:.4f}, less than {least:g}: this "
            "precision loses too much of this model. Take another one, or accept it with --least-cosine."
        )
