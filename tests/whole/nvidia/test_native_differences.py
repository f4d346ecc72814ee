"""`native_differences`, field by field, against the model that transformers itself opens."""

import dataclasses

import pytest
import torch
from tiny_networks import NETWORKS
from transformers.models.radio import RadioModel as NativeRadioModel

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.engines import engine_verdicts
from modeling_radio.eradio_radio import eradio_fields
from modeling_radio.native import native_differences
from modeling_radio.nvidia.eradio import PUBLISHED


HEADS = [
    {"name": "siglip2-g", "hidden_size": 8, "summary_dim": 4},
    {"name": "dino_v3", "hidden_size": 8, "feature_dim": 6, "token_index": 1},
]
TEXT = {"text_tower": {"model_type": "siglip_text_model"}, "text_adaptor": "siglip2-g", "adaptors": HEADS}

# By field, other values than the default, with what else such a network has. Every field has some.
CASES: dict[str, list[dict]] = {
    "transformers_version": [{"transformers_version": "4.0.0"}],
    "architectures": [{"architectures": ["RadioForImageClassification"]}],
    "output_hidden_states": [{"output_hidden_states": True}],
    "return_dict": [{"return_dict": False}],
    "nvidia_outputs": [{"nvidia_outputs": True}],
    "reshape_hidden_states": [{"reshape_hidden_states": False}],
    "dtype": [{"dtype": "bfloat16"}, {"dtype": "float16"}],
    "chunk_size_feed_forward": [{"chunk_size_feed_forward": 2}],
    "is_encoder_decoder": [{"is_encoder_decoder": True}],
    "id2label": [{"id2label": {0: "cat", 1: "dog", 2: "owl"}}],
    "label2id": [{"label2id": {"cat": 0, "dog": 1}}],
    "problem_type": [{"problem_type": "regression"}],
    "use_feature_pyramid": [{"use_feature_pyramid": True}],
    "feature_pyramid_size": [{"feature_pyramid_size": 32}],
    "text_tower": [TEXT],
    "text_cleaning": [{**TEXT, "text_cleaning": "ftfy"}],
    "text_adaptor": [{"text_adaptor": "dino_v3", "adaptors": HEADS}],
    "classifier_pooling": [{"classifier_pooling": "summary_and_features"}],
    "segmentation_head": [{"segmentation_head": "dpt"}],
    "class_weights": [{"class_weights": [1.0, 2.0]}],
    "semantic_loss_ignore_index": [{"semantic_loss_ignore_index": 0}],
    "hidden_size": [{"hidden_size": 48}],
    "num_hidden_layers": [{"num_hidden_layers": 3}, {"num_hidden_layers": 1}],
    "num_attention_heads": [{"num_attention_heads": 1}, {"num_attention_heads": 8}],
    "intermediate_size": [{"intermediate_size": 86}],
    "mlp_ratio": [{"mlp_ratio": 2.7}, {"mlp_ratio": 1.0}],
    "hidden_act": [{"hidden_act": name} for name in ("relu", "gelu_pytorch_tanh", "quick_gelu")],
    "layer_norm_eps": [{"layer_norm_eps": 0.1}],
    "attention_probs_dropout_prob": [{"attention_probs_dropout_prob": 0.5}],
    "hidden_dropout_prob": [{"hidden_dropout_prob": 0.5}],
    "drop_path_rate": [{"drop_path_rate": 0.5}],
    "use_swiglu_ffn": [{"use_swiglu_ffn": True}],
    "qkv_bias": [{"qkv_bias": False}],
    "use_layer_scale": [{"use_layer_scale": True}, {"use_layer_scale": True, "layerscale_value": 0.5}],
    "layerscale_value": [{"layerscale_value": 0.5}],
    "use_patch_bias": [{"use_patch_bias": True}],
    "use_final_norm": [{"use_final_norm": True}],
    "num_channels": [{"num_channels": 1, "norm_mean": [0.5], "norm_std": [0.2]}],
    "patch_size": [{"patch_size": 8}, {"patch_size": 32}],
    "image_size": [{"image_size": 448}],
    "max_img_size": [{"max_img_size": 64, "max_resolution": 256}, {"max_img_size": 512}],
    "max_resolution": [{"max_resolution": 512}],
    "preferred_resolution": [{"preferred_resolution": [96, 32]}],
    "norm_mean": [{"norm_mean": [0.1, 0.2, 0.3]}],
    "norm_std": [{"norm_std": [0.1, 0.2, 0.3]}],
    "use_cropped_positions": [{"use_cropped_positions": False}],
    "pos_embed_align_corners": [{"pos_embed_align_corners": True}],
    "num_cls_tokens": [{"num_cls_tokens": 1, "summary_idxs": [0]}, {"num_cls_tokens": 9}],
    "num_registers": [{"num_registers": 0}, {"num_registers": 1}],
    "summary_idxs": [
        *({"summary_idxs": tokens} for tokens in ([2, 0], [1], [0, 0], [0, 1, 2], [])),
        *({"summary_idxs": tokens, "nvidia_source": {"args": {}}} for tokens in ([0, 3], [9])),  # registers
    ],
    "use_feature_normalizer": [{"use_feature_normalizer": True}],
    "num_intermediate_normalizers": [{"num_intermediate_normalizers": 4}],
    "intermediate_rotation_per_layer": [{"intermediate_rotation_per_layer": True, "num_intermediate_normalizers": 4}],
    "initializer_range": [{"initializer_range": 0.1}],
    "vitdet_window_size": [
        {"vitdet_window_size": 2, "vitdet_num_global": 2},
        {"vitdet_window_size": 2, "vitdet_num_global": 4},  # no block left for windows
    ],
    "vitdet_num_global": [{"vitdet_num_global": 1}],
    "vitdet_num_windowed": [
        {"vitdet_num_windowed": 1},
        {"vitdet_num_windowed": 1, "vitdet_window_size": 3},
        {"vitdet_num_windowed": 0, "vitdet_window_size": 3},
    ],
    "dpt_indices": [{"dpt_indices": [0, 1, 2, 3]}],
    "dpt_hidden_size": [{"dpt_hidden_size": 8}],
    "detection_indices": [{"detection_indices": [1, 3]}],
    "detection_hidden_size": [{"detection_hidden_size": 32}],
    "detection_num_layers": [{"detection_num_layers": 1}],
    "detection_num_queries": [{"detection_num_queries": 7}],
    "detection_num_groups": [{"detection_num_groups": 1}],
    "detection_window_size": [{"detection_window_size": None}, {"detection_window_size": "global"}],
    "temperature": [{"temperature": 2.0}],
    "score_thresholds": [{"score_thresholds": [0.5, 0.25]}],
    "adaptors": [
        {"adaptors": HEADS},
        {"adaptors": [{**HEADS[0], "token_index": 10}], "nvidia_source": {"args": {}}},  # native has no heads
    ],
    "adaptor_names": [{"adaptors": HEADS, "adaptor_names": ["dino_v3"]}],
    "video_temporal_patch_size": [{"video_temporal_patch_size": 2}],
    "downscale_levels": [{"downscale_levels": [2]}],
    "merged_intermediate_sizes": [{"downscale_levels": [2], "merged_intermediate_sizes": [100]}],
    "qk_norm": [{"downscale_levels": [2], "qk_norm": True}],
    "progressive_reduction": [{"downscale_levels": [1], "progressive_reduction": True}],
    "decoder_depth": [{"decoder_depth": 3}, {"downscale_levels": [2], "decoder_depth": 3}],
    "decoder_upscale_levels": [{"downscale_levels": [2], "decoder_upscale_levels": [0]}],
    "filler_grid_size": [{"filler_grid_size": 3}, {"downscale_levels": [2], "filler_grid_size": 3}],
    "navit": [{"navit": {}, "use_patch_bias": True, "use_final_norm": True, "num_cls_tokens": 1, "summary_idxs": [0]}],
    "num_tokens": [{"downscale_levels": [2], "num_tokens": 1}],
    "eradio": [eradio_fields(PUBLISHED["eradio"] | {"dim": 8, "in_dim": 8, "full_features_head_dim": 32})],
    "wrapped": [NETWORKS["class"].fields],
    "version": [{"version": "c-radio_v3-b"}],
    "nvidia_source": [{"nvidia_source": {"args": {"model": "vit_base_patch16_224"}, "heads": {}}}],
    "_out_features": [{"_out_features": ["stem", "stage2"]}],
    "_out_indices": [{"_out_indices": [1, 2]}],
}
SIZES = ((64, 96), (160, 32))
"""None is that of the position table."""


