"""The gallery: what stands beside what, that it shows what it says, and what the command refuses in one line."""

from itertools import pairwise

import pytest
import torch
from drawn_assets import draw_photograph
from task_models import tiny_config
from tiny_adaptors import build_model_with_adaptors
from tiny_radio1d import build_radio1d

from conversion.text_tower import canonicalizing
from modeling_radio import (
    RadioConfig,
    RadioForDepthEstimation,
    RadioForImageClassification,
    RadioForInstanceSegmentation,
    RadioForObjectDetection,
    RadioForSemanticSegmentation,
    RadioForZeroShotImageClassification,
    RadioImageProcessor,
    RadioModel,
)
from training.demo.closing_page import Credited
from training.evaluation.models.radio import RadioFeatures, open_radio
from training.evaluation.models.teachers import TeacherFeatures
from training.figures import gallery
from training.figures.gallery import PHOTOGRAPH_PX, Gallery, main, open_task_model, sizes_of, task_section
from training.teachers.base import Teacher
from training.teachers.outputs import TeacherOutput


@pytest.fixture
def tiny_model():
    return build_model_with_adaptors("teacher_b")


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
def both(tiny_model, photographs):
    config = tiny_model.config
    config.num_hidden_layers = 2
    torch.manual_seed(0)
    model, other = (RadioFeatures(RadioModel(config).eval(), size_px=32) for _ in range(2))
    teacher = TeacherFeatures(Blurry(), patch_size=8, size_px=32, name="teacher")
    return Gallery(model, photographs, ["one <b>", "two"], 2, {"teacher_a": teacher}, {"untrained": other})


def test_sections_of_the_page(both):
    features, sizes, depth, windows = both.sections()
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
    features, _ = Gallery(model, photographs, ["one", "two"], 1).sections()
    captions = [picture.caption.partition(" x")[0] for picture in features.rows[0].pictures]
    assert captions[1:4] == ["adaptor teacher_a", "adaptor teacher_b", "backbone"]


def test_words_need_a_text_tower(both):
    with pytest.raises(ValueError, match=r"`words` must be left out for a checkpoint without a text tower"):
        next(both.sections(["cat"]))


def test_each_patch_has_the_color_of_its_nearest_word(build_dual_encoder, word_tokenizer, photographs, tmp_path):
    adaptor = {"name": "siglip2-g", "summary_dim": 12, "feature_dim": 10, "hidden_size": 16}
    config = RadioConfig.from_preset("radio-test", adaptors=[adaptor], preferred_resolution=[32, 32])
    whole = RadioForZeroShotImageClassification.from_parts(RadioModel(config).eval(), build_dual_encoder("siglip", 12))
    whole.save_pretrained(tmp_path / "packed")
    canonicalizing(word_tokenizer, 16).save_pretrained(tmp_path / "packed")
    model = open_radio(tmp_path / "packed")
    *_, section = Gallery(model, photographs, ["one", "two"], 1).sections(["cat", "dog"])
    assert [name for name, _ in section.legend] == ["cat", "dog"]
    photograph, overlay = section.rows[0].pictures
    assert not torch.equal(photograph.pixels, overlay.pixels)
    *_, mirrored = Gallery(model, photographs, ["one", "two"], 1).sections(["dog", "cat"])
    assert not torch.equal(mirrored.rows[0].pictures[1].pixels, overlay.pixels), "colors follow the words"


def gallery_of(model: RadioModel, size_px: int) -> Gallery:
    coarse = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    photographs = torch.nn.functional.interpolate(coarse, (PHOTOGRAPH_PX, PHOTOGRAPH_PX))
    return Gallery(RadioFeatures(model, size_px=size_px), photographs, ["one", "two"], 1)


def captions(section) -> list[str]:
    return [picture.caption for picture in section.rows[0].pictures[1:]]


