"""`radio serve` in a process of its own, and clients that send it images."""

import io
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import httpx

from benchmarks.data import draw_image


ROOT = Path(__file__).parents[3]
RESPONSE_SECONDS, END_SECONDS = 60.0, 30.0


class Process(Protocol):
    """The methods of `subprocess.Popen` that a server's process needs."""

    pid: int

    def send_signal(self, number: int, /) -> None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def kill(self) -> None: ...


class Server(NamedTuple):
    """A server in a process of its own, and its address."""

    process: Process
    url: str

    def end(self) -> int:
        """Send SIGTERM and return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(END_SECONDS)


@contextmanager
def serve(model: Path, *options: str) -> Iterator[Server]:
    """Start the server on a free port of 127.0.0.1; kill it in the end if it still runs."""
    command = [sys.executable, "-m", "modeling_radio", "serve", str(model), "--port=0", *options]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        with served(process, process.stderr) as server:
            yield server


@contextmanager
def served(process: Process, output: Iterable[str], said: list[str] | None = None) -> Iterator[Server]:
    """Wait until a process serves; kill it in the end if it still runs.

    Args:
        process: A server that starts.
        output: Lines of its standard error.
        said: Receives them.

    Raises:
        RuntimeError: If it ends before it serves.
    """
    try:
        said = [] if said is None else said
        for line in output:
            said.append(line)
            found = re.search(r"running on (http://[\d.:]+)", line)
            if found:
                break
        else:
            raise RuntimeError(f"The server ended before it served: {''.join(said)[-2000:]}")
        with ThreadPoolExecutor(1) as reader:  # else the server would block on a full pipe
            reader.submit(said.extend, output)
            try:
                yield Server(process, found[1])
            finally:
                process.kill()
    finally:
        process.kill()


def encode_images(number: int, size: int) -> list[bytes]:
    """Return JPEGs of smooth random images, all different."""
    encoded = []
    for seed in range(number):
        buffer = io.BytesIO()
        draw_image(size, size, seed).save(buffer, "JPEG")
        encoded.append(buffer.getvalue())
    return encoded


class Reply(NamedTuple):
    """Status, or None without a reply, and JSON content."""

    status: int | None
    content: Any


def post(client: httpx.Client, body: bytes) -> Reply:
    """Send one image."""
    try:
        response = client.post("/features", content=body)
    except httpx.HTTPError as error:
        return Reply(None, str(error))
    return Reply(response.status_code, response.json())


def load_server(url: str, bodies: Sequence[bytes], in_flight: int) -> list[Reply]:
    """Send images, so many at a time, and return the replies in their order."""
    limits = httpx.Limits(max_connections=in_flight)
    with (
        httpx.Client(base_url=url, timeout=RESPONSE_SECONDS, limits=limits, trust_env=False) as client,
        ThreadPoolExecutor(in_flight) as clients,
    ):
        return list(clients.map(lambda body: post(client, body), bodies))


def batches_of(url: str) -> dict[int, int]:
    """Return how many batches of each size the server has run."""
    batches = httpx.get(f"{url}/health", timeout=RESPONSE_SECONDS, trust_env=False).json()["batches"]
    return {int(size): count for size, count in batches.items()}


def end_under_load(server: Server, bodies: Sequence[bytes], in_flight: int) -> tuple[int, list[int | None]]:
    """End a server while requests are in flight; return its exit status and the statuses of all replies."""
    before = sum(size * count for size, count in batches_of(server.url).items())
    with ThreadPoolExecutor(1) as background:
        loading = background.submit(load_server, server.url, bodies, in_flight)
        while sum(size * count for size, count in batches_of(server.url).items()) == before:  # none has run yet
            time.sleep(0.005)
        status = server.end()
        return status, [reply.status for reply in loading.result()]
