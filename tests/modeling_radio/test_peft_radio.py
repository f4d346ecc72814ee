"""An adapter that does not fit, or that would lose its head, is refused in one message."""

import pytest

from modeling_radio import peft_radio
from modeling_radio.peft_radio import check_adapter_versions, check_adapter_weights


@pytest.mark.parametrize(("version", "is_peft_recent"), [("5.17.0", True), ("5.18.0", False)])
def test_versions_that_leave_out_heads(tmp_path, monkeypatch, version, is_peft_recent):
    monkeypatch.setattr(peft_radio.transformers, "__version__", version)
    monkeypatch.setattr(peft_radio, "is_peft_greater_or_equal", lambda _: is_peft_recent)
    (tmp_path / "adapter_config.json").write_text("{}")
    check_adapter_versions(tmp_path)
    check_adapter_versions(None)
    (tmp_path / "adapter_config.json").write_text('{"modules_to_save": ["classifier"]}')
    with pytest.raises(ValueError, match=rf"transformers {version}"):
        check_adapter_versions(tmp_path)
    monkeypatch.setattr(peft_radio.transformers, "__version__", "5.18.0.dev0")
    monkeypatch.setattr(peft_radio, "is_peft_greater_or_equal", lambda _: True)
    check_adapter_versions(tmp_path)


def test_differences_are_one_message():
    check_adapter_weights("here", [], [], [])
    message = r"'here' .*`b` .*\(1, 2\) .*\(1, 3\) .*`c`.*`a`.*A remark\."
    with pytest.raises(ValueError, match=message):
        check_adapter_weights("here", ["b", "a"], ["d", "c"], [("b", [1, 2], [1, 3])], "A remark.")
    with pytest.raises(ValueError, match="`a`"):
        check_adapter_weights("here", ["a"], [], [])
