"""Serve a model's features: POST an image's bytes to /features; images that arrive together are one batch.

The answer is JSON with the summary or, with `?dense=true`, a file of safetensors with `summary` and `features`. What is
no image is answered by 400, too much of one by 413, what takes too long by 408, and 503 says that too many are waiting.
/health says that the process lives, /ready whether it takes more. On SIGTERM or Ctrl-C nothing new is taken, and what
was taken is answered.
"""

import asyncio
import sys
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from tempfile import SpooledTemporaryFile
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from core.command_line import Command
from core.interruption import limit_unwinding, raised_signals
from core.settings import Settings
from training.data.decoding import EncodedImage, UnusableImageError, decode_rgb


if TYPE_CHECKING:
    from fastapi import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

Answer = TypeVar("Answer")

BYTES_IN_MEMORY = 2**20
"""Of a body that arrives; what is longer lies on disk until it is decoded. Our choice: most photographs for the web."""
BYTES_OF_PIECE = 2**18
"""Of an answer that is sent. Our choice: some of what a connection holds by itself."""
END_SECONDS = 3
"""How long what was taken may take after a signal. Our choice: a third of the time in which every command ends."""


class ServeSettings(Settings):
    """What is served, where, and how much at once.

    Attributes:
        checkpoint: Folder or Hub id of a RADIO model.
        size: Height and width in pixels; by default what the model prefers.
        max_batch: Images in one pass.
        max_wait: Milliseconds that a batch waits for more images.
        max_waiting: Requests that are there at once, from their first byte to the last one of their answer; more are
            answered by 503.
        max_seconds: That one of them may take in all.
        max_bytes: Of one body.
        max_pixels: Of one image.
        num_decoders: Images that are decoded at once, each of which takes up to 28 bytes for each pixel.
        device: Where the model runs, such as cpu or cuda:1; by default the first GPU, if there is one.
        host: Address that is listened at; 0.0.0.0 lets other machines in.
        port: Port that is listened at; 0 takes a free one.
    """

    checkpoint: str = Field(min_length=1)
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


COMMAND = Command("training.serve", __doc__, ServeSettings, positionals=("checkpoint",))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return COMMAND.run(_serve, arguments, interrupted="ended", extra="serve")


def _serve(settings: ServeSettings) -> None:
    import uvicorn

    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # of half as many pixels as are refused
    config = uvicorn.Config(
        build_app(settings),
        settings.host,
        settings.port,
        access_log=False,
        limit_concurrency=2 * settings.max_waiting + 16,  # connections: there is room for /health, and for idle ones
        timeout_graceful_shutdown=END_SECONDS,
    )

    class Server(uvicorn.Server):
        """Ends in order, then raises the signal again."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            limit_unwinding(sig)
            super().handle_exit(sig, frame)

    with raised_signals():
        Server(config).run()


class Limits:
    """Middleware that takes so many requests at once, each for so long; others are answered at once.

    Args:
        app: What is protected.
        path: Of the requests that are counted.
        max_waiting: How many there are at once.
        max_seconds: How long one may take, from its first byte until its answer is sent.
    """

    def __init__(self, app: "ASGIApp", path: str, max_waiting: int, max_seconds: float) -> None:
        self.app, self.path, self.max_waiting, self.max_seconds = app, path, max_waiting, max_seconds
        self.count = 0

    @property
    def is_full(self) -> bool:
        """Whether no more are taken."""
        return self.count >= self.max_waiting

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        from starlette.responses import JSONResponse

        if scope["type"] != "http" or scope["path"] != self.path:
            await self.app(scope, receive, send)
            return
        refusal = JSONResponse({"detail": "Too many are waiting."}, 503, {"Retry-After": "1"})
        if self.is_full:
            await refusal(scope, receive, send)
            return
        has_begun = False

        async def note_and_send(message: Any) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        self.count += 1
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
        if not has_begun:
            await refusal(scope, receive, send)


class Batcher:
    """Lets items that wait at the same time run as one batch, in another thread.

    Attributes:
        sizes: How many batches of each size there were.
    """

    def __init__(self, run: Callable[[list], list], max_batch: int, max_wait: float) -> None:
        self.run, self.max_batch, self.max_wait = run, max_batch, max_wait
        self.waiting: asyncio.Queue[asyncio.Future] = asyncio.Queue()
        self.items: dict[asyncio.Future, Any] = {}
        self.sizes: Counter[int] = Counter()

    async def answer(self, item: Any) -> Any:
        """Return what `run` gives for an item."""
        future = asyncio.get_running_loop().create_future()
        self.items[future] = item
        self.waiting.put_nowait(future)
        try:
            return await future
        finally:
            del self.items[future]  # also of a client that left: it is neither kept nor computed

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
            answers = await asyncio.to_thread(self.run, items)
        except Exception as error:  # noqa: BLE001  (theirs to hear of; the next batch may do)
            answers = [error] * len(futures)
        for future, answer in zip(futures, answers, strict=True):
            if future.done():
                continue
            future.set_exception(answer) if isinstance(answer, Exception) else future.set_result(answer)


async def read_body(request: "Request", max_bytes: int) -> SpooledTemporaryFile:
    """Return a request's body, and stop reading at once where it is too long."""
    from fastapi import HTTPException

    body = SpooledTemporaryFile(BYTES_IN_MEMORY)  # noqa: SIM115 - who decodes it closes it
    async for part in request.stream():
        body.write(part)
        if body.tell() > max_bytes:
            raise HTTPException(413, f"An image may have {max_bytes} bytes.")
    return body


