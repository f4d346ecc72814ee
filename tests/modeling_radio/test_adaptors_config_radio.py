"""Which adaptors are found, and which cannot be built; types and ranges are in `test_config_checks_radio`."""

import pytest

from modeling_radio import RadioAdaptorConfig, RadioConfig


HEADS = [
    {"name": "siglip2-g", "hidden_size": 8, "summary_dim": 4},
    {"name": "dino_v3", "hidden_size": 8, "feature_dim": 6, "token_index": 1},
]


def tiny(**fields) -> RadioConfig:
    return RadioConfig.from_preset("radio-test", **fields)


def test_an_adaptor_is_found_by_name():
    adaptor = tiny(adaptors=HEADS).adaptor("dino_v3")
    assert adaptor == RadioAdaptorConfig(name="dino_v3", hidden_size=8, feature_dim=6, token_index=1)


def test_an_unknown_adaptor_is_answered_with_a_suggestion():
    message = r"`text_adaptor` must be one of \['siglip2-g', 'dino_v3'\], got 'dinov3'. Did you mean 'dino_v3'\?"
    with pytest.raises(ValueError, match=message):
        tiny(adaptors=HEADS).adaptor("dinov3", argument="text_adaptor")
    with pytest.raises(ValueError, match=r"`adaptor_names` must be one of \['siglip2-g', 'dino_v3'\], got 'siglip'"):
        tiny(adaptors=HEADS, adaptor_names=["siglip"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"feature_mlp_version": "v0"},
            r"`adaptors.siglip2-g.feature_mlp_version` must be .* or None, got 'v0'",
        ),
        ({"mlp_version": "v3"}, r"`adaptors.siglip2-g.mlp_version` must be 'v1' or 'v2', got 'v3'"),
        ({"feature_head": "atention"}, "`adaptors.siglip2-g.feature_head` must be 'mlp' or 'attention'"),
        ({"token_index": 3}, r"`adaptors.siglip2-g.token_index` must lie in \[0, 3\)"),
        ({"token_index": -1}, r"`adaptors.siglip2-g.token_index` must be in \[0, 1048576\], got -1"),
        ({"name": "a.b"}, "`adaptors.name` must be .*, got 'a.b'"),
        (
            {"feature_head": "attention", "feature_num_attention_heads": 5},
            r"`adaptors.siglip2-g.feature_num_attention_heads` must divide `hidden_size` \(32\), got 5",
        ),
    ],
)
def test_an_impossible_adaptor_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny(adaptors=[{**HEADS[0], **fields}])


def test_two_adaptors_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"`adaptors` must have distinct names, got \['dino_v3', 'dino_v3'\]"):
        tiny(adaptors=[HEADS[1], HEADS[1]])
