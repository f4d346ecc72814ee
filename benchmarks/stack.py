"""Times one RADIO pass with three adaptors beside the three teachers that it replaces, run one after the other.

    python -m benchmarks.stack [--device cuda] [--depth-share 4] [--dtype bfloat16] [--batch-size 1]

The teachers are those of C-RADIOv4 (https://arxiv.org/abs/2601.17237, section 2), each from an image to its features:
its own image processor in transformers, its published input size, its vision network of transformers; RADIO at its
preferred resolution, and with windows on SAM3's own grid of 72 x 72 tokens. Weights are random numbers: no value
changes the time. Calls take turns in one run.

On a GPU the networks have their published depth. On a CPU they have a share of their blocks, the same share for all,
since seven billion weights fit few machines: widths, tokens, windows and the share of blocks with global attention
stay as published. What a network takes without adaptors then counts as often as its share fits in, preprocessing and
adaptors, which have no such share, count once: "whole" is what the published networks take.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
import transformers
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.models.sam3.modeling_sam3 import Sam3ViTModel

from benchmarks.measuring.results import report
from benchmarks.measuring.settings import DTYPES, DeviceSettings
from benchmarks.measuring.turns import MIN_ROUNDS, Turns, take_turns
from foundation.command_line import Command
from foundation.fields import OneOf
from foundation.settings import require
from modeling_radio import RadioConfig, RadioImageProcessor, RadioModel
from training.teachers.published.architectures import PUBLISHED, published_config


STUDENTS = ("nvidia/C-RADIOv4-H", "nvidia/C-RADIOv4-SO400M")
TEACHERS = ("google/siglip2-giant-opt-patch16-384", "facebook/dinov3-vit7b16-pretrain-lvd1689m", "facebook/sam3")
CPU_DEPTH_SHARE = 4
"""Our choice: the largest that divides the depths of all and leaves SAM3 a block with global attention in eight."""

IMAGE_PX = 1024
"""Side of the images before preprocessing. Our choice: about what the largest of the networks takes in."""

SAM3_GRID_PX, WINDOW_SIZE = 72 * 16, 8
"""RADIO with as many tokens as SAM3 has at 1008 pixels in patches of 14, in the windows that it was trained with."""

CLASSES: dict[str, tuple[type[PreTrainedModel], str]] = {
    "SiglipVisionConfig": (transformers.SiglipVisionModel, "SiglipImageProcessor"),
    "DINOv3ViTConfig": (transformers.DINOv3ViTModel, "DINOv3ViTImageProcessor"),
    "Sam3ViTConfig": (Sam3ViTModel, "Sam3ImageProcessor"),
}
"""By configuration, the network and the image processor of a teacher."""

KNOWN_TEACHERS = tuple(source for source, (config_class, _) in PUBLISHED.items() if config_class in CLASSES)
ALL_TEACHERS = "all teachers"


@dataclass(frozen=True)
class Contender:
    """A network and what brings images to it.

    Attributes:
        name: As the table has it.
        size_px: Side of what the network takes in.
        size_from: Where this is published.
        preprocess: From uint8 images `(3, height, width)` to pixel values.
        network: From pixel values to features.
        backbone: The same without adaptors, of which a teacher has none.
        model: Whose network it is.
    """

    name: str
    size_px: int
    size_from: str
    preprocess: Callable[[list[Tensor]], Tensor]
    network: Callable[[Tensor], Any]
    backbone: Callable[[Tensor], Any]
    model: PreTrainedModel


def depths_of(config: PreTrainedConfig) -> tuple[int, ...]:
    """Return how many blocks a network has, and how many of them have global attention where others have windows."""
    if isinstance(config, transformers.Sam3ViTConfig):
        return config.num_hidden_layers, len(config.global_attn_indexes)
    if isinstance(config, RadioConfig):
        return config.num_hidden_layers, config.vitdet_num_global
    return (config.num_hidden_layers,)


def with_share_of_blocks(config: PreTrainedConfig, share: int) -> PreTrainedConfig:
    """Return a configuration with one of `share` blocks, from the first on, and so of those with global attention."""
    config.num_hidden_layers = depth = config.num_hidden_layers // share
    if isinstance(config, transformers.Sam3ViTConfig):
        config.global_attn_indexes = [place for place in config.global_attn_indexes if place < depth]
    if isinstance(config, RadioConfig):
        config.vitdet_num_global //= share
    return config


def build(model_class: type[PreTrainedModel], config: PreTrainedConfig, dtype: torch.dtype, device: str) -> Any:
    """Return a network in evaluation mode whose weights are small random numbers."""
    with torch.device(device), no_init_weights():
        model = model_class._from_config(config, dtype=dtype)
    with torch.no_grad():
        for weight in model.parameters():
            weight.uniform_(-0.02, 0.02)
    return model.eval()


def build_teacher(source: str, share: int, dtype: torch.dtype, device: str) -> Contender:
    """Return a published teacher by its Hub id."""
    config = with_share_of_blocks(published_config(source), share)
    model_class, processor_name = CLASSES[type(config).__name__]
    size_px = config.image_size
    processor = getattr(transformers, processor_name)(size={"height": size_px, "width": size_px})
    model = build(model_class, config, dtype, device)
    origin = source if source.endswith(str(size_px)) else f"{processor_name}'s default"
    return Contender(source, size_px, origin, _preprocessing(processor, dtype, device), model, model, model)


def build_students(source: str, share: int, dtype: torch.dtype, device: str, windowed: bool) -> list[Contender]:
    """Return RADIO with its adaptors at its preferred resolution, and if `windowed` on SAM3's grid with windows."""
    model = build(RadioModel, with_share_of_blocks(published_config(source), share), dtype, device)

    def at(size_px: int, size_from: str, window_size: int | str) -> Contender:
        name = source if window_size == "global" else f"{source}, window {window_size}"
        processor = RadioImageProcessor.from_model_config(model.config, size={"height": size_px, "width": size_px})
        preprocess = _preprocessing(processor, dtype, device)
        network = partial(model, window_size=window_size)
        return Contender(name, size_px, size_from, preprocess, network, partial(network, adaptor_names=[]), model)

    preferred = min(model.config.preferred_resolution)
    students = [at(preferred, "its preferred_resolution", "global")]
    return [*students, at(SAM3_GRID_PX, "SAM3's 72 x 72 tokens", WINDOW_SIZE)] if windowed else students


