"""What the network takes: checks of images, packs, draws and options, before anything is computed.

Keyword arguments that are not ours: which of them the models take, and why; every other one is a mistake.

transformers hands the same keyword arguments to all parts of a model, and so do peft, `Trainer` and code that was
written for another vision model. What says nothing to us is passed over; what would change the answer of a model that
reads it is taken only where it asks for what we do.

What a call asks for beyond its answer: hidden states of all blocks or of some, and attention weights.

What the network takes as one batch: images of one size, or a pack of images of different sizes.

Clips of video, a third kind, are in `video_radio.py`, which only calls with clips import.

Clips of video: their frames in temporal patches, their common position crop, and outputs clip by clip.
"""

import inspect
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import logging
from transformers.utils.generic import ModelOutput

from .checks_radio import LARGEST, WORD, Resolution, Rule, check_choice, did_you_mean, integer, listed
from .configuration_radio import RadioConfig, check_resolution, largest_side
from .layers_radio import PATH_DRAWS, POSITION_DRAWS, AttentionLayout, ImagePack


def check_images(pixel_values: Any, config: RadioConfig, argument: str = "pixel_values") -> Resolution:
    """Return the rows and columns of patches of a batch of images.

    Args:
        pixel_values: RGB images in [0, 1], `(batch, channels, height, width)`.
        config: What decides the channels and the size.
        argument: What they, or the clips whose frames they are, were given as.

    Raises:
        ValueError: If shape, size or type are wrong.
    """
    _check_tensor(argument, pixel_values)
    if pixel_values.ndim != 4 or pixel_values.shape[0] < 1:
        hint = " Clips are `pixel_values_videos`." if pixel_values.ndim == 5 else ""
        raise ValueError(
            f"`{argument}` must have the shape (batch, channels, height, width) with at least one image, got "
            f"{tuple(pixel_values.shape)}.{hint}"
        )
    channels, height, width = pixel_values.shape[1:]
    if channels != config.num_channels:
        raise ValueError(f"`{argument}` must have {config.num_channels} channels, got {channels}.")
    _check_pixel_type(pixel_values, argument)
    if torch.jit.is_tracing():
        height, width = int(height), int(width)  # tensors there; a trace is of one size
    check_resolution(config, height, width, argument)
    return Resolution(height // config.patch_size, width // config.patch_size)


def check_merging(config: RadioConfig, num_tokens: object, *, decode: bool, is_packed: bool) -> None:
    """Refuse what only RADIO1D can do of a plain network, and what RADIO1D cannot do.

    Raises:
        ValueError: If the call asks for it.
    """
    if config.num_mergings:
        if is_packed:
            raise ValueError(
                "`image_grid_hw` must be None with `downscale_levels`, got a tensor. Merged tokens are not packed: "
                "call the model with images of one size, `(batch, channels, height, width)`."
            )
        return
    name, value, default = ("decode", decode, True) if num_tokens is None else ("num_tokens", num_tokens, None)
    if value is not default:
        shown = f"a tensor of {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise ValueError(
            f"`{name}` must be {default}, got {shown}. This network has one token for each patch and no decoder; "
            "RADIO1D has them, for example the preset 'c-radio_v4-1d-h'."
        )


def _check_tensor(name: str, value: object) -> None:
    """Raise a `ValueError` where something else comes than a tensor."""
    if not isinstance(value, Tensor):
        raise ValueError(f"`{name}` must be a tensor, got a {type(value).__name__}. The image processor returns one.")


def _check_pixel_type(pixel_values: Tensor, argument: str) -> None:
    """Raise a `ValueError` for pixels that are no fractions."""
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"`{argument}` must be floating point in [0, 1], got {pixel_values.dtype}. Divide by 255 or use the "
            "image processor."
        )


