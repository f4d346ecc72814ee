from dataclasses import dataclass

import pytest
from pydantic import ConfigDict

from model_cards.results import load_typed


@dataclass
class Pair:
    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    count: int


def test_values_of_their_types(tmp_path):
    (tmp_path / "pair.json").write_text('{"name": "a", "count": 2}')
    assert load_typed(Pair, tmp_path / "pair.json", "pair") == Pair("a", 2)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"name": "a", "count": "2"}', "count: Input should be a valid integer, got '2'"),
        ('{"name": "a"}', "count: Field required"),
        ('{"name": "a", "count": 2, "more": 1}', "more: Unexpected keyword argument"),
        ("{", "the file: Invalid JSON"),
        (None, "No such file"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, text, fault):
    path = tmp_path / "pair.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match="is no pair: ") as caught:
        load_typed(Pair, path, "pair")
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)
