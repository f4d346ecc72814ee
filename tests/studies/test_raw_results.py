import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from killing import is_killed
from toy_studies import save_toy_results, toy_result, toy_sums

from modeling_radio.studies import raw_results
from modeling_radio.studies.raw_results import (
    HeldOutSums,
    add_run,
    claim,
    draw_sources,
    effective_sources,
    load_results,
)
from modeling_radio.studies.study import CONSISTENCY
from modeling_radio.training.recipes.recipe import RecipeError


def test_sources_are_drawn_with_replacement_and_count_by_their_share():
    draws = draw_sources(30)
    assert draws.shape == (1000, 30)
    assert (draws.sum(1) == 30).all()
    assert draws.max() > 1
    assert torch.equal(draws, draw_sources(30))
    assert effective_sources([2.0] * 30) == pytest.approx(30)
    assert effective_sources([1.0, 0.0, 0.0]) == 1
    assert effective_sources([42.0] * 14 + [1.8] * 242) == pytest.approx(14.9, abs=0.1)


def test_sums_become_measures(opened, load):
    claim(opened.raw_results, toy_sums(opened))
    for arm, seed, error, more in (
        ("plain", 0, 0.5, {"knn/4 tokens": 0.5}),
        ("adaptive", 0, 0.05, {}),
        ("plain", 1, 0.6, {}),
    ):
        run = toy_result(opened, arm, seed, error)
        add_run(opened.raw_results, replace(run, numbers={**run.numbers, "knn/2 tokens": 0.1, **more}))
    results = replace(load(opened), bootstrap=torch.tensor([[1, 1, 1], [0, 0, 3]], dtype=torch.float64))
    assert results.seeds("plain") == [0, 1]
    assert results.seeds("plain", "adaptive") == [0]
    assert results.value("plain", 0, "dense_error/semantic") == pytest.approx(0.5 * 4.01 / 4)
    # The worst is the one teacher in one run, the other in another.
    assert results.value("plain", 0, "dense_error/worst") == pytest.approx(0.5 * 4.01 / 4)
    assert results.value("adaptive", 0, "dense_error/worst") == pytest.approx(0.1)
    assert results.value("plain", 0, "knn_sets") == 0.5
    assert results.resampled("plain", 0, "dense_error/worst").tolist() == pytest.approx([0.5 * 4.01 / 4, 0.505])
    assert results.resampled("plain", 0, "knn_sets") is None
    of_errors = ["dense_error/semantic", "dense_error/segmenter", "dense_error/worst"]
    assert results.measures() == [
        *of_errors,
        "fixed_pattern",
        "shift_error",
        "consistency",
        "knn_sets",
        "miou",
        "knn/2 tokens",
    ]


def edit(path, number, change):
    """Change the content of a line."""
    lines = path.read_text().splitlines()
    content = json.loads(lines[number - 1])
    change(content)
    lines[number - 1] = json.dumps(content)
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda run: run["recipe"]["schedule"].update(num_steps=7), r"schedule.num_steps: 7 -> 2"),
        (lambda run: run.update(folders={"runs/sharp": "other"}), "'runs/sharp'"),
        (lambda run: run.update(arm="old"), "of no arm"),
        (lambda run: run.update(seed=0), "'plain' with seed 0, is there twice"),
        (lambda run: run.pop("sums"), "no raw result"),
    ],
)
def test_lines_that_do_not_fit_are_refused(opened, load, change, named):
    save_toy_results(opened, {("plain", 0): 0.5, ("plain", 1): 0.5})
    edit(opened.raw_results, 2, lambda run: run.update(folders={"runs/sharp": "one"}))
    load(opened)
    edit(opened.raw_results, 3, change)
    with pytest.raises(RecipeError, match=rf"^Line 3 of .*{named}") as error:
        load_results(opened)
    assert "\n" not in str(error.value)


def test_newer_settings_had_their_defaults_and_removed_ones_are_not_compared(opened, load):
    save_toy_results(opened, {("plain", 0): 0.5})

    def age(run):
        del run["recipe"]["balancing"]
        run["recipe"]["filters_of_old"] = {"strength": 3}
        run["recipe"]["teachers"][0]["mood"] = "gentle"

    edit(opened.raw_results, 2, age)
    assert list(load(opened).runs) == [("plain", 0)]


def test_a_kill_within_a_line_leaves_the_lines_before_and_the_next_writer_removes_it(opened, load, monkeypatch, caplog):
    save_toy_results(opened, {("plain", 0): 0.5})
    before = opened.raw_results.read_bytes()

    def die_half_way(descriptor):
        os.ftruncate(descriptor, os.fstat(descriptor).st_size - 100)
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(raw_results.os, "fsync", die_half_way)
        assert is_killed(lambda: save_toy_results(opened, {("plain", 1): 0.6}), lambda: False)
    after = opened.raw_results.read_bytes()
    assert after.startswith(before)
    assert len(after) > len(before)
    assert list(load(opened).runs) == [("plain", 0)]
    assert "Line 3 of" in caplog.text
    assert opened.raw_results.read_bytes() == after, "it may be another's that is being written"
    save_toy_results(opened, {("plain", 1): 0.6})  # the lock went with the process
    assert list(load(opened).runs) == [("plain", 0), ("plain", 1)]


def test_many_may_write_side_by_side_and_a_run_is_there_once(opened, load):
    results = [toy_result(opened, "plain", seed % 10, 0.5) for seed in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: claim(opened.raw_results, toy_sums(opened)), range(8)))
        list(pool.map(lambda result: add_run(opened.raw_results, result), results))
    assert sorted(load(opened).runs) == [("plain", seed) for seed in range(10)]
    assert len(opened.raw_results.read_text().splitlines()) == 11


def test_a_file_belongs_to_its_images(opened):
    """Decoders and resizes of two machines differ by single levels, and with them the fingerprints."""
    here = toy_sums(opened)
    claim(opened.raw_results, here)
    before = opened.raw_results.read_bytes()
    claim(opened.raw_results, replace(here, fingerprint="elsewhere"))
    assert opened.raw_results.read_bytes() == before  # of the machine that came first
    with pytest.raises(RecipeError, match="Held-out images"):
        claim(opened.raw_results, replace(here, num_images=9))


def test_a_file_that_cannot_be_written_to_is_named(opened):
    opened.raw_results.mkdir()
    with pytest.raises(OSError, match=r"study\.jsonl"):
        claim(opened.raw_results, toy_sums(opened))


@pytest.mark.parametrize(
    ("sums", "changes", "are_same"),
    [
        ([10.3, 401.0, 3990.0], {"fingerprint": "other"}, True),  # the sum of one image is rounded by more
        ([10.0, 400.0, 4100.0], {}, False),
        ([100.0, 400.0, 4000.0], {}, False),
        ([400.0, 10.0, 4000.0], {}, False),
        ([10.0, 400.0, 4000.0], {"num_images": 46}, False),
        ([10.0, 400.0, 4000.0], {"counts": [2.0, 3.0, 40.0]}, False),
    ],
)
def test_images_are_known_by_their_sums_whatever_the_machine(sums, changes, are_same):
    def held_out(sums, counts=(1.0, 4.0, 40.0), fingerprint="bits", num_images=45):
        weights = {CONSISTENCY: list(counts), "dense_error/semantic": sums}
        return HeldOutSums(fingerprint, num_images, 96, [96, 128], weights)

    assert held_out([10.0, 400.0, 4000.0]).is_of_the_images_of(held_out(sums, **changes)) == are_same
