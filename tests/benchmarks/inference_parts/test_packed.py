"""Packed images give what each of them gives alone."""

import torch
from releases import needs_native_packs

from benchmarks.contenders.shapes import Place
from benchmarks.inference_parts.packed import PACKED, SETS, build_calls, draw_images, measure_packed
from modeling_radio import RadioConfig


CONFIG = RadioConfig.from_preset("radio-test")


@needs_native_packs
def test_all_ways_encode_all_images() -> None:
    torch.manual_seed(0)
    images = draw_images(SETS["thumbnails"], CONFIG.patch_size, Place())
    calls = build_calls(CONFIG, Place(), images)
    with torch.no_grad():
        answers = {name: call() for name, call in calls.items()}
    patches = [rows * cols for rows, cols in 2 * SETS["thumbnails"]]
    for name, features in answers.items():
        assert [len(each) for each in features] == patches, name
        assert {each.shape[1] for each in features} == {32}
    for kind in ("ours", "native"):
        for packed, alone in zip(answers[f"{kind}, packed"], answers[f"{kind}, one by one"], strict=True):
            torch.testing.assert_close(packed, alone, rtol=1e-3, atol=1e-4)


def test_sets_are_eight_sizes_each() -> None:
    assert {len(set(grids)) for grids in SETS.values()} == {8}


@needs_native_packs
def test_rows() -> None:
    sets = {"few": [(1, 2), (2, 2)]}
    rows = measure_packed("radio-test", Place(), sets=sets, budget_seconds=0, min_rounds=1)
    assert rows[0]["way"] == PACKED
    assert rows[0]["ours, packed, is times as fast"] == "1.00 (1.00 to 1.00)"
    assert len(rows) == 5
