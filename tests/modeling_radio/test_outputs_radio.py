"""Outputs as transformers' code takes them: by name, by index, as a tuple."""

import torch

from modeling_radio import RadioAdaptorOutput, RadioModelOutput
from modeling_radio.outputs_radio import to_map


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


def test_maps_have_the_tokens_in_rows():
    tokens = torch.arange(6.0).view(1, 6, 1)
    assert to_map(tokens, (2, 3))[0, 0].tolist() == [[0, 1, 2], [3, 4, 5]]
