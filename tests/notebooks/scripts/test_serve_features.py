"""The server under load: batches, each image's own answer, bad and large bodies, and its end."""

import io

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.serving import batches_of, encode_images, end_under_load, load, serve
from modeling_radio import RadioImageProcessor


pytest.importorskip("fastapi", reason="needs the extra `serve`")
pytestmark = pytest.mark.tour
MAX_BYTES = 200_000
OPTIONS = ("--size=64", "--max-batch=4", "--max-wait=20", f"--max-bytes={MAX_BYTES}", "--max-pixels=90000")


@pytest.fixture(scope="module")
def server(model):
    with serve(model, *OPTIONS) as running:
        yield running


def post(server, body, **options):
    return httpx.post(f"{server.url}/features", content=body, timeout=60, trust_env=False, **options)


def eps():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "EPS")
    return buffer.getvalue()


def png(width, height):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (10, 200, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def test_every_image_gets_its_own_answer_from_batches(server, radio):
    bodies = encode_images(24, 96)
    before = batches_of(server.url)
    replies, _ = load(server.url, bodies, 12)
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
    answer = post(server, body, params={"dense": "true"}).json()
    assert np.array(answer["features"]).shape == (4, 4, radio.config.hidden_size)
    assert "features" not in post(server, body).json()


@pytest.mark.parametrize("body", [b"", b"no image", png(64, 64)[:60], eps(), encode_images(1, 96)[0][:300]])
def test_what_is_no_image_is_400(server, body):
    answer = post(server, body)
    assert (answer.status_code, answer.json()["detail"]) == (400, "The body must be an image, such as JPEG or PNG.")


def test_what_is_too_large_is_413(server):
    assert post(server, b"0" * (MAX_BYTES + 1)).status_code == 413
    assert post(server, iter([b"0" * MAX_BYTES, b"0"])).status_code == 413  # of a length that is not told before
    answer = post(server, png(301, 300))
    assert (answer.status_code, answer.json()["detail"]) == (413, "An image may have 90000 pixels, got 301 x 300.")
    assert post(server, png(300, 300)).status_code == 200


def test_too_many_are_told_to_come_again(model):
    with serve(model, *OPTIONS, "--max-waiting=1", "--max-batch=1", "--max-wait=300") as server:
        replies, _ = load(server.url, encode_images(8, 96), 8)
        statuses = [reply.status for reply in replies]
        assert set(statuses) == {200, 503}
        assert post(server, encode_images(1, 96)[0]).status_code == 200


def test_its_end_answers_what_it_took(model):
    with serve(model, *OPTIONS) as server:
        end = end_under_load(server, encode_images(64, 96), 8)
    assert (end["exit status"], end["other"]) == (0, 0)
    assert end["answered"] >= 1
    assert end["answered"] + end["not taken"] == 64


def test_no_endless_queue_is_asked_for(run_script, model):
    done = run_script("serve_features", model, "--max-waiting", 0)
    assert done.returncode == 2
    assert "--max-batch and --max-waiting must be 1 or more" in done.stderr
