"""What the tests of the app share: tiny checkpoints, opened once, and photographs."""

import pytest
from tiny_checkpoints import photograph, picture, save_tuned, texts

from modeling_radio.serving.app.page import App


__all__ = ["photograph", "picture", "save_tuned", "texts"]


@pytest.fixture(scope="session")
def app(texts) -> App:
    return App(str(texts), "cpu")
