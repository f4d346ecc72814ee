"""Tuning in two real processes (gloo; DDP and FSDP2) against one: same weights, same metrics, everything written once.

Both processes run all scenarios of this file.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from comparisons import assert_close_by_name
from PIL import Image
from safetensors.torch import load_file
from tiny_tuning import stop_after
from torch.distributed.tensor import DTensor
from tuning_fixtures import draw_one_image
from two_processes import choose_sharding, let_accelerate_shard_on_cpus, log_file, run_two_processes

import modeling_radio.core.files
from modeling_radio import RadioConfig, RadioModel
from modeling_radio.tuning.run import FinetuningRun
from modeling_radio.tuning.settings import FinetuneSettings
from modeling_radio.tuning.trainer import average_statistics


pytestmark = [pytest.mark.tour, pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")]

NUM_VALIDATION = 3  # an odd number: the last batch of two ranks is padded


class Scenario(NamedTuple):
    """One run of both processes.

    Attributes:
        options: Changes of the settings.
        use_fsdp: FSDP2 instead of DDP.
        stop_at: Step after which a first run ends, from whose checkpoint a second one goes on.
    """

    options: dict[str, Any]
    use_fsdp: bool = False
    stop_at: int | None = None

    @property
    def is_solved(self) -> bool:
        """Whether a linear head is fitted before the first step.

        A solved head's gradients are roundings, of which Adam makes full steps, and bfloat16 has another optimum.
        """
        return not {"task", "dtype"} & self.options.keys() and self.options["tune"] != "full"


# Rates for so narrow a backbone would be many times higher, and roundings of bfloat16 with them.
LORA = {"tune": "lora", "lora_rank": 2, "merge": True, "learning_rate": 5e-4, "head_learning_rate": 1e-3}
FULL = {"tune": "full", "learning_rate": 1e-3, "head_learning_rate": 1e-3, "gradient_checkpointing": True}
BOXES = {  # its loss sums the number of boxes over all ranks
    "task": "object-detection",
    "data": "boxes.json",
    "config": {"detection_num_queries": 6, "detection_hidden_size": 32, "detection_num_layers": 1},
}

QUICK = {"ddp-lora": Scenario(LORA), "fsdp-full": Scenario(FULL, use_fsdp=True)}
SLOW = {
    "ddp-full": Scenario(FULL),
    "ddp-boxes": Scenario(BOXES),
    "ddp-dora": Scenario({**LORA, "tune": "dora"}),
    "ddp-qlora": Scenario({**LORA, "quantize": 4}),
    "fsdp-lora": Scenario(LORA, use_fsdp=True),
    "ddp-lora-resumed": Scenario(LORA, stop_at=2),
    "fsdp-lora-resumed": Scenario(LORA, use_fsdp=True, stop_at=2),
    "fsdp-lora-bf16": Scenario({**LORA, "dtype": "bfloat16"}, use_fsdp=True),
    "fsdp-full-bf16": Scenario({**FULL, "dtype": "bfloat16"}, use_fsdp=True),
}
GROUPS = {"quick": QUICK, "slow": SLOW}
"""What two processes run, in this order, each in the output folder of its name."""


def settings(output: str, *, batch_size: int, **options) -> FinetuneSettings:
    """Four steps of four images each, however many processes share them."""
    quick = {"steps": 4, "evaluate_every": 2, "batch_size": batch_size, "num_workers": 0, "validation_share": 0.2}
    source = {"task": "image-classification", "data": "pets"}
    return FinetuneSettings(checkpoint="base", output=Path(output), **{**source, **quick, **options})


def open_run(chosen: FinetuneSettings, scenario: Scenario) -> FinetuningRun:
    run = FinetuningRun(chosen)
    if not scenario.is_solved:
        run.linear_head = None
    return run


def count_scored(run: FinetuningRun) -> list[int]:
    """Return a list to which every evaluation adds how many images its score takes."""
    score, counts = run.trainer.metrics.score, [0]
    update, reset = score.update, score.reset

    def counting_update(predictions, references) -> None:
        counts[-1] += len(predictions)
        update(predictions, references)

    def counting_reset() -> None:
        counts.append(0)
        reset()

    score.update, score.reset = counting_update, counting_reset
    return counts


def count_written(patch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which every file and folder that this process writes adds an entry."""
    create, written = modeling_radio.core.files.tempfile.TemporaryDirectory, []

    def counting_create(*args, **options):
        if str(options.get("prefix")).startswith(modeling_radio.core.files.TEMPORARY_PREFIX):
            written.append(str(options["dir"]))
        return create(*args, **options)

    patch.setattr(modeling_radio.core.files.tempfile, "TemporaryDirectory", counting_create)
    return written


