from pathlib import Path

import pytest
import torch
from tiny_vits import SIZES, build_vit
from torch import Tensor

from modeling_radio import RadioConfig, RadioModel
from training.recipe import RecipeError
from training.student.warm_start.start import start_student
from training.teachers.base import Teacher
from training.teachers.outputs import TeacherOutput


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


def test_a_radio_folder_gives_the_blocks_that_are_asked_for(tmp_path: Path) -> None:
    source, student = build(num_hidden_layers=3), build()
    source.save_pretrained(tmp_path)
    report = start_student(student, str(tmp_path), {}, [0, 2])
    assert report.taken == ["trunk, its blocks [0, 2]"]
    own, given = student.radio_model.model.blocks, source.radio_model.model.blocks
    assert torch.equal(own[1].mlp.fc1.weight, given[2].mlp.fc1.weight)
    assert torch.equal(own[0].mlp.fc1.weight, given[0].mlp.fc1.weight)
    with pytest.raises(RecipeError, match=r"`student.init_blocks` must be blocks of '.*', from 0 to 2, got \[0, 3\]"):
        start_student(student, str(tmp_path), {}, [0, 3])
    with pytest.raises(RecipeError, match="num_hidden_layers is 1, not 2"):
        start_student(student, str(tmp_path), {}, [0])


def test_what_is_no_start_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="'friend' is no ViT that a RADIO trunk can start from: the teacher is a "):
        start_student(build(), "friend", {"friend": VitTeacher()})
    with pytest.raises(RecipeError, match=r"'friend' is no ViT .*: it is a Linear, and must be one of"):
        start_student(build(), "friend", {"friend": VitTeacher(torch.nn.Linear(1, 1))})
    with pytest.raises(RecipeError, match="is no checkpoint of RADIO, nor of a ViT that a student can start from"):
        start_student(build(), str(tmp_path), {})
