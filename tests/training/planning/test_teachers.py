"""What teachers cost without their weights."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from core.packages import PackageUnavailableError
from training.planning.costs import PACKAGED, Networks, TeacherCost
from training.recipe import TeacherRecipe
from training.teachers.registry import build_teacher


SIGLIP2_PARAMETERS = 1_163_659_776  # C-RADIOv4, https://arxiv.org/abs/2601.17237, counts 1.16 billion


def test_a_teacher_takes_two_operations_per_weight_and_token(networks: Networks) -> None:
    siglip2 = networks.teachers["siglip2-g"]
    assert siglip2.num_parameters == SIGLIP2_PARAMETERS
    tokens = (128 // 16) ** 2
    assert siglip2.flops(128, 1) == pytest.approx(2 * SIGLIP2_PARAMETERS * tokens, rel=0.05)
    assert siglip2.flops(128, 3) == 3 * siglip2.flops(128, 1)


def test_images_of_a_mosaic_share_a_pass(networks: Networks) -> None:
    one = networks.teachers["sam3"].flops(64, 1)
    assert networks.teachers["sam3"].flops(64, 300) == one  # 18 x 18 images of 4 x 4 cells
    assert networks.teachers["sam3"].flops(64, 325) == 2 * one


def test_weights_take_what_their_type_does(networks: Networks) -> None:
    entry = networks.teachers["siglip2-g"].entry
    half = TeacherCost(entry.replace(options={"weights_dtype": "bfloat16"}), 16)
    assert networks.teachers["siglip2-g"].weight_bytes == 4 * SIGLIP2_PARAMETERS == 2 * half.weight_bytes


@pytest.mark.parametrize("kind", PACKAGED)
def test_what_is_said_of_a_teacher_in_a_package_needs_no_package(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.demo.assets.fetch_package", None)
    cost = TeacherCost(TeacherRecipe(name=kind, kind=kind), 16)
    assert cost.flops(128, 2) == 2 * cost.flops(128, 1) > 0
    assert cost.flops(256, 1) >= 4 * cost.flops(128, 1)
    assert 1e6 < cost.download_bytes < 1e9


@pytest.mark.packages
@pytest.mark.parametrize("kind", PACKAGED)
def test_it_is_what_the_real_one_says(kind: str) -> None:
    try:
        teacher = build_teacher(kind, kind=kind)
    except PackageUnavailableError as error:
        pytest.skip(str(error))
    cost, cells = TeacherCost(TeacherRecipe(name=kind, kind=kind), 16), 8 * 8
    assert (teacher.summary_dim, teacher.feature_dim) == (cost.summary_dim, cost.feature_dim)
    numbers = [*teacher.network.parameters(), *teacher.network.buffers()]
    assert sum(number.numel() for number in numbers) == pytest.approx(cost.num_parameters, rel=1e-3)
    with FlopCounterMode(display=False) as counter:
        teacher.answer(torch.rand(1, 3, 128, 128))
    attention = cells**2 * PACKAGED[kind].flops_per_pair  # which a CPU's kernel does not count
    assert counter.get_total_flops() == pytest.approx(cost.flops(128, 1) - attention, rel=0.01)


def test_a_teacher_that_needs_its_weights_is_refused() -> None:
    entry = TeacherRecipe(name="mine", kind="tiny_teachers:Mine")
    with pytest.raises(ValueError, match=r"^Without its weights a teacher cannot be planned with: Teacher 'mine': "):
        TeacherCost(entry, 16)
