"""Serve a model: POST an image to /predict for the answer of a tuned model, or to /features for any model's features.

Images that arrive together are one batch. The image is the body, or the one file of a form (`multipart/form-data`).
/predict returns JSON as the pipeline of the model's task: classes, objects, segments or depth; with `?png=true` the map
of classes or the depth as PNG. /features returns JSON with the summary or, with `?dense=true`, a safetensors file with
`summary` and `features`. Status 400 means that there is no image, 413 that it is too large, 408 that it took too long,
500 that the model's outputs for it are not finite, 503 that too many requests are waiting. /docs shows all requests,
/health reports that the process lives, /ready whether it takes more, /metrics counts for Prometheus. On SIGTERM or
Ctrl-C the server takes no new requests and completes those that it took.
"""

import asyncio
import sys
import warnings
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from types import FrameType
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import Field

from modeling_radio.core.command_line import Command
from modeling_radio.core.ids import ModelId
from modeling_radio.core.interruption import limit_unwinding, raised_signals
from modeling_radio.core.settings import DeviceOptions
from modeling_radio.serving.requests import Limits, metrics_text


END_SECONDS = 3
"""Limit for open requests after a signal. Our choice: a third of the time in which every command ends."""
BATCH_WAIT = 0.005
"""Seconds that a batch waits for more images. Our choice: a fraction of a pass of a small model on a CPU."""
MOST_WAITING = 128
"""Open requests at once, from their first byte to the last one of their response; others get 503."""
MOST_SECONDS = 60
"""Time limit of a request."""
MOST_BYTES, MOST_PIXELS = 20 * 2**20, 50_000_000
"""Largest body and largest image: those of the largest common cameras."""
NUM_DECODERS = 2
"""Images decoded at once, each of which takes up to 28 bytes for each pixel. Our choice, for 2.8 GB."""


class ServeSettings(DeviceOptions):
    """Model and address of the server.

    Attributes:
        checkpoint: Folder or Hub id of a RADIO model, tuned or not.
        base: Folder or Hub id of an adapter's base; by default the one on the Hub that the adapter names.
        threshold: Least score of classes or objects in answers, in [0, 1], or "tuned" for that of each class; by
            default objects have that of the model, and all classes are returned.
        size: Height and width in pixels for features; by default the model's preferred resolution.
        max_batch: Images in one pass.
        host: Address to listen at; 0.0.0.0 lets other machines in.
        port: Port to listen at; 0 takes a free one.
    """

    checkpoint: Annotated[ModelId, Field(min_length=1)]
    base: str | None = None
    threshold: float | Literal["tuned"] | None = None
    size: int | None = Field(None, gt=0)
    max_batch: int = Field(16, gt=0)
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, lt=65536)


COMMAND = Command(
    "radio serve",
    __doc__,
    ServeSettings,
    positionals=("checkpoint",),
    examples=(
        "radio serve builtin:lite",
        "radio serve runs/pets/merged --max-batch 16",
        "radio serve nvidia/C-RADIOv4-H",
    ),
)


def _serve(settings: ServeSettings) -> None:
    import uvicorn

    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # at half the refused number of pixels
    config = uvicorn.Config(
        build_app(settings),
        settings.host,
        settings.port,
        access_log=False,
        limit_concurrency=2 * MOST_WAITING + 16,  # connections, also for /health and idle ones
        timeout_graceful_shutdown=END_SECONDS,
    )

    class OrderlyServer(uvicorn.Server):
        """Shuts down in order, then raises the signal again."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            limit_unwinding(sig)
            super().handle_exit(sig, frame)

    with raised_signals():
        OrderlyServer(config).run()


def build_app(settings: ServeSettings) -> Limits:
    """Open the model and return the application.

    Raises:
        ValueError: If the model does not open, or settings do not fit it.
    """
    # These take seconds to import, which `--help` need not wait for.
    from fastapi import FastAPI, Request, Response
    from fastapi.responses import PlainTextResponse, RedirectResponse
    from starlette.requests import ClientDisconnect

    from modeling_radio.core.opening import open_model, require_rgb
    from modeling_radio.serving.endpoints import FeaturesEndpoint, ImageLimits, PredictEndpoint

    opened = require_rgb(open_model(settings.checkpoint, device=settings.device, base=settings.base))
    decoders = ThreadPoolExecutor(NUM_DECODERS, "decoder")
    images = ImageLimits(MOST_BYTES, MOST_PIXELS, decoders)
    batches = settings.max_batch, BATCH_WAIT
    endpoints: dict[str, FeaturesEndpoint | PredictEndpoint] = {
        "/features": FeaturesEndpoint(opened, settings.size, images, *batches)
    }
    if opened.has_head or opened.zero_shot is not None:
        endpoints["/predict"] = PredictEndpoint(opened, settings.threshold, images, *batches)
    elif settings.threshold is not None:
        raise ValueError(f"`threshold` must be left out for a model without a task, got {settings.threshold!r}.")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # Pillow refuses twice as many pixels, also where a file hides the size of an image within.
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, (MOST_PIXELS + 1) // 2
        workers = [asyncio.create_task(each.batcher.work()) for each in endpoints.values()]
        yield  # until all open requests are completed
        for worker in workers:
            worker.cancel()
        Image.MAX_IMAGE_PIXELS = before

    def sizes() -> "Counter[int]":
        return sum((each.batcher.sizes for each in endpoints.values()), Counter())

    app = FastAPI(title=f"RADIO: {opened.folder.name}", lifespan=lifespan)
    for path, endpoint in endpoints.items():
        app.add_api_route(path, endpoint.post, methods=["POST"], response_model=None)
    app.add_api_route("/", lambda: RedirectResponse("/docs"), include_in_schema=False)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"waiting": limits.count, "batches": sizes()}

    @app.get("/ready", responses={503: {}})
    async def ready() -> Response:
        return Response(status_code=503 if limits.is_full else 200)

    count = lambda: metrics_text(limits, sizes())  # noqa: E731
    app.add_api_route("/metrics", count, response_class=PlainTextResponse)

    @app.exception_handler(ClientDisconnect)
    async def left(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=400)  # nobody receives it

    limits = Limits(app, tuple(endpoints), MOST_WAITING, MOST_SECONDS)
    return limits


main = partial(COMMAND.run, _serve, interrupted="ended", extra="app")


if __name__ == "__main__":
    sys.exit(main())
