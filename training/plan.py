"""Plan a run before paying for it: `python -m training.plan --recipe c_radio_v4_h --gpus 128` prints Markdown tables.

The recipe's networks are built on the meta device, without weights or a download, and passes of them are counted by
PyTorch's `FlopCounterMode`: matrix products and convolutions, 2 operations per multiply-add. Days follow from the peak
of a GPU and a stated share of it (model FLOPs utilization, MFU); nothing here was timed.
"""

import copy
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from foundation.command_line import Command
from foundation.tables import markdown
from modeling_radio import RadioModel
from training.recipe import PartitionRecipe, Recipe, RecipeCommand, RecipeError, TeacherRecipe, stage_recipes
from training.student.build import check_student_views, checkpoint_blocks, student_config, student_patch_size
from training.student.taps import Tap, Taps, plan_taps, with_taps
from training.teachers.base import Teacher
from training.teachers.registry import teacher_of_recipe
from training.views.batches import BatchPlan, divide_ranks


PEAK_FLOPS = {"A100": 312e12, "H100": 989e12}
"""Dense bfloat16 peak per second of the SXM versions (NVIDIA's data sheets)."""

DEFAULT_MFU = 0.35
"""Our choice; measure yours, and give it with `--mfu`. For comparison, PHI-S's 14,080 A100-hours for a ViT-B (its
table 10) are by this count 17 % of the peak if each teacher saw images of its own, as in stage 1, and 38 % if all saw
all."""

SECONDS_PER_DAY = 86_400
STUDENT_BYTES = 20
"""Per parameter: weight, gradient, two moments of the optimizer and the moving average, all float32."""
AVERAGE_BYTES = 4
"""Of these the moving average, in which taps have no part."""
HALF_BYTES = 2
"""Per number in bfloat16: teachers' weights, and activations under mixed precision."""
GIB = 2**30


class StudentCost(NamedTuple):
    """What one image costs the student.

    Attributes:
        flops: Of forward and backward pass.
        kept: Numbers kept for the backward pass.
        kept_checkpointed: The same with `student.gradient_checkpointing`.
    """

    flops: float
    kept: int
    kept_checkpointed: int


class PartitionCost(NamedTuple):
    """What a step of a partition costs on all ranks together, averaged over its resolutions.

    Attributes:
        partition: Which partition.
        images: Of a step; with a token budget their mean number.
        images_per_pass: Images that a rank has on its GPU at once, rounded up.
        student_flops: Of forward and backward passes.
        teacher_flops: Of forward passes, by teacher.
        activations: Bytes that a rank keeps at the largest resolution, without and with gradient checkpointing.
    """

    partition: PartitionRecipe
    images: float
    images_per_pass: int
    student_flops: float
    teacher_flops: dict[str, float]
    activations: tuple[float, float]

    @property
    def flops(self) -> float:
        """FLOPs of student and teachers together."""
        return self.student_flops + sum(self.teacher_flops.values())


class Networks:
    """The student and the teachers of a recipe, without data, and what their passes cost.

    Args:
        recipe: The recipe; all teachers must be of kinds with the option `weights`.

    Raises:
        ValueError: If a network cannot be built.
    """

    def __init__(self, recipe: Recipe) -> None:
        embedded = [entry.name for entry in recipe.teachers if entry.source is None]
        if embedded:
            raise ValueError(
                f"teacher {embedded[0]!r} of recipe {recipe.name!r} comes with its weights in a package and cannot be "
                "counted without them: plan a recipe of published teachers, such as c_radio_v4_h"
            )
        with torch.device("meta"):
            stride = student_patch_size(recipe)
            self.teachers: dict[str, Teacher] = {
                entry.name: teacher_of_recipe(_without_weights(entry), stride) for entry in recipe.teachers
            }
            self.student = RadioModel(student_config(recipe, self.teachers)).train()
        self.student_cost: Callable[..., StudentCost] = cache(self._student_cost)
        self.teacher_flops: Callable[[str, int, int], float] = cache(self._teacher_flops)

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

    def _teacher_flops(self, name: str, size_px: int, num_images: int) -> float:
        with FlopCounterMode(display=False) as counter:
            self.teachers[name].answer(torch.empty(num_images, 3, size_px, size_px, device="meta"))
        return counter.get_total_flops()


