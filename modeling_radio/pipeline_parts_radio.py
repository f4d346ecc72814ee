"""What our pipelines add to transformers' own: batches of any sizes, several looks at an image, tuned thresholds."""

from typing import Any

import torch
from torch import Tensor
from transformers.image_utils import load_image

from .resolution_radio import round_to_step


VIEW_OPTIONS = ("tile_size", "tile_overlap", "scales", "flip", "nms_threshold")
"""What `predict` of the task models takes."""
DEFAULT_THRESHOLD = 0.5  # transformers' own


class AnySizeBatches:
    """What lets a pipeline take images of different sizes with `batch_size=`: those of one size run together.

    transformers joins the tensors of a batch along their first axis, which asks for one size. It keeps lists, so each
    tensor travels in a list until the model runs. Results are those of one image at a time. The model is asked for
    outputs by name, which pipelines read, whatever its configuration says. What a processor with `do_pad` adds is cut
    off again: transformers' pipelines do not tell results of images from those of padding.
    """

    def check_model_type(self, supported_models: Any) -> None:
        """Accept the model: the folder that names this class holds it."""

    def preprocess(self, *args: Any, **options: Any) -> Any:
        """Return the inputs of one image, tensors in lists."""
        inputs = without_padding(super().preprocess(*args, **options))  # pyrefly: ignore[missing-attribute]
        for name, value in inputs.items():
            inputs[name] = [value] if isinstance(value, Tensor) else value
        return inputs

    def _forward(self, model_inputs: Any, **options: Any) -> Any:
        run = super()._forward  # pyrefly: ignore[missing-attribute]
        if isinstance(model_inputs["pixel_values"][0], Tensor):  # one image, which nothing has joined
            image = {name: unwrap(value) for name, value in model_inputs.items()}
            return run({**image, "return_dict": True}, **options)
        count = len(model_inputs["pixel_values"])
        images = [{name: unwrap(values[index]) for name, values in model_inputs.items()} for index in range(count)]
        groups: dict[Any, list[int]] = {}
        for index, image in enumerate(images):
            groups.setdefault(image["pixel_values"].shape, []).append(index)
        joined = [_join([images[index] for index in group]) for group in groups.values()]
        outputs = [run({**inputs, "return_dict": True}, **options) for inputs in joined]
        return outputs[0] if len(outputs) == 1 else _merge(outputs, list(groups.values()))


def without_padding(inputs: Any) -> Any:
    """Return the inputs of one image without `pixel_mask` and the padding below and to the right that it tells."""
    mask = inputs.pop("pixel_mask", None)
    if mask is not None:
        rows, cols = int(mask[0, :, 0].sum()), int(mask[0, 0].sum())
        inputs["pixel_values"] = inputs["pixel_values"][..., :rows, :cols]
    return inputs


def unwrap(value: Any) -> Any:
    """Return a tensor without the list that it travelled in."""
    return value[0] if isinstance(value, list) and value and isinstance(value[0], Tensor) else value


