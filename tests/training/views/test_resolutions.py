from collections import Counter

from training.views.resolutions import draw_size


def test_sizes_follow_their_probabilities() -> None:
    sizes = Counter(draw_size([32, 48, 64], [1, 0, 3], 0, "size", step) for step in range(400))
    assert sizes[48] == 0
    assert 0.65 < sizes[64] / 400 < 0.85
    equal = Counter(draw_size([32, 64], None, 0, "size", step) for step in range(400))
    assert 0.4 < equal[32] / 400 < 0.6