@pytest.fixture
def opened_twice(tmp_path):
    """Return a function that saves a network of random weights and opens it as ours and as transformers' own."""

    @torch.no_grad()
    def save_and_open(fields: dict) -> tuple[RadioModel, NativeRadioModel | None]:
        config = RadioConfig.from_preset("radio-test", **{k: v for k, v in fields.items() if not k.startswith("_")})
        if "_out_features" in fields or "_out_indices" in fields:
            config.set_output_features_output_indices(fields.get("_out_features"), fields.get("_out_indices"))
        model = RadioModel(config)
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():  # a new network hides what is zero or one at first
                tensor += 0.2 * torch.rand_like(tensor)
        model.to(model.config.dtype or torch.float32).save_pretrained(tmp_path)
        ours = RadioModel.from_pretrained(tmp_path).eval()
        if config.num_mergings:
            with pytest.raises(RuntimeError):  # its blocks are all of one width
                NativeRadioModel.from_pretrained(tmp_path)
            return ours, None
        return ours, NativeRadioModel.from_pretrained(tmp_path).eval()

    return save_and_open


@torch.no_grad()
def are_equal(ours: RadioModel, native: NativeRadioModel) -> bool:
    """Whether summary and features agree at every size; with some configurations native stops."""
    for height, width in SIZES:
        batch = torch.rand(1, ours.config.num_channels, height, width, dtype=ours.dtype)
        try:
            answers = native(batch)
        except (IndexError, AttributeError):
            return False
        pairs = zip(ours(batch)[:2], answers[:2], strict=True)
        if not all(torch.allclose(left, right, rtol=1e-5, atol=1e-5) for left, right in pairs):
            return False
    return True


