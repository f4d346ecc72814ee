"""Outputs as transformers' code takes them: by name, by index, as a tuple."""

import pickle
from dataclasses import is_dataclass

import pytest
import torch
from accelerate.utils import convert_to_fp32

from modeling_radio import RadioAdaptorOutput, RadioModelOutput


def test_fields_come_in_the_order_of_native_transformers():
    values = {name: torch.rand(1) for name in ("summary", "features", "last_hidden_state", "pooler_output")}
    output = RadioModelOutput(**values, hidden_states=(torch.rand(1),))
    assert list(output) == ["summary", "features", "last_hidden_state", "hidden_states", "pooler_output"]
    assert output[0] is values["summary"]
    assert output.to_tuple()[3] is output.hidden_states


def test_adaptors_are_an_item_only_where_there_are_some():
    adaptors = {"dino_v3": RadioAdaptorOutput(features=torch.rand(1, 2, 3))}
    output = RadioModelOutput(summary=torch.rand(1), adaptors=adaptors)
    assert list(output) == ["summary", "adaptors"]
    assert output.adaptors["dino_v3"] is adaptors["dino_v3"]
    empty = RadioModelOutput(summary=torch.rand(1), adaptors={})
    assert list(empty) == ["summary"]
    assert empty.adaptors == {}


def test_accelerate_casts_adaptors_too():
    half = RadioAdaptorOutput(summary=None, features=torch.ones(1, 2, 3, dtype=torch.bfloat16))
    output = RadioModelOutput(summary=torch.ones(1, 2), features=torch.ones(1, 2, 3), adaptors={"sam3": half})
    cast = convert_to_fp32(output)
    assert cast.adaptors["sam3"].features.dtype == torch.float32
    assert type(cast.adaptors) is type(output.adaptors)


def test_fsdp_finds_the_tensors_of_adaptors():
    """It looks into dictionaries, and into dataclasses by their fields, for what it waits for in the backward pass."""
    features = torch.rand(1, 2, 3, requires_grad=True)
    adaptors = RadioModelOutput(adaptors={"dino_v3": RadioAdaptorOutput(features=features)}).adaptors
    assert not is_dataclass(adaptors)
    assert isinstance(adaptors, dict)
    copied = pickle.loads(pickle.dumps(adaptors))
    assert torch.equal(copied["dino_v3"].features, features)


def test_pairs_by_nvidias_keys():
    summary, features, dense = torch.rand(1), torch.rand(2), torch.rand(3).bfloat16()
    output = RadioModelOutput(
        summary=summary,
        features=features,
        adaptors={
            "siglip2-g": RadioAdaptorOutput(summary=torch.ones(1).bfloat16(), features=dense),
            "features": RadioAdaptorOutput(features=dense),
        },
    )
    assert output["backbone"] == (summary, features)
    assert output["backbone"].features is features
    theirs_summary, theirs_features = output["siglip2-g"]
    assert (theirs_summary.dtype, theirs_features.dtype) == (torch.float32, torch.float32)
    assert torch.equal(theirs_features, dense.float())
    assert output["features"] is features, "fields come first"
    assert output[1] is features
    pairs = output.to_pairs()
    assert list(pairs) == ["backbone", "siglip2-g", "features"]
    assert pairs["features"].summary is None
    with pytest.raises(KeyError, match="sam3"):
        output["sam3"]


def test_an_adaptors_output_is_taken_to_arrays_as_a_tensor_is():
    output = RadioAdaptorOutput(features=torch.rand(1, 4, requires_grad=True))
    arrays = output.detach().cpu().numpy()
    assert list(arrays) == ["features"]
    assert arrays["features"].shape == (1, 4)
