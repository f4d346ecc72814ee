"""The catalog says of each network what the network, the library and the guide say."""

import pytest
import torch
import transformers
from documentation import ROOT
from timm.models import get_pretrained_cfg

from training.demo.assets import PACKAGES
from training.teachers.published.architectures import PUBLISHED
from training.teachers.published.catalog import FAMILIES, NORMALIZATIONS, TIMM, table
from training.teachers.registry import PACKAGE_OF_KIND, TEACHER_KINDS, build_teacher


PUBLISHED_KINDS = set(TEACHER_KINDS) - {
    "edgetam",  # which its publisher has not put into transformers' layout
    *PACKAGE_OF_KIND,  # in a table of their own
}
MEMBERS = [
    (family, source, size) for family in FAMILIES for source, size in zip(family.sources, family.sizes_px, strict=True)
]

# By family of transformers' classes, networks of timm with the same weights.
IN_TIMM = {
    "SigLIP": "vit_base_patch16_siglip_512.webli",
    "SigLIP2": "vit_so400m_patch14_siglip_224.v2_webli",
    "TIPSv2": "vit_base_patch14_reg1_tipsv2.webli",
    "DFN CLIP": "vit_huge_patch14_clip_378.dfn5b",
    "DINOv2": "vit_base_patch14_dinov2.lvd142m",
    "DINOv3": "vit_7b_patch16_dinov3.lvd1689m",
    "SAM": "samvit_base_patch16.sa1b",
    "SAM2.1": "sam2_hiera_tiny.fb_r896_2pt1",
    "C-RADIOv3": "naflexvit_base_patch16_radio_v3.c_radio",
    "C-RADIOv4": "naflexvit_huge_patch16_radio_v4.c_radio",
}


def test_every_published_kind_and_every_architecture_has_a_place():
    assert {family.kind for family in FAMILIES} == PUBLISHED_KINDS
    assert {source for family, source, _ in MEMBERS if family.kind != "timm"} == set(PUBLISHED)


def test_the_guide_shows_the_catalog():
    text = (ROOT / "docs" / "guides" / "train" / "teachers.md").read_text(encoding="utf-8")
    assert table() in text
    for kind, name in PACKAGE_OF_KIND.items():
        package = PACKAGES[name]
        ecosystem = {"pypi": "PyPI", "npm": "npm"}[package.ecosystem]
        assert f"| `{kind}` | {ecosystem} `{name}` | {package.license} |" in text


@pytest.mark.parametrize(("family", "source", "size"), MEMBERS, ids=[source for _, source, _ in MEMBERS])
def test_sizes_and_normalization_are_the_networks(family, source, size):
    options = {"summary": family.summary} if family.kind == "timm" else {}
    with torch.device("meta"):
        teacher = build_teacher("t", kind=family.kind, source=source, weights="random", **options)
    assert teacher.native_size_px == size
    assert (teacher.image_mean, teacher.image_std) == NORMALIZATIONS[family.normalization]
    assert (teacher.summary_dim is None) == (family.kind in ("sam", "sam2", "sam3") or family.summary == "none")


@pytest.mark.parametrize("family", [each for each in FAMILIES if each.normalization_from.startswith("`")])
def test_normalization_is_that_of_the_processor_that_is_named(family):
    processor = getattr(transformers, family.normalization_from.strip("`"))
    if family.normalization == "none":
        assert not processor.do_normalize
    else:
        mean, std = NORMALIZATIONS[family.normalization]
        assert (tuple(processor.image_mean), tuple(processor.image_std)) == (mean, std)


@pytest.mark.parametrize("family", FAMILIES, ids=[family.name for family in FAMILIES])
def test_licenses_are_those_that_timm_states(family):
    names = family.sources if family.kind == "timm" else [IN_TIMM[family.name]] if family.name in IN_TIMM else []
    assert names or family.name in ("OpenAI's CLIP", "SAM3")
    for name in names:
        config = get_pretrained_cfg(name)
        assert config.license == family.license
        if family.normalization_from == TIMM:
            assert (config.mean, config.std) == NORMALIZATIONS[family.normalization]
