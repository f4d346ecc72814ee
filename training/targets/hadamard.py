"""Hadamard matrices: square matrices of +1 and -1 with orthogonal rows, which spread variance evenly over channels.

Constructions: Sylvester (powers of two), Paley I and II (over any finite field) and Kronecker products of
these. Up to order 8192 they cover every width in use; see `hadamard_order_is_known` for the rest.
"""

import functools
import itertools

import numpy as np


def hadamard_order_is_known(order: int) -> bool:
    """Return whether `hadamard_matrix` can build this order.

    No Hadamard matrix exists for odd orders above 1 or orders 2 mod 4 above 2; a few multiples of 4, the
    smallest of them 92, need constructions that this file leaves out.
    """
    return _plan(order) is not None


@functools.lru_cache(maxsize=4)
def hadamard_matrix(order: int) -> np.ndarray:
    """Return a Hadamard matrix H with `H @ H.T == order * I`.

    The largest Sylvester factor that leaves a known order is split off first: 1280 = S(64) x P1(20), as in
    PHI-S A.1.1.

    Args:
        order: Number of rows and columns.

    Returns:
        `(order, order)` int8 array of +1 and -1. It is cached: do not write to it.

    Raises:
        ValueError: If no construction of this file gives the order.

    References:
        Sylvester 1867; Paley 1933; PHI-S A.1, https://arxiv.org/abs/2410.01680
    """
    plan = _plan(order)
    if plan is None:
        raise ValueError(f"`order` {order} has no Sylvester, Paley or Kronecker construction of a Hadamard matrix.")
    matrix = _CONSTRUCTIONS[plan[0]](*plan[1:])
    matrix.setflags(write=False)
    return matrix


@functools.cache
def _plan(order: int) -> tuple | None:
    """Return the construction of an order as `(name, *arguments)`, or None."""
    if order > 0 and order & (order - 1) == 0:
        return ("sylvester", order)
    if order < 4 or order % 4:
        return None
    power = order & -order
    while power > 1:
        if _plan(order // power) is not None:
            return ("kronecker", power, order // power)
        power //= 2
    return _paley_plan(order) or _kronecker_plan(order)


def _paley_plan(order: int) -> tuple | None:
    if (order - 1) % 4 == 3 and _prime_power(order - 1):
        return ("paley_1", order - 1)
    if order % 2 == 0 and (order // 2 - 1) % 4 == 1 and _prime_power(order // 2 - 1):
        return ("paley_2", order // 2 - 1)
    return None


def _kronecker_plan(order: int) -> tuple | None:
    for left in range(4, int(order**0.5) + 1, 4):
        if order % left == 0 and _plan(left) and _plan(order // left):
            return ("kronecker", left, order // left)
    return None


def _sylvester(order: int) -> np.ndarray:
    matrix = np.ones((1, 1), dtype=np.int8)
    while len(matrix) < order:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def _kronecker(left: int, right: int) -> np.ndarray:
    return np.kron(hadamard_matrix(left), hadamard_matrix(right))


def _paley_1(field_order: int) -> np.ndarray:
    """Return the matrix of order q + 1 for a prime power q = 3 mod 4."""
    return _bordered(field_order, corner_sign=-1) + np.eye(field_order + 1, dtype=np.int8)


def _paley_2(field_order: int) -> np.ndarray:
    """Return the matrix of order 2 (q + 1) for a prime power q = 1 mod 4."""
    conference = _bordered(field_order, corner_sign=1)
    plus = np.array([[1, 1], [1, -1]], dtype=np.int8)
    minus = np.array([[1, -1], [-1, -1]], dtype=np.int8)
    return np.kron(conference, plus) + np.kron(np.eye(len(conference), dtype=np.int8), minus)


def _bordered(field_order: int, corner_sign: int) -> np.ndarray:
    """Return `[[0, 1], [sign, Q]]` with Paley's matrix `Q[a, b]` = quadratic character of a - b."""
    matrix = np.ones((field_order + 1, field_order + 1), dtype=np.int8)
    matrix[0, 0] = 0
    matrix[1:, 0] = corner_sign
    matrix[1:, 1:] = _quadratic_character(field_order)[_differences(field_order)]
    return matrix


_CONSTRUCTIONS = {"sylvester": _sylvester, "kronecker": _kronecker, "paley_1": _paley_1, "paley_2": _paley_2}


# An element of the field with p^k elements is written as the integer whose base-p digits are its coefficients.


def _prime_power(number: int) -> tuple[int, int] | None:
    """Return `(p, k)` with `p ** k == number` for a prime p, or None."""
    if number < 2:
        return None
    prime = next((d for d in range(2, int(number**0.5) + 1) if number % d == 0), number)
    exponent = 0
    while number % prime == 0:
        number //= prime
        exponent += 1
    return (prime, exponent) if number == 1 else None


def _field(order: int) -> tuple[int, int]:
    field = _prime_power(order)
    assert field is not None
    return field


def _differences(order: int) -> np.ndarray:
    """Return the `(order, order)` table of a - b in the field."""
    prime, degree = _field(order)
    elements = np.arange(order, dtype=np.int32)
    table = np.zeros((order, order), dtype=np.int32)
    for place in range(degree):
        digits = elements // prime**place % prime
        table += (digits[:, None] - digits[None, :]) % prime * prime**place
    return table


def _quadratic_character(order: int) -> np.ndarray:
    """Return chi: 0 at 0, +1 at non-zero squares, -1 elsewhere; even powers of a generator are the squares."""
    powers = _powers_of_generator(order)
    character = np.zeros(order, dtype=np.int8)
    character[powers[0::2]] = 1
    character[powers[1::2]] = -1
    return character


def _powers_of_generator(order: int) -> list[int]:
    """Return g^0, g^1, ... g^(order - 2) for a generator g of the field's multiplicative group.

    g is the residue of x modulo the first monic polynomial for which x generates everything (a primitive
    polynomial: finding it settles irreducibility too). In a prime field the polynomial is x - g.
    """
    prime, degree = _field(order)
    for low_coefficients in itertools.product(range(1, prime), *[range(prime)] * (degree - 1)):
        powers = _powers_of_x(prime, low_coefficients)
        if len(powers) == order - 1:
            return powers
    raise AssertionError(f"no primitive polynomial over GF({prime}) of degree {degree}")


def _powers_of_x(prime: int, low_coefficients: tuple[int, ...]) -> list[int]:
    """Return 1, x, x^2, ... modulo `x^k + low_coefficients` (the constant first, not 0), up to the return to 1."""
    degree = len(low_coefficients)
    one = [1] + [0] * (degree - 1)
    element, powers = one, []
    while not powers or element != one:
        powers.append(sum(digit * prime**place for place, digit in enumerate(element)))
        shifted = [0, *element[:-1]]
        element = [(digit - element[-1] * low) % prime for digit, low in zip(shifted, low_coefficients, strict=True)]
    return powers
