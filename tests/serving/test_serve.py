"""The server under load: batches, each image's own output, bad and large bodies, clients that stall, and its end."""

import io
import os
import re
import signal
import socket
import struct
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from feature_server import batches_of, encode_images, end_under_load, load_server, serve, served
from forks import Command, forks
from killing import wait_for
from PIL import Image
from safetensors.torch import load
from tiny_folders import build_radio

from modeling_radio import RadioImageProcessor
from modeling_radio.serving.serve import main


pytest.importorskip("fastapi", reason="needs the extra `app`")
pytestmark = pytest.mark.tour

MAX_BYTES = 200_000
OPTIONS = ("--size=64", "--max-batch=4")


@pytest.fixture(scope="module")
def radio():
    return build_radio()


@pytest.fixture(scope="module")
def server(model):
    with serve(model, *OPTIONS) as running:
        yield running
        assert running.end() == 128 + signal.SIGTERM


@pytest.fixture(scope="module")
def forking():
    with forks("modeling_radio.serving.serve", "modeling_radio.serving.endpoints", "uvicorn") as process:
        yield process


@pytest.fixture
def start(forking, model, tmp_path):
    """A function like `serve`, whose server is a fork, with other constants of its module."""
    os.mkfifo(tmp_path / "said")

    @contextmanager
    def start(said=None, **constants):
        with (
            Command(forking, [str(model), "--port=0", *OPTIONS], tmp_path, "said", **constants) as command,
            (tmp_path / "said").open() as output,
            served(command, output, said) as server,
        ):
            yield server

    return start


def post(server, body, **options):
    return httpx.post(f"{server.url}/features", content=body, timeout=60, trust_env=False, **options)


def encoded(width, height, kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (10, 200, 30)).save(buffer, kind)
    return buffer.getvalue()


def test_every_image_gets_its_own_output_from_batches(server, radio):
    bodies = encode_images(24, 96)
    before = batches_of(server.url)
    replies = load_server(server.url, bodies, 12)
    assert [reply.status for reply in replies] == [200] * 24
    processor = RadioImageProcessor.from_model_config(radio.config)
    images = [Image.open(io.BytesIO(body)) for body in bodies]
    inputs = processor(images, size={"height": 64, "width": 64}, return_tensors="pt")
    with torch.inference_mode():
        expected = radio(**inputs, adaptor_names=[]).summary
    answers = torch.tensor([reply.content["summary"] for reply in replies])
    torch.testing.assert_close(answers, expected, rtol=1e-3, atol=1e-4)
    assert torch.cdist(expected, expected).fill_diagonal_(9).amin() > 0.01  # a mix-up would show
    new = {size: count - before.get(size, 0) for size, count in batches_of(server.url).items()}
    assert sum(size * count for size, count in new.items()) == 24
    assert max(size for size, count in new.items() if count) == 4
    assert sum(new.values()) < 24


def test_dense_features_on_request(server, radio):
    (body,) = encode_images(1, 64)
    answer = load(post(server, body, params={"dense": "true"}).content)
    assert answer["features"].shape == (4, 4, radio.config.hidden_size)
    summary = post(server, body).json()
    assert summary.keys() == {"summary"}
    np.testing.assert_allclose(answer["summary"], summary["summary"], rtol=1e-3, atol=1e-4)


def test_an_image_may_be_the_file_of_a_form(server):
    body = encoded(64, 64)

    def post_form(*files, **options):
        return httpx.post(f"{server.url}/features", files=files or None, timeout=60, trust_env=False, **options)

    image = ("image", ("photo.png", body))
    np.testing.assert_allclose(
        post_form(image, data={"other": "field"}).json()["summary"], post(server, body).json()["summary"], atol=1e-4
    )
    for answer in (
        post_form(image, ("second", ("photo.png", body))),
        post_form(("image", (None, "a text"))),
        post(server, body, headers={"Content-Type": "multipart/form-data"}),
    ):
        assert answer.status_code == 400
        assert "form" in answer.json()["detail"]


