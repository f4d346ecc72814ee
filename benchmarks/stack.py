"""One RADIO pass with three adaptors compared with the three teachers that it replaces, run one after the other.

The teachers are those of C-RADIOv4 (https://arxiv.org/abs/2601.17237, section 2), each from an image to its features:
its own image processor in transformers, its published input size, its vision network of transformers; RADIO at its
preferred resolution, and with windows on SAM3's own grid of 72 x 72 tokens. Weights are random numbers: no value
changes the time. Calls take turns in one run.

On a GPU the networks have their published depth. On a CPU they have a share of their blocks, the same share for all,
since seven billion weights fit few machines: widths, tokens, windows and the share of blocks with global attention
stay as published. The time without adaptors is then multiplied by the inverse of that share, preprocessing and adaptors
count once: "whole" is the time of the published networks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.models.sam3.modeling_sam3 import Sam3ViTModel

from benchmarks.measuring import MeasuringSettings, Row, Turns, count_flops, report, take_turns
from modeling_radio import RadioConfig, RadioImageProcessor, RadioModel
from modeling_radio.training.teachers.published.architectures import published_config


STUDENT = "nvidia/C-RADIOv4-H"
TEACHERS = ("google/siglip2-giant-opt-patch16-384", "facebook/dinov3-vit7b16-pretrain-lvd1689m", "facebook/sam3")
CPU_DEPTH_SHARE = 4
"""Our choice: the largest that divides all depths and leaves SAM3 one block with global attention in eight."""
DTYPE = torch.bfloat16
ROUNDS = 5
IMAGE_PX = 1024
"""Side of the images before preprocessing. Our choice: about the input size of the largest network."""
SAM3_GRID_PX, WINDOW_SIZE = 72 * 16, 8
"""RADIO with as many tokens as SAM3 has at 1008 pixels in patches of 14, in the windows that it was trained with."""
CLASSES: dict[str, tuple[type[PreTrainedModel], str]] = {
    "SiglipVisionConfig": (transformers.SiglipVisionModel, "SiglipImageProcessor"),
    "DINOv3ViTConfig": (transformers.DINOv3ViTModel, "DINOv3ViTImageProcessor"),
    "Sam3ViTConfig": (Sam3ViTModel, "Sam3ImageProcessor"),
}
"""Network and image processor of a teacher by the class of its configuration."""
ALL_TEACHERS = "all teachers"


def run(settings: MeasuringSettings) -> None:
    """Measure and report."""
    share = 1 if settings.on_gpu else CPU_DEPTH_SHARE
    facts = {"depth_share": share, "dtype": str(DTYPE).removeprefix("torch."), "batch_size": 1}
    rows = measure(settings.device, share, 1 if settings.quick else ROUNDS)
    report(settings, "stack", "stack", STUDENT.rpartition("/")[2].lower(), rows, facts, settings.device)


@dataclass(frozen=True)
class Contender:
    """A network with its preprocessing.

    Attributes:
        name: Name in the table.
        size_px: Side of the network's input.
        size_from: Source of this size.
        calls: Parts in this order: "preprocessing" from uint8 images `(3, height, width)` to pixel values, "network"
            from these to features, and for a network with adaptors "backbone", the same without them.
        model: The network's model.
    """

    name: str
    size_px: int
    size_from: str
    calls: Mapping[str, Callable[[Any], Any]]
    model: PreTrainedModel


def with_share_of_blocks(config: PreTrainedConfig, share: int) -> PreTrainedConfig:
    """Return a configuration with the first of every `share` blocks, also of those with global attention."""
    config.num_hidden_layers = depth = config.num_hidden_layers // share
    if isinstance(config, transformers.Sam3ViTConfig):
        config.global_attn_indexes = [index for index in config.global_attn_indexes if index < depth]
    if isinstance(config, RadioConfig):
        config.vitdet_num_global //= share
    return config


def build(model_class: type[PreTrainedModel], config: PreTrainedConfig, device: str) -> Any:
    """Return a network in evaluation mode whose weights are small random numbers."""
    with torch.device(device), no_init_weights():
        model = model_class._from_config(config, dtype=DTYPE)
    with torch.no_grad():
        for weight in model.parameters():
            weight.uniform_(-0.02, 0.02)
    return model.eval()


def build_teacher(source: str, share: int, device: str) -> Contender:
    """Return a published teacher by its Hub id."""
    config = with_share_of_blocks(published_config(source), share)
    model_class, processor_name = CLASSES[type(config).__name__]
    size_px = config.image_size
    processor = getattr(transformers, processor_name)(size={"height": size_px, "width": size_px})
    model = build(model_class, config, device)
    origin = source if source.endswith(str(size_px)) else f"{processor_name}'s default"
    calls = {"preprocessing": _preprocessing(processor, device), "network": model}
    return Contender(source, size_px, origin, calls, model)


def build_students(share: int, device: str) -> list[Contender]:
    """Return RADIO with its adaptors at its preferred resolution, and on a GPU on SAM3's grid with windows besides."""
    model = build(RadioModel, with_share_of_blocks(published_config(STUDENT), share), device)

    def at(size_px: int, size_from: str, window_size: int | str) -> Contender:
        name = STUDENT if window_size == "global" else f"{STUDENT}, window {window_size}"
        processor = RadioImageProcessor.from_model_config(model.config, size={"height": size_px, "width": size_px})
        network = partial(model, window_size=window_size)
        calls = {"preprocessing": _preprocessing(processor, device), "network": network}
        return Contender(name, size_px, size_from, {**calls, "backbone": partial(network, adaptor_names=[])}, model)

    students = [at(model.config.preferred_resolution[0], "its preferred_resolution", "global")]
    return [*students, at(SAM3_GRID_PX, "SAM3's grid", WINDOW_SIZE)] if device == "cuda" else students


