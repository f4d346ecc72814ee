"""A RADIO model as a teacher: its backbone or an adaptor, from folders of ours and of NVIDIA's layout."""

import json
import shutil

import pytest
import torch
from documentation import blocks
from reference_cases import write_hub_folder
from safetensors.torch import load_file
from small_recipes import small_recipe
from tiny_adaptors import build_model_with_adaptors
from tiny_distillation import distil, install_tiny_world
from tiny_nemotron import OUTPUT_SIZE, build_tower, save_nemotron
from tiny_radio1d import build_radio1d

from modeling_radio import RadioConfig, RadioModel, engines
from modeling_radio.conversion.convert import main as convert
from modeling_radio.conversion.to_nemotron import main as put_in
from modeling_radio.core.settings import read_yaml
from modeling_radio.eradio_radio import eradio_fields
from modeling_radio.nvidia.eradio import PUBLISHED
from modeling_radio.presets_radio import Size
from modeling_radio.projector import RadioProjector
from modeling_radio.training.recipes.recipe import TeacherRecipe, load_recipe
from modeling_radio.training.recipes.sections import RunOptions
from modeling_radio.training.student.build import student_config
from modeling_radio.training.targets.feature_cache import weights_fingerprint
from modeling_radio.training.teachers.base import by_network
from modeling_radio.training.teachers.outputs import resample_features, resize_images
from modeling_radio.training.teachers.registry import build_teacher, share_network, teacher_of_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the adaptors "teacher_a" and, without a summary, "segmenter"."""
    folder = tmp_path_factory.mktemp("radio") / "model"
    build_model_with_adaptors("segmenter").save_pretrained(folder)
    return folder


def build(folder, grid_stride=8, **options):
    return build_teacher("r", kind="radio", source=str(folder), grid_stride=grid_stride, **options)


def save_with(folder, path, **adaptor):
    """Save a model whose only adaptor is changed."""
    config = RadioConfig.from_pretrained(folder)
    RadioModel(RadioConfig.from_pretrained(folder, adaptors=[config.adaptors[0] | adaptor])).save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("adaptor", "summary_dim", "feature_dim"), [(None, 32, 16), ("teacher_a", 6, 10), ("segmenter", None, 10)]
)
def test_outputs_are_those_of_the_model(folder, adaptor, summary_dim, feature_dim):
    teacher, pixel_values = build(folder, adaptor_name=adaptor), torch.rand(2, 3, 32, 48)
    assert (teacher.summary_dim, teacher.feature_dim, teacher.patch_size) == (summary_dim, feature_dim, 8)
    assert teacher.run.run_mode == "native"
    assert list(teacher.network.radio_model.adaptors) == [adaptor] * (adaptor is not None)
    expected = RadioModel.from_pretrained(folder).eval()(pixel_values, feature_format="NCHW")
    expected = expected if adaptor is None else expected.adaptors[adaptor]
    answer = teacher.extract_features(pixel_values)
    assert torch.equal(answer.features, expected.features)
    assert answer.summary is None if summary_dim is None else torch.equal(answer.summary, expected.summary)
    rounded = build(folder, adaptor_name=adaptor, weights_dtype="bfloat16")
    assert rounded.network.dtype == torch.bfloat16
    assert rounded.extract_features(pixel_values).features.dtype == torch.float32
    assert torch.cosine_similarity(rounded.extract_features(pixel_values).features, answer.features).mean() > 0.99


def test_a_projector_gives_what_a_language_model_sees(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "tower")
    torch.manual_seed(0)
    projector, pixel_values = RadioProjector(16, 20, 12), torch.rand(2, 3, 32, 48)
    projector.save_pretrained(tmp_path / "tower")
    teacher = build(tmp_path / "tower", projector=True)
    assert (teacher.summary_dim, teacher.feature_dim, teacher.patch_size) == (None, 12, 16)
    features = RadioModel.from_pretrained(folder).eval()(pixel_values, feature_format="NCHW").features
    assert torch.equal(teacher.encode(pixel_values).features, projector(features))
    answer = teacher.extract_features(pixel_values[..., :16, :32])  # a token for each patch of the student
    assert (answer.summary, answer.features.shape) == (None, (2, 12, 2, 4))
    assert build(tmp_path / "tower", projector=True, weights="random").feature_dim == 12
    for source, options in ((folder, {}), (tmp_path / "tower", {"adaptor_name": "teacher_a"})):
        with pytest.raises(ValueError, match="`projector`"):
            build(source, projector=True, **options)


def test_adaptors_run_on_mosaics_and_finer_ones_are_averaged_to_patches(folder, tmp_path):
    teacher = build(folder, adaptor_name="segmenter", run=RunOptions(run_mode="mosaic", input_size_px=64))
    assert teacher.extract_features(torch.rand(5, 3, 24, 32)).features.shape == (5, 10, 3, 4)
    save_with(folder, tmp_path, name="fine", upsample_factor=2)
    teacher, pixel_values = build(tmp_path, adaptor_name="fine"), torch.rand(1, 3, 48, 32)
    finer = RadioModel.from_pretrained(tmp_path).eval()(pixel_values, feature_format="NCHW").adaptors["fine"].features
    assert finer.shape == (1, 10, 12, 8)
    torch.testing.assert_close(teacher.extract_features(pixel_values).features, resample_features(finer, 6, 4))


def test_a_folder_in_nvidias_layout_is_a_teacher_too(tmp_path):
    folder = write_hub_folder("c_radio_v4_tiny", tmp_path / "hub")
    model, pixel_values = RadioModel.from_pretrained(folder).eval(), torch.rand(1, 3, 64, 64)
    expected = model(pixel_values, feature_format="NCHW")
    for adaptor, of_model in ((None, expected), *expected.adaptors.items()):
        teacher = build(folder, model.patch_size, adaptor_name=adaptor)
        features = resample_features(of_model.features, 4, 4)  # one of the adaptors upsamples
        torch.testing.assert_close(teacher.extract_features(pixel_values).features, features)


def save_eradio():
    small = {"dim": 8, "in_dim": 8, "depths": [1, 1, 1, 1], "full_features_head_dim": 12, "cpb_mlp_hidden": 8}
    arguments = PUBLISHED["eradio"] | small | {"window_size": [None, None, [4, 4], 4], "num_heads": [1, 1, 2, 4]}
    torch.manual_seed(0)
    return RadioModel(RadioConfig(**eradio_fields(arguments))).eval()


@pytest.mark.parametrize(("build_model", "height"), [(save_eradio, 64), (build_radio1d, 48)])
def test_radios_of_other_kinds_are_teachers_too(build_model, height, tmp_path):
    model, images = build_model(), torch.rand(1, 3, 64, 128)
    model.save_pretrained(tmp_path)
    teacher = build(tmp_path, 16)
    assert teacher.input_sizes(3, 4) == ((height, 64),)
    expected = model(images, feature_format="NCHW", adaptor_names=[])
    torch.testing.assert_close(teacher.extract_features(images).features, expected.features)
    assert (teacher.summary_dim or 0) == expected.summary.shape[1]


def test_a_backbone_without_a_summary_has_none_and_random_weights_need_a_configuration_only(folder, tmp_path):
    config = RadioConfig.from_pretrained(folder)
    config.summary_idxs = []
    config.save_pretrained(tmp_path)
    teacher = build(tmp_path, weights="random")
    assert teacher.summary_dim is teacher.extract_features(torch.rand(1, 3, 32, 32)).summary is None


@pytest.mark.parametrize(
    ("adaptor", "widths"),
    [(None, (2560, 1280)), ("siglip2-g", (1536, 1536)), ("dino_v3_7b", (4096, 4096)), ("sam3", (None, 1024))],
)
def test_a_published_one_is_planned_without_a_download(adaptor, widths):
    with torch.device("meta"):
        teacher = build("nvidia/C-RADIOv4-H", 16, weights="random", adaptor_name=adaptor)
        answer = teacher.extract_features(torch.empty(2, 3, 64, 64))
    assert (teacher.summary_dim, teacher.feature_dim) == widths
    assert answer.features.shape == (2, widths[1], 4, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adaptor_name": "segmentr"}, "`adaptor_name` .*Did you mean 'segmenter'"),
        ({"weights": "none"}, "`weights` .*'none'"),
        ({"weights_dtype": "int8"}, "`weights_dtype` .*'int8'"),
        ({"source": "EMPTY"}, "`source` .*config.json"),
        ({"source": "org/none"}, "`source` 'org/none' .*the Hub"),
        ({"source": "org/none", "weights": "random"}, "`source` 'org/none'"),
        ({"source": "facebook/sam3", "weights": "random"}, r"`source` .*\['radio'\]"),
        ({"source": "SUMMARY", "adaptor_name": "teacher_a"}, "`adaptor_name` .*dense features, got 'teacher_a'"),
    ],
)
def test_other_sources_and_options_are_one_clear_line(folder, tmp_path, options, message):
    places = {"EMPTY": tmp_path, "SUMMARY": tmp_path}
    if options.get("source") == "SUMMARY":
        save_with(folder, tmp_path, feature_dim=None)
    source = options.get("source", str(folder))
    with pytest.raises(ValueError, match=f"^Teacher 'r': .*{message}") as error:
        build(places.get(source, source), **{key: value for key, value in options.items() if key != "source"})
    assert "\n" not in str(error.value)


def test_sizes_beyond_its_largest_are_found_at_the_start(folder):
    teacher = build(folder)
    teacher.check_size(64, 64)
    with pytest.raises(ValueError, match=r"`pixel_values` of 96 x 64 px .*`input_size_px`"):
        teacher.check_size(96, 64)
    teacher.set_run_mode(RunOptions(input_size_px=32), grid_stride=8)
    teacher.check_size(96, 64)
    images = torch.rand(1, 3, 96, 64)
    expected = teacher([[resize_images(images, (32, 32))]])[0].features
    assert expected.shape[2:] == (4, 4)
    torch.testing.assert_close(teacher.extract_features(images).features, resample_features(expected, 12, 8))


def test_a_student_learns_from_it_and_its_adaptor_in_a_run(folder, recipe_file, tmp_path, monkeypatch):
    recipe = small_recipe("whole", "part", student={"preset": "radio-test"})
    config = student_config(recipe, {"whole": build(folder), "part": build(folder, adaptor_name="segmenter")})
    assert [(each.summary_dim, each.feature_dim) for each in config.adaptor_configs] == [(32, 16), (None, 10)]
    entry = load_recipe("demo_with_radio", [f"teachers.radio.source={json.dumps(str(folder))}"]).teachers[-1]
    assert (entry.name, entry.kind, entry.source) == ("radio", "radio", str(folder))
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


def test_a_tower_learns_by_its_recipe_and_goes_back(recipe_file, tmp_path, monkeypatch):
    nemotron, tower = save_nemotron(tmp_path / "nemotron", build_tower()), tmp_path / "tower"
    assert convert([str(nemotron), str(tower), "--projector"]) == 0
    monkeypatch.setitem(engines.TOWER_NAMES, "vit_huge_patch16_224", Size(32, 2, 2))
    install_tiny_world(monkeypatch)
    [text] = [block.text for block in blocks("yaml") if block.page == "docs/how-to/vlm.md"]
    (tmp_path / "vlm.yaml").write_text(text)
    recipe = load_recipe(str(tmp_path / "vlm.yaml"), ["data.source=images"])
    assert (recipe.stages, recipe.student.init_from) == ([], "tower")
    teachers = [{**entry, "source": str(tower)} for entry in read_yaml(text)["teachers"][:2]]
    teachers[1] |= {"input_size_px": 64}
    teachers.append({"name": "segmenter", "kind": "tiny", "options": {"feature_dim": 9}})
    changes = (f"teachers={json.dumps(teachers)}", f"student.init_from={tower}", "spectral.is_used=false")
    learned = distil(recipe_file, str(tmp_path / "run"), *changes)
    widths = {each.name: each.feature_dim for each in RadioConfig.from_pretrained(learned).adaptor_configs}
    assert widths == {"tower": 32, "tokens": OUTPUT_SIZE, "segmenter": 9}
    assert put_in([str(learned), str(nemotron), str(tmp_path / "tuned")]) == 0
    again = RadioModel.from_pretrained(learned).radio_model.model.blocks[1].attn.qkv.weight
    name = "vision_model.radio_model.model.blocks.1.attn.qkv.weight"
    stored = [load_file(file) for file in (tmp_path / "tuned").glob("*.safetensors")]
    assert torch.equal(next(tensors[name] for tensors in stored if name in tensors), again)


def build_sharing(folder, *options):
    """Return teachers of one network."""
    entries = [
        TeacherRecipe(name=str(number), kind="radio", source=str(folder), options=each)
        for number, each in enumerate(options)
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
    passes, images = [], torch.rand(2, 3, 32, 48)
    teachers[0].network.radio_model.model.register_forward_hook(lambda *_: passes.append(1))
    for first in teachers:  # whichever runs it
        for answer, other in zip(first.extract_features_for(images, teachers), alone, strict=True):
            expected = other.extract_features(images)
            assert torch.equal(answer.features, expected.features)
            assert answer.summary is expected.summary is None or torch.equal(answer.summary, expected.summary)
    assert len(passes) == 3


@pytest.mark.parametrize(
    "change",
    [{"options": {"weights_dtype": "bfloat16"}}, {"dtype": "bfloat16"}, {"device": "cpu"}, {"kind": "dinov3"}],
)
def test_teachers_that_run_otherwise_have_networks_of_their_own(folder, change):
    entry = TeacherRecipe(name="a", kind="radio", source=str(folder), options={"adaptor_name": "segmenter"})
    first, second = build(folder), build(folder)
    share_network(second, entry.replace(name="b", **change), [(first, entry)])
    assert second.network.radio_model.model is not first.network.radio_model.model
