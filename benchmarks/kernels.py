"""Kernel starts of one real step of the large recipes, counted on a CPU on one rank's share of the step.

A GPU needs some microseconds to start a kernel, whatever the kernel computes: a small student's step on many GPUs is
bound by these starts. Their number does not depend on the widths of networks. So the step runs here with all blocks,
images and shapes of the recipe, but narrow networks of random weights, in bfloat16 by autocast as on a GPU.

Every operator that PyTorch's dispatcher runs is a start, except views and new memory. Operators on whole lists
(`_foreach`) count once. An attention counts as one, forward and backward, as PyTorch's fused kernels do; nothing is
attended here, so that images of 1,152 px need no minutes. Copies between host and device and exchanges between ranks
are not counted. Data workers are other processes, which start no kernels.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface

from benchmarks.data import draw_image
from benchmarks.measuring import MeasuringSettings, Row, report
from modeling_radio import RadioConfig
from modeling_radio.training.distillation import inputs, step, trainer
from modeling_radio.training.distillation.trainer import Distiller
from modeling_radio.training.planning.costs import CARDS, Networks
from modeling_radio.training.planning.memory import fit_accumulation
from modeling_radio.training.recipes.recipe import Recipe, load_recipe, stage_recipes
from modeling_radio.training.teachers.base import Teacher
from modeling_radio.training.teachers.published.architectures import PUBLISHED, published_config
from modeling_radio.training.views.plan import BatchPlan, Operations


SHARES = (("radio_s", 8), ("radio_s", 64), ("c_radio_v4_h", 64))
"""Recipes and numbers of ranks."""
CARD = CARDS["H100"]
"""Card whose memory decides `accumulation_steps: auto`."""
HEAD_DIM = 8
"""Width of an attention head of the narrow networks: the least that rotary positions can divide."""
NARROW = 32
"""Width of all hidden layers that are not of attention."""
MLP_WIDTHS = ("intermediate_size", "mlp_dim", "output_channels")
"""Fields of transformers' configurations."""
NUM_IMAGES, SIDE_PX = 8, 1536
NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias", "lift_fresh"}
"""Operators that only make memory or names for it; views are recognized by their signature."""
TEACHERS, STUDENT, LOSSES, BACKWARD, UPDATE = "teachers", "student", "losses", "backward", "optimizer, average"
"""Parts of a step."""
OTHER = "other"


class StepStarts(NamedTuple):
    """Counts of one step on one rank.

    Attributes:
        starts: Kernel starts by part of the step.
        passes: Forward passes of the student.
        shapes: Shapes of the student's images, each counted in each pass.
        calls: By teacher, the number of its network's calls and the mean of their tokens.
    """

    starts: Counter[str]
    passes: int
    shapes: int
    calls: dict[str, tuple[int, float]]


def run(settings: MeasuringSettings) -> None:
    """Count and report the steps of all recipes; in quick runs those of the first one."""
    shares = SHARES[:1] if settings.quick else SHARES
    rows = [row_of(name, num_ranks, count_step(name, num_ranks)) for name, num_ranks in shares]
    report(settings, "kernels", "kernels", "one step of the last stage", rows)


def row_of(recipe: str, num_ranks: int, counted: StepStarts) -> Row:
    """Return the counts as a row of the table."""
    calls = "; ".join(f"{name} {number} of {tokens:,.0f}" for name, (number, tokens) in counted.calls.items())
    return {
        "recipe": recipe,
        "GPUs": num_ranks,
        "passes": counted.passes,
        "shapes": counted.shapes,
        "starts": counted.starts.total(),
        **{part: counted.starts[part] for part in (TEACHERS, STUDENT, LOSSES, BACKWARD, UPDATE, OTHER)},
        "calls of tokens": calls,
    }


class _OneStart(torch.autograd.Function):
    """Stands for a fused attention: one operator forward and one backward."""

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # pyrefly: ignore[bad-override]
        """Return the values as if they were mixed, `(batch, heads, length, head_dim)`."""
        return value.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, ...]:  # pyrefly: ignore[bad-override]
        """Return gradients of query, key and value."""
        return (gradient.clone(),) * 3


