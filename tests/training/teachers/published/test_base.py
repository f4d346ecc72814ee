import getpass
import os

import pytest
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError
from transformers import AutoConfig

from modeling_radio.training.teachers.published.base import loading_turn
from modeling_radio.training.teachers.registry import build_teacher


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GatedRepoError, "license .* https://huggingface.co/org/model, .*`hf auth login`"),
        (HfHubHTTPError, r"HTTP 403.* https://huggingface.co/org/model, .*`hf auth login`"),
    ],
)
def test_a_license_gate_is_one_line_that_says_what_to_do(monkeypatch, error, message):
    response = type("Response", (), {"status_code": 403, "headers": {}, "request": None})()

    def refuse(source, **options):
        raise OSError("You are trying to access a gated repo.\nMake sure to") from error("no", response=response)

    monkeypatch.setattr(AutoConfig, "from_pretrained", refuse)
    with pytest.raises(ValueError, match=f"Teacher 'd': .*`source` 'org/model': .*{message}") as raised:
        build_teacher("d", kind="dinov3", source="org/model")
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="users have no numbers here")
def test_a_user_without_a_name_loads_teachers(monkeypatch):
    def refuse():
        raise KeyError("getpwuid(): uid not found: 4242")

    monkeypatch.setattr(getpass, "getuser", refuse)
    with loading_turn():
        pass
