import json
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from killing import run_until
from toy_studies import save_toy_results, toy_result, toy_sums

from training.recipe import RecipeError
from training.studies import raw_results
from training.studies.raw_results import HeldOutSums, StudyResults, add_run, claim, load_results
from training.studies.study import CONSISTENCY, OpenedStudy


def loaded(opened: OpenedStudy) -> StudyResults:
    results = load_results(opened)
    assert results is not None
    return results


def test_sums_become_measures(opened: OpenedStudy) -> None:
    save_toy_results(opened, {("plain", 0): 0.5, ("dropping", 0): 0.05, ("plain", 1): 0.6})
    results = replace(loaded(opened), bootstrap=torch.tensor([[1, 1, 1], [0, 0, 3]], dtype=torch.float64))
    assert results.seeds("plain") == [0, 1]
    assert results.seeds("plain", "dropping") == [0]
    assert results.value("plain", 0, "dense_error/semantic") == pytest.approx(0.5 * 4.01 / 4)
    # The worst is the one teacher in one run, the other in another.
    assert results.value("plain", 0, "dense_error/worst") == pytest.approx(0.5 * 4.01 / 4)
    assert results.value("dropping", 0, "dense_error/worst") == pytest.approx(0.1)
    assert results.value("plain", 0, "knn_sets") == 0.5
    drawn = results.resampled("plain", 0, "dense_error/worst")
    assert drawn is not None
    assert drawn.tolist() == pytest.approx([0.5 * 4.01 / 4, 0.505])
    assert results.resampled("plain", 0, "knn_sets") is None
    assert results.measures() == [
        "dense_error/semantic",
        "dense_error/segmenter",
        "dense_error/worst",
        "fixed_pattern",
        "shift_error",
        "consistency",
        "knn_sets",
        "miou",
    ]


def test_what_is_measured_of_every_run_over_its_tokens_comes_last(opened: OpenedStudy) -> None:
    claim(opened.raw_results, toy_sums(opened))
    for seed, more in ((0, {"knn/4 tokens": 0.5}), (1, {})):
        run = toy_result(opened, "plain", seed, 0.5)
        numbers = {**run.numbers, "knn/2 tokens": 0.1, "knn/16 tokens": 0.2, **more}
        add_run(opened.raw_results, replace(run, numbers=numbers))
    assert loaded(opened).measures()[-4:] == ["knn_sets", "miou", "knn/2 tokens", "knn/16 tokens"]


def test_without_results_there_is_nothing_to_load(opened: OpenedStudy) -> None:
    assert load_results(opened) is None
    opened.raw_results.write_text("")
    assert load_results(opened) is None


def test_numbers_are_rounded_and_recipes_are_not(opened: OpenedStudy) -> None:
    save_toy_results(opened, {("plain", 0): 1 / 3})
    result = loaded(opened).runs["plain", 0]
    assert result.sums["dense_error/semantic"][0] == 0.33333
    assert result.recipe["optimizer"]["learning_rate"] == opened.recipe("plain", 0).optimizer.learning_rate
    assert opened.raw_results.stat().st_size < 8000


def edit(path: Path, number: int, change: Callable[[dict], object]) -> None:
    """Change the content of a line."""
    lines = path.read_text().splitlines()
    content = json.loads(lines[number - 1])
    change(content)
    lines[number - 1] = json.dumps(content)
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda run: run["recipe"]["schedule"].update(num_steps=7),
            r"another recipe \(schedule.num_steps: 7 -> 2\)",
        ),
        (
            lambda run: run.update(folders={"runs/sharp": "other"}),
            "other weights in 'runs/sharp' than one",
        ),
        (lambda run: run.update(arm="old"), "is of no arm of the study"),
        (lambda run: run.update(seed=0), "'plain' with seed 0, is there twice"),
        (lambda run: run.pop("sums"), "is no raw result"),
    ],
)
def test_what_does_not_belong_is_refused(opened: OpenedStudy, change: Callable[[dict], object], message: str) -> None:
    save_toy_results(opened, {("plain", 0): 0.5, ("plain", 1): 0.5})
    edit(opened.raw_results, 2, lambda run: run.update(folders={"runs/sharp": "one"}))
    loaded(opened)
    edit(opened.raw_results, 3, change)
    with pytest.raises(RecipeError, match=rf"^Line 3 of .*{message}") as error:
        load_results(opened)
    assert "\n" not in str(error.value)


