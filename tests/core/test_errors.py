import pytest

from modeling_radio.checks_radio import check_choice, did_you_mean
from modeling_radio.core.errors import first_few, without_secrets


def test_a_wrong_choice_is_answered_with_the_nearest():
    check_choice("kind", "dinov3", ["dinov3", "sam3"])
    with pytest.raises(KeyError, match=r"`kind` .*'sam'.*'sam3'"):
        check_choice("kind", "sam", ["dinov3", "sam3"], error=KeyError)
    assert did_you_mean("dinov", ["dinov3", "sam3"]) == " Did you mean 'dinov3'?"


def test_long_lists_end_with_dots():
    assert [first_few(items, 2) for items in ([], [1, 2], ["a", "b", "c"])] == ["", "1, 2", "a, b, ..."]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("`data` 'http://me:S3CRET@host/x.tar' does not exist.", "`data` 'http://...@host/x.tar' does not exist."),
        ("'https://host/x?a=b&X-Amz-Signature=S3CRET&c=d'", "'https://host/x?a=b&X-Amz-Signature=...&c=d'"),
        (f"hf_{34 * 'a'}!", "...!"),
        ("s3://bucket/a?b=c and a:b@c", "s3://bucket/a?b=c and a:b@c"),
    ],
)
def test_secrets_are_not_shown(text, shown):
    assert without_secrets(text) == shown
