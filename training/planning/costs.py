"""Costs of passes and training steps, counted on the meta device, and the speed of GPUs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from modeling_radio import RadioModel
from modeling_radio.checks_radio import check_choice
from modeling_radio.core.imports import is_import_path
from modeling_radio.core.settings import SettingsError
from modeling_radio.layers_radio import RadioBlock
from modeling_radio.training.auxiliary.heads import HeadPlan, heads_of, plan_heads, with_heads
from modeling_radio.training.recipes.recipe import PartitionRecipe, Recipe, TeacherRecipe
from modeling_radio.training.student.build import checkpoint_blocks, student_config, student_patch_size
from modeling_radio.training.student.foreign import global_window
from modeling_radio.training.teachers.base import Teacher, by_network
from modeling_radio.training.teachers.outputs import TeacherShape
from modeling_radio.training.teachers.registry import (
    can_be_random,
    find_class,
    package_of,
    share_network,
    teacher_of_recipe,
)
from modeling_radio.training.teachers.run_modes import MosaicLayout, MosaicMode
from modeling_radio.training.views.dealing import divide_ranks, parts_of_rank
from modeling_radio.training.views.plan import Operations
from modeling_radio.training.views.shapes import Grid, images_per_step, size_shares


class Card(NamedTuple):
    """A GPU.

    Attributes:
        name: Name of the card.
        peak_flops: Dense bfloat16 operations per second.
        memory_gib: Memory in GiB.
        source: Source of both numbers.
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
"""Cards with a published bfloat16 peak; older ones (V100, T4) have none."""

MEMORY_SHARE = 0.9
"""Share of a card's memory that a plan may fill. Our choice: the rest is for the driver, PyTorch itself, the working
memory of teachers, and fragmentation."""


def choose_cards(gpu: str | None) -> list[Card]:
    """Return the cards of a plan: the named one, one of given numbers, or all known ones.

    Args:
        gpu: One of `CARDS`; or "NAME:TFLOPS:GIB", a card of any name with its dense bfloat16 operations per second, in
            units of 10^12, and its memory.

    Raises:
        SettingsError: If no card of that name is known, or a number is none above 0.
    """
    if gpu is None:
        return list(CARDS.values())
    name, *numbers = gpu.split(":")
    if not numbers:
        check_choice("gpu", name, CARDS, error=SettingsError)
        return [CARDS[name]]
    try:
        peak_tflops, memory_gib = map(float, numbers)
    except ValueError:
        peak_tflops = memory_gib = math.nan
    if not (0 < peak_tflops < math.inf and 0 < memory_gib < math.inf):
        raise SettingsError(f"`gpu` must be a known card or NAME:TFLOPS:GIB with two numbers above 0, got {gpu!r}.")
    return [Card(name, 1e12 * peak_tflops, memory_gib, "given")]


STUDENT_PART, AVERAGE_PART = "student", "its average (MESA)"
"""Parts of a step beside the teachers."""


def average_share(stage: Recipe) -> float:
    """Return what passes of the moving average add to the student's operations: a third of forward and backward.

    In the mean over the steps of a stage, of which only the later ones have MESA.
    """
    steps = stage.schedule.num_steps
    return max(0, steps - stage.schedule.in_steps(stage.mesa.start_step)) / steps / 3 if stage.mesa.weight else 0.0


def simulated_card(cards: Sequence[Card]) -> Card:
    """Return the only card of a plan; of all known ones an H100, whose links are those of a simulated step."""
    return cards[0] if len(cards) == 1 else CARDS["H100"]


HALF_BYTES = 2
"""Bytes of a number kept for the backward pass: bfloat16, under mixed precision."""
FULL_BYTES = 4
"""Bytes of a number of a target, and of the inputs of blocks and norms: tokens stay float32 from block to block."""


class StudentCost(NamedTuple):
    """Cost of one image for the student.

    Attributes:
        flops: Operations of the forward and the backward pass.
        kept: Bytes kept for the backward pass.
        kept_checkpointed: Bytes kept with `student.gradient_checkpointing`.
    """

    flops: float
    kept: int
    kept_checkpointed: int


