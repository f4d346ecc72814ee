"""Any value in any field of the configuration, and any argument of the model: refused by name, or it works.

Nothing but our own `ValueError`, with the name of a field or an argument in it, may come out. What is accepted
can be saved and opened, and builds a model whose outputs are finite.
"""

import copy
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from task_models import tiny_config
from transformers import PreTrainedModel

from modeling_radio import (
    RadioBackbone,
    RadioConfig,
    RadioForDepthEstimation,
    RadioForImageClassification,
    RadioForInstanceSegmentation,
    RadioForObjectDetection,
    RadioForSemanticSegmentation,
    RadioModel,
)
from modeling_radio.checks_radio import LARGEST
from modeling_radio.configuration_radio import ACTIVATIONS, RadioAdaptorConfig
from modeling_radio.inputs_radio import WindowChoice


FIELDS = [
    *(each.name for each in dataclasses.fields(RadioConfig) if not each.name.startswith("_")),
    *("num_labels", "out_features", "out_indices", "output_attentions"),
]
ADAPTOR_FIELDS = [each.name for each in dataclasses.fields(RadioAdaptorConfig)]
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")

pytestmark = pytest.mark.usefixtures("one_thread")

ADAPTORS = [
    {"name": "siglip2-g", "hidden_size": 8, "summary_dim": 4, "feature_dim": 6},
    {"name": "sam3", "hidden_size": 8, "feature_dim": 3, "token_index": 1, "upsample_factor": 2},
]
MODELS = (
    RadioModel,
    RadioBackbone,
    RadioForImageClassification,
    RadioForSemanticSegmentation,
    RadioForDepthEstimation,
    RadioForObjectDetection,
    RadioForInstanceSegmentation,
)

numbers = st.one_of(
    st.integers(-3, 20),
    st.integers(),
    st.floats(),
    st.floats(0, 1),
    st.sampled_from([LARGEST, LARGEST + 1, -1.0, 1.0, 10**400, np.int64(3), np.float32(0.5), torch.tensor(2), 1j]),
)
words = st.one_of(
    st.sampled_from(["auto", "global", "gelu", "summary", "dpt", "p2", "stage1", "stem", "siglip2-g", "float16", ""]),
    st.text(),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, words, st.binary())
values = st.recursive(
    st.one_of(scalars, st.sampled_from([object(), int, torch.float16, torch.int8, np.zeros(3), torch.zeros(2, 2)])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(st.one_of(words, st.integers(-2, 3), st.sampled_from(ADAPTOR_FIELDS)), inner, max_size=3),
        st.sets(words, max_size=2),
    ),
    max_leaves=4,
)
any_fields = st.dictionaries(st.sampled_from(FIELDS), values, min_size=1, max_size=3)

