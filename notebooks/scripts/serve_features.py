# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "fastapi>=0.115,<1",
#     "pillow>=10.4",
#     "safetensors>=0.5,<1",
#     "torch>=2.6,<3",
#     "torchvision>=0.21,<1",
#     "transformers>=5.17,<6",
#     "uvicorn>=0.30,<1",
# ]
# ///
"""Serve a model: POST an image's bytes to /features, get JSON; images that arrive together are one batch.

`curl --data-binary @photograph.jpg "http://127.0.0.1:8000/features?dense=true"` answers with `summary` (channels) and,
with `dense`, `features` (rows, cols, channels). What is no image is answered by 400, too much of one by 413, and 503
says that too many are waiting. SIGTERM or Ctrl-C: nothing new is taken, all that was taken is answered, then it ends.
"""

import argparse
import asyncio
import io
import signal
import struct
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from PIL import Image, ImageOps
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel


FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""That are read; Pillow knows more, one of which (EPS) it lets Ghostscript run as a program."""

READERS_RAISE = (ArithmeticError, LookupError, MemoryError, OSError, RuntimeError, SyntaxError, TypeError, ValueError)
READERS_RAISE += (EOFError, struct.error, zlib.error)
"""Of Pillow, on what is no image or a damaged one."""


class Batcher:
    """Lets items that wait at the same time run as one batch, in another thread.

    Attributes:
        sizes: How many batches of each size there were.
    """

    def __init__(self, run: Callable[[list], list], max_batch: int, max_wait: float, max_waiting: int) -> None:
        self.run, self.max_batch, self.max_wait = run, max_batch, max_wait
        self.waiting: asyncio.Queue[tuple[Any, asyncio.Future]] = asyncio.Queue(max_waiting)
        self.sizes: Counter[int] = Counter()

    async def answer(self, item: Any) -> Any:
        """Return what `run` gives for an item. Raises `asyncio.QueueFull` at once where too many are waiting."""
        future = asyncio.get_running_loop().create_future()
        self.waiting.put_nowait((item, future))
        return await future

    async def work(self) -> None:
        """Run batches until cancelled."""
        while True:
            batch = [await self.waiting.get()]
            if self.waiting.qsize() < self.max_batch - 1:
                await asyncio.sleep(self.max_wait)
            while len(batch) < self.max_batch and not self.waiting.empty():
                batch.append(self.waiting.get_nowait())
            batch = [(item, future) for item, future in batch if not future.done()]  # whose client is still there
            if batch:
                self.sizes[len(batch)] += 1
                await self._run([item for item, _ in batch], [future for _, future in batch])

    async def _run(self, items: list, futures: list[asyncio.Future]) -> None:
        try:
            answers = await asyncio.to_thread(self.run, items)
        except Exception as error:  # noqa: BLE001  (theirs to hear of; the next batch may do)
            answers = [error] * len(futures)
        for future, answer in zip(futures, answers, strict=True):
            if future.done():
                continue
            future.set_exception(answer) if isinstance(answer, Exception) else future.set_result(answer)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Return a request's body, and stop reading at once where it is too long."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > max_bytes:
            raise HTTPException(413, f"An image may have {max_bytes} bytes.")
    return bytes(body)


def decode(body: bytes, max_pixels: int) -> Image.Image:
    """Return the image; its size is read before its pixels are."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(body), formats=FORMATS)
        if image.width * image.height > max_pixels:
            raise HTTPException(413, f"An image may have {max_pixels} pixels, got {image.width} x {image.height}.")
        return ImageOps.exif_transpose(image)  # turned as its camera says; the processor reads its colors
    except Image.DecompressionBombError as error:
        raise HTTPException(413, f"An image may have {max_pixels} pixels.") from error
    except READERS_RAISE as error:
        raise HTTPException(400, "The body must be an image, such as JPEG or PNG.") from error


def build_app(given: argparse.Namespace) -> FastAPI:
    """Open the model and return the application."""
    processor = AutoImageProcessor.from_pretrained(given.model, trust_remote_code=True)
    model = AutoModel.from_pretrained(given.model, trust_remote_code=True).eval().to(given.device)
    side = given.size or model.preferred_resolution[0]
    height, width = model.get_nearest_supported_resolution(side, side)

    def prepare(body: bytes) -> Tensor:
        image = decode(body, given.max_pixels)
        try:
            return processor(image, size={"height": height, "width": width}, return_tensors="pt").pixel_values[0]
        except ValueError as error:  # floats, or integers beyond 16 bits
            raise HTTPException(400, str(error)) from error

    @torch.inference_mode()
    def run(images: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        pixel_values = torch.stack(images).to(given.device, model.dtype)
        out = model(pixel_values, feature_format="NCHW", adaptor_names=[])
        return list(zip(out.summary.float().cpu(), out.features.float().cpu(), strict=True))

    batcher = Batcher(run, given.max_batch, given.max_wait / 1000, given.max_waiting)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker = asyncio.create_task(batcher.work())
        yield  # until all that was taken is answered
        worker.cancel()

    app = FastAPI(title="RADIO features", lifespan=lifespan)

    @app.post("/features")
    async def features(request: Request, dense: bool = False) -> dict[str, Any]:
        image = await asyncio.to_thread(prepare, await read_body(request, given.max_bytes))
        try:
            summary, channels_first = await batcher.answer(image)
        except asyncio.QueueFull as error:
            raise HTTPException(503, "Too many are waiting.", {"Retry-After": "1"}) from error
        maps = {"features": channels_first.movedim(0, -1).tolist()} if dense else {}
        return {"summary": summary.tolist(), **maps}

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"waiting": batcher.waiting.qsize(), "batches": batcher.sizes}

    return app


def main() -> None:
    """Read the arguments and serve until told to end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a RADIO model, or its name on the Hub")
    parser.add_argument("--size", type=int, help="height and width in pixels; by default what the model prefers")
    parser.add_argument("--max-batch", type=int, default=16, help="images in one pass")
    parser.add_argument("--max-wait", type=float, default=5, help="milliseconds that a batch waits for more images")
    parser.add_argument("--max-waiting", type=int, default=256, help="images that may wait; more are answered by 503")
    parser.add_argument("--max-bytes", type=int, default=20 * 2**20, help="of one body")
    parser.add_argument("--max-pixels", type=int, default=50_000_000, help="of one image")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    given = parser.parse_args()
    if min(given.max_batch, given.max_waiting) < 1:
        parser.error("--max-batch and --max-waiting must be 1 or more")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # uvicorn ends in order, then raises the signal again
    uvicorn.run(build_app(given), host=given.host, port=given.port, log_level="info", access_log=False)


if __name__ == "__main__":
    main()