def _preprocessing(processor: Any, dtype: torch.dtype, device: str) -> Callable[[list[Tensor]], Tensor]:
    def preprocess(images: list[Tensor]) -> Tensor:
        return processor(images, return_tensors="pt", device=device)["pixel_values"].to(dtype)

    return preprocess


def count_flops(contender: Contender, batch_size: int) -> dict[str, float]:
    """Return the floating-point operations of one pass over a batch, a multiplication and an addition being two.

    By part: "network", and of what has adaptors "backbone".
    """
    weight = next(contender.model.parameters())
    pixels = torch.zeros(batch_size, 3, *2 * (contender.size_px,), dtype=weight.dtype, device=weight.device)
    counts = {}
    for part in parts_of(contender)[1:]:
        # The counter knows no fused attention of CPUs, so it counts matrix products.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            getattr(contender, part)(pixels)
        counts[part] = float(counter.get_total_flops())
    return counts


def parts_of(contender: Contender) -> tuple[str, ...]:
    """Return what is timed of a contender."""
    own = () if contender.backbone is contender.network else ("backbone",)
    return ("preprocessing", "network", *own)


def whole_of(parts: Mapping[str, float], share: int) -> float:
    """Return what a published network takes: its backbone `share` times, all else once."""
    backbone = parts.get("backbone", parts["network"])
    return parts.get("preprocessing", 0.0) + share * backbone + parts["network"] - backbone


@torch.inference_mode()
def measure(settings: "StackSettings") -> list[dict[str, object]]:
    """Return one row for each network, one for all teachers, and of each student how many times as fast it is."""
    dtype, device, share = getattr(torch, settings.dtype), settings.device, settings.share
    students = build_students(settings.student, share, dtype, device, settings.has_windows)
    teachers = [build_teacher(source, share, dtype, device) for source in settings.teachers]
    images = settings.batch_size * [torch.randint(0, 256, (3, IMAGE_PX, IMAGE_PX), dtype=torch.uint8, device=device)]
    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    for each in (*students, *teachers):
        pixels = each.preprocess(images)
        calls[each.name, "preprocessing"] = partial(each.preprocess, images)
        calls |= {(each.name, part): partial(getattr(each, part), pixels) for part in parts_of(each)[1:]}
    turns = take_turns(calls, min_rounds=settings.rounds, budget_seconds=0, device=device)
    both = (*students, *teachers)
    teraflops = {each.name: whole_of(count_flops(each, settings.batch_size), share) / 1e12 for each in both}
    return summarize(students, teachers, turns, teraflops, share)