small = st.integers(0, 5)
flags = st.booleans()
adaptors = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from(["a", "b", "train"]), "hidden_size": st.integers(1, 8)},
        optional={
            "token_index": small,
            "summary_dim": st.integers(1, 4),
            "feature_dim": st.integers(1, 4),
            "num_inner_blocks": st.integers(0, 2),
            "mlp_version": st.sampled_from(["v1", "v2"]),
            "feature_head": st.sampled_from(["mlp", "attention"]),
            "upsample_factor": st.integers(1, 3),
            "feature_hidden_size": st.integers(1, 8),
            "feature_num_inner_blocks": st.integers(0, 2),
            "feature_num_blocks": st.integers(0, 2),
            "feature_num_attention_heads": st.integers(1, 4),
        },
    ),
    max_size=2,
)
pixels = st.one_of(st.floats(-LARGEST, LARGEST), st.floats(0, 1))
plausible_fields = st.fixed_dictionaries(
    {},
    optional={
        "hidden_size": st.sampled_from([1, 2, 4, 6, 8, 32]),
        "num_hidden_layers": st.integers(1, 3),
        "num_attention_heads": st.sampled_from([1, 2, 4]),
        "intermediate_size": st.integers(0, 40),
        "mlp_ratio": st.one_of(st.floats(0, 4), st.floats(0, 1e-3)),
        "hidden_act": st.sampled_from(ACTIVATIONS),
        "layer_norm_eps": st.floats(0, 1),
        "attention_probs_dropout_prob": st.floats(0, 1),
        "hidden_dropout_prob": st.floats(0, 1),
        "drop_path_rate": st.floats(0, 1),
        "use_swiglu_ffn": flags,
        "qkv_bias": flags,
        "use_layer_scale": flags,
        "layerscale_value": pixels,
        "use_patch_bias": flags,
        "use_final_norm": flags,
        "num_channels": st.integers(1, 4),
        "patch_size": st.sampled_from([1, 2, 8, 14, 16]),
        "image_size": st.integers(1, 400),
        "max_img_size": st.sampled_from([1, 14, 16, 32, 112]),
        "max_resolution": st.one_of(st.none(), st.integers(1, 300)),
        "preferred_resolution": st.tuples(st.integers(1, 300), st.integers(1, 300)),
        "norm_mean": st.lists(pixels, min_size=3, max_size=3),
        "norm_std": st.lists(st.one_of(st.floats(1e-6, LARGEST), st.floats(0, 1)), min_size=3, max_size=3),
        "use_cropped_positions": flags,
        "pos_embed_align_corners": flags,
        "num_cls_tokens": st.integers(1, 4),
        "num_registers": small,
        "summary_idxs": st.one_of(st.none(), st.lists(small, max_size=4)),
        "use_feature_normalizer": flags,
        "num_intermediate_normalizers": small,
        "intermediate_rotation_per_layer": flags,
        "initializer_range": st.floats(0, 1),
        "vitdet_window_size": st.one_of(st.none(), st.integers(1, 3), st.integers(1, LARGEST)),
        "vitdet_num_global": st.integers(1, 5),
        "vitdet_num_windowed": st.one_of(st.none(), small),
        "adaptors": adaptors,
        "classifier_pooling": st.sampled_from(["summary", "summary_and_features"]),
        "segmentation_head": st.sampled_from(["linear", "dpt"]),
        "class_weights": st.one_of(st.none(), st.lists(st.floats(0, 2), min_size=3, max_size=3)),
        "dpt_indices": st.lists(st.integers(0, 3), min_size=4, max_size=4).map(sorted),
        "dpt_hidden_size": st.integers(2, 16),
        "detection_indices": st.lists(st.integers(0, 3), max_size=3).map(sorted),
        "detection_num_layers": st.integers(1, 2),
        "detection_num_queries": st.integers(1, 4),
        "detection_num_groups": st.integers(1, 3),
        "detection_window_size": st.one_of(st.none(), st.integers(1, 3), st.sampled_from(["auto", "global"])),
        "use_feature_pyramid": flags,
        "feature_pyramid_size": st.integers(1, 8),
        "out_indices": st.lists(st.integers(-1, 4), max_size=3),
        "output_hidden_states": flags,
        "num_labels": st.integers(1, 4),
        "problem_type": st.sampled_from(PROBLEM_TYPES),
        "dtype": st.sampled_from(["float32", "float16", "bfloat16", "float64"]),
    },
)


def assert_names_one(error: ValueError, names: list[str]) -> None:
    """The error is ours, and says which of the names is wrong."""
    assert type(error) is ValueError, repr(error)
    assert any(name in str(error) for name in names), (str(error), names)


def set_in_turn(fields: dict) -> RadioConfig:
    config = tiny_config(adaptors=ADAPTORS)
    for name, value in fields.items():
        setattr(config, name, value)
    config.check()
    return config


WAYS = {
    "built": lambda fields: tiny_config(**{"adaptors": ADAPTORS, **fields}),
    "opened": lambda fields: RadioConfig.from_dict(tiny_config(adaptors=ADAPTORS).to_dict(), **fields),
    "set": set_in_turn,
}


@pytest.mark.fuzz
@example(fields={"adaptors": []}, way="set")  # with `adaptor_names` of before
@given(fields=any_fields, way=st.sampled_from(list(WAYS)))
def test_any_value_of_any_field_is_kept_or_refused_by_name(fields, way):
    try:
        config = WAYS[way](fields)
    except ValueError as error:
        assert_names_one(error, list(fields))
        return
    saved = json.loads(config.to_json_string())
    opened = json.loads(RadioConfig.from_dict(copy.deepcopy(saved)).to_json_string())
    assert json.dumps(opened, sort_keys=True) == json.dumps(saved, sort_keys=True)  # as text, where NaN equals NaN


