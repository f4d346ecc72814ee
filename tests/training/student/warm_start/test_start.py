from pathlib import Path

import pytest
import torch
from small_recipes import small_recipe
from tiny_networks import NETWORKS, build_wrapped
from tiny_vits import SIZES, build_vit
from torch import Tensor

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.conversion.to_network import save_network
from modeling_radio.training.recipes.recipe import RecipeError
from modeling_radio.training.student.build import build_student
from modeling_radio.training.student.warm_start.start import start_student
from modeling_radio.training.teachers.base import Teacher
from modeling_radio.training.teachers.outputs import TeacherOutput, TeacherWidths


pytestmark = pytest.mark.usefixtures("one_thread")


class VitTeacher(Teacher):
    image_mean, image_std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)

    def __init__(self, network=None) -> None:
        super().__init__("friend", summary_dim=48, feature_dim=48, patch_size=8)
        if network is not None:
            self.network = network

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        raise NotImplementedError


def build(**fields) -> RadioModel:
    own = {"max_img_size": 32, "patch_size": 8, "num_cls_tokens": 1, "num_registers": 0, "summary_idxs": [0]}
    return RadioModel(RadioConfig(**{**SIZES, **own, **fields})).eval()


@pytest.mark.parametrize("place", ["teacher", "folder"])
def test_a_teacher_by_its_name_or_a_folder_is_a_start(place: str, tmp_path: Path) -> None:
    network = build_vit("dinov2" if place == "teacher" else "vit")
    student = build(intermediate_size=96 if place == "teacher" else 64)
    network.save_pretrained(tmp_path)
    source = "friend" if place == "teacher" else str(tmp_path)
    report = start_student(student, source, {"friend": VitTeacher(network)})
    assert report.source.startswith(f"{source!r}, a {type(network).__name__}")
    assert report.kept == []
    normalization = "normalization by [0.1, 0.2, 0.3] and [0.4, 0.5, 0.6] folded into the patch projection"
    assert (normalization in report.resized) == (place == "teacher")
    given = network.state_dict()["embeddings.cls_token"] + network.state_dict()["embeddings.position_embeddings"][:, :1]
    assert torch.equal(student.radio_model.model.patch_generator.cls_token.token, given[0])


def test_a_radio_folder_gives_the_chosen_blocks(tmp_path: Path) -> None:
    source, student = build(num_hidden_layers=3), build()
    source.save_pretrained(tmp_path)
    assert start_student(student, str(tmp_path), {}, [0, 2]).taken == ["trunk, its blocks [0, 2]"]
    own, given = student.radio_model.model.blocks, source.radio_model.model.blocks
    for index, chosen in enumerate([0, 2]):
        assert torch.equal(own[index].mlp.fc1.weight, given[chosen].mlp.fc1.weight)
    for blocks, named in (([0, 3], r"`student\.init_blocks`"), ([0], "num_hidden_layers is 1, not 2")):
        with pytest.raises(RecipeError, match=named):
            start_student(student, str(tmp_path), {}, blocks)


def test_a_bad_source_is_refused(tmp_path: Path) -> None:
    for teacher in (VitTeacher(), VitTeacher(torch.nn.Linear(1, 1))):
        with pytest.raises(RecipeError, match=r"`student\.init_from` 'friend'"):
            start_student(build(), "friend", {"friend": teacher})
    with pytest.raises(RecipeError, match=r"`student\.init_from` "):
        start_student(build(), str(tmp_path), {})


# Networks of libraries

TEACHERS = {"semantic": TeacherWidths(10, 12), "other": TeacherWidths(None, 20)}


def student_of(name: str):
    adaptor = {"hidden_size": 16}
    return build_student(small_recipe(*TEACHERS, student={**NETWORKS[name]._asdict(), "adaptor": adaptor}), TEACHERS)


@pytest.mark.parametrize(("name", "source"), [("ConvNeXt", "timm:local-dir:{}"), ("DINOv2", "transformers:{}")])
def test_weights_of_the_library_are_taken(name, source, tmp_path):
    trained, student = build_wrapped(name), student_of(name)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.01)
    save_network(trained, tmp_path)
    report = start_student(student, source.format(tmp_path), {})
    assert report.taken == ["the network"]
    expected = trained.radio_model.model.network.state_dict()
    for key, tensor in student.radio_model.model.network.state_dict().items():
        assert torch.equal(tensor, expected[key])
    with pytest.raises(RecipeError, match=r"`student\.init_from`"):
        start_student(student_of("class"), source.format(tmp_path), {})


def test_a_teacher_with_the_same_network_is_a_start():
    trained, student = build_wrapped("ConvNeXt").radio_model.model.network, student_of("ConvNeXt")
    report = start_student(student, "friend", {"friend": VitTeacher(trained)})
    assert report.taken == ["the network"]
    own = student.radio_model.model.network.state_dict()
    assert all(torch.equal(own[key], tensor) for key, tensor in trained.state_dict().items())
    for network in (build_wrapped("ResNet").radio_model.model.network, None):
        with pytest.raises(RecipeError, match=r"`student\.init_from` 'friend'"):
            start_student(student, "friend", {"friend": VitTeacher(network)})


def test_another_network_is_refused(tmp_path):
    save_network(build_wrapped("ConvNeXt"), tmp_path)
    with pytest.raises(RecipeError, match=r"another network|does not open"):
        start_student(student_of("ResNet"), f"timm:local-dir:{tmp_path}", {})
    with pytest.raises(RecipeError, match="does not open"):
        start_student(student_of("ConvNeXt"), "timm:local-dir:missing", {})


def test_a_radio_folder_gives_network_pool_queries_and_heads_of_shared_teachers(tmp_path):
    trained = build_wrapped("ConvNeXt")
    trained.save_pretrained(tmp_path)
    student = student_of("ConvNeXt")
    report = start_student(student, str(tmp_path), {})
    assert report.kept == ["semantic"]
    own, given = student.radio_model.model, trained.radio_model.model
    assert torch.equal(own.pool.queries[0], given.pool.queries[0])
    assert torch.equal(own.network.stem[0].weight, given.network.stem[0].weight)
    with pytest.raises(RecipeError, match="another trunk"):
        start_student(student_of("ResNet"), str(tmp_path), {})
