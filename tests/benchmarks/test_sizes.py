"""The limit of a window is a pass without the attention of windowed blocks; packs give what each image gives alone."""

import torch
from releases import needs_native_packs

from benchmarks.inference import build_ours
from benchmarks.measuring import Placement
from benchmarks.sizes import (
    PACKED,
    SETS,
    attention_share,
    attention_timed,
    build_calls,
    draw_images,
    measure_packed,
)
from modeling_radio import RadioConfig


CONFIG = RadioConfig.from_preset("radio-test")
ONCE = {"min_rounds": 1}


def test_attention_is_timed_where_it_runs_and_stays_what_it_is() -> None:
    model, images = build_ours(CONFIG, Placement()), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(images).features
        with attention_timed(model, "cpu") as seconds:
            assert torch.equal(model(images).features, expected)
        assert len(seconds) == CONFIG.num_hidden_layers
        model(images)
        assert len(seconds) == CONFIG.num_hidden_layers
        assert 0 < attention_share(model, images) < 1


@needs_native_packs
def test_all_ways_encode_all_images() -> None:
    torch.manual_seed(0)
    images = draw_images(SETS["thumbnails"], CONFIG.patch_size, Placement())
    calls = build_calls(CONFIG, Placement(), images)
    with torch.no_grad():
        answers = {name: call() for name, call in calls.items()}
    patches = [rows * cols for rows, cols in 2 * SETS["thumbnails"]]
    for name, features in answers.items():
        assert [len(each) for each in features] == patches, name
    for kind in ("ours", "native"):
        for packed, alone in zip(answers[f"{kind}, packed"], answers[f"{kind}, one by one"], strict=True):
            torch.testing.assert_close(packed, alone, rtol=1e-3, atol=1e-4)
    rows = measure_packed("radio-test", Placement(), ONCE, {"few": [(1, 2), (2, 2)]})
    assert len(rows) == 5
    assert (rows[0]["way"], rows[0]["ours, packed, is times as fast"]) == (PACKED, "1.00 (1.00 to 1.00)")