def _attend(module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    """Attend in one start; arguments are those of transformers' attention functions."""
    return _OneStart.apply(query, key, value).transpose(1, 2), None


class StartCounter(TorchDispatchMode):
    """Counts operators that start a kernel, by the part of the step that runs them."""

    def __init__(self) -> None:
        super().__init__()
        self.starts: Counter[str] = Counter()
        self.part = OTHER

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not _is_view(func) and func.overloadpacket.__name__.lstrip("_") not in NO_KERNEL:
            in_backward = torch._C._current_graph_task_id() != -1
            self.starts[BACKWARD if in_backward else self.part] += 1
        return func(*args, **(kwargs or {}))

    @contextmanager
    def counts_as(self, part: str) -> Iterator[None]:
        """Count what runs within the context as a part of the step."""
        self.part, before = part, self.part
        try:
            yield
        finally:
            self.part = before

    def wrap(self, owner: Any, method: str, part: str) -> None:
        """Count calls of a method as a part of the step."""
        call: Callable[..., Any] = getattr(owner, method)

        def counted(*arguments: Any, **options: Any) -> Any:
            with self.counts_as(part):
                return call(*arguments, **options)

        setattr(owner, method, counted)


def _is_view(func: Any) -> bool:
    """Return whether an operator returns memory that it was given, and writes none."""
    results = [result.alias_info for result in func._schema.returns]
    return bool(results) and all(alias is not None and not alias.is_write for alias in results)


def count_step(name: str, num_ranks: int, changes: tuple[str, ...] = ()) -> StepStarts:
    """Return the counts of the last stage's second step on the first of `num_ranks` ranks.

    Args:
        name: A recipe with teachers that run at every step.
        num_ranks: Number of GPUs.
        changes: Further changes of the recipe.
    """
    AttentionInterface.register("sdpa", _attend)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        full = last_stage(load_recipe(name, [f"data.source={folder / 'images'}", *changes]))
        write_images(folder / "images")
        networks = Networks(full)
        operations = networks.operations(full)
        full = fit_accumulation(networks, full, num_ranks, CARD.memory_gib, operations)
        distiller = Distiller(narrowed(full, networks.student.config.num_attention_heads, folder), folder / "run")
        build_rank(distiller, num_ranks, networks.student.patch_size, operations)
        return _count(distiller)


def build_rank(distiller: Distiller, num_ranks: int, patch_size: int, operations: Operations) -> None:
    """Build the parts of a run of one process that computes the first rank's share of every step.

    Args:
        distiller: Distiller of a recipe for the images of `write_images`.
        num_ranks: Number of ranks of the whole run.
        patch_size: The student's patch in pixels.
        operations: See `BatchPlan`.
    """
    plan = BatchPlan(distiller.recipe, NUM_IMAGES // 2, 0, num_ranks, patch_size=patch_size, operations=operations)
    with patch.object(inputs, "plan_batches", lambda *_: plan):
        distiller.build()


def last_stage(recipe: Recipe) -> Recipe:
    """Return the last stage of a recipe as one that counts alike in every step: with MESA, statistics being fixed."""
    stage = (stage_recipes(recipe) or [recipe])[-1]
    return stage.replace(
        mesa=stage.mesa.replace(start_step=0),
        optimizer=stage.optimizer.replace(trunk_frozen_steps=0),
        schedule=stage.schedule.replace(num_steps=1000, warmup_steps=1),
        standardization=stage.standardization.replace(estimation_steps=0, calibration_steps=1),
        logging=stage.logging.replace(trackers=[], metrics_every_steps=None),
        student=stage.student.replace(init_from=None, passes_at_once=1),
        data=stage.data.replace(num_workers=1),
    )


def narrowed(recipe: Recipe, num_heads: int, folder: Path) -> Recipe:
    """Return a recipe whose networks keep all blocks and heads but are narrow, with random weights.

    Args:
        recipe: A stage of a recipe for published teachers.
        num_heads: Attention heads of the student.
        folder: Gets the configurations of the teachers.
    """
    teachers, head = [], {"hidden_size": NARROW, "num_inner_blocks": 0}
    for entry in recipe.teachers:
        target = folder / entry.source.replace("/", "--")
        narrow(entry.source).save_pretrained(target)
        options = {**entry.options, "weights": "random"}
        teachers.append(entry.replace(source=str(target), options=options))
    sizes = {"hidden_size": num_heads * HEAD_DIM, "num_attention_heads": num_heads}
    own = {"config": {**recipe.student.config, **sizes}, "adaptor": {**recipe.student.adaptor, **head}}
    student = recipe.student.replace(**own)
    return recipe.replace(teachers=teachers, student=student)


def narrow(source: str) -> Any:
    """Return the configuration of a published network with narrow layers."""
    config = published_config(source)
    width = config.num_attention_heads * HEAD_DIM
    if isinstance(config, RadioConfig):
        narrow_head = {"feature_dim": NARROW, "hidden_size": NARROW}
        heads = [{**head, **narrow_head, "summary_dim": head["summary_dim"] and NARROW} for head in config.adaptors]
        return RadioConfig.from_preset(PUBLISHED[source][1]["name"], hidden_size=width, adaptors=heads)
    for name, narrower in {"hidden_size": width, **dict.fromkeys(MLP_WIDTHS, NARROW)}.items():
        if name in config.to_dict():
            setattr(config, name, narrower)
    return config


def write_images(folder: Path) -> None:
    """Write images that are larger than every crop."""
    folder.mkdir()
    for number in range(NUM_IMAGES):
        draw_image(SIDE_PX, SIDE_PX, number).save(folder / f"{number}.jpg")


def _count(distiller: Distiller) -> StepStarts:
    """Run two steps, of which the second is counted: the first one makes the optimizer's state."""
    counter, parts, calls = StartCounter(), distiller.parts, dict[str, list[int]]()
    source: Any = parts.source
    for teacher in source.teachers.values():
        counter.wrap(teacher, "forward", TEACHERS)
        calls[teacher.name] = _tokens_of_calls(teacher)
    counter.wrap(parts.optimizer, "step", UPDATE)
    counter.wrap(parts.ema, "update_parameters", UPDATE)
    counter.wrap(step, "forward_groups", STUDENT)
    counter.wrap(trainer, "batch_losses", LOSSES)
    parts.student.train()
    examples = source.examples(lambda: parts.plan.steps(0, 2))
    distiller.train_step(examples)
    for tokens in calls.values():
        tokens.clear()
    with counter:
        distiller.train_step(examples)
    batches = parts.plan.step(1)
    shapes = sum(len(batch.groups) for batch in batches)
    means = {name: (len(tokens), sum(tokens) / len(tokens)) for name, tokens in calls.items() if tokens}
    return StepStarts(counter.starts, len(batches), shapes, means)


def _tokens_of_calls(teacher: Any) -> list[int]:
    """Return a list that gets the patches of each call of a teacher's network."""
    tokens: list[int] = []
    call = teacher._run_network

    def noted(normalized: Tensor, readers: Sequence[Teacher]) -> Any:
        count, _, height, width = normalized.shape
        tokens.append(count * (height // teacher.patch_size) * (width // teacher.patch_size))
        return call(normalized, readers)

    teacher._run_network = noted
    return tokens
