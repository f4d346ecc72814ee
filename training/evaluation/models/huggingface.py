"""Vision networks of transformers as evaluations see them, with the image processor that lies beside their weights.

| model types | summary | dense features |
| --- | --- | --- |
| those of `PUBLISHED_TEACHERS` | the teacher's: projected class token, pooled, class token, none | the teacher's |
| those of `CLASS_TOKEN` | class token after the last norm | patch tokens after it |
| any other that answers a map, or tokens on a grid | pooled output, or else the features' mean | map or tokens |
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2.functional import InterpolationMode
from transformers import AutoConfig, AutoImageProcessor, AutoModel
from transformers.image_utils import pil_torch_interpolation_mapping

from foundation.errors import first_few
from modeling_radio.tokenizer import open_tokenizer
from modeling_radio.zero_shot_radio import fill_templates
from training.evaluation.models.base import Encoding
from training.evaluation.models.pretrained import Preprocessing, PretrainedFeatures, tokens_to_maps
from training.teachers.published.language import ClipTeacher, SiglipTeacher, Tipsv2Teacher
from training.teachers.published.segmenters import Sam3Teacher, SamTeacher
from training.teachers.published.self_supervised import DinoTeacher


PUBLISHED_TEACHERS: dict[str, Any] = {
    kind: teacher
    for teacher in (ClipTeacher, SiglipTeacher, Tipsv2Teacher, DinoTeacher, SamTeacher)
    for kind in teacher.model_classes
    if kind != "clip_vision_model"  # which may lack the projection that the teacher asks for
} | dict.fromkeys(("sam3_video", "sam3", "sam3_vision_model", "sam3_vit_model"), Sam3Teacher)
"""By model type, teachers whose answer is the network's."""

CLASS_TOKEN = ("deit", "vit", "vit_mae", "vit_msn")
"""Model types whose summary is the first token. ViT has a pooled output too, of which most checkpoints lack weights."""

VISION_PARTS = ("vision_model", "vision_encoder", "vision_tower")
"""Where models of several kinds of input have their vision network."""


class HuggingfacePreprocessing(Preprocessing):
    """The preprocessing of a folder of transformers.

    Args:
        processor: The folder's image processor.
    """

    def __init__(self, processor: Any) -> None:
        published = processor.resample
        super().__init__(
            processor.to_dict(),
            InterpolationMode.BICUBIC if published is None else pil_torch_interpolation_mapping[published],
        )
        self.processor = processor

    def as_published(self, image: Tensor) -> Tensor:
        """Return what the folder's processor makes of an image."""
        inputs = self.processor(image, return_tensors="pt")
        if "spatial_shapes" in inputs:
            return _unflattened(inputs, self.processor.patch_size)
        return inputs["pixel_values"][0]

    def normalize(self, image: Tensor) -> Tensor:
        """Return the image rescaled and normalized."""
        off = {name: False for name in ("do_resize", "do_center_crop", "do_pad") if name in self.settings}
        if "spatial_shapes" in self.processor.model_input_names:
            off["max_num_patches"] = image.shape[-2] * image.shape[-1] // self.processor.patch_size**2
            return _unflattened(self.processor(image, return_tensors="pt", **off), self.processor.patch_size)
        return self.processor(image, return_tensors="pt", **off)["pixel_values"][0]


class HuggingfaceFeatures(PretrainedFeatures):
    """A vision network of transformers.

    Args:
        read: From normalized images to summary and dense features.
        processor: The folder's image processor.
        network: What `read` runs.
        options: As of `PretrainedFeatures`.
    """

    def __init__(self, read: Callable[[Tensor], Encoding], processor: Any, network: nn.Module, **options: Any) -> None:
        self.read = read
        super().__init__(network, HuggingfacePreprocessing(processor), **options)

    def answer(self, pixels: Tensor) -> Encoding:
        """Return summary and dense features of normalized images."""
        return self.read(pixels)


