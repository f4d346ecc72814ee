"""Serve a model's features: POST an image to /features; images that arrive together are one batch.

The image is the body, or the one file of a form (`multipart/form-data`). The response is JSON with the summary or, with
`?dense=true`, a safetensors file with `summary` and `features`. Status 400 means that there is no image, 413 that it is
too large, 408 that it took too long, 503 that too many requests are waiting. /health reports that the process lives,
/ready whether it takes more, /metrics counts for Prometheus. On SIGTERM or Ctrl-C the server takes no new requests and
completes those that it took.
"""

import asyncio
import sys
import time
import warnings
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from tempfile import SpooledTemporaryFile
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from PIL import Image
from pydantic import Field

from modeling_radio.core.command_line import Command
from modeling_radio.core.ids import ModelId
from modeling_radio.core.interruption import limit_unwinding, raised_signals
from modeling_radio.core.settings import Settings


if TYPE_CHECKING:
    from fastapi import Request
    from starlette.types import ASGIApp, Receive, Scope, Send
    from torch import Tensor

T = TypeVar("T")

BYTES_IN_MEMORY = 2**20
"""Part of a body kept in memory; longer bodies lie on disk until decoded. Our choice: most photographs on the web."""
BYTES_OF_PIECE = 2**18
"""Piece of a response that is sent at once. Our choice: a part of a connection's own buffer."""
END_SECONDS = 3
"""Limit for open requests after a signal. Our choice: a third of the time in which every command ends."""


class ServeSettings(Settings):
    """Model, address and limits of the server.

    Attributes:
        checkpoint: Folder or Hub id of a RADIO model.
        size: Height and width in pixels; by default the model's preferred resolution.
        max_batch: Images in one pass.
        max_wait: Milliseconds that a batch waits for more images.
        max_waiting: Open requests at once, from their first byte to the last one of their response; others get 503.
        max_seconds: Time limit of a request.
        max_bytes: Largest body.
        max_pixels: Largest image.
        num_decoders: Images decoded at once, each of which takes up to 28 bytes for each pixel.
        device: Device of the model, such as cpu or cuda:1; by default the first GPU, if there is one.
        host: Address to listen at; 0.0.0.0 lets other machines in.
        port: Port to listen at; 0 takes a free one.
    """

    checkpoint: Annotated[ModelId, Field(min_length=1)]
    size: int | None = Field(None, gt=0)
    max_batch: int = Field(16, gt=0)
    max_wait: float = Field(5, ge=0)
    max_waiting: int = Field(128, gt=0)
    max_seconds: float = Field(60, gt=0)
    max_bytes: int = Field(20 * 2**20, gt=0)
    max_pixels: int = Field(50_000_000, gt=0)
    num_decoders: int = Field(2, gt=0)
    device: str | None = None
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, lt=65536)