class Networks:
    """The student and the teachers of a recipe on the meta device, and the costs of their passes.

    Args:
        recipe: The recipe.
        widths: Widths of all teachers, by name, where they are known: then own teachers that cannot be built
            without their weights are left out, and not loaded to be counted.

    Attributes:
        teachers: Cost of each teacher by its name.
        student: The student.
        student_cost: Function of the image's side in pixels, and of the auxiliary heads if any, that returns the cost
            of an image.

    Raises:
        ValueError: If a network cannot be built.
    """

    def __init__(self, recipe: Recipe, widths: Mapping[str, TeacherShape] | None = None) -> None:
        stride, self._recipe = student_patch_size(recipe), recipe
        self.teachers: dict[str, TeacherCost] = {}
        for entry in recipe.teachers:
            if widths is None or can_be_random(entry) or find_class(entry.name, entry.kind).stated_cost is not None:
                self.teachers[entry.name] = TeacherCost(entry, stride, list(self.teachers.values()))
        with torch.device("meta"):
            self.student = RadioModel(student_config(recipe, widths or self.teachers)).train()
        self.student_cost: Callable[..., StudentCost] = cache(self._student_cost)
        self._passed: Callable[..., tuple[float, int]] = cache(self._pass)

    @property
    def num_parameters(self) -> int:
        """Parameters of the student with its adaptors."""
        return sum(parameter.numel() for parameter in self.student.parameters())

    def teacher_flops(self, names: Sequence[str], size_px: int, num_images: int) -> dict[str, float]:
        """Return the operations of forward passes of images of `size_px` squared, by teacher.

        Where teachers share a network, the first one counts its pass, and each of the others only its own head.
        """
        flops: dict[str, float] = {}
        for own in by_network({name: self.teachers[name] for name in names}):
            for index, name in enumerate(own):
                teacher = self.teachers[name]
                whole = teacher.flops(size_px, num_images)
                flops[name] = teacher.flops(size_px, num_images, 2) - whole if index else whole
        return flops

    def student_flops(self, size_px: int, heads: HeadPlan = ()) -> float:
        """Return the operations of forward and backward pass of an image of `size_px` squared."""
        return self._passed(size_px, heads)[0]

    def operations(self, stage: Recipe) -> Operations:
        """Return the operations of an image of each partition, by its number of patches, for student and teachers."""
        sums: dict[str, dict[int, float]] = {}
        for partition, parts in self.operations_by_part(stage).items():
            sums[partition] = {
                count: sum(by_count.get(count, 0.0) for by_count in parts.values()) for count in parts[STUDENT_PART]
            }
        return sums

    def operations_by_part(self, stage: Recipe) -> dict[str, dict[str, dict[int, float]]]:
        """Return the operations of an image by partition, by part of a step, and by its number of patches.

        Parts are `STUDENT_PART`, `AVERAGE_PART` with MESA, and teachers that run at every step. A teacher of mosaics
        takes the share of a canvas that the image fills. Where images are shown to some teachers each, an image counts
        as their mean.
        """
        heads, patch_size = self.heads_of(stage), self.student.patch_size
        found: dict[str, dict[str, dict[int, float]]] = {}
        for partition in stage.partitions:
            names = [] if stage.views.teachers == "cached" else partition.teachers or list(self.teachers)
            counted = [name for name in names if name in self.teachers]
            own: dict[str, dict[int, float]] = {}
            for size in size_shares(partition):
                student = self.student_flops(size, heads)
                flops = {STUDENT_PART: student, AVERAGE_PART: average_share(stage) * student}
                flops |= {
                    name: value * self.teachers[name].share_of_pass(size) * stage.share_of_images(partition)
                    for name, value in self.teacher_flops(counted, size, 1).items()
                }
                for part, value in flops.items():
                    if value:
                        own.setdefault(part, {})[(size // patch_size) ** 2] = value
            found[partition.name] = own
        return found

    def heads_of(self, stage: Recipe) -> HeadPlan:
        """Return the auxiliary heads of a stage (intermediate supervision)."""
        return plan_heads(stage, self.student.config)

    def learner(self, heads: HeadPlan) -> nn.Module:
        """Return the module that is trained, with auxiliary heads on the meta device."""
        return self._with_heads(self.student, heads)

    def _with_heads(self, student: RadioModel, heads: HeadPlan) -> nn.Module:
        with torch.device("meta"):
            return with_heads(student, heads_of(heads, self.student, self._recipe))

    def _student_cost(self, size_px: int, heads: HeadPlan = ()) -> StudentCost:
        flops, kept = self._passed(size_px, heads)
        checkpointed = copy.deepcopy(self.student)
        checkpoint_blocks(checkpointed)
        return StudentCost(flops, kept, _forward(checkpointed, self._with_heads(checkpointed, heads), size_px)[1])

    def _pass(self, size_px: int, heads: HeadPlan) -> tuple[float, int]:
        """Return the operations of forward and backward pass of an image, and the bytes kept between them."""
        with FlopCounterMode(display=False) as counter:
            loss, kept = _forward(self.student, self.learner(heads), size_px)
            loss.backward()
        return counter.get_total_flops(), kept


def _forward(student: RadioModel, learner: nn.Module, size_px: int) -> tuple[Tensor, int]:
    """Return a loss of one image, and the bytes that autograd keeps for its backward pass.

    Parameters and attention weights are not counted; in an adaptor's attention head only patches attend. The meta
    device computes attention without a fused kernel; the kernels of a GPU keep no attention weights. It has no autocast
    either: blocks and norms are taken to keep float32 inputs, and everything else bfloat16.
    """
    num_patches = (size_px // student.patch_size) ** 2
    lengths = {num_patches, num_patches + student.config.num_prefix_tokens}
    parameters = {parameter.untyped_storage()._cdata for parameter in learner.parameters()}
    kept: dict[int, Tensor] = {}  # tensors, so that no storage is freed and its number given to another
    full: dict[int, Tensor] = {}

    def note_full(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        full[inputs[0].untyped_storage()._cdata] = inputs[0]

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        # Weights have several heads; features of as many channels as patches have one image.
        are_weights = any(tensor.shape[-2:] == (each, each) for each in lengths) and tensor.shape[:-2].numel() > 1
        if storage not in parameters and not are_weights:
            kept[storage] = tensor
        return tensor

    in_full = [module for module in learner.modules() if isinstance(module, RadioBlock | nn.LayerNorm | nn.RMSNorm)]
    hooks = [module.register_forward_pre_hook(note_full) for module in in_full]
    with saved_tensors_hooks(note, lambda tensor: tensor):
        pixel_values = torch.empty(1, student.config.num_channels, size_px, size_px, device="meta")
        output = learner(pixel_values, window_size=global_window(student.config), return_dict=True)
        outputs = [tensor for adaptor in output.adaptors.values() for tensor in (adaptor.summary, adaptor.features)]
        loss = torch.stack([tensor.sum() for tensor in outputs if tensor is not None]).sum()
    for hook in hooks:
        hook.remove()
    sizes = [tensor.numel() * (FULL_BYTES if storage in full else HALF_BYTES) for storage, tensor in kept.items()]
    return loss, sum(sizes)


class TeacherCost:
    """Dimensions, size and cost of a teacher of a recipe, without its weights.

    Args:
        entry: The teacher, of a kind with the option `weights` or a `stated_cost`.
        stride: Pixels along the side of a feature: the student's patch size.
        others: Teachers whose networks it may share.

    Attributes:
        summary_dim: Channels of its summary; None without one.
        feature_dim: Channels of its features.
        network_of: Name of the teacher whose network it runs, by default its own.
        num_parameters: Numbers of its network, without those that it shares with the others.
        weight_bytes: Memory of these.
        num_blocks: Blocks of its network; 0 if it has a `stated_cost`.
        download_bytes: Size of the package, or of these numbers in float32.

    Raises:
        ValueError: If it cannot be built without its weights.
    """

    def __init__(self, entry: TeacherRecipe, stride: int, others: Iterable[TeacherCost] = ()) -> None:
        self.entry, self.stride, self.network_of = entry, stride, entry.name
        self.summary_dim: int | None
        self.num_blocks = 0
        self._stated = find_class(entry.name, entry.kind).stated_cost
        self._teacher: Teacher | None = None
        if self._stated is not None:
            self.summary_dim, self.feature_dim, self.num_parameters, *_ = self._stated
            self.weight_bytes = self.download_bytes = 4 * self.num_parameters
        else:
            self._teacher = teacher = _build(entry, stride)
            self.summary_dim, self.feature_dim = teacher.summary_dim, teacher.feature_dim
            built = [(other._teacher, other.entry) for other in others if other._teacher is not None]
            share_network(teacher, entry, built)
            self.network_of = teacher.network_of
            shared = {weight for other, _ in built for weight in other.parameters()}
            own = set(teacher.parameters()) - shared
            self.num_parameters = sum(weight.numel() for weight in own)
            is_half = entry.options.get("weights_dtype") == "bfloat16"
            self.weight_bytes = (2 if is_half else 4) * self.num_parameters
            self.num_blocks = len(teacher.blocks())
            self.download_bytes = 4 * self.num_parameters
        package = package_of(entry)
        if package is not None:
            self.download_bytes = package.archive_bytes
        mode = None if self._teacher is None else self._teacher.mode
        self._mosaic = mode if isinstance(mode, MosaicMode) else None
        self.flops = cache(self._flops)

    @property
    def is_mosaic(self) -> bool:
        """Whether images share a canvas."""
        return self._mosaic is not None

    def num_calls(self, grids: Collection[Grid]) -> int:
        """Return how often its network runs for images with these patches of the student: once for each input size."""
        if not grids or self._teacher is None or self._mosaic is not None:
            return min(1, len(grids))
        return sum(map(len, {self._teacher.mode.input_sizes(*grid) for grid in grids}))

    def share_of_pass(self, size_px: int) -> float:
        """Return the share of a pass of one image that the image needs: less than 1 only on the canvas of a mosaic.

        There as if a canvas held squares of this size alone, as many as have room: ranks get images of few shapes.
        """
        if self._mosaic is None:
            return 1.0
        side = size_px // self.stride
        height, width = self._mosaic.input_sizes(side, side)[0]
        return 1 / (self._mosaic.side_px // height * (self._mosaic.side_px // width))

    def mosaic_flops(self, grids: Sequence[Grid]) -> float:
        """Return the operations of the canvases of images with these patches of the student; only for mosaics."""
        assert self._mosaic is not None
        patch = self._mosaic.traits.patch_size
        sizes = [self._mosaic.input_sizes(*grid)[0] for grid in grids]
        layout = MosaicLayout(
            self._mosaic.patches_per_side, [(height // patch, width // patch) for height, width in sizes]
        )
        return layout.num_canvases * self.flops(self.stride, 1)

    def _flops(self, size_px: int, num_images: int, num_readers: int = 1) -> float:
        """Return the operations of a forward pass of images of `size_px` squared, read by a number of teachers.

        A second reader of a shared network adds the operations of its head.
        """
        if self._stated is not None:
            patches = (size_px // self.stride) ** 2  # it runs at a size that gives as many of its own
            return num_images * patches * (self._stated.flops_per_patch + patches * self._stated.flops_per_pair)
        assert self._teacher is not None
        if num_images > 1 and self._mosaic is None:
            return num_images * self.flops(size_px, 1, num_readers)
        with FlopCounterMode(display=False) as counter:
            images = torch.empty(num_images, 3, size_px, size_px, device="meta")
            self._teacher.extract_features_for(images, [self._teacher] * num_readers)
        return counter.get_total_flops()


def _build(entry: TeacherRecipe, stride: int) -> Teacher:
    """Return a teacher on the meta device; one of a user's own that cannot do without its weights loads them first."""
    if is_import_path(entry.kind) and not can_be_random(entry):
        return teacher_of_recipe(entry.replace(dtype="float32"), stride).to("meta")
    options = {key: value for key, value in entry.options.items() if key != "weights_dtype"}
    bare = entry.replace(dtype="float32", options={**options, "weights": "random"})
    try:
        with torch.device("meta"):
            return teacher_of_recipe(bare, stride)
    except ValueError as error:
        raise ValueError(f"Without its weights a teacher cannot be planned with: {error}") from error


class PassBytes(NamedTuple):
    """Bytes on a GPU during a pass of the student, which grow with the patches of the pass.

    Attributes:
        targets: Teachers' features of the pass; of online teachers of all passes whose targets are computed at once.
        activations: Tensors that the student keeps for the backward pass.
        checkpointed: The same with gradient checkpointing.
    """

    targets: float
    activations: float
    checkpointed: float

    def total(self, *, is_checkpointed: bool) -> float:
        """Return the sum, with or without gradient checkpointing."""
        return self.targets + (self.checkpointed if is_checkpointed else self.activations)


class PartitionCost(NamedTuple):
    """Cost of a step of a partition on all ranks together, averaged over its resolutions.

    Attributes:
        partition: The partition.
        images: Images of a step.
        images_per_pass: Images that a rank's student has on its GPU at once, rounded up.
        student_flops: Operations of forward and backward passes, and of its moving average's with MESA.
        teacher_flops: Operations of forward passes, by teacher.
        memory: Memory of a pass at the largest resolution.
        patches: The student's patches of that pass.
    """

    partition: PartitionRecipe
    images: int
    images_per_pass: int
    student_flops: float
    teacher_flops: dict[str, float]
    memory: PassBytes
    patches: float

    @property
    def flops(self) -> float:
        """Operations of student and teachers together."""
        return self.student_flops + sum(self.teacher_flops.values())


def plan_stage(networks: Networks, stage: Recipe, num_gpus: int) -> list[PartitionCost]:
    """Return the cost of a step of each partition.

    Raises:
        RecipeError: If the recipe does not fit this number of ranks.
    """
    ranks, heads = divide_ranks(stage.partitions, num_gpus), networks.heads_of(stage)
    return [_partition_cost(networks, stage, each, heads, len(ranks[each.name])) for each in stage.partitions]


def pass_bytes(
    networks: Networks, stage: Recipe, partition: PartitionRecipe, num_parts: int, patches: float
) -> PassBytes:
    """Return the memory of a pass of a partition.

    Args:
        networks: Student and teachers.
        stage: The stage.
        partition: One of its partitions.
        num_parts: Parts in which a rank computes its share of a step.
        patches: The student's patches of the pass.
    """
    side = max(size_shares(partition))
    largest = networks.student_cost(side, networks.heads_of(stage))
    images = patches / (side // networks.student.patch_size) ** 2  # of the largest size
    parts = min(stage.views.parts_at_once, num_parts) if stage.views.teachers == "online" else 1
    names = [name for name in partition.teachers or networks.teachers if name in networks.teachers]
    channels = stage.share_of_images(partition) * sum(networks.teachers[name].feature_dim for name in names)
    return PassBytes(FULL_BYTES * parts * patches * channels, images * largest.kept, images * largest.kept_checkpointed)


def _partition_cost(
    networks: Networks, stage: Recipe, partition: PartitionRecipe, heads: HeadPlan, num_ranks: int
) -> PartitionCost:
    patch_size = networks.student.patch_size
    num_parts = parts_of_rank(partition, num_ranks, patch_size)
    num_passes = num_ranks * num_parts
    shares, num_images = size_shares(partition), images_per_step(partition, patch_size)
    images_per_pass = math.ceil(num_images / num_passes)
    names = list(networks.teachers) if partition.teachers is None else partition.teachers
    parts = min(stage.views.parts_at_once, num_parts) if stage.views.teachers == "online" else 1
    seen = num_images * stage.share_of_images(partition)  # by each teacher
    images_per_call = math.ceil(seen * parts / num_passes)
    of_sizes = {size: networks.teacher_flops(names, size, images_per_call) for size in shares}
    per_image = {
        name: sum(share * of_sizes[size][name] for size, share in shares.items()) / images_per_call for name in names
    }
    patches = (max(shares) // patch_size) ** 2
    most: float = images_per_pass  # images of the largest size with as many patches as a pass may have
    if partition.token_budget is not None:
        most = max(1, partition.token_budget / num_passes / patches)
    student = sum(share * networks.student_flops(size, heads) for size, share in shares.items())
    return PartitionCost(
        partition,
        num_images,
        images_per_pass,
        num_images * student * (1 + average_share(stage)),
        {name: seen * flops for name, flops in per_image.items()},
        pass_bytes(networks, stage, partition, num_parts, most * patches),
        most * patches,
    )


def at_size(stage: Recipe, choose: Callable[[list[int]], int]) -> Recipe:
    """Return a stage with as many images as before, all of a partition at one of its resolutions."""
    patch_size = student_patch_size(stage)
    partitions = [
        p.replace(
            sizes_px=[choose(p.sizes_px)],
            probabilities=None,
            batch_size=images_per_step(p, patch_size),
            token_budget=None,
        )
        for p in stage.partitions
    ]
    return stage.replace(partitions=partitions)


def with_split_teachers(stage: Recipe) -> Recipe:
    """Return a stage whose images are each shown to one teacher, as in stage 1 of PHI-S, table 10."""
    partitions = [each.model_copy(update={"teachers_per_image": 1}) for each in stage.partitions]
    return stage.model_copy(update={"partitions": partitions})
