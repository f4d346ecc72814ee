"""Facts of published teachers: sources, licenses, native sizes and normalization.

They were read in November 2026. Licenses have the Hub's names. The maker of a student decides on its terms; `doubt`
names the questions that the sources leave open. The table of `docs/how-to/teachers.md` is `table()`. Tests build
every network of this file and compare sizes and normalization with it, and licenses with those that timm states.
"""

from __future__ import annotations

from typing import NamedTuple

from modeling_radio.core.tables import markdown
from modeling_radio.training.teachers.base import (
    CLIP_MEAN,
    CLIP_STD,
    HALF_MEAN,
    HALF_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Color,
)


NORMALIZATIONS: dict[str, tuple[Color, Color]] = {
    "CLIP's": (CLIP_MEAN, CLIP_STD),
    "0.5": (HALF_MEAN, HALF_STD),
    "ImageNet's": (IMAGENET_MEAN, IMAGENET_STD),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""Mean and standard deviation by their name in the catalog; "none" leaves pixels in [0, 1]."""

TIMM = "timm's `pretrained_cfg`"


class Family(NamedTuple):
    """Models of one publisher with one kind and one license.

    Attributes:
        name: Name of the family.
        kind: A key of `TEACHER_KINDS`.
        sources: Hub ids, or timm's names for the kind "timm".
        sizes_px: Native sizes, one for each source.
        normalization: One of `NORMALIZATIONS`.
        normalization_from: Its source: an image processor of transformers, or timm.
        license: The Hub's name of the license.
        license_from: Source of the license.
        summary: The summary that suits networks of the kind "timm".
        doubt: Facts that the sources leave out or contradict.
    """

    name: str
    kind: str
    sources: tuple[str, ...]
    sizes_px: tuple[int, ...]
    normalization: str
    normalization_from: str
    license: str
    license_from: str
    summary: str = "pooled"
    doubt: str = ""


def _named(prefix: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{prefix}{name}" for name in names)


FAMILIES = (
    Family(
        "SigLIP",
        "siglip",
        (
            *_named("google/siglip-base-patch16-", "224", "256", "256-multilingual", "384", "512"),
            *_named("google/siglip-large-patch16-", "256", "384"),
            *_named("google/siglip-so400m-patch14-", "224", "384"),
            "google/siglip-so400m-patch16-256-i18n",
        ),
        (224, 256, 256, 384, 512, 256, 384, 224, 378, 256),
        "0.5",
        "`SiglipImageProcessor`",
        "apache-2.0",
        "Hub cards",
    ),
    Family(
        "SigLIP2",
        "siglip2",
        (
            "google/siglip2-base-patch32-256",
            *_named("google/siglip2-base-patch16-", "224", "256", "384", "512"),
            *_named("google/siglip2-large-patch16-", "256", "384", "512"),
            *_named("google/siglip2-so400m-patch14-", "224", "384"),
            *_named("google/siglip2-so400m-patch16-", "256", "384", "512"),
            *_named("google/siglip2-giant-opt-patch16-", "256", "384"),
            *_named("google/siglip2-", "base-patch16-naflex", "so400m-patch16-naflex"),
        ),
        (256, 224, 256, 384, 512, 256, 384, 512, 224, 378, 256, 384, 512, 256, 384, 256, 256),
        "0.5",
        "`Siglip2ImageProcessor`",
        "apache-2.0",
        "Hub cards",
    ),
    Family(
        "TIPSv2",
        "tipsv2",
        _named("google/tipsv2-", "b14", "l14", "so400m14", "g14"),
        (448,) * 4,
        "none",
        "`Tipsv2ImageProcessor`",
        "apache-2.0",
        "timm, MTEB's entry of the Hub card",
        doubt="github.com/google-deepmind/tips: software Apache-2.0, all else CC-BY-4.0, so perhaps the weights too",
    ),
    Family(
        "OpenAI's CLIP",
        "clip",
        _named("openai/clip-vit-", "base-patch32", "base-patch16", "large-patch14", "large-patch14-336"),
        (224, 224, 224, 336),
        "CLIP's",
        "`CLIPImageProcessor`",
        "mit",
        "github.com/openai/CLIP",
        doubt="the Hub cards name no license, and call any deployment out of scope; timm states apache-2.0",
    ),
    Family(
        "DFN CLIP",
        "clip",
        ("apple/DFN5B-CLIP-ViT-H-14", "apple/DFN5B-CLIP-ViT-H-14-378"),
        (224, 378),
        "CLIP's",
        "`CLIPImageProcessor`",
        "apple-ascl",
        "Hub cards (apple-sample-code-license), timm",
        doubt="Apple's later cards name apple-amlr, for research only",
    ),
    Family(
        "DINOv2",
        "dinov2",
        (
            *_named("facebook/dinov2-", "small", "base", "large", "giant"),
            *_named("facebook/dinov2-with-registers-", "small", "base", "large", "giant"),
        ),
        (518,) * 8,
        "ImageNet's",
        TIMM,
        "apache-2.0",
        "Hub cards",
    ),
    Family(
        "DINOv3",
        "dinov3",
        tuple(
            f"facebook/dinov3-vit{size}16{plus}-pretrain-lvd1689m"
            for size, plus in (("s", ""), ("s", "plus"), ("b", ""), ("l", ""), ("h", "plus"), ("7b", ""))
        ),
        (224,) * 6,
        "ImageNet's",
        "`DINOv3ViTImageProcessor`",
        "dinov3-license",
        "Hub cards (other: dinov3-license), gated",
        doubt="what it asks of a student; it passes on to derivative works",
    ),
    Family(
        "SAM",
        "sam",
        _named("facebook/sam-vit-", "base", "large", "huge"),
        (1024,) * 3,
        "ImageNet's",
        "`SamImageProcessor`",
        "apache-2.0",
        "Hub cards",
    ),
    Family(
        "SAM2.1",
        "sam2",
        _named("facebook/sam2.1-hiera-", "tiny", "small", "base-plus", "large"),
        (1024,) * 4,
        "ImageNet's",
        "`Sam2ImageProcessor`",
        "apache-2.0",
        "Hub cards",
    ),
    Family(
        "SAM3",
        "sam3",
        ("facebook/sam3",),
        (1008,),
        "0.5",
        "`Sam3ImageProcessor`",
        "sam-license",
        "Hub card (other: sam-license), gated",
        doubt="what it asks of a student; it passes on to derivative works, and forbids military use",
    ),
    Family(
        "C-RADIOv3",
        "radio",
        _named("nvidia/C-RADIOv3-", "B", "L", "H", "g"),
        (512,) * 4,
        "none",
        "its own, within the network",
        "nvidia-open-model-license",
        "Hub cards",
        doubt="terms of its own teachers: DFN CLIP, SigLIP2, DINOv2, SAM",
    ),
    Family(
        "C-RADIOv4",
        "radio",
        _named("nvidia/C-RADIOv4-", "SO400M", "H"),
        (512,) * 2,
        "none",
        "its own, within the network",
        "nvidia-open-model-license",
        "Hub cards",
        doubt="terms of its own teachers: SigLIP2, DINOv3, SAM3 (github.com/NVlabs/RADIO/issues/176)",
    ),
    Family(
        "Perception Encoder, core",
        "timm",
        (
            *_named("vit_pe_core_", "tiny_patch16_384.fb", "small_patch16_384.fb", "base_patch16_224.fb"),
            *_named("vit_pe_core_", "large_patch14_336.fb", "gigantic_patch14_448.fb"),
        ),
        (384, 384, 224, 336, 448),
        "0.5",
        TIMM,
        "apache-2.0",
        "Hub cards (facebook/PE-Core-*), timm",
        summary="projected",
    ),
    Family(
        "Perception Encoder, spatial",
        "timm",
        (
            *_named("vit_pe_spatial_", "tiny_patch16_512.fb", "small_patch16_512.fb", "base_patch16_512.fb"),
            *_named("vit_pe_spatial_", "large_patch14_448.fb", "gigantic_patch14_448.fb"),
        ),
        (512, 512, 512, 448, 448),
        "0.5",
        TIMM,
        "apache-2.0",
        "Hub cards (facebook/PE-Spatial-*), timm",
        summary="none",
        doubt="it learned from SAM2.1's masks beside its own features",
    ),
    Family(
        "MobileCLIP2, S0, S2 and B",
        "timm",
        (
            *_named("fastvit_mci", "0.apple_mclip2_dfndr2b", "2.apple_mclip2_dfndr2b"),
            "vit_base_mci_224.apple_mclip2_dfndr2b",
        ),
        (256, 256, 224),
        "none",
        TIMM,
        "apple-amlr",
        "Hub cards, timm",
        summary="projected",
    ),
    Family(
        "MobileCLIP2, S3, S4 and L-14",
        "timm",
        (
            *_named("fastvit_mci", "3.apple_mclip2_dfndr2b", "4.apple_mclip2_dfndr2b"),
            "vit_large_patch14_clip_224.apple_mclip2_dfndr2b",
        ),
        (256, 256, 224),
        "CLIP's",
        TIMM,
        "apple-amlr",
        "Hub cards, timm",
        summary="projected",
    ),
    Family(
        "OpenCLIP, LAION-2B and DataComp",
        "timm",
        (
            *_named("vit_base_patch16_clip_224.", "laion2b", "datacompxl"),
            "vit_large_patch14_clip_224.datacompxl",
            "vit_huge_patch14_clip_224.laion2b",
            "convnext_xxlarge.clip_laion2b_soup",
        ),
        (224, 224, 224, 224, 256),
        "CLIP's",
        TIMM,
        "apache-2.0",
        "timm",
        summary="projected",
        doubt="LAION's own cards name mit",
    ),
    Family(
        "EUPE",
        "timm",
        _named("vit_", *(f"{size}_patch16_dinov3_qkvb.eupe_lvd1689m" for size in ("tiny", "small", "base"))),
        (256,) * 3,
        "ImageNet's",
        TIMM,
        "fair-noncommercial-research-license",
        "timm",
    ),
)
"""All families, in the order of the table."""


def family_of(source: str) -> Family | None:
    """Return the family of a Hub id or of timm's name; None if the catalog does not have it."""
    return next((family for family in FAMILIES if source in family.sources), None)


def table() -> str:
    """Return the table of all families, Markdown."""
    header = ("kind", "models", "license, and where it says so", "native px")
    return markdown(header, [_row(family) for family in FAMILIES])


def _row(family: Family) -> tuple[str, ...]:
    sizes = ", ".join(str(size) for size in sorted(set(family.sizes_px)))
    models = f"{family.name}: {', '.join(f'`{source}`' for source in family.sources)}"
    if family.summary != "pooled":
        models += f"; `summary: {family.summary}`"
    license_ = f"{family.license} ({family.license_from})"
    if family.doubt:
        license_ += f"; open: {family.doubt}"
    return f"`{family.kind}`", models, license_, sizes
