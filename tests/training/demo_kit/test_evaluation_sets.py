import torch

from training.demo.images import classification_set, photographs, segmentation_set


def test_the_queries_are_the_held_out_objects(assets):
    images = classification_set(assets, 32)
    assert images.class_names == ("disc", "box")
    assert images.gallery_labels.tolist() == images.query_labels.tolist() == [0, 0, 1, 1]
    assert images.gallery_images.shape == images.query_images.shape == (4, 3, 32, 32)
    assert (images.gallery_images[:, 0, 16, 16] == 255).all()
    assert (images.query_images[:, 2, 16, 16] == 255).all()
    assert images.query_images[:, :, 0, 0].unique(dim=0).tolist() == [[124, 116, 104]]


def test_masks_lie_exactly_on_held_out_objects(assets):
    scenes = segmentation_set(assets, 64, num_train=3, num_test=12)
    assert scenes.class_names == ("background", "disc", "box")
    assert scenes.train_images.shape == (3, 3, 64, 64)
    assert scenes.test_masks.dtype == torch.int64
    assert scenes.test_masks.unique().tolist() == [0, 1, 2]
    red, green, blue = scenes.test_images.unbind(1)
    is_pure_disc, is_pure_box = blue == 255, (green == 64) & (blue == 255)
    assert (scenes.test_masks[is_pure_disc & (green == 0)] == 1).all()
    assert (scenes.test_masks[is_pure_box & (red == 0)] == 2).all()
    assert (red[scenes.test_masks == 0] >= 100).all()  # light photographs, no held-out object without its mask


def test_scenes_are_always_the_same_ones(assets):
    first, again = (segmentation_set(assets, 32, num_train=2, num_test=2) for _ in range(2))
    assert torch.equal(first.test_images, again.test_images)
    assert torch.equal(first.train_masks, again.train_masks)


def test_photographs_can_be_asked_for_by_license(assets):
    assert [photo.name for photo in photographs(assets)] == ["copyleft", "held_out"]
    (free,) = photographs(assets, license="CC0-1.0")
    assert free.name == "held_out"
