import pytest
import torch

from training.teachers.published.architectures import published_config
from training.teachers.registry import build_teacher


# Millions of parameters: C-RADIOv4 section 2.1, AM-RADIO table 1, and SigLIP's model card.
PUBLISHED = [
    ("clip", "apple/DFN5B-CLIP-ViT-H-14-378", 633, 1024, 1280),
    ("siglip", "google/siglip-so400m-patch14-384", 428, 1152, 1152),
    ("siglip2", "google/siglip2-giant-opt-patch16-384", 1164, 1536, 1536),
    ("dinov2", "facebook/dinov2-with-registers-giant", 1137, 1536, 1536),
    ("dinov3", "facebook/dinov3-vit7b16-pretrain-lvd1689m", 6716, 4096, 4096),
    ("sam", "facebook/sam-vit-huge", 637, None, 1280),
    ("sam3", "facebook/sam3", None, None, 1024),
]


@pytest.mark.parametrize(("kind", "source", "millions", "summary_dim", "feature_dim"), PUBLISHED)
def test_published_teachers_build_on_the_meta_device(kind, source, millions, summary_dim, feature_dim):
    with torch.device("meta"):
        teacher = build_teacher("t", kind=kind, source=source, weights="random", weights_dtype="bfloat16")
    assert (teacher.summary_dim, teacher.feature_dim) == (summary_dim, feature_dim)
    count = sum(parameter.numel() for parameter in teacher.parameters())
    assert millions is None or count / 1e6 == pytest.approx(millions, rel=0.005)


def test_other_sources_are_not_known() -> None:
    assert published_config("org/other") is None
