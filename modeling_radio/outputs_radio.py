"""Outputs of the network and of the models, as transformers' `ModelOutput`."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import register_pytree_node
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import ModelOutput

from .checks_radio import Resolution, own_name
from .layers_radio import ImagePack


FeatureFormat = Literal["NLC", "NCHW"]
"""Features as sequences of tokens, `(batch, rows * cols, dim)`, or as maps, `(batch, dim, rows, cols)`."""


def to_map(features: Tensor, grid: Resolution) -> Tensor:
    """Turn `(batch, rows * cols, dim)` into `(batch, dim, rows, cols)`."""
    return features.transpose(1, 2).unflatten(2, tuple(grid))


class RadioPair(NamedTuple):
    """Summary and features as NVIDIA's classes return them: `summary, features = pair`, or by name.

    Shapes are those of `RadioModelOutput` and `RadioAdaptorOutput`.
    """

    summary: Tensor | None
    features: Tensor | None

    def to(self, *args: Any, **kwargs: Any) -> "RadioPair":
        """Return both moved or cast, by the arguments of `Tensor.to`."""
        return RadioPair(*(None if part is None else part.to(*args, **kwargs) for part in self))


class RadioPairs(dict[str, RadioPair]):
    """Pairs by name, "backbone" first; other names of an adaptor's teacher (`SAME_TEACHER`) lead to it too."""

    def __missing__(self, name: str) -> RadioPair:
        own = own_name(name, self)
        if own == name:
            raise KeyError(name)
        return self[own]


register_pytree_node(
    RadioPairs,
    lambda pairs: (list(pairs.values()), list(pairs)),
    lambda values, names: RadioPairs(zip(names, values, strict=True)),
    serialized_type_name="modeling_radio.RadioPairs",
)


@dataclass
class RadioAdaptorOutput(ModelOutput):
    """Output of one adaptor: its prediction of a teacher.

    Attributes:
        summary: `(batch, summary_dim)`, or `None` if the teacher has no summary.
        features: `(batch, tokens, feature_dim)`, or `(batch, feature_dim, rows, cols)` in the "NCHW" format; an
            upsampling adaptor has `upsample_factor` times more rows and columns than the backbone.
    """

    summary: Tensor | None = None
    features: Tensor | None = None

    def detach(self) -> "RadioAdaptorOutput":
        """Return both without gradients; like `cpu` and `numpy` for callers that take each item of an output so."""
        return RadioAdaptorOutput(**{name: part.detach() for name, part in self.items()})

    def cpu(self) -> "RadioAdaptorOutput":
        """Return both on the CPU."""
        return RadioAdaptorOutput(**{name: part.cpu() for name, part in self.items()})

    def numpy(self) -> dict[str, Any]:
        """Return both as arrays, by name."""
        return {name: part.numpy() for name, part in self.items()}


class RadioAdaptorOutputs(ModelOutput):
    """By adaptor name, its `RadioAdaptorOutput`: a class of its own, since `torch.export` looks into no plain one.

    Built from names, or like a dictionary from another one, as Accelerate does, or from pairs, as `DataParallel` does.
    No dataclass: FSDP would look for the tensors that it waits for in its fields alone.
    """

    def __init__(
        self,
        outputs: Mapping[str, RadioAdaptorOutput] | Iterable[tuple[str, RadioAdaptorOutput]] = (),
        /,
        **named: RadioAdaptorOutput,
    ) -> None:
        for name, output in (dict(outputs) | named).items():
            self[name] = output

    def __getitem__(self, k: Any) -> Any:
        """Return an adaptor's output by the file's name, or by another name of the same teacher (`SAME_TEACHER`)."""
        return super().__getitem__(own_name(k, self) if isinstance(k, str) else k)


@dataclass
class RadioIntermediateOutput(ModelOutput):
    """Summary and features after one block, shaped as in `RadioModelOutput`."""

    summary: Tensor | None = None
    features: Tensor | None = None


class GlobalTokens(NamedTuple):
    """Output of RADIO1D's encoder.

    Attributes:
        tokens: `(batch, longest, global_hidden_size)`, zero behind the number of tokens of each image.
        prefix: Class tokens and registers, `(batch, num_prefix_tokens, global_hidden_size)`.
        mask: True for tokens that count, `(batch, longest)`.
    """

    tokens: Tensor
    prefix: Tensor
    mask: Tensor


