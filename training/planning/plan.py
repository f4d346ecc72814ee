"""Cost of all stages of a run on a number of GPUs: operations, hours, memory, disk and network, as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tqdm.auto import tqdm

from modeling_radio.core.tables import markdown
from modeling_radio.training.planning.costs import (
    CARDS,
    FULL_BYTES,
    HALF_BYTES,
    MEMORY_SHARE,
    STUDENT_PART,
    Card,
    Networks,
    PartitionCost,
    PassBytes,
    at_size,
    plan_stage,
    with_split_teachers,
)
from modeling_radio.training.planning.memory import (
    AVERAGE_BYTES,
    GIB,
    STUDENT_BYTES,
    Memory,
    fit_accumulation,
    has_auto,
    head_parameters,
    memory_between_passes,
    memory_of_passes,
)
from modeling_radio.training.planning.simulation import (
    GPUS_PER_MACHINE,
    LINK_SPEED,
    NETWORK_SPEED,
    NUM_STEPS,
    SimulatedStep,
    Speed,
    StepTime,
    simulate_step,
    time_of,
    view_seconds,
)
from modeling_radio.training.recipes.recipe import Recipe, stage_recipes
from modeling_radio.training.recipes.sections import AUTO
from modeling_radio.training.student.build import check_student_views


SECONDS_PER_HOUR, SECONDS_PER_DAY = 3600, 86_400

CHECKPOINT_BYTES = 16
"""Per parameter in a checkpoint: all of the above but the gradient."""


class Plan:
    """Cost of all stages of a run.

    Args:
        recipe: The recipe.
        num_gpus: Number of ranks.
        networks: Networks of a plan for another number of ranks, to count each network once.
        card: The card whose memory decides `accumulation_steps: auto`.

    Attributes:
        stages: The recipe of each stage; one if the recipe has no stages.
        networks: Student and teachers on the meta device.
        costs: By stage, the cost of a step of each partition.
        simulated: By stage, what ranks have of a step.

    Raises:
        ValueError: If a network cannot be built, or the recipe does not fit this number of GPUs.
    """

    def __init__(
        self, recipe: Recipe, num_gpus: int, networks: Networks | None = None, card: Card = CARDS["H100"]
    ) -> None:
        self.recipe, self.num_gpus, self.card = recipe, num_gpus, card
        stages = stage_recipes(recipe) or [recipe]
        for stage in stages:
            check_student_views(stage)
        self.networks = counted = networks or Networks(recipe)
        self.stages = [
            fit_accumulation(counted, stage, num_gpus, card.memory_gib, counted.operations(stage))
            if has_auto(stage)
            else stage
            for stage in stages
        ]
        self.costs: dict[str, list[PartitionCost]] = {}
        self.simulated: dict[str, SimulatedStep] = {}
        for stage in tqdm(self.stages, desc="count", unit="stage"):
            self.costs[stage.name] = plan_stage(self.networks, stage, num_gpus)
            self.simulated[stage.name] = simulate_step(self.networks, stage, num_gpus)

    def flops(self, stages: Sequence[Recipe] | None = None, *, with_teachers: bool = True) -> float:
        """Return the operations of some stages, by default those of the recipe.

        Cached teachers run once on each image, before the first step; a data set whose length the recipe does not give
        has no images there.
        """
        total = 0.0
        for stage in self.stages if stages is None else stages:
            is_online = stage.views.teachers == "online"
            costs = plan_stage(self.networks, stage, self.num_gpus)
            total += stage.schedule.num_steps * sum(
                cost.flops if with_teachers and is_online else cost.student_flops for cost in costs
            )
        return total + (self.cache_flops() if with_teachers else 0)

    def cache_flops(self) -> float:
        """Return the operations of the teachers' one pass over the images of a feature cache."""
        cached = {each.data.image_size_px: each.data for each in self.stages if each.views.teachers == "cached"}
        names = list(self.networks.teachers)
        return sum(
            (data.num_images or 0) * sum(self.networks.teacher_flops(names, size, 1).values())
            for size, data in cached.items()
        )

    def for_card(self, card: Card) -> Plan:
        """Return the plan for another card: with other numbers where `accumulation_steps` is auto."""
        has_own = any(map(has_auto, stage_recipes(self.recipe) or [self.recipe]))
        is_other = has_own and card.memory_gib != self.card.memory_gib
        return Plan(self.recipe, self.num_gpus, self.networks, card) if is_other else self

    def seconds(self, speed: Speed) -> float:
        """Return the time of the whole run: of all steps of all stages, and of the pass that fills a feature cache."""
        steps = sum(stage.schedule.num_steps * self.step_time(stage, speed).total for stage in self.stages)
        return steps + self.cache_seconds(speed)

    def cache_seconds(self, speed: Speed) -> float:
        """Return the time of the pass that fills a feature cache."""
        return self.cache_flops() / (speed.card.peak_flops * speed.mfu) / self.num_gpus

    def steps(self) -> list[tuple[Recipe, PartitionCost]]:
        """Return the cost of a step of each partition of each stage."""
        return [(stage, cost) for stage in self.stages for cost in self.costs[stage.name]]

    def pass_bytes(self) -> dict[tuple[str, str], PassBytes]:
        """Return the memory of the fullest pass of each stage and partition."""
        return {
            (stage.name, name): sizes
            for stage in self.stages
            for name, sizes in memory_of_passes(
                self.networks, stage, self.num_gpus, self.simulated[stage.name].patches
            ).items()
        }

    def fullest_pass(self) -> str:
        """Return the stage and the partition whose pass needs most memory, in words."""
        sizes = self.pass_bytes()
        stage, partition = max(sizes, key=lambda names: sizes[names].total(is_checkpointed=False))
        return f"{stage}, {partition}" if self.recipe.stages else partition

    def memory(self) -> Memory:
        """Return the largest memory use of a GPU."""
        between = memory_between_passes(self.networks, self.stages, self.num_gpus)
        passes = self.pass_bytes().values()
        most, least = (max(each.total(is_checkpointed=flag) for each in passes) for flag in (False, True))
        targets = max(passes, key=lambda each: each.total(is_checkpointed=False)).targets
        return between.with_pass(PassBytes(targets, most - targets, least - targets))

    def step_time(self, stage: Recipe, speed: Speed) -> StepTime:
        """Return the simulated time of a step of a stage."""
        learned = self.networks.num_parameters + self.head_parameters()
        return time_of(self.simulated[stage.name], stage, self.num_gpus, learned, speed)

    def head_parameters(self) -> int:
        """Return the parameters of the auxiliary heads, of the stage with most of them."""
        return head_parameters(self.networks, self.stages)

    def head_bytes(self) -> int:
        """Return the memory of the auxiliary heads on a GPU in training."""
        return (STUDENT_BYTES - AVERAGE_BYTES) * self.head_parameters()

    def checkpoint_bytes(self) -> float:
        """Return the size of all checkpoints that stay, one that is written beside them, and the exported folders."""
        keep, stages = self.recipe.checkpoints.keep, len(self.stages)
        exports = stages + (len(self.recipe.stages) > 0)
        return self.networks.num_parameters * (CHECKPOINT_BYTES * (stages * keep + 1) + FULL_BYTES * exports)

    def cache_bytes_per_image(self, side_px: int) -> float:
        """Return the size of a cached image, a byte for each number, and of the teachers' outputs, two bytes each."""
        teachers = self.networks.teachers.values()
        patches = (side_px // self.networks.student.patch_size) ** 2
        numbers = sum((teacher.summary_dim or 0) + patches * teacher.feature_dim for teacher in teachers)
        return 3 * side_px**2 + HALF_BYTES * numbers

    def images_seen(self) -> float:
        """Return the number of images of all steps together."""
        return sum(stage.schedule.num_steps * cost.images for stage, cost in self.steps())

    def files_read(self) -> float:
        """Return the number of image files read: one for each image of a step; for a feature cache each once."""
        if self.recipe.views.teachers == "cached":
            return self.recipe.data.num_images or 0
        return self.images_seen()

    def gradient_bytes(self) -> float:
        """Return what each GPU sends and receives in a step: a ring all-reduce of float32 gradients."""
        learned = self.networks.num_parameters + self.head_parameters()
        return 2 * (self.num_gpus - 1) / self.num_gpus * FULL_BYTES * learned


def describe_ranks(plans: Sequence[Plan], speed: Speed) -> str:
    """Return the last stage's step on several numbers of GPUs as Markdown: time, balance and memory.

    Args:
        plans: Plans of one recipe, by number of GPUs.
        speed: Assumed speed of the GPUs and the workers.
    """
    stage = plans[0].stages[-1]
    steps, times = [plan.simulated[stage.name] for plan in plans], [plan.step_time(stage, speed) for plan in plans]
    seconds = {part: [time.parts[part] for time in times] for part in times[0].parts}
    seconds |= {
        "waiting for the slowest rank": [time.waiting for time in times],
        "exchange of gradients": [time.exchange for time in times],
        "the whole step": [time.total for time in times],
        "starts of kernels, beside it": [time.starts for time in times],
        "data, beside it": [time.data for time in times],
    }
    rows = [[f"{name}, s", *(f"{value:.3g}" for value in values)] for name, values in seconds.items()]
    memory = [plan.memory() for plan in plans]
    rows += [
        ["operations of the slowest rank over the mean", *(f"{each.imbalance:.3f}" for each in steps)],
        ["the same in the worst step", *(f"{each.worst:.3f}" for each in steps)],
        ["starts of kernels of the rank with most", *(f"{each.starts:,.0f}" for each in steps)],
        ["parts of a step on a rank", *(_parts_of(plan.stages[-1]) for plan in plans)],
        ["passes without an image", *(f"{each.idle_passes:.0%}" for each in steps)],
        ["patches of the fullest pass", *(f"{max(each.patches.values()):,}" for each in steps)],
        ["memory, GiB", *(f"{each.total(is_checkpointed=False) / GIB:.1f}" for each in memory)],
        ["memory with checkpointing, GiB", *(f"{each.total(is_checkpointed=True) / GIB:.1f}" for each in memory)],
        ["partition with most memory", *(plan.fullest_pass() for plan in plans)],
        ["time of the whole run", *(_duration(plan.seconds(speed)) for plan in plans)],
    ]
    table = markdown([f"`{plans[0].recipe.name}`, stage {stage.name}, GPUs", *(f"{p.num_gpus}" for p in plans)], rows)
    lines = [
        f"{speed.card.name} at {speed.mfu:.0%} of its peak, whatever the size of a pass; {NUM_STEPS} simulated steps. "
        f"Gradients go at {LINK_SPEED / 1e9:.0f} GB/s over NVLink in machines of {GPUS_PER_MACHINE}, and at "
        f"{NETWORK_SPEED / 1e9:.0f} GB/s over a network port of each GPU; none of it is hidden. While the GPU works, "
        f"a worker cuts {1 / view_seconds(speed.image_kb):.0f} views a second from files of {speed.image_kb:g} kB: one "
        f"for the student and one for each network of a teacher. A kernel takes {speed.start_us:g} us of the processor "
        f"to start, while the GPU works. Not counted: the optimizer, windows.",
        "Images are divided so that ranks have equal work over all partitions of a step. A rank without an image of a "
        "partition computes a dummy image with weight 0: the gradient is the same on any number of GPUs.",
    ]
    return table + "\n\n" + "\n".join(f"- {line}" for line in lines)


def _parts_of(stage: Recipe) -> str:
    """Return the number of parts of each partition in words."""
    return ", ".join(f"{each.name} {each.accumulation_steps}" for each in stage.partitions)


def summarize(plan: Plan, speed: Speed, price: float | None, days: float | None = None) -> str:
    """Return time, memory and cost on one card, and what to change first, in a line each.

    Args:
        plan: The plan.
        speed: The card, and the share of its peak that the run is assumed to reach.
        price: Price of a GPU hour, in any currency; None if it is not known.
        days: Time for which numbers of steps are given, if any.
    """
    seconds, card, memory = plan.seconds(speed), speed.card, plan.memory()
    hours = plan.num_gpus * seconds / SECONDS_PER_HOUR
    most, least = (memory.total(is_checkpointed=flag) / GIB for flag in (False, True))
    fits = {
        "yes": "it fits",
        "checkpointed": f"too much, but {least:.1f} GiB with `student.gradient_checkpointing=true` fit",
        "no": f"too much, also the {least:.1f} GiB with `student.gradient_checkpointing=true`",
    }[memory.fits(card)]
    cost = "give `--price`, of one GPU hour" if price is None else f"{_short(hours * price)} at {price:g} an hour"
    times = [f"{_duration(seconds)} on {plan.num_gpus} {card.name}", f"{_short(hours)} GPU hours"]
    lines = [
        f"Time: {', '.join(times)}, if a GPU reaches {speed.mfu:.0%} of its peak.",
        f"Memory: {most:.1f} of {card.memory_gib:g} GiB on each GPU: {fits}.",
        f"Cost: {cost}.",
        f"First: {advise(plan, speed)}",
    ]
    return "\n".join(lines if days is None else [*lines, steps_in(plan, speed, days)])


MUCH_WAITING = 0.1
"""Share of a step that ranks may wait before the plan tells. Our choice."""


def advise(plan: Plan, speed: Speed) -> str:
    """Return what to change first in the stage that takes longest, in a line."""
    stage = max(plan.stages, key=lambda stage: stage.schedule.num_steps * plan.step_time(stage, speed).total)
    time, where = plan.step_time(stage, speed), f"in stage {stage.name}" if plan.recipe.stages else "here"
    if time.data > max(time.computed, time.starts):
        workers = math.ceil(stage.data.num_workers * time.data / max(time.computed, time.starts))
        return f"`data.num_workers={workers}`, for GPUs wait for images {where}."
    if time.starts > time.computed:
        more = [each.name for each in plan.recipe.partitions if each.accumulation_steps not in (1, AUTO)]
        if more:
            return f"`partitions.{more[0]}.accumulation_steps=auto`, for GPUs wait for starts of kernels {where}."
        return f"fewer GPUs, or a smaller `views.aspect_steps`, for GPUs wait for starts of kernels {where}."
    if time.waiting > MUCH_WAITING * time.total:
        return f"fewer GPUs, for they wait for the slowest of them {time.waiting / time.total:.0%} of a step {where}."
    heaviest = max(time.parts, key=lambda part: time.parts[part])
    if heaviest == STUDENT_PART and stage.student.gradient_checkpointing:
        return "`student.gradient_checkpointing=false` where memory is enough: it computes the forward pass twice."
    return f"{heaviest} takes most of a step {where}; no setting makes it cheaper without another result."


def steps_in(plan: Plan, speed: Speed, days: float) -> str:
    """Return the numbers of steps with which the run takes some days, in the proportion of the recipe's, in a line."""
    left = max(0.0, days * SECONDS_PER_DAY - plan.cache_seconds(speed))
    share = left / (plan.seconds(speed) - plan.cache_seconds(speed))
    prefix = {stage.name: f"stages.{stage.name}." if plan.recipe.stages else "" for stage in plan.stages}
    settings = [
        f"{prefix[stage.name]}schedule.num_steps={max(1, int(share * stage.schedule.num_steps))}"
        for stage in plan.stages
    ]
    return f"In {days:g} days: {' '.join(settings)}"


def describe(plan: Plan, cards: Sequence[Card], speed: Speed) -> str:
    """Return a plan as Markdown.

    Args:
        plan: The plan.
        cards: Cards whose times and memory are listed.
        speed: Assumed speed of the plan's GPUs and the workers.
    """
    parts = [
        f"`{plan.recipe.name}` on {plan.num_gpus} GPUs, counted, not timed; times assume {speed.mfu:.0%} of the peak.",
        _hours_table(plan, cards, speed),
        networks_table(plan),
        _steps_table(plan),
        describe_ranks([plan], speed),
        _memory_table(plan),
        _storage_table(plan, speed.image_kb),
        _levers_table(plan),
        _notes(plan, speed),
    ]
    return "\n\n".join(parts)


def _hours_table(plan: Plan, cards: Sequence[Card], speed: Speed) -> str:
    """Return a table of the time on each card, whether the run fits, and the data rates that it needs."""
    steps, rows = sum(stage.schedule.num_steps for stage in plan.stages), []
    plans = {card.memory_gib: plan.for_card(card) for card in {card.memory_gib: card for card in cards}.values()}
    for card in cards:
        own = plans[card.memory_gib]
        seconds = own.seconds(speed._replace(card=card))
        hours = plan.num_gpus * seconds / SECONDS_PER_HOUR
        times = [_short(hours), _duration(seconds), _short(plan.images_seen() / seconds)]
        flows = [1000 * speed.image_kb * plan.files_read() / seconds, plan.gradient_bytes() * steps / seconds]
        of_card = [card.name, _short(card.peak_flops / 1e12), f"{card.memory_gib:g}", own.memory().fits(card)]
        rows.append([*of_card, *times, *(f"{_bytes(flow)}/s" for flow in flows)])
    header = ["GPU", "peak (TFLOP/s)", "memory (GiB)", "fits", "GPU hours", f"time on {plan.num_gpus}"]
    return markdown([*header, "images/s", "files read", "gradients sent by each"], rows)


def networks_table(plan: Plan) -> str:
    """Return a table of parameters and GPU memory of student and teachers."""
    size = STUDENT_BYTES * plan.networks.num_parameters / GIB
    sizes = f"{size:.1f} as a copy (DDP), {size / plan.num_gpus:.2f} sharded over all (FSDP)"
    rows = [["student with adaptors", _short(plan.networks.num_parameters / 1e6), sizes]]
    if plan.head_parameters():
        count = max(len(plan.networks.heads_of(stage)) for stage in plan.stages)
        size = f"{plan.head_bytes() / GIB:.1f} as a copy"
        rows.append([f"{count} auxiliary heads", _short(plan.head_parameters() / 1e6), size])
    for name, teacher in plan.networks.teachers.items():
        rows.append([name, _short(teacher.num_parameters / 1e6), f"{teacher.weight_bytes / GIB:.1f}"])
    return markdown(["network", "parameters (M)", "GiB on each GPU"], rows)


def _steps_table(plan: Plan) -> str:
    """Return a table of operations and activation memory of one step of each partition."""
    teachers = list(plan.networks.teachers)
    header = ["stage", "partition", "images", "sizes (px)", "student", *teachers, "sum (TFLOP per step)"]
    rows = []
    for stage, cost in plan.steps():
        is_online = stage.views.teachers == "online"
        of_teachers = [cost.teacher_flops.get(name, 0.0) if is_online else 0.0 for name in teachers]
        flops = [cost.student_flops, *of_teachers, cost.student_flops + sum(of_teachers)]
        rows.append(
            [stage.name, cost.partition.name, f"{cost.images:.0f}", ", ".join(map(str, cost.partition.sizes_px))]
            + [_short(value / 1e12) for value in flops]
            + [
                str(cost.images_per_pass),
                *(f"{size / GIB:.1f}" for size in (cost.memory.activations, cost.memory.checkpointed)),
            ]
        )
    return markdown([*header, "images per pass", "activations (GiB)", "checkpointed (GiB)"], rows)


def _memory_table(plan: Plan) -> str:
    """Return a table of the memory of each GPU at the largest pass."""
    memory = plan.memory()
    sizes = [memory.student, memory.casts, memory.teachers, memory.targets, memory.activations, memory.update]
    sums = [memory.total(is_checkpointed=checkpointed) for checkpointed in (False, True)]
    parts = ["student", "its bfloat16 copy", "teachers", "targets", "activations", "or in an update"]
    header = ["GiB on each GPU", *parts, "most", "most, checkpointed"]
    return markdown(
        header, [[f"fullest pass: {plan.fullest_pass()}", *(f"{size / GIB:.1f}" for size in (*sizes, *sums))]]
    )


def _storage_table(plan: Plan, image_kb: float) -> str:
    """Return a table of disk and network."""
    keep, data = plan.recipe.checkpoints.keep, plan.recipe.data
    files = plan.files_read()
    sizes = {
        # a repository may hold a text tower or a decoder, too
        ("weights of teachers, at least", "network once, and disk"): sum(
            teacher.download_bytes for teacher in plan.networks.teachers.values()
        ),
        (f"checkpoints ({keep} kept of each stage) and exports", "disk"): plan.checkpoint_bytes(),
        (f"files of images, {files:,.0f} read in all", "network, or disk"): 1000 * image_kb * files,
        ("gradients, sent by each GPU in a step", "between GPUs"): plan.gradient_bytes(),
    }
    if plan.recipe.views.teachers == "cached":
        count = data.num_images or 1_000_000
        size = count * plan.cache_bytes_per_image(data.image_size_px)
        sizes[(f"feature cache of {count:,} images", "disk")] = size
    return markdown(["what", "where", "size"], [[*row, _bytes(size)] for row, size in sizes.items()])


def _levers_table(plan: Plan) -> str:
    """Return a table of the operations with one thing changed, relative to those of the recipe."""
    whole, stages = plan.flops(), plan.stages
    levers = [
        ("one resolution per partition: its smallest", plan.flops([at_size(stage, min) for stage in stages])),
        ("one resolution per partition: its largest", plan.flops([at_size(stage, max) for stage in stages])),
    ]
    if plan.recipe.views.teachers == "online":
        split = plan.flops([with_split_teachers(stage) for stage in stages])
        cached = plan.flops(with_teachers=False)
        levers.append(("each image seen by one teacher (`partitions.NAME.teachers_per_image=1`)", split))
        levers.append(("teachers' features cached: without the one pass that writes them", cached))
    return markdown(
        ["with one thing changed", "operations"], [[name, f"x {flops / whole:.2f}"] for name, flops in levers]
    )


def _notes(plan: Plan, speed: Speed) -> str:
    """Return assumptions and further costs as a Markdown list."""
    costs = plan.costs[plan.stages[-1].name]
    total = sum(cost.flops for cost in costs)
    split = ", ".join(f"{cost.partition.name} {cost.flops / total:.0%}" for cost in costs)
    side = max(max(cost.partition.sizes_px) for cost in costs)
    size = plan.cache_bytes_per_image(side)
    heaviest = max(plan.networks.teachers.items(), key=lambda pair: pair[1].weight_bytes)
    lines = [
        "Assumed: the share of the peak (our choice: measure yours, and give it with `--mfu`), "
        f"{speed.start_us:g} us for a start of a kernel (our choice; `--start-us`), {speed.image_kb:g} kB for an image "
        "(our choice; `--image-kb`), float32 weights of teachers on the Hub, "
        f"{HALF_BYTES} bytes for a number kept for the backward pass, {FULL_BYTES} for one of a target, and for one "
        f"that blocks and norms take in. A card fits what takes at most {MEMORY_SHARE:.0%} of its memory.",
        f"Ranks bound to a partition (`rank_share`) save no operations. They are all busy when the shares follow the "
        f"operations of a step: {split} in the last stage.",
        f"A cache of dense features at {side} px takes {_bytes(size)} per image: {_bytes(1e6 * size)} per million.",
        f"Every rank holds the teachers of its partitions whole, {heaviest[0]} with "
        f"{heaviest[1].weight_bytes / GIB:.1f} GiB; several that read one network hold it once. A run of a single "
        "process may put some on other GPUs (`teachers.NAME.device`); ranks that share a machine may not, for all "
        "would take the same one.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _short(value: float) -> str:
    """Return a number with about three digits."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _duration(seconds: float) -> str:
    for unit, length in (("days", SECONDS_PER_DAY), ("h", SECONDS_PER_HOUR), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def _bytes(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{_short(count / size)} {unit}"
    return f"{count / 1e3:.0f} kB"
