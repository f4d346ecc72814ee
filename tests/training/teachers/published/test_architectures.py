"""Published architectures: their sizes are those of papers, and of timm's networks of the same names."""

import re

import pytest
import timm
import torch

from modeling_radio.training.teachers.published.architectures import published_config
from modeling_radio.training.teachers.published.catalog import family_of
from modeling_radio.training.teachers.registry import build_teacher


# Millions of parameters: C-RADIOv4 section 2.1, AM-RADIO table 1, and SigLIP's model card.
OF_PAPERS = [
    ("clip", "apple/DFN5B-CLIP-ViT-H-14-378", 633, 1024, 1280),
    ("siglip", "google/siglip-so400m-patch14-384", 428, 1152, 1152),
    ("siglip2", "google/siglip2-giant-opt-patch16-384", 1164, 1536, 1536),
    ("dinov2", "facebook/dinov2-with-registers-giant", 1137, 1536, 1536),
    ("dinov3", "facebook/dinov3-vit7b16-pretrain-lvd1689m", 6716, 4096, 4096),
    ("sam", "facebook/sam-vit-huge", 637, None, 1280),
    ("sam3", "facebook/sam3", None, None, 1024),
]

TIMM = {
    "openai/clip-vit-base-patch32": "vit_base_patch32_clip_224.openai",
    "openai/clip-vit-base-patch16": "vit_base_patch16_clip_224.openai",
    "openai/clip-vit-large-patch14-336": "vit_large_patch14_clip_336.openai",
    "google/siglip-base-patch16-512": "vit_base_patch16_siglip_512",
    "google/siglip-large-patch16-384": "vit_large_patch16_siglip_384",
    "google/siglip-so400m-patch14-224": "vit_so400m_patch14_siglip_224",
    "google/siglip2-base-patch32-256": "vit_base_patch32_siglip_256",
    "google/siglip2-so400m-patch16-512": "vit_so400m_patch16_siglip_512",
    "google/siglip2-giant-opt-patch16-256": "vit_giantopt_patch16_siglip_256",
    "google/siglip2-base-patch16-naflex": "naflexvit_base_patch16_siglip",
    "google/siglip2-so400m-patch16-naflex": "naflexvit_so400m_patch16_siglip",
    "google/tipsv2-b14": "vit_base_patch14_reg1_tipsv2",
    "google/tipsv2-l14": "vit_large_patch14_reg1_tipsv2",
    "google/tipsv2-so400m14": "vit_so400m_patch14_reg1_tipsv2",
    "google/tipsv2-g14": "vit_giant_patch14_reg1_tipsv2",
    "facebook/dinov2-small": "vit_small_patch14_dinov2",
    "facebook/dinov2-base": "vit_base_patch14_dinov2",
    "facebook/dinov2-with-registers-large": "vit_large_patch14_reg4_dinov2",
    "facebook/dinov2-giant": "vit_giant_patch14_dinov2",
    "facebook/dinov3-vits16-pretrain-lvd1689m": "vit_small_patch16_dinov3",
    "facebook/dinov3-vits16plus-pretrain-lvd1689m": "vit_small_plus_patch16_dinov3",
    "facebook/dinov3-vitb16-pretrain-lvd1689m": "vit_base_patch16_dinov3",
    "facebook/dinov3-vitl16-pretrain-lvd1689m": "vit_large_patch16_dinov3",
    "facebook/dinov3-vith16plus-pretrain-lvd1689m": "vit_huge_plus_patch16_dinov3",
    "facebook/sam-vit-base": "samvit_base_patch16",
    "facebook/sam-vit-large": "samvit_large_patch16",
    "facebook/sam2.1-hiera-tiny": "sam2_hiera_tiny",
    "facebook/sam2.1-hiera-small": "sam2_hiera_small",
    "facebook/sam2.1-hiera-base-plus": "sam2_hiera_base_plus",
    "facebook/sam2.1-hiera-large": "sam2_hiera_large",
}
OTHER_SIDE = re.compile("facebook/dinov3-|facebook/sam2.1-|.*-naflex")
"""Hub ids whose own configuration or processor says another native size than timm does."""


def build(source, **options):
    with torch.device("meta"):
        return build_teacher("t", kind=family_of(source).kind, source=source, weights="random", **options)


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("kind", "source", "millions", "summary_dim", "feature_dim"), OF_PAPERS)
def test_sizes_are_those_of_papers(kind, source, millions, summary_dim, feature_dim):
    teacher = build(source, weights_dtype="bfloat16")
    assert family_of(source).kind == kind
    assert (teacher.summary_dim, teacher.feature_dim) == (summary_dim, feature_dim)
    assert millions is None or count(teacher) / 1e6 == pytest.approx(millions, rel=0.005)


@pytest.mark.parametrize("source", TIMM)
def test_sizes_are_those_of_timms_networks(source):
    """Up to a token, biases that one of the two leaves out, and SAM's neck, which the teacher does not run."""
    with torch.device("meta"):
        of_timm = timm.create_model(TIMM[source])
        if source.startswith("facebook/sam-"):
            of_timm.neck = torch.nn.Identity()
    teacher = build(source)
    assert count(teacher) == pytest.approx(count(of_timm), rel=0.003)
    if not OTHER_SIDE.match(source):
        side = of_timm.pretrained_cfg["input_size"][1]
        assert teacher.native_size_px == side // teacher.patch_size * teacher.patch_size


def test_other_sources_and_those_of_another_kind_are_refused() -> None:
    assert published_config("org/other") is None
    with pytest.raises(ValueError, match=r"`source` .*\['clip', .* 'facebook/sam3'"):
        build_teacher("t", kind="clip", source="facebook/sam3", weights="random")
