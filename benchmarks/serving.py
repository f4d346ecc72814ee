"""Loads the server of `notebooks/scripts/serve_features.py` with requests in flight and tells how it answers.

    python -m benchmarks.serving FOLDER [--in-flight 1,4,16] [--num-requests 64] [--size 224] [--max-batch 16]

Each client sends an image, waits for the answer and sends the next. All images differ, and each answer is compared with
that of a first round, one by one: "lost" counts requests without an answer, "mixed up" answers of another image. In the
end the server is told to stop while requests are in flight. Prints a table and writes it to `benchmarks/results/`.
"""

import io
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import httpx
import numpy as np
from PIL import Image
from pydantic import Field

from benchmarks.measuring.new_process import ROOT
from benchmarks.measuring.results import report
from foundation.command_line import Command
from foundation.settings import Settings


SCRIPT = ROOT / "notebooks" / "scripts" / "serve_features.py"
START_SECONDS, ANSWER_SECONDS, END_SECONDS = 120.0, 60.0, 30.0
"""How long starting, one answer and ending may take. Our choice: bounds against hanging, not measures."""

Row = dict[str, object]


class Server(NamedTuple):
    """A server in a process of its own, and its address."""

    process: subprocess.Popen[str]
    url: str

    def end(self) -> int:
        """Tell it to end, and return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(END_SECONDS)


@contextmanager
def serve(model: Path, *options: str) -> Iterator[Server]:
    """Start the server on a free port of 127.0.0.1; in the end it is killed if it still runs.

    Raises:
        RuntimeError: If it ends before it serves.
    """
    command = [sys.executable, str(SCRIPT), str(model), "--port=0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            said = []
            for line in process.stderr:
                said.append(line)
                found = re.search(r"running on (http://[\d.:]+)", line)
                if found:
                    break
            else:
                raise RuntimeError(f"The server ended before it served: {''.join(said)[-2000:]}")
            with ThreadPoolExecutor(1) as reader:  # or the server would block on a full pipe
                reader.submit(process.stderr.read)
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
        coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(buffer, "JPEG")
        encoded.append(buffer.getvalue())
    return encoded


class Reply(NamedTuple):
    """Status, or None without an answer; its JSON; and the seconds that it took."""

    status: int | None
    content: Any
    seconds: float


def post(client: httpx.Client, body: bytes) -> Reply:
    """Send one image."""
    began = time.perf_counter()
    try:
        answer = client.post("/features", content=body)
    except httpx.HTTPError as error:
        return Reply(None, str(error), time.perf_counter() - began)
    return Reply(answer.status_code, answer.json(), time.perf_counter() - began)


def load(url: str, bodies: Sequence[bytes], in_flight: int) -> tuple[list[Reply], float]:
    """Send images, so many at a time, and return the replies in their order and the seconds of all."""
    limits = httpx.Limits(max_connections=in_flight)
    with (
        httpx.Client(base_url=url, timeout=ANSWER_SECONDS, limits=limits, trust_env=False) as client,
        ThreadPoolExecutor(in_flight) as clients,
    ):
        began = time.perf_counter()
        replies = list(clients.map(lambda body: post(client, body), bodies))
        return replies, time.perf_counter() - began


def batches_of(url: str) -> dict[int, int]:
    """Return how many batches of each size the server has run."""
    batches = httpx.get(f"{url}/health", timeout=ANSWER_SECONDS, trust_env=False).json()["batches"]
    return {int(size): count for size, count in batches.items()}


def is_near(answer: Any, expected: Any) -> bool:
    """Whether two summaries are those of one image: batches of other sizes add up in another order."""
    return bool(np.allclose(answer["summary"], expected["summary"], rtol=1e-2, atol=1e-3))


def row_of(in_flight: int, replies: Sequence[Reply], expected: Sequence[Reply], seconds: float, batches: float) -> Row:
    """Return what is told of one load."""
    took = np.array([reply.seconds for reply in replies])
    answered = [reply.status == 200 for reply in replies]
    mixed = sum(
        not is_near(reply.content, other.content)
        for reply, other, is_answer in zip(replies, expected, answered, strict=True)
        if is_answer
    )
    return {
        "in flight": in_flight,
        "requests": len(replies),
        "lost": answered.count(False),
        "mixed up": mixed,
        "images a second": round(len(replies) / seconds, 1),
        "median, ms": round(1000 * float(np.median(took)), 1),
        "95 %, ms": round(1000 * float(np.quantile(took, 0.95)), 1),
        "images a batch": round(len(replies) / batches, 1),
    }


def end_under_load(server: Server, bodies: Sequence[bytes], in_flight: int) -> Row:
    """Tell a server to end while requests are in flight: what it took must be answered, and its status be 0."""
    before = sum(size * count for size, count in batches_of(server.url).items())
    with ThreadPoolExecutor(1) as background:
        loading = background.submit(load, server.url, bodies, in_flight)
        while sum(size * count for size, count in batches_of(server.url).items()) == before:  # none has run yet
            time.sleep(0.005)
        status = server.end()
        replies, _ = loading.result()
    counts = {name: [reply.status for reply in replies].count(status) for name, status in STATUSES.items()}
    return {"exit status": status, **counts, "other": len(replies) - sum(counts.values())}


STATUSES = {"answered": 200, "not taken": None}


class ServingSettings(Settings):
    """What is sent.

    Attributes:
        model: Folder that is served.
        in_flight: Requests at the same time, one load after the other.
        num_requests: Of each load.
        size: Side of the images in pixels.
        max_batch: The server's limit.
    """

    model: Path
    in_flight: list[Annotated[int, Field(ge=1)]] = [1, 4, 16]
    num_requests: int = Field(64, ge=2)
    size: int = Field(224, ge=32)
    max_batch: int = Field(16, ge=1)


COMMAND = Command("benchmarks.serving", __doc__.partition("\n")[0], ServingSettings, positionals=("model",))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return COMMAND.run(_measure_and_report, arguments, extra="serve")


def _measure_and_report(settings: ServingSettings) -> None:
    bodies, rows = encode_images(settings.num_requests, settings.size), []
    options = (f"--size={settings.size}", f"--max-batch={settings.max_batch}")
    with serve(settings.model, *options) as server:
        expected, _ = load(server.url, bodies, 1)  # alone in their batches, and not timed
        for in_flight in settings.in_flight:
            before = sum(batches_of(server.url).values())
            replies, seconds = load(server.url, bodies, in_flight)
            rows.append(row_of(in_flight, replies, expected, seconds, sum(batches_of(server.url).values()) - before))
        end = end_under_load(server, bodies, max(settings.in_flight))
    report("serving", settings.model.resolve().name, rows, facts={"told to end under load": end})


if __name__ == "__main__":
    sys.exit(main())
