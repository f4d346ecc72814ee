import torch

from training.evaluation.data import CroppedViews, Stacked, square


def test_views_are_the_middle_square_and_crops_at_known_places():
    columns = torch.arange(100, dtype=torch.uint8).expand(2, 3, 60, 100).contiguous()
    views = CroppedViews(Stacked(columns), 3, seed=0)
    assert len(views) == 8
    assert views[4].shape == (3, 60, 60)
    assert views[4][0, 0].tolist() == list(range(20, 80))
    for index in views.views_of(1)[1:]:
        top, left, side = views.box(index)
        view = views[index]
        assert views.size(index) == tuple(view.shape[1:])
        assert 0.5 <= side <= 1
        assert max(top, left) + side <= 1 + 1e-9
        assert abs(view[0, 0, 0].item() - (20 + left * 60)) <= 1
        assert abs(view.shape[1] - side * 60) <= 1
    assert torch.equal(views[5], CroppedViews(Stacked(columns), 3, seed=0)[5])
    assert views.box(5) != CroppedViews(Stacked(columns), 3, seed=1).box(5)


def test_a_square_of_another_size():
    image = torch.arange(20, dtype=torch.uint8).expand(3, 10, 20)
    assert square(image, 10)[0, 0].tolist() == list(range(5, 15))
    assert square(image, 30).shape == (3, 30, 30)
