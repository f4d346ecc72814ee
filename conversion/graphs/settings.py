"""What the commands that make one graph of a checkpoint have in common."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from conversion.graphs.models import FlatModel, FlatRadio, FlatTask, Window
from conversion.opening import open_model, open_task_model
from core.settings import Settings, Spelling, read_names, read_yaml, require


class GraphSettings(Settings):
    """Of what a graph is made, and where it goes.

    Attributes:
        checkpoint: Folder with config.json and weights.
        output: File to write.
        adaptors: Adaptors whose outputs are wanted; by default all that the checkpoint's `adaptor_names` lists.
        window_size: ViTDet window in tokens, or "global"; None for the model's own default. Height and width must be
            multiples of patch x window.
        head: Take the model of a task with its head, in place of features.
        fixed_size: Height and width in pixels where the graph shall take no others; detectors need it.
        verify: Compare with the model at several sizes.
        overwrite: Replace the output if it exists.
    """

    checkpoint: Path
    output: Path
    adaptors: Annotated[list[str] | None, Spelling(read_names, "A,B|all|none")] = None
    window_size: Annotated[Window, Spelling(read_yaml, "TOKENS|global")] = None
    head: bool = False
    fixed_size: list[Annotated[int, Field(gt=0)]] | None = Field(None, min_length=2, max_length=2)
    verify: bool = True
    overwrite: bool = False

    @model_validator(mode="after")
    def _check_head(self) -> "GraphSettings":
        rule = "left out with `head`, whose outputs are those of the task"
        require(not (self.head and self.adaptors), "adaptors", self.adaptors, rule)
        return self

    def wrap(self) -> FlatModel:
        """Open the checkpoint in float32, with its outputs as a graph has them.

        Raises:
            ValueError: As `open_model`, `open_task_model` and the wrapping classes.
        """
        if self.head:
            return FlatTask(open_task_model(self.checkpoint).float(), self.window_size, self.fixed_size)
        model = open_model(self.checkpoint).float()
        return FlatRadio(model, self.adaptors, self.window_size, self.fixed_size)
