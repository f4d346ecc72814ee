import pytest

from modeling_radio.serving.app.page import App


@pytest.fixture(scope="session")
def app(texts) -> App:
    return App(str(texts), "cpu")
