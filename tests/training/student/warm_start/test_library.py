"""Start of a wrapped network from the weights of its library, and from a RADIO folder of it."""

import pytest
import torch
from small_recipes import small_recipe
from tiny_networks import NETWORKS, build_wrapped

from modeling_radio.conversion.to_network import save_network
from modeling_radio.training.recipe import RecipeError
from modeling_radio.training.student.build import build_student
from modeling_radio.training.student.warm_start.start import start_student
from modeling_radio.training.teachers.outputs import TeacherWidths


pytestmark = pytest.mark.usefixtures("one_thread")

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