def check_pack(patches: Any, image_grid_hw: Any, config: RadioConfig) -> ImagePack:
    """Return the order of a packed sequence.

    Args:
        patches: Flattened patches of all images, `(total_patches, channels * patch_size**2)`.
        image_grid_hw: Rows and columns of patches of each image, `(num_images, 2)`.
        config: What decides the size of a patch and the largest grid.

    Raises:
        ValueError: If the shapes do not fit each other, or a grid is too large.
    """
    _check_tensor("pixel_values", patches)
    _check_pixel_type(patches, "pixel_values")
    _check_tensor("image_grid_hw", image_grid_hw)
    is_list_of_pairs = image_grid_hw.ndim == 2 and image_grid_hw.shape[1] == 2 and len(image_grid_hw)
    if not is_list_of_pairs or image_grid_hw.is_floating_point() or image_grid_hw.is_complex():
        raise ValueError(
            "`image_grid_hw` must be integers of the shape (num_images, 2) with at least one image, got "
            f"{image_grid_hw.dtype} of {tuple(image_grid_hw.shape)}."
        )
    pack = ImagePack(image_grid_hw, config.num_prefix_tokens)
    expected = (sum(rows * cols for rows, cols in pack.grids), config.num_channels * config.patch_size**2)
    if patches.shape != expected:
        raise ValueError(
            f"`pixel_values` must have the shape {expected} for this `image_grid_hw`, got {tuple(patches.shape)}."
        )
    largest = largest_side(config) // config.patch_size
    if any(not 1 <= size <= largest for grid in pack.grids for size in grid):
        grids = [tuple(grid) for grid in pack.grids]
        raise ValueError(f"`image_grid_hw` must lie in [1, {largest}] patches, got {grids}.")
    return pack


def check_names(names: Sequence[str]) -> None:
    """Raise a `ValueError` unless names of adaptors are a list of them."""
    listed(WORD).check("adaptor_names", names)


def count_from_first(indices: Sequence[int], depth: int) -> list[int]:
    """Return 0-based blocks, of which negative ones were counted from the last.

    Raises:
        ValueError: If there is something else than integers.
    """
    if not isinstance(indices, Sequence) or not all(integer(-LARGEST).holds(index) for index in indices):
        raise ValueError(f"`indices` must be a list of integers, got {indices!r}.")
    return [index + depth if index < 0 else index for index in indices]


def check_feature_format(feature_format: str, is_packed: bool, *, argument: str = "feature_format") -> None:
    """Raise a `ValueError` that names the argument for an unknown format, or maps of packed images."""
    check_choice(argument, feature_format, ("NLC", "NCHW"))
    if is_packed and feature_format != "NLC":
        raise ValueError(
            f"`{argument}` must be 'NLC' with `image_grid_hw`, got {feature_format!r}. Packed images have no "
            "common grid."
        )


def count_draws(config: RadioConfig) -> int:
    """Return how many random numbers decide one image's training pass: its position crop and its dropped paths."""
    return POSITION_DRAWS + PATH_DRAWS * config.num_hidden_layers


