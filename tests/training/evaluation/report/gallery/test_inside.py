"""Depth and global tokens of the gallery: that each picture is of what its caption says."""

from itertools import pairwise

import pytest
import torch
from tiny_radio1d import build_radio1d

from modeling_radio import RadioConfig, RadioModel
from training.evaluation.models.radio import RadioFeatures
from training.evaluation.report.gallery.inside import depth_section, token_section
from training.evaluation.report.gallery.photographs import PHOTOGRAPH_PX, Gallery
from training.evaluation.report.gallery.sections import gallery_sections


def gallery_of(model: RadioModel, size_px: int) -> Gallery:
    coarse = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    photographs = torch.nn.functional.interpolate(coarse, (PHOTOGRAPH_PX, PHOTOGRAPH_PX))
    return Gallery(RadioFeatures(model, size_px=size_px), photographs, ["one", "two"], 1)


def captions(section) -> list[str]:
    return [picture.caption for picture in section.rows[0].pictures[1:]]


def test_quarters_of_the_depth_differ() -> None:
    torch.manual_seed(0)
    config = RadioConfig.from_preset("radio-test", num_hidden_layers=8)
    section = depth_section(gallery_of(RadioModel(config).eval(), 64))
    assert captions(section) == [f"after block {block} of 8" for block in (2, 4, 6, 8)]
    pictures = [picture.pixels for picture in section.rows[0].pictures[1:]]
    assert all(pixels.shape == (3, 64 // config.patch_size, 64 // config.patch_size) for pixels in pictures)
    assert all(not torch.equal(one, other) for one, other in pairwise(pictures))


@pytest.mark.parametrize("progressive", [False, True])
def test_fewer_global_tokens_change_the_decoders_answer(progressive: bool) -> None:
    model = build_radio1d(progressive_reduction=progressive)
    section = token_section(gallery_of(model, 128))
    neck, *decoded = section.rows[0].pictures[1:]
    assert neck.caption == "encoder, all 16 tokens"
    assert neck.pixels.shape == (3, 4, 4)
    assert [picture.caption.split(",")[1] for picture in decoded] == [
        f" {count}" + (" tokens" if count > 1 else " token") for count in (16, 8, 4, 2, 1)
    ]
    assert decoded[0].caption.endswith("mean cosine 1.00")
    assert all(picture.pixels.shape == (3, 8, 8) for picture in decoded)
    assert all(not torch.equal(decoded[0].pixels, fewer.pixels) for fewer in decoded[1:])


def test_the_page_of_radio1d_has_tokens_where_others_have_windows() -> None:
    sections = list(gallery_sections(gallery_of(build_radio1d(), 128)))
    assert [section.title for section in sections[-2:]] == ["Over depth", "Global tokens"]
    finer = next(picture for picture in sections[0].rows[0].pictures if "teacher_b" in picture.caption)
    assert finer.pixels.shape == (3, 16, 16), "an adaptor on a grid of its own"
    torch.manual_seed(0)
    plain = RadioModel(RadioConfig.from_preset("radio-test", num_hidden_layers=4)).eval()
    titles = [section.title for section in gallery_sections(gallery_of(plain, 64))]
    assert titles[-2:] == ["Over depth", "Windows"]
