"""A checkpoint as a model: the same as the run itself exports."""

from pathlib import Path

import pytest
import tiny_distillation as tiny
from safetensors.torch import load_file

from modeling_radio.training.distillation import checkpoints
from modeling_radio.training.export_checkpoint import main


pytestmark = pytest.mark.usefixtures("one_thread", "tiny_world")


def test_checkpoints_are_exported_as_the_run_exports_them(
    recipe_file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.distil(recipe_file, "run", *tiny.REGULARIZED)
    final, states = load_file("run/final/model.safetensors"), {}
    for step in (6, 8):
        assert main([f"run/checkpoints/step_{step:08}", f"step_{step}"]) == 0
        states[step] = load_file(f"step_{step}/model.safetensors")
    tiny.assert_same_tensors(states[8], final)
    assert any(not value.equal(final[key]) for key, value in states[6].items())
    files = [sorted(path for path in Path(each).rglob("*") if path.is_file()) for each in ("step_8", "run/final")]
    assert [path.name for path in files[0]] == [path.name for path in files[1]]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
    capsys.readouterr()
    with Path("run/checkpoints/step_00000006/ema.safetensors").open("ab") as file:
        file.write(b"?")
    refused = {"run": "`checkpoint` must be", "run/checkpoints/step_00000006": "ema.safetensors"}
    for folder, message in refused.items():
        assert main([folder, "other"]) == 1
        assert message in capsys.readouterr().err
        assert not Path("other").exists()
    monkeypatch.setattr(checkpoints, "read_state", lambda _: {"step": 8})
    assert main(["run/checkpoints/step_00000008", "other"]) == 1
    assert "without `widths`" in capsys.readouterr().err
    assert not Path("other").exists()
