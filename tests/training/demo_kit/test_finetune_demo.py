"""The comparison of LoRA with a frozen backbone, on a tiny model and made-up images."""

import pytest
from PIL import Image
from tuning_fixtures import write_shades

from training.demo_kit import finetune_demo
from training.demo_kit.finetune_demo import main
from training.demo_kit.tuning.experiments import EXPERIMENTS, Experiment


pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(autouse=True)
def _tiny(monkeypatch, own_datasets_cache, one_picture):
    options = {"steps": 10, "batch_size": 2, "lora_rank": 2}
    experiment = Experiment("image-classification", write_shades, 32, options, "frozen linear probe")
    monkeypatch.setitem(EXPERIMENTS, "image-classification", experiment)


def test_each_method_runs_once_for_every_seed(student, tmp_path, capsys, monkeypatch):
    command = ["--task", "image-classification", "--checkpoint", str(student), "--output", str(tmp_path / "runs")]
    assert main([*command, "--seeds", "0,1"]) == 0
    output = tmp_path / "runs" / "image-classification"
    table = (output / "table.md").read_text()
    assert table.strip() in capsys.readouterr().out
    cells = {row.split("|")[1].strip(): [cell.strip() for cell in row.split("|")[2:]] for row in table.splitlines()}
    assert cells["image-classification"][:3] == ["trained parameters", "seconds", "accuracy"]
    assert cells["untrained head"][:2] == ["0", "0"]
    assert int(cells["LoRA"][0].replace(",", "")) > int(cells["frozen linear probe"][0].replace(",", "")) > 0
    assert all("+-" in cells[name][2] for name in ("untrained head", "frozen linear probe", "LoRA"))
    for name in ("predictions.png", "losses.png"):
        with Image.open(output / name) as picture:
            assert picture.width > 300
    for seed in (0, 1):
        assert (output / f"lora-{seed}" / "final" / "adapter_model.safetensors").is_file()
    first, second = (output / f"data-{seed}" / "train" / "dark" / "0.png" for seed in (0, 1))
    assert first.read_bytes() != second.read_bytes()

    monkeypatch.setattr(finetune_demo.FinetuningRun, "run", lambda run: pytest.fail("a finished run was repeated"))
    assert main([*command, "--seeds", "0,1"]) == 0
    assert (output / "table.md").read_text() == table


def test_experiments_name_valid_settings(tmp_path):
    for task in EXPERIMENTS:
        comparison = finetune_demo.Comparison(task, tmp_path, tmp_path / "runs")
        for method in comparison.experiment.method_names:
            assert comparison._settings(method, 0).task == EXPERIMENTS[task].task
