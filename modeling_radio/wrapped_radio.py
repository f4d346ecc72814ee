"""A network of timm, of transformers or of the user's as the trunk of a RADIO, behind the same model classes.

The contract of a network is short. Normalized pixels `(batch, 3, height, width)` go in. One of these comes out:
- a map `(batch, channels, rows, cols)`;
- several such maps, from fine to coarse;
- tokens `(batch, prefix + rows * cols, channels)`: where there is a prefix, its first token is the class token.

`wrapped_fields` runs a network on the meta device to find its strides and widths, and makes the fields of `RadioConfig`
of them. With images of noise it checks that the output is repeatable and moves with its image. The features are one of
the maps, or several, each projected to `hidden_size` by a 1 x 1 convolution, resampled to the finest, and added. The
summary is the network's own class token, or learned queries that attend to the features, one for each of
`num_cls_tokens`.

Only folders with `wrapped` in their configuration import this file.
"""

import contextlib
import dataclasses
import functools
import inspect
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import is_timm_available

from .checks_radio import COUNT, MAPPING, WORD, Resolution, Rule, check_choice, integer, listed
from .configuration_radio import RadioConfig
from .inputs_radio import Call
from .library_config_radio import fetching_fields, library_config
from .modeling_radio import RadioNetwork
from .outputs_radio import NetworkOutput, to_map


