import pytest
import torch
from driven_weights import batch_of
from small_recipes import small_recipe

from training.student.packing import HeadAnswer
from training.targets.contrasts.cells import CELLS_PER_IMAGE, CellContrasts, draw_cells, read_at
from training.targets.examples import Example, Target
from training.views.shapes import Grid


def places_of(rows: int, cols: int, patches: Grid, shift: torch.Tensor) -> torch.Tensor:
    """A map whose features say where in the student's crop each cell's middle is, `(images, 2, rows, cols)`."""
    row = (torch.arange(rows) + 0.5) / rows + shift[:, :1] / patches.rows
    col = (torch.arange(cols) + 0.5) / cols + shift[:, 1:] / patches.cols
    return torch.stack([row[:, :, None].expand(-1, -1, cols), col[:, None, :].expand(-1, rows, -1)], dim=1)


@pytest.mark.parametrize("teacher_grid", [(6, 8), (3, 4), (12, 16), (7, 5)])
def test_the_student_is_read_where_the_teacher_sees_the_same(teacher_grid: tuple[int, int]) -> None:
    patches, shift = Grid(6, 8), torch.tensor([[0, 0], [1, -2], [-2, 3]])
    teacher = places_of(*teacher_grid, patches, shift)
    cells = draw_cells(teacher, patches, shift, torch.tensor([0.0, 0.5, 0.99]))
    wanted = teacher.flatten(2).take_along_dim(cells.index[:, None], 2).movedim(1, 2)
    torch.testing.assert_close(cells.centers[cells.is_seen], wanted[cells.is_seen])
    read = read_at(places_of(6, 8, patches, torch.zeros(3, 2)), cells.centers)
    half = 0.5 / torch.tensor(patches)
    inner = cells.is_seen & ((cells.centers > half) & (cells.centers < 1 - half)).all(2)
    assert inner.sum() > 12
    torch.testing.assert_close(read[inner], wanted[inner], rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(2, 2), (4, 4), (5, 7), (20, 30)])
def test_no_cell_is_taken_twice_and_all_have_the_same_chance(size: tuple[int, int]) -> None:
    count = 2000
    features, starts = torch.zeros(count, 1, *size), torch.arange(count) / count
    cells = draw_cells(features, Grid(*size), None, starts)
    num_cells = min(CELLS_PER_IMAGE, size[0] * size[1])
    assert cells.is_seen.all()
    assert cells.index.shape == (count, num_cells)
    assert all(len(set(row)) == num_cells for row in cells.index[:: count // 50].tolist())
    shares = torch.bincount(cells.index.flatten(), minlength=size[0] * size[1]) / cells.index.numel()
    torch.testing.assert_close(shares, torch.full_like(shares, 1 / (size[0] * size[1])), rtol=0.05, atol=0)


def test_what_only_the_teacher_sees_is_left_out() -> None:
    features = torch.zeros(3, 1, 4, 4)
    cells = draw_cells(features, Grid(4, 4), torch.tensor([[3, 0], [2, 2], [-4, 0]]), torch.tensor([0.0, 0.9, 0.0]))
    assert cells.is_seen.sum(1).tolist() == [4, 4, 0]
    assert sorted(cells.index[0][cells.is_seen[0]].tolist()) == [0, 1, 2, 3]
    assert sorted(cells.index[1][cells.is_seen[1]].tolist()) == [0, 1, 4, 5]


class Shape:
    summary_dim, feature_dim = None, 8


def test_a_student_that_answers_as_the_teacher_finds_every_cell() -> None:
    recipe = small_recipe("a", contrastive={"weight": 1.0, "kind": "dense"})
    contrasts = CellContrasts(recipe, {"a": Shape()}, lambda _, features: features - 1)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(5, 8, 2, 2, generator=generator)
    shifts = torch.tensor([[0, 0], [0, 0], [1, 0], [0, 0], [2, 2]])  # the last has nothing in common
    parts = []
    for rows in ([3, 4], [0, 1, 2]):
        target = Target(None, [features[rows] + 1], [shifts[rows]])
        parts.append((batch_of(0, tuple(rows), 5, "a"), Example([features], {"a": target})))
    contrasts.begin_step(parts)
    good, bad = [], []
    for batch, example in parts:
        same = features[list(batch.rows)].clone()
        if 2 in batch.rows:
            same[2, :, 1] = same[2, :, 0]  # what the teacher has in its first row, the student has in its second
        target = example.targets["a"]
        good.append(contrasts.losses("a", batch, HeadAnswer(None, [same]), target))
        bad.append(contrasts.losses("a", batch, HeadAnswer(None, [same.flip(3)]), target))
    assert good[0][1] == bad[0][1] == 0
    assert max(float(each.max()) for each in good) < 0.2
    assert all((each[:1] > 1).all() for each in bad)