def _without_weights(entry: TeacherRecipe) -> TeacherRecipe:
    options = {key: value for key, value in entry.options.items() if key != "weights_dtype"}
    return entry.replace(precision="float32", options={**options, "weights": "random"})


def _forward(student: RadioModel, heads: Taps | None, size_px: int) -> tuple[Tensor, int]:
    """Return the loss of one image, and how many numbers are kept for its backward pass."""
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
    """Note the size of every storage that autograd keeps, but for parameters and attention weights.

    The meta device computes attention in the plain way; the kernels of a GPU keep no attention weights.
    """
    parameters = {parameter.untyped_storage()._cdata for parameter in student.parameters()}
    kept: dict[int, Tensor] = {}  # tensors, so that no storage is freed and its number given to another

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in parameters and tensor.shape[-2:] != (num_tokens, num_tokens):
            kept[storage] = tensor
        return tensor

    sizes: dict[int, int] = {}
    with saved_tensors_hooks(note, lambda tensor: tensor):
        yield sizes
    sizes.update({storage: tensor.numel() for storage, tensor in kept.items()})


def plan_stage(networks: Networks, stage: Recipe, num_gpus: int) -> list[PartitionCost]:
    """Return what a step of each partition costs.

    Raises:
        RecipeError: If the recipe does not fit this number of ranks.
    """
    ranks, taps = divide_ranks(stage.partitions, num_gpus), networks.taps_of(stage)
    return [_partition_cost(networks, partition, taps, len(ranks[partition.name])) for partition in stage.partitions]