SOURCES = ("timm", "transformers", "class")
PROBE_SIDE = 448
"""Side in pixels of the images that find a stride. Our choice: the strides 4, 7, 8, 14, 16, 28, 32 and 64 divide it."""
MOTION_PATCHES = 8
"""Coarsest patches along a side of the images that must move a map. Our choice: a few windows, and quick on a CPU."""
LEAST_CORRELATION = 0.1
"""Least correlation of the maps of an image and of the same image moved, where both show the same. Our choice: with
fresh weights the networks of the tests have 0.25 to 1, and maps that do not move at most 0.04."""
SAME_OUTPUT = 1e-4
"""Largest difference between two outputs for one image, relative to the largest number. Our choice: far above rounding
in float32, far below any effect of a random number."""
LARGEST_STRIDE = 64  # our choice: a coarser map has too few patches to be a dense feature
HEAD_WIDTH = 64  # of the attention pool, as in the ViTs of "Attention is all you need" and after
NATIVE_SIDE = 224  # pixels; of ImageNet's classifiers, which most of these networks were first made for
LARGEST_SIDE = 2048  # pixels, as RADIO's own default of `max_img_size`
_ANY_SIZE = {"dynamic_img_size": True, "strict_img_size": False}
"""Arguments that let timm's transformers, which are built for one size, take any."""
_REGISTERS = ("reg_token", "register_tokens")
"""Names that timm's and transformers' classes give the parameter of their register tokens."""
_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Errors by which libraries say that a network cannot be built or cannot take an image."""

_classes: dict[str, type[nn.Module]] = {}


def register_network(name: str, network_class: type[nn.Module]) -> None:
    """Let folders name a class of yours: their `config.json` alone never decides what is imported.

    Args:
        name: "my_package.my_module:MyNetwork", as in `student.architecture` of a recipe, which registers it itself.
        network_class: It is built with `wrapped["arguments"]`, and follows the contract of this file.

    Raises:
        ValueError: If it is no class of modules.
    """
    if not (isinstance(network_class, type) and issubclass(network_class, nn.Module)):
        raise ValueError(f"`network_class` of {name!r} must be a subclass of `torch.nn.Module`, got {network_class!r}.")
    _classes[name] = network_class


@dataclass(frozen=True)
class Wrapping:
    """Contents of `config.wrapped`, checked.

    Attributes:
        source: One of `SOURCES`.
        name: timm's name of the architecture, transformers' `model_type`, or the name of a registered class.
        arguments: Arguments of its construction; of transformers the fields of its configuration.
        levels: Maps that the features are made of, ascending 0-based numbers; the last one of the network is its final
            output.
        num_levels: Maps that the network has.
        strides: Pixels of the image for a patch of each of `levels`.
        widths: Their channels.
        num_prefix: Tokens before those of the grid, in levels that are tokens; 0 in networks of maps.
    """

    source: str
    name: str
    arguments: dict[str, Any]
    levels: list[int]
    num_levels: int
    strides: list[int]
    widths: list[int]
    num_prefix: int

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Wrapping":
        """Check the content of `config.wrapped`, also of strangers' files.

        Raises:
            ValueError: It names the entry, its value and the rule.
        """
        rules = {
            "source": Rule(f"one of {SOURCES}", lambda value: value in SOURCES),
            "name": WORD,
            "arguments": MAPPING,
            "levels": listed(integer(0)),
            "num_levels": COUNT,
            "strides": listed(integer(1, LARGEST_STRIDE)),
            "widths": listed(COUNT),
            "num_prefix": integer(0),
        }
        for name in (*rules, *values):
            if name not in rules or name not in values:
                raise ValueError(f"`wrapped` must have the entries {list(rules)}, got {list(values)}.")
            rules[name].check(f"wrapped.{name}", values[name])
        found = cls(**values)
        check_levels(found.levels, found.num_levels)
        if not len(found.levels) == len(found.strides) == len(found.widths):
            raise ValueError(f"`wrapped.strides` and `wrapped.widths` must be those of `levels`, got {dict(values)}.")
        check_arguments(found.source, found.name, found.arguments)
        return found

    @property
    def label(self) -> str:
        """The name in messages: "timm:resnet50"."""
        return self.name if self.source == "class" else f"{self.source}:{self.name}"

    def has_class_token(self, hidden_size: int, num_registers: int) -> bool:
        """Return whether the summary is the network's class token: the first of the final output, not projected.

        Args:
            hidden_size: Channels of the features.
            num_registers: Tokens before the grid that are registers.
        """
        is_end = self.levels == [self.num_levels - 1] and self.widths == [hidden_size]
        return is_end and self.num_prefix > num_registers


def check_levels(levels: Sequence[int], num_levels: int, argument: str = "wrapped.levels") -> None:
    """Refuse levels that the network does not have, or that do not ascend.

    Raises:
        ValueError: It names `argument`.
    """
    if not levels or list(levels) != sorted(set(levels)) or not 0 <= levels[0] <= levels[-1] < num_levels:
        raise ValueError(f"`{argument}` must be ascending numbers in [0, {num_levels}), got {list(levels)}.")


def check_arguments(source: str, name: str, arguments: Mapping[str, Any]) -> None:
    """Refuse names and arguments that would make a library fetch, open or run something else.

    Raises:
        ValueError: If a name is no architecture, or an argument is refused.
        ImportError: If timm is needed and not installed.
    """
    if source == "timm":
        timm = _timm(name)
        if not timm.is_model(name):
            raise ValueError(f"timm has no architecture {name!r}. See `timm.list_models()`.")
        makers = (timm.create_model, timm.models.build_model_with_cfg)
        own = {argument for maker in makers for argument in inspect.signature(maker).parameters}
        refused = [key for key in arguments if key in {*own, "features_only", "feature_cls", "num_classes"}]
    elif source == "transformers":
        refused = fetching_fields(arguments)
    else:
        refused = []
    if refused:
        raise ValueError(f"Arguments of {source}:{name} must be of its architecture alone, got {refused}.")


def _timm(name: str) -> ModuleType:
    """Return timm, which takes a second to import."""
    if not is_timm_available():
        raise ImportError(f"The network 'timm:{name}' needs timm: pip install 'timm>=1.0.31'.")
    import timm

    return timm


def build_library_network(source: str, name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Return a network with fresh weights; nothing is fetched.

    Raises:
        ValueError: If it cannot be built of these arguments, or its class is not registered.
    """
    check_arguments(source, name, arguments)
    if source == "class" and name not in _classes:
        raise ValueError(
            f"`wrapped.name` {name!r} is a class of its author's, which no folder may import. Import it yourself and "
            "call `modeling_radio.wrapped_radio.register_network(name, its_class)` first."
        )
    try:
        if source == "timm":
            return _timm(name).create_model(name, pretrained=False, num_classes=0, **arguments)
        if source == "transformers":
            return AutoModel.from_config(library_config(name, arguments), trust_remote_code=False)
        return _classes[name](**arguments)
    except _ERRORS as error:
        reason = _one_line(error)
        raise ValueError(f"{source}:{name} cannot be built with {dict(arguments)}: {reason}") from error


def _one_line(error: Exception) -> str:
    return f"{' '.join(str(error).split()) or type(error).__name__:.300}"


# Outputs of a network


class Levels(NamedTuple):
    """Output of a network for images.

    Attributes:
        outputs: Outputs of the levels asked for, maps `(batch, channels, rows, cols)` or tokens
            `(batch, num_prefix + rows * cols, channels)`.
        end: The final output, one or the other; `None` where only earlier levels were asked for.
        num_levels: Levels that the network has.
    """

    outputs: list[Tensor]
    end: Tensor | None
    num_levels: int


def read_levels(source: str, network: nn.Module, pixels: Tensor, levels: Sequence[int]) -> Levels:
    """Run a network and return some of its levels; negative numbers count from the last.

    Args:
        source: One of `SOURCES`.
        network: The network.
        pixels: Normalized images `(batch, 3, height, width)`.
        levels: Numbers of the levels, ascending. The last level is the network's final output, after its last norm.

    Raises:
        ValueError: If there is no such level, or the output is neither maps nor tokens.
    """
    read = {"timm": _read_timm, "transformers": _read_transformers, "class": _read_class}[source]
    found = read(network, pixels, levels)
    for output in found.outputs:
        if not isinstance(output, Tensor) or output.ndim not in (3, 4):
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"it has no spatial map: its output is {shape}, neither a map nor tokens on a grid")
    return found


