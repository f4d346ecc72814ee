"""Models of transformers that have a saved folder as their backbone are saved and opened again without this package."""

from pathlib import Path

import pytest
import torch

from modeling_radio import RadioConfig, RadioModel


PROGRAM = Path(__file__).with_name("run_composites.py").read_text()


@pytest.mark.tour
def test_each_composite_that_the_docs_name_opens_again(tmp_path, elsewhere):
    RadioModel(RadioConfig.from_preset("radio-test")).save_pretrained(tmp_path / "plain")
    for mode in ("save", "open"):
        run = elsewhere.run(PROGRAM, tmp_path, mode, "plain", "models", f"{mode}.pt")
        assert run.returncode == 0, run.stderr
    saved, opened = (torch.load(tmp_path / f"{mode}.pt", weights_only=True) for mode in ("save", "open"))
    assert len(saved) == 12
    for name, outputs in saved.items():
        assert all(output.isfinite().all() for output in outputs), name
        torch.testing.assert_close(opened[name], outputs, rtol=0, atol=0)