class NetworkOutput(NamedTuple):
    """One pass of images through the transformer.

    Attributes:
        tokens: Output after the final norm, `(batch, length, hidden)`; of packed images `(1, length, hidden)`.
        embedded: Input of the first block, of the same shape.
        kept: By 0-based block, its output, of the same shape; the last one's before the final norm, unlike `tokens`.
        hidden_states: On request `embedded` and the output of every block, or of some with `None` in place of others;
            of packed images `(length, hidden)`, image after image in the order of the call.
        attentions: On request the weights of each block, as `join_runs` gives them.
        grid: Rows and columns of patches of each image, or of the largest one of a pack.
        pack: Order of packed images; `None` where all are of one size.
        num_clips: Clips of video, whose groups of frames are the batch; `None` of images.
        encoded: Output of RADIO1D's encoder; blocks, hidden states and attentions are the encoder's too, `tokens`
            the decoder's.
        is_decoded: Whether that decoder ran; without it `tokens` are the encoder's.
    """

    tokens: Tensor
    embedded: Tensor
    kept: dict[int, Tensor]
    hidden_states: tuple[Tensor | None, ...] | None
    attentions: tuple[Tensor | None, ...] | None
    grid: Resolution
    pack: ImagePack | None = None
    num_clips: int | None = None
    encoded: GlobalTokens | None = None
    is_decoded: bool = True

    def outputs_of(self, blocks: Sequence[int], last: int) -> list[Tensor]:
        """Return the outputs of blocks that stand for one token a patch: of RADIO1D's `last` one, the decoder's."""
        kept = self.kept if self.encoded is None else {**self.kept, last: self.tokens}
        return [kept[block] for block in blocks]


@dataclass
class RadioModelOutput(ModelOutput):
    """Output of `RadioModel`.

    `output["backbone"]` and `output[NAME]` of an adaptor are pairs, as in NVIDIA's outputs, which `to_pairs` returns.

    Attributes:
        summary: Class tokens of the teachers with a summary, `(batch, num_summaries * hidden_size)`.
        features: Patch tokens, `(batch, rows * cols, hidden_size)`, or `(batch, hidden_size, rows, cols)` in the
            "NCHW" format.
        last_hidden_state: All tokens, prefix first, `(batch, num_prefix_tokens + rows * cols, hidden_size)`.
        hidden_states: On request the embeddings and each block's output, shaped like `last_hidden_state`, or some of
            them, with `None` in place of the others.
        attentions: On request each block's weights, `(batch, heads, length, length)`; of a block with windows those of
            each window, `(batch * num_windows, heads, window**2, window**2)`, window after window of each image:
            interior, right strip, bottom strip, corner; where those at an edge are smaller, their weights end in zeros.
        pooler_output: The summary again, under the name that pipelines look for.
        adaptors: By adaptor name, its `RadioAdaptorOutput`.
        global_tokens: Tokens of RADIO1D's encoder, `(batch, num_tokens, hidden_size * 2**mergings)`, zero behind
            those of an image that has fewer. All of the above, but for hidden states and attentions, is then the
            decoder's, and `None` where it did not run.
        global_mask: True for those that count, `(batch, num_tokens)`.
        global_summary: The encoder's summary, `(batch, num_summaries * hidden_size * 2**mergings)`.
    """

    summary: Tensor | None = None
    features: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor | None, ...] | None = None
    attentions: tuple[Tensor | None, ...] | None = None
    pooler_output: Tensor | None = None
    adaptors: dict[str, RadioAdaptorOutput] | None = None
    global_tokens: Tensor | None = None
    global_mask: Tensor | None = None
    global_summary: Tensor | None = None

    def __post_init__(self) -> None:
        # Pipelines split an output by indexing every item, nested ones included; an empty dictionary has none, so it is
        # kept as an attribute only.
        adaptors = RadioAdaptorOutputs(**self.adaptors) if self.adaptors else self.adaptors
        self.adaptors = adaptors or None
        super().__post_init__()
        if adaptors is not None:
            self.adaptors = adaptors

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "adaptors" and value is not None and not value:
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def __getitem__(self, k: Any) -> Any:
        if not isinstance(k, str) or k in self:
            return super().__getitem__(k)
        return self._pairs()[k]

    def to_pairs(self) -> "RadioPair | RadioPairs":
        """Return NVIDIA's output: summary and features, or with adaptors such a pair by name, "backbone" first.

        Where RADIO1D's decoder did not run, the pair is the encoder's: `global_summary` and `global_tokens`.
        """
        return self._pairs() if self.adaptors else self._backbone_pair()

    def _pairs(self) -> RadioPairs:
        return RadioPairs({"backbone": self._backbone_pair(), **self._adaptor_pairs()})

    def _backbone_pair(self) -> RadioPair:
        if self.features is None and self.global_tokens is not None:
            return RadioPair(self.global_summary, self.global_tokens)
        return RadioPair(self.summary, self.features)

    def _adaptor_pairs(self) -> dict[str, RadioPair]:
        """Return the adaptors' outputs, which NVIDIA's code gives in float32 whatever the backbone runs in."""
        return {
            name: RadioPair(output.summary, output.features).to(torch.float32)
            for name, output in (self.adaptors or {}).items()
        }


