import dataclasses

import pytest
import torch

from training.demo.images import DemoImages, render


@pytest.fixture
def images(assets):
    return DemoImages(assets, size=48, num_images=40, seed=3)


def test_an_item_is_a_function_of_seed_and_index(assets, images):
    again = DemoImages(assets, size=48, num_images=1000, seed=3)
    other = DemoImages(assets, size=48, num_images=40, seed=4)
    assert images[7].shape == (3, 48, 48)
    assert images[7].dtype == torch.uint8
    assert all(torch.equal(images[i], again[i]) for i in (39, 7, 0))
    assert not any(torch.equal(images[i], other[i]) for i in range(5))
    assert len({images[i].numpy().tobytes() for i in range(40)}) == 40


def test_an_item_is_the_same_picture_at_every_size(assets, images):
    large = DemoImages(assets, size=96, num_images=40, seed=3)
    for index in range(10):
        small = images[index].float()
        shrunk = torch.nn.functional.avg_pool2d(large[index].float(), 2)
        assert (small - shrunk).abs().mean() < 6


def test_the_splits_share_nothing(assets):
    train = DemoImages(assets, size=48, num_images=1).bank
    held_out = DemoImages(assets, size=48, num_images=1, split="held_out").bank
    assert {picture.getpixel((20, 20))[0] for picture in train.objects} == {255}
    assert {picture.getpixel((20, 20))[0] for picture in held_out.objects} == {0}
    assert all(picture.getextrema()[0][1] < 60 for picture in train.photographs)
    assert all(picture.getextrema()[0][0] > 200 for picture in held_out.photographs)


def test_the_source_of_an_image_is_the_picture_that_it_shows(assets):
    images = DemoImages(assets, size=48, num_images=60, split="held_out")
    sources = [images.source_of(index) for index in range(60)]
    assert {source.split()[0] for source in sources} == {"photograph", "object"}
    assert len(set(sources)) == 6  # two photographs, four objects
    for index, source in enumerate(sources):
        # Grounds are plain where a cut-out is alone, and a ramp where there is a photograph.
        corners = images[index][:, [0, -1], [0, -1]].T.tolist()
        assert (corners[0] == corners[1]) == source.startswith("object")


def test_rendering_does_not_depend_on_the_workers(images):
    indices = [5, 0, 31]
    expected = torch.stack([images[index] for index in indices])
    assert torch.equal(render(images, indices, num_workers=0, show_progress=False), expected)
    assert torch.equal(render(images, indices, num_workers=2, show_progress=False), expected)


def test_fingerprint_follows_what_could_be_reached(assets, images):
    poorer = dataclasses.replace(assets, description="PyPI only")
    assert images.fingerprint() == DemoImages(assets, size=48, num_images=40, seed=3).fingerprint()
    assert images.fingerprint() != DemoImages(poorer, size=48, num_images=40, seed=3).fingerprint()


def test_bad_arguments_are_refused(assets, images):
    with pytest.raises(IndexError):
        images[40]
    with pytest.raises(ValueError, match="`indices` must name at least one image, got none"):
        render(images, [])
    with pytest.raises(ValueError, match="must be positive"):
        DemoImages(assets, size=0, num_images=1)
    with pytest.raises(ValueError, match=r"`split` must be one of \['train', 'held_out'\], got 'test'"):
        DemoImages(assets, size=8, num_images=1, split="test")
