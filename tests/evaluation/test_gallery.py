"""The gallery: the columns of each section, and refused input in one line."""

import pytest
import torch
from drawn_assets import draw_photograph
from task_models import tiny_config
from tiny_adaptors import build_model_with_adaptors
from tiny_radio1d import build_radio1d

from modeling_radio import (
    RadioConfig,
    RadioForImageClassification,
    RadioForInstanceSegmentation,
    RadioForSemanticSegmentation,
    RadioForZeroShotImageClassification,
    RadioImageProcessor,
    RadioModel,
)
from modeling_radio.conversion.text_tower import canonicalizing
from modeling_radio.demo import closing_page
from modeling_radio.demo.closing_page import Credited
from modeling_radio.evaluation import gallery
from modeling_radio.evaluation.gallery import AT_NIGHT, PHOTOGRAPH_PX, Gallery, main, open_task_model, task_section
from modeling_radio.evaluation.models.radio import RadioFeatures, open_radio
from modeling_radio.evaluation.models.teachers import TeacherFeatures
from modeling_radio.training.teachers.base import Teacher
from modeling_radio.training.teachers.outputs import TeacherOutput


class Blurry(Teacher):
    """Colors of patches, in ten features."""

    image_mean, image_std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def __init__(self):
        super().__init__("teacher_a", summary_dim=None, feature_dim=10, patch_size=8)
        self.weight = torch.nn.Parameter(torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
        self.freeze()
        self.set_run_mode(grid_stride=8)

    def encode(self, pixel_values):
        return TeacherOutput(None, torch.nn.functional.conv2d(pixel_values, self.weight, stride=8))


COARSE = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PHOTOGRAPHS = torch.nn.functional.interpolate(COARSE, (PHOTOGRAPH_PX, PHOTOGRAPH_PX))


def gallery_of(model, size_px):
    return Gallery(RadioFeatures(model, size_px=size_px), PHOTOGRAPHS, ["one", "two"], 1)


def captions(section):
    return [picture.caption for picture in section.rows[0].images]


def test_sections_of_the_page():
    config = build_model_with_adaptors("teacher_b").config
    config.num_hidden_layers = 2
    torch.manual_seed(0)
    model, other = (RadioFeatures(RadioModel(config).eval(), size_px=32) for _ in range(2))
    teacher = TeacherFeatures(Blurry(), patch_size=8, size_px=32, name="teacher")
    both = Gallery(model, PHOTOGRAPHS, ["one <b>", "two"], 2, {"teacher_a": teacher}, {"untrained": other})
    features, sizes, depth, windows = both.sections()
    columns = ["photograph", "teacher teacher_a", "adaptor teacher_a", "backbone", "similar to the ring", AT_NIGHT]
    assert [caption.partition(" x")[0] for caption in captions(features)[:6]] == columns
    assert [caption.rpartition(": ")[2] for caption in captions(features)[6:]] == ["untrained", "backbone"]
    assert [picture.pixels.shape[1] for picture in features.rows[1].images] == [224, 8, 8, 8, 8, 224, 224, 224]
    for section in (features, sizes, depth, windows):
        assert [row.title for row in section.rows] == ["one <b>", "two"]
        for picture in section.rows[0].images:
            assert picture.pixels.float().std() > 15, f"{picture.caption} is uniform"
    assert captions(sizes)[1:] == ["16 px", "24 px", "32 px", "48 px", "64 px", "32 px, 2 x 2 shifts"]
    assert [picture.pixels.shape[1] for picture in sizes.rows[0].images[1:]] == [2, 3, 4, 6, 8, 8]
    whole, *windowed = windows.rows[0].images[1:]
    assert len(windowed) == 2
    assert not any(torch.equal(whole.pixels, each.pixels) for each in windowed), "windows act"
    assert "in 1 of 2 blocks" in windows.text
    with pytest.raises(ValueError, match="`words`"):
        next(both.sections(["cat"]))


def test_each_patch_has_the_color_of_its_nearest_word(build_dual_encoder, word_tokenizer, tmp_path):
    adaptor = {"name": "siglip2-g", "summary_dim": 12, "feature_dim": 10, "hidden_size": 16}
    config = RadioConfig.from_preset("radio-test", adaptors=[adaptor], preferred_resolution=[32, 32])
    whole = RadioForZeroShotImageClassification.from_parts(RadioModel(config).eval(), build_dual_encoder("siglip", 12))
    whole.save_pretrained(tmp_path / "packed")
    canonicalizing(word_tokenizer, 16).save_pretrained(tmp_path / "packed")
    shown = Gallery(open_radio(tmp_path / "packed"), PHOTOGRAPHS, ["one", "two"], 1)
    *_, section = shown.sections(["cat", "dog"])
    assert [name for name, _ in section.legend] == ["cat", "dog"]
    photograph, overlay = section.rows[0].images
    assert not torch.equal(photograph.pixels, overlay.pixels)
    *_, mirrored = shown.sections(["dog", "cat"])
    assert not torch.equal(mirrored.rows[0].images[1].pixels, overlay.pixels), "colors follow the words"


@pytest.mark.parametrize("progressive", [False, True])
def test_radio1d_has_tokens_where_others_have_windows(progressive):
    features, *_, depth, tokens = gallery_of(build_radio1d(progressive_reduction=progressive), 128).sections()
    assert (depth.title, tokens.title) == ("Over depth", "Global tokens")
    finer = next(picture for picture in features.rows[0].images if "teacher_b" in picture.caption)
    assert finer.pixels.shape == (3, 16, 16), "an adaptor on a grid of its own"
    neck, *decoded = tokens.rows[0].images[1:]
    assert (neck.caption, neck.pixels.shape) == ("encoder, all 16 tokens", (3, 4, 4))
    assert [picture.caption.split()[1] for picture in decoded] == ["16", "8", "4", "2", "1"]
    assert decoded[0].caption.endswith("mean cosine 1.00")
    assert all(picture.pixels.shape == (3, 8, 8) for picture in decoded)
    assert all(not torch.equal(decoded[0].pixels, fewer.pixels) for fewer in decoded[1:])


@pytest.mark.parametrize(
    ("model_class", "caption"),
    [
        (RadioForSemanticSegmentation, "Share of the photograph: "),
        (RadioForImageClassification, "LABEL_"),
        (RadioForInstanceSegmentation, "12 objects."),
    ],
)
def test_each_task_is_shown(model_class, caption, tmp_path):
    config = tiny_config(preferred_resolution=[64, 64], score_thresholds=[0.0, 0.0, 0.0])
    model_class(config).save_pretrained(tmp_path / "tuned")
    RadioImageProcessor.from_model_config(config).save_pretrained(tmp_path / "tuned")
    photographs = PHOTOGRAPHS[:, :, ::8, ::8]
    section = task_section(open_task_model(tmp_path / "tuned"), photographs, ["one", "two"])
    assert section.title == "Task: tuned"
    assert [row.title for row in section.rows] == ["one", "two"]
    photograph, drawn = section.rows[1].images
    assert torch.equal(photograph.pixels, photographs[1])
    assert drawn.caption.startswith(caption)
    assert drawn.pixels.shape == (3, 64, 64)
    assert torch.equal(drawn.pixels, photograph.pixels) == (model_class is RadioForImageClassification)
    assert bool(section.legend) == (model_class is not RadioForImageClassification)


@pytest.fixture
def small_world(base, tmp_path, monkeypatch):
    held_out = [Credited(draw_photograph(tmp_path / f"{name}.png", "held_out", "CC0-1.0"), "me <b>") for name in "ab"]
    monkeypatch.setattr(closing_page, "load_demo_assets", lambda: None)
    monkeypatch.setattr(closing_page, "republishable_photographs", lambda _: held_out)
    monkeypatch.setattr(gallery, "reachable_teachers", lambda recipe: recipe.teachers)
    return base


def test_a_page_without_teachers(small_world, tmp_path, capsys):
    output = tmp_path / "gallery"
    assert main([str(small_world), "--output", str(output), "--alone", "--shifts", "2"]) == 0
    assert capsys.readouterr().out == f"Open {output / 'index.html'}: 2 photographs.\n"
    page = (output / "index.html").read_text(encoding="utf-8")
    assert "a, by me &lt;b&gt; (CC0-1.0, package drawn)" in page
    assert "similar to the ring" in page
    assert "http" not in page.partition("</style>")[2]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["missing"], "`checkpoint`"),
        (["missing", "--shifts", "0"], "`shifts`"),
        (["{checkpoint}", "--alone", "--shifts", "3"], "`shifts`"),
        (["{checkpoint}", "--alone", "--words", "cat"], "`words`"),
        (["{checkpoint}", "--alone", "--tasks", "{checkpoint}"], "`tasks`"),
        (["{checkpoint}"], "has no teacher of the checkpoint's adaptors"),
    ],
)
def test_bad_input_is_one_line(small_world, tmp_path, arguments, named, capsys):
    arguments = [each.format(checkpoint=small_world) for each in arguments]
    assert main([*arguments, "--output", str(tmp_path / "gallery")]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("radio gallery: error: ")
    assert errors.count("\n") == 1
    assert named in errors
    assert not (tmp_path / "gallery" / "index.html").exists()
