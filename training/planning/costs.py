"""What passes and steps cost: operations counted on the meta device, and the speed of GPUs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from core.errors import check_choice
from core.settings import SettingsError
from modeling_radio import RadioModel
from modeling_radio.layers_radio import RadioBlock
from training.demo.assets import PACKAGES
from training.recipe import PartitionRecipe, Recipe, TeacherRecipe
from training.student.build import checkpoint_blocks, student_config, student_patch_size
from training.student.intermediate import Tap, Taps, plan_taps, with_taps
from training.teachers.base import Teacher, by_network
from training.teachers.registry import PACKAGE_OF_KIND, share_network, teacher_of_recipe
from training.views.plan import divide_ranks


class Card(NamedTuple):
    """A GPU.

    Attributes:
        name: As it is called.
        peak_flops: Dense bfloat16 operations per second.
        memory_gib: Its memory.
        source: Where both are from.
    """

    name: str
    peak_flops: float
    memory_gib: float
    source: str


_AMPERE = "NVIDIA A100 data sheet, June 2021"
_GA102 = "NVIDIA Ampere GA102 whitepaper v2.1, 2021"
_ADA = "NVIDIA Ada whitepaper v2.01, 2023"

CARDS = {
    card.name: card
    for card in (
        Card("A100", 312e12, 80, _AMPERE),
        Card("A100-40GB", 312e12, 40, _AMPERE),
        Card("H100", 989e12, 80, "NVIDIA H100 data sheet (SXM), 2023: 1,979 with sparsity"),
        Card("H200", 989e12, 141, "NVIDIA H200 data sheet (SXM), 2024: 1,979 with sparsity"),
        Card("B200", 2250e12, 180, "NVIDIA HGX data sheet, 2025: 36,000 with sparsity for 8"),
        Card("A10", 125e12, 24, "NVIDIA A10 data sheet, 2021"),
        Card("A40", 149.7e12, 48, "NVIDIA A40 data sheet, 2021"),
        Card("L4", 121e12, 24, "NVIDIA L4 data sheet, 2023: 242 with sparsity"),
        Card("L40S", 362e12, 48, "NVIDIA L40S data sheet, 2023"),
        Card("RTX-3090", 71e12, 24, _GA102),
        Card("RTX-4090", 165.2e12, 24, _ADA),
    )
}
"""Those whose peak in bfloat16 was found; older ones (V100, T4) have none."""

MEMORY_SHARE = 0.9
"""Of a card's memory that a plan may fill. Our choice: the rest is for the driver, PyTorch's own, the working space of
teachers and fragmentation."""


def choose_cards(name: str | None, peak_tflops: float | None, memory_gib: float | None) -> list[Card]:
    """Return the cards that a plan is for: the named one, one of given numbers, or all.

    Args:
        name: One of `CARDS`; with both numbers any name.
        peak_tflops: Dense bfloat16 operations per second, in units of 10^12; None for the known card's.
        memory_gib: Memory; None for the known card's.

    Raises:
        SettingsError: If a number is missing and there is no card of that name to have it from.
    """
    if name is None and peak_tflops is None and memory_gib is None:
        return list(CARDS.values())
    if peak_tflops is not None and memory_gib is not None:
        return [Card(name or "yours", 1e12 * peak_tflops, memory_gib, "given")]
    if name is None:
        missing, given = ("memory_gib", "peak_tflops") if memory_gib is None else ("peak_tflops", "memory_gib")
        raise SettingsError(f"`{missing}` must be given with `{given}`, got None. Or name a known card with `gpu`.")
    check_choice("gpu", name, CARDS, error=SettingsError)
    known = CARDS[name]
    if peak_tflops is None and memory_gib is None:
        return [known]
    peak = known.peak_flops if peak_tflops is None else 1e12 * peak_tflops
    memory = known.memory_gib if memory_gib is None else memory_gib
    return [Card(name, peak, memory, f"given, else {known.source}")]


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


class PackagedCost(NamedTuple):
    """A teacher whose weights, and perhaps architecture, come in a package.

    Attributes:
        summary_dim: Width of its summary.
        feature_dim: Width of its features.
        cell_px: Pixels along a side that make one of its cells.
        num_parameters: All of its numbers.
        flops_per_cell: Operations of a pass for each cell of its input.
        flops_per_pair: Operations of attention for each pair of cells; 0 without attention.
    """

    summary_dim: int
    feature_dim: int
    cell_px: int
    num_parameters: int
    flops_per_cell: float
    flops_per_pair: float


PACKAGED = {
    "efficientnet-lite0": PackagedCost(1280, 112, 16, 4_694_079, 3.917e6, 0),
    "dinov2-s-saliency": PackagedCost(384, 384, 14, 20_281_350, 39.99e6, 11 * 4 * 384),
    "nanodet-g": PackagedCost(384, 128, 16, 3_295_823, 4.469e6, 0),
}
"""By kind. Counted with `FlopCounterMode` on the real networks, to which a test compares them; of DINOv2-S the 11
blocks that its answer needs, with attention as 4 operations for each pair of cells and channel."""


class TeacherCost:
    """A teacher of a recipe without its weights: its widths, its size, and what it takes to answer.

    Args:
        entry: The teacher, of a kind with the option `weights` or one of `PACKAGED`.
        stride: Pixels that make one cell to whoever asks: the student's patch size.
        others: Whose networks it may share.

    Attributes:
        summary_dim: Width of its summary; None without one.
        feature_dim: Width of its features.
        network_of: Name of the teacher whose network it runs, by default its own.
        num_parameters: Numbers of the network that runs, of a shared one those that no other has.
        weight_bytes: Memory that they take.
        download_bytes: What is fetched: of a package its size, else these numbers in float32.

    Raises:
        ValueError: If it cannot be built without its weights.
    """

    def __init__(self, entry: TeacherRecipe, stride: int, others: Iterable[TeacherCost] = ()) -> None:
        self.entry, self.stride, self.network_of = entry, stride, entry.name
        packaged = PACKAGED.get(entry.kind)
        self._packaged = packaged
        self._teacher: Teacher | None = None
        if packaged is not None:
            self.summary_dim: int | None = packaged.summary_dim
            self.feature_dim = packaged.feature_dim
            self.num_parameters = packaged.num_parameters
            self.weight_bytes = 4 * packaged.num_parameters
            self.download_bytes = PACKAGES[PACKAGE_OF_KIND[entry.kind]].archive_bytes
        else:
            self._teacher = teacher = _build(entry, stride)
            self.summary_dim, self.feature_dim = teacher.summary_dim, teacher.feature_dim
            built = [(other._teacher, other.entry) for other in others if other._teacher is not None]
            share_network(teacher, entry, built)
            self.network_of = teacher.network_of
            shared = {weight for other, _ in built for weight in other.parameters()}
            self.num_parameters = sum(weight.numel() for weight in set(teacher.parameters()) - shared)
            is_half = entry.options.get("weights_dtype") == "bfloat16"
            self.weight_bytes = (2 if is_half else 4) * self.num_parameters
            self.download_bytes = 4 * self.num_parameters
        self.flops = cache(self._flops)

    def _flops(self, size_px: int, num_images: int, num_readers: int = 1) -> float:
        """Return the operations of a forward pass of images of `size_px` squared.

        As if so many teachers read it: two cost as much more than one as what is read from a pass of another teacher.
        """
        if self._packaged is not None:
            cells = (size_px // self.stride) ** 2  # it answers one cell for each, run at as many of its own
            return num_images * cells * (self._packaged.flops_per_cell + cells * self._packaged.flops_per_pair)
        assert self._teacher is not None
        with FlopCounterMode(display=False) as counter:
            images = torch.empty(num_images, 3, size_px, size_px, device="meta")
            self._teacher.answers(images, [self._teacher] * num_readers)
        return counter.get_total_flops()


def _build(entry: TeacherRecipe, stride: int) -> Teacher:
    options = {key: value for key, value in entry.options.items() if key != "weights_dtype"}
    bare = entry.replace(precision="float32", options={**options, "weights": "random"})
    try:
        with torch.device("meta"):
            return teacher_of_recipe(bare, stride)
    except ValueError as error:
        raise ValueError(f"Without its weights a teacher cannot be planned with: {error}") from error


class PartitionCost(NamedTuple):
    """What a step of a partition costs on all ranks together, averaged over its resolutions.

    Attributes:
        partition: Which partition.
        images: Of a step; with a token budget their mean number.
        images_per_pass: Images that a rank has on its GPU at once, rounded up.
        student_flops: Of forward and backward passes.
        teacher_flops: Of forward passes, by teacher.
        activations: Bytes that a rank keeps at the largest resolution, without and with gradient checkpointing.
        targets: Bytes of the teachers' features of a pass at that resolution, with online teachers of all passes that
            are answered at once.
    """

    partition: PartitionRecipe
    images: float
    images_per_pass: int
    student_flops: float
    teacher_flops: dict[str, float]
    activations: tuple[float, float]
    targets: float

    @property
    def flops(self) -> float:
        """FLOPs of student and teachers together."""
        return self.student_flops + sum(self.teacher_flops.values())


def plan_stage(networks: Networks, stage: Recipe, num_gpus: int) -> list[PartitionCost]:
    """Return what a step of each partition costs.

    Raises:
        RecipeError: If the recipe does not fit this number of ranks.
    """
    ranks, taps = divide_ranks(stage.partitions, num_gpus), networks.taps_of(stage)
    return [_partition_cost(networks, stage, each, taps, len(ranks[each.name])) for each in stage.partitions]


def _partition_cost(
    networks: Networks, stage: Recipe, partition: PartitionRecipe, taps: tuple[Tap, ...], num_ranks: int
) -> PartitionCost:
    num_passes, patch_size = num_ranks * partition.accumulation_steps, networks.student.patch_size
    shares = shares_of(partition)
    num_images = images_per_step(partition, patch_size)
    images_per_pass = math.ceil(num_images / num_passes)
    names = list(networks.teachers) if partition.teachers is None else partition.teachers
    of_sizes = {size: networks.teacher_flops(names, size, images_per_pass) for size in shares}
    per_image = {
        name: sum(share * of_sizes[size][name] for size, share in shares.items()) / images_per_pass for name in names
    }
    largest, cells = networks.student_cost(max(shares), taps), (max(shares) // patch_size) ** 2
    most: float = images_per_pass  # images of the largest size that a pass has as many patches as
    if partition.token_budget is not None:
        most = max(1, partition.token_budget / num_passes / cells)
    parts = min(stage.views.parts_at_once, partition.accumulation_steps) if stage.views.teachers == "online" else 1
    width = sum(networks.teachers[name].feature_dim for name in names)
    return PartitionCost(
        partition,
        num_images,
        images_per_pass,
        num_images * sum(share * networks.student_cost(size, taps).flops for size, share in shares.items()),
        {name: num_images * flops for name, flops in per_image.items()},
        (most * largest.kept, most * largest.kept_checkpointed),
        FULL_BYTES * parts * most * cells * width,
    )


def shares_of(partition: PartitionRecipe) -> dict[int, float]:
    """Return the probability of each resolution."""
    chances = partition.probabilities or [1.0] * len(partition.sizes_px)
    return {size: chance / sum(chances) for size, chance in zip(partition.sizes_px, chances, strict=True)}


def images_per_step(partition: PartitionRecipe, patch_size: int) -> float:
    """Return the number of images of a step, with a token budget their mean."""
    if partition.batch_size is not None:
        return partition.batch_size
    assert partition.token_budget is not None
    mean_tokens = sum(share * (size // patch_size) ** 2 for size, share in shares_of(partition).items())
    return partition.token_budget / mean_tokens


def at_size(stage: Recipe, choose: Callable[[list[int]], int]) -> Recipe:
    """Return a stage with as many images as before, all at one resolution of each partition."""
    patch_size = student_patch_size(stage)
    partitions = [
        p.replace(
            sizes_px=[choose(p.sizes_px)],
            probabilities=None,
            batch_size=round(images_per_step(p, patch_size)),
            token_budget=None,
        )
        for p in stage.partitions
    ]
    return stage.replace(partitions=partitions)


def with_split_teachers(stage: Recipe) -> Recipe:
    """Return a stage whose images are split evenly: each teacher sees its own, as in stage 1 of PHI-S, table 10.

    Its partitions run on every rank.
    """
    names = [teacher.name for teacher in stage.teachers]
    partitions = [
        p.replace(
            name=f"{p.name}-{name}",
            batch_size=p.batch_size and max(p.batch_size // len(names), 1),
            token_budget=p.token_budget and max(p.token_budget // len(names), 1),
            teachers=[name],
            rank_share=None,
        )
        for p in stage.partitions
        for name in names
    ]
    return stage.replace(partitions=partitions)
