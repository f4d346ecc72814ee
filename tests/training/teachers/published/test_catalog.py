"""The catalog agrees with the networks, the libraries and the guide."""

import re

import pytest
import torch
import transformers
from documentation import ROOT
from timm.models import get_pretrained_cfg

from modeling_radio.training.teachers.published.architectures import PUBLISHED
from modeling_radio.training.teachers.published.catalog import FAMILIES, NORMALIZATIONS, TIMM, family_of, table
from modeling_radio.training.teachers.registry import TEACHER_KINDS, build_teacher, find_class


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
SOURCES = [source for family in FAMILIES for source in family.sources]
BUILT = [source for family in FAMILIES for source in family.sources[: 1 if family.kind == "timm" else None]]
"""One network of each of timm's families: timm itself tells what the others take."""


def test_every_published_kind_and_architecture_has_a_place_and_the_pages_show_it():
    packages = {kind: find_class("t", kind).package() for kind in TEACHER_KINDS}
    packages = {kind: package for kind, package in packages.items() if package is not None}
    apart = {"edgetam", *packages}  # not published in transformers' layout; in the demo's table
    assert {family.kind for family in FAMILIES} == TEACHER_KINDS.keys() - apart
    assert {source for source in SOURCES if family_of(source).kind != "timm"} == PUBLISHED.keys()
    text = (ROOT / "docs" / "how-to" / "teachers.md").read_text(encoding="utf-8")
    assert table() in text
    demo = (ROOT / "docs" / "explanation" / "demo.md").read_text(encoding="utf-8")
    for kind, package in packages.items():
        ecosystem = {"pypi": "PyPI", "npm": "npm"}[package.ecosystem]
        assert f"`{kind}`" in text
        assert re.search(
            rf"\| {ecosystem} `{re.escape(package.name)}` \| \d+ MB \| {re.escape(package.license)} \|", demo
        )


@pytest.mark.parametrize("source", BUILT)
def test_sizes_and_normalization_are_the_networks(source):
    family = family_of(source)
    options = {"summary": family.summary} if family.kind == "timm" else {}
    with torch.device("meta"):
        teacher = build_teacher("t", kind=family.kind, source=source, weights="random", **options)
    assert teacher.native_size_px == family.sizes_px[family.sources.index(source)]
    assert (teacher.image_mean, teacher.image_std) == NORMALIZATIONS[family.normalization]
    assert (teacher.summary_dim is None) == (family.kind in ("sam", "sam2", "sam3") or family.summary == "none")


@pytest.mark.parametrize("family", FAMILIES, ids=[family.name for family in FAMILIES])
def test_licenses_and_normalization_are_those_of_the_named_source(family):
    mean_and_std = NORMALIZATIONS[family.normalization]
    if family.normalization_from.startswith("`"):
        processor = getattr(transformers, family.normalization_from.strip("`"))
        assert processor.do_normalize == (family.normalization != "none")
        if processor.do_normalize:
            assert (tuple(processor.image_mean), tuple(processor.image_std)) == mean_and_std
    names = family.sources if family.kind == "timm" else [IN_TIMM[family.name]] if family.name in IN_TIMM else []
    assert names or family.name in ("OpenAI's CLIP", "SAM3")
    for place, name in enumerate(names):
        config = get_pretrained_cfg(name)
        if family.kind == "timm":  # cut to whole patches
            assert 0 <= config.input_size[1] - family.sizes_px[place] < 64
        assert config.license == family.license
        if family.normalization_from == TIMM:
            assert (config.mean, config.std) == mean_and_std
