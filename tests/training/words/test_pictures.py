import torch
from PIL import Image

from training.words.pictures import OPACITY, _overlaid, draw_scenes


def test_classes_color_their_pixels_and_the_first_does_not():
    image, classes = torch.full((2, 2, 3), 0.5), torch.tensor([[0, 1], [2, 0]])
    shown = _overlaid(image, classes)
    assert torch.equal(shown[0, 0], image[0, 0])
    assert not torch.allclose(shown[0, 1], shown[1, 0])
    torch.testing.assert_close(_overlaid(image, torch.full((2, 2), 1))[0, 0] - (1 - OPACITY) * 0.5, shown[0, 1] - 0.2)


def test_there_is_a_column_for_each_scene(tmp_path):
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    maps = torch.randint(0, 3, (3, 8, 8))
    sizes = []
    for count in (1, 3):
        draw_scenes(images[:count], {"truth": maps[:count]}, ["background", "cat", "dog"], tmp_path / "scenes.png")
        with Image.open(tmp_path / "scenes.png") as picture:
            sizes.append(picture.size)
    assert sizes[1][0] == 3 * sizes[0][0]
    assert [path.name for path in tmp_path.iterdir()] == ["scenes.png"]
