"""Licenses in the Hub's terms, and the conditions of teachers' licenses."""

import pytest

from modeling_radio.metrics.results import Source
from modeling_radio.model_cards.licenses import WORDS, License, binding_teachers, warnings_of, what_it_asks


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


def test_each_restriction_and_each_doubt_is_a_sentence_of_its_own() -> None:
    sources = [
        Source("siglip2-g", "both", "apache-2.0", ""),
        Source("sam3", "features", "sam-license", ""),
        Source("clip", "both", "apple-amlr", ""),
        Source("tips", "both", "apache-2.0; in doubt: some say CC-BY-4.0", ""),
        Source("mine", "features", "see its origin", ""),
    ]
    sam3, clip, tips, mine = warnings_of(sources)
    assert sam3.startswith(f"sam3: the license (sam-license) {WORDS['own terms']}. The Hub gives its weights only to")
    assert "facebook/sam3/blob/main/LICENSE (of 2025-11-19)" in sam3
    assert "should not be sold" in clip
    assert "Hub gives" not in clip
    assert tips == f"tips: the license (apache-2.0) {WORDS['nothing']}. In doubt: some say CC-BY-4.0."
    assert mine == f"mine: the license (see its origin) {WORDS['unknown']}."


def test_only_permissive_licenses_do_not_bind():
    permissive = ["MIT", "Apache-2.0", "BSD-3-Clause", "MIT; the base is Apache-2.0"]
    binding = ["GPL-3.0", "see its origin", "", "MIT; the base is GPL-3.0", "SAM License; MIT", "MIT or not"]
    teachers = [Source(text, "teacher", text, "here") for text in permissive + binding]
    assert [teacher.license for teacher in binding_teachers(teachers)] == binding


@pytest.mark.parametrize("given", ["MIT", "apache", "cc-by-4", "unknown"])
def test_a_license_that_the_hub_does_not_know_is_refused(given):
    with pytest.raises(ValueError, match="`license`"):
        License(given)
