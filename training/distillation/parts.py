"""The parts of a run: the learner with its images, targets and measurements. `build.py` makes them."""

from dataclasses import dataclass

from torch import nn

from modeling_radio.model_cards.lineage import Lineage
from modeling_radio.training.distillation.cpu import ParallelPasses
from modeling_radio.training.distillation.learner import Learner
from modeling_radio.training.distillation.monitoring import Monitors, SkippedSteps
from modeling_radio.training.targets.examples import TargetSource
from modeling_radio.training.views.plan import BatchPlan


@dataclass(frozen=True)
class RunParts(Learner):
    """Everything that the steps of a run work with.

    Attributes:
        skipped: The count of skipped steps.
        plan: Images of each step on this rank.
        source: Images and the teachers' outputs of each batch, in the order of the plan.
        parallel_passes: Runs several passes of a step at the same time; None for one after the other.
        blueprint: Copy on the meta device into which FSDP's shards are gathered for the export; None if not sharded.
        fingerprint: Hash of the data's files, on the first rank.
        lineage: Teachers, weights and data that the student learns from, for its card.
        monitors: Measurements beside the losses.
    """

    skipped: SkippedSteps
    plan: BatchPlan
    source: TargetSource
    parallel_passes: ParallelPasses | None
    blueprint: nn.Module | None
    fingerprint: str
    lineage: Lineage
    monitors: Monitors
