"""Teachers of transformers' own model classes, by Hub id or local folder: how they are opened.

A kind is a subclass of `PublishedTeacher` in a file of this folder. Patch and native size are the checkpoint's. All
take `weights` (pretrained, or random ones of the same architecture, to plan or measure a run) and `weights_dtype` (the
type that the weights are kept in). `docs/guides/train/teachers.md` lists them with their licenses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from torch import nn

from training.recipe_sections.networks import Precision
from training.teachers.base import Teacher
from training.teachers.depths import longest_list
from training.teachers.loading import (
    WEIGHT_DTYPES,
    Weights,
    check_model_type,
    check_weights,
    load_config,
    load_pretrained,
)
from training.teachers.published.architectures import published_config


class ModelClass(NamedTuple):
    """How a checkpoint of one model type is opened.

    Attributes:
        name: Class of transformers.
        config_of: From the checkpoint's config to that of the class.
        network_of: From a model of the class to the network that the teacher runs.
    """

    name: str
    config_of: Callable[[Any], Any] = lambda config: config
    network_of: Callable[[Any], Any] = lambda model: model


class PublishedTeacher(Teacher):
    """A vision network of transformers, opened by Hub id or from a folder.

    A subclass says which checkpoints it opens (`model_classes`), what their configuration says (`facts_of`), and how
    the network's output becomes an answer (`encode`). Options of its own go into a constructor like this one.

    Args:
        name: Name of the teacher.
        source: Hub id or folder.
        weights: "pretrained", or "random" for the architecture only: of the published teachers without a download, of
            others from the config at `source`.
        weights_dtype: Type that the weights are kept in.

    Attributes:
        model_classes: How checkpoints are opened, by their model type.
        network: What `encode` runs.

    Raises:
        ValueError: If an option is unknown, or the source is missing, behind a license gate, incomplete or another
            model: one line.
    """

    model_classes: ClassVar[Mapping[str, ModelClass]] = {}

    network: Any

    def __init__(
        self, name: str, *, source: str, weights: Weights = "pretrained", weights_dtype: Precision = "float32"
    ) -> None:
        self._take(name, open_network(name, source, self.model_classes, weights, weights_dtype))

    @staticmethod
    def facts_of(network: Any) -> dict[str, Any]:
        """Return those arguments of `Teacher` that the network decides: widths, sizes, how it runs by default."""
        raise NotImplementedError

    def blocks(self) -> Sequence[nn.Module]:
        """Return the transformer's blocks."""
        return longest_list(self.network)

    def _take(self, name: str, network: Any) -> None:
        super().__init__(name, **self.facts_of(network))
        self.network = network
        self.freeze()


def open_network(
    name: str, source: str, classes: Mapping[str, ModelClass], weights: Weights, weights_dtype: Precision
) -> Any:
    """Return a network of transformers, given how it is opened by the checkpoint's model type."""
    import transformers

    check_weights(name, weights, weights_dtype)
    config = published_config(source) if weights == "random" else None
    if config is None:
        config = load_config(source, name)
    check_model_type(name, source, config, tuple(classes))
    class_name, config_of, network_of = classes[config.model_type]
    model_class, dtype = getattr(transformers, class_name), WEIGHT_DTYPES[weights_dtype]
    if weights == "random":
        return network_of(model_class(config_of(config)).to(dtype))
    return network_of(load_pretrained(model_class, source, name, config=config_of(config), dtype=dtype))


def vision_facts(config: Any, summary_dim: int | None, side_px: int | None = None, **others: Any) -> dict[str, Any]:
    """Return the arguments of `Teacher` that every vision configuration has, and others."""
    side_px = config.image_size if side_px is None else side_px
    return {
        "summary_dim": summary_dim,
        "feature_dim": config.hidden_size,
        "patch_size": config.patch_size,
        # Without the border that makes no whole patch: 384 px in patches of 14 are 378 px.
        "native_size_px": side_px // config.patch_size * config.patch_size,
        **others,
    }


def vision_config(config: Any) -> Any:
    """Return the vision part of the configuration of a model of images and something else."""
    return config.vision_config