def test_metrics_count_answers_images_and_batches(start):
    with start() as server:
        for body in (encoded(64, 64), encoded(32, 32), b"no image"):
            post(server, body)
        answer = get(server, "/metrics")
        assert answer.headers["content-type"].startswith("text/plain")
        samples = dict(line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#"))
    assert {key: float(value) for key, value in samples.items() if "seconds" not in key} == {
        'radio_answers_total{status="200"}': 2,
        'radio_answers_total{status="400"}': 1,
        "radio_open_requests": 0,
        "radio_images_total": 2,
        'radio_batches_total{size="1"}': 2,
    }
    assert 0 < float(samples["radio_request_seconds_total"]) < 60
    assert answer.text.count("# TYPE") == 5


@pytest.mark.parametrize(
    "body", [b"", b"no image", encoded(64, 64)[:60], encoded(8, 8, "EPS"), encode_images(1, 96)[0][:300]]
)
def test_a_body_that_is_no_image_is_400(server, body):
    answer = post(server, body)
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("The body must be an image")


def test_a_body_that_is_too_large_is_413(start):
    large = encoded(301, 300)
    icon = b"ic07" + struct.pack(">I", 8 + len(large)) + large  # whose header says 128 x 128
    with start(MOST_BYTES=MAX_BYTES, MOST_PIXELS=90_000) as server:
        assert post(server, b"0" * (MAX_BYTES + 1)).status_code == 413
        assert post(server, iter([b"0" * MAX_BYTES, b"0"])).status_code == 413  # of unknown length
        form = {"image": ("photo.png", b"0" * MAX_BYTES)}
        assert httpx.post(f"{server.url}/features", files=form, timeout=60, trust_env=False).status_code == 413
        for body in (large, b"icns" + struct.pack(">I", 8 + len(icon)) + icon):
            answer = post(server, body)
            assert (answer.status_code, "90000 pixels" in answer.json()["detail"]) == (413, True)
        assert post(server, encoded(300, 300)).status_code == 200


def begin(server, body=b"", length=MAX_BYTES):
    """Send the beginning of a request; return the connection."""
    connection = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])))
    connection.sendall(b"POST /features HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % length + body)
    return connection


def get(server, path):
    return httpx.get(f"{server.url}{path}", timeout=60, trust_env=False)


def wait_for_waiting(server, number):
    wait_for(lambda: get(server, "/health").json()["waiting"] == number, 300, f"never {number} requests")


def test_too_many_requests_are_refused(start):
    with start(MOST_WAITING=2, MOST_SECONDS=600) as server:
        assert get(server, "/ready").status_code == 200
        stalled = [begin(server, b"x") for _ in range(2)]
        wait_for_waiting(server, 2)
        assert get(server, "/ready").status_code == 503
        assert post(server, encode_images(1, 96)[0]).status_code == 503
        for connection in stalled:
            connection.close()
        wait_for_waiting(server, 0)
        assert get(server, "/ready").status_code == 200
        assert post(server, encode_images(1, 96)[0]).status_code == 200


def test_a_request_has_a_time_limit(start):
    with start(MOST_SECONDS=1) as server:
        connection = begin(server, b"x")
        connection.settimeout(300)
        assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")
        wait_for_waiting(server, 0)


def test_requests_of_clients_that_leave_are_not_computed_and_leave_no_traceback(start, capfd):
    said = []
    with start(said, NUM_DECODERS=1, BATCH_WAIT=1) as server:
        begin(server, b"x").close()
        body = encode_images(1, 96)[0]
        for _ in range(8):
            begin(server, body, len(body)).close()
        wait_for_waiting(server, 0)
        assert post(server, body).status_code == 200
        assert sum(size * count for size, count in batches_of(server.url).items()) <= 2
        server.end()
    assert "Traceback" not in "".join(said)


def peak_mb(server):
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_has_a_bound(start):
    megapixels, waiting = 9, 64
    with start(MOST_PIXELS=megapixels * 10**6, MOST_WAITING=waiting) as server:
        post(server, encoded(64, 64))
        bound = peak_mb(server) + 2 * 16 * megapixels + waiting
        replies = load_server(server.url, [encoded(3000, 3000)] * 16, 16)
        assert [reply.status for reply in replies] == [200] * 16
        stalled = [begin(server, b"x" * 2**23, 2**24) for _ in range(40)]
        assert post(server, encoded(64, 64)).status_code == 200
        assert peak_mb(server) < bound
        del stalled


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_stalled_client_does_not_keep_it(number, start):
    with start(MOST_SECONDS=600) as server:
        stalled = begin(server, b"x")
        wait_for_waiting(server, 1)
        server.process.send_signal(number)
        assert server.process.wait(300) in (128 + number, -number)
        stalled.close()


def test_it_completes_open_requests_at_its_end(start):
    with start() as server:
        exit_status, statuses = end_under_load(server, encode_images(64, 96), 8)
    assert exit_status == 128 + signal.SIGTERM
    assert set(statuses) <= {200, None}  # answered, or not taken
    assert 200 in statuses
    assert len(statuses) == 64


def test_batches_without_images_are_refused(model, capsys):
    assert main([str(model), "--max-batch", "0"]) == 1
    assert "`max_batch`" in capsys.readouterr().err
