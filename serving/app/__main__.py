"""Opens a page about a checkpoint: features, similarity, words, windows and its task; or writes it as a Space."""

import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from modeling_radio.core.command_line import Command
from modeling_radio.core.files import PHOTOGRAPH, RUN_FILE, check_output
from modeling_radio.core.ids import EXAMPLES, PICTURES, ModelId
from modeling_radio.core.interruption import raised_signals
from modeling_radio.core.settings import DeviceOptions, SettingsError


class AppSettings(DeviceOptions):
    """Checkpoint, device and address of the page.

    Attributes:
        checkpoint: Folder or Hub id of a backbone, a tuned model, an adapter or a model with a text tower.
        base: Folder or Hub id of an adapter's base; by default the one that the adapter names, if it is a Hub id.
        dtype: Type in which the model computes.
        num_global: Number of blocks that stay global with windows; by default the checkpoint's.
        examples: Photographs to choose from; by default validation images of the run in whose folder the checkpoint
            lies, or one of the package: always in a Space and for other machines.
        host: Address to listen at; 0.0.0.0 lets other machines in.
        port: Port to listen at; by default the first free one from 7860 on.
        share: Also open an address that others can reach for a week, through a tunnel of Gradio's.
        space: Write a folder for a Space of the Hub instead of showing the page; it needs nothing of this repository.
        overwrite: Replace that folder if it exists.
    """

    checkpoint: Annotated[ModelId, Field(min_length=1)]
    base: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    num_global: int | None = Field(None, gt=0)
    examples: list[Path] = []
    host: str = "127.0.0.1"
    port: int | None = Field(None, gt=0, lt=65536)
    share: bool = False
    space: Path | None = None
    overwrite: bool = False


COMMAND = Command(
    "radio app",
    __doc__,
    AppSettings,
    positionals=("checkpoint",),
    examples=(
        "radio app builtin:lite",
        "radio app nvidia/C-RADIOv4-H --dtype bfloat16",
        "radio app builtin:lite --space runs/space",
    ),
)


def _run(settings: AppSettings) -> None:
    for path in settings.examples:
        _check_photograph(path)
    if settings.space is None:
        _serve(settings)
        return
    examples = settings.examples or [PHOTOGRAPH]
    from modeling_radio.serving.app.space import SPACE, write_space

    checkpoint = Path(settings.checkpoint)
    read = [checkpoint, *examples]
    check_output(settings.space, overwrite=settings.overwrite, inputs=read, kind=SPACE, name="space")
    if checkpoint.is_dir() and settings.space.resolve().is_relative_to(checkpoint.resolve()):
        raise SettingsError(
            f"`space` must not lie in the checkpoint's folder, because that is copied, got {str(settings.space)!r}."
        )
    write_space(settings.space, settings.checkpoint, settings.dtype, settings.num_global, examples, settings.base)
    print(f"{settings.space}: `python app.py` in it shows it; `hf upload ORG/NAME . --repo-type space` uploads it.")


def _check_photograph(path: Path) -> None:
    from modeling_radio.image_processing_radio import UNREADABLE, read_image_file  # takes seconds to import

    try:
        read_image_file(path)
    except UNREADABLE as error:
        raise SettingsError(f"`examples` must be files of photographs, got {str(path)!r}.") from error


def images_of_run(checkpoint: Path) -> list[Path]:
    """Return validation images of the run in whose folder a model lies; none if it lies elsewhere."""
    run = checkpoint.expanduser().absolute().parent
    return sorted((run / PICTURES / EXAMPLES).glob("*.jpg")) if (run / RUN_FILE).is_file() else []


def _serve(settings: AppSettings) -> None:
    from transformers.utils import logging as transformers_logging

    from modeling_radio.serving.app.page import App, build_page, launch_options

    transformers_logging.disable_progress_bar()
    app = App(settings.checkpoint, settings.device, settings.dtype, settings.num_global, base=settings.base)
    is_for_one = settings.host in ("127.0.0.1", "localhost", "::1") and not settings.share
    own = images_of_run(Path(settings.checkpoint)) if is_for_one else []
    page = build_page(app, settings.examples or own or [PHOTOGRAPH], may_reopen=is_for_one)
    with raised_signals():  # a tunnel is another process
        address = {"server_name": settings.host, "server_port": settings.port, "share": settings.share}
        page.launch(**address, prevent_thread_lock=True, **launch_options())
        try:
            while page.is_running:
                time.sleep(0.1)
        finally:
            page.close(verbose=False)


main = partial(COMMAND.run, _run, interrupted="closed", extra="app")


if __name__ == "__main__":
    sys.exit(main())
