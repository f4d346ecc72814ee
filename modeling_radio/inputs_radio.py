"""The inputs of the network, and the checks of a call before anything is computed."""

import inspect
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers.utils import logging

from .checks_radio import WINDOW, Resolution, Rule, check_choice, did_you_mean, integer
from .configuration_radio import RadioConfig
from .layers_radio import PATH_DRAWS, POSITION_DRAWS, ImagePack


def check_images(pixel_values: Any, config: RadioConfig, argument: str = "pixel_values") -> Resolution:
    """Return the rows and columns of patches of a batch of images.

    Args:
        pixel_values: RGB images in [0, 1], `(batch, channels, height, width)`.
        config: Configuration, which decides the channels and the size.
        argument: Name of the argument, for the message.

    Raises:
        ValueError: If shape, size or type are wrong.
    """
    _check_pixels(argument, pixel_values)
    if pixel_values.ndim != 4 or pixel_values.shape[0] < 1:
        hint = " Clips are `pixel_values_videos`." if pixel_values.ndim == 5 else ""
        raise ValueError(
            f"`{argument}` must have the shape (batch, channels, height, width) with at least one image, got "
            f"{tuple(pixel_values.shape)}.{hint}"
        )
    channels, height, width = pixel_values.shape[1:]
    if channels != config.num_channels:
        raise ValueError(f"`{argument}` must have {config.num_channels} channels, got {channels}.")
    if torch.jit.is_tracing():
        height, width = int(height), int(width)  # tensors there; a trace is of one size
    config.check_resolution(height, width, argument)
    return Resolution(height // config.patch_size, width // config.patch_size)


def check_refused(refused: Mapping[str, str], **given: Any) -> None:
    """Refuse arguments that ask for something that a network does not have.

    Args:
        refused: By name of an argument, the reason to refuse it, which may say what to do.
        given: Arguments of a call; `None` asks for nothing.

    Raises:
        ValueError: If a refused argument is given.
    """
    for name, reason in refused.items():
        value = given[name]
        if value is not None:
            shown = f"a tensor of {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise ValueError(f"`{name}` must be left out, got {shown}: {reason}.")


def _check_tensor(name: str, value: object) -> None:
    """Raise a `ValueError` where something else comes than a tensor."""
    if not isinstance(value, Tensor):
        raise ValueError(f"`{name}` must be a tensor, got a {type(value).__name__}. The image processor returns one.")


def _check_pixels(name: str, value: Any) -> None:
    """Raise a `ValueError` where something else comes than a tensor of fractions."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        found = value.dtype if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ValueError(
            f"`{name}` must be a floating-point tensor in [0, 1], got {found}. The image processor returns one; or "
            "divide by 255."
        )


def check_pack(patches: Any, image_grid_hw: Any, config: RadioConfig) -> ImagePack:
    """Return the order of a packed sequence.

    Args:
        patches: Flattened patches of all images, `(total_patches, channels * patch_size**2)`.
        image_grid_hw: Rows and columns of patches of each image, `(num_images, 2)`.
        config: Configuration, which decides the size of a patch and the largest grid.

    Raises:
        ValueError: If the shapes do not fit each other, or a grid is too large.
    """
    _check_pixels("pixel_values", patches)
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
    largest = config.largest_side // config.patch_size
    if any(not 1 <= size <= largest for grid in pack.grids for size in grid):
        grids = [tuple(grid) for grid in pack.grids]
        raise ValueError(f"`image_grid_hw` must lie in [1, {largest}] patches, got {grids}.")
    return pack


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


def warn_of_pixel_range(pixel_values: Tensor) -> bool:
    """Warn if images look normalized or in [0, 255], and return whether they do.

    A sample of the pixels tells; only on the CPU, since elsewhere looking at values would wait for the device.
    """
    if torch.compiler.is_compiling() or pixel_values.device.type != "cpu" or not pixel_values.numel():
        return False
    try:
        low, high = map(Tensor.item, pixel_values.detach()[..., ::4, ::4].aminmax())
    except RuntimeError:  # `torch.func.vmap` has no values
        return False
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
    # Attention is bidirectional; a language model around this one passes what is meant for its own layers.
    "is_causal": Rule("False or None", lambda value: value in (None, False)),
    # Other ViTs resize their positions only if asked to; here any size that the patch divides fits.
    "interpolate_pos_encoding": _ANYTHING,
}
"""Keyword arguments that models accept but do not use, each with the rule that its value must meet."""


def check_call_arguments(model: nn.Module, arguments: Mapping[str, Any], method: str = "forward") -> None:
    """Refuse keyword arguments that neither the model nor `FOREIGN_ARGUMENTS` knows, or that ask for what is not done.

    Args:
        model: Model that was called.
        arguments: The keyword arguments that `**kwargs` collected.
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

WINDOW_SIZES = tuple(range(32, 5, -1))
"""Window sides in tokens that the released models were trained for, largest first (C-RADIOv4 3.2)."""

# Our choices for `window_size="auto"` without a budget. Below a fifth of the pass attention is not worth the loss of
# accuracy; windows of a quarter of the tokens or less remove three quarters of the attention in windowed blocks.
SMALL_ATTENTION_SHARE = 0.2
MAX_WINDOW_SHARE = 0.25


class WindowChoice(NamedTuple):
    """A window and what the cost model predicts for the backbone with it; accepted as `window_size` by the models.

    Attributes:
        window_size: Side in tokens, or `None` for global attention.
        latency_ms: Predicted time of one forward pass in milliseconds.
        memory_gib: Predicted memory of weights and activations of one forward pass without gradients, in GiB.
    """

    window_size: int | None
    latency_ms: float
    memory_gib: float


WindowSize = int | str | WindowChoice | None
"""`window_size` of the models' `forward`; see `RadioModel.forward`."""

StatesWanted = bool | int | Sequence[int] | None
"""`output_hidden_states` of the models: all of them, none, or some by their index in the output."""

logger = logging.get_logger(__name__)


def wanted_states(output_hidden_states: StatesWanted, config: RadioConfig) -> Collection[int] | None:
    """Return the indices of the wanted hidden states in the output: 0 before the first block, `i` after block `i`.

    Args:
        output_hidden_states: Argument of the call; `None` takes the configuration's. An index or a list of them, where
            negative ones count from the end, means those alone, as in transformers since 5.24.
        config: Configuration, which decides their number.

    Returns:
        `None` if there are none to return.

    Raises:
        ValueError: If there is no such hidden state; transformers would pass over it in silence.
    """
    asked = config.output_hidden_states if output_hidden_states is None else output_hidden_states
    count = config.num_hidden_layers + 1
    if asked is None or isinstance(asked, bool):
        return range(count) if asked else None
    state_indices = [asked] if isinstance(asked, int) else asked
    valid = integer(-count, count - 1)
    if not isinstance(state_indices, Sequence) or not all(valid.holds(state_index) for state_index in state_indices):
        raise ValueError(
            f"`output_hidden_states` must be True, False, or integers in [{-count}, {count - 1}], got {asked!r}."
        )
    return {state_index % count for state_index in state_indices} or None


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


def check_window_size(window_size: int | str) -> None:
    """Raise a `ValueError` unless a window is a number of tokens, "auto" or "global"."""
    if WINDOW.holds(window_size):
        return
    raise ValueError(
        f"`window_size` must be at least 1 (tokens), 'auto', 'global' or None, got {window_size!r}. The models were "
        f"trained for {WINDOW_SIZES[-1]} to {WINDOW_SIZES[0]}."
    )


def without_cost(window_size: WindowSize) -> int | str | None:
    """Return the window of a `WindowChoice`, and any other window as it is."""
    wanted: Any = window_size
    if not hasattr(wanted, "latency_ms"):  # which a choice of another copy of this file has too
        return wanted
    return "global" if wanted.window_size is None else wanted.window_size


def resolve_window(config: RadioConfig, window_size: int | str | None, grid: Resolution) -> int | None:
    """Return the window of a ViT in tokens, or `None` for global attention.

    Args:
        config: Names the default window.
        window_size: Window of the call, without a predicted cost.
        grid: Rows and columns of patches, which decide what "auto" is.

    Raises:
        ValueError: If the window is no number of tokens, "auto", "global" or `None`.
    """
    if window_size is None:
        window = config.vitdet_window_size
    else:
        check_window_size(window_size)
        if window_size == "auto":
            return choose_without_budget(config, *grid)
        window = None if window_size == "global" else int(window_size)
    if window is None or config.has_windowed_blocks:
        return window
    _warn_of_no_effect(config, window)
    return None


def _warn_of_no_effect(config: RadioConfig, window: int) -> None:
    """Warn that a window changes nothing. It is no error: code for NVIDIA's models passes one whatever the depth."""
    if not torch.compiler.is_compiling():
        warnings.warn(
            f"`window_size` has no effect, got {window}: all {config.num_hidden_layers} blocks attend globally. Open "
            "the model with a `vitdet_num_global` of half the blocks or fewer to have windowed ones.",
            stacklevel=4,
        )


def choose_without_budget(config: RadioConfig, rows: int, cols: int) -> int | None:
    """Return the window of `window_size="auto"`: global while attention is cheap, else the largest that helps.

    Global too where no block would have windows.

    Counts multiply-accumulates: `12 * hidden` per token and channel for a block's linear layers (with an MLP of four
    times the width), `2 * length` for its attention.
    """
    tokens = rows * cols + config.num_prefix_tokens
    linear = 4 * config.hidden_size + 2 * config.intermediate_size
    if not config.has_windowed_blocks or 2 * tokens / (linear + 2 * tokens) <= SMALL_ATTENTION_SHARE:
        return None
    return next((w for w in WINDOW_SIZES if w * w <= MAX_WINDOW_SHARE * rows * cols), WINDOW_SIZES[-1])


@dataclass(frozen=True)
class Batch:
    """The input of one pass: images of one size, a pack of images of several sizes, or clips of video.

    A clip is cut into groups of `config.video_temporal_patch_size` frames, each of which becomes one image's tokens;
    the last frame is repeated where the frames do not fill the last group. Without that field each frame is a group,
    and its patches are an image's. No group sees another one.

    Attributes:
        pixels: RGB in [0, 1]: images `(batch, channels, height, width)`; patches of a pack, `(total_patches, channels *
            patch_size**2)`; or the frames of all clips, clip after clip, `(clips * frames, channels, height, width)`.
        grid: Rows and columns of patches of each image, or of the largest one of a pack.
        num_images: Images or clips of the call; each has its own random numbers.
        pack: Order of packed images; `None` where all are of one size.
        num_clips: Clips of video; `None` of images.
        num_groups: Groups of frames of each clip.

    References:
        Temporal patches: transformers' `RadioModel`, and NVIDIA's Nemotron-3-Nano-Omni, whose vision encoder it is.
    """

    pixels: Tensor
    grid: Resolution
    num_images: int
    pack: ImagePack | None = None
    num_clips: int | None = None
    num_groups: int = 1

    def group_frames(self, frames: Tensor, group_size: int) -> Tensor:
        """Join the frames of clips to groups, `(clips * groups, group_size * channels, height, width)`."""
        frames = frames.unflatten(0, (self.num_images, -1))
        missing = self.num_groups * group_size - frames.shape[1]
        if missing:
            frames = torch.cat([frames, frames[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)
        return frames.unflatten(1, (self.num_groups, group_size)).flatten(2, 3).flatten(0, 1)

    def spread(self, by_image: Tensor | None) -> Tensor | None:
        """Return what belongs to each image or clip, `(num_images, ...)`, for each entry of the batch of tokens."""
        if by_image is None or (self.pack is None and self.num_clips is None):
            return by_image
        return by_image.repeat_interleave(self.num_groups, dim=0) if self.pack is None else self.pack.spread(by_image)


class Call(NamedTuple):
    """A checked call of the network, which `RadioNetwork.encode` takes.

    Attributes:
        batch: Input that is encoded.
        window_size: As in `RadioModel.forward`, without a predicted cost; each architecture has its own default.
        keep: 0-based blocks whose output is wanted, also as a hidden state.
        states: Indices of the hidden states that are wanted, `None` for none.
        with_attentions: Whether attention weights are wanted.
        draws: As in `RadioModel.forward`.
        num_tokens: As in `RadioModel.forward`.
        decode: As in `RadioModel.forward`.
        full_length: Whether RADIO1D's encoder runs alone, over all tokens.
    """

    batch: Batch
    window_size: int | str | None
    keep: Collection[int]
    states: Collection[int] | None
    with_attentions: bool
    draws: Tensor | None
    num_tokens: TokensWanted
    decode: bool
    full_length: bool


def check_batch(config: RadioConfig, images: Any, image_grid_hw: Any, videos: Any) -> Batch:
    """Return what a call encodes.

    `images` and `videos` are the `pixel_values` and `pixel_values_videos` of `RadioModel.forward`.

    Raises:
        ValueError: If both or neither are given, or one is not what it must be.
    """
    if videos is not None:
        for name, value in (("pixel_values", images), ("image_grid_hw", image_grid_hw)):
            if value is not None:
                raise ValueError(f"`{name}` must be None with `pixel_values_videos`, got both. Call once for each.")
        return _check_clips(config, videos)
    if images is None:
        raise ValueError("`pixel_values` or `pixel_values_videos` must be given, got None for both.")
    if image_grid_hw is None:
        return Batch(images, check_images(images, config), images.shape[0])
    pack = check_pack(images, image_grid_hw, config)
    return Batch(images, pack.largest_grid, len(pack.grids), pack)


def _check_clips(config: RadioConfig, frames: Any) -> Batch:
    shape = tuple(frames.shape) if isinstance(frames, Tensor) else f"a {type(frames).__name__}"
    if not isinstance(frames, Tensor) or frames.ndim != 5 or not frames.shape[0] or not frames.shape[1]:
        raise ValueError(
            "`pixel_values_videos` must be a tensor of the shape (clips, frames, channels, height, width) with at "
            f"least one frame, got {shape}."
        )
    pixels = frames.flatten(0, 1)
    num_groups = -(-frames.shape[1] // (config.video_temporal_patch_size or 1))
    grid = check_images(pixels, config, "pixel_values_videos")
    return Batch(pixels, grid, len(frames), num_clips=len(frames), num_groups=num_groups)


def check_draws(draws: Any, config: RadioConfig, num_images: int) -> None:
    """Refuse random numbers of another shape than `(num_images, count_draws(config))`.

    Raises:
        ValueError: If the shape is wrong, or it is no tensor.
    """
    _check_tensor("draws", draws)
    expected = (num_images, count_draws(config))
    if draws.shape != expected:
        raise ValueError(f"`draws` must have the shape {expected}, got {tuple(draws.shape)}.")


def split_draws(call: Call, config: RadioConfig) -> tuple[Tensor | None, Tensor | None]:
    """Return the draws of position crops and of dropped paths of a call with draws, or in training without them.

    Without them the images of a pack get new ones, and the groups of a clip one crop.

    Returns:
        `(num_images, POSITION_DRAWS)`, and `(entries, 1 or length, blocks, PATH_DRAWS)` for each entry of the batch of
        tokens; `None` leaves them to the layers.
    """
    batch, draws = call.batch, call.draws
    if draws is None and batch.num_clips is not None:
        return torch.rand(batch.num_images, POSITION_DRAWS, device=batch.pixels.device), None
    if draws is None and batch.pack is not None:
        draws = torch.rand(batch.num_images, count_draws(config), device=batch.pixels.device)
    if draws is None:
        return None, None
    by_image = draws[:, None, POSITION_DRAWS:].unflatten(2, (-1, PATH_DRAWS))
    return draws[:, :POSITION_DRAWS], batch.spread(by_image)


Aggregation = Literal["sparse", "dense"]
"""Each block's own output, or the mean of all blocks since the previous one that was asked for."""
