"""The networks of a run: the student, and the teachers and how they run."""

import re
from typing import Annotated, Any, Literal

from annotated_types import Ge
from pydantic import Field, model_validator
from torch import nn

from foundation.settings import require
from training.recipe_sections.base import INDECISIVE, STAGELESS, Named, RecipeSection
from training.recipe_sections.teaching import Role


RunModeName = Literal["native", "fixed", "mosaic"]
Upsampling = Literal["bilinear", "tiles", "featsharp"]
Precision = Literal["float32", "bfloat16"]


class StudentRecipe(RecipeSection):
    """The student network. Its adaptors and class tokens follow from the teachers.

    Attributes:
        preset: Name of a `RadioConfig` preset to start from; None for the config's defaults.
        config: Fields of `RadioConfig` that differ from it.
        adaptor: Fields of `RadioAdaptorConfig` for every teacher's adaptor; a teacher's own `adaptor` wins.
        positions: How the position table starts: "normal" (random, as published) or "sincos" (two-dimensional sines,
            which a short run learns from much faster).
        attention: Implementation of transformers in training, for example "sdpa" or "eager"; small bfloat16 batches on
            a CPU are faster with "eager".
        gradient_checkpointing: Keep only each block's input for the backward pass and compute the rest again: about a
            third more time for a fraction of the memory.
        compile: Compile every block with `torch.compile`.
        passes_at_once: Accumulated parts of a step that run at the same time on the cores of a CPU, in one process and
            without noise or dropout; elsewhere they run one after the other.
        init_from: Folder or Hub id of a checkpoint to start from, ours or NVIDIA's: its trunk, and heads and class
            tokens of the teachers that it shares with the recipe. Or of a plain ViT of transformers or timm (DINOv2,
            DINOv3, SigLIP, SigLIP2, MAE, ViT), or the name of a teacher of the recipe that is one: its trunk. None for
            fresh weights.
        init_blocks: Which blocks of it become the student's, in order, counted from 0; None for all.
        num_tokens: Nested dropout of a RADIO1D student (`student.config.downscale_levels`): how many global tokens of
            an image reach the decoder in a step. "triangular" (density 2 - 2x, as published), "uniform", "beta" (mode
            at a quarter), or all, "fixed" or None.
    """

    preset: str | None = None
    config: dict[str, Any] = {}
    adaptor: dict[str, Any] = {}
    positions: Literal["normal", "sincos"] = "normal"
    attention: str = "sdpa"
    gradient_checkpointing: Annotated[bool, INDECISIVE] = False
    compile: Annotated[bool, INDECISIVE] = False
    passes_at_once: Annotated[int, INDECISIVE] = Field(1, gt=0)
    init_from: Annotated[str | None, STAGELESS] = None
    init_blocks: Annotated[list[Annotated[int, Ge(0)]] | None, STAGELESS] = None
    num_tokens: Literal["triangular", "uniform", "beta", "fixed"] | None = None

    @model_validator(mode="after")
    def _check_blocks(self) -> "StudentRecipe":
        rule = "null without `student.init_from`"
        require(self.init_blocks is None or self.init_from is not None, "init_blocks", self.init_blocks, rule)
        return self


class RunOptions(RecipeSection):
    """How a teacher runs; `training.teachers.run_modes` has a class for each way.

    Attributes:
        run_mode: "native" (at the student's size), "fixed" (at one size, features resampled) or "mosaic" (at one size,
            many images in a pass); None for the kind's default, or "fixed" where a size is given.
        input_size_px: Side of the square that it sees in the modes "fixed" and "mosaic"; None for its native size.
        upsample: How the mode "fixed" comes by a grid finer than the teacher's own: "bilinear", "tiles" (adds their
            detail, untrained), or "featsharp" (by a network that `training.train_upsampler` made for it).
        upsampler: Folder of that network.
        precision: "float32", or "bfloat16" for autocast; answers are float32 either way.
    """

    run_mode: RunModeName | None = None
    input_size_px: int | None = Field(None, gt=0)
    upsample: Upsampling = "bilinear"
    upsampler: str | None = None
    precision: Precision = "float32"

    @model_validator(mode="after")
    def _check_upsampler(self) -> "RunOptions":
        rule = "a folder that training.train_upsampler wrote with `upsample` 'featsharp', and null without"
        require((self.upsample == "featsharp") == bool(self.upsampler), "upsampler", self.upsampler, rule)
        return self


class TeacherRecipe(RunOptions, Named):
    """One frozen teacher.

    Attributes:
        name: The adaptor's name: the same string in config, checkpoint keys and logs.
        kind: Registered kind of `training.teachers`, or the import path of a class, "my_package.my_module:MyTeacher".
        source: Hub id or folder; None where the kind knows its own.
        options: Further arguments of that kind, for example which layer.
        device: Where it runs, for example "cuda:1"; None for the student's device.
        compile: Compile its network with `torch.compile`.
        feature_weight: Factor of its dense loss.
        summary_weight: Factor of its summary loss, where it has a summary.
        adaptor: Fields of `RadioAdaptorConfig` for this adaptor, for example `hidden_size`.
        role: What it is learned for, "basic" features, "semantic" ones or those of a "task": decides its prior where
            `balancing.method` is "adaptive", and the depth of its taps (`taps.scheme`); otherwise not used.
    """

    kind: str
    source: str | None = None
    options: dict[str, Any] = {}
    device: Annotated[str | None, INDECISIVE] = None
    compile: Annotated[bool, INDECISIVE] = False
    feature_weight: float = Field(1.0, ge=0)
    summary_weight: float = Field(1.0, ge=0)
    adaptor: dict[str, Any] = {}
    role: Role | None = None

    @model_validator(mode="after")
    def _check(self) -> "TeacherRecipe":
        # PyTorch keeps the heads in a `ModuleDict`, which takes no name of its own attributes and methods.
        is_name = re.fullmatch(r"[\w-]+", self.name) is not None and not hasattr(nn.ModuleDict(), self.name)
        require(is_name, "name", self.name, "of letters, digits, '_' and '-', and no word of PyTorch's such as 'keys'")
        for key in self.options:
            rule = f"written one level up, as teachers.{self.name}.{key}"
            require(key not in type(self).model_fields, f"options.{key}", self.options[key], rule)
        return self

    def run_options(self) -> RunOptions:
        """Return how it runs."""
        return RunOptions(**self.model_dump(include=set(RunOptions.model_fields)))