@pytest.mark.parametrize(
    "fields",
    [pytest.param(fields, id=f"{name}-{index}") for name, cases in CASES.items() for index, fields in enumerate(cases)],
)
def test_native_differs_exactly_where_differences_are_named(fields, opened_twice):
    ours, native = opened_twice(fields)
    verdict = next(each for each in engine_verdicts(ours.config) if each.engine == "transformers")
    assert verdict.reasons == native_differences(ours.config)
    if native is None:
        assert verdict.outcome == "does not load"
        return
    assert type(native).__module__ == "transformers.models.radio.modeling_radio"
    assert are_equal(ours, native) == (verdict.outcome == "loads")


def test_every_field_has_a_case():
    fields = {field.name for field in dataclasses.fields(RadioConfig)}
    assert fields == set(CASES)
    for name, cases in CASES.items():
        assert all(name in fields for fields in cases)


def test_all_that_differs_is_named(opened_twice):
    fields = {"pos_embed_align_corners": True, "use_final_norm": True, "summary_idxs": [4], "nvidia_source": {}}
    ours, native = opened_twice(fields)
    assert native_differences(ours.config) == [
        "a position table resized with aligned corners",
        "a final norm",
        "a summary of registers, which native cuts off",
    ]
    assert not are_equal(ours, native)