def _preprocessing(processor: Any, device: str) -> Callable[[list[Tensor]], Tensor]:
    return lambda images: processor(images, return_tensors="pt", device=device)["pixel_values"].to(DTYPE)


def whole_of(parts: Mapping[str, float], share: int) -> float:
    """Return the time of a published network: its backbone `share` times, all else once."""
    backbone = parts.get("backbone", parts["network"])
    return parts.get("preprocessing", 0.0) + share * backbone + parts["network"] - backbone


@torch.inference_mode()
def measure(device: str, share: int, rounds: int) -> list[Row]:
    """Return one row for each network, with the speedup of each student, and one for all teachers."""
    students, teachers = build_students(share, device), [build_teacher(source, share, device) for source in TEACHERS]
    image = torch.randint(0, 256, (3, IMAGE_PX, IMAGE_PX), dtype=torch.uint8, device=device)
    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    teraflops = {}
    for each in (*students, *teachers):
        pixels = each.calls["preprocessing"]([image])
        own = {part: partial(call, [image] if part == "preprocessing" else pixels) for part, call in each.calls.items()}
        calls |= {(each.name, part): call for part, call in own.items()}
        counts = {part: count_flops(call) for part, call in own.items() if part != "preprocessing"}
        teraflops[each.name] = whole_of(counts, share) / 1e12
    turns = take_turns(calls, min_rounds=rounds, device=device)
    return rows_of(students, teachers, turns, teraflops, share)


def rows_of(
    students: Sequence[Contender],
    teachers: Sequence[Contender],
    turns: Turns[tuple[str, str]],
    teraflops: Mapping[str, float],
    share: int,
) -> list[Row]:
    """Return the rows of all contenders; a whole is that of the published network, in each round.

    Args:
        students: Students of one network.
        teachers: All teachers that it replaces.
        turns: Times by contender and part.
        teraflops: Operations of each contender's published network, in 10**12.
        share: All networks had one of so many of their blocks.
    """
    teraflops = {**teraflops, ALL_TEACHERS: sum(teraflops[each.name] for each in teachers)}
    seconds = {each.name: _whole_seconds(each, turns, share) for each in (*students, *teachers)}
    seconds[ALL_TEACHERS] = [sum(one) for one in zip(*(seconds[each.name] for each in teachers), strict=True)]
    wholes = Turns(seconds)
    rows: list[Row] = []
    for each in (*students, *teachers):
        row: Row = {"network": each.name, "blocks": each.model.config.num_hidden_layers}
        row["million weights"] = round(sum(weight.numel() for weight in each.model.parameters()) / 1e6)
        row |= {"size, px": each.size_px, "size from": each.size_from}
        row |= {f"{part}, ms": turns.milliseconds((each.name, part)) for part in each.calls}
        rows.append(row)
    rows.append({"network": ALL_TEACHERS})
    for row in rows:
        name = row["network"]
        row |= {"whole, ms": wholes.milliseconds(name), "TFLOP": float(f"{teraflops[name]:.3g}")}
        if name in {student.name for student in students}:
            row["times as fast as all teachers"] = str(wholes.times_as_fast(name, ALL_TEACHERS))
            row["times fewer operations"] = round(teraflops[ALL_TEACHERS] / teraflops[name], 2)
    return rows


def _whole_seconds(each: Contender, turns: Turns[tuple[str, str]], share: int) -> list[float]:
    """Return the seconds of the published network from an image on, in each round."""
    rounds = zip(*(turns.seconds[each.name, part] for part in each.calls), strict=True)
    return [whole_of(dict(zip(each.calls, seconds, strict=True)), share) for seconds in rounds]
