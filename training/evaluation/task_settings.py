"""The settings of the tasks: numbers of neighbors, steps of probes, sizes, texts."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from foundation.settings import Settings, require
from modeling_radio.zero_shot_radio import DenseSource


class TaskSettings(Settings):
    """How tasks are measured; the defaults are the papers' protocols where there are any.

    Attributes:
        neighbors: That vote in kNN, where there are as many images to compare with. 20 as in the papers.
        temperature: Divides the cosine in the exponent of a vote's weight. 0.07 as in the papers.
        logistic_c: Inverse strength of the logistic regression's penalty, on standardized features.
        recall_at: Ranks up to which retrieval counts.
        templates: Prompts in which the names of classes stand: OpenAI's 80, as in the papers, seven of them, or the
            bare name.
        zero_shot_sizes_px: Sizes at which zero-shot accuracy is measured besides; none by default.
        probe_steps: Optimizer steps of segmentation and depth probes. 400 for some hundred images; the papers run
            80,000 or 160,000 on ADE20k.
        probe_learning_rate: Peak of AdamW without weight decay. The papers' 1e-3 tripled, for the short schedule.
        probe_warmup_steps: Steps over which it rises; 1500 in the papers.
        probe_schedule: How it falls after that: as a cosine, or in a straight line as in the papers.
        window_px: Side of the windows of dense tasks; the model's own size where it is left out.
        refinement: What open-vocabulary segmentation does with patches before texts are compared with them: nothing, or
            give each the mean of those that resemble it (SCRA of RADSeg).
        dense_source: Where the patches' place among texts comes from; see `segment`.
        consistency_sizes_px: Sides of the middle squares whose features are compared, the largest with each of the
            others; by default the range that the published models were trained for at low resolution, and one step
            beyond.
        switching_sizes_px: Sides of middle squares between which a model might change its mind: kNN and adaptors at
            each.
        compared_window: Side in tokens of the windows that are compared with global attention; null takes the model's
            own, and 16 where it has none.
        held_out_classes: Share of the classes that are unknown to detectors of what is out of distribution.
        resamples: Draws for the intervals.
        random_seed: Of probes, choices and intervals.
    """

    title: ClassVar[str] = "tasks"

    neighbors: int = Field(20, gt=0)
    temperature: float = Field(0.07, gt=0)
    logistic_c: float = Field(1.0, gt=0)
    recall_at: list[int] = Field([1, 5, 10], min_length=1)
    templates: Literal["openai", "simple", "plain"] = "openai"
    zero_shot_sizes_px: list[int] = []
    probe_steps: int = Field(400, gt=0)
    probe_learning_rate: float = Field(3e-3, gt=0)
    probe_warmup_steps: int = Field(0, ge=0)
    probe_schedule: Literal["cosine", "linear"] = "cosine"
    window_px: int | None = Field(None, gt=0)
    refinement: Literal["none", "correlation"] = "none"
    dense_source: DenseSource = "summary_head"
    consistency_sizes_px: list[int] = [128, 192, 256, 384, 512]
    switching_sizes_px: list[int] = [128, 256, 512, 1024]
    compared_window: int | None = Field(None, gt=0)
    held_out_classes: float = Field(0.5, gt=0, lt=1)
    resamples: int = Field(1000, ge=100)
    random_seed: int = 0

    @model_validator(mode="after")
    def _check_sizes(self) -> TaskSettings:
        for name in ("consistency_sizes_px", "switching_sizes_px"):
            sizes = getattr(self, name)
            require(len(set(sizes)) > 1 and min(sizes) > 0, name, sizes, "at least two different sizes above 0")
        require(min(self.recall_at) > 0, "recall_at", self.recall_at, "ranks above 0")
        return self