def _from_first(levels: Sequence[int], num_levels: int) -> list[int]:
    found = [level + num_levels if level < 0 else level for level in levels]
    check_levels(found, num_levels, "levels")
    return found


def _read_timm(network: Any, pixels: Tensor, levels: Sequence[int]) -> Levels:
    def to_first(maps: Any) -> Any:
        is_last = hasattr(network, "output_fmt") and network.output_fmt == "NHWC"
        return maps.movedim(-1, 1) if is_last else maps

    num_levels = len(network.feature_info)
    wanted = _from_first(levels, num_levels)
    if wanted == [num_levels - 1]:
        end = to_first(network.forward_features(pixels))
        return Levels([end], end, num_levels)
    if not hasattr(network, "forward_intermediates"):
        raise ValueError(f"`levels` must be [-1]: timm gives no others of a {type(network).__name__}, got {levels}")
    is_early = wanted[-1] < num_levels - 1
    found = network.forward_intermediates(
        pixels, indices=wanted, stop_early=is_early, output_fmt="NCHW", intermediates_only=is_early
    )
    if is_early:
        return Levels(list(found), None, num_levels)
    end, maps = to_first(found[0]), list(found[1])
    return Levels([*maps[:-1], end], end, num_levels)


def _read_transformers(network: Any, pixels: Tensor, levels: Sequence[int]) -> Levels:
    options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in _forward_names(type(network)) else {}
    is_end = list(levels) == [-1]
    with _unchanged(network):
        result = network(pixel_values=pixels, output_hidden_states=True, return_dict=True, **options)
    end, states = result.last_hidden_state, result.hidden_states
    # The first state is the embedding, but for networks such as PVT v2 and SegFormer, whose states are the stages.
    num_embeddings = 0 if len(states) == len(getattr(network.config, "depths", ())) else 1
    num_levels = len(states) - num_embeddings
    wanted = [num_levels - 1] if is_end else _from_first(levels, num_levels)
    outputs = [end if level == num_levels - 1 else states[level + num_embeddings] for level in wanted]
    return Levels(outputs, end, num_levels)


@contextlib.contextmanager
def _unchanged(network: nn.Module) -> Iterator[None]:
    """Restore the modules' numbers in the end: transformers' Swin would keep the smaller windows of a small image."""
    numbers = [
        (module, {key: value for key, value in vars(module).items() if isinstance(value, (int, float, tuple))})
        for module in network.modules()
    ]
    try:
        yield
    finally:
        for module, values in numbers:
            vars(module).update(values)


@functools.cache
def _forward_names(network_class: type[nn.Module]) -> Collection[str]:
    return tuple(inspect.signature(network_class.forward).parameters)


def _read_class(network: nn.Module, pixels: Tensor, levels: Sequence[int]) -> Levels:
    found = network(pixels)
    maps = [found] if isinstance(found, Tensor) else list(found) if isinstance(found, (list, tuple)) else [found]
    wanted = _from_first(levels, len(maps))
    return Levels([maps[level] for level in wanted], maps[-1], len(maps))


