"""The E-RADIOs that NVIDIA published, and what a training run says of another."""

from collections.abc import Mapping
from typing import Any

from modeling_radio.eradio_radio import check_eradio
from modeling_radio.presets_radio import RELEASES

from .arguments import ERADIO


PUBLISHED: dict[str, dict[str, Any]] = {ERADIO: RELEASES["e-radio_v2"].fields["eradio"]}
"""By the name of NVIDIA's architecture (`args.model`), the arguments of the networks that it published."""


def arguments_of(args: Mapping[str, Any], beside: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the arguments of the network that a training run built.

    Args:
        args: Arguments of the run.
        beside: Content of `eradio_arguments.json` beside the checkpoint, where there is one.

    Raises:
        ValueError: If an unpublished network has no such file, or the file is wrong.
    """
    arguments = PUBLISHED.get(args["model"], beside)
    if arguments is None:
        raise ValueError(
            f"`args.model` must be one of {list(PUBLISHED)}, got {args['model']!r}. Put the arguments of another "
            "E-RADIO into `eradio_arguments.json` beside the checkpoint, and convert it with radio convert."
        )
    check_eradio(arguments)
    return dict(arguments)


def published_name(arguments: Mapping[str, Any]) -> str | None:
    """Return NVIDIA's name of a published network of these arguments, where there is one."""
    for name, published in PUBLISHED.items():
        if all(_plain(arguments.get(key)) == _plain(value) for key, value in published.items()):
            return name
    return None


def _plain(value: Any) -> Any:
    return [_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value