def trained_weights(run: FinetuningRun) -> dict[str, torch.Tensor]:
    parameters = [(name, p.detach()) for name, p in run.trainer.model.named_parameters() if p.requires_grad]
    return {name: p.full_tensor() if isinstance(p, DTensor) else p.clone() for name, p in parameters}


def tune(name: str, scenario: Scenario) -> dict[str, Any]:
    """Run one scenario in this process; return what happened."""
    chosen = settings(name, batch_size=2, **scenario.options)
    if scenario.stop_at is not None:
        first = open_run(chosen, scenario)
        stop_after(first, scenario.stop_at)
    with pytest.MonkeyPatch.context() as patch:
        written = count_written(patch)
        run = open_run(chosen, scenario)
        counts = count_scored(run)
        metrics = run.run()
    model = run.trainer.model
    return {
        "weights": trained_weights(run),
        "is_sharded": any(isinstance(parameter, DTensor) for parameter in model.parameters()),
        "is_quantized": any(parameter.dtype == torch.uint8 for parameter in model.parameters()),  # two weights a byte
        "metrics": metrics,
        "scored": counts[:-1],
        "written": written,
    }


def run_scenarios(scenarios: dict[str, Scenario]) -> None:
    """Run by each of the two processes."""
    datasets.config.HF_DATASETS_CACHE = Path("cache")
    patch = pytest.MonkeyPatch()
    let_accelerate_shard_on_cpus(patch)
    draw_one_image(patch)
    for name, scenario in scenarios.items():
        choose_sharding(patch, use_fsdp=scenario.use_fsdp)
        sys.stdout.write(f"== {name}\n")
        sys.stdout.flush()
        torch.save(tune(name, scenario), result_file(name, PartialState().process_index))
    average_norm()


def average_norm() -> None:
    accelerator, norm = Accelerator(), torch.nn.BatchNorm2d(1)
    norm.running_mean += accelerator.process_index
    norm.running_var += accelerator.process_index
    average_statistics(norm)
    torch.save(norm.state_dict(), f"norm-{accelerator.process_index}.pt")


def result_file(scenario: str, rank: int) -> Path:
    return Path(f"{scenario}-{rank}.pt")


def write_images(folder: Path) -> None:
    """Write noise into folders of two classes, and a box for each image."""
    images, boxes = [], []
    for number in range(5 * NUM_VALIDATION):
        path = folder / "pets" / ("cat" if number % 2 else "dog") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = torch.randint(0, 256, (32, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))
        Image.fromarray(noise.numpy()).save(path)
        images.append({"id": number, "file_name": str(path.relative_to(folder))})
        boxes.append({"id": number, "image_id": number, "category_id": 1, "bbox": [number, number, 20, 12]})
    coco = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "pet"}]}
    (folder / "boxes.json").write_text(json.dumps(coco))


