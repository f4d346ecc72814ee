"""Writes a static page that runs a checkpoint in the browser: a folder for any web server, or for a static Space."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import Field
from torch import nn
from transformers.utils import logging as transformers_logging

from modeling_radio import RadioForImageClassification
from modeling_radio.conversion.release.comparison import PHOTOGRAPH
from modeling_radio.conversion.web.build import build_site
from modeling_radio.conversion.web.plan import plan_page
from modeling_radio.conversion.web.precision import PrecisionChoice
from modeling_radio.conversion.web.site import BUILDS, SITE, SampleImage, check_samples, describe_model, find_runtime
from modeling_radio.conversion.web.texts import open_texts
from modeling_radio.core.checkpoints import with_windowed_blocks
from modeling_radio.core.command_line import Command, one_line_warnings
from modeling_radio.core.files import check_output, write_folder
from modeling_radio.core.hub import find_folder
from modeling_radio.core.ids import ModelFolder
from modeling_radio.core.opening import (
    open_for_export,
    read_config,
    require_head,
)
from modeling_radio.core.settings import Settings, Spelling, read_names


TITLES = {PHOTOGRAPH: "Otters on a rock"}
"""Captions of our own images; others are named after their files."""


def _read_sizes(text: str) -> list[int]:
    return [int(size) for size in text.split(",")]


def _read_paths(text: str) -> list[Path]:
    return [Path(name.strip()) for name in text.split(",")]


class WebSettings(Settings):
    """Settings of the page.

    Attributes:
        checkpoint: Folder with config.json and weights; with a text tower the page also finds words, and with a
            classifier of images it names them.
        site: Folder to write.
        adaptors: Teachers with dense features whose spaces are shown; by default the model's own list.
        sizes: Selectable lengths of an image's longer side in pixels, up to three times the model's largest if
            positions were cropped in training; by default three up to 512 or the model's largest.
        window_size: Side of the selectable ViTDet windows in patches, 0 for none; by default 4, where the
            network can have them. A third of a shallow network's blocks stays global.
        precision: Precision of the weights; "auto" takes the fastest in WebAssembly that agrees with fp32.
        words: Add the folder's text tower, if it has one.
        webgpu: Whether browsers with a GPU may use it, for 27 MB more on the server.
        runtime: Folder with the runtime's files at any depth, such as a node_modules; by default the pinned npm
            packages are fetched, and their SHA-256 verified.
        pictures: Sample images, JPEG, PNG or WebP; by default a photograph of ours.
        heading: A line about the model; by default its name and size.
        overwrite: Replace an earlier site.
    """

    checkpoint: ModelFolder
    site: Path
    adaptors: Annotated[list[str] | None, Spelling(read_names, "A,B|all|none")] = None
    sizes: Annotated[list[Annotated[int, Field(ge=1)]] | None, Spelling(_read_sizes, "PX,PX")] = None
    window_size: int | None = Field(None, ge=0)
    precision: PrecisionChoice = "auto"
    words: bool = True
    webgpu: bool = True
    runtime: Path | None = None
    pictures: Annotated[list[Path], Spelling(_read_paths, "FILE,FILE")] = Field([PHOTOGRAPH], min_length=1)
    heading: str | None = None
    overwrite: bool = False


COMMAND = Command(
    "radio export --to web",
    __doc__,
    WebSettings,
    positionals=("checkpoint", "site"),
    examples=("radio export --to web my-folder site",),
)


@one_line_warnings(COMMAND.name)
def _run(settings: WebSettings) -> None:
    transformers_logging.disable_progress_bar()  # models load in no time
    samples = [SampleImage(path, TITLES.get(path, path.stem)) for path in settings.pictures]
    read = [settings.checkpoint, *settings.pictures, *([settings.runtime] if settings.runtime else [])]
    check_output(settings.site, overwrite=settings.overwrite, inputs=read, kind=SITE, name="site")
    check_samples(samples)
    checkpoint = find_folder(settings.checkpoint, "checkpoint")
    has_words = settings.words and read_config(checkpoint).get("text_tower") is not None
    classifier: nn.Module | None = None
    if read_config(checkpoint).get("architectures") == [RadioForImageClassification.__name__]:
        tuned = require_head(open_for_export(checkpoint, as_backbone=False)).float()
        assert isinstance(tuned, RadioForImageClassification)
        classifier, model = tuned.classifier, tuned.base_model
    else:
        model = open_for_export(checkpoint, with_texts=has_words, adaptors=settings.adaptors or ()).backbone.float()
    model = with_windowed_blocks(model)
    backends = list(BUILDS) if settings.webgpu else ["wasm"]
    runtime = find_runtime(settings.runtime, backends=backends, with_tokenizers=has_words)
    texts = open_texts(checkpoint) if has_words else None
    plan = plan_page(
        model,
        texts,
        adaptors=settings.adaptors,
        sizes=settings.sizes,
        window_size=settings.window_size,
        classifier=classifier,
    )
    title = settings.heading or describe_model(model, settings.checkpoint.resolve().name)
    write_folder(
        settings.site,
        lambda folder: build_site(folder, model, texts, plan, runtime, samples, settings.precision, title),
        overwrite=settings.overwrite,
    )
    print(f"\nWrote {settings.site}. To look at it: cd {settings.site} && python -m http.server, http://localhost:8000")


main = partial(COMMAND.run, _run, extra="export")


if __name__ == "__main__":
    sys.exit(main())
