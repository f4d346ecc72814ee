"""The server of `radio serve` with 1, 4 and 16 requests in flight.

Each client sends an image, waits for the reply and sends the next. All images differ, and each reply is compared with
that of a first round, one by one: "lost" counts requests without a reply, "mixed up" replies for another image. In the
end the server is told to stop while requests are in flight.
"""

import io
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import httpx
import numpy as np

from benchmarks.data import draw_image
from benchmarks.measuring import ROOT, MeasuringSettings, Row, report
from modeling_radio import RadioConfig, RadioImageProcessor, RadioModel


RESPONSE_SECONDS, END_SECONDS = 60.0, 30.0
"""Timeouts of one reply and of the end. Our choice: they prevent hanging and measure nothing."""
IN_FLIGHT = (1, 4, 16)
NUM_REQUESTS = 64
SIZE_PX, MAX_BATCH = 224, 16
STATUSES = {"answered": 200, "not taken": None}


def run(settings: MeasuringSettings) -> None:
    """Measure and report: the student, or random weights."""
    number = 16 if settings.quick else NUM_REQUESTS
    with tempfile.TemporaryDirectory() as scratch:
        folder = settings.student or Path(scratch)
        if settings.student is None:
            model = RadioModel(RadioConfig.from_preset(settings.preset))
            model.save_pretrained(folder)
            RadioImageProcessor.from_model_config(model.config).save_pretrained(folder)
        rows, end = measure(folder, IN_FLIGHT, number)
    subject = settings.preset if settings.student is None else folder.resolve().name
    report(settings, "serving", "serving", subject, rows, {"told to end under load": end})


def measure(folder: Path, in_flight: Sequence[int], number: int, size: int = SIZE_PX) -> tuple[list[Row], Row]:
    """Return a row for each number of requests in flight, and the result of ending under load."""
    bodies, rows = encode_images(number, size), []
    with serve(folder, f"--size={size}", f"--max-batch={MAX_BATCH}") as server:
        expected, _ = load(server.url, bodies, 1)  # alone in their batches, and not timed
        for each in in_flight:
            before = sum(batches_of(server.url).values())
            replies, seconds = load(server.url, bodies, each)
            rows.append(row_of(each, replies, expected, seconds, sum(batches_of(server.url).values()) - before))
        return rows, end_under_load(server, bodies, max(in_flight))


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
def serve(model: Path, *options: str, said: list[str] | None = None) -> Iterator[Server]:
    """Start the server on a free port of 127.0.0.1; kill it in the end if it still runs.

    Args:
        model: Folder of a model.
        options: Options of the command.
        said: Receives the server's standard error.

    Raises:
        RuntimeError: If it ends before it serves.
    """
    command = [sys.executable, "-m", "modeling_radio", "serve", str(model), "--port=0", *options]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        with served(process, process.stderr, said) as server:
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
    """Status, or None without a reply; JSON content; and seconds."""

    status: int | None
    content: Any
    seconds: float


def post(client: httpx.Client, body: bytes) -> Reply:
    """Send one image."""
    began = time.perf_counter()
    try:
        response = client.post("/features", content=body)
    except httpx.HTTPError as error:
        return Reply(None, str(error), time.perf_counter() - began)
    return Reply(response.status_code, response.json(), time.perf_counter() - began)


def load(url: str, bodies: Sequence[bytes], in_flight: int) -> tuple[list[Reply], float]:
    """Send images, so many at a time, and return the replies in their order and the seconds of all."""
    limits = httpx.Limits(max_connections=in_flight)
    with (
        httpx.Client(base_url=url, timeout=RESPONSE_SECONDS, limits=limits, trust_env=False) as client,
        ThreadPoolExecutor(in_flight) as clients,
    ):
        began = time.perf_counter()
        replies = list(clients.map(lambda body: post(client, body), bodies))
        return replies, time.perf_counter() - began


def batches_of(url: str) -> dict[int, int]:
    """Return how many batches of each size the server has run."""
    batches = httpx.get(f"{url}/health", timeout=RESPONSE_SECONDS, trust_env=False).json()["batches"]
    return {int(size): count for size, count in batches.items()}


def is_near(response: Any, expected: Any) -> bool:
    """True if two summaries are of one image: they differ slightly, since sums depend on the batch."""
    return bool(np.allclose(response["summary"], expected["summary"], rtol=1e-2, atol=1e-3))


def row_of(in_flight: int, replies: Sequence[Reply], expected: Sequence[Reply], seconds: float, batches: float) -> Row:
    """Return the row of one load."""
    took = np.array([reply.seconds for reply in replies])
    served = [reply.status == 200 for reply in replies]
    mixed = sum(
        not is_near(reply.content, other.content)
        for reply, other, is_served in zip(replies, expected, served, strict=True)
        if is_served
    )
    return {
        "in flight": in_flight,
        "requests": len(replies),
        "lost": served.count(False),
        "mixed up": mixed,
        "images a second": round(len(replies) / seconds, 1),
        "median, ms": round(1000 * float(np.median(took)), 1),
        "95 %, ms": round(1000 * float(np.quantile(took, 0.95)), 1),
        "images a batch": round(len(replies) / batches, 1),
    }


def end_under_load(server: Server, bodies: Sequence[bytes], in_flight: int) -> Row:
    """End a server while requests are in flight; it must reply to those that it accepted."""
    before = sum(size * count for size, count in batches_of(server.url).items())
    with ThreadPoolExecutor(1) as background:
        loading = background.submit(load, server.url, bodies, in_flight)
        while sum(size * count for size, count in batches_of(server.url).items()) == before:  # none has run yet
            time.sleep(0.005)
        status = server.end()
        replies, _ = loading.result()
    counts = {name: [reply.status for reply in replies].count(status) for name, status in STATUSES.items()}
    return {"exit status": status, **counts, "other": len(replies) - sum(counts.values())}
