"""A plan in words and tables, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from foundation.tables import markdown
from training.planning.cards import MEMORY_SHARE, Card
from training.planning.networks import FULL_BYTES, HALF_BYTES
from training.planning.plan import GIB, SECONDS_PER_HOUR, STUDENT_BYTES, Plan
from training.planning.steps import at_size, with_split_teachers


def describe(plan: Plan, cards: Sequence[Card], mfu: float, image_kb: float) -> str:
    """Return a plan as Markdown.

    Args:
        plan: What was counted.
        cards: Cards that its times and memory are told for.
        mfu: Share of a card's peak that the run is assumed to reach.
        image_kb: Assumed mean size of an image file, 1,000 bytes.
    """
    parts = [
        f"`{plan.recipe.name}` on {plan.num_gpus} GPUs, counted, not timed; times assume {mfu:.0%} of the peak.",
        hours_table(plan, cards, mfu, image_kb),
        networks_table(plan),
        steps_table(plan),
        memory_table(plan),
        storage_table(plan, image_kb),
        levers_table(plan),
        notes(plan, image_kb),
    ]
    return "\n\n".join(parts)


def hours_table(plan: Plan, cards: Sequence[Card], mfu: float, image_kb: float) -> str:
    """Return a table of the time on each card, whether it fits, and what must flow to it meanwhile."""
    memory, steps, rows = plan.memory(), sum(stage.schedule.num_steps for stage in plan.stages), []
    for card in cards:
        hours = plan.gpu_hours(card, mfu)
        seconds = SECONDS_PER_HOUR * hours / plan.num_gpus
        times = [_short(hours), _duration(seconds), _short(plan.images_seen() / seconds)]
        flows = [1000 * image_kb * plan.files_read() / seconds, plan.gradient_bytes() * steps / seconds]
        of_card = [card.name, _short(card.peak_flops / 1e12), f"{card.memory_gib:g}", memory.fits(card)]
        rows.append([*of_card, *times, *(f"{_bytes(flow)}/s" for flow in flows)])
    header = ["GPU", "peak (TFLOP/s)", "memory (GiB)", "fits", "GPU hours", f"time on {plan.num_gpus}"]
    return markdown([*header, "images/s", "files read", "gradients sent by each"], rows)


def networks_table(plan: Plan) -> str:
    """Return a table of parameters and GPU memory of student and teachers."""
    size = STUDENT_BYTES * plan.networks.num_parameters / GIB
    sizes = f"{size:.1f} as a copy (DDP), {size / plan.num_gpus:.2f} sharded over all (FSDP)"
    rows = [["student with adaptors", _millions(plan.networks.num_parameters), sizes]]
    if plan.tap_parameters():
        taps = max(len(plan.networks.taps_of(stage)) for stage in plan.stages)
        rows.append(
            [f"heads of {taps} taps", _millions(plan.tap_parameters()), f"{plan.tap_bytes() / GIB:.1f} as a copy"]
        )
    for name, teacher in plan.networks.teachers.items():
        rows.append([name, _millions(teacher.num_parameters), f"{teacher.weight_bytes / GIB:.1f}"])
    return markdown(["network", "parameters (M)", "GiB on each GPU"], rows)


def steps_table(plan: Plan) -> str:
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
            + [str(cost.images_per_pass), *(f"{size / GIB:.1f}" for size in cost.activations)]
        )
    return markdown([*header, "images per pass", "activations (GiB)", "checkpointed (GiB)"], rows)


def memory_table(plan: Plan) -> str:
    """Return a table of what each GPU holds at the largest pass."""
    memory = plan.memory()
    sizes = [memory.student, memory.casts, memory.teachers, memory.targets, memory.activations]
    sums = [memory.total(is_checkpointed=checkpointed) for checkpointed in (False, True)]
    parts = ["student", "its bfloat16 copy", "teachers", "targets", "activations"]
    header = ["GiB on each GPU", *parts, "sum", "sum, checkpointed"]
    return markdown(header, [["largest pass", *(f"{size / GIB:.1f}" for size in (*sizes, *sums))]])


def storage_table(plan: Plan, image_kb: float) -> str:
    """Return a table of disk and network."""
    keep, data = plan.recipe.checkpoints.keep, plan.recipe.data
    files = plan.files_read()
    sizes = {
        ("weights of teachers, at least", "network once, and disk"): plan.download_bytes(),
        (f"checkpoints ({keep} kept of each stage) and exports", "disk"): plan.checkpoint_bytes(),
        (f"files of images, {files:,.0f} read in all", "network, or disk"): 1000 * image_kb * files,
        ("gradients, sent by each GPU in a step", "between GPUs"): plan.gradient_bytes(),
    }
    if plan.recipe.views.teachers == "cached":
        count = data.num_images or 1_000_000
        size = count * plan.cache_bytes_per_image(data.image_size_px)
        sizes[(f"feature cache of {count:,} images", "disk")] = size
    return markdown(["what", "where", "size"], [[*place, _bytes(size)] for place, size in sizes.items()])


def levers_table(plan: Plan) -> str:
    """Return a table of the run's operations with one thing changed, over those of the recipe."""
    whole, stages = plan.flops(), plan.stages
    levers = [
        ("one resolution per partition: its smallest", plan.flops([at_size(stage, min) for stage in stages])),
        ("one resolution per partition: its largest", plan.flops([at_size(stage, max) for stage in stages])),
    ]
    if plan.recipe.views.teachers == "online":
        names = len(plan.networks.teachers)
        split = plan.flops([with_split_teachers(stage) for stage in stages])
        cached = plan.flops(with_teachers=False)
        levers.append((f"images split over the {names} teachers", split))
        levers.append(("teachers' features cached: without the one pass that writes them", cached))
    return markdown(
        ["with one thing changed", "operations"], [[name, f"x {flops / whole:.2f}"] for name, flops in levers]
    )


def notes(plan: Plan, image_kb: float) -> str:
    """Return what is assumed, and what else would save or take, as a Markdown list."""
    costs = plan.costs[plan.stages[-1].name]
    total = sum(cost.flops for cost in costs)
    split = ", ".join(f"{cost.partition.name} {cost.flops / total:.0%}" for cost in costs)
    side = max(max(cost.partition.sizes_px) for cost in costs)
    size = plan.cache_bytes_per_image(side)
    heaviest = max(plan.networks.teachers.items(), key=lambda pair: pair[1].weight_bytes)
    lines = [
        "Assumed: the share of the peak (our choice: measure yours, and give it with `--mfu`; small students reach "
        f"less), {image_kb:g} kB for an image (our choice; `--image-kb`), float32 weights of teachers on the Hub, "
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
    lines += [f"This many GPUs could not run stage {name} as it is: {why}" for name, why in plan.refusals()]
    return "\n".join(f"- {line}" for line in lines)


def _millions(count: float) -> str:
    return _short(count / 1e6)


def _short(value: float) -> str:
    """Return a number with about three digits."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("h", SECONDS_PER_HOUR), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def _bytes(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{_short(count / size)} {unit}"
    return f"{count / 1e3:.0f} kB"