def split_draws(
    draws: Tensor | None, config: RadioConfig, num_images: int
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Return the draws of position crops and of dropped paths.

    Args:
        draws: Uniform numbers in [0, 1), `(num_images, count_draws(config))`, or `None`.
        config: What decides how many there are.
        num_images: Of the batch or the pack.

    Returns:
        `(num_images, POSITION_DRAWS)` and `(num_images, 1, blocks, PATH_DRAWS)`, or `None` twice.

    Raises:
        ValueError: If the shape is wrong.
    """
    if draws is None:
        return None, None
    _check_tensor("draws", draws)
    expected = (num_images, count_draws(config))
    if draws.shape != expected:
        raise ValueError(f"`draws` must have the shape {expected}, got {tuple(draws.shape)}.")
    return draws[:, :POSITION_DRAWS], draws[:, None, POSITION_DRAWS:].unflatten(2, (-1, PATH_DRAWS))


def warn_of_pixel_range(pixel_values: Tensor) -> bool:
    """Warn if images look normalized or in [0, 255], and return whether they do.

    A sample of the pixels tells; only on the CPU, since elsewhere looking at values would wait for the device.
    """
    if torch.compiler.is_compiling() or pixel_values.device.type != "cpu" or not pixel_values.numel():
        return False
    low, high = (bound.item() for bound in pixel_values.detach()[..., ::4, ::4].aminmax())
    is_suspect = low < -0.5 or high > 1.5  # our choice: resampling overshoots [0, 1] by far less
    if is_suspect:
        warnings.warn(
            f"`pixel_values` must lie in [0, 1], got [{low:.2f}, {high:.2f}]. The model normalizes inside: pass RGB "
            "divided by 255 and nothing more.",
            stacklevel=3,
        )
    return is_suspect


_NOTHING = Rule("None", lambda value: value is None)
_ANYTHING = Rule("anything", lambda value: True)

# peft's feature extraction gives all models what language models read, each as `None`.
_OF_TEXT = ("input_ids", "attention_mask", "inputs_embeds", "position_ids")

# What composite models and `Trainer` give all of their parts (`TransformersKwargs`): of their texts and their loss.
_OF_OTHER_PARTS = (
    "num_items_in_batch",
    "output_router_logits",
    "cu_seq_lens_q",
    "cu_seq_lens_k",
    "max_length_q",
    "max_length_k",
    "seq_idx",
)

FOREIGN_ARGUMENTS: dict[str, Rule] = {
    **dict.fromkeys(_OF_TEXT, _NOTHING),
    **dict.fromkeys(_OF_OTHER_PARTS, _ANYTHING),
    # Attention goes both ways; language models around us ask for the other one of themselves.
    "is_causal": Rule("False or None", lambda value: value in (None, False)),
    # Other ViTs resize their positions only if asked to; here any size that the patch divides fits.
    "interpolate_pos_encoding": _ANYTHING,
}
"""By name what a keyword argument may be that a model takes without a parameter of that name."""


def check_call_arguments(model: nn.Module, arguments: Mapping[str, Any], method: str = "forward") -> None:
    """Refuse keyword arguments that neither the model nor `FOREIGN_ARGUMENTS` knows, or that ask for what is not done.

    Args:
        model: What was called.
        arguments: Those that no parameter has taken.
        method: Name of what was called of it.

    Raises:
        TypeError: If one is unknown, as from Python itself; the message suggests the nearest known one.
        ValueError: If a known one has a value that would not be heeded.
    """
    for name, value in arguments.items():
        if name not in FOREIGN_ARGUMENTS:
            hint = did_you_mean(name, _known_arguments(getattr(model, method)))
            raise TypeError(f"Unknown argument {name!r} of {type(model).__name__}.{method}.{hint}")
        if not FOREIGN_ARGUMENTS[name].holds(value):
            found = repr(value) if isinstance(value, (bool, int, str)) else f"a {type(value).__name__}"
            rule = FOREIGN_ARGUMENTS[name].text
            raise ValueError(f"`{name}` must be {rule}, got {found}. {type(model).__name__} does not read it.")


def _known_arguments(function: Callable[..., Any]) -> list[str]:
    """Return the names of all keyword arguments that a method takes, its own ones first."""
    parameters = inspect.signature(function).parameters.values()
    own = [each.name for each in parameters if each.kind != inspect.Parameter.VAR_KEYWORD]
    return [*own, "return_dict", *(name for name in FOREIGN_ARGUMENTS if name not in own)]


TokensWanted = int | Sequence[int] | Tensor | None
"""`num_tokens` of the models: for all images, for each, or all that there are."""

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


class ImageBatch:
    """Images of one size, checked.

    Args:
        pixel_values: RGB images in [0, 1], `(batch, channels, height, width)`.
        config: What decides the channels and the size.
        argument: What they were given as.

    Attributes:
        pixels: As given.
        grid: Rows and columns of patches of each image, or of the largest one of a pack.
        num_images: How many the call has; each has its own random numbers.
        pack: Order of packed images; `None` where all are of one size.
        num_clips: Clips of video, whose groups of frames are the batch; `None` of images.

    Raises:
        ValueError: If shape, size or type are wrong.
    """

    grid: Resolution
    num_images: int
    pack: ImagePack | None = None
    num_clips: int | None = None

    def __init__(self, pixel_values: Any, config: RadioConfig, argument: str = "pixel_values") -> None:
        self.config, self.pixels = config, pixel_values
        self.grid = check_images(pixel_values, config, argument)
        self.num_images = pixel_values.shape[0]

    def draw(self, training: bool) -> Tensor | None:
        """Return the random numbers of a call that gives none; `None` leaves them to where they are needed."""
        return None

    def embed(self, network: Any, draws: Tensor | None) -> Tensor:
        """Return the tokens `(batch, length, hidden)`, by the network's conditioner and patch generator.

        Args:
            network: A `RadioNetwork`.
            draws: What decides each image's position crop in training, `(num_images, POSITION_DRAWS)`.
        """
        generator = network.model.patch_generator
        return generator(generator.split_patches(network.input_conditioner(self.pixels)), *self.grid, draws)

    def layout(self, window_size: int | None, device: torch.device) -> AttentionLayout:
        """Return which tokens attend to each other, in windows of a side in tokens or all."""
        return AttentionLayout.for_grid(*self.grid, self.config.num_prefix_tokens, window_size, device)

    def spread(self, by_image: Tensor | None) -> Tensor | None:
        """Return what belongs to each image, `(num_images, ...)`, for each entry of the batch of tokens."""
        return by_image


class PackedImages(ImageBatch):
    """Images of different sizes in one sequence, checked.

    Args:
        patches: Flattened patches of all images, `(total_patches, channels * patch_size**2)`.
        image_grid_hw: Rows and columns of patches of each image, `(num_images, 2)`.
        config: What decides the size of a patch and the largest grid.

    Raises:
        ValueError: If the shapes do not fit each other, or a grid is too large.
    """

    pack: ImagePack  # pyrefly: ignore[bad-override-mutable-attribute]

    def __init__(self, patches: Any, image_grid_hw: Any, config: RadioConfig) -> None:
        self.config, self.pixels = config, patches
        self.pack = check_pack(patches, image_grid_hw, config)
        self.grid, self.num_images = self.pack.largest_grid, len(self.pack.grids)

    def draw(self, training: bool) -> Tensor | None:
        """Return numbers of each image, as where they are not packed."""
        return torch.rand(self.num_images, count_draws(self.config), device=self.pixels.device) if training else None

    def embed(self, network: Any, draws: Tensor | None) -> Tensor:
        """Return the tokens `(1, length, hidden)` in the order of the pack."""
        size = self.config.patch_size
        images = self.pixels.view(-1, self.config.num_channels, size, size)
        patches = network.input_conditioner(images).flatten(1)
        return network.model.patch_generator(patches, *self.grid, draws, self.pack)

    def layout(self, window_size: int | None, device: torch.device) -> AttentionLayout:
        return self.pack.layout(window_size, device)

    def spread(self, by_image: Tensor | None) -> Tensor | None:
        return None if by_image is None else self.pack.spread(by_image)


def batch_of_call(images: Any, image_grid_hw: Any, videos: Any, config: RadioConfig) -> ImageBatch:
    """Return what a call gives to the network, checked.

    Args:
        images: What was given as `pixel_values`.
        image_grid_hw: Grids of packed images.
        videos: What was given as `pixel_values_videos`.
        config: What decides sizes, and the number of frames in a group.

    Raises:
        ValueError: If there are images and clips, or neither, or they are not what they must be.
    """
    if videos is None:
        if images is None:
            raise ValueError("`pixel_values` or `pixel_values_videos` must be given, got None for both.")
        return ImageBatch(images, config) if image_grid_hw is None else PackedImages(images, image_grid_hw, config)
    for name, value in (("pixel_values", images), ("image_grid_hw", image_grid_hw)):
        if value is not None:
            raise ValueError(f"`{name}` must be None with `pixel_values_videos`, got both. Call once for each.")

    return Clips(videos, config)


class Clips(ImageBatch):
    """A batch of clips as the network takes it: groups of frames, each of which becomes one image's tokens.

    A group is `config.video_temporal_patch_size` frames, whose patches are projected together; the last frame is
    repeated where the frames do not fill the last group. Without that field each frame is a group, and its patches are
    an image's. No group sees another one.

    Args:
        frames: RGB frames in [0, 1], `(clips, frames, channels, height, width)`.
        config: What decides the number of frames in a group.

    Attributes:
        pixels: All frames, clip after clip, `(clips * frames, channels, height, width)`.
        group_size: Frames of a group.
        num_groups: Groups of each clip.

    Raises:
        ValueError: If it is no such tensor.

    References:
        Temporal patches: transformers' `RadioModel`, and NVIDIA's Nemotron-3-Nano-Omni, whose vision encoder it is.
    """

    def __init__(self, frames: Any, config: RadioConfig) -> None:
        shape = tuple(frames.shape) if isinstance(frames, Tensor) else f"a {type(frames).__name__}"
        if not isinstance(frames, Tensor) or frames.ndim != 5 or not frames.shape[0] or not frames.shape[1]:
            raise ValueError(
                "`pixel_values_videos` must be a tensor of the shape (clips, frames, channels, height, width) with at "
                f"least one frame, got {shape}."
            )
        super().__init__(frames.flatten(0, 1), config, "pixel_values_videos")
        self.num_clips = self.num_images = frames.shape[0]
        self.is_temporal = config.video_temporal_patch_size is not None
        self.group_size = config.video_temporal_patch_size or 1
        self.num_groups = -(-frames.shape[1] // self.group_size)

    def embed(self, network: Any, draws: Tensor | None) -> Tensor:
        """Return the tokens `(clips * groups, length, hidden)`; the groups of a clip share its `draws`."""
        generator = network.model.patch_generator
        patches = generator.split_patches(self._group(network.input_conditioner(self.pixels)))
        draws = self._share_positions(draws, network.training)
        return generator(patches, *self.grid, draws, temporal=self.is_temporal)

    def _group(self, frames: Tensor) -> Tensor:
        """Join all frames to groups, `(clips * groups, group_size * channels, height, width)`."""
        frames = frames.unflatten(0, (self.num_images, -1))
        missing = self.num_groups * self.group_size - frames.shape[1]
        if missing:
            frames = torch.cat([frames, frames[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)
        return frames.unflatten(1, (self.num_groups, self.group_size)).flatten(2, 3).flatten(0, 1)

    def _share_positions(self, draws: Tensor | None, training: bool) -> Tensor | None:
        """Return the random numbers that decide each group's position crop: those of its clip.

        Args:
            draws: Of each clip, `(clips, POSITION_DRAWS)`; `None` draws them where they are needed.
            training: Whether they are.
        """
        if draws is None and training:
            draws = torch.rand(self.num_images, POSITION_DRAWS, device=self.pixels.device)
        return self.spread(draws)

    def spread(self, by_image: Tensor | None) -> Tensor | None:
        """Repeat what belongs to each clip for each of its groups, `(clips, ...)` to `(clips * groups, ...)`."""
        return None if by_image is None else by_image.repeat_interleave(self.num_groups, dim=0)


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


Aggregation = Literal["sparse", "dense"]
"""Each block's own output, or the mean of all blocks since the previous one that was asked for."""

ScaleOrder = Literal["post-alpha", "pre-alpha", "none"]
"""Whether normalizers scale the mean of a group by its mean scale, scale each block before, or do not run at all."""


def group_blocks(blocks: Sequence[int], aggregation: Aggregation) -> list[list[int]]:
    """Return the blocks whose outputs are averaged, for each one in `blocks`, which ascend."""
    if aggregation == "sparse":
        return [[block] for block in blocks]
    starts = [0, *(block + 1 for block in blocks)]
    return [list(range(start, block + 1)) for start, block in zip(starts, blocks, strict=False)]


def check_widths(config: RadioConfig, groups: Sequence[Sequence[int]]) -> None:
    """Refuse to average blocks of different widths, as RADIO1D has them.

    Raises:
        ValueError: If a group has some.
    """
    mixed = next((group for group in groups if len({config.count_merges(block) for block in group}) > 1), None)
    if mixed is not None:
        raise ValueError(
            f"`aggregation` must be 'sparse' for blocks {list(mixed)}, got 'dense': tokens are merged before "
            f"{config.downscale_levels}, and what they were cannot be averaged with what they are."
        )
