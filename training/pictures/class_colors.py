"""Colors of classes: any number of them in a row have different hues."""

import colorsys


GOLDEN_ANGLE = 0.618033988749895
"""Of the color circle, so that any number of classes in a row have different hues."""


def class_color(index: int) -> tuple[int, int, int]:
    """Return the color of a class, bytes of RGB."""
    red, green, blue = colorsys.hsv_to_rgb(index * GOLDEN_ANGLE % 1, 0.75, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)
