"""What a pass of the student costs: counted on the meta device, without weights or images."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from modeling_radio import RadioModel
from modeling_radio.layers_radio import RadioBlock
from training.planning.teachers import TeacherCost
from training.recipe import Recipe
from training.student.build import checkpoint_blocks, student_config, student_patch_size
from training.student.taps import Tap, Taps, plan_taps, with_taps
from training.teachers.base import by_network


HALF_BYTES = 2
"""Per number that is kept for the backward pass: bfloat16, under mixed precision."""
FULL_BYTES = 4
"""Per number of what blocks and norms take in, for tokens stay float32 from block to block; and of a target."""


class StudentCost(NamedTuple):
    """What one image costs the student.

    Attributes:
        flops: Of forward and backward pass.
        kept: Bytes kept for the backward pass.
        kept_checkpointed: The same with `student.gradient_checkpointing`.
    """

    flops: float
    kept: int
    kept_checkpointed: int


class Networks:
    """The student and the teachers of a recipe, without data, and what their passes cost.

    Args:
        recipe: The recipe.

    Attributes:
        teachers: By name.
        student: On the meta device.
        student_cost: From a size in pixels, and taps if any, to the cost of one such image.

    Raises:
        ValueError: If a network cannot be built.
    """

    def __init__(self, recipe: Recipe) -> None:
        stride = student_patch_size(recipe)
        self.teachers: dict[str, TeacherCost] = {}
        for entry in recipe.teachers:
            self.teachers[entry.name] = TeacherCost(entry, stride, list(self.teachers.values()))
        with torch.device("meta"):
            self.student = RadioModel(student_config(recipe, self.teachers)).train()
        self.student_cost: Callable[..., StudentCost] = cache(self._student_cost)

    @property
    def num_parameters(self) -> int:
        """Numbers of the student with its adaptors."""
        return sum(parameter.numel() for parameter in self.student.parameters())

    def teacher_flops(self, names: Sequence[str], size_px: int, num_images: int) -> dict[str, float]:
        """Return the operations of the teachers' passes of images of `size_px` squared, by name.

        A pass for several of one network counts for the first of them, for others what they read from it.
        """
        flops: dict[str, float] = {}
        for own in by_network({name: self.teachers[name] for name in names}):
            for place, name in enumerate(own):
                teacher = self.teachers[name]
                whole = teacher.flops(size_px, num_images)
                flops[name] = teacher.flops(size_px, num_images, 2) - whole if place else whole
        return flops

    def taps_of(self, stage: Recipe) -> tuple[Tap, ...]:
        """Return the taps of a stage."""
        return tuple(plan_taps(stage, self.student.config))

    def tap_heads(self, taps: Sequence[Tap]) -> Taps | None:
        """Return heads for some taps, without data; None for none."""
        with torch.device("meta"):
            return Taps(taps, self.student, 0) if taps else None

    def _student_cost(self, size_px: int, taps: tuple[Tap, ...] = ()) -> StudentCost:
        heads, checkpointed = self.tap_heads(taps), copy.deepcopy(self.student)
        checkpoint_blocks(checkpointed)
        with FlopCounterMode(display=False) as counter:
            loss, kept = _forward(self.student, heads, size_px)
            loss.backward()
        return StudentCost(counter.get_total_flops(), kept, _forward(checkpointed, heads, size_px)[1])


def _forward(student: RadioModel, heads: Taps | None, size_px: int) -> tuple[Tensor, int]:
    """Return the loss of one image, and how many bytes are kept for its backward pass."""
    num_tokens = (size_px // student.patch_size) ** 2 + student.config.num_prefix_tokens
    learner = with_taps(student, heads)
    with _count_kept(learner, num_tokens) as sizes:
        pixel_values = torch.empty(1, 3, size_px, size_px, device="meta")
        output = learner(pixel_values, window_size="global", return_dict=True)
        answers = [answer for adaptor in output.adaptors.values() for answer in (adaptor.summary, adaptor.features)]
        loss = torch.stack([answer.sum() for answer in answers if answer is not None]).sum()
    return loss, sum(sizes.values())


@contextmanager
def _count_kept(student: nn.Module, num_tokens: int) -> Iterator[dict[int, int]]:
    """Note the bytes of every storage that autograd keeps, but for parameters and attention weights.

    The meta device knows no autocast, and computes attention in the plain way; the kernels of a GPU keep no attention
    weights.
    """
    parameters = {parameter.untyped_storage()._cdata for parameter in student.parameters()}
    kept: dict[int, Tensor] = {}  # tensors, so that no storage is freed and its number given to another
    full: dict[int, Tensor] = {}

    def note_full(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        full[inputs[0].untyped_storage()._cdata] = inputs[0]

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in parameters and tensor.shape[-2:] != (num_tokens, num_tokens):
            kept[storage] = tensor
        return tensor

    sizes: dict[int, int] = {}
    takers = [module for module in student.modules() if isinstance(module, RadioBlock | nn.LayerNorm)]
    hooks = [module.register_forward_pre_hook(note_full) for module in takers]
    with saved_tensors_hooks(note, lambda tensor: tensor):
        yield sizes
    for hook in hooks:
        hook.remove()
    for storage, tensor in kept.items():
        sizes[storage] = tensor.numel() * (FULL_BYTES if storage in full else HALF_BYTES)
