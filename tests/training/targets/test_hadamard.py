import numpy as np
import pytest

from modeling_radio.training.targets.phi_s import hadamard_matrix, hadamard_order_is_known


# Widths of real teachers (384 of DINOv2-S to 1536 of SigLIP2-g), and orders over GF(3^3), GF(5^2), GF(3^5), GF(5^4).
ORDERS = [1, 2, 4, 12, 28, 52, 112, 128, 244, 384, 768, 1024, 1152, 1252, 1280, 1408, 1536]


@pytest.mark.parametrize("order", ORDERS)
def test_rows_are_orthogonal_signs(order: int) -> None:
    matrix = hadamard_matrix(order).astype(np.float32)
    assert np.array_equal(np.abs(matrix), np.ones((order, order)))
    assert np.array_equal(matrix @ matrix.T, order * np.eye(order))


def test_4096_keeps_the_length_of_vectors() -> None:
    vectors = np.random.default_rng(0).standard_normal((4096, 2)).astype(np.float32)
    rotated = hadamard_matrix(4096).astype(np.float32) @ vectors / 64
    np.testing.assert_allclose(np.linalg.norm(rotated, axis=0), np.linalg.norm(vectors, axis=0), rtol=1e-5)


@pytest.mark.parametrize("order", [0, 3, 6, 90, 92, 806])
def test_unknown_order_is_refused(order: int) -> None:
    assert not hadamard_order_is_known(order)
    with pytest.raises(ValueError, match=f"`order` {order}"):
        hadamard_matrix(order)


def test_nearly_all_multiples_of_64_up_to_8192_are_known() -> None:
    unknown = [width for width in range(64, 8193, 64) if not hadamard_order_is_known(width)]
    assert unknown == [3776, 4672, 6464, 6848, 6976, 7232, 7552, 8128]