COMMAND = Command(
    "radio serve",
    __doc__,
    ServeSettings,
    positionals=("checkpoint",),
    examples=(
        "radio serve runs/demo/final",
        "radio serve runs/demo/final --max-batch 16 --max-wait 5",
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
        limit_concurrency=2 * settings.max_waiting + 16,  # connections, also for /health and idle ones
        timeout_graceful_shutdown=END_SECONDS,
    )

    class OrderlyServer(uvicorn.Server):
        """Shuts down in order, then raises the signal again."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            limit_unwinding(sig)
            super().handle_exit(sig, frame)

    with raised_signals():
        OrderlyServer(config).run()


class Limits:
    """Middleware that limits the number and the duration of open requests; others are refused at once.

    Args:
        app: The application behind it.
        path: Path of the counted requests.
        max_waiting: Largest number of open requests.
        max_seconds: Time limit of a request, from its first byte until its response is sent.

    Attributes:
        count: Open requests.
        statuses: Number of responses by status.
        seconds: Time of all requests that have ended.
    """

    def __init__(self, app: "ASGIApp", path: str, max_waiting: int, max_seconds: float) -> None:
        self.app, self.path, self.max_waiting, self.max_seconds = app, path, max_waiting, max_seconds
        self.count = 0
        self.statuses: Counter[int] = Counter()
        self.seconds = 0.0

    @property
    def is_full(self) -> bool:
        """True if no more requests are taken."""
        return self.count >= self.max_waiting

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        from starlette.responses import JSONResponse

        if scope["type"] != "http" or scope["path"] != self.path:
            await self.app(scope, receive, send)
            return
        has_begun = False

        async def note_and_send(message: Any) -> None:
            nonlocal has_begun
            has_begun = True
            if message["type"] == "http.response.start":
                self.statuses[message["status"]] += 1
            await send(message)

        refusal = JSONResponse({"detail": "Too many are waiting."}, 503, {"Retry-After": "1"})
        if self.is_full:
            await refusal(scope, receive, note_and_send)
            return
        self.count += 1
        start = time.perf_counter()
        try:
            await asyncio.wait_for(self.app(scope, receive, note_and_send), self.max_seconds)
        except asyncio.TimeoutError:
            refusal = JSONResponse({"detail": f"A request may take {self.max_seconds:g} seconds."}, 408)
        except asyncio.CancelledError:  # the server ends
            pass
        else:
            return
        finally:
            self.count -= 1
            self.seconds += time.perf_counter() - start
        if not has_begun:
            await refusal(scope, receive, note_and_send)


class Batcher:
    """Runs items that wait at the same time as one batch, in another thread.

    Attributes:
        sizes: Number of batches by size.
    """

    def __init__(self, run: Callable[[list], list], max_batch: int, max_wait: float) -> None:
        self.run, self.max_batch, self.max_wait = run, max_batch, max_wait
        self.waiting: asyncio.Queue[asyncio.Future] = asyncio.Queue()
        self.items: dict[asyncio.Future, Any] = {}
        self.sizes: Counter[int] = Counter()

    async def submit(self, item: Any) -> Any:
        """Return the output of `run` for an item."""
        future = asyncio.get_running_loop().create_future()
        self.items[future] = item
        self.waiting.put_nowait(future)
        try:
            return await future
        finally:
            del self.items[future]  # also if the client left: its item is neither kept nor computed

    async def work(self) -> None:
        """Run batches until cancelled."""
        while True:
            batch = [await self.waiting.get()]
            if self.waiting.qsize() < self.max_batch - 1:
                await asyncio.sleep(self.max_wait)
            while len(batch) < self.max_batch and not self.waiting.empty():
                batch.append(self.waiting.get_nowait())
            batch = [future for future in batch if future in self.items]
            if batch:
                self.sizes[len(batch)] += 1
                await self._run([self.items[future] for future in batch], batch)

    async def _run(self, items: list, futures: list[asyncio.Future]) -> None:
        try:
            results = await asyncio.to_thread(self.run, items)
        except Exception as error:  # noqa: BLE001  (each of the batch gets it; the next batch may succeed)
            results = [error] * len(futures)
        for future, result in zip(futures, results, strict=True):
            if future.done():
                continue
            future.set_exception(result) if isinstance(result, Exception) else future.set_result(result)


async def read_body(request: "Request", max_bytes: int) -> SpooledTemporaryFile:
    """Return a request's body; stop reading at once if it is too long."""
    from fastapi import HTTPException

    body = SpooledTemporaryFile(BYTES_IN_MEMORY)  # noqa: SIM115 - closed after decoding
    async for part in request.stream():
        body.write(part)
        if body.tell() > max_bytes:
            raise HTTPException(413, f"An image may have {max_bytes} bytes.")
    return body


async def read_upload(request: "Request", max_bytes: int) -> SpooledTemporaryFile:
    """Return the image of a request: its body, or the one file of a form; its length is limited as a whole."""
    from fastapi import HTTPException
    from starlette.datastructures import UploadFile
    from starlette.formparsers import MultiPartException, MultiPartParser

    body = await read_body(request, max_bytes)
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return body
    try:
        with body:
            body.seek(0)
            form = await MultiPartParser(request.headers, in_pieces(body.read()), max_files=1).parse()
    except (MultiPartException, KeyError, ValueError) as error:  # a form without a boundary is a KeyError
        raise HTTPException(400, f"The form cannot be read, or has several files: {error}.") from error
    files = [value for value in form.values() if isinstance(value, UploadFile)]
    if len(files) != 1:
        raise HTTPException(400, "The form must have one file, the image.")
    return files[0].file  # pyrefly: ignore[bad-return]  (a `SpooledTemporaryFile`, declared as a binary file)


def metrics_text(limits: Limits, batches: Mapping[int, int]) -> str:
    """Return counters in Prometheus' text format, https://prometheus.io/docs/instrumenting/exposition_formats/.

    Args:
        limits: The middleware that counts requests.
        batches: Number of batches by size.
    """
    responses = [f'radio_answers_total{{status="{status}"}} {count}' for status, count in limits.statuses.items()]
    sizes = [f'radio_batches_total{{size="{size}"}} {count}' for size, count in batches.items()]
    images = sum(size * count for size, count in batches.items())
    families = {
        ("radio_answers_total", "counter", "Answers to /features by status."): responses,
        ("radio_request_seconds_total", "counter", "Time of all requests that have ended."): [
            f"radio_request_seconds_total {limits.seconds:.6f}"
        ],
        ("radio_open_requests", "gauge", "Requests that are open."): [f"radio_open_requests {limits.count}"],
        ("radio_images_total", "counter", "Images that the model has seen."): [f"radio_images_total {images}"],
        ("radio_batches_total", "counter", "Passes of the model by their number of images."): sizes,
    }
    lines = []
    for (name, kind, text), samples in families.items():
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *samples]
    return "\n".join(lines) + "\n"


