"""Speed, memory and waits of each rank, gathered once in a logging interval."""

import logging
import re
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor

from modeling_radio.core.machine import peak_memory_mb
from modeling_radio.core.ranks import rows_of_all_ranks
from modeling_radio.training.hooks.base import StepHook
from modeling_radio.training.planning.costs import CARDS, Card, Networks, plan_stage
from modeling_radio.training.recipes.recipe import Recipe
from modeling_radio.training.targets.examples import Example
from modeling_radio.training.views.plan import PlannedBatch


logger = logging.getLogger(__name__)

_NO_SXM = re.compile(r"\b(PCIe|NVL)\b")  # such an H100 or H200 is slower than `CARDS` says


class Throughput(StepHook):
    """Counts the tokens of this rank, and compares all ranks at the end of an interval.

    Model FLOPs utilization (MFU; PaLM, https://arxiv.org/abs/2204.02311, appendix B) is the share of the GPUs' bfloat16
    peak that the operations of student and teachers make up: counted on the meta device, means over the sizes that a
    step may draw, without what gradient checkpointing computes again.

    Args:
        recipe: The recipe.
        accelerator: Accelerator of this rank.
    """

    def __init__(self, recipe: Recipe, accelerator: Accelerator) -> None:
        self.device, self.num_ranks = accelerator.device, accelerator.num_processes
        self._tokens = 0
        self._flops, self._peak = 0.0, 0.0
        card = card_of(accelerator.device)
        if card is not None and accelerator.is_main_process:
            self._peak = card.peak_flops * self.num_ranks
            self._flops = flops_of_step(recipe, self.num_ranks)

    def see(self, batch: PlannedBatch, example: Example, losses: Mapping[str, Tensor]) -> None:
        """Count the student's tokens of a part of a step, but for one that stands for no image."""
        if batch.weight:
            self._tokens += sum(shape.grid.num_tokens for shape in batch.shapes)

    def end_interval(self, num_steps: int, seconds: float, data_seconds: float, own_seconds: float) -> dict[str, float]:
        """Return what trackers get of the steps since the last call; all ranks must take part.

        Args:
            num_steps: Number of these steps.
            seconds: Time that they took.
            data_seconds: Time in which this rank waited for data.
            own_seconds: Seconds of the last step before this rank waited for another.

        Returns:
            `tokens_per_second` of the run, `mfu` on a known GPU, and for each rank `data_seconds` of a step and
            `memory_gib`, the peak so far. With several ranks `NAME/min`, `NAME/mean` and `NAME/max` of these two, of
            `rank_tokens_per_second` and of `own_seconds`; and `slowest_rank`, whose own seconds are the most.
        """
        own = {
            "rank_tokens_per_second": self._tokens / seconds,
            "data_seconds": data_seconds / num_steps,
            "memory_gib": _memory_gib(self.device),
            "own_seconds": own_seconds,
        }
        self._tokens = 0
        row = torch.tensor([list(own.values())], dtype=torch.float32, device=self.device)
        rows = rows_of_all_ranks(row, [1] * self.num_ranks)
        columns = dict(zip(own, rows.T.tolist(), strict=True))
        values = {"tokens_per_second": sum(columns["rank_tokens_per_second"])}
        if self._flops:
            values["mfu"] = self._flops * num_steps / seconds / self._peak
        if self.num_ranks == 1:
            return {**values, **{name: own[name] for name in ("data_seconds", "memory_gib")}}
        for name, column in columns.items():
            values |= {
                f"{name}/min": min(column),
                f"{name}/mean": sum(column) / len(column),
                f"{name}/max": max(column),
            }
        return {**values, "slowest_rank": columns["own_seconds"].index(max(columns["own_seconds"]))}


def card_of(device: torch.device) -> Card | None:
    """Return the card that a device is; None if its peak is not known."""
    return card_named(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def card_named(device_name: str) -> Card | None:
    """Return the card of a name that the driver gives, such as "NVIDIA H100 80GB HBM3"; None if it is not known."""
    if re.search(r"\bH[12]00\b", device_name) and _NO_SXM.search(device_name):
        return None
    found = [card for name, card in CARDS.items() if re.search(rf"\b{name.replace('-', ' ')}\b", device_name)]
    return found[0] if found else None


def flops_of_step(recipe: Recipe, num_ranks: int) -> float:
    """Return the operations of a step on all ranks together; 0 if they cannot be counted, which the log says."""
    try:
        costs = plan_stage(Networks(recipe), recipe, num_ranks)
    except ValueError as error:
        logger.warning("no MFU is logged: %s", error)
        return 0.0
    return sum(cost.flops if recipe.views.teachers == "online" else cost.student_flops for cost in costs)


def _memory_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return peak_memory_mb() * 1e6 / 2**30
