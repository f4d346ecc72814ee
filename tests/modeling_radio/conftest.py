"""A server of our own, since pipelines also take addresses of images."""

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest


PHOTOGRAPH = Path(__file__).parents[2] / "docs" / "photograph.jpg"


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """The photograph's address."""
    handler = functools.partial(QuietHandler, directory=str(PHOTOGRAPH.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/{PHOTOGRAPH.name}"
        server.shutdown()
        thread.join()
