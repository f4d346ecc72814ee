"""All contenders make the same batch, and the ratios are those of the rounds."""

from collections.abc import Callable

import pytest
import torch

from benchmarks import preprocessing
from benchmarks.measuring.turns import Turns


def test_all_do_equal_work() -> None:
    contenders = preprocessing.build_contenders(64)
    for name, images in preprocessing.draw_cases(8)[1:]:
        batches = {contender: call(images) for contender, call in contenders.items()}
        ours = batches.pop("ours")
        assert ours.shape == (len(images), 3, 64, 64), name
        assert ours.dtype == torch.float32
        assert torch.equal(ours, batches["transformers, torchvision"])
        assert torch.equal(ours, batches["transformers, torchvision, grouped"])
        for batch in batches.values():  # PIL rounds between rows and columns
            assert (ours - batch).abs().max() < 3 / 255


def test_cases_are_of_the_sizes_that_they_name() -> None:
    large, small, equal, mixed = (images for _, images in preprocessing.draw_cases(16))
    assert [image.size for image in (*large, *small)] == [(4000, 3000), (640, 480)]
    assert {image.size for image in equal} == {(640, 480)}
    assert len({image.size for image in mixed}) == 8


def test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(calls: dict[str, Callable[[], object]], **_: object) -> Turns[str]:
        return Turns({**{name: [0.3, 0.2] for name in calls}, "ours": [0.1, 0.1]})

    monkeypatch.setattr(preprocessing, "take_turns", timed)
    rows = preprocessing.measure(preprocessing.PreprocessingSettings(sizes=[32, 64], batch_size=2))
    assert [(row["size, px"], row["images"]) for row in rows][1::4] == [
        (32, "one of 640 x 480"),
        (64, "one of 640 x 480"),
    ]
    assert len(rows) == 8
    assert rows[0]["ours, ms"] == 100
    assert rows[0]["times as fast as timm"] == "2.50 (2.25 to 2.75)"


@pytest.mark.parametrize("argument", ["--sizes=100", "--sizes=4096", "--batch-size=0", "--budget-seconds=-1"])
def test_what_cannot_be_timed_is_one_line(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert preprocessing.main([argument]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"`{argument[2:].partition('=')[0].replace('-', '_')}" in error
