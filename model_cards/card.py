"""Writes the model card of a checkpoint or adapter folder from its configuration and measured results."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from modeling_radio.core.command_line import Command
from modeling_radio.core.ids import ModelFolder
from modeling_radio.core.settings import Settings


if TYPE_CHECKING:
    from modeling_radio.model_cards.licenses import License


class CardSettings(Settings):
    """Settings of the card.

    Attributes:
        checkpoint: Folder with config.json and model.safetensors, or with an adapter.
        results: File results.json of radio evaluate or radio demo; by default that of the folder.
        model_id: ORG/NAME on the Hub; without it radio publish writes it.
        name: Name of the model; by default from the id, the folder's card and its results, the version, or the folder.
        license: License of the weights by its id on the Hub, such as apache-2.0; by default that of the folder's card.
        license_name: Name of an "other" license, in lower-case letters, digits and hyphens.
        license_link: Address of the text of an "other" license, or LICENSE in the folder.
        overwrite: Replace a README.md that somebody else wrote or edited.
        trust_remote_code: Allow a folder that names code of others, such as a head of your own; it is not run.
    """

    checkpoint: ModelFolder
    results: Path | None = None
    model_id: str | None = None
    name: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    overwrite: bool = False
    trust_remote_code: bool = False


COMMAND = Command(
    "radio card",
    __doc__,
    CardSettings,
    positionals=("checkpoint",),
    examples=(
        "radio card my-folder",
        "radio card runs/mine/final --results results.json",
        "radio card runs/mine/final --license apache-2.0",
    ),
)


def _write(settings: CardSettings) -> None:
    from modeling_radio.metrics.results import Results
    from modeling_radio.model_cards.build import (  # imports torch, for which `--help` need not wait
        check_model_id,
        results_of,
        with_lineage,
        write_card,
    )
    from modeling_radio.model_cards.licenses import warnings_of
    from modeling_radio.model_cards.rendering import is_edited

    check_model_id(settings.model_id)
    license = _license(settings)
    results = results_of(settings.checkpoint) if settings.results is None else Results.load(settings.results)
    readme = settings.checkpoint / "README.md"
    if readme.is_file() and not settings.overwrite and is_edited(readme):
        raise ValueError(
            f"{str(readme)!r} was written or edited by somebody, and a new card would replace it. Copy the parts that "
            "you need to another folder, then give --overwrite."
        )
    path = write_card(
        settings.checkpoint,
        results,
        model_id=settings.model_id,
        name=_name(settings),
        license=license,
        trusts_remote_code=settings.trust_remote_code,
    )
    print(f"Wrote {path}." + ("" if license else " It names no license yet: add one by --license ID."))
    results, lineage = with_lineage(results or Results(measurements=[]), settings.checkpoint)
    for warning in warnings_of([*results.teachers, *lineage.weights]):
        print(f"Please note {warning}")


def _license(settings: CardSettings) -> License | None:
    """Return the license of the settings, or that of the replaced card."""
    from modeling_radio.model_cards.build import license_of
    from modeling_radio.model_cards.licenses import OTHER, License

    if settings.license is not None or settings.license_name is not None or settings.license_link is not None:
        return License(settings.license or OTHER, settings.license_name, settings.license_link)
    return license_of(settings.checkpoint)


def _name(settings: CardSettings) -> str | None:
    """Return the name of the settings, or that in the metadata of the replaced card."""
    from modeling_radio.model_cards.build import metadata_of

    if settings.name or settings.model_id:
        return settings.name
    try:
        data = metadata_of(settings.checkpoint)
    except ValueError:  # a new card replaces a damaged one
        return None
    return None if data is None else data.get("model_name")


main = partial(COMMAND.run, _write, extra="train")


if __name__ == "__main__":
    sys.exit(main())