def summarize(
    students: Sequence[Contender],
    teachers: Sequence[Contender],
    turns: Turns[tuple[str, str]],
    teraflops: Mapping[str, float],
    share: int,
) -> list[dict[str, object]]:
    """Return the rows of what took turns; a whole is that of the published network, in each round.

    Args:
        students: Of one network.
        teachers: All that it replaces.
        turns: By contender and part.
        teraflops: Operations of each contender's published network, in 10**12.
        share: All had one of so many of their blocks.
    """
    both = (*students, *teachers)
    teraflops = {**teraflops, ALL_TEACHERS: sum(teraflops[each.name] for each in teachers)}
    seconds = {each.name: _whole_seconds(each, turns, share) for each in both}
    seconds[ALL_TEACHERS] = [sum(one) for one in zip(*(seconds[each.name] for each in teachers), strict=True)]
    wholes = Turns(seconds)
    rows = [
        {
            **_facts(each),
            **{f"{part}, ms": turns.milliseconds((each.name, part)) for part in parts_of(each)},
            **_whole(each.name, wholes, teraflops),
        }
        for each in both
    ]
    for row, student in zip(rows, students, strict=False):
        row["times as fast as all teachers"] = str(wholes.times_as_fast(student.name, ALL_TEACHERS))
        row["times fewer operations"] = round(teraflops[ALL_TEACHERS] / teraflops[student.name], 2)
    return [*rows, {"network": ALL_TEACHERS, **_whole(ALL_TEACHERS, wholes, teraflops)}]


def _whole_seconds(each: Contender, turns: Turns[tuple[str, str]], share: int) -> list[float]:
    """Return what the published network takes from an image on, in each round."""
    parts = parts_of(each)
    rounds = zip(*(turns.seconds[each.name, part] for part in parts), strict=True)
    return [whole_of(dict(zip(parts, seconds, strict=True)), share) for seconds in rounds]


def _facts(each: Contender) -> dict[str, object]:
    return {
        "network": each.name,
        "blocks": each.model.config.num_hidden_layers,
        "million weights": round(sum(weight.numel() for weight in each.model.parameters()) / 1e6),
        "size, px": each.size_px,
        "size from": each.size_from,
    }


def _whole(name: str, wholes: Turns[str], teraflops: Mapping[str, float]) -> dict[str, object]:
    return {"whole, ms": wholes.milliseconds(name), "TFLOP": float(f"{teraflops[name]:.3g}")}


class StackSettings(DeviceSettings):
    """What takes turns.

    Attributes:
        student: Hub id of the RADIO with its adaptors.
        teachers: Hub ids of the networks that it replaces.
        dtype: Data type of all.
        batch_size: Images of a pass.
        windowed: Whether RADIO also runs on SAM3's grid with windows; None is on a GPU only.
        depth_share: All networks have one of so many of their blocks; None is 1 on a GPU and 4 on a CPU.
        rounds: Turns of each.
    """

    student: Annotated[str, OneOf(STUDENTS)] = STUDENTS[0]
    teachers: Annotated[list[str], OneOf(KNOWN_TEACHERS)] = list(TEACHERS)
    dtype: Annotated[str, OneOf(DTYPES)] = "bfloat16"
    batch_size: int = Field(1, gt=0)
    windowed: bool | None = None
    depth_share: int | None = Field(None, gt=0)
    rounds: int = Field(MIN_ROUNDS, gt=0)

    @model_validator(mode="after")
    def _check(self) -> "StackSettings":
        for source in (self.student, *self.teachers):
            depths = depths_of(published_config(source))
            rule = f"a number that divides the {depths} blocks of {source}, all and those with global attention"
            require(all(depth % self.share == 0 for depth in depths), "depth_share", self.share, rule)
        return self

    @property
    def has_windows(self) -> bool:
        """Whether RADIO also runs with windows."""
        return self.device == "cuda" if self.windowed is None else self.windowed

    @property
    def share(self) -> int:
        """All networks have one of so many of their blocks."""
        return self.depth_share or (1 if self.device == "cuda" else CPU_DEPTH_SHARE)


COMMAND = Command("benchmarks.stack", __doc__.partition("\n")[0], StackSettings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return COMMAND.run(_measure_and_report, arguments)


def _measure_and_report(settings: StackSettings) -> None:
    settings.check_device()
    facts = {"depth_share": settings.share, "dtype": settings.dtype, "batch_size": settings.batch_size}
    name = settings.student.rpartition("/")[2].lower()
    report("stack", name, measure(settings), device=settings.device, facts=facts)


if __name__ == "__main__":
    sys.exit(main())