def read_maps(wrapping: Wrapping, network: nn.Module, pixels: Tensor) -> tuple[Levels, list[Tensor]]:
    """Run a network and return its levels, and their maps `(batch, channels, rows, cols)` without other tokens.

    Args:
        wrapping: Its description.
        network: The network.
        pixels: Normalized images `(batch, 3, height, width)`.

    Raises:
        ValueError: If the library fails, or a map has not the size that its stride gives, as for images that a network
            does not take.
    """
    size = f"{pixels.shape[2]} x {pixels.shape[3]} px"
    try:
        found = read_levels(wrapping.source, network, pixels, wrapping.levels)
    except torch.OutOfMemoryError:
        raise
    except _ERRORS as error:
        raise ValueError(f"{wrapping.label} failed for images of {size}: {_one_line(error)}") from error
    maps = []
    for output, stride in zip(found.outputs, wrapping.strides, strict=True):
        grid = Resolution(pixels.shape[2] // stride, pixels.shape[3] // stride)
        is_tokens = output.ndim == 3 and output.shape[1] == wrapping.num_prefix + grid.height * grid.width
        each = to_map(output[:, wrapping.num_prefix :], grid) if is_tokens else output
        if each.ndim == 3 or each.shape[2:] != tuple(grid):
            raise ValueError(
                f"{wrapping.label} failed for images of {size}: its output {tuple(output.shape)} must be a map of "
                f"{grid.height} x {grid.width}."
            )
        maps.append(each)
    return found, maps


def check_sides(wrapping: Wrapping, sides: Collection[int]) -> None:
    """Refuse sides in pixels of square images that a network does not take.

    Raises:
        ValueError: It names the size and the library's reason.
    """

    def run(network: nn.Module) -> None:
        for side in sides:
            read_maps(wrapping, network, torch.zeros(1, 3, side, side))

    _on_meta_or_cpu(wrapping.source, wrapping.name, wrapping.arguments, run)


# Probing


class Shape(NamedTuple):
    """Stride in pixels and channels of an output; tokens before the grid, `None` for maps."""

    stride: int
    width: int
    num_prefix: int | None


class Probe(NamedTuple):
    """Properties of a network that were measured.

    Attributes:
        levels: The levels as 0-based numbers.
        num_levels: Levels that the network has.
        shapes: Shape of each of `levels`.
        num_registers: Register tokens before the grid.
    """

    levels: list[int]
    num_levels: int
    shapes: list[Shape]
    num_registers: int


def _on_meta_or_cpu(source: str, name: str, arguments: Mapping[str, Any], run: Callable[[nn.Module], Any]) -> Any:
    """Return the result of `run` for a new network; on the CPU if it looks at values, which the meta device lacks."""

    def run_on(device: str) -> Any:
        with torch.device(device), torch.no_grad(), torch.random.fork_rng(devices=[]):
            return run(build_library_network(source, name, arguments).eval())

    try:
        return run_on("meta")
    except _ERRORS as error:
        if not isinstance(error.__cause__ or error, RuntimeError):  # as torch's errors on that device are
            raise
    return run_on("cpu")


@functools.lru_cache(maxsize=32)
def _probe(source: str, name: str, arguments: str, levels: tuple[int, ...]) -> Probe:
    """Measure a network, and refuse one whose output is no map of its image."""
    parsed, side = json.loads(arguments), PROBE_SIDE

    def measure(network: nn.Module) -> Probe:
        square = read_levels(source, network, torch.zeros(1, 3, side, side), levels)
        wide = read_levels(source, network, torch.zeros(1, 3, side, 2 * side), levels)
        shapes = [_shape_of(*pair) for pair in zip(square.outputs, wide.outputs, strict=True)]
        return Probe(_from_first(levels, square.num_levels), square.num_levels, shapes, _count_registers(network))

    try:
        found = _on_meta_or_cpu(source, name, parsed, measure)
        with torch.device("cpu"), torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            _check_motion(source, build_library_network(source, name, parsed).eval(), found)
    except ValueError:
        raise
    except _ERRORS as error:
        reason = _one_line(error)
        raise ValueError(f"it does not take images of {side} x {side} and {side} x {2 * side} px: {reason}") from error
    return found


def _check_motion(source: str, network: nn.Module, found: Probe) -> None:
    """Refuse a network whose output differs between two runs, or whose map does not move with its image.

    Two images of noise are moved by the coarsest stride, down and to the right. The difference of their maps, in which
    positions cancel, must correlate with that of the moved images better by this move than by the eight others. Small
    images are tried first; windows may need more patches. With fresh running statistics the signals of some networks
    vanish in rounding (MobileViT, RepVGG): norms are tried with the statistics of the images too.

    Raises:
        ValueError: If either holds; the message says which.
    """
    step = max(shape.stride for shape in found.shapes)
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for side, of_images in ((MOTION_PATCHES * step, False), (MOTION_PATCHES * step, True), (PROBE_SIDE, True)):
        for norm in norms:
            norm.train(of_images)
        runs = None
        with contextlib.suppress(*(() if side == PROBE_SIDE else _ERRORS)):
            runs = _run_moved(source, network, found, step, side)
        if runs is None:
            continue
        if any(
            not (maps - same).abs().max() <= SAME_OUTPUT * maps.abs().max() for maps, _, same in zip(*runs, strict=True)
        ):
            raise ValueError("its outputs for one image differ from run to run")
        pairs = [(maps[0] - maps[1], moved[0] - moved[1]) for maps, moved, _ in zip(*runs, strict=True)]
        if all(_is_moved(*pair, step // shape.stride) for pair, shape in zip(pairs, found.shapes, strict=True)):
            return
    raise ValueError("its map does not move with its image")


def _is_moved(before: Tensor, after: Tensor, cells: int) -> bool:
    best, *others = (_correlation(before, after, rows, cols).item() for rows, cols in _moves(cells))
    return best > max(LEAST_CORRELATION, *others)


def _run_moved(source: str, network: nn.Module, found: Probe, step: int, side: int) -> list[list[Tensor]]:
    """Return the maps of two images of noise, of both moved by `step` pixels, and of the first two again."""
    noise = torch.randn(2, 3, side + step, side + step)
    images, moved = noise[..., step:, step:], noise[..., :side, :side]
    results = []
    for pixels in (images, moved, images):
        outputs = read_levels(source, network, pixels, found.levels).outputs
        results.append([_map_of(*pair, side) for pair in zip(outputs, found.shapes, strict=True)])
    return results


def _map_of(output: Tensor, shape: Shape, side: int) -> Tensor:
    if shape.num_prefix is None:
        return output
    return to_map(output[:, shape.num_prefix :], Resolution(side // shape.stride, side // shape.stride))


def _moves(cells: int) -> list[tuple[int, int]]:
    """Return rows and columns of the true move, then of the eight others."""
    moves = [(rows, cols) for rows in (-cells, 0, cells) for cols in (-cells, 0, cells)]
    return sorted(moves, key=lambda move: move != (cells, cells))


def _correlation(before: Tensor, after: Tensor, rows: int, cols: int) -> Tensor:
    """Return the cosine of a map `(channels, rows, cols)` moved down and right with another, where they overlap."""
    height, width = before.shape[1:]
    own = before[:, max(-rows, 0) : height - max(rows, 0), max(-cols, 0) : width - max(cols, 0)]
    other = after[:, max(rows, 0) : height - max(-rows, 0), max(cols, 0) : width - max(-cols, 0)]
    return F.cosine_similarity(own.flatten().double(), other.flatten().double(), dim=0, eps=1e-300)


def _count_registers(network: nn.Module) -> int:
    """Return the tokens before the grid that belong to no class token, by the names of their parameters."""
    return sum(
        parameter.shape[-2]
        for name, parameter in network.named_parameters()
        if name.rpartition(".")[2] in _REGISTERS and parameter.ndim > 1
    )


def _shape_of(square: Tensor, wide: Tensor) -> Shape:
    """Return the shape of an output from those for a square image and one of twice its width.

    Raises:
        ValueError: If it has no grid, or its stride is no whole number of pixels.
    """
    if square.ndim == 4:
        num_patches, prefix, width = square.shape[2] * square.shape[3], None, square.shape[1]
        is_grid = square.shape[2] == square.shape[3] and wide.shape[2:] == (square.shape[2], 2 * square.shape[3])
    else:
        num_patches, width = wide.shape[1] - square.shape[1], square.shape[2]
        prefix, is_grid = square.shape[1] - num_patches, num_patches > 0
    if not is_grid or (prefix is not None and prefix < 0):
        raise ValueError(f"it has no map on a grid: {tuple(square.shape)} becomes {tuple(wide.shape)} for a wide image")
    stride = PROBE_SIDE / num_patches**0.5
    if not stride.is_integer() or stride > LARGEST_STRIDE:
        raise ValueError(
            f"its stride must be a whole number of pixels, at most {LARGEST_STRIDE}, and divide {PROBE_SIDE}, got "
            f"{stride:.4g} (a map of {tuple(square.shape)} for {PROBE_SIDE} px)"
        )
    return Shape(int(stride), width, prefix)


def wrapped_fields(
    source: str,
    name: str,
    arguments: Mapping[str, Any] | None = None,
    levels: Sequence[int] = (-1,),
    hidden_size: int | None = None,
) -> dict[str, Any]:
    """Return the fields of `RadioConfig` for a network.

    Args:
        source: One of `SOURCES`.
        name: See `Wrapping`.
        arguments: See `Wrapping`; timm's transformers also get those that let them take any size.
        levels: Maps that are fused into the features; negative numbers count from the last.
        hidden_size: Width that the levels are projected to; `None` takes that of a single level without a projection,
            and of several that of the last.

    Raises:
        ValueError: In one line what is missing in the network.
    """
    check_choice("source", source, SOURCES)
    label = name if source == "class" else f"{source}:{name}"
    try:
        arguments = {**(_any_size(name) if source == "timm" else {}), **(arguments or {})}
        probe = _probe(source, name, json.dumps(arguments, sort_keys=True), tuple(levels))
    except ValueError as error:
        raise ValueError(f"{label!r} cannot be wrapped: {_one_line(error).rstrip('.')}.") from error
    shapes = probe.shapes
    prefixes = {shape.num_prefix for shape in shapes if shape.num_prefix is not None}
    if len(prefixes) > 1:
        raise ValueError(f"{label!r} cannot be wrapped: the levels {list(levels)} differ in tokens before the grid.")
    stride, width = min(shape.stride for shape in shapes), hidden_size or shapes[-1].width
    mean, std, side = _preprocessing(source, name)
    wrapping = Wrapping(
        source=source,
        name=name,
        arguments=arguments,
        levels=probe.levels,
        num_levels=probe.num_levels,
        strides=[shape.stride for shape in shapes],
        widths=[shape.width for shape in shapes],
        num_prefix=max(prefixes, default=0),
    )
    has_class_token = wrapping.has_class_token(width, probe.num_registers)
    step = max(shape.stride for shape in shapes)
    native = max(side // step, 1) * step
    heads = next(heads for heads in range(max(width // HEAD_WIDTH, 1), 0, -1) if width % heads == 0)
    return {
        "wrapped": dataclasses.asdict(wrapping),
        "hidden_size": width,
        "num_hidden_layers": len(probe.levels),
        "num_attention_heads": heads,
        "patch_size": stride,
        "max_img_size": LARGEST_SIDE // step * step,
        "image_size": native,
        "preferred_resolution": [native, native],
        "norm_mean": mean,
        "norm_std": std,
        "num_registers": 0,
        **({"num_cls_tokens": 1, "summary_idxs": [0]} if has_class_token else {}),
    }


@functools.cache
def _any_size(name: str) -> dict[str, Any]:
    """Return the arguments that let a network of timm take any size, if its class or a base class has them."""
    with torch.device("meta"):
        classes = type(build_library_network("timm", name, {})).__mro__
    known = {argument for each in classes for argument in inspect.signature(each.__init__).parameters}
    return {argument: value for argument, value in _ANY_SIZE.items() if argument in known}


def _preprocessing(source: str, name: str) -> tuple[list[float], list[float], int]:
    """Return mean and deviation of a network's normalization, and its native side in pixels."""
    if source == "timm":
        known = _timm(name).get_pretrained_cfg(name)
        if known is not None:
            return list(known.mean), list(known.std), min(known.input_size[1:])
    return list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD), NATIVE_SIDE


# Order of the parts


class _Order(NamedTuple):
    """When the parts of a network run, in counts of starts and ends of modules.

    Attributes:
        uses: First use of a weight, by its name.
        starts: First start of a module, by its name.
        ends: Its last end.
    """

    uses: dict[str, int]
    starts: dict[str, int]
    ends: dict[str, int]

    def start(self, stage: str) -> float:
        """Return when a module or one of those in it starts first."""
        return min(_of_module(stage, self.starts), default=math.inf)

    def end(self, stage: str) -> int:
        """Return when a module or one of those in it ends last."""
        return max(_of_module(stage, self.ends), default=0)


def _of_module(name: str, times: Mapping[str, int]) -> list[int]:
    return [time for each, time in times.items() if f"{each}.".startswith(f"{name}.")]


class _Recording(TorchFunctionMode):
    """Notes the order within its context: the names of weights say nothing about when they are used."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.order, self.time = _Order({}, {}, {}), 0
        self.names = {id(weight): name for name, weight in network.named_parameters()}
        for name, module in network.named_modules():
            module.register_forward_pre_hook(functools.partial(self._note, name, True))
            module.register_forward_hook(functools.partial(self._note, name, False))

    def _note(self, name: str, is_start: bool, *_: Any) -> None:
        self.time += 1
        if is_start:
            self.order.starts.setdefault(name, self.time)
        else:
            self.order.ends[name] = self.time

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = result if isinstance(result, (tuple, list)) else [result]
        if any(isinstance(output, Tensor) for output in outputs):  # not a question for a shape or a dtype
            for each in (*args, *(kwargs or {}).values()):
                for tensor in each if isinstance(each, (tuple, list)) else [each]:
                    if id(tensor) in self.names:
                        self.order.uses.setdefault(self.names[id(tensor)], self.time)
        return result


@functools.lru_cache(maxsize=32)
def _find_order(source: str, name: str, arguments: str) -> _Order:
    """Run a network to find when its parts run.

    Raises:
        ValueError: If it does not take the image.
    """

    def record(network: nn.Module) -> _Order:
        recording = _Recording(network)
        with recording:
            read_levels(source, network, torch.zeros(1, 3, PROBE_SIDE, PROBE_SIDE), (-1,))
        return recording.order

    try:
        return _on_meta_or_cpu(source, name, json.loads(arguments), record)
    except _ERRORS as error:
        raise ValueError(f"{source}:{name} does not take images of {PROBE_SIDE} px: {_one_line(error)}") from error


def _num_weights(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


# The trunk


class SummaryPool(nn.Module):
    """Learned queries attend to the features; the mean of these is added, so that a new pool starts as the mean.

    Shapes of `forward`: `(batch, num_patches, width)` to `(batch, num_tokens, width)`.

    References:
        Attention pooling: Set Transformer, section 3.2, https://arxiv.org/abs/1810.00825; CLIP's and SigLIP's too.
    """

    def __init__(self, width: int, num_tokens: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.queries = nn.Parameter(torch.empty(num_tokens, width))
        self.norm = nn.LayerNorm(width, eps=eps)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        key, value = self.kv(self.norm(features)).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query = self.queries.unflatten(-1, (self.num_heads, -1)).transpose(0, 1)
        query = query.to(key.dtype).expand(features.shape[0], -1, -1, -1)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return features.mean(dim=1, keepdim=True) + self.proj(mixed)


class LevelProjection(nn.Conv2d):
    """From the channels of a level to those of the features."""


class WrappedTrunk(PreTrainedModel):
    """The network, the projections of its levels, and the attention pool where it has no class token.

    It is a `PreTrainedModel` so that transformers does not initialize the network's weights anew: these start as their
    own library leaves them.

    Raises:
        ValueError: If the network cannot be built, or has buffers that no checkpoint would hold.
    """

    config_class = RadioConfig
    config: RadioConfig  # pyrefly: ignore[bad-override-mutable-attribute]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _frozen: tuple[nn.Module, ...] = ()

    def __init__(self, config: RadioConfig) -> None:
        super().__init__(config)
        self.wrapping = wrapping = Wrapping.of(config.wrapped or {})
        self.network = build_library_network(wrapping.source, wrapping.name, wrapping.arguments)
        self._check_buffers()
        is_plain = wrapping.widths == [config.hidden_size]
        self.projections = nn.ModuleList(
            LevelProjection(width, config.hidden_size, kernel_size=1) for width in ([] if is_plain else wrapping.widths)
        )
        heads, eps = config.num_attention_heads, config.layer_norm_eps
        has_class_token = wrapping.has_class_token(config.hidden_size, _count_registers(self.network))
        self.pool = None if has_class_token else SummaryPool(config.hidden_size, config.num_cls_tokens, heads, eps)
        self.post_init()

    def _check_buffers(self) -> None:
        if self.wrapping.source != "class":
            return  # timm and transformers make theirs again where a checkpoint is opened
        names = self.network.state_dict().keys()
        lost = [name for name, _ in self.network.named_buffers() if name not in names]
        if lost:
            raise ValueError(f"{self.wrapping.label!r} must register its buffers {lost} with `persistent=True`.")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize the parts that are ours, and what timm's modules have in no checkpoint."""
        if isinstance(module, SummaryPool):
            init.normal_(module.queries, std=self.config.initializer_range)
            for linear in (module.kv, module.proj):
                init.trunc_normal_(linear.weight, std=self.config.initializer_range)
                init.zeros_(linear.bias)
            init.ones_(module.norm.weight)
            init.zeros_(module.norm.bias)
        elif isinstance(module, LevelProjection):
            init.kaiming_normal_(module.weight, mode="fan_out")
            init.zeros_(module.bias)  # pyrefly: ignore[bad-argument-type]
        elif hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()  # pyrefly: ignore[not-callable]

    def stages(self) -> list[nn.Module]:
        """Return the network's stages from the image on.

        They are those that timm names. Where it names none, they are the modules of the list that holds most weights,
        if these are more than half and, of timm, as many as its levels. Otherwise they are the network's parts that
        consist of several modules.

        Raises:
            ValueError: If it has no stages.
        """
        found = [self.network.get_submodule(name) for name in self._stage_names()]
        if not found:
            raise ValueError(f"{self.wrapping.label!r} has no stages: no part of it consists of modules.")
        return found

    @property
    def blocks(self) -> nn.ModuleList:
        """The stages of the network."""
        return nn.ModuleList(self.stages())

    def _stage_names(self) -> list[str]:
        modules, num_stages = dict(self.network.named_modules()), None
        if self.wrapping.source == "timm":
            info: Any = self.network.feature_info
            names = [each["module"] for each in (info if isinstance(info, list) else info.info)]
            if names and all(name in modules for name in names):
                return names
            num_stages = len(names)
        lists = [name for name, module in modules.items() if isinstance(module, nn.ModuleList)]
        largest = max(lists, key=lambda name: _num_weights(modules[name]), default="")
        parts = [f"{largest}.{name}" for name, _ in modules[largest].named_children()]
        is_most = 2 * _num_weights(modules[largest]) > _num_weights(self.network)
        if lists and is_most and num_stages in (None, len(parts)):
            return parts
        children = self.network.named_children()
        return [name for name, part in children if list(part.children()) and _num_weights(part)]

    def count_stages_above(self, name: str) -> int:
        """Return how many stages begin behind a weight of this trunk, 0 for those of the pool and the projections.

        Args:
            name: Its name here, "network.stem.0.weight".
        """
        order = self._order()
        use = order.uses.get(name.removeprefix("network."), math.inf)
        above, end = 0, 0
        for stage in self._stage_names():
            has_weights = _num_weights(self.network.get_submodule(stage)) > 0  # else the stage ends in an activation
            above += (order.start(stage) if has_weights else end) > use
            end = order.end(stage)
        return above

    def freeze_stages(self, count: int) -> None:
        """Freeze all that runs up to the end of a stage, and weights that no output reads.

        They get no gradients. Modules in which no weight is left to train are in evaluation mode from now on, so that
        running statistics stay as they are; so are modules without weights that only run before.

        Args:
            count: Stages from the image on.

        Raises:
            ValueError: If there are fewer stages.
        """
        stages, order = self._stage_names(), self._order()
        if not 0 < count <= len(stages):
            raise ValueError(f"the number of frozen stages must be in [0, {len(stages)}], got {count}")
        end = max(order.end(stage) for stage in stages[:count])
        for name, weight in self.network.named_parameters():
            if order.uses.get(name, 0) <= end:
                weight.requires_grad_(False)

        def is_frozen(name: str, module: nn.Module) -> bool:
            weights = list(module.parameters())
            return (
                not any(weight.requires_grad for weight in weights)
                if weights
                else order.ends.get(name, math.inf) <= end
            )

        self._frozen = tuple(module for name, module in self.network.named_modules() if is_frozen(name, module))
        self.train(self.training)

    def freeze_statistics(self) -> None:
        """Keep the running statistics of all batch norms, and normalize by them in training too; weights still learn.

        With the statistics of other images, features of images like those of the network's own training change.
        """
        norms = [each for each in self.network.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
        self._frozen = (*self._frozen, *norms)
        self.train(self.training)

    def _order(self) -> _Order:
        wrapping = self.wrapping
        return _find_order(wrapping.source, wrapping.name, json.dumps(wrapping.arguments, sort_keys=True))

    def train(self, mode: bool = True) -> "WrappedTrunk":
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(self, pixels: Tensor, grid: Resolution) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return prefix tokens, features and projected levels.

        Args:
            pixels: Normalized images `(batch, 3, height, width)`.
            grid: Rows and columns of the features.

        Returns:
            `(batch, num_cls_tokens, hidden)`, `(batch, rows * cols, hidden)`, and for each level as the features.
        """
        wrapping, dtype = self.wrapping, next(self.network.parameters()).dtype
        found, maps = read_maps(wrapping, self.network, pixels.to(dtype))
        if self.projections:
            maps = [project(each) for project, each in zip(self.projections, maps, strict=True)]
        maps = [
            each if stride == self.config.patch_size else _resample(each, grid)
            for each, stride in zip(maps, wrapping.strides, strict=True)
        ]
        tokens = [each.flatten(2).transpose(1, 2) for each in maps]
        features = torch.stack(tokens).sum(dim=0) if len(tokens) > 1 else tokens[0]
        if self.pool is not None:
            return self.pool(features), features, tokens
        assert found.end is not None  # `has_class_token`
        return found.end[:, :1], features, tokens


def _resample(maps: Tensor, grid: Resolution) -> Tensor:
    return F.interpolate(maps, tuple(grid), mode="bilinear", align_corners=False)


class WrappedNetwork(RadioNetwork):
    """RADIO around the network that `config.wrapped` describes.

    A "block" of `keep`, of heads and of `RadioBackbone` is one of its fused levels, at the stride and width of the
    features.

    Raises:
        ValueError: If a field of the configuration contradicts `wrapped`, or asks for what such a network has not.
    """

    refused = {
        "image_grid_hw": "a network of a library has no packed images",
        "window_size": "a network of a library has no ViTDet windows",
        "draws": "a network of a library has no position crops",
        "num_tokens": "a network of a library has no global tokens",
        "decode": "a network of a library has no decoder",
        "output_hidden_states": "a network of a library has no tokens between blocks of ours",
        "output_attentions": "a network of a library has no attention weights that are returned",
    }

    def __init__(self, config: RadioConfig, use_adaptors: bool = True) -> None:
        wrapping = Wrapping.of(config.wrapped or {})
        wanted: dict[str, Any] = {
            "num_hidden_layers": len(wrapping.levels),
            "patch_size": min(wrapping.strides),
            "num_registers": 0,
            "num_channels": 3,
            "eradio": None,
            "downscale_levels": None,
            "vitdet_window_size": None,
            "video_temporal_patch_size": None,
            "num_intermediate_normalizers": 0,
        }
        for name, value in wanted.items():
            if getattr(config, name) != value:
                raise ValueError(f"`{name}` must be {value!r} with this `wrapped`, got {getattr(config, name)!r}.")
        super().__init__(config, use_adaptors)
        if self.model.pool is None and config.num_cls_tokens != 1:
            raise ValueError(f"`num_cls_tokens` must be 1, the class token of {wrapping.label}.")

    @property
    def input_embeddings(self) -> nn.Module:
        """The first module of the network, which reads the pixels."""
        return next(self.model.network.children())

    def replace_input_embeddings(self, value: nn.Module) -> None:
        """Put another module in its place."""
        name, _ = next(self.model.network.named_children())
        self.model.network.set_submodule(name, value)

    def build_trunk(self, config: RadioConfig) -> nn.Module:
        return WrappedTrunk(config)

    def encode(self, call: Call) -> NetworkOutput:
        """Run the network, whose own randomness in training is drawn from torch's generator."""
        batch = call.batch
        prefix, features, levels = self.model(self.input_conditioner(batch.pixels), batch.grid)
        tokens = torch.cat([prefix, features], dim=1)
        kept = {block: torch.cat([prefix, levels[block]], dim=1) for block in call.keep}
        last = self.config.num_hidden_layers - 1
        if last in kept:  # which heads take for the final features
            kept[last] = tokens
        return NetworkOutput(tokens, tokens, kept, None, None, batch.grid, num_clips=batch.num_clips)
