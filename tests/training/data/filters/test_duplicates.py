import random

import pytest

from training.data.filters.duplicates import near_duplicates


def one_by_one(hashes: dict[int, int], order: list[int], max_distance: int) -> list[int]:
    kept, duplicates = [], []
    for image in order:
        is_near = any(((hashes[image] ^ hashes[other]) & (2**64 - 1)).bit_count() <= max_distance for other in kept)
        (duplicates if is_near else kept).append(image)
    return duplicates


@pytest.mark.parametrize("max_distance", range(8))
def test_bands_find_what_comparing_all_pairs_finds(max_distance: int) -> None:
    draw = random.Random(max_distance)
    centers = [draw.getrandbits(64) for _ in range(12)]
    hashes = {}
    for number in range(150):
        bits = centers[draw.randrange(12)]
        for place in draw.sample(range(64), draw.randrange(max_distance + 3)):
            bits ^= 1 << place
        hashes[number] = bits - 2**64 if bits >= 2**63 else bits  # signed, as tensors hold them
    order = draw.sample(range(150), 150)
    found = near_duplicates(hashes, order, max_distance)
    assert found == one_by_one(hashes, order, max_distance)
    assert 0 < len(found) < 150


def test_the_first_in_order_stays() -> None:
    hashes = {0: 0b1, 1: 0b11, 2: 0b111, 3: -1}
    assert near_duplicates(hashes, [0, 1, 2, 3], 1) == [1]  # 2 is near 1, which is gone
    assert near_duplicates(hashes, [1, 2, 3, 0], 1) == [2, 0]
    assert near_duplicates(hashes, [0, 1, 2, 3], 0) == []
