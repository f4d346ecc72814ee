"""The two endpoints of the server: features of any model, and the answers of a tuned one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from tempfile import SpooledTemporaryFile
from typing import Any, NamedTuple, TypeVar

import torch
from fastapi import HTTPException, Request, Response
from fastapi.responses import StreamingResponse
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from modeling_radio.core.opening import Opened
from modeling_radio.figures.predictions import is_finite
from modeling_radio.prediction.answers import NOT_FINITE, Answer, Answering, reduced, with_boxes_of
from modeling_radio.serving.requests import Batcher, in_pieces, read_image, read_upload, while_connected


T = TypeVar("T")

MOST_PIPELINES = 8
"""Lists of words whose pipelines are kept. Our choice: clients of one program send the same words."""
MOST_CLASSES, LONGEST_CLASS = 256, 200
"""Number of classes that a request may ask a zero-shot model for, and letters of each. Our choice: ImageNet's 1,000
belong into `radio predict`."""


@dataclass(frozen=True)
class ImageLimits:
    """Limits of images, and the threads that decode them.

    Attributes:
        max_bytes: Largest body.
        max_pixels: Largest image.
        decoders: Threads for decoding.
    """

    max_bytes: int
    max_pixels: int
    decoders: ThreadPoolExecutor

    async def decode(self, body: SpooledTemporaryFile, prepare: Callable[[Any], T]) -> T:
        """Return what a function makes of the image in a body, which is closed, also if the client leaves."""
        with body:
            work = lambda: prepare(read_image(body, self.max_pixels))  # noqa: E731
            return await asyncio.get_running_loop().run_in_executor(self.decoders, work)


class FeaturesEndpoint:
    """`POST /features`.

    Args:
        opened: The model.
        side: Height and width of images in pixels; None for the model's preferred resolution.
        limits: Limits of images.
        max_batch: Images in one pass.
        max_wait: Seconds that a batch waits for more images.
    """

    def __init__(self, opened: Opened, side: int | None, limits: ImageLimits, max_batch: int, max_wait: float) -> None:
        self.model, self.processor, self.limits = opened.backbone, opened.processor, limits
        side = side or self.model.preferred_resolution[0]
        self.height, self.width = self.model.get_nearest_supported_resolution(side, side)
        self.batcher = Batcher(self._run, max_batch, max_wait)

    def _prepare(self, image: Any) -> Tensor:
        size = {"height": self.height, "width": self.width}
        return self.processor(image, size=size, return_tensors="pt").pixel_values[0]

    @torch.inference_mode()
    def _run(self, items: list[tuple[Tensor, bool]]) -> list[list[float] | bytes | Answer]:
        pixel_values = torch.stack([image for image, _ in items]).to(self.model.device, self.model.dtype)
        out = self.model(pixel_values, feature_format="NCHW", adaptor_names=[])
        summaries, maps = out.summary.float().cpu(), out.features.float().cpu().permute(0, 2, 3, 1)
        replies: list[list[float] | bytes | Answer] = []
        for summary, each, (_, is_dense) in zip(summaries, maps, items, strict=True):
            found = {"summary": summary, "features": each.contiguous()} if is_dense else {"summary": summary}
            reply = save(found) if is_dense else summary.tolist()
            replies.append(reply if is_finite(found) else NOT_FINITE)
        return replies

    async def _compute(self, body: SpooledTemporaryFile, dense: bool) -> list[float] | bytes | Answer:
        return await self.batcher.submit((await self.limits.decode(body, self._prepare), dense))

    async def post(self, request: Request, dense: bool = False) -> Response | dict[str, Any]:
        """Return the summary of an image, with `dense` summary and features as safetensors. The body is an image."""
        body = await read_upload(request, self.limits.max_bytes)
        response = await while_connected(request, self._compute(body, dense))
        if isinstance(response, Answer):
            raise HTTPException(500, response.values["error"])
        if isinstance(response, bytes):
            length = {"Content-Length": str(len(response))}
            return StreamingResponse(in_pieces(response), headers=length, media_type="application/octet-stream")
        return {"summary": response}


class _Posted(NamedTuple):
    """An image to answer for.

    Attributes:
        image: In RGB, of at most `MOST_PIXELS`.
        size: Its width and height before that, pixels.
        words: Classes of a zero-shot model.
    """

    image: Image.Image
    size: tuple[int, int]
    words: tuple[str, ...]


class PredictEndpoint:
    """`POST /predict`.

    Args:
        opened: A tuned model, or one with a text tower.
        threshold: See `Answering`.
        limits: Limits of images.
        max_batch: Images in one pass.
        max_wait: Seconds that a batch waits for more images.

    Raises:
        ValueError: If the threshold does not fit the model.
    """

    def __init__(
        self, opened: Opened, threshold: float | str | None, limits: ImageLimits, max_batch: int, max_wait: float
    ) -> None:
        # Building a pipeline takes longer than a small model's pass; that of a tuned model has no words.
        self._answering = lru_cache(MOST_PIPELINES)(lambda words: Answering(opened, words, threshold))
        if opened.has_head:
            self._answering(())
        elif threshold is not None:
            raise ValueError(f"`threshold` must be left out for a zero-shot model, got {threshold!r}.")
        self.limits = limits
        self.batcher = Batcher(self._run, max_batch, max_wait)

    def _run(self, asked: list[_Posted]) -> list[Any]:
        """Return the answers for a batch, an error in place of that for words that the model refuses."""
        answers: list[Any] = [None] * len(asked)
        for words in {each.words for each in asked}:
            places = [place for place, each in enumerate(asked) if each.words == words]
            try:
                found: list[Any] = self._answering(words)([asked[place].image for place in places])
            except ValueError as error:  # the words do not fit, or one of the images is refused
                alone = len(places) == 1
                found = [error] if alone else [self._run([asked[place]])[0] for place in places]
            for place, answer in zip(places, found, strict=True):
                answers[place] = answer
        return answers

    async def _compute(self, body: SpooledTemporaryFile, words: tuple[str, ...]) -> tuple[_Posted, Answer]:
        asked = await self.limits.decode(body, lambda image: _Posted(reduced(image), image.size, words))
        return asked, await self.batcher.submit(asked)

    async def post(self, request: Request, png: bool = False, classes: str = "") -> Response | dict[str, Any]:
        """Return the answer of the model's task for an image. The body is an image.

        `classes` are those of a zero-shot model, with commas between them. With `png` the answer is a PNG: the ids of
        the classes, or the depth, of which the answer's `steps` are a unit.
        """
        words = tuple(dict.fromkeys(word.strip() for word in classes.split(",") if word.strip()))
        if len(words) > MOST_CLASSES or max(map(len, words), default=0) > LONGEST_CLASS:
            raise HTTPException(400, f"`classes` may be {MOST_CLASSES}, each of {LONGEST_CLASS} letters.")
        body = await read_upload(request, self.limits.max_bytes)
        try:
            found = await while_connected(request, self._compute(body, words))
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        if found is None:
            return Response(status_code=400)  # nobody receives it
        asked, answer = found
        if "error" in answer.values:
            raise HTTPException(500, answer.values["error"])
        if not png:
            width, height = asked.size
            return {"width": width, "height": height, **with_boxes_of(answer, asked.image.size, asked.size)}
        if answer.image is None:
            raise HTTPException(400, "`png` is for maps of classes and depth; this model has neither.")
        content = BytesIO()
        Image.fromarray(answer.image).save(content, "png")
        return Response(content.getvalue(), media_type="image/png")
