"""What both nets run: five short distillations and every public class, from fixed numbers, with nothing fetched.

`WORLD` writes 64 images, tar shards of them and the teachers' module, so that a run needs a folder and the command line
of `radio distill` alone. The classes are asked for by name in `modeling_radio`, each case for itself: where one is
gone, the others still run.
"""

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor, nn


NUM_IMAGES = 64

TEACHERS = {"efficientnet-lite0": (24, 20), "dinov2-s-saliency": (16, 16), "nanodet-g": (12, None)}
"""Widths of features and summary by the names of the demo's teachers."""

TEACHER_CODE = '''
class FixedTeacher(Teacher):
    """Patches of the image through fixed random weights."""

    image_mean, image_std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

    def __init__(self, name, *, source=None, feature_dim, summary_dim=None):
        super().__init__(name, summary_dim=summary_dim, feature_dim=feature_dim, patch_size=16)
        generator = torch.Generator().manual_seed(len(name))
        self.weight = torch.nn.Parameter(torch.randn(feature_dim, 3, 16, 16, generator=generator) / 16)
        self.freeze()

    def encode(self, pixel_values):
        features = torch.nn.functional.conv2d(pixel_values, self.weight, stride=16)
        summary = None if self.summary_dim is None else features.mean((2, 3))[:, : self.summary_dim].tanh()
        return TeacherOutput(summary, features + 3)
'''
TEACHER_IMPORTS = """
import torch
from modeling_radio.training.teachers.outputs import TeacherOutput
from modeling_radio.training.teachers.base import Teacher

"""


def images() -> Iterator[tuple[str, bytes]]:
    """Yield names and PNG files: smooth random colors in several shapes, the same on every processor."""
    draw = np.random.default_rng(0)
    for number in range(NUM_IMAGES):
        size = ((160, 128), (128, 160), (144, 144), (200, 130))[number % 4]
        coarse = draw.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(buffer, "PNG")
        yield f"{number:03}.png", buffer.getvalue()


def write_world(folder: Path, teacher_imports: str = TEACHER_IMPORTS) -> None:
    """Write the images as a folder and as shards, and the module of the teachers, which must be on the path."""
    (folder / "images").mkdir(parents=True)
    (folder / "shards").mkdir()
    (folder / "fixed_teachers.py").write_text(teacher_imports + TEACHER_CODE)
    files = list(images())
    for name, content in files:
        (folder / "images" / name).write_bytes(content)
    for shard in range(2):
        with tarfile.open(folder / "shards" / f"part-{shard:02}.tar", "w") as archive:
            for name, content in files[shard::2]:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def _common(num_steps: int) -> list[str]:
    teachers = [
        f"teachers.{name}={{kind: 'fixed_teachers:FixedTeacher', dtype: float32, "
        f"options: {{feature_dim: {features}, summary_dim: {'null' if summary is None else summary}}}}}"
        for name, (features, summary) in TEACHERS.items()
    ]
    quiet = "trackers: [], metrics_every_steps: null"
    return [
        "mixed_precision=no",
        *teachers,
        "standardization.calibration_steps=2",
        f"schedule={{num_steps: {num_steps}, warmup_steps: 4}}",
        f"checkpoints.every_steps={num_steps}",
        f"logging={{{quiet}, every_steps: {max(1, num_steps // 4)}}}",
    ]


_FOLDER = "data={source: images, num_images: null, num_workers: 0}"
_STREAM = "data={source: shards, num_images: null, num_workers: 0, streaming: true, shuffle_buffer: 8}"