@pytest.mark.fuzz
@settings(max_examples=max(settings.default.max_examples // 2, 1))
@given(fields=plausible_fields, model_class=st.sampled_from(MODELS), is_training=flags)
@torch.no_grad()
def test_what_is_accepted_is_built_and_finite(fields, model_class, is_training):
    if "num_channels" in fields:
        fields = {**{name: [0.5] * fields["num_channels"] for name in ("norm_mean", "norm_std")}, **fields}
    try:
        model = model_class(tiny_config(**fields)).train(is_training)
    except ValueError as error:
        assert_names_one(error, FIELDS)
        return
    side = 2 * model.patch_size if 2 * model.patch_size <= model.max_resolution else model.patch_size
    batch = torch.rand(2, model.config.num_channels, side, model.patch_size, dtype=model.dtype)
    try:
        output = model(batch)
    except ValueError as error:
        assert_names_one(error, [*FIELDS, "pixel_values"])
        return
    assert_finite(output)


def assert_finite(output: object) -> None:
    if isinstance(output, torch.Tensor):
        assert output.isfinite().all()
    elif isinstance(output, dict):
        for value in output.values():
            assert_finite(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            assert_finite(value)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return RadioModel(tiny_config(adaptors=ADAPTORS)).eval()


shapes = st.one_of(
    st.tuples(st.integers(0, 3), st.sampled_from([0, 1, 3, 4]), *[st.sampled_from([0, 1, 16, 24, 32, 256, 272])] * 2),
    st.lists(st.integers(0, 20), max_size=5),
)
types = st.sampled_from([torch.float32, torch.float16, torch.float64, torch.uint8, torch.bool, torch.complex64])
tensors = st.builds(lambda shape, dtype: torch.zeros(tuple(shape), dtype=dtype), shapes, types)
windows = st.one_of(st.none(), st.integers(1, 4), st.sampled_from(["auto", "global"]), values)
arguments = st.fixed_dictionaries(
    {"pixel_values": st.one_of(st.just(torch.rand(2, 3, 32, 48)), tensors, values)},
    optional={
        "window_size": st.one_of(windows, st.builds(WindowChoice, windows, st.just(1.0), st.just(1.0))),
        "adaptor_names": st.one_of(st.lists(st.sampled_from(["siglip2-g", "sam3"])), values),
        "feature_format": st.one_of(st.sampled_from(["NLC", "NCHW"]), values),
        "draws": st.one_of(tensors, values),
    },
)
packs = st.fixed_dictionaries(
    {
        "pixel_values": st.one_of(st.builds(lambda count: torch.rand(count, 768), st.integers(0, 9)), tensors, values),
        "image_grid_hw": st.one_of(
            st.builds(
                lambda grids: torch.tensor(grids, dtype=torch.long).view(-1, 2),
                st.lists(st.tuples(st.integers(-2, 3), st.integers(0, 3)), max_size=3),
            ),
            tensors,
            values.filter(lambda value: value is not None),
        ),
    },
    optional={"window_size": windows},
)


@pytest.mark.fuzz
@given(arguments=st.one_of(arguments, packs))
@torch.no_grad()
def test_any_argument_is_answered_or_refused_by_name(model, arguments):
    try:
        output = model(**arguments)
    except ValueError as error:
        assert_names_one(error, [*arguments, "height"])
        return
    assert_finite(output)


@pytest.mark.fuzz
@given(indices=st.one_of(st.lists(st.integers(-5, 5), max_size=3), values), options=st.lists(values, max_size=3))
@torch.no_grad()
def test_any_choice_of_blocks_is_answered_or_refused_by_name(model, indices, options):
    names = ("aggregation", "feature_format", "window_size")[: len(options)]
    try:
        outputs = model.get_intermediate_features(
            torch.rand(1, 3, 32, 16), indices, **dict(zip(names, options, strict=True))
        )
    except ValueError as error:
        assert_names_one(error, ["indices", *names])
        return
    assert_finite([output.to_tuple() for output in outputs])


@pytest.mark.fuzz
@given(
    size=st.lists(st.one_of(st.sampled_from([16, 32, 256]), values), min_size=2, max_size=2),
    options=st.fixed_dictionaries(
        {}, optional={"max_latency_ms": values, "max_memory_gib": values, "batch_size": st.one_of(small, values)}
    ),
)
@pytest.mark.filterwarnings("ignore:No window fits")
def test_any_budget_is_answered_or_refused_by_name(model, size, options):
    try:
        choice = model.choose_window_size(*size, **options)
    except ValueError as error:
        assert_names_one(error, ["height", "width", *options])
        return
    assert math.isfinite(choice.latency_ms)
    assert math.isfinite(choice.memory_gib)
