import pytest
import torch

from conversion.release.comparison import ParityError, compare_outputs


THEIRS = {"32x48/None/backbone/summary": torch.tensor([[3.0, 4.0]]), "32x48/8/sam3/features": torch.eye(2)[None]}


def test_three_measures_by_hand():
    ours = {"32x48/None/backbone/summary": torch.tensor([[4.0, 3.0]]), "32x48/8/sam3/features": torch.eye(2)[None]}
    summary, features = compare_outputs(THEIRS, ours)
    assert (summary.size, summary.window, summary.output) == ("32x48", None, "summary")
    assert summary.max_abs == pytest.approx(1)
    assert summary.relative == pytest.approx(2**0.5 / 5)
    assert summary.cosine == pytest.approx(24 / 25)
    assert (features.window, features.output) == (8, "sam3 features")
    assert (features.max_abs, features.relative, features.cosine) == (0, 0, pytest.approx(1))


def test_the_smallest_cosine_is_that_of_one_token():
    turned = THEIRS | {"32x48/8/sam3/features": torch.tensor([[[1.0, 0.0], [0.0, -1.0]]])}
    assert compare_outputs(THEIRS, turned)[1].cosine == pytest.approx(-1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"32x48/8/sam3/features": torch.eye(3)[None]}, r"features is \(1, 3, 3\), and NVIDIA's \(1, 2, 2\)"),
        ({"32x48/8/sam3/features": torch.full((1, 2, 2), torch.nan)}, "Ours 32x48/8/sam3/features is not finite"),
        ({"32x48/8/more/features": torch.eye(2)}, "Only one of the two answers 32x48/8/more/features"),
    ],
)
def test_what_cannot_be_compared_is_refused(change, message):
    with pytest.raises(ParityError, match=message):
        compare_outputs(THEIRS, THEIRS | change)
