from itertools import pairwise

from training.pictures.class_colors import class_color


def test_every_class_has_a_bright_color_of_its_own():
    colors = [class_color(index) for index in range(150)]
    assert len(set(colors)) == 150
    assert all(max(color) > 200 for color in colors)


def test_neighbors_in_a_row_differ_plainly():
    colors = [class_color(index) for index in range(20)]
    steps = [sum(abs(a - b) for a, b in zip(one, other, strict=True)) for one, other in pairwise(colors)]
    assert min(steps) > 150