RECIPES: dict[str, tuple[str, tuple[str, ...]]] = {
    "demo": ("demo", (_FOLDER, "partitions.low.batch_size=16")),
    "demo_full": ("demo_full", (_FOLDER, "partitions.low.token_budget=1040", "mesa.start_step=5")),
    "demo_1d": ("demo_1d", (_FOLDER, "partitions.low.batch_size=16")),
    "packed": (
        "demo",
        (
            _FOLDER,
            "student.config.vitdet_num_global=2",
            "views={teachers: online, is_square: false}",
            "partitions=[{name: low, sizes_px: [64, 96], token_budget: 400, vitdet_windows: [2, 3], "
            "vitdet_ragged: true}, {name: high, sizes_px: [128, 192], token_budget: 330, accumulation_steps: 2, "
            "teachers: [dinov2-s-saliency, nanodet-g]}]",
            "optimizer={name: adamw, learning_rate: 1.0e-3}",
            "standardization.estimation_steps=10",
        ),
    ),
    "streamed": (
        "demo",
        (
            _STREAM,
            "views.teachers=online",
            "partitions.low.batch_size=8",
            "optimizer={name: lamb, learning_rate: 1.0e-3}",
            "standardization.estimation_steps=10",
        ),
    ),
    "weighed": (
        "demo",
        (
            _FOLDER,
            "views.teachers=online",
            "partitions.low.batch_size=8",
            "optimizer={name: adamw, learning_rate: 1.0e-3, trunk_frozen_steps: 2}",
            "balancing={method: adaptive, start_step: 3, period_steps: 2, ramp_steps: 4}",
            "contrastive={weight: 0.1, bank_size: 64}",
            "taps.weight=0.25",
        ),
    ),
}
"""By name of the case the recipe and its changes: `demo_full` and `packed` pack, `streamed` reads shards, and `weighed`
weighs teachers, looks within the trunk and compares images with each other."""


def arguments(case: str, output: str, num_steps: int = 20, more: Sequence[str] = ()) -> list[str]:
    """Return the words after `radio distill`, run in the folder that `write_world` wrote."""
    recipe, changes = RECIPES[case]
    cache = "views.cache_dir=cache"
    return ["--recipe", recipe, "--output", output, *_common(num_steps), cache, *changes, *more]


def _generator(key: str) -> torch.Generator:
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "little"))


