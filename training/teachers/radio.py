"""RADIO models as teachers of smaller students: the backbone itself, or one of its adaptors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.core.hub import explain_failure, find_folder
from modeling_radio.core.opening import open_model
from modeling_radio.outputs_radio import NetworkOutput
from modeling_radio.projector import RadioProjector
from modeling_radio.training.recipes.sections import Precision
from modeling_radio.training.teachers.base import Teacher
from modeling_radio.training.teachers.outputs import TeacherOutput, resample_features, teacher_error
from modeling_radio.training.teachers.published.architectures import published_config
from modeling_radio.training.teachers.published.base import (
    WEIGHT_DTYPES,
    Weights,
    check_model_type,
    check_weights,
)


class RadioTeacher(Teacher):
    """A RADIO model: a folder of ours, one in the layout of NVIDIA's repositories, or either on the Hub.

    The summary of the backbone is RADIO's own, its class tokens side by side, and the features are its patch tokens.
    Those of an adaptor are its predictions in the space of its teacher; if it upsamples, they are averaged over each
    patch. With `projector`, the teacher is what a language model sees of an image: the tokens that the projector makes
    of the backbone's features, without a summary. The network itself normalizes pixels.

    Args:
        name: Name of the teacher.
        source: Folder, Hub id, for example `nvidia/C-RADIOv4-H`, or `.pth.tar` of NVIDIA's.
        adaptor_name: The adaptor whose outputs are used; None for the backbone.
        projector: Whether to use the outputs of the projector in the folder `source`, which `radio convert
            NEMOTRON_FOLDER tower --projector` writes. A token stands for 2 x 2 patches: in the run mode "native" it
            sees images at twice their size, so that each patch of the student has one.
        weights: "pretrained", or "random" for the architecture only, without a download for published models.
        weights_dtype: Type of the stored weights.

    Raises:
        ValueError: If an option is unknown, the source is no sound RADIO model, or it has no such adaptor with dense
            features.
    """

    image_mean, image_std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    read_options = frozenset({"adaptor_name"})

    def __init__(
        self,
        name: str,
        *,
        source: str,
        adaptor_name: str | None = None,
        projector: bool = False,
        weights: Weights = "pretrained",
        weights_dtype: Precision = "float32",
    ) -> None:
        check_weights(name, weights, weights_dtype)
        if projector and adaptor_name is not None:
            raise teacher_error(name, f"`projector` must be false with `adaptor_name`, got {adaptor_name!r}.")
        adaptors = () if adaptor_name is None else (adaptor_name,)
        build = _open_network if weights == "pretrained" else _random_network
        network = build(name, source, adaptors)
        config = network.config
        summary_dim, feature_dim = _widths(name, config, adaptor_name)
        merge_size, module = 1, None
        if projector:
            module = _open_projector(name, source, config.hidden_size, weights)
            summary_dim, feature_dim, merge_size = None, module.output_size, module.merge_size
        super().__init__(
            name,
            summary_dim=summary_dim,
            feature_dim=feature_dim,
            patch_size=config.patch_size * merge_size,
            native_size_px=min(config.preferred_resolution),
            size_multiple=math.lcm(config.resolution_step, config.patch_size * merge_size),
        )
        self.adaptor_name = adaptor_name
        self.projector = None if module is None else module.to(WEIGHT_DTYPES[weights_dtype])
        self.network = network.to(WEIGHT_DTYPES[weights_dtype])  # pyrefly: ignore[bad-argument-type]
        heads = network.radio_model.adaptors
        network.radio_model.adaptors = nn.ModuleDict({key: heads[key] for key in heads if key == adaptor_name})
        self.freeze()

    def check_size(self, height: int, width: int) -> None:
        """Raise a ValueError if images of this size, in pixels, are off the grid or too large for the network."""
        super().check_size(height, width)
        largest = self.network.config.largest_side
        taken = self.input_sizes(height // self.grid_stride, width // self.grid_stride)[0]
        if max(taken) > largest:
            seen = " x ".join(map(str, taken))
            raise self._error(
                f"`pixel_values` of {height} x {width} px are seen at {seen} px, and it takes at most {largest} a "
                "side. Set `run_mode: fixed` with a smaller `input_size_px`."
            )

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        """Return the backbone's summary and patch tokens, or those of the adaptor."""
        return self.encode_for(pixel_values, [self])[0]

    def encode_for(self, pixel_values: Tensor, readers: Sequence[Any]) -> list[TeacherOutput]:
        """Return the outputs of backbone and adaptors from one pass of the backbone."""
        result = self.network.radio_model(pixel_values.to(self.network.dtype))
        return [reader._read(result) for reader in readers]

    def share_network(self, first: Any) -> None:
        """Use another teacher's network, except its adaptor."""
        super().share_network(first)
        for name, part in first.network.radio_model.named_children():
            if name != "adaptors":
                setattr(self.network.radio_model, name, part)

    def _read(self, result: NetworkOutput) -> TeacherOutput:
        if self.projector is not None:
            features = self.network.radio_model.make_output(result, [], "NCHW").features
            return TeacherOutput(None, self.projector(features).float())
        names = [] if self.adaptor_name is None else [self.adaptor_name]
        output: Any = self.network.radio_model.make_output(result, names, "NCHW")
        own = output if self.adaptor_name is None else output.adaptors[self.adaptor_name]
        features = resample_features(own.features.float(), *result.grid)
        return TeacherOutput(None if self.summary_dim is None else own.summary, features)


def _open_network(name: str, source: str, adaptors: Sequence[str]) -> RadioModel:
    try:
        return open_model(source, device="cpu", dtype=None, adaptors=adaptors, as_backbone=True).backbone
    except (OSError, ValueError) as error:
        message = f"`source` {source!r} does not open as a RADIO model: {explain_failure(error, source)}"
        raise teacher_error(name, message) from error


def _open_projector(name: str, source: str, hidden_size: int, weights: Weights) -> RadioProjector:
    try:
        folder = find_folder(source)
        build = RadioProjector.from_pretrained if weights == "pretrained" else RadioProjector.from_config
        projector = build(folder)
    except (OSError, ValueError) as error:
        raise teacher_error(name, f"`projector` of {source!r}: {explain_failure(error, source)}") from error
    if projector.hidden_size != hidden_size:
        raise teacher_error(
            name, f"`projector` of {source!r} must be for features of {hidden_size}, got {projector.hidden_size}."
        )
    return projector


def _random_network(name: str, source: str, adaptors: Sequence[str]) -> RadioModel:
    config = published_config(source)
    if config is None:
        try:
            folder = find_folder(source, adaptors=adaptors) if Path(source).exists() else source
            config = RadioConfig.from_pretrained(folder)
        except (OSError, ValueError) as error:
            message = f"no RADIO model at `source` {source!r}: {explain_failure(error, source)}"
            raise teacher_error(name, message) from error
    check_model_type(name, source, config, (RadioConfig.model_type,))
    return RadioModel(config)


def _widths(name: str, config: RadioConfig, adaptor_name: str | None) -> tuple[int | None, int]:
    """Return the widths of summary and features."""
    if adaptor_name is None:
        return len(config.summary_idxs or []) * config.hidden_size or None, config.hidden_size
    try:
        head = config.adaptor(adaptor_name, argument="adaptor_name")
    except ValueError as error:
        raise teacher_error(name, str(error)) from error
    if head.feature_dim is None:
        raise teacher_error(name, f"`adaptor_name` must be of one with dense features, got {adaptor_name!r}.")
    return head.summary_dim, head.feature_dim