def test_settings_that_are_newer_than_a_result_had_their_defaults_and_gone_ones_are_not_compared(
    opened: OpenedStudy,
) -> None:
    save_toy_results(opened, {("plain", 0): 0.5})

    def age(run: dict) -> None:
        del run["recipe"]["balancing"]
        run["recipe"]["filters_of_old"] = {"strength": 3}
        run["recipe"]["teachers"][0]["mood"] = "gentle"

    edit(opened.raw_results, 2, age)
    assert list(loaded(opened).runs) == [("plain", 0)]


def test_an_arm_whose_options_are_gone_stays(opened: OpenedStudy) -> None:
    save_toy_results(opened, {("plain", 0): 0.5, ("old", 0): 0.4, ("old", 1): 0.4})
    results = loaded(opened)
    assert results.gone == ["old"]
    assert results.seeds("old") == [0, 1]


def test_a_line_that_is_cut_off_counts_as_not_made_and_makes_room(
    opened: OpenedStudy, caplog: pytest.LogCaptureFixture
) -> None:
    save_toy_results(opened, {("plain", 0): 0.5, ("plain", 1): 0.6})
    path = opened.raw_results
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    assert list(loaded(opened).runs) == [("plain", 0)]
    assert "Line 3 of" in caplog.text
    assert path.read_bytes() == whole[:-40]  # it may be another's that is being written
    save_toy_results(opened, {("plain", 1): 0.6})
    assert path.read_bytes() == whole


def test_a_kill_while_a_line_is_written_leaves_the_lines_before(
    opened: OpenedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_toy_results(opened, {("plain", 0): 0.5})
    before = opened.raw_results.read_bytes()

    def die_half_way(descriptor: int) -> None:
        os.ftruncate(descriptor, os.fstat(descriptor).st_size - 100)
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(raw_results.os, "fsync", die_half_way)
        assert run_until(lambda: save_toy_results(opened, {("plain", 1): 0.6}), lambda: False) == signal.SIGKILL
    after = opened.raw_results.read_bytes()
    assert after.startswith(before)
    assert len(after) > len(before)
    assert list(loaded(opened).runs) == [("plain", 0)]
    save_toy_results(opened, {("plain", 1): 0.6})  # the lock went with the process
    assert list(loaded(opened).runs) == [("plain", 0), ("plain", 1)]


def test_many_may_write_side_by_side_and_a_run_is_there_once(opened: OpenedStudy) -> None:
    results = [toy_result(opened, "plain", seed % 10, 0.5) for seed in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: claim(opened.raw_results, toy_sums(opened)), range(8)))
        list(pool.map(lambda result: add_run(opened.raw_results, result), results))
    assert sorted(loaded(opened).runs) == [("plain", seed) for seed in range(10)]
    assert len(opened.raw_results.read_text().splitlines()) == 11


def test_a_folder_that_cannot_be_written_to_is_a_line(opened: OpenedStudy) -> None:
    opened.raw_results.mkdir()
    with pytest.raises(OSError, match=r"^Cannot write .*study.jsonl': Is a directory"):
        claim(opened.raw_results, toy_sums(opened))


def held_out_sums(sums: list[float], **changes: object) -> HeldOutSums:
    weights = {CONSISTENCY: [1.0, 4.0, 40.0], "dense_error/semantic": sums}
    return replace(HeldOutSums("bits", 45, 96, [96, 128], weights), **changes)


def test_images_are_known_by_their_sums_whatever_the_machine() -> None:
    here = held_out_sums([10.0, 400.0, 4000.0])
    # A picture of one image is rounded by more, relative to itself.
    assert here.is_of_the_images_of(held_out_sums([10.3, 401.0, 3990.0], fingerprint="other bits"))
    assert not here.is_of_the_images_of(held_out_sums([10.0, 400.0, 4100.0]))
    assert not here.is_of_the_images_of(held_out_sums([100.0, 400.0, 4000.0]))
    assert not here.is_of_the_images_of(held_out_sums([400.0, 10.0, 4000.0]))
    moved = here.weights | {CONSISTENCY: [2.0, 3.0, 40.0]}
    assert not here.is_of_the_images_of(replace(here, weights=moved))
    assert not here.is_of_the_images_of(replace(here, num_images=46))