def fill(module: nn.Module) -> nn.Module:
    """Give each parameter numbers that follow from its name, whatever was built before it; in evaluation mode."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=_generator(name))
            if parameter.ndim < 2:
                parameter += 0.1 * noise
            else:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
    return module.eval()


def noise(key: str, *shape: int) -> Tensor:
    """Return numbers in [0, 1) that follow from a name."""
    return torch.rand(shape, generator=_generator(key))


def flat(output: Any, prefix: str = "") -> dict[str, Tensor]:
    """Return all tensors of an output by the way to them."""
    if torch.is_tensor(output):
        return {prefix: output.detach()}
    if isinstance(output, np.ndarray | float | int):
        return {prefix: torch.as_tensor(output)}
    if hasattr(output, "_asdict"):
        output = output._asdict()
    if isinstance(output, Mapping):
        items = list(output.items())
    else:
        items = list(enumerate(output)) if isinstance(output, list | tuple) else []
    return {key: tensor for name, part in items for key, tensor in flat(part, f"{prefix}/{name}".strip("/")).items()}


SIZE = (48, 80)
ADAPTORS = [
    {"name": "siglip2-g", "summary_dim": 12, "feature_dim": 20, "hidden_size": 24},
    {"name": "sam3", "summary_dim": None, "feature_dim": 32, "hidden_size": 24, "upsample_factor": 2},
]
_HEADS = {
    "num_labels": 3,
    "dpt_hidden_size": 16,
    "detection_hidden_size": 32,
    "detection_num_queries": 12,
    "detection_num_groups": 2,
    "detection_num_layers": 2,
    "detection_window_size": None,
}


def build(class_name: str, **fields: Any) -> Any:
    """Return a public model of the tiny preset with small heads, filled."""
    import modeling_radio

    torch.manual_seed(0)
    config = modeling_radio.RadioConfig.from_preset("radio-test", **{**_HEADS, **fields})
    return fill(vars(modeling_radio)[class_name](config))


def _run(
    class_name: str, labels: dict[str, Any] | None = None, *, call: Any = None, **fields: Any
) -> dict[str, Tensor]:
    """Return what a model answers, with labels its loss and two gradients too."""
    model = build(class_name, **fields)
    output = flat(model(noise("images", 2, 3, *SIZE), **(call or {}), **(labels or {})))
    if labels is None:
        return output
    model.zero_grad()
    model(noise("images", 2, 3, *SIZE), **(call or {}), **labels).loss.backward()
    gradients = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
    return output | {f"gradient of {name}": value for name, value in (gradients[0], gradients[-1])}


def _boxes(with_masks: bool) -> dict[str, Any]:
    labels = [
        {"class_labels": torch.tensor([0, 2]), "boxes": torch.tensor([[0.3, 0.4, 0.2, 0.4], [0.7, 0.5, 0.4, 0.6]])},
        {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.5, 0.5]])},
    ]
    for entry in labels if with_masks else ():
        masks = torch.zeros(len(entry["boxes"]), *SIZE)
        for mask, (x, y, width, height) in zip(masks, entry["boxes"].tolist(), strict=True):
            rows = slice(round((y - height / 2) * SIZE[0]), round((y + height / 2) * SIZE[0]))
            mask[rows, round((x - width / 2) * SIZE[1]) : round((x + width / 2) * SIZE[1])] = 1
        entry["masks"] = masks
    return {"labels": labels}


def _radio() -> dict[str, Tensor]:
    model, pixels = build("RadioModel", adaptors=ADAPTORS), noise("images", 2, 3, *SIZE)
    maps = model(pixels, feature_format="NCHW", window_size=2, output_hidden_states=True)
    return flat({"tokens": model(pixels), "maps": maps})


def _intermediate() -> dict[str, Tensor]:
    model, pixels = build("RadioModel"), noise("images", 2, 3, *SIZE)
    both = {name: model.get_intermediate_features(pixels, [1, 3], name) for name in ("sparse", "dense")}
    return flat({name: [(each.summary, each.features) for each in each_] for name, each_ in both.items()})


def _pair() -> dict[str, Tensor]:
    import modeling_radio

    output = build("RadioModel", adaptors=ADAPTORS)(noise("images", 2, 3, *SIZE))
    return flat(modeling_radio.RadioPair(output.summary, output.features).to(torch.float64))


def _zero_shot() -> dict[str, Tensor]:
    import modeling_radio

    text = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    text |= {"vocab_size": 32, "max_position_embeddings": 8, "projection_size": 12}
    vision = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    vision |= {"image_size": 32, "patch_size": 16}
    teacher = fill(transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision)))
    radio = build("RadioModel", adaptors=ADAPTORS)
    model = modeling_radio.RadioForZeroShotImageClassification.from_parts(radio, teacher, "siglip2-g").eval()
    texts = torch.arange(2 * 8).reshape(2, 8) % 31
    pixels = noise("images", 2, 3, *SIZE)
    output = model(input_ids=texts, pixel_values=pixels, return_loss=True)
    dense = model.segment(pixels, output.text_embeds, scra=None, scga=None, sliding=None, denoising=None)
    return flat({"output": output, "dense": dense})


def _sam3() -> Any:
    import modeling_radio

    small = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
    trunk = {**small, "model_type": "sam3_vit_model", "num_hidden_layers": 2, "image_size": 56}
    trunk |= {"pretrain_image_size": 56, "window_size": 2, "global_attn_indexes": [1]}
    text = {**small, "model_type": "clip_text_model", "num_hidden_layers": 1, "vocab_size": 64, "projection_dim": 16}
    text |= {"max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 3}
    config = transformers.Sam3Config(
        vision_config={"backbone_config": trunk, "fpn_hidden_size": 32},
        text_config=text,
        geometry_encoder_config={**small, "num_layers": 1, "roi_size": 2},
        detr_encoder_config={**small, "num_layers": 1},
        detr_decoder_config={**small, "num_layers": 1, "num_queries": 5},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 2},
    )
    sam3 = fill(transformers.Sam3Model(config))
    adaptors = [{"name": "sam3", "summary_dim": None, "feature_dim": 32, "hidden_size": 24}]
    return modeling_radio.attach_to_sam3(sam3, build("RadioModel", adaptors=adaptors))


def _attached() -> dict[str, Tensor]:
    texts = torch.randint(4, 64, (1, 6), generator=_generator("texts"))
    return flat(dict(_sam3()(pixel_values=noise("clip", 1, 3, 64, 64) * 2 - 1, input_ids=texts)))


def _picture(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


def _image_processor() -> dict[str, Tensor]:
    import modeling_radio

    processor = modeling_radio.RadioImageProcessor.from_model_config(
        modeling_radio.RadioConfig.from_preset("radio-test")
    )
    pictures = [_picture(90, 70, 3), _picture(50, 120, 3)]
    maps = [_picture(90, 70) % 3, _picture(50, 120) % 3]
    packed = processor(pictures, return_tensors="pt", do_pack=True)
    padded = processor(pictures, segmentation_maps=maps, return_tensors="pt", do_pad=True)
    return flat({"packed": dict(packed), "padded": dict(padded)})


def _video_processor() -> dict[str, Tensor]:
    import modeling_radio

    processor = modeling_radio.RadioVideoProcessor.from_model_config(
        modeling_radio.RadioConfig.from_preset("radio-test")
    )
    return flat(dict(processor(_picture(4, 80, 100, 3), return_tensors="pt")))


def _universal() -> dict[str, Tensor]:
    entries = _boxes(with_masks=True)["labels"]
    labels = {name: [entry[key] for entry in entries] for name, key in _UNIVERSAL_LABELS.items()}
    return _run("RadioForUniversalSegmentation", labels)


_UNIVERSAL_LABELS = {"mask_labels": "masks", "class_labels": "class_labels"}
_ONE_D = {"downscale_levels": [2], "decoder_depth": 2}
_PIXEL_CLASSES = torch.arange(2 * 48 * 80).reshape(2, *SIZE) % 3

CLASSES: dict[str, Callable[[], dict[str, Tensor]]] = {
    "RadioModel": _radio,
    "RadioModel, 1D": lambda: _run("RadioModel", adaptors=ADAPTORS[:1], **_ONE_D, call={"num_tokens": 2}),
    "RadioIntermediateOutput": _intermediate,
    "RadioPair": _pair,
    "RadioBackbone": lambda: _run("RadioBackbone", out_indices=[1, 4]),
    "RadioBackbone, pyramid": lambda: _run("RadioBackbone", use_feature_pyramid=True),
    "RadioForImageClassification": lambda: _run("RadioForImageClassification", {"labels": torch.tensor([0, 2])}),
    "RadioForSemanticSegmentation": lambda: _run("RadioForSemanticSegmentation", {"labels": _PIXEL_CLASSES}),
    "RadioForSemanticSegmentation, DPT": lambda: _run(
        "RadioForSemanticSegmentation", {"labels": _PIXEL_CLASSES}, segmentation_head="dpt"
    ),
    "RadioForDepthEstimation": lambda: _run("RadioForDepthEstimation", {"labels": 1 + _PIXEL_CLASSES.float()}),
    "RadioForObjectDetection": lambda: _run("RadioForObjectDetection", _boxes(with_masks=False)),
    "RadioForInstanceSegmentation": lambda: _run("RadioForInstanceSegmentation", _boxes(with_masks=True)),
    "RadioForUniversalSegmentation": _universal,
    "RadioForZeroShotImageClassification": _zero_shot,
    "attach_to_sam3": _attached,
    "RadioImageProcessor": _image_processor,
    "RadioVideoProcessor": _video_processor,
}
"""By name what each public class answers; configuration and output classes are those of the models'."""
