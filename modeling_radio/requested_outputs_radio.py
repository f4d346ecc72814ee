"""What a call asks for beyond its answer: hidden states of all blocks or of some, and attention weights."""

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import logging

from .config_checks_radio import integer
from .configuration_radio import RadioConfig
from .packs_radio import ImagePack


StatesWanted = bool | int | Sequence[int] | None
"""`output_hidden_states` of the models: all of them, none, or some by their place in the answer."""

logger = logging.get_logger(__name__)


def wanted_states(output_hidden_states: StatesWanted, config: RadioConfig) -> Collection[int] | None:
    """Return the places of the wanted hidden states in the answer: 0 before the first block, `i` after block `i`.

    Args:
        output_hidden_states: Of the call; `None` takes the configuration's. A place or a list of them, where negative
            ones count from the end, means those alone, as in transformers since 5.24.
        config: What decides how many there are.

    Returns:
        `None` if there are none to return.

    Raises:
        ValueError: If there is no such hidden state; transformers would pass over it in silence.
    """
    asked = config.output_hidden_states if output_hidden_states is None else output_hidden_states
    count = config.num_hidden_layers + 1
    if asked is None or isinstance(asked, bool):
        return range(count) if asked else None
    places = [asked] if isinstance(asked, int) else asked
    valid = integer(-count, count - 1)
    if not isinstance(places, Sequence) or not all(valid.holds(place) for place in places):
        raise ValueError(
            f"`output_hidden_states` must be True, False, or integers in [{-count}, {count - 1}], got {asked!r}."
        )
    return {place % count for place in places} or None


def gather_states(
    places: Collection[int], states: Sequence[Tensor | None], pack: ImagePack | None
) -> tuple[Tensor | None, ...]:
    """Return hidden states as a call gives them: in the order of its images, `None` in places that were not asked for.

    Args:
        places: As `wanted_states` gives them.
        states: All that are there, some for other reasons; a pack's as `(1, length, hidden)`.
        pack: Order of packed images.
    """
    wanted = [state if place in places else None for place, state in enumerate(states)]
    if pack is None:
        return tuple(wanted)
    return tuple(None if state is None else pack.concatenate(state) for state in wanted)


def check_attentions(config: RadioConfig, is_packed: bool) -> None:
    """Refuse attention weights of packed images, and tell once that they cost the fast attention.

    Raises:
        ValueError: If the images are packed.
    """
    if is_packed:
        raise ValueError(
            "`output_attentions` must be False with `image_grid_hw`, got True. Packed images have weights of unequal "
            "sizes: call the model with images of one size."
        )
    implementation = config._attn_implementation
    if implementation != "eager" and not torch.compiler.is_compiling():
        logger.warning_once(
            f"`attn_implementation` {implementation!r} gives no attention weights: calls with `output_attentions` take "
            "eager attention, which is slower and needs more memory."
        )


def join_runs(runs: Sequence[Tensor], batch_size: int) -> Tensor:
    """Return a block's attention weights as one tensor, segment after segment of each image.

    Args:
        runs: By run of segments, `(batch * count, heads, length, length)`.
        batch_size: Number of images.

    Returns:
        `(batch * segments, heads, longest, longest)`; where windows at an edge are smaller, their weights end in zeros.
    """
    if len(runs) == 1:
        return runs[0]
    longest = max(run.shape[-1] for run in runs)
    padded = [F.pad(run, (0, longest - run.shape[-1]) * 2).unflatten(0, (batch_size, -1)) for run in runs]
    return torch.cat(padded, dim=1).flatten(0, 1)
