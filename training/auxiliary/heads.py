"""Auxiliary heads, called taps: heads that read the output of blocks within the trunk and learn from the teachers, too.

They are trained beside the student and dropped: neither its moving average nor an exported model has any.

References:
    Heads at inner blocks, as in UNIC's ladder, https://arxiv.org/abs/2408.05088, and SAK,
    https://arxiv.org/abs/2410.14633; hints, as in FitNets, https://arxiv.org/abs/1412.6550. The depth of each teacher
    is our choice.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.adaptors_radio import RadioHeadMLP
from modeling_radio.checks_radio import Resolution
from modeling_radio.configuration_radio import RadioAdaptorConfig
from modeling_radio.core.seeds import derive_seed
from modeling_radio.outputs_radio import (
    FeatureFormat,
    RadioAdaptorOutput,
    RadioAdaptorOutputs,
    RadioModelOutput,
    to_map,
)
from modeling_radio.training.hooks.base import HeadLosses, StepHook
from modeling_radio.training.losses.terms import LossTerm
from modeling_radio.training.recipes.recipe import Recipe
from modeling_radio.training.recipes.sections import Role
from modeling_radio.training.student.packing import StudentOutput
from modeling_radio.training.targets.examples import Example
from modeling_radio.training.views.plan import PlannedBatch


TAPS: dict[float, dict[Role, float]] = {
    1 / 3: {"basic": 0.8, "semantic": 0.15, "task": 0.05},
    2 / 3: {"basic": 0.15, "semantic": 0.7, "task": 0.15},
    1.0: {"basic": 0.05, "semantic": 0.15, "task": 0.8},
}
"""By depth of a tap, as a share of the trunk's blocks, what each role counts by there. All numbers are our choice:
nobody has published which depth is for whom."""

DECAYING_SHARE = 0.3
"""Last share of the run, in which the losses fade out, so that it ends on what is exported. Our choice."""


class Tap(NamedTuple):
    """One head.

    Attributes:
        block: Index of the block that it reads.
        teacher: The teacher that it is compared with.
        share: Factor of its losses relative to those of other taps.
    """

    block: int
    teacher: str
    share: float

    @property
    def name(self) -> str:
        """Name of its outputs and losses; no teacher's name has an "@"."""
        return f"{self.teacher}@{self.block}"


HeadPlan = tuple[Tap, ...]
"""The auxiliary heads of a run."""


def plan_heads(recipe: Recipe, config: RadioConfig) -> HeadPlan:
    """Return the taps of a run, from the first block to the last; shares of taps at the same block are added up.

    Args:
        recipe: Its teachers' roles decide the shares; with a `taps.weight` of 0 there are no taps.
        config: The student's.
    """
    if recipe.taps.weight == 0:
        return ()
    shares: dict[tuple[int, str], float] = {}
    for block, by_role in zip(tap_blocks(recipe, config), TAPS.values(), strict=True):
        for entry in recipe.teachers:
            assert entry.role is not None  # the recipe's rule
            shares[block, entry.name] = shares.get((block, entry.name), 0.0) + by_role[entry.role]
    return tuple(Tap(*place, share) for place, share in shares.items())


def tap_blocks(recipe: Recipe, config: RadioConfig) -> list[int]:
    """Return the block at each depth of `TAPS`: a depth of 1 is the last block.

    If any step may have ViTDet windows, only blocks that attend globally in such steps are taken, in steps without
    windows as well: a head belongs to one block, features of windowed blocks have seams at the borders of windows, and
    their class tokens are those of the last global block.
    """
    has_windows = any(each.vitdet_windows is not None for each in recipe.partitions)
    blocks = config.global_blocks if has_windows else range(config.num_hidden_layers)

    def distance(block: int, depth: float) -> tuple[float, int]:
        return round(abs(block + 1 - depth * config.num_hidden_layers), 6), -block  # the later of two equally near ones

    return [min(blocks, key=lambda block, depth=depth: distance(block, depth)) for depth in TAPS]


class TapHead(nn.Module):
    """A dense head and, for a teacher with a summary, a summary head: two linear layers each, as in adaptors.

    Args:
        config: The student's.
        adaptor: The teacher's adaptor; the head has its widths and reads its class token.
    """

    def __init__(self, config: RadioConfig, adaptor: RadioAdaptorConfig) -> None:
        super().__init__()
        assert adaptor.feature_dim is not None  # every teacher has features
        width = adaptor.feature_hidden_size or adaptor.hidden_size
        self.token_index = adaptor.token_index
        self.features = RadioHeadMLP(config.hidden_size, width, adaptor.feature_dim, 0)
        self.summary = None
        if adaptor.summary_dim is not None:
            self.summary = RadioHeadMLP(config.hidden_size, adaptor.hidden_size, adaptor.summary_dim, 0)

    def forward(self, images: Sequence[Tensor] | Tensor, num_prefix: int) -> RadioAdaptorOutput:
        """Return summary and features of the tokens of each image, `(images, length, hidden)` or a list by image.

        Features are `(images, patches, feature_dim)`, or for a list those of all images one after the other.
        """
        if isinstance(images, Tensor):
            patches, token = images[:, num_prefix:], images[:, self.token_index]
        else:
            patches = torch.cat([image[num_prefix:] for image in images])
            token = torch.stack([image[self.token_index] for image in images])
        return RadioAdaptorOutput(
            summary=None if self.summary is None else self.summary(token), features=self.features(patches)
        )


