"""Opening a checkpoint does not look for garbage meanwhile, and leaves the collector as it was."""

import gc
from pathlib import Path

import pytest

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.loading_radio import garbage_collection_paused


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    RadioModel(RadioConfig.from_preset("radio-test")).save_pretrained(tmp_path)
    return tmp_path


def test_no_collection_while_a_folder_is_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, build = [], RadioModel.__init__

    def watched(self: RadioModel, config: RadioConfig) -> None:
        seen.append(gc.isenabled())
        build(self, config)

    monkeypatch.setattr(RadioModel, "__init__", watched)
    assert gc.isenabled()
    RadioModel.from_pretrained(folder)
    assert seen == [False]
    assert gc.isenabled()


def test_an_error_and_a_pause_within_a_pause_leave_it_as_it_was() -> None:
    with pytest.raises(OSError, match="nowhere"):
        RadioModel.from_pretrained("./nowhere")
    assert gc.isenabled()
    with garbage_collection_paused():
        with garbage_collection_paused():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
