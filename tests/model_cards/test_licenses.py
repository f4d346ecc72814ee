import pytest

from model_cards.licenses import OPEN_MODEL_LICENSE, SOURCE_CODE_LICENSE, License, binding_teachers, nvidia_license
from model_cards.results import Source


def test_metadata_has_what_the_hub_asks_for():
    assert License("mit").metadata() == {"license": "mit"}
    assert set(OPEN_MODEL_LICENSE.metadata()) == {"license", "license_name", "license_link"}


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


def test_only_permissive_licenses_ask_for_nothing():
    licenses = [
        "MIT",
        "Apache-2.0",
        "BSD-3-Clause",
        "MIT; the base is Apache-2.0",
        "GPL-3.0",
        "CC-BY-NC-4.0",
        "see its origin",
    ]
    licenses += ["", "MIT; the base is GPL-3.0", "SAM License; MIT", "MIT or not"]
    teachers = [Source(text, "teacher", text, "here") for text in licenses]
    assert [teacher.license for teacher in binding_teachers(teachers)] == licenses[4:]


@pytest.mark.parametrize(
    ("given", "meant"),
    [("MIT", "mit"), ("Apache-2.0", "apache-2.0"), ("apache", "apache-2.0"), ("cc-by-4", "cc-by-4.0")],
)
def test_what_the_hub_does_not_know_is_refused_with_the_nearest_that_it_does(given, meant):
    with pytest.raises(
        ValueError, match=rf"`license` must be one of the Hub's.* got {given!r}\. Did you mean {meant!r}\?"
    ):
        License(given)


def test_unknown_is_no_license():
    with pytest.raises(ValueError, match="`license` must be one of the Hub's"):
        License("unknown")
