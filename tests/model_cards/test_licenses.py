"""Licenses in the Hub's terms, and the conditions of teachers' licenses."""

import pytest

from modeling_radio.model_cards.licenses import (
    OPEN_MODEL_LICENSE,
    SOURCE_CODE_LICENSE,
    License,
    binding_teachers,
    nvidia_license,
    what_it_asks,
)
from modeling_radio.model_cards.results import Source


@pytest.mark.parametrize(
    ("version", "license"),
    [
        ("c-radio_v3-l", OPEN_MODEL_LICENSE),
        ("C-RADIOv4-H", OPEN_MODEL_LICENSE),
        ("radio_v2.5-g", SOURCE_CODE_LICENSE),
        ("e-radio_v2", SOURCE_CODE_LICENSE),
        ("mine", None),
        (None, None),
    ],
)
def test_nvidias_licenses_follow_the_version(version, license):
    assert nvidia_license(version) == license


@pytest.mark.parametrize(
    ("license", "asks"),
    [
        ("MIT", "nothing"),
        ("apache-2.0", "nothing"),
        ("MIT; NanoDet is Apache-2.0", "nothing"),
        ("apache-2.0; in doubt: some say CC-BY-4.0", "nothing"),
        ("dinov3-license", "own terms"),
        ("nvidia-open-model-license; in doubt: terms of its own teachers", "own terms"),
        ("CC-BY-NC-4.0", "no commerce"),
        ("apple-amlr", "no commerce"),
        ("cc-by-4.0", "naming"),
        ("see its origin", "unknown"),
        ("GPL-2+", "unknown"),
        ("MIT; the base is CC-BY-NC-4.0", "unknown"),
    ],
)
def test_what_a_license_asks(license: str, asks: str) -> None:
    assert what_it_asks(license) == asks


def test_only_permissive_licenses_do_not_bind():
    permissive = ["MIT", "Apache-2.0", "BSD-3-Clause", "MIT; the base is Apache-2.0"]
    binding = ["GPL-3.0", "see its origin", "", "MIT; the base is GPL-3.0", "SAM License; MIT", "MIT or not"]
    teachers = [Source(text, "teacher", text, "here") for text in permissive + binding]
    assert [teacher.license for teacher in binding_teachers(teachers)] == binding


@pytest.mark.parametrize("given", ["MIT", "apache", "cc-by-4", "unknown"])
def test_a_license_that_the_hub_does_not_know_is_refused(given):
    with pytest.raises(ValueError, match="`license`"):
        License(given)
