"""What a pass of the student costs on the meta device."""

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from modeling_radio import RadioModel
from training.planning.costs import Networks
from training.recipe import Recipe
from training.student.build import build_student, checkpoint_blocks


def test_student_counts_forward_and_backward_and_what_it_keeps(networks: Networks) -> None:
    small, large = networks.student_cost(64), networks.student_cost(256)
    assert large.flops > 10 * small.flops
    assert small.kept_checkpointed < 0.7 * small.kept
    # Without attention weights, which would make it grow with the square of the number of tokens.
    assert large.kept < 16 * small.kept


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_what_is_kept_is_what_autocast_keeps(networks: Networks, recipe: Recipe, is_checkpointed: bool) -> None:
    """On a CPU, which keeps heads' norms in bfloat16; and a copy of each matrix, whatever the number of images."""
    student = build_student(recipe, networks.teachers).train()
    if is_checkpointed:
        checkpoint_blocks(student)
    one, two = (kept_bytes(student, num_images) for num_images in (1, 2))
    cost = networks.student_cost(128)
    assert two - one == pytest.approx(cost.kept_checkpointed if is_checkpointed else cost.kept, rel=0.1)
    if not is_checkpointed:
        first = student.radio_model.model.patch_generator.embedder  # images need no gradient
        layers = [each for each in student.modules() if isinstance(each, nn.Linear) and each is not first]
        assert one - (two - one) == 2 * sum(layer.weight.numel() for layer in layers)


def kept_bytes(student: RadioModel, num_images: int) -> int:
    own = {parameter.untyped_storage().data_ptr() for parameter in student.parameters()}
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = tensor
        return tensor

    with torch.autocast("cpu", torch.bfloat16), saved_tensors_hooks(note, lambda tensor: tensor):
        output = student(torch.rand(num_images, 3, 128, 128), window_size="global", return_dict=True)
        answers = [answer for each in output.adaptors.values() for answer in (each.summary, each.features)]
        torch.stack([answer.sum() for answer in answers if answer is not None]).sum()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_a_student_that_answers_in_pairs_is_counted_too(networks: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks.student.config, "return_dict", False)
    assert networks.student_cost(32).flops < networks.student_cost(48).flops < networks.student_cost(64).flops
