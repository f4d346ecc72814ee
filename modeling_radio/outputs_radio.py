"""What the backbone returns: its outputs as transformers' `ModelOutput`."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from transformers.utils.generic import ModelOutput

from .resolution_radio import Resolution


FeatureFormat = Literal["NLC", "NCHW"]
"""Features as sequences of tokens, `(batch, rows * cols, dim)`, or as maps, `(batch, dim, rows, cols)`."""


def to_map(features: Tensor, grid: Resolution) -> Tensor:
    """Turn `(batch, rows * cols, dim)` into `(batch, dim, rows, cols)`."""
    return features.transpose(1, 2).unflatten(2, tuple(grid))


@dataclass
class RadioAdaptorOutput(ModelOutput):
    """What one adaptor predicts of its teacher.

    Attributes:
        summary: `(batch, summary_dim)`, or `None` if the teacher has no summary.
        features: `(batch, tokens, feature_dim)`, or `(batch, feature_dim, rows, cols)` in the "NCHW" format; an
            upsampling adaptor has `upsample_factor` times more rows and columns than the backbone.
    """

    summary: Tensor | None = None
    features: Tensor | None = None


@dataclass
class RadioIntermediateOutput(ModelOutput):
    """Summary and features after one block, shaped as in `RadioModelOutput`."""

    summary: Tensor | None = None
    features: Tensor | None = None


@dataclass
class RadioModelOutput(ModelOutput):
    """Output of `RadioModel`.

    Attributes:
        summary: Class tokens of the teachers with a summary, `(batch, num_summaries * hidden_size)`.
        features: Patch tokens, `(batch, rows * cols, hidden_size)`, or `(batch, hidden_size, rows, cols)` in the
            "NCHW" format.
        last_hidden_state: All tokens, prefix first, `(batch, num_prefix_tokens + rows * cols, hidden_size)`.
        hidden_states: On request the embeddings and each block's output, shaped like `last_hidden_state`.
        attentions: On request each block's weights, `(batch, heads, length, length)`; needs eager attention.
        pooler_output: The summary again, under the name that pipelines look for.
        adaptors: By adaptor name, its `RadioAdaptorOutput`.
    """

    summary: Tensor | None = None
    features: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    pooler_output: Tensor | None = None
    adaptors: dict[str, RadioAdaptorOutput] | None = None

    def __post_init__(self) -> None:
        # Pipelines split an output by indexing every item, nested ones included; an empty dictionary has none, so it is
        # kept as an attribute only.
        if self.adaptors:
            self.adaptors = ModelOutput(self.adaptors)
        super().__post_init__()
        if not self.adaptors:
            OrderedDict.pop(self, "adaptors", None)