async def while_connected(request: "Request", work: Awaitable[Answer]) -> Answer | None:
    """Wait for work, whose request has been read; where its client leaves it is given up, and None returned."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        working.cancel()
        leaving.cancel()


async def in_pieces(answer: bytes) -> AsyncIterator[bytes]:
    """Yield an answer bit by bit: of one whose client stops reading it only a piece is kept."""
    for start in range(0, len(answer), BYTES_OF_PIECE):
        yield answer[start : start + BYTES_OF_PIECE]


def read_image(body: SpooledTemporaryFile, max_pixels: int) -> Any:
    """Return the picture, which Pillow refuses to decode where it is too large."""
    from fastapi import HTTPException

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
    from fastapi import FastAPI, Request, Response
    from fastapi.responses import StreamingResponse
    from safetensors.torch import save
    from starlette.requests import ClientDisconnect

    from modeling_radio import RadioImageProcessor, RadioModel

    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    processor = RadioImageProcessor.from_pretrained(settings.checkpoint)
    model = RadioModel.from_pretrained(settings.checkpoint).eval().to(device)
    side = settings.size or model.preferred_resolution[0]
    height, width = model.get_nearest_supported_resolution(side, side)

    def prepare(body: SpooledTemporaryFile) -> Tensor:
        image = read_image(body, settings.max_pixels)
        return processor(image, size={"height": height, "width": width}, return_tensors="pt").pixel_values[0]

    @torch.inference_mode()
    def run(items: list[tuple[Tensor, bool]]) -> list[list[float] | bytes]:
        pixel_values = torch.stack([image for image, _ in items]).to(device, model.dtype)
        out = model(pixel_values, feature_format="NCHW", adaptor_names=[])
        summaries, maps = out.summary.float().cpu(), out.features.float().cpu().permute(0, 2, 3, 1)
        return [
            save({"summary": summary, "features": each.contiguous()}) if is_dense else summary.tolist()
            for summary, each, (_, is_dense) in zip(summaries, maps, items, strict=True)
        ]

    batcher = Batcher(run, settings.max_batch, settings.max_wait / 1000)
    decoders = ThreadPoolExecutor(settings.num_decoders, "decoder")

    async def answer(body: SpooledTemporaryFile, dense: bool) -> list[float] | bytes:
        with body:  # of a client that leaves it is not kept
            image = await asyncio.get_running_loop().run_in_executor(decoders, prepare, body)
        return await batcher.answer((image, dense))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # Pillow refuses twice as many, also where a file hides the size of what is in it.
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, (settings.max_pixels + 1) // 2
        worker = asyncio.create_task(batcher.work())
        yield  # until all that was taken is answered
        worker.cancel()
        Image.MAX_IMAGE_PIXELS = before

    app = FastAPI(title="RADIO features", lifespan=lifespan)

    @app.post("/features", response_model=None)
    async def features(request: Request, dense: bool = False) -> Response | dict[str, Any]:
        answered = await while_connected(request, answer(await read_body(request, settings.max_bytes), dense))
        if isinstance(answered, bytes):
            length = {"Content-Length": str(len(answered))}
            return StreamingResponse(in_pieces(answered), headers=length, media_type="application/octet-stream")
        return {"summary": answered}

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"waiting": limits.count, "batches": batcher.sizes}

    @app.get("/ready", responses={503: {}})
    async def ready() -> Response:
        return Response(status_code=503 if limits.is_full else 200)

    @app.exception_handler(ClientDisconnect)
    async def left(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=400)  # to nobody

    limits = Limits(app, "/features", settings.max_waiting, settings.max_seconds)
    return limits


if __name__ == "__main__":
    sys.exit(main())
