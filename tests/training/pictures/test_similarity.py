import torch

from training.pictures.similarity import MARK, marked, similarity_colors, similarity_maps


def test_what_has_the_feature_of_the_place_is_alike():
    features = torch.zeros(2, 3, 4, 4)
    features[:, 0] = 1.0
    features[0, :, 1:3, 1:3] = torch.tensor([0.0, 1.0, 0.0])[:, None, None]
    features[1, :, 0] = torch.tensor([0.0, 0.0, 1.0])[:, None]
    features += 5.0  # common to all: says nothing
    maps = similarity_maps(features, [(1, 1), (0, 3)])
    torch.testing.assert_close(maps[0, 1:3, 1:3], torch.ones(2, 2))
    torch.testing.assert_close(maps[1, 0], torch.ones(4))
    assert maps[0, 0].max() < 0
    assert maps[1, 1:].max() < 0


def test_brightness_grows_with_the_cosine():
    colors = similarity_colors(torch.tensor([[[-1.0, 0.0, 0.4, 1.0]]]))
    assert torch.equal(colors[0, 0, 0], colors[0, 0, 1])
    assert (colors[0, 0, 1:].sum(-1).diff() > 0.3).all()


def test_a_ring_around_the_place():
    images = torch.full((1, 80, 80, 3), 0.5)
    ringed = marked(images, [(1, 2)], (4, 4))
    changed = (ringed != images).any(-1)[0].nonzero()
    torch.testing.assert_close(changed.float().mean(0), torch.tensor([29.5, 49.5]), atol=0.6, rtol=0)
    assert (ringed == torch.tensor(MARK)).all(-1).any()
    assert torch.equal(ringed[0, 30, 50], images[0, 30, 50]), "the place itself is seen"
