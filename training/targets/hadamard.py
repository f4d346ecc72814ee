"""Hadamard matrices: the rotations that PHI-S spreads variances with."""

import functools
import itertools
from collections.abc import Callable
from functools import partial

import numpy as np


def hadamard_order_is_known(order: int) -> bool:
    """Return whether `hadamard_matrix` can build this order.

    There is no Hadamard matrix of odd order above 1, nor of an order above 2 that is 2 mod 4. A few multiples of 4, the
    smallest of them 92, need constructions that this file leaves out.
    """
    return _construction(order) is not None


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
    build = _construction(order)
    if build is None:
        raise ValueError(f"`order` {order} has no Sylvester, Paley or Kronecker construction of a Hadamard matrix.")
    matrix = build()
    matrix.setflags(write=False)
    return matrix


@functools.cache
def _construction(order: int) -> Callable[[], np.ndarray] | None:
    """Return a function that builds the matrix of an order, or None."""
    if order > 0 and order & (order - 1) == 0:
        return partial(_sylvester, order)
    if order < 4 or order % 4:
        return None
    power = order & -order
    while power > 1:
        if _construction(order // power) is not None:
            return partial(_kronecker, power, order // power)
        power //= 2
    if (field := _prime_power(order - 1)) is not None:
        return partial(_paley_1, *field)
    if (field := _prime_power(order // 2 - 1)) is not None and (order // 2 - 1) % 4 == 1:
        return partial(_paley_2, *field)
    for left in range(4, int(order**0.5) + 1, 4):
        if order % left == 0 and _construction(left) and _construction(order // left):
            return partial(_kronecker, left, order // left)
    return None


def _sylvester(order: int) -> np.ndarray:
    matrix = np.ones((1, 1), dtype=np.int8)
    while len(matrix) < order:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def _kronecker(left: int, right: int) -> np.ndarray:
    return np.kron(hadamard_matrix(left), hadamard_matrix(right))


def _paley_1(prime: int, degree: int) -> np.ndarray:
    """Return the matrix of order q + 1 for a prime power q = 3 mod 4."""
    return _bordered(prime, degree, corner_sign=-1) + np.eye(prime**degree + 1, dtype=np.int8)


def _paley_2(prime: int, degree: int) -> np.ndarray:
    """Return the matrix of order 2 (q + 1) for a prime power q = 1 mod 4."""
    conference = _bordered(prime, degree, corner_sign=1)
    plus = np.array([[1, 1], [1, -1]], dtype=np.int8)
    minus = np.array([[1, -1], [-1, -1]], dtype=np.int8)
    return np.kron(conference, plus) + np.kron(np.eye(len(conference), dtype=np.int8), minus)


def _bordered(prime: int, degree: int, corner_sign: int) -> np.ndarray:
    """Return `[[0, 1], [sign, Q]]` with Paley's matrix `Q[a, b]` = quadratic character of a - b.

    The character is 0 at 0, 1 at other squares, which are the even powers of a generator, and -1 elsewhere.
    """
    order = prime**degree
    powers, character = _powers_of_generator(prime, degree), np.zeros(order, dtype=np.int8)
    character[powers[0::2]] = 1
    character[powers[1::2]] = -1
    matrix = np.ones((order + 1, order + 1), dtype=np.int8)
    matrix[0, 0] = 0
    matrix[1:, 0] = corner_sign
    matrix[1:, 1:] = character[_differences(prime, degree)]
    return matrix


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


def _differences(prime: int, degree: int) -> np.ndarray:
    """Return the table of a - b in the field, `(p^k, p^k)`."""
    elements = np.arange(prime**degree, dtype=np.int32)
    table = np.zeros((len(elements), len(elements)), dtype=np.int32)
    for exponent in range(degree):
        digits = elements // prime**exponent % prime
        table += (digits[:, None] - digits[None, :]) % prime * prime**exponent
    return table


def _powers_of_generator(prime: int, degree: int) -> list[int]:
    """Return g^0, g^1, ... g^(p^k - 2) for a generator g of the field's multiplicative group.

    g is the residue of x modulo the first monic polynomial for which x generates everything (a primitive
    polynomial: finding it settles irreducibility too). In a prime field the polynomial is x - g.
    """
    for low_coefficients in itertools.product(range(1, prime), *[range(prime)] * (degree - 1)):
        powers = _powers_of_x(prime, low_coefficients)
        if len(powers) == prime**degree - 1:
            return powers
    raise AssertionError(f"no primitive polynomial over GF({prime}) of degree {degree}")


def _powers_of_x(prime: int, low_coefficients: tuple[int, ...]) -> list[int]:
    """Return 1, x, x^2, ... modulo `x^k + low_coefficients` (the constant first, not 0), up to the return to 1."""
    one = [1] + [0] * (len(low_coefficients) - 1)
    element, powers = one, []
    while not powers or element != one:
        powers.append(sum(digit * prime**exponent for exponent, digit in enumerate(element)))
        shifted = [0, *element[:-1]]
        element = [(digit - element[-1] * low) % prime for digit, low in zip(shifted, low_coefficients, strict=True)]
    return powers