def _partition_cost(
    networks: Networks, partition: PartitionRecipe, taps: tuple[Tap, ...], num_ranks: int
) -> PartitionCost:
    num_passes = num_ranks * partition.accumulation_steps
    shares = _shares(partition)
    num_images = _images_per_step(partition, networks.student.patch_size)
    images_per_pass = math.ceil(num_images / num_passes)
    names = list(networks.teachers) if partition.teachers is None else partition.teachers
    per_image = {
        name: sum(p * networks.teacher_flops(name, s, images_per_pass) for s, p in shares.items()) / images_per_pass
        for name in names
    }
    largest = networks.student_cost(max(shares), taps)
    most = images_per_pass  # images of the largest size that a pass has as many patches as
    if partition.token_budget is not None:
        most = max(1, partition.token_budget / num_passes / (max(shares) // networks.student.patch_size) ** 2)
    return PartitionCost(
        partition,
        num_images,
        images_per_pass,
        num_images * sum(share * networks.student_cost(size, taps).flops for size, share in shares.items()),
        {name: num_images * flops for name, flops in per_image.items()},
        (HALF_BYTES * most * largest.kept, HALF_BYTES * most * largest.kept_checkpointed),
    )


def _shares(partition: PartitionRecipe) -> dict[int, float]:
    """Return the probability of each resolution."""
    chances = partition.probabilities or [1.0] * len(partition.sizes_px)
    return {size: chance / sum(chances) for size, chance in zip(partition.sizes_px, chances, strict=True)}


def _images_per_step(partition: PartitionRecipe, patch_size: int) -> float:
    """Return the number of images of a step, with a token budget their mean."""
    if partition.batch_size is not None:
        return partition.batch_size
    assert partition.token_budget is not None
    mean_tokens = sum(share * (size // patch_size) ** 2 for size, share in _shares(partition).items())
    return partition.token_budget / mean_tokens


class Plan:
    """What all stages of a run cost.

    Args:
        recipe: What is trained.
        num_gpus: Number of ranks.
        mfu: Share of a GPU's peak that the run is assumed to reach.
    """

    def __init__(self, recipe: Recipe, num_gpus: int, mfu: float) -> None:
        self.recipe, self.num_gpus, self.mfu = recipe, num_gpus, mfu
        self.stages = stage_recipes(recipe) or [recipe]
        for stage in self.stages:
            check_student_views(stage)
        self.networks = Networks(recipe)
        with tqdm(self.stages, desc="count", unit="stage") as progress:
            self.costs = {stage.name: plan_stage(self.networks, stage, num_gpus) for stage in progress}

    def gpu_days(self, gpu: str, stages: Sequence[Recipe] | None = None, *, with_teachers: bool = True) -> float:
        """Return the days that one GPU of a kind would take for the stages, by default those of the recipe."""
        flops = 0.0
        for stage in self.stages if stages is None else stages:
            costs = plan_stage(self.networks, stage, self.num_gpus)
            flops += stage.schedule.num_steps * sum(c.flops if with_teachers else c.student_flops for c in costs)
        return flops / (PEAK_FLOPS[gpu] * self.mfu) / SECONDS_PER_DAY

    def networks_table(self) -> str:
        """Return a table of parameters and GPU memory of student and teachers."""
        num_parameters = sum(parameter.numel() for parameter in self.networks.student.parameters())
        whole = STUDENT_BYTES * num_parameters / GIB
        sizes = f"{whole:.1f} as a copy (DDP), {whole / self.num_gpus:.2f} sharded over all (FSDP)"
        rows = [["student with adaptors", _millions(num_parameters), sizes]]
        taps = max((self.networks.taps_of(stage) for stage in self.stages), key=len)
        heads = self.networks.tap_heads(taps)
        if heads is not None:  # of the stage with most of them
            num_parameters = sum(parameter.numel() for parameter in heads.parameters())
            size = f"{(STUDENT_BYTES - AVERAGE_BYTES) * num_parameters / GIB:.1f} as a copy"
            rows.append([f"heads of {len(taps)} taps", _millions(num_parameters), size])
        for name, size in self._teacher_bytes():
            rows.append([name, _millions(size // HALF_BYTES), f"{size / GIB:.1f}"])
        return markdown(["network", "parameters (M)", "GiB on each GPU"], rows)

    def _teacher_bytes(self) -> list[tuple[str, int]]:
        teachers = self.networks.teachers.items()
        return [
            (name, HALF_BYTES * sum(weight.numel() for weight in teacher.parameters())) for name, teacher in teachers
        ]

    def steps_table(self) -> str:
        """Return a table of FLOPs and activation memory of one step of each partition."""
        teachers = list(self.networks.teachers)
        header = ["stage", "partition", "images", "sizes (px)", "student", *teachers, "sum (PFLOP per step)"]
        header += ["images per pass", "activations (GiB)", "checkpointed (GiB)"]
        rows = []
        for stage, costs in self.costs.items():
            for cost in costs:
                partition = cost.partition
                flops = [cost.student_flops, *(cost.teacher_flops.get(name, 0.0) for name in teachers), cost.flops]
                rows.append(
                    [stage, partition.name, f"{cost.images:.0f}", ", ".join(map(str, partition.sizes_px))]
                    + [f"{value / 1e15:.2f}" for value in flops]
                    + [str(cost.images_per_pass), *(f"{size / GIB:.1f}" for size in cost.activations)]
                )
        return markdown(header, rows)

    def levers_table(self) -> str:
        """Return a table of the run's GPU-days, as it is and with one thing changed."""
        num_teachers = len(self.networks.teachers)
        rows = [
            self._days_row("as the recipe says", self.stages),
            self._days_row("one resolution per partition: its smallest", [_at_size(s, min) for s in self.stages]),
            self._days_row("one resolution per partition: its largest", [_at_size(s, max) for s in self.stages]),
            self._days_row(f"images split over the {num_teachers} teachers", [_split_teachers(s) for s in self.stages]),
            self._days_row("teachers' features cached: without the one pass that writes them", self.stages, False),
        ]
        gpus = [f"{gpu}: GPU-days (days on {self.num_gpus})" for gpu in PEAK_FLOPS]
        return markdown(["lever", *gpus], rows)

    def _days_row(self, label: str, stages: Sequence[Recipe], with_teachers: bool = True) -> list[str]:
        days = [self.gpu_days(gpu, stages, with_teachers=with_teachers) for gpu in PEAK_FLOPS]
        return [label, *(f"{value:,.0f} ({value / self.num_gpus:.1f})" for value in days)]

    def notes(self) -> str:
        """Return what bound ranks, a feature cache and sharded teachers would save or take, as a Markdown list."""
        costs = self.costs[self.stages[-1].name]
        total = sum(cost.flops for cost in costs)
        split = ", ".join(f"{cost.partition.name} {cost.flops / total:.0%}" for cost in costs)
        side = max(max(cost.partition.sizes_px) for cost in costs)
        cells = (side // self.networks.student.patch_size) ** 2
        width = sum(teacher.feature_dim for teacher in self.networks.teachers.values())
        heaviest = max(self._teacher_bytes(), key=lambda pair: pair[1])
        return (
            f"- Ranks bound to a partition (`rank_share`) save no operations. They are all busy when the shares follow "
            f"the operations of a step: {split} in the last stage.\n"
            f"- A cache of dense features at {side} px takes {HALF_BYTES * cells * width / 1e6:.0f} MB per image in "
            f"bfloat16: {HALF_BYTES * cells * width * 1e6 / 1e12:,.0f} TB per million images.\n"
            f"- Every rank holds every teacher whole. Sharding {heaviest[0]} over the 8 GPUs of a machine would free "
            f"{heaviest[1] * 7 / 8 / GIB:.1f} GiB on each, for a gather of its weights in every pass (not built). "
            "`teachers.NAME.device` puts a teacher on another GPU instead."
            + "".join(
                f"\n- This many GPUs could not run stage {name} as it is: {why}" for name, why in self._refusals()
            )
        )

    def _refusals(self) -> list[tuple[str, RecipeError]]:
        """Return the stages whose batches have not an image for each part of each rank, and why a run would refuse."""
        found = [
            (stage.name, _refusal(stage, self.num_gpus, self.networks.student.patch_size)) for stage in self.stages
        ]
        return [(name, error) for name, error in found if error is not None]


def _refusal(stage: Recipe, num_gpus: int, patch_size: int) -> RecipeError | None:
    try:
        BatchPlan(stage, None, num_ranks=num_gpus, patch_size=patch_size)
    except RecipeError as error:
        return error
    return None


def _at_size(stage: Recipe, choose: Callable[[list[int]], int]) -> Recipe:
    patch_size = student_patch_size(stage)
    partitions = [
        p.replace(
            sizes_px=[choose(p.sizes_px)],
            probabilities=None,
            batch_size=round(_images_per_step(p, patch_size)),
            token_budget=None,
        )
        for p in stage.partitions
    ]
    return stage.replace(partitions=partitions)


def _split_teachers(stage: Recipe) -> Recipe:
    """Return a stage whose images are split evenly: each teacher sees its own, as in stage 1 of PHI-S, table 10."""
    names = [teacher.name for teacher in stage.teachers]
    partitions = [
        p.replace(
            name=f"{p.name}-{name}",
            batch_size=p.batch_size and max(p.batch_size // len(names), 1),
            token_budget=p.token_budget and max(p.token_budget // len(names), 1),
            teachers=[name],
        )
        for p in stage.partitions
        for name in names
    ]
    return stage.replace(partitions=partitions)


def _millions(count: int) -> str:
    return f"{count / 1e6:,.0f}"


def describe(recipe: Recipe, num_gpus: int, mfu: float = DEFAULT_MFU) -> str:
    """Return the plan of a run as Markdown.

    Raises:
        ValueError: If a network cannot be built, or the recipe does not fit this number of GPUs.
    """
    plan = Plan(recipe, num_gpus, mfu)
    assumed = ", ".join(f"{gpu} {peak / 1e12:.0f} TFLOP/s" for gpu, peak in PEAK_FLOPS.items())
    parts = [
        f"`{recipe.name}` on {num_gpus} GPUs, counted, not timed; days assume {mfu:.0%} of the peak ({assumed}).",
        plan.networks_table(),
        plan.steps_table(),
        plan.levers_table(),
        plan.notes(),
    ]
    return "\n\n".join(parts)


class PlanSettings(RecipeCommand):
    """What shall be counted.

    Attributes:
        gpus: Number of GPUs.
        mfu: Share of a GPU's peak that the run is assumed to reach.
    """

    recipe: str
    gpus: int = Field(8, gt=0)
    mfu: float = Field(DEFAULT_MFU, gt=0, le=1)


COMMAND = Command(
    "training.plan", "Count what a run costs: operations, memory, GPU-days.", PlanSettings, changes=Recipe
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return COMMAND.run(_plan, arguments)


def _plan(settings: PlanSettings) -> None:
    # The images are not opened: a recipe that leaves their source to the command line can be planned without.
    print(describe(settings.load_recipe("data.source=unopened"), settings.gpus, settings.mfu))


if __name__ == "__main__":
    sys.exit(main())
