"""Settings of the image processor: what each of them may be, checked where it enters."""

import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from transformers.image_utils import ChannelDimension, PILImageResampling
from transformers.utils.generic import TensorType

from .configuration_radio import RadioConfig
from .messages_radio import did_you_mean
from .resolution_radio import is_pixels, largest_side, read_exact_size, read_size


FLAGS = (
    "do_convert_rgb",
    "do_resize",
    "do_rescale",
    "do_normalize",
    "do_center_crop",
    "do_pad",
    "do_pack",
    "do_reduce_labels",
    "default_to_square",
    "disable_grouping",
)
# The filters that torchvision has for tensors.
FILTERS = (
    PILImageResampling.NEAREST,
    PILImageResampling.LANCZOS,
    PILImageResampling.BILINEAR,
    PILImageResampling.BICUBIC,
)
MIN_RESCALE_FACTOR = 2.0**-32
IDENTITY = {"image_mean": (0.0, 0.0, 0.0), "image_std": (1.0, 1.0, 1.0)}
"""Normalization that changes nothing: `RadioModel` normalizes inside."""

# What transformers writes into `preprocessor_config.json` besides settings.
_SERVICE_KEYS = (
    *("auto_map", "processor_class"),
    *("feature_extractor_type", "image_processor_type", "video_processor_type"),
)


def settings_of_model(config: RadioConfig) -> dict[str, Any]:
    """Return the settings of a processor that follow from the model: its patch, largest side, preferred resolution."""
    return {
        "patch_size": config.patch_size,
        "max_img_size": largest_side(config),
        "size": {"shortest_edge": min(config.preferred_resolution)},
        "size_divisor": None if config.resolution_step == config.patch_size else config.resolution_step,
    }


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number, and no truth value."""
    largest = sys.float_info.max  # compared, since an integer may be too large to become a float
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -largest <= value <= largest


def _is_device(value: Any) -> bool:
    """Return whether torch has a device here: the CPU, or the accelerator by its name, its number or both."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    counts = {"cpu": 1} if accelerator is None else {"cpu": 1, accelerator.type: torch.accelerator.device_count()}
    if isinstance(value, int) and accelerator is not None:
        return not isinstance(value, bool) and 0 <= value < counts[accelerator.type]
    name, _, index = str(value).partition(":")
    is_known = isinstance(value, (str, torch.device)) and name in counts
    return is_known and (not index or (index.isdecimal() and int(index) < counts[name]))


def _is_identity(name: str) -> Callable[[Any], bool]:
    values = IDENTITY[name]

    def check(value: Any) -> bool:
        parts = list(value) if isinstance(value, (list, tuple)) else [value]
        return bool(parts) and all(is_number(part) and part == values[0] for part in parts)

    return check


_NORMALIZING = "RadioModel normalizes inside; see `norm_mean` and `norm_std` of the model's config."

# By setting: whether a value is right, the rule, and what to do.
_RULES: dict[str, tuple[Callable[[Any], bool], str, str]] = {
    **{name: (lambda value: isinstance(value, bool), "True or False", "") for name in FLAGS},
    "patch_size": (is_pixels, "a positive integer", "It is the `patch_size` of the model's config."),
    "size_divisor": (is_pixels, "a positive integer or None", "None rounds sides to the patch."),
    "max_img_size": (is_pixels, "a positive integer", "It is the `max_img_size` of the model's config."),
    "rescale_factor": (
        lambda value: is_number(value) and MIN_RESCALE_FACTOR <= value <= 1,
        "a positive number of at most 1, and at least that of 32-bit integers",
        "Bytes take 1/255; floats in [0, 1] take `do_rescale=False`.",
    ),
    "resample": (
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value in FILTERS,
        f"one of {[int(entry) for entry in FILTERS]} (PIL's nearest, Lanczos, bilinear, bicubic)",
        "",
    ),
    "image_mean": (_is_identity("image_mean"), f"{list(IDENTITY['image_mean'])}, which changes nothing", _NORMALIZING),
    "image_std": (_is_identity("image_std"), f"{list(IDENTITY['image_std'])}, which changes nothing", _NORMALIZING),
    "data_format": (
        lambda value: value == ChannelDimension.FIRST,
        "'channels_first'",
        "It is what the model takes; move the axis afterwards.",
    ),
    "input_data_format": (
        lambda value: value in (ChannelDimension.FIRST, ChannelDimension.LAST),
        "'channels_first', 'channels_last' or None",
        "None finds out.",
    ),
    "return_tensors": (lambda value: value in ("pt", "np", TensorType.PYTORCH), "'pt', 'np' or None", ""),
    "device": (_is_device, "a device that torch has here, for example 'cpu'", ""),
    "image_seq_length": (is_pixels, "a positive integer or None", ""),
}
_NEVER_NONE = ("patch_size", "max_img_size", "rescale_factor")


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse settings of the wrong type or out of range, one by one.

    Args:
        settings: By name, those that are known; None stands for the default but for `patch_size`, `max_img_size` and
            `rescale_factor`.

    Raises:
        ValueError: It names the first wrong setting.
    """
    for name, value in settings.items():
        if value is None and name not in _NEVER_NONE:
            continue
        if name == "size":
            read_size(value)
        elif name in ("crop_size", "pad_size"):
            read_exact_size(value, name)
        elif name in _RULES:
            is_right, rule, advice = _RULES[name]
            if not is_right(value):
                raise ValueError(f"`{name}` must be {rule}, got {value!r}.{advice and ' ' + advice}")


def check_spelling(names: Collection[str], known: Collection[str], processor: str = "RadioImageProcessor") -> None:
    """Refuse a setting that looks like a misspelled one; other unknown names are transformers' own business.

    Args:
        names: What was given.
        known: The settings that there are.
        processor: The class that has them.

    Raises:
        ValueError: It names the setting and the one that may be meant.
    """
    for name in names:
        hint = "" if name in known or name in _SERVICE_KEYS else did_you_mean(name, known)
        if hint:
            raise ValueError(f"`{name}` must be a setting of {processor}, got an unknown name.{hint}")


def check_together(settings: Mapping[str, Any]) -> None:
    """Refuse settings that contradict each other or the model.

    Args:
        settings: All of them, each right by itself.

    Raises:
        ValueError: It names the setting to change.
    """
    if settings["do_normalize"]:
        raise ValueError(
            "`do_normalize` must be False, got True. RadioModel normalizes inside, and doing it twice spoils the "
            "features; see `norm_mean` and `norm_std` of the model's config."
        )
    if settings["do_center_crop"]:
        raise ValueError("`do_center_crop` must be False, got True. Crop the image before, or give an exact `size`.")
    if settings["do_pad"] and settings["do_pack"]:
        raise ValueError(
            "`do_pad` must be False with `do_pack=True`, got True. They are two ways to join images of different "
            "sizes: choose one."
        )
    patch_size, size_divisor = settings["patch_size"], settings["size_divisor"]
    step = size_divisor or patch_size
    if step % patch_size:
        raise ValueError(f"`size_divisor` must be a multiple of `patch_size` ({patch_size}), got {size_divisor}.")
    if settings["max_img_size"] < step:
        raise ValueError(f"`max_img_size` must be at least one step of {step} pixels, got {settings['max_img_size']}.")