class Ended(NamedTuple):
    """The folder in which two processes have run some scenarios."""

    folder: Path
    scenarios: dict[str, Scenario]

    def results(self, name: str) -> list[dict[str, Any]]:
        return [torch.load(self.folder / result_file(name, rank), weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module", params=["quick", pytest.param("slow", marks=pytest.mark.slow)])
def two_ranks(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    write_images(folder)
    torch.manual_seed(0)
    config = RadioConfig.from_preset("radio-test", preferred_resolution=[32, 48])
    RadioModel(config).save_pretrained(folder / "base")
    for name in ("peft", "torchmetrics", "torch.utils.tensorboard", "torch.distributed.fsdp"):
        importlib.import_module(name)  # else each rank would, in its first run
    run_two_processes(lambda: run_scenarios(GROUPS[request.param]), folder)
    return Ended(folder, GROUPS[request.param])


def test_both_ranks_end_with_equal_weights_and_metrics(two_ranks):
    for name, scenario in two_ranks.scenarios.items():
        first, second = two_ranks.results(name)
        assert first["is_sharded"] == scenario.use_fsdp
        assert first["is_quantized"] == ("quantize" in scenario.options)
        assert first["metrics"] == second["metrics"]
        for parameter, weights in first["weights"].items():
            assert torch.equal(second["weights"][parameter], weights), (name, parameter)


def test_every_validation_image_counts_once(two_ranks):
    for name in two_ranks.scenarios:
        for result in two_ranks.results(name):
            assert set(result["scored"]) == {NUM_VALIDATION}, name


def test_everything_is_written_and_said_once(two_ranks):
    for name, scenario in two_ranks.scenarios.items():
        first, second = two_ranks.results(name)
        assert second["written"] == []
        output = two_ranks.folder / name
        examination = {"precision_recall.png", "worst.png"} | (
            set() if "task" in scenario.options else {"confusion.png"}
        )
        steps = {"step-2.png", "step-4.png"} | ({"step-0.png"} if scenario.is_solved else set())
        assert {path.name for path in (output / "pictures").iterdir()} == {"examples", *steps, *examination}
        once = {"settings.json", "results.json", "final"} | ({"merged"} if "merge" in scenario.options else set())
        assert once < {path.name for path in output.iterdir()}
        is_whole = scenario.stop_at is None
        num_evaluations = 3 + scenario.is_solved if is_whole else 2  # the last is after the training
        within = ("checkpoint-", modeling_radio.core.files.TEMPORARY_PREFIX)  # folders that appear as a whole
        written = [each for each in first["written"] if not any(part.startswith(within) for part in Path(each).parts)]
        assert len(written) == len(once) + len(examination) + 1 + num_evaluations + is_whole  # examples; a new folder
    assert "training and 3 validation images" in log_file(two_ranks.folder, 0).read_text()
    assert "Training " in log_file(two_ranks.folder, 0).read_text()
    assert "raining" not in log_file(two_ranks.folder, 1).read_text()


def test_two_processes_equal_one(two_ranks, monkeypatch):
    monkeypatch.chdir(two_ranks.folder)
    for name, scenario in two_ranks.scenarios.items():
        one, tolerance = f"one-{name.split('-')[1]}{'-solved' * scenario.is_solved}", 1e-5
        if "dtype" in scenario.options:
            tolerance = 5e-3
        elif "quantize" in scenario.options:  # computes in bfloat16, whose products other batches round otherwise
            tolerance = 1e-4
        elif scenario.use_fsdp and scenario.is_solved:
            tolerance = 5e-4  # half a step of Adam
        if not Path(one).exists():
            options = {**scenario.options, "dtype": "float32"}
            open_run(settings(one, batch_size=4, **options), scenario).run()
        best_step, best_step_of_one = (
            json.loads(Path(run, "checkpoint-4", "trainer_state.json").read_text())["best_global_step"]
            for run in (name, one)
        )
        kept = {path.name for path in Path(name).glob("checkpoint-*") if (Path(one) / path.name).exists()}
        assert "checkpoint-4" in kept
        same = {each: each for each in kept}
        if f"checkpoint-{best_step}" in kept:
            same["final"] = f"checkpoint-{best_step}"
        # The best of equally good steps is the one of lower loss, and `Trainer` adds padded images to the loss.
        if "merge" in scenario.options and best_step == best_step_of_one:
            same["merged"] = "merged"
        for folder, folder_of_one in same.items():
            assert_close_weights(Path(one) / folder_of_one, Path(name) / folder, tolerance)


def assert_close_weights(one: Path, two: Path, tolerance: float) -> None:
    (file,) = one.glob("*.safetensors")
    expected, actual = (  # peft's name of DoRA's magnitudes in a checkpoint is not that of `final`
        {
            name.replace("_magnitude_vector.weight", "_magnitude_vector"): tensor
            for name, tensor in load_file(path).items()
        }
        for path in (file, two / file.name)
    )
    assert_close_by_name(actual, expected, rtol=1e-4, atol=tolerance, what=str(two))


def test_running_statistics_are_averaged(two_ranks):
    for rank in range(2):
        norm = torch.load(two_ranks.folder / f"norm-{rank}.pt", weights_only=True)
        assert norm["running_mean"].tolist() == [0.5]  # of 0 and 1
        assert norm["running_var"].tolist() == [1.5]  # of 1 and 2
