"""A RADIO model as a teacher: its backbone or an adaptor, from folders of ours and of NVIDIA's layout."""

import json

import pytest
import torch
from reference_cases import write_hub_folder
from small_recipes import small_recipe
from tiny_adaptors import build_model_with_adaptors
from tiny_distillation import distil, install_tiny_world
from tiny_radio1d import build_radio1d

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.eradio_radio import eradio_fields
from modeling_radio.nvidia.eradio import PUBLISHED
from training.recipe import TeacherRecipe, load_recipe
from training.recipe_sections import RunOptions
from training.student.build import student_config
from training.targets.feature_cache import weights_fingerprint
from training.teachers.base import by_network, split_answer
from training.teachers.outputs import resample_features, resize_images
from training.teachers.registry import build_teacher, share_network, teacher_of_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the adaptors "teacher_a" and, without a summary, "segmenter"."""
    folder = tmp_path_factory.mktemp("radio") / "model"
    build_model_with_adaptors("segmenter").save_pretrained(folder)
    return folder


def build(folder, **options):
    return build_teacher("r", kind="radio", source=str(folder), grid_stride=8, **options)


def test_the_backbone_answers_as_the_model_does(folder):
    teacher = build(folder)
    assert (teacher.summary_dim, teacher.feature_dim, teacher.patch_size) == (2 * 16, 16, 8)
    assert teacher.run.run_mode == "native"
    pixel_values = torch.rand(2, 3, 32, 48)
    expected = RadioModel.from_pretrained(folder).eval()(pixel_values, feature_format="NCHW", adaptor_names=[])
    answer = teacher.answer(pixel_values)
    assert torch.equal(answer.summary, expected.summary)
    assert torch.equal(answer.features, expected.features)


@pytest.mark.parametrize(("adaptor", "summary_dim"), [("teacher_a", 6), ("segmenter", None)])
def test_an_adaptor_answers_in_its_teachers_space(folder, adaptor, summary_dim):
    teacher = build(folder, adaptor_name=adaptor)
    assert (teacher.summary_dim, teacher.feature_dim) == (summary_dim, 10)
    assert list(teacher.network.radio_model.adaptors) == [adaptor]
    pixel_values = torch.rand(2, 3, 32, 32)
    expected = RadioModel.from_pretrained(folder).eval()(pixel_values, feature_format="NCHW").adaptors[adaptor]
    answer = teacher.answer(pixel_values)
    assert torch.equal(answer.features, expected.features)
    assert summary_dim is None or torch.equal(answer.summary, expected.summary)
    assert not torch.equal(answer.features, build(folder, adaptor_name="teacher_a").answer(pixel_values + 0.1).features)


def test_an_adaptor_without_a_summary_answers_mosaics(folder):
    teacher = build(folder, adaptor_name="segmenter", run=RunOptions(run_mode="mosaic", input_size_px=64))
    assert teacher.answer(torch.rand(5, 3, 24, 32)).features.shape == (5, 10, 3, 4)


def test_the_cells_of_an_adaptor_that_upsamples_are_averaged_to_patches(folder, tmp_path):
    adaptor = RadioConfig.from_pretrained(folder).adaptors[0] | {"name": "fine", "upsample_factor": 2}
    RadioModel(RadioConfig.from_pretrained(folder, adaptors=[adaptor])).save_pretrained(tmp_path)
    teacher, pixel_values = build(tmp_path, adaptor_name="fine"), torch.rand(1, 3, 48, 32)
    finer = RadioModel.from_pretrained(tmp_path).eval()(pixel_values, feature_format="NCHW").adaptors["fine"].features
    assert finer.shape == (1, 10, 12, 8)
    torch.testing.assert_close(teacher.answer(pixel_values).features, resample_features(finer, 6, 4))


def test_a_student_of_it_has_heads_of_its_widths(folder):
    recipe = small_recipe("whole", "part", student={"preset": "radio-test"})
    config = student_config(recipe, {"whole": build(folder), "part": build(folder, adaptor_name="segmenter")})
    assert [(each.summary_dim, each.feature_dim) for each in config.adaptor_configs] == [(32, 16), (None, 10)]


def test_a_folder_in_nvidias_layout_is_a_teacher_too(tmp_path):
    folder = write_hub_folder("c_radio_v4_tiny", tmp_path / "hub")
    model = RadioModel.from_pretrained(folder).eval()
    pixel_values = torch.rand(1, 3, 64, 64)
    expected = model(pixel_values, feature_format="NCHW")
    for adaptor, of_model in ((None, expected), *expected.adaptors.items()):
        teacher = build_teacher(
            "r", kind="radio", source=str(folder), adaptor_name=adaptor, grid_stride=model.patch_size
        )
        features = resample_features(of_model.features, 4, 4)  # one of the adaptors upsamples
        torch.testing.assert_close(teacher.answer(pixel_values).features, features)


def test_its_blocks_answer_but_an_adaptor_has_none(folder):
    teacher, pixel_values = build(folder), torch.rand(2, 3, 32, 32)
    assert teacher.can_share_cores
    teacher.use_depths([1.0])
    assert not teacher.can_share_cores  # one pass at a time can be listened to
    last, inner = teacher([[pixel_values]])[0].features.chunk(2, dim=1)
    # One block and no final norm: the tap is the normed answer.
    torch.testing.assert_close(inner, torch.nn.functional.layer_norm(last.movedim(1, -1), (16,)).movedim(-1, 1))
    with pytest.raises(ValueError, match=r"Teacher 'r': `taps\.targets` must be 'last'"):
        build(folder, adaptor_name="segmenter").use_depths([0.5])


def test_windows_by_default_have_no_blocks_in_the_order_of_the_image(tmp_path):
    config = RadioConfig.from_preset("radio-test", vitdet_window_size=2)
    RadioModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"`taps\.targets` must be 'last'"):
        build_teacher("r", kind="radio", source=str(tmp_path)).use_depths([0.5])


def test_weights_can_be_kept_in_bfloat16(folder):
    teacher = build(folder, weights_dtype="bfloat16")
    assert teacher.network.dtype == torch.bfloat16
    pixel_values = torch.rand(1, 3, 32, 32)
    answer, exact = teacher.answer(pixel_values), build(folder).answer(pixel_values)
    assert answer.features.dtype == torch.float32
    assert torch.cosine_similarity(answer.features, exact.features).mean() > 0.99


def test_random_weights_need_a_configuration_only(folder, tmp_path):
    RadioConfig.from_pretrained(folder).save_pretrained(tmp_path)
    teacher = build(tmp_path, weights="random", adaptor_name="segmenter")
    assert teacher.answer(torch.rand(1, 3, 32, 32)).features.shape == (1, 10, 4, 4)


@pytest.mark.parametrize(
    ("adaptor", "widths"),
    [(None, (2560, 1280)), ("siglip2-g", (1536, 1536)), ("dino_v3", (4096, 4096)), ("sam3", (None, 1024))],
)
def test_a_published_one_is_planned_without_a_download(adaptor, widths):
    with torch.device("meta"):
        teacher = build_teacher("r", kind="radio", source="nvidia/C-RADIOv4-H", weights="random", adaptor_name=adaptor)
        answer = teacher.answer(torch.empty(2, 3, 64, 64))
    assert (teacher.summary_dim, teacher.feature_dim) == widths
    assert answer.features.shape == (2, widths[1], 4, 4)


def test_what_cannot_be_its_teacher_is_one_clear_line(folder, tmp_path):
    cases = [
        (
            {"adaptor_name": "segmentr"},
            r"`adaptor_name` must be one of .*, got 'segmentr'\. Did you mean 'segmenter'\?",
        ),
        ({"weights": "none"}, r"`weights` must be one of \['pretrained', 'random'\], got 'none'"),
        ({"weights_dtype": "int8"}, "`weights_dtype` must be one of"),
        ({"source": str(tmp_path)}, "`source` .* does not open as a RADIO model: .*config.json"),
        ({"source": "org/none"}, "`source` 'org/none' does not open as a RADIO model: it is no folder here; the Hub:"),
        ({"source": "org/none", "weights": "random"}, "no RADIO model at `source` 'org/none'"),
        ({"source": "facebook/sam3", "weights": "random"}, r"must be a model of one of the types \['radio'\], got"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=f"^Teacher 'r': .*{message}") as error:
            build_teacher("r", kind="radio", **{"source": str(folder), **options})
        assert "\n" not in str(error.value)


def test_an_adaptor_of_a_summary_alone_is_refused(folder, tmp_path):
    adaptor = RadioConfig.from_pretrained(folder).adaptors[0] | {"feature_dim": None}
    RadioModel(RadioConfig.from_pretrained(folder, adaptors=[adaptor])).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"`adaptor_name` must be of one with dense features, got 'teacher_a'"):
        build(tmp_path, adaptor_name="teacher_a")


def test_a_backbone_without_a_summary_has_none(folder, tmp_path):
    config = RadioConfig.from_pretrained(folder)
    config.summary_idxs = []
    RadioModel(config).save_pretrained(tmp_path)
    teacher = build(tmp_path)
    assert teacher.summary_dim is None
    assert teacher.answer(torch.rand(1, 3, 32, 32)).summary is None


def test_sizes_beyond_its_largest_are_found_at_the_start(folder):
    teacher = build(folder)
    teacher.check_size(64, 64)
    with pytest.raises(ValueError, match=r"96 x 64 px are seen at 96 x 64 px, and it takes at most 64 a side\. Set"):
        teacher.check_size(96, 64)
    teacher.set_run_mode(RunOptions(input_size_px=32), grid_stride=8)
    teacher.check_size(96, 64)
    assert teacher.answer(torch.rand(1, 3, 96, 64)).features.shape == (1, 16, 12, 8)


def test_another_image_changes_the_answer_at_a_fixed_size(folder):
    teacher = build(folder, run=RunOptions(input_size_px=32))
    images = torch.rand(1, 3, 64, 64)
    expected = teacher([[resize_images(images, (32, 32))]])[0].features
    assert expected.shape[2:] == (4, 4)
    assert not torch.allclose(teacher.answer(images).features[..., ::2, ::2], expected, atol=1e-4)


def test_the_demo_takes_the_folder_that_it_left_as_a_fourth_teacher(folder):
    entry = load_recipe("demo_with_radio", [f"teachers.radio.source={json.dumps(str(folder))}"]).teachers[-1]
    assert (entry.name, entry.kind, entry.source) == ("radio", "radio", str(folder))
    assert load_recipe("demo_with_radio").teachers[:-1] == load_recipe("demo").teachers


def test_a_student_learns_from_it_and_its_adaptor_in_a_run(folder, recipe_file, tmp_path, monkeypatch):
    install_tiny_world(monkeypatch)
    entry = {"kind": "radio", "source": str(folder)}
    teachers = [
        {"name": "semantic", "kind": "tiny", "options": {"summary_dim": 10, "feature_dim": 12}},
        {"name": "whole", **entry},
        {"name": "part", **entry, "options": {"adaptor_name": "segmenter"}, "run_mode": "mosaic", "input_size_px": 64},
    ]
    student = RadioModel.from_pretrained(distil(recipe_file, str(tmp_path), f"teachers={json.dumps(teachers)}"))
    widths = {each.name: (each.summary_dim, each.feature_dim) for each in student.config.adaptor_configs}
    assert widths == {"semantic": (10, 12), "whole": (32, 16), "part": (None, 10)}
    other = "teachers=" + json.dumps([*teachers[:2], teachers[2] | {"options": {"adaptor_name": "teacher_a"}}])
    with pytest.raises(ValueError, match="must be 'native' or 'fixed' for a teacher with a summary, got 'mosaic'"):
        distil(recipe_file, str(tmp_path / "other"), other)


def save_eradio(folder):
    small = {"dim": 8, "in_dim": 8, "depths": [1, 1, 1, 1], "full_features_head_dim": 12, "cpb_mlp_hidden": 8}
    arguments = PUBLISHED["eradio"] | small | {"window_size": [None, None, [4, 4], 4], "num_heads": [1, 1, 2, 4]}
    torch.manual_seed(0)
    model = RadioModel(RadioConfig(**eradio_fields(arguments))).eval()
    model.save_pretrained(folder)
    return model


def save_radio1d(folder):
    model = build_radio1d()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("save", [save_eradio, save_radio1d])
def test_radios_of_other_kinds_answer_but_their_blocks_have_other_grids(save, tmp_path):
    model = save(tmp_path)
    teacher = build_teacher("r", kind="radio", source=str(tmp_path))
    assert teacher.input_sizes(3, 4) == ((48 if save is save_radio1d else 64, 64),)
    images = torch.rand(1, 3, 64, 128)
    expected = model(images, feature_format="NCHW", adaptor_names=[])
    answer = teacher.answer(images)
    torch.testing.assert_close(answer.features, expected.features)
    assert (teacher.summary_dim or 0) == expected.summary.shape[1]
    with pytest.raises(ValueError, match=r"`taps\.targets` must be 'last'"):
        teacher.use_depths([0.5])


def build_sharing(folder, *adaptors):
    """Return teachers of one network, by their options."""
    entries = [
        TeacherRecipe(name=str(number), kind="radio", source=str(folder), options=options)
        for number, options in enumerate(adaptors)
    ]
    teachers = []
    for entry in entries:
        teachers.append(teacher_of_recipe(entry, 8))
        share_network(teachers[-1], entry, zip(teachers[:-1], entries, strict=False))
    return teachers


def test_one_pass_answers_for_all_of_its_adaptors(folder):
    options = [{}, {"adaptor_name": "segmenter"}, {"adaptor_name": "teacher_a"}]
    teachers, alone = build_sharing(folder, *options), [build(folder, **each) for each in options]
    assert [teacher.network_of for teacher in teachers] == ["0", "0", "0"]
    assert by_network(dict(zip("abc", teachers, strict=True))) == [["a", "b", "c"]]
    assert list(map(weights_fingerprint, teachers)) == list(map(weights_fingerprint, alone))  # for caches
    passes = []
    teachers[0].network.radio_model.model.register_forward_hook(lambda *_: passes.append(1))
    images = torch.rand(2, 3, 32, 48)
    for first in teachers:  # whichever runs it
        for answer, other in zip(first.answers(images, teachers), alone, strict=True):
            expected = other.answer(images)
            assert torch.equal(answer.features, expected.features)
            assert answer.summary is expected.summary is None or torch.equal(answer.summary, expected.summary)
    assert len(passes) == 3
    teachers[0].use_depths([1.0])
    joint = teachers[1]([[images]], teachers)
    _, (last, inner) = split_answer(joint[0], teachers)[0]
    torch.testing.assert_close(inner, torch.nn.functional.layer_norm(last.movedim(1, -1), (16,)).movedim(-1, 1))
    assert len(passes) == 4


def test_a_compiled_pass_answers_for_all(folder, monkeypatch):
    real_compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: real_compile(function, backend="eager"))
    teachers, images = build_sharing(folder, {}, {"adaptor_name": "segmenter"}), torch.rand(1, 3, 32, 32)
    expected = teachers[0].answers(images, teachers)
    teachers[0].compile_network()
    for answer, own in zip(teachers[0].answers(images, teachers), expected, strict=True):
        torch.testing.assert_close(answer.features, own.features)


@pytest.mark.parametrize(
    "change",
    [{"options": {"weights_dtype": "bfloat16"}}, {"precision": "bfloat16"}, {"device": "cpu"}, {"kind": "dinov3"}],
)
def test_what_runs_otherwise_has_a_network_of_its_own(folder, change):
    entry = TeacherRecipe(name="a", kind="radio", source=str(folder), options={"adaptor_name": "segmenter"})
    first, second = build(folder), build(folder)
    share_network(second, entry.replace(name="b", **change), [(first, entry)])
    assert second.network is not first.network
    assert second.network.radio_model.model is not first.network.radio_model.model
