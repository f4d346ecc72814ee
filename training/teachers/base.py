"""Base class of the teachers: frozen networks that resize and normalize their images themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)

from modeling_radio.core.packages import Package
from modeling_radio.training.recipes.sections import RunModeName, RunOptions, Upsampling
from modeling_radio.training.teachers.featsharp import FeatSharp, SharpenedMode, TiledMode
from modeling_radio.training.teachers.outputs import (
    TeacherOutput,
    check_teacher_output,
    longest_list,
    resample_features,
    resize_images,
    teacher_error,
)
from modeling_radio.training.teachers.run_modes import FixedMode, MosaicMode, NativeMode, NetworkTraits, RunMode
from modeling_radio.training.teachers.sharded import EqualCalls, shard_blocks


RUN_MODES: dict[tuple[RunModeName, Upsampling], type[RunMode]] = {
    ("native", "bilinear"): NativeMode,
    ("fixed", "bilinear"): FixedMode,
    ("fixed", "tiles"): TiledMode,
    ("fixed", "featsharp"): SharpenedMode,
    ("mosaic", "bilinear"): MosaicMode,
}
"""Classes of run modes by `run_mode` and `upsample`."""


def build_run_mode(traits: NetworkTraits, options: RunOptions, default: RunModeName) -> RunMode:
    """Return the run mode of a network.

    Args:
        traits: The network's traits.
        options: The recipe's options; a size without a mode means "fixed".
        default: The mode for options without mode and size.

    Raises:
        ValueError: If the network cannot run in it.
    """
    name = options.run_mode or (default if options.input_size_px is None else "fixed")
    mode = RUN_MODES.get((name, options.upsample))
    if mode is None:
        known = " or ".join(repr(each) for each, upsample in RUN_MODES if upsample == options.upsample)
        raise traits.error(f"`run_mode` must be {known} for `upsample` {options.upsample!r}, got {name!r}.")
    return mode(traits, options.replace(run_mode=name))


Color = tuple[float, float, float]
"""Red, green and blue, of pixels in [0, 1]."""


def _color(values: Sequence[float]) -> Color:
    red, green, blue = values
    return red, green, blue


IMAGENET_MEAN, IMAGENET_STD = _color(IMAGENET_DEFAULT_MEAN), _color(IMAGENET_DEFAULT_STD)
HALF_MEAN, HALF_STD = _color(IMAGENET_STANDARD_MEAN), _color(IMAGENET_STANDARD_STD)
CLIP_MEAN, CLIP_STD = _color(OPENAI_CLIP_MEAN), _color(OPENAI_CLIP_STD)

DEFAULT_GRID_STRIDE = 16  # the patch size of every released student but one, https://arxiv.org/abs/2601.17237


class StatedCost(NamedTuple):
    """Widths, size and cost of a network, by which a run is planned without its weights.

    Attributes:
        summary_dim: Channels of its summary.
        feature_dim: Channels of its features.
        num_parameters: All of its numbers.
        flops_per_patch: Operations of a pass for each patch of its input.
        flops_per_pair: Operations of attention for each pair of patches; 0 without attention.
    """

    summary_dim: int
    feature_dim: int
    num_parameters: int
    flops_per_patch: float
    flops_per_pair: float


class Teacher(nn.Module):
    """Base class of the teachers: frozen, always in eval mode, never building a graph.

    The student divides an image into `rows` x `cols` patches. The teacher's run mode, a class of
    `run_modes.py`, decides the sizes of its input (`input_sizes`) and the grid of its output. A call
    takes images at these sizes and returns features on the teacher's own grid; `extract_features` takes images of any
    size.

    Args:
        name: Name of the teacher: the adaptor's name in the config, the checkpoint and the logs.
        summary_dim: Width of the summary, None where there is none.
        feature_dim: Width of the features.
        patch_size: Pixels of the teacher's own input that make one patch of features.
        native_size_px: Side of the square that the network was trained at, pixels; None where it has no such size.
        runs_at_any_size: False where the network runs at its native size only.
        default_mode: Its run mode if the recipe names none.
        size_multiple: The attribute, for classes that do not set it.
        normalization: Mean and standard deviation, for classes that do not set them.

    Attributes:
        mode: Its run mode.
        options: The recipe's options of its kind.
        image_mean: Mean that the network was trained with, RGB of pixels in [0, 1].
        image_std: Standard deviation that it was trained with, in the same units.
        size_multiple: The network's input sides must be multiples of it; None means `patch_size`.
        is_convolutional: The network runs in channels-last layout, about twice as fast on CPUs.
        read_options: Options that only choose outputs of the network: teachers that differ in nothing else share one
            pass. None for classes that cannot share it (`share_network`, `encode_for`).
        stated_cost: Cost of the network, for classes without the option `weights`; None builds it to count.
        is_optional: Whether the demo goes on without it where its package cannot be fetched.
        network_of: Name of the teacher whose network it runs, by default its own.
        equal_calls: Keeps the ranks together among which its network is sharded; None if it is whole.
    """

    image_mean: Color
    image_std: Color
    size_multiple: int | None = None
    is_convolutional: bool = False
    read_options: ClassVar[frozenset[str] | None] = None
    stated_cost: ClassVar[StatedCost | None] = None
    is_optional: ClassVar[bool] = False

    mean: Tensor
    std: Tensor

    def __init__(  # noqa: PLR0913
        self,
        name: str,
        *,
        summary_dim: int | None,
        feature_dim: int,
        patch_size: int,
        native_size_px: int | None = None,
        runs_at_any_size: bool = True,
        default_mode: RunModeName = "native",
        size_multiple: int | None = None,
        normalization: tuple[Color, Color] | None = None,
    ):
        super().__init__()
        if size_multiple is not None:
            self.size_multiple = size_multiple
        if normalization is not None:
            self.image_mean, self.image_std = normalization
        self.name = self.network_of = name
        self.summary_dim = summary_dim
        self.feature_dim = feature_dim
        self.patch_size = patch_size
        self.native_size_px = native_size_px
        self.runs_at_any_size = runs_at_any_size
        self.default_mode: RunModeName = default_mode
        self.options: Mapping[str, Any] = {}
        self.equal_calls: EqualCalls | None = None
        self.register_buffer("mean", torch.tensor(self.image_mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(self.image_std).view(1, 3, 1, 1))
        self.set_run_mode()

    def set_run_mode(self, run: RunOptions | None = None, grid_stride: int = DEFAULT_GRID_STRIDE) -> None:
        """Set the run mode, and drop the upsampler.

        Args:
            run: The recipe's options; None for the defaults.
            grid_stride: Pixels of the given image that make one patch of the output: the student's patch size.

        Raises:
            ValueError: If the teacher cannot run in this mode.
        """
        traits = NetworkTraits(
            self.name,
            self.patch_size,
            self.size_multiple or self.patch_size,
            self.native_size_px,
            self.runs_at_any_size,
            self.summary_dim is not None,
        )
        self.mode = build_run_mode(traits, run or RunOptions(), self.default_mode)
        self.upsampler: FeatSharp | None = None
        self.grid_stride = grid_stride

    @classmethod
    def package(cls) -> Package | None:
        """Return the package that its weights come in if the recipe names no source; None if there is none."""
        return None

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the classes that `classify` scores; empty for a teacher without a classifier."""
        return ()

    def classify(self, summary: Tensor) -> Tensor:
        """Return the logits of summaries, `(batch, len(class_names))`."""
        raise NotImplementedError

    @property
    def run(self) -> RunOptions:
        """Its options of running, with the chosen mode and size."""
        return self.mode.options

    def use_upsampler(self, upsampler: FeatSharp) -> None:
        """Use a trained network for grids finer than the teacher's own; it is frozen and moves with the teacher.

        Raises:
            ValueError: If the run mode uses no such network.
        """
        self.mode.use_upsampler(upsampler)
        self.upsampler = upsampler
        self.train(False)

    def blocks(self) -> Sequence[nn.Module]:
        """Return the network's blocks: its longest list of modules of one class."""
        return longest_list(self)

    def check_size(self, height: int, width: int) -> None:
        """Raise a ValueError if images of this size, in pixels, are not a multiple of the grid."""
        if height % self.grid_stride or width % self.grid_stride:
            step = self.grid_stride
            raise self._error(
                f"`pixel_values` must have sides that are multiples of {step} px, got {height} x {width}."
            )

    @property
    def can_share_cores(self) -> bool:
        """True if threads may call it at the same time, each with its share of a CPU's cores."""
        return self.mean.device.type == "cpu"

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        """Run the network.

        Args:
            pixel_values: Normalized RGB, `(batch, 3, height, width)`, sides multiples of `size_multiple`.

        Returns:
            Summary and features on the network's own grid, any float type.
        """
        raise NotImplementedError

    def encode_for(self, pixel_values: Tensor, readers: Sequence[Teacher]) -> list[TeacherOutput]:
        """Run the network once for all teachers that share it; return the output of each."""
        return [self.encode(pixel_values)] * len(readers)

    def share_network(self, first: Teacher) -> None:
        """Use the network of another teacher, which is the same, in place of its own."""
        self.network_of = first.network_of

    def input_sizes(self, rows: int, cols: int) -> tuple[tuple[int, int], ...]:
        """Return the sizes, height and width in pixels, of its input for an image of `rows` x `cols` patches.

        Modes with tiles take the whole image, and the image at a second size that is cut into tiles.
        """
        return self.mode.input_sizes(rows, cols)

    def output_sides(self, rows: int, cols: int) -> tuple[int, int]:
        """Return rows and columns of its features for an image of `rows` x `cols` patches: of the last input size."""
        height, width = self.input_sizes(rows, cols)[-1]
        return height // self.patch_size, width // self.patch_size

    @torch.no_grad()
    def forward(
        self, groups: Sequence[Sequence[Tensor]], readers: Sequence[Teacher] | None = None
    ) -> list[TeacherOutput]:
        """Return the teacher's summary and features on its own grid, float32, on the device of the images.

        The run mode decides which groups share a pass.

        Args:
            groups: Images of one grid each: RGB in [0, 1] at each of `input_sizes(rows, cols)`,
                `(images, 3, height, width)`, on any device.
            readers: Teachers of its network whose outputs are returned in place of its own, side by side, for
                `split_output`.
        """
        readers = [self] if readers is None else readers
        home = groups[0][0].device
        device = self.mean.device
        normalized = [
            [(images.to(device, non_blocking=True) - self.mean) / self.std for images in group] for group in groups
        ]

        def run(images: Tensor) -> TeacherOutput:
            if self.equal_calls is not None:
                self.equal_calls.begin(images)
            return self._run_network(images, readers)

        outputs = [
            TeacherOutput(None if summary is None else summary.to(home), features.to(home))
            for summary, features in self.mode.forward_groups(normalized, run)
        ]
        self.join_calls()
        return outputs

    def join_calls(self) -> None:
        """Take part in the calls that other ranks still have, if the network is sharded; for a rank without images."""
        if self.equal_calls is not None:
            self.equal_calls.finish(lambda images: self._run_network(images, [self]))

    def shard(self, group: ProcessGroup, turn: int = 0) -> None:
        """Shard the network's blocks over a group of ranks, which from now on call it together, or join the calls.

        Args:
            group: The ranks.
            turn: Position of the network in the order in which all ranks call sharded networks.

        Raises:
            ValueError: If it has no list of blocks.
        """
        device = self.mean.device
        shard_blocks(self.name, self, group, device)
        side = self.run.input_size_px or self.native_size_px or self.size_multiple or self.patch_size
        self.equal_calls = EqualCalls(group, side, device, turn)

    def extract_features(self, pixel_values: Tensor) -> TeacherOutput:
        """Return its own output of `extract_features_for`."""
        return self.extract_features_for(pixel_values, [self])[0]

    def extract_features_for(self, pixel_values: Tensor, readers: Sequence[Teacher]) -> list[TeacherOutput]:
        """Return summary and features of images, one patch for each `grid_stride`, float32, on the images' device.

        The images are resized to the network's input sizes, and its features resampled to the grid.

        Args:
            pixel_values: RGB in [0, 1], `(batch, 3, height, width)`, sides multiples of `grid_stride`, on any device.
            readers: Teachers of its network; each returns an output.

        Raises:
            ValueError: If the sides are not multiples of `grid_stride`.
        """
        height, width = pixel_values.shape[-2:]
        self.check_size(height, width)
        rows, cols = height // self.grid_stride, width // self.grid_stride
        images, home = pixel_values.to(self.mean.device, non_blocking=True), pixel_values.device
        (joint,) = self([[resize_images(images, size) for size in self.input_sizes(rows, cols)]], readers)
        outputs = []
        for summary, features in split_output(joint, readers):
            features = resample_features(features, rows, cols).contiguous().to(home)
            outputs.append(TeacherOutput(None if summary is None else summary.to(home), features))
        return outputs

    def train(self, mode: bool = True) -> Teacher:
        """Stay frozen and in eval mode: a teacher has no training mode."""
        self.requires_grad_(False)
        return super().train(False)

    def freeze(self) -> Teacher:
        """Freeze the network after it was built."""
        if self.is_convolutional:
            self.to(memory_format=torch.channels_last)  # pyrefly: ignore[no-matching-overload]
        return self.train(False)

    def _run_network(self, normalized: Tensor, readers: Sequence[Teacher]) -> TeacherOutput:
        """Return summaries and features on the network's own grid, float32, of all readers side by side.

        They are copies, because a loss cannot use tensors of inference mode.
        """
        if self.is_convolutional:
            normalized = normalized.contiguous(memory_format=torch.channels_last)
        autocast, device_type = contextlib.nullcontext(), normalized.device.type
        if torch.amp.is_autocast_available(device_type):  # not on the meta device, where runs are planned
            autocast = torch.autocast(device_type, torch.bfloat16, enabled=self.run.dtype == "bfloat16")
        # FSDP gathers weights into tensors that must not belong to inference mode.
        without_graph = torch.inference_mode() if self.equal_calls is None else torch.no_grad()
        with without_graph, autocast:
            summaries, features = [], []
            for reader, output in zip(readers, self.encode_for(normalized, readers), strict=True):
                summary, own = check_teacher_output(output, reader.name, reader)
                summaries += [] if summary is None else [summary]
                features.append(own)
        return TeacherOutput(_joined(summaries) if summaries else None, _joined(features))

    def _error(self, message: str) -> ValueError:
        return teacher_error(self.name, message)


class HasNetwork(Protocol):
    """A teacher, or its cost in a plan, with the name of the teacher whose network it runs."""

    network_of: str


def split_output(joint: TeacherOutput, readers: Sequence[Teacher]) -> list[TeacherOutput]:
    """Split the output of a shared pass into those of each teacher."""
    outputs, summary_start, start = [], 0, 0
    for reader in readers:
        summary = None
        if joint.summary is not None and reader.summary_dim is not None:
            summary = joint.summary.narrow(1, summary_start, reader.summary_dim)
            summary_start += reader.summary_dim
        outputs.append(TeacherOutput(summary, joint.features.narrow(1, start, reader.feature_dim)))
        start += reader.feature_dim
    return outputs


def by_network(teachers: Mapping[str, HasNetwork]) -> list[list[str]]:
    """Return the names of teachers, grouped by network."""
    names: dict[str, list[str]] = {}
    for name, teacher in teachers.items():
        names.setdefault(teacher.network_of, []).append(name)
    return list(names.values())


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0].to(torch.float32, copy=True) if len(parts) == 1 else torch.cat([part.float() for part in parts], 1)
