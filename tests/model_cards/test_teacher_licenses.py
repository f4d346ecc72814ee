"""What is known of teachers' licenses, and what is said of them."""

import pytest

from model_cards.licenses import PERMISSIVE
from model_cards.results import Source
from model_cards.teacher_licenses import (
    TEACHER_LICENSES,
    WORDS,
    TeacherLicense,
    find_teacher_license,
    warnings_of,
    what_it_asks,
)


@pytest.mark.parametrize(
    ("hub_id", "license", "asks"),
    [
        ("google/siglip2-giant-opt-patch16-384", "Apache-2.0", "nothing"),
        ("google/siglip-so400m-patch14-384", "Apache-2.0", "nothing"),
        ("facebook/dinov2-with-registers-giant", "Apache-2.0", "nothing"),
        ("facebook/dinov3-vit7b16-pretrain-lvd1689m", "DINOv3 License", "own terms"),
        ("facebook/sam-vit-huge", "Apache-2.0", "nothing"),
        ("facebook/sam3", "SAM License", "own terms"),
        ("apple/DFN5B-CLIP-ViT-H-14-378", "Apple ML Research Model License", "no commerce"),
        ("depth-anything/Depth-Anything-V2-Small-hf", "Apache-2.0", "nothing"),
        ("depth-anything/Depth-Anything-V2-Large-hf", "CC-BY-NC-4.0", "no commerce"),
        ("nvidia/C-RADIOv4-H", "NVIDIA Open Model License", "own terms"),
        ("nvidia/RADIO-L", "NVIDIA Source Code License-NC", "no commerce"),
        ("nvidia/E-RADIO", "NVIDIA Source Code License-NC", "no commerce"),
    ],
)
def test_the_license_of_a_repository_is_found(hub_id: str, license: str, asks: str) -> None:
    known = find_teacher_license(hub_id)
    assert known is not None
    assert (known.license, known.asks) == (license, asks)


def test_of_others_nothing_is_known() -> None:
    assert find_teacher_license("org/mine") is None
    assert find_teacher_license(None) is None


@pytest.mark.parametrize("known", TEACHER_LICENSES, ids=lambda known: known.pattern)
def test_each_says_where_and_when_it_was_read_and_only_permissive_ones_ask_nothing(known: TeacherLicense) -> None:
    assert known.source.startswith("https://")
    assert known.date[:2] == "20"
    assert (known.asks == "nothing") == (PERMISSIVE.fullmatch(known.license) is not None)


@pytest.mark.parametrize(
    ("license", "asks"),
    [
        ("MIT", "nothing"),
        ("MIT; NanoDet is Apache-2.0", "nothing"),
        ("DINOv3 License", "own terms"),  # of a folder of it
        ("CC-BY-NC-4.0", "no commerce"),
        ("see its origin", "unknown"),
        ("GPL-2+", "unknown"),
    ],
)
def test_without_a_repository_the_words_of_the_license_count(license: str, asks: str) -> None:
    assert what_it_asks(Source("t", "features", license, "here")) == asks


def test_each_restriction_is_a_sentence_of_its_own() -> None:
    sources = [
        Source("siglip2-g", "both", "Apache-2.0", "", hub_id="google/siglip2-giant-opt-patch16-384"),
        Source("sam3", "features", "SAM License", "", hub_id="facebook/sam3"),
        Source("clip", "both", "Apple ML Research Model License", "", hub_id="apple/DFN5B-CLIP-ViT-H-14-378"),
        Source("mine", "features", "see its origin", ""),
    ]
    sam3, clip, mine = warnings_of(sources)
    assert sam3.startswith(f"sam3: the license (SAM License) {WORDS['own terms']}. The Hub gives its weights only to")
    assert "facebook/sam3/blob/main/LICENSE (2025-11-19)" in sam3
    assert "should not be sold" in clip
    assert "Hub gives" not in clip
    assert mine == f"mine: the license (see its origin) {WORDS['unknown']}."
