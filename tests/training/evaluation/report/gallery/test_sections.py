"""The gallery: what stands beside what, and that it shows what it says."""

import pytest
import torch

from conversion.text_tower import canonicalizing
from modeling_radio import RadioConfig, RadioForZeroShotImageClassification, RadioModel
from training.evaluation.models.radio import RadioFeatures, open_radio
from training.evaluation.models.teachers import TeacherFeatures
from training.evaluation.report.gallery.photographs import PHOTOGRAPH_PX, Gallery
from training.evaluation.report.gallery.sections import gallery_sections, sizes_of, write_gallery
from training.teachers.answers import TeacherOutput
from training.teachers.base import Teacher


class Blurry(Teacher):
    """Says colors of patches, in ten features."""

    image_mean, image_std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def __init__(self):
        super().__init__("teacher_a", summary_dim=None, feature_dim=10, patch_size=8)
        self.weight = torch.nn.Parameter(torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
        self.freeze()
        self.set_run_mode(grid_stride=8)

    def encode(self, pixel_values):
        return TeacherOutput(None, torch.nn.functional.conv2d(pixel_values, self.weight, stride=8))


@pytest.fixture
def photographs():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return torch.nn.functional.interpolate(coarse, (PHOTOGRAPH_PX, PHOTOGRAPH_PX))


@pytest.fixture
def gallery(tiny_model, photographs):
    config = tiny_model.config
    config.num_hidden_layers = 2
    torch.manual_seed(0)
    model, other = (RadioFeatures(RadioModel(config).eval(), size_px=32) for _ in range(2))
    teacher = TeacherFeatures(Blurry(), patch_size=8, size_px=32, name="teacher")
    return Gallery(model, photographs, ["one <b>", "two"], 2, {"teacher_a": teacher}, {"untrained": other})


def test_sections_of_the_page(gallery):
    features, sizes, depth, windows = gallery_sections(gallery)
    captions = [picture.caption.partition(" x")[0] for picture in features.rows[0].pictures]
    assert captions == [
        "photograph",
        "teacher teacher_a",
        "adaptor teacher_a",
        "untrained",
        "backbone",
        "alike the ring: untrained",
        "alike the ring: backbone",
    ]
    assert [picture.pixels.shape[1] for picture in features.rows[1].pictures] == [224, 8, 8, 8, 8, 8, 8]
    for section in (features, sizes, depth, windows):
        assert [row.title for row in section.rows] == ["one <b>", "two"]
        for picture in section.rows[0].pictures:
            assert picture.pixels.float().std() > 15, f"{picture.caption} is uniform"
    assert [picture.caption for picture in sizes.rows[0].pictures[1:]] == [
        "16 px",
        "24 px",
        "32 px",
        "48 px",
        "64 px",
        "32 px, 2 x 2 shifts",
    ]
    assert [picture.pixels.shape[1] for picture in sizes.rows[0].pictures[1:]] == [2, 3, 4, 6, 8, 8]
    whole, *windowed = windows.rows[0].pictures[1:]
    assert len(windowed) == 2
    assert not any(torch.equal(whole.pixels, each.pixels) for each in windowed), "windows act"
    assert "in 1 of 2 blocks" in windows.text


def test_sizes_end_where_the_model_does(tiny_model):
    assert sizes_of(RadioFeatures(tiny_model, size_px=64)) == [32, 48, 64]


def test_without_teachers_all_adaptors_are_shown(tiny_model, photographs):
    model = RadioFeatures(tiny_model, size_px=32)
    features, _ = gallery_sections(Gallery(model, photographs, ["one", "two"], 1))
    captions = [picture.caption.partition(" x")[0] for picture in features.rows[0].pictures]
    assert captions[1:4] == ["adaptor teacher_a", "adaptor teacher_b", "backbone"]


def test_words_need_a_text_tower(gallery):
    with pytest.raises(ValueError, match=r"`words` must be left out for a checkpoint without a text tower"):
        next(gallery_sections(gallery, ["cat"]))


def test_each_patch_has_the_color_of_its_nearest_word(build_dual_encoder, word_tokenizer, photographs, tmp_path):
    adaptor = {"name": "siglip2-g", "summary_dim": 12, "feature_dim": 10, "hidden_size": 16}
    config = RadioConfig.from_preset("radio-test", adaptors=[adaptor], preferred_resolution=[32, 32])
    whole = RadioForZeroShotImageClassification.from_parts(RadioModel(config).eval(), build_dual_encoder("siglip", 12))
    whole.save_pretrained(tmp_path / "packed")
    canonicalizing(word_tokenizer, 16).save_pretrained(tmp_path / "packed")
    model = open_radio(tmp_path / "packed")
    *_, section = gallery_sections(Gallery(model, photographs, ["one", "two"], 1), ["cat", "dog"])
    assert [name for name, _ in section.legend] == ["cat", "dog"]
    photograph, overlay = section.rows[0].pictures
    assert not torch.equal(photograph.pixels, overlay.pixels)
    *_, mirrored = gallery_sections(Gallery(model, photographs, ["one", "two"], 1), ["dog", "cat"])
    assert not torch.equal(mirrored.rows[0].pictures[1].pixels, overlay.pixels), "colors follow the words"


def test_the_page_names_what_it_shows(gallery, tmp_path):
    write_gallery(
        tmp_path / "index.html", list(gallery_sections(gallery)), title="Two", text="t", credits=["one <b>, by nobody"]
    )
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert page.count("<img") == 2 * (7 + 7 + 3 + 4)
    assert "one &lt;b&gt;, by nobody" in page
    assert "http" not in page.partition("</style>")[2]
