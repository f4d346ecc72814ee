"""Opening of teachers by Hub id or folder, and the base class of those of transformers' model classes."""

from __future__ import annotations

import functools
import getpass
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from filelock import FileLock

from modeling_radio.checks_radio import check_choice
from modeling_radio.core.hub import explain_failure
from modeling_radio.core.ranks import apart
from modeling_radio.training.recipes.sections import Precision
from modeling_radio.training.teachers.base import Teacher
from modeling_radio.training.teachers.outputs import teacher_error
from modeling_radio.training.teachers.published.architectures import published_config


Weights = Literal["pretrained", "random"]
WEIGHT_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def check_weights(name: str, weights: str, weights_dtype: str = "float32") -> None:
    """Raise a ValueError if a teacher's option `weights` or `weights_dtype` is unknown."""
    error = functools.partial(teacher_error, name)
    check_choice("weights", weights, get_args(Weights), error=error)
    check_choice("weights_dtype", weights_dtype, WEIGHT_DTYPES, error=error)


@contextmanager
def loading_turn() -> Iterator[None]:
    """Let this user's processes on this machine load teachers one after the other.

    Otherwise the ranks of a machine would hold several copies of all weights in its memory; the downloads of the first
    one serve the others.
    """
    user = os.getuid() if hasattr(os, "getuid") else getpass.getuser()  # in a container a user may have no name
    with FileLock(Path(tempfile.gettempdir()) / f"radio-teachers-{user}.lock"), apart():
        yield


def load_pretrained(model_class: type, source: str, name: str, **arguments: Any) -> Any:
    """Return `model_class.from_pretrained(source)`, refusing a checkpoint that lacks some weights.

    Raises:
        ValueError: If the checkpoint is not that model, is incomplete, or cannot be reached; the message is one line.
    """
    try:
        model, report = model_class.from_pretrained(source, output_loading_info=True, **arguments)
    except (OSError, ValueError, RuntimeError) as error:
        reason = explain_failure(error, source)
        message = f"`source` {source!r} does not load as {model_class.__name__}: {reason}"
        raise teacher_error(name, message) from error
    problems = sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
    if problems:
        shown = ", ".join(problems[:3])
        raise teacher_error(
            name,
            f"`source` {source!r} is not a complete {model_class.__name__}: {len(problems)} weights are missing or of "
            f"another shape, the first are {shown}.",
        )
    return model


def load_config(source: str, name: str) -> Any:
    """Return the checkpoint's config.

    Raises:
        ValueError: If it is missing, behind a license gate, or of a model that the installed transformers does not
            know; the message is one line.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise teacher_error(name, f"no model at `source` {source!r}: {explain_failure(error, source)}") from error


def check_model_type(name: str, source: str, config: Any, accepted: tuple[str, ...]) -> None:
    """Raise a ValueError if the model type of a checkpoint is not among the accepted ones."""
    if config.model_type not in accepted:
        raise teacher_error(
            name,
            f"`source` must be a model of one of the types {list(accepted)}, got {source!r}, a {config.model_type!r}.",
        )


class ModelClass(NamedTuple):
    """Class and conversions with which a checkpoint of one model type is opened.

    Attributes:
        name: Class of transformers.
        config_of: From the checkpoint's config to that of the class.
        network_of: From a model of the class to the teacher's network.
    """

    name: str
    config_of: Callable[[Any], Any] = lambda config: config
    network_of: Callable[[Any], Any] = lambda model: model


class PublishedTeacher(Teacher):
    """A vision network of transformers, opened by Hub id or from a folder.

    A subclass defines the checkpoints that it opens (`model_classes`), reads their configuration (`facts_of`), and
    turns the network's output into summary and features (`encode`). A constructor like this one takes further options.

    Args:
        name: Name of the teacher.
        source: Hub id or folder.
        weights: "pretrained", or "random" for the architecture only, without a download for published teachers, and
            from the config at `source` for others.
        weights_dtype: Type of the stored weights.

    Attributes:
        model_classes: Classes of checkpoints by their model type.
        network: The network that `encode` runs.

    Raises:
        ValueError: If an option is unknown, or the source is missing, behind a license gate, incomplete or another
            model; the message is one line.
    """

    model_classes: ClassVar[Mapping[str, ModelClass]] = {}

    network: Any

    def __init__(
        self, name: str, *, source: str, weights: Weights = "pretrained", weights_dtype: Precision = "float32"
    ) -> None:
        self._take(name, open_network(name, source, self.model_classes, weights, weights_dtype))

    @staticmethod
    def facts_of(network: Any) -> dict[str, Any]:
        """Return the arguments of `Teacher` that the network decides: widths, sizes and default run mode."""
        raise NotImplementedError

    def _take(self, name: str, network: Any) -> None:
        super().__init__(name, **self.facts_of(network))
        self.network = network
        self.freeze()


def open_network(
    name: str, source: str, classes: Mapping[str, ModelClass], weights: Weights, weights_dtype: Precision
) -> Any:
    """Return a network of transformers, opened with the class of the checkpoint's model type."""
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
        # Without a border of less than a patch: 384 px in patches of 14 are 378 px.
        "native_size_px": side_px // config.patch_size * config.patch_size,
        **others,
    }


def vision_config(config: Any) -> Any:
    """Return the vision part of the configuration of a model of images and something else."""
    return config.vision_config