def test_quarters_of_the_depth_differ() -> None:
    torch.manual_seed(0)
    config = RadioConfig.from_preset("radio-test", num_hidden_layers=8)
    section = gallery_of(RadioModel(config).eval(), 64).depth_section()
    assert captions(section) == [f"after block {block} of 8" for block in (2, 4, 6, 8)]
    pictures = [picture.pixels for picture in section.rows[0].pictures[1:]]
    assert all(pixels.shape == (3, 64 // config.patch_size, 64 // config.patch_size) for pixels in pictures)
    assert all(not torch.equal(one, other) for one, other in pairwise(pictures))


@pytest.mark.parametrize("progressive", [False, True])
def test_fewer_global_tokens_change_the_decoders_answer(progressive: bool) -> None:
    model = build_radio1d(progressive_reduction=progressive)
    section = gallery_of(model, 128).token_section()
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
    sections = list(gallery_of(build_radio1d(), 128).sections())
    assert [section.title for section in sections[-2:]] == ["Over depth", "Global tokens"]
    finer = next(picture for picture in sections[0].rows[0].pictures if "teacher_b" in picture.caption)
    assert finer.pixels.shape == (3, 16, 16), "an adaptor on a grid of its own"
    torch.manual_seed(0)
    plain = RadioModel(RadioConfig.from_preset("radio-test", num_hidden_layers=4)).eval()
    titles = [section.title for section in gallery_of(plain, 64).sections()]
    assert titles[-2:] == ["Over depth", "Windows"]


PHOTOGRAPHS = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("model_class", "caption"),
    [
        (RadioForSemanticSegmentation, "Share of the photograph: "),
        (RadioForDepthEstimation, "Depth from "),
        (RadioForImageClassification, "LABEL_"),
        (RadioForObjectDetection, "12 objects."),
        (RadioForInstanceSegmentation, "12 objects."),
    ],
)
def test_each_task_is_shown(model_class, caption, tmp_path):
    config = tiny_config(preferred_resolution=[64, 64], score_thresholds=[0.0, 0.0, 0.0])
    model_class(config).save_pretrained(tmp_path / "tuned")
    RadioImageProcessor.from_model_config(config).save_pretrained(tmp_path / "tuned")
    section = task_section(open_task_model(tmp_path / "tuned"), PHOTOGRAPHS, ["one", "two"])
    assert section.title == "Task: tuned"
    assert [row.title for row in section.rows] == ["one", "two"]
    photograph, answer = section.rows[1].pictures
    assert torch.equal(photograph.pixels, PHOTOGRAPHS[1])
    assert answer.caption.startswith(caption)
    assert answer.pixels.shape == (3, 64, 64)
    is_of_image = model_class is RadioForImageClassification
    assert torch.equal(answer.pixels, photograph.pixels) == is_of_image
    assert bool(section.legend) == (model_class not in (RadioForImageClassification, RadioForDepthEstimation))


def test_a_backbone_has_no_task(base):
    with pytest.raises(ValueError, match=r"`tasks` must be folders of tuned models, got .*of 'RadioModel'"):
        open_task_model(base)


@pytest.fixture
def small_world(base, tmp_path, monkeypatch):
    held_out = [Credited(draw_photograph(tmp_path / f"{name}.png", "held_out", "CC0-1.0"), "me <b>") for name in "ab"]
    monkeypatch.setattr(gallery, "load_demo_assets", lambda: None)
    monkeypatch.setattr(gallery, "republishable_photographs", lambda _: held_out)
    return base


def test_a_page_without_teachers(small_world, tmp_path, capsys):
    output = tmp_path / "gallery"
    assert main([str(small_world), "--output", str(output), "--alone", "--shifts", "2"]) == 0
    assert capsys.readouterr().out == f"Open {output / 'index.html'}: 2 photographs.\n"
    page = (output / "index.html").read_text(encoding="utf-8")
    assert "a, by me &lt;b&gt; (CC0-1.0, package drawn)" in page
    assert "alike the ring: backbone" in page
    assert "http" not in page.partition("</style>")[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "`checkpoint` must be"),
        (["missing", "--shifts", "0"], "`shifts` must be"),
        (["{checkpoint}", "--alone", "--shifts", "3"], "`shifts` must divide the 16 pixels of a patch, got 3"),
        (["{checkpoint}", "--alone", "--words", "cat"], "`words` must be left out"),
        (["{checkpoint}"], "names none of the checkpoint's adaptors"),
    ],
)
def test_bad_input_is_one_line(small_world, tmp_path, arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(gallery, "reachable_teachers", lambda recipe: recipe.teachers)
    arguments = [each.format(checkpoint=small_world) for each in arguments]
    assert main([*arguments, "--output", str(tmp_path / "gallery")]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("gallery: error: ")
    assert errors.count("\n") == 1
    assert message in errors
    assert not (tmp_path / "gallery" / "index.html").exists()
