"""Requests of the server: limits, batches, bodies, and what is sent back in pieces."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from tempfile import SpooledTemporaryFile
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image


if TYPE_CHECKING:
    from fastapi import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

T = TypeVar("T")

BYTES_IN_MEMORY = 2**20
"""Part of a body kept in memory; longer bodies lie on disk until decoded. Our choice: most photographs on the web."""
BYTES_OF_PIECE = 2**18
"""Piece of a response that is sent at once. Our choice: a part of a connection's own buffer."""


class Limits:
    """Middleware that limits the number and the duration of open requests; others are refused at once.

    Args:
        app: The application behind it.
        paths: Paths of the counted requests.
        max_waiting: Largest number of open requests.
        max_seconds: Time limit of a request, from its first byte until its response is sent.

    Attributes:
        count: Open requests.
        statuses: Number of responses by status.
        seconds: Time of all requests that have ended.
    """

    def __init__(self, app: "ASGIApp", paths: Sequence[str], max_waiting: int, max_seconds: float) -> None:
        self.app, self.paths, self.max_waiting, self.max_seconds = app, paths, max_waiting, max_seconds
        self.count = 0
        self.statuses: Counter[int] = Counter()
        self.seconds = 0.0

    @property
    def is_full(self) -> bool:
        """True if no more requests are taken."""
        return self.count >= self.max_waiting

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        from starlette.responses import JSONResponse

        if scope["type"] != "http" or scope["path"] not in self.paths:
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
        ("radio_answers_total", "counter", "Answers with features or predictions by status."): responses,
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

    from modeling_radio.data.decoding import EncodedImage, UnusableImageError, decode_rgb

    body.seek(0)
    encoded = EncodedImage("the body", body.read())
    try:
        return decode_rgb(encoded, smallest_px=1)
    except UnusableImageError as error:
        if isinstance(error.__cause__, Image.DecompressionBombError):
            raise HTTPException(413, f"An image may have {max_pixels} pixels.") from error
        raise HTTPException(400, f"The body must be an image, such as JPEG or PNG: {error}.") from error
