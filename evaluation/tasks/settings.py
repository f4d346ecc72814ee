"""Settings of the tasks, which `radio evaluate` shows among its own."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from modeling_radio.core.settings import OneOf, Settings, Spelling, read_names, require


RADSEG_STEPS = ("scra", "scga", "sliding", "denoising")
"""Arguments of `RadioForZeroShotImageClassification.segment`."""


class TaskSettings(Settings):
    """Settings of the tasks; the defaults follow the papers' protocols where there are any.

    Attributes:
        neighbors: Number of neighbors that vote in kNN, at most the gallery's images. 20 as in the papers.
        temperature: Divides the cosine in the exponent of a vote's weight. 0.07 as in the papers.
        templates: Prompts for the names of classes: OpenAI's 80, as in the papers, seven of them, or the bare name.
        zero_shot_sizes_px: Further sizes at which zero-shot accuracy is measured; none by default.
        probe_steps: Optimizer steps of segmentation and depth probes. 400 for some hundred images; the papers run
            80,000 or 160,000 on ADE20k.
        probe_learning_rate: Peak of AdamW without weight decay. The papers' 1e-3 tripled, for the short schedule.
        probe_warmup_steps: Steps over which the learning rate rises; 1500 in the papers.
        probe_schedule: Fall of the learning rate after that: a cosine, or a straight line as in the papers.
        window_px: Side of the windows of dense tasks; by default the model's own size.
        window_stride: Step from one window to the next as a share of a window. 2/3 as in AM-RADIO for ADE20k.
        shorter_px: Shorter side to which images are resized before windows are cut; by default that of the windows.
        radseg: Steps of RADSeg in open-vocabulary segmentation, see `segment`: scra, scga, sliding, denoising. Without
            sliding each window is compared alone. Windows are `window_px` and `window_stride`; by default RADSeg's.
        dense_source: Network that maps patches to the space of texts; see `segment`.
        sam3: Folder of SAM3 or its name on the Hub, whose trunk the checkpoint replaces in concept segmentation.
        consistency_sizes_px: Sides of the middle squares whose features are compared, the largest with each of the
            others; by default the range of the published models at low resolution, and one step beyond.
        switching_sizes_px: Sides of middle squares for mode switching: kNN and adaptors at each.
        resamples: Draws for the intervals.
    """

    title: ClassVar[str] = "tasks"
    seed: ClassVar[int] = 0
    """Seed of probes, choices of images and intervals: two evaluations of a checkpoint give the same numbers."""

    neighbors: int = Field(20, gt=0)
    temperature: float = Field(0.07, gt=0)
    templates: Literal["openai", "simple", "plain"] = "openai"
    zero_shot_sizes_px: list[int] = []
    probe_steps: int = Field(400, gt=0)
    probe_learning_rate: float = Field(3e-3, gt=0)
    probe_warmup_steps: int = Field(0, ge=0)
    probe_schedule: Literal["cosine", "linear"] = "cosine"
    window_px: int | None = Field(None, gt=0)
    window_stride: float = Field(2 / 3, gt=0, le=1)
    shorter_px: int | None = Field(None, gt=0)
    radseg: Annotated[list[str] | None, OneOf(RADSEG_STEPS), Spelling(read_names, "A,B|all|none")] = None
    dense_source: Literal["summary_head", "features"] = "summary_head"
    sam3: str = "facebook/sam3"
    consistency_sizes_px: list[int] = [128, 192, 256, 384, 512]
    switching_sizes_px: list[int] = [128, 256, 512, 1024]
    resamples: int = Field(1000, ge=100)

    @model_validator(mode="after")
    def _check_sizes(self) -> TaskSettings:
        for name in ("consistency_sizes_px", "switching_sizes_px"):
            sizes = getattr(self, name)
            require(len(set(sizes)) > 1 and min(sizes) > 0, name, sizes, "at least two different sizes above 0")
        if self.shorter_px is not None:
            is_enough = self.window_px is not None and self.shorter_px >= self.window_px
            require(is_enough, "shorter_px", self.shorter_px, "at least `window_px`, which must be given too")
        return self
