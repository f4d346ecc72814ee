import torch
from torch import nn

from modeling_radio.training.hooks.student import RunningStatistics
from modeling_radio.training.student.ema import running_statistics
from modeling_radio.training.targets.examples import Example
from modeling_radio.training.views.plan import PlannedBatch
from modeling_radio.training.views.shapes import Grid, ImageShape


NOTHING = Example([], {})


def batch_of(num_images: int) -> PlannedBatch:
    """Return a part of a step; without images it has a dummy one and no teachers."""
    rows = tuple(range(max(1, num_images)))
    shapes = (ImageShape(Grid(1, 1), Grid(1, 1)),) * len(rows)
    return PlannedBatch(0, 0, "low", shapes, rows, rows, len(rows), 1.0, ("a",) if num_images else ())


def build() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def test_a_skipped_step_leaves_them_as_they_were():
    model = build()
    statistics = RunningStatistics(model, None)
    for is_skipped in (True, False):
        before = [each.clone() for each in running_statistics(model)]
        statistics.begin_step(0, ())
        model(torch.rand(2, 3, 4, 4))
        statistics.end_step({}, is_skipped=is_skipped)
        assert all(map(torch.equal, before, running_statistics(model))) == is_skipped


def test_they_are_averaged_over_the_images_of_all_ranks():
    model = build()
    statistics = RunningStatistics(model, lambda own: own + torch.cat([torch.tensor([1.0]), torch.full((8,), 7.0)]))
    before = [each.clone() for each in running_statistics(model)]
    statistics.begin_step(0, ())
    statistics.begin_pass(batch_of(3))
    statistics.end_step({}, is_skipped=False)
    for now, then in zip(running_statistics(model), before, strict=True):
        torch.testing.assert_close(now, (3 * then + 7) / 4)


def test_a_pass_without_images_uses_them_and_leaves_them():
    """Its single image may have a single position, of which no batch norm has a variance."""
    model = build()
    model.append(nn.BatchNorm2d(4).eval())  # frozen
    statistics = RunningStatistics(model, None)
    before = [each.clone() for each in running_statistics(model)]
    statistics.begin_step(0, ())
    statistics.begin_pass(batch_of(0))
    model(torch.rand(1, 3, 1, 1)).sum().backward()
    statistics.see(batch_of(0), NOTHING, {})
    assert all(map(torch.equal, before, running_statistics(model)))
    assert [model[1].training, model[2].training] == [True, False]
    assert [int(model[index].num_batches_tracked) for index in (1, 2)] == [1, 0]
    statistics.begin_pass(batch_of(2))
    model(torch.rand(2, 3, 4, 4))
    assert not torch.equal(before[0], running_statistics(model)[0])
