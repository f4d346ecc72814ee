"""Requests of anybody to the server: answered or refused by status; never a traceback, and nothing stays behind."""

import asyncio
import io
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image


pytest.importorskip("fastapi", reason="needs the extra `app`")
from starlette.testclient import TestClient
from tiny_folders import save_radio

from modeling_radio.serving import serve


pytestmark = [pytest.mark.fuzz, pytest.mark.usefixtures("one_thread")]
FEWER = settings(max_examples=max(settings.default.max_examples // 5, 20))
MAX_BYTES, MAX_PIXELS = 20_000, 90_000
REFUSALS = {400, 404, 405, 413, 422}


def encoded(form: str, mode: str = "RGB", size: tuple[int, int] = (24, 17)) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert(mode).save(buffer, form)
    return buffer.getvalue()


GOOD = encoded("PNG")
PICTURES = [
    *(encoded(form) for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "EPS", "ICO", "PDF")),
    *(encoded("PNG", mode) for mode in ("1", "L", "LA", "P", "RGBA", "I;16")),
    encoded("PNG", "1", (1000, 1000)),
]


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Pictures, damaged pictures, and other bytes."""
    if draw(st.integers(0, 3)) == 0:
        return draw(st.binary(max_size=40) | st.sampled_from([b"", b"0" * (MAX_BYTES + 1), b"<svg/>", b"[[[[" * 50]))
    content = bytearray(draw(st.sampled_from(PICTURES)))
    for place, value in draw(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=3)):
        content[int(place**3 * len(content))] = value  # headers rather than pixels
    return bytes(content[: draw(st.none() | st.integers(0, len(content)))])


TEXTS = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=6)
METHODS = st.sampled_from(["POST", "POST", "POST", "GET", "PUT", "HEAD", "OPTIONS", "DELETE", "X"])
PATHS = st.sampled_from(
    ["/features"] * 4 + ["/health", "/ready", "/", "/features/", "/features/../health", "/%2e%2e/x"]
)
QUERIES = st.dictionaries(
    st.just("dense") | TEXTS, st.sampled_from(["true", "false", "1", "", "[]", "x" * 999]), max_size=2
)
HEADERS = st.dictionaries(
    st.sampled_from(["content-type", "content-encoding", "accept", "range", "expect", "x-forwarded-for"]),
    st.sampled_from(["image/png", "application/json", "gzip", "multipart/form-data", "bytes=0-1", "100-continue", "*"]),
    max_size=2,
)


@pytest.fixture(scope="module")
def client(tmp_path_factory) -> Iterator[TestClient]:
    checkpoint = save_radio(tmp_path_factory.mktemp("fuzz") / "model")
    limits = {"BATCH_WAIT": 0, "MOST_BYTES": MAX_BYTES, "MOST_PIXELS": MAX_PIXELS, "MOST_SECONDS": 20}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in limits.items():
            patch.setattr(serve, name, value)
        app = serve.build_app(serve.ServeSettings(checkpoint=str(checkpoint), device="cpu", size=32))
        with TestClient(app, follow_redirects=False) as client:
            yield client


def assert_idle(client: TestClient) -> None:
    """Nothing waits, and a picture has its answer."""
    assert client.get("/health").json()["waiting"] == 0
    assert client.get("/ready").status_code == 200
    assert len(client.post("/features", content=GOOD).json()["summary"]) > 0


@FEWER
@given(method=METHODS, path=PATHS, query=QUERIES, headers=HEADERS, body=bodies())
@example(method="POST", path="/features", query={"dense": "true"}, headers={}, body=GOOD)
def test_any_request_is_answered_or_refused(client, method, path, query, headers, body):
    answer = client.request(method, path, params=query, headers=headers, content=body)
    assert answer.status_code in {200, 307, *REFUSALS}, answer.text
    if answer.status_code == 200 and path == "/features":
        dense = answer.headers["content-type"] == "application/octet-stream"
        assert dense or len(answer.json()["summary"]) > 0
    assert_idle(client)


async def talk(app: Any, parts: list[bytes], *, leaves: bool) -> list[Any]:
    """Send a body in parts, of which the client may not send the last one; return what is sent back."""
    sent: list[Any] = []
    events = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    events += [] if leaves else [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Any:
        if events:
            return events.pop(0)
        await asyncio.sleep(0 if leaves else 3600)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/features", "query_string": b"", "headers": []}
    await app(scope, receive, send)
    return sent


@FEWER
@given(body=bodies(), num_parts=st.integers(1, 5), leaves=st.booleans())
def test_any_client_that_stammers_or_leaves(client, body, num_parts, leaves):
    step = len(body) // num_parts + 1
    parts = [body[start : start + step] for start in range(0, len(body), step)]
    sent = client.portal.call(lambda: talk(client.app, parts, leaves=leaves))
    status = [message["status"] for message in sent if message["type"] == "http.response.start"]
    assert leaves or status[0] in {200, *REFUSALS}
    assert_idle(client)