class Taps(StepHook, nn.Module):
    """The heads of all taps and their losses. Weights depend on the seed and on each tap alone.

    Args:
        taps: The planned taps.
        student: The student whose blocks they read.
        recipe: Its section `taps` has the weight of their losses.
    """

    def __init__(self, taps: HeadPlan, student: RadioModel, recipe: Recipe) -> None:
        super().__init__()
        self.taps, self._recipe, self._step = taps, recipe, 0
        self.blocks = sorted({tap.block for tap in taps})
        adaptors = {adaptor.name: adaptor for adaptor in student.config.adaptor_configs}
        self.heads = nn.ModuleDict()
        for tap in taps:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_seed(recipe.seed, "taps", tap.name))
                head = TapHead(student.config, adaptors[tap.teacher])
                self.heads[tap.name] = head.apply(student._init_weights)

    def describe(self) -> str:
        """Return one line with the teachers at each block."""
        parts = [
            f"block {block}: " + ", ".join(f"{tap.teacher} {tap.share:.3g}" for tap in self.taps if tap.block == block)
            for block in self.blocks
        ]
        return f"Taps: {'; '.join(parts)}."

    def extend(self, student: nn.Module) -> nn.Module:
        """Return the student with these heads."""
        return TappedStudent(cast(RadioModel, student), self)

    def begin_step(self, step: int, examples: Sequence[tuple[PlannedBatch, Example]]) -> None:
        """Note the step: the weight of the losses depends on it."""
        self._step = step

    def terms(
        self, batch: PlannedBatch, example: Example, output: StudentOutput, losses_of: HeadLosses
    ) -> dict[str, LossTerm]:
        """Return the losses of the heads, times the recipe's decay."""
        terms: dict[str, LossTerm] = {}
        for tap in self.taps:
            for kind, term in losses_of(tap.teacher, tap.name).items():
                weight = tap.share * self._weight(batch.step) * term.weight
                terms[f"tap_{kind}/{tap.name}"] = term._replace(weight=weight)
        return terms

    def scalars(self) -> dict[str, float]:
        """Return the weight of these losses."""
        return {"weight/taps": self._weight(self._step)}

    def _weight(self, step: int) -> float:
        return weight_at(self._recipe, step)

    def last_dense_linears(self, teacher: str) -> list[nn.Linear]:
        """Return the layers that predict a teacher's dense features; they follow its refits."""
        heads = [cast(TapHead, self.heads[tap.name]) for tap in self.taps if tap.teacher == teacher]
        return [cast(nn.Linear, head.features.final[-1]) for head in heads]


class TappedStudent(nn.Module):
    """A student and the heads of its taps in one forward pass.

    Args:
        student: The student, which is not changed.
        taps: The heads.
    """

    def __init__(self, student: RadioModel, taps: Taps) -> None:
        super().__init__()
        self.student = student
        self.taps = taps

    def forward(
        self,
        pixel_values: Tensor,
        image_grid_hw: Tensor | None = None,
        feature_format: FeatureFormat = "NLC",
        **options: Any,
    ) -> RadioModelOutput:
        """Return the features and the outputs of all heads; those of taps are among the adaptors' by the taps' names.

        Arguments are those of `RadioModel.forward`. The gradient of a tap ends at its block.
        """
        output = self.student(
            pixel_values,
            image_grid_hw=image_grid_hw,
            feature_format=feature_format,
            output_hidden_states=[block + 1 for block in self.taps.blocks],
            **options,
        )
        config = self.student.config
        outputs = RadioAdaptorOutputs(output.adaptors or {})
        images = {
            block: _by_image(output.hidden_states[block + 1], image_grid_hw, config.num_prefix_tokens)
            for block in self.taps.blocks
        }
        for tap in self.taps.taps:
            head_output = self.taps.heads[tap.name](images[tap.block], config.num_prefix_tokens)
            if feature_format == "NCHW":
                sides = (side // config.patch_size for side in pixel_values.shape[2:])
                head_output.features = to_map(head_output.features, Resolution(*sides))
            outputs[tap.name] = head_output
        return RadioModelOutput(features=output.features, adaptors=outputs)


def weight_at(recipe: Recipe, step: int) -> float:
    """Return the factor of the losses of taps in a 0-based step; over the last of them it falls along a cosine."""
    num_steps = recipe.schedule.num_steps
    steps_left, decay_steps = num_steps - step, math.ceil(DECAYING_SHARE * num_steps)
    decay = (1 - math.cos(math.pi * steps_left / decay_steps)) / 2 if steps_left < decay_steps else 1.0
    return recipe.taps.weight * decay


def _by_image(tokens: Tensor, image_grid_hw: Tensor | None, num_prefix: int) -> Sequence[Tensor] | Tensor:
    """Return normed tokens: `(batch, length, hidden)` as they are, a pack `(length, hidden)` as a list by image."""
    normed = F.layer_norm(tokens, tokens.shape[-1:])  # before any head, as blocks norm their input
    if image_grid_hw is None:
        return normed
    return normed.split([num_prefix + rows * cols for rows, cols in image_grid_hw.tolist()])


def build_heads(recipe: Recipe, student: RadioModel) -> Taps | None:
    """Return new auxiliary heads of a recipe; None without any."""
    return heads_of(plan_heads(recipe, student.config), student, recipe)


def heads_of(plan: HeadPlan, student: RadioModel, recipe: Recipe) -> Taps | None:
    """Return new auxiliary heads of a plan; None without any."""
    return Taps(plan, student, recipe) if plan else None


def with_heads(student: nn.Module, heads: StepHook | None) -> nn.Module:
    """Return the module that is trained: the student itself without further heads."""
    return student if heads is None else heads.extend(student)
