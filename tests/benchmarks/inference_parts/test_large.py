"""What is compared on a GPU, here in small shapes."""

from benchmarks.contenders.shapes import Place
from benchmarks.inference_parts import large
from benchmarks.inference_parts.large import Published, measure_large
from benchmarks.measuring.limits import Limits
from modeling_radio import RadioConfig


SMALL_SAM3 = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 56,
    "window_size": 2,
    "global_attn_indexes": [1, 3],
    "pretrain_image_size": 56,
}


def test_networks_are_timed(monkeypatch) -> None:
    built = large.build_ours
    monkeypatch.setattr(large, "build_ours", lambda config, place, compiled=False: built(config, place))
    small = Published("radio-test", 160, SMALL_SAM3, "radio-test", 64, 2)
    rows = measure_large(Place(), Limits(10, 10), small, budget_seconds=0, min_rounds=1)
    assert [row["network"] for row in rows] == [
        "radio-test, window 8, 160 px",
        "SAM3, 56 px",
        "radio-test, 2 x 64 px, eager",
        "radio-test, 2 x 64 px, compiled",
    ]
    assert rows[1]["times as fast as SAM3"] == "1.00 (1.00 to 1.00)"
    assert 0 < rows[2]["share of peak"] < 1


def test_defaults_are_the_published_shapes() -> None:
    from transformers.models.sam3 import Sam3ViTConfig

    published, sam3 = Published(), Sam3ViTConfig()
    for preset in (published.segmenter, published.huge):
        assert preset in RadioConfig.presets
    assert published.segmenter_size // 16 == sam3.image_size // sam3.patch_size