@dataclass
class RadioZeroShotOutput(ModelOutput):
    """Output of `RadioForZeroShotImageClassification`, named as that of transformers' SigLIP.

    Attributes:
        loss: On request the contrastive loss of the pairs, scalar.
        logits_per_image: Similarity of each image with each text, `(num_images, num_texts)`: for probabilities sigmoid
            with a SigLIP tower, softmax over the texts with a CLIP tower (`probabilities` of the model).
        logits_per_text: The same transposed, `(num_texts, num_images)`.
        text_embeds: Unit vectors of the texts, `(num_texts, text_dim)`.
        image_embeds: Unit vectors of the images, `(num_images, text_dim)`.
        text_model_output: Output of the text tower, where hidden states or attention weights were asked for.
        vision_model_output: Output of the backbone, likewise.
    """

    loss: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    text_embeds: Tensor | None = None
    image_embeds: Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the fields that are not `None`, nested ones as tuples too."""
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


def gather_states(
    indices: Collection[int], states: Sequence[Tensor | None], pack: ImagePack | None
) -> tuple[Tensor | None, ...]:
    """Return hidden states as a call gives them: in the order of its images, `None` at indices that were not asked for.

    Args:
        indices: As `wanted_states` gives them.
        states: All that are there, some for other reasons; a pack's as `(1, length, hidden)`.
        pack: Order of packed images.
    """
    wanted = [state if index in indices else None for index, state in enumerate(states)]
    if pack is None:
        return tuple(wanted)
    return tuple(None if state is None else pack.concatenate(state) for state in wanted)


def join_runs(runs: Sequence[Tensor], batch_size: int) -> Tensor | None:
    """Return a block's attention weights as one tensor, segment after segment of each image.

    Args:
        runs: By run of segments, `(batch * count, heads, length, length)`.
        batch_size: Number of images.

    Returns:
        `(batch * segments, heads, longest, longest)`; where windows at an edge are smaller, their weights end in zeros.
        `None` of a block with an attention of the caller's, which records none.
    """
    if len(runs) < 2:
        return runs[0] if runs else None
    longest = max(run.shape[-1] for run in runs)
    padded = [F.pad(run, (0, longest - run.shape[-1]) * 2).unflatten(0, (batch_size, -1)) for run in runs]
    return torch.cat(padded, dim=1).flatten(0, 1)


def by_clip(value: Any, num_clips: int) -> Any:
    """Cut the first axis of every tensor of an output into `(clips, groups)`.

    Args:
        value: A tensor `(clips * groups, ...)`, `None`, or a tuple or an output of transformers' that holds such.
        num_clips: Clips of the batch.
    """
    if isinstance(value, Tensor):
        return value.unflatten(0, (num_clips, -1))
    if isinstance(value, ModelOutput):
        return type(value)(**{name: by_clip(entry, num_clips) for name, entry in value.items()})
    if isinstance(value, tuple):
        return tuple(by_clip(entry, num_clips) for entry in value)
    return value