async def while_connected(request: "Request", work: Awaitable[T]) -> T | None:
    """Wait for work on a request that was read; if its client leaves, cancel the work and return None."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        working.cancel()
        leaving.cancel()


async def in_pieces(response: bytes) -> AsyncGenerator[bytes, None]:
    """Yield a response in pieces: if its client stops reading, only one piece stays in the connection."""
    for start in range(0, len(response), BYTES_OF_PIECE):
        yield response[start : start + BYTES_OF_PIECE]


def read_image(body: SpooledTemporaryFile, max_pixels: int) -> Any:
    """Return the decoded image; Pillow refuses one that is too large."""
    from fastapi import HTTPException

    from modeling_radio.training.data.decoding import EncodedImage, UnusableImageError, decode_rgb

    body.seek(0)
    encoded = EncodedImage("the body", body.read())
    try:
        return decode_rgb(encoded, smallest_px=1)
    except UnusableImageError as error:
        if isinstance(error.__cause__, Image.DecompressionBombError):
            raise HTTPException(413, f"An image may have {max_pixels} pixels.") from error
        raise HTTPException(400, f"The body must be an image, such as JPEG or PNG: {error}.") from error


def build_app(settings: ServeSettings) -> Limits:
    """Open the model and return the application."""
    import torch  # takes seconds, which `--help` need not wait for
    from fastapi import FastAPI, Request, Response
    from fastapi.responses import PlainTextResponse, StreamingResponse
    from safetensors.torch import save
    from starlette.requests import ClientDisconnect

    from modeling_radio import RadioImageProcessor, RadioModel
    from modeling_radio.core.hub import find_folder
    from modeling_radio.core.machine import find_device

    device = find_device(settings.device)
    folder = find_folder(settings.checkpoint, "checkpoint")
    processor = RadioImageProcessor.from_pretrained(folder)
    model = RadioModel.from_pretrained(folder).eval().to(device)
    side = settings.size or model.preferred_resolution[0]
    height, width = model.get_nearest_supported_resolution(side, side)

    def prepare(body: SpooledTemporaryFile) -> "Tensor":
        image = read_image(body, settings.max_pixels)
        return processor(image, size={"height": height, "width": width}, return_tensors="pt").pixel_values[0]

    @torch.inference_mode()
    def run(items: "list[tuple[Tensor, bool]]") -> list[list[float] | bytes]:
        pixel_values = torch.stack([image for image, _ in items]).to(device, model.dtype)
        out = model(pixel_values, feature_format="NCHW", adaptor_names=[])
        summaries, maps = out.summary.float().cpu(), out.features.float().cpu().permute(0, 2, 3, 1)
        return [
            save({"summary": summary, "features": each.contiguous()}) if is_dense else summary.tolist()
            for summary, each, (_, is_dense) in zip(summaries, maps, items, strict=True)
        ]

    batcher = Batcher(run, settings.max_batch, settings.max_wait / 1000)
    decoders = ThreadPoolExecutor(settings.num_decoders, "decoder")

    async def compute(body: SpooledTemporaryFile, dense: bool) -> list[float] | bytes:
        with body:  # closed also if the client leaves
            image = await asyncio.get_running_loop().run_in_executor(decoders, prepare, body)
        return await batcher.submit((image, dense))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # Pillow refuses twice as many pixels, also where a file hides the size of an image within.
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, (settings.max_pixels + 1) // 2
        worker = asyncio.create_task(batcher.work())
        yield  # until all open requests are completed
        worker.cancel()
        Image.MAX_IMAGE_PIXELS = before

    app = FastAPI(title="RADIO features", lifespan=lifespan)

    @app.post("/features", response_model=None)
    async def features(request: Request, dense: bool = False) -> Response | dict[str, Any]:
        response = await while_connected(request, compute(await read_upload(request, settings.max_bytes), dense))
        if isinstance(response, bytes):
            length = {"Content-Length": str(len(response))}
            return StreamingResponse(in_pieces(response), headers=length, media_type="application/octet-stream")
        return {"summary": response}

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"waiting": limits.count, "batches": batcher.sizes}

    @app.get("/ready", responses={503: {}})
    async def ready() -> Response:
        return Response(status_code=503 if limits.is_full else 200)

    count = lambda: metrics_text(limits, batcher.sizes)  # noqa: E731
    app.add_api_route("/metrics", count, response_class=PlainTextResponse)

    @app.exception_handler(ClientDisconnect)
    async def left(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=400)  # nobody receives it

    limits = Limits(app, "/features", settings.max_waiting, settings.max_seconds)
    return limits


main = partial(COMMAND.run, _serve, interrupted="ended", extra="app")


if __name__ == "__main__":
    sys.exit(main())