def _join(images: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the inputs of images of one size as transformers joins them."""
    joined = {name: [image[name] for image in images] for name in images[0]}
    return {name: torch.cat(values) if isinstance(values[0], Tensor) else values for name, values in joined.items()}


def _merge(outputs: list[Any], groups: list[list[int]]) -> Any:
    """Return the outputs of several groups of images as one, in the order of the images.

    Args:
        outputs: Of each group, batch first.
        groups: The positions of its images.
    """
    merged = {}
    for name, first in outputs[0].items():
        if not isinstance(first, (Tensor, list)):
            continue  # hidden states, attentions and adaptors, which no pipeline returns
        by_image = {
            index: value
            for output, group in zip(outputs, groups, strict=True)
            for index, value in zip(group, output[name], strict=True)
        }
        values = [by_image[index] for index in range(len(by_image))]
        is_one_shape = isinstance(first, Tensor) and len({value.shape for value in values}) == 1
        merged[name] = torch.stack(values) if is_one_shape else values
    return type(outputs[0])(merged)


def limits_of(config: Any, threshold: float | str) -> dict[str, float]:
    """Return the least score of each label.

    Args:
        config: Of the model.
        threshold: A number in [0, 1] for all labels, or "tuned" for `config.score_thresholds`.

    Raises:
        ValueError: If it is something else, or there are no tuned ones.
    """
    names = [config.id2label[number] for number in range(config.num_labels)]
    if threshold == "tuned":
        if config.score_thresholds is None or len(config.score_thresholds) != len(names):
            raise ValueError(
                f"`threshold` 'tuned' needs `score_thresholds` of the {len(names)} classes in the configuration, got "
                f"{config.score_thresholds}."
            )
        return dict(zip(names, config.score_thresholds, strict=True))
    if isinstance(threshold, str) or not 0 <= threshold <= 1:
        raise ValueError(f"`threshold` must be a number in [0, 1] or 'tuned', got {threshold!r}.")
    return dict.fromkeys(names, threshold)


def above(found: list[dict[str, Any]], limits: dict[str, float] | None) -> list[dict[str, Any]]:
    """Return the answers whose score exceeds their label's limit."""
    return found if limits is None else [answer for answer in found if answer["score"] > limits[answer["label"]]]


class TunedThresholds:
    """What lets a pipeline of objects take `config.score_thresholds` where no threshold is given."""

    model: Any

    def _limits(self, threshold: float | str) -> dict[str, float]:
        """Return the least score of each label: a number, or the tuned ones, and without these transformers' own."""
        if threshold == "tuned" and self.model.config.score_thresholds is None:
            threshold = DEFAULT_THRESHOLD
        return limits_of(self.model.config, threshold)


class SeveralViews(AnySizeBatches):
    """What lets a pipeline look at an image several times: the options of `ViewOptions`, and what `predict` takes more.

    With `tile_size` images keep their own size, up to whole patches, which the processor would otherwise reduce.
    """

    view_options: tuple[str, ...] = VIEW_OPTIONS[:4]
    model: Any
    image_processor: Any
    dtype: torch.dtype

    def _sanitize_parameters(self, **kwargs: Any) -> Any:
        refused = [name for name in VIEW_OPTIONS if name in kwargs and name not in self.view_options]
        if refused:
            raise ValueError(f"`{refused[0]}` must be left out: {type(self).__name__} has {self.view_options}.")
        views = {name: kwargs.pop(name) for name in self.view_options if name in kwargs}
        before, forward, after = super()._sanitize_parameters(**kwargs)  # pyrefly: ignore[missing-attribute]
        if views.get("tile_size") is not None:
            before = {**before, "keeps_size": True}
        return before, {**forward, **views}, after

    def preprocess(self, image: Any, *args: Any, keeps_size: bool = False, **options: Any) -> Any:
        """Return the inputs of one image; with `keeps_size` it is not reduced."""
        if not keeps_size:
            return super().preprocess(image, *args, **options)
        image = load_image(image, timeout=options.get("timeout"))
        inputs = super().preprocess(image, *args, **options)
        step = self.image_processor.size_divisor or self.image_processor.patch_size
        own = [round_to_step(side, step) for side in (image.height, image.width)]
        pixels = self.image_processor(
            images=[image], size=own, max_img_size=max(own), do_pad=False, pad_size=None, return_tensors="pt"
        )
        inputs["pixel_values"] = [pixels["pixel_values"].to(self.dtype)]
        return inputs

    def _forward(self, model_inputs: Any, **options: Any) -> Any:
        views = {name: options.pop(name) for name in self.view_options if name in options}
        if not views:
            return super()._forward(model_inputs, **options)
        is_joined = not isinstance(model_inputs["pixel_values"][0], Tensor)
        if is_joined:
            count = len(model_inputs["pixel_values"])
            if count > 1:
                raise ValueError(f"`batch_size` must be 1 with {', '.join(map(repr, views))}, got {count}.")
            model_inputs = {name: value[0] for name, value in model_inputs.items()}
        outputs = self.model.predict(unwrap(model_inputs["pixel_values"]), **views)
        if "target_size" in model_inputs:
            size = unwrap(model_inputs["target_size"])
            # transformers takes a batch apart again: tensors and lists along their first axis.
            outputs["target_size"] = [size] if is_joined and not isinstance(size, Tensor) else size
        return outputs