class DualEncoderFeatures(HuggingfaceFeatures):
    """A CLIP or SigLIP: its summary lives in the space of its texts.

    Args:
        folder: With both towers and the tokenizer.
        arguments: As of `HuggingfaceFeatures`.
        options: As of `HuggingfaceFeatures`.
    """

    text_adaptor: str | None = None

    def __init__(self, folder: Path, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.folder = folder
        self._texts: tuple[Any, Any] | None = None

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Return a unit vector for each text, `(num_texts, text_dim)`, by the tokenizer in the folder."""
        if self._texts is None:
            model = AutoModel.from_pretrained(self.folder, trust_remote_code=False).eval().to(self.device)
            self._texts = model, open_tokenizer(self.folder)
        model, tokenizer = self._texts
        length = model.config.text_config.max_position_embeddings
        # SigLIP's towers read the last position, so that their texts are padded to the full length.
        padding = True if model.config.model_type == "clip" else "max_length"
        embeds = []
        for start in range(0, len(texts), batch_size):
            part = list(texts[start : start + batch_size])
            tokens = tokenizer(part, padding=padding, truncation=True, max_length=length, return_tensors="pt")
            output = model.get_text_features(tokens["input_ids"].to(self.device))
            embeds.append(output.pooler_output.float().cpu())
        return F.normalize(torch.cat(embeds), dim=-1)

    def embed_classes(self, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Return a unit vector for each class, the mean over prompts, `(num_classes, text_dim)`."""
        prompts = [prompt for name in class_names for prompt in fill_templates(name, templates)]
        embeds = self.embed_texts(prompts).unflatten(0, (len(class_names), len(templates)))
        return F.normalize(embeds.mean(dim=1), dim=-1)


def open_huggingface(folder: Path, *, device: str | torch.device = "cpu", **options: Any) -> HuggingfaceFeatures:
    """Open the vision network in a folder of transformers.

    Args:
        folder: With `config.json`, `preprocessor_config.json` and weights.
        device: Where it runs.
        options: `name`, `size_px` and `dtype`, as of `PretrainedFeatures`.

    Raises:
        ValueError: If the network or the processor does not open, weights are missing, or the answer has no dense
            features.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    if config.model_type in PUBLISHED_TEACHERS:
        teacher = PUBLISHED_TEACHERS[config.model_type](options["name"], source=str(folder)).to(device)
        options["runs_at_any_size"] = teacher.runs_at_any_size
        arguments = (lambda pixels: Encoding(*teacher.encode(pixels)), processor, teacher)
        if config.model_type in ("clip", "siglip", "siglip2"):
            return DualEncoderFeatures(folder, *arguments, **options)
        return HuggingfaceFeatures(*arguments, **options)
    network, has_pooler = _open_network(folder, config)
    network = network.eval().to(device)
    return HuggingfaceFeatures(_Reader(network, has_pooler), processor, network, **options)


def _open_network(folder: Path, config: Any) -> tuple[Any, bool]:
    """Return the vision network, and whether the checkpoint has the weights of its pooled output."""
    if config.model_type == "vit_mae":
        config.mask_ratio = 0.0
    network, report = AutoModel.from_pretrained(
        folder, trust_remote_code=False, config=config, output_loading_info=True
    )
    missing = sorted(report["missing_keys"])
    if any(".pooler." not in f".{key}" for key in missing):  # others than those of the pooled output
        raise ValueError(f"the folder is not a complete {type(network).__name__}: it lacks {first_few(missing, 3)}.")
    with torch.no_grad():
        for key in missing:  # drawn anew at each opening, and not used: the fingerprint would be another each time
            network.get_parameter(key).zero_()
    parts = dict(network.named_children())
    if "vision_config" in config:
        found = [part for part in VISION_PARTS if part in parts]
        if not found:
            raise ValueError(
                f"{type(network).__name__} must have its vision network in one of {', '.join(VISION_PARTS)}, got "
                f"{', '.join(parts)}. Save that part alone, and give its folder."
            )
        network = parts[found[0]]
    if network.main_input_name != "pixel_values":
        raise ValueError(f"{type(network).__name__} must take images, got one that takes {network.main_input_name}.")
    return network, not missing


class _Reader:
    """Reads summary and dense features from the answer of a network of which only the general form is known."""

    def __init__(self, network: Any, has_pooler: bool) -> None:
        self.network, self.has_pooler, self.config = network, has_pooler, network.config
        parameters = inspect.signature(network.forward).parameters
        self.options = {name: True for name in ("interpolate_pos_encoding",) if name in parameters}

    def __call__(self, pixels: Tensor) -> Encoding:
        options: dict[str, Any] = dict(self.options)
        if self.config.model_type == "vit_mae":  # its patches in their order: it would shuffle them
            num_patches = pixels.shape[-2] * pixels.shape[-1] // self.config.patch_size**2
            options["noise"] = torch.arange(num_patches, device=pixels.device).expand(len(pixels), -1)
        output = self.network(pixels, **options)
        hidden = output["last_hidden_state"]
        features = hidden if hidden.ndim == 4 else tokens_to_maps(hidden, *self._grid(hidden, pixels))
        if self.config.model_type in CLASS_TOKEN:
            return Encoding(hidden[:, 0], features)
        pooled = output.get("pooler_output") if self.has_pooler else None
        summary = features.mean(dim=(2, 3)) if pooled is None else pooled.flatten(1)
        return Encoding(summary, features)

    def _grid(self, tokens: Tensor, pixels: Tensor) -> tuple[int, int]:
        """Return the rows and columns of the patches' tokens; what is left must be the prefix before them."""
        height, width = pixels.shape[-2:]
        settings = self.config.to_dict()
        num_registers = settings.get("num_register_tokens") or 0
        prefixes = {0, 1, num_registers, 1 + num_registers, *([2] if self.config.model_type == "deit" else [])}
        for stride in _strides(settings):
            # A border that makes no whole patch is cut off (ViT), or filled up to one (Swin).
            for rows, cols in ((height // stride, width // stride), (-(-height // stride), -(-width // stride))):
                if tokens.ndim == 3 and tokens.shape[1] - rows * cols in prefixes:
                    return rows, cols
        raise ValueError(
            f"The answer of {type(self.network).__name__} must be a map or tokens on the grid of its patches, got "
            f"{tuple(tokens.shape)} for images of {height} x {width} px. Teach it to training/evaluation/models/"
            "huggingface.py, or write a Teacher of it (training/teachers/base.py)."
        )


def _strides(settings: Mapping[str, Any]) -> list[int]:
    """Return how many pixels a cell may have, the likeliest first: a hierarchy halves its grid at each stage."""
    patch = settings.get("patch_stride") or settings.get("patch_size") or 4
    first = patch if isinstance(patch, int) else patch[0]
    stages = settings.get("depths") or [1]
    return list(dict.fromkeys([first * 2 ** (len(stages) - 1), first]))


def _unflattened(inputs: Any, patch_size: int) -> Tensor:
    """Return the image that flattened patches, colors last, were made of, `(3, height, width)`."""
    rows, cols = inputs["spatial_shapes"][0].tolist()
    patches = (
        inputs["pixel_values"][0, : rows * cols].unflatten(1, (patch_size, patch_size, 3)).unflatten(0, (rows, cols))
    )
    # (rows, cols, p, p, 3) -> (3, rows * p, cols * p)
    return patches.permute(4, 0, 2, 1, 3).flatten(3, 4).flatten(1, 2)
