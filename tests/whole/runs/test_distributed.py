"""Two real processes (gloo; DDP and FSDP2) against one: same weights, same checkpoints, same errors.

Four processes (HSDP) are compared with four copies.

Both processes run all scenarios of this file, on the tiny student, teachers and images of
`tiny_distillation.py`.
"""

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import tiny_distillation as tiny
import torch
from accelerate.state import AcceleratorState, PartialState
from comparisons import assert_close_by_name
from deep_teacher import DeepTeacher, bytes_of
from PIL import Image
from pyarrow import parquet, table
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_networks import CONVNEXT, NETWORKS
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard
from torchvision.io import encode_png
from two_processes import (
    CONFIGS,
    choose_sharding,
    fsdp_settings,
    launcher_arguments,
    let_accelerate_shard_on_cpus,
    log_file,
    run_processes,
    run_two_processes,
)

from modeling_radio.core.errors import UserError
from modeling_radio.core.files import sole_run
from modeling_radio.data.settings import DataRecipe
from modeling_radio.layers_radio import RadioBlock
from modeling_radio.training.distillation import checkpoints, monitoring
from modeling_radio.training.distillation.checkpoints import PART_BYTES
from modeling_radio.training.distillation.stages import run_recipe
from modeling_radio.training.distillation.tracking import RunHistory
from modeling_radio.training.recipes.recipe import load_recipe
from modeling_radio.training.student.sharding import build_accelerator
from modeling_radio.training.teachers.outputs import TeacherOutput


pytestmark = pytest.mark.tour

SHORT = ("schedule.num_steps=5", "standardization={calibration_steps: 1, estimation_steps: 3}")
# A small epsilon would turn the rounding of a gradient that should be zero into a full step of Adam.
SMOOTH = ("optimizer.learning_rate=0.1", "optimizer.eps=1")
SETTINGS = (*SMOOTH, *SHORT, "checkpoints={every_steps: 5, keep: 9}")
SAVED_BETWEEN = "checkpoints.every_steps=2"

UNEVEN = "partitions=[{name: low, sizes_px: [32, 48], batch_size: 5}, {name: high, sizes_px: [64], batch_size: 3}]"
BOUND = (  # "low" on rank 0, "high" on rank 1
    "partitions=[{name: low, sizes_px: [32, 48], batch_size: 5, rank_share: 1},"
    " {name: high, sizes_px: [64], batch_size: 2, rank_share: 1}]"
)
UNEQUAL_PASSES = BOUND.replace("batch_size: 2", "batch_size: 2, accumulation_steps: 2")
TAPS = ("taps.weight=0.25", "teachers.semantic.role=basic", "teachers.segmenter.role=task")
# No optimizer state when it is first saved.
FROZEN_TRUNK = (UNEVEN, SAVED_BETWEEN, "optimizer.trunk_frozen_steps=3", *TAPS)
EVERYTHING = (
    UNEVEN,
    "partitions.high.teachers=[semantic]",
    "partitions.high.weight=0.5",
    "mesa={weight: 0.5, start_step: 1}",
    "damp.sigma=0.1",
    "spectral.is_used=true",
    "optimizer={name: lamb, learning_rate: 1e-3}",
    "student.gradient_checkpointing=true",
    "ema.is_exported=false",
    "logging={picture_source: pictures, metrics_every_steps: 3, knn_data: labeled, knn_every_steps: 2}",
)
MUON = (
    UNEVEN,
    "spectral.is_used=true",
    "student.config.use_swiglu_ffn=true",
    "optimizer={name: muon, learning_rate: 1e-3}",
)
PACKED = (*EVERYTHING, *tiny.PACKED, "partitions.low.token_budget=80", *TAPS)
FEW_IMAGES = (  # four or five of "low", one of "high": a rank has none of "high" in each step
    *EVERYTHING,
    "partitions=[{name: low, sizes_px: [32, 48], token_budget: 40}, {name: high, sizes_px: [64], token_budget: 16}]",
    "contrastive={weight: 0.5, bank_size: 13}",
    *TAPS,
)
ONE_TEACHER_EACH = (BOUND, "partitions.low.teachers=[segmenter]", "partitions.high.teachers=[semantic]")
BALANCED = (
    UNEVEN,
    "partitions.high.teachers=[semantic]",
    "balancing={method: adaptive, ramp_steps: 0}",
    "teachers.semantic.role=semantic",
    "teachers.segmenter.role=task",
    "teachers.segmenter.options.summary_dim=8",  # two teachers in each group
    "contrastive={weight: 0.5, bank_size: 21}",
)
NORMALIZERS = (UNEVEN, "export={feature_normalizer: true, intermediate_normalizers: shared}")
BALANCED_STREAM = (  # a step is a pass, of which each rank has four images and two large ones, some several times
    *CONVNEXT.overrides,
    "data={source: stream, streaming: true, num_images: null, shuffle_buffer: 2, weights: often}",
    "data.min_side_ratio=1",
    "partitions=[{name: low, sizes_px: [64], batch_size: 8}, {name: high, sizes_px: [96], batch_size: 4}]",
    # Nothing is random about an image, or its place in the step would decide: ranks see other orders than one process.
    "views={crop_scale: [1, 1], crop_aspect: [1, 1], max_shift_patches: 0, flip_probability: 0, brightness: 0}",
    "views.contrast=0",
)
OFTEN = [[2, 0], [0, 1], [1, 2], [1, 1]]
"""Weights of the images of each file, 1 in the mean. Only the first of a file is large enough for "high"."""
CACHED = (UNEVEN, "views={teachers: cached, cache_dir: cache}")
FEWER_TOKENS = (
    "student.config.downscale_levels=[1]",
    "student.config.decoder_depth=1",
    "student.num_tokens=triangular",
    "partitions=[{name: low, sizes_px: [32, 64], batch_size: 5}]",
)
CROSS_ATTENTION = (
    *FEW_IMAGES,
    "partitions.high.teachers=[semantic]",
    "student.preset=null",
    "student.architecture=navit_tiny",
    "student.config={hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2}",
    "student.arguments={heads: {semantic: {num_layers: 1, num_heads: 2}, segmenter: {num_layers: 1, num_heads: 2}}}",
)
CONVOLUTIONS = (*CONVNEXT.overrides, "mesa={weight: 0.5, start_step: 1}")
BATCH_NORM = (*NETWORKS["ResNet"].overrides, "checkpoints.every_steps=2")
FEW_BATCH_NORM = (  # the image that stands for those of "high" has one position, of which no norm has a variance
    *NETWORKS["ResNet"].overrides,
    "partitions=[{name: low, sizes_px: [32], batch_size: 4}, {name: high, sizes_px: [64], batch_size: 1}]",
)
NAN_ON_RANK_1 = (SAVED_BETWEEN, "teachers.segmenter.kind=failing_on_rank_1", "optimizer.max_bad_steps=2")


class Scenario(NamedTuple):
    """One run of both processes.

    Attributes:
        overrides: Changes of the recipe.
        use_fsdp: FSDP2 instead of DDP.
        session: The steps that both processes run, first and last; one process runs those before and after.
    """

    overrides: tuple[str, ...]
    use_fsdp: bool = False
    session: tuple[int, int] = (0, 5)


SCENARIOS = {
    "ddp-bound": Scenario((UNEQUAL_PASSES,)),
    "fsdp-bound": Scenario((BOUND,), use_fsdp=True),
    "fsdp-passes": Scenario((UNEQUAL_PASSES,), use_fsdp=True),
    "ddp-everything": Scenario(EVERYTHING),
    "fsdp-everything": Scenario(EVERYTHING, use_fsdp=True),
    "ddp-muon": Scenario(MUON),
    "fsdp-muon": Scenario(MUON, use_fsdp=True),
    "ddp-packed": Scenario(PACKED),
    "fsdp-packed": Scenario(PACKED, use_fsdp=True),
    "fsdp-bf16": Scenario((*EVERYTHING, "mixed_precision=bf16"), use_fsdp=True),
    "ddp-few": Scenario(FEW_IMAGES, session=(2, 4)),
    "fsdp-few": Scenario(FEW_IMAGES, use_fsdp=True, session=(2, 4)),
    "ddp-teachers": Scenario(ONE_TEACHER_EACH),
    "ddp-resumed": Scenario(FROZEN_TRUNK, session=(2, 4)),
    "fsdp-resumed": Scenario(FROZEN_TRUNK, use_fsdp=True, session=(2, 4)),
    "ddp-balanced": Scenario(BALANCED, session=(2, 4)),
    "fsdp-balanced": Scenario(BALANCED, use_fsdp=True, session=(2, 4)),
    "ddp-stream": Scenario(BALANCED_STREAM),
    "ddp-contrasts": Scenario((*ONE_TEACHER_EACH, "contrastive={weight: 0.5, bank_size: 13}")),
    "ddp-cached": Scenario(CACHED),
    "ddp-tokens": Scenario(FEWER_TOKENS),
    "fsdp-tokens": Scenario(FEWER_TOKENS, use_fsdp=True),
    "ddp-heads": Scenario(CROSS_ATTENTION, session=(2, 4)),
    "fsdp-heads": Scenario(CROSS_ATTENTION, use_fsdp=True),
    "ddp-stale": Scenario((*CACHED, "data.seed=1")),
    "ddp-nan": Scenario(NAN_ON_RANK_1),
    "fsdp-nan": Scenario(NAN_ON_RANK_1, use_fsdp=True),
    "ddp-normalizers": Scenario(NORMALIZERS),
    "fsdp-normalizers": Scenario(NORMALIZERS, use_fsdp=True),
    "ddp-damaged": Scenario((SAVED_BETWEEN,), session=(2, 4)),
    "ddp-convolutions": Scenario(CONVOLUTIONS),
    "fsdp-convolutions": Scenario(CONVOLUTIONS, use_fsdp=True),
    "ddp-batch-norm": Scenario(BATCH_NORM),
    "fsdp-batch-norm": Scenario(BATCH_NORM, use_fsdp=True),
    "ddp-few-batch-norm": Scenario(FEW_BATCH_NORM),
    "fsdp-few-batch-norm": Scenario(FEW_BATCH_NORM, use_fsdp=True),
}
"""What the two processes run, in this order, each in the output folder of its name."""


class FailingOnRank1(tiny.TinyTeacher):
    """Gives NaN on the second rank, from the fourth batch on: one for calibration, then two steps."""

    num_batches = 0

    def encode(self, pixel_values: Tensor):
        self.num_batches += 1
        output = super().encode(pixel_values)
        is_bad = self.num_batches > 3 and PartialState().process_index == 1
        return output._replace(features=output.features * (float("nan") if is_bad else 1))


def run_scenarios(recipe_file: str) -> None:
    """Run by each of the two processes; writes what went wrong beside the outputs."""
    patch = pytest.MonkeyPatch()
    install(patch)
    patch.setitem(tiny.modeling_radio.training.teachers.registry.TEACHER_KINDS, "failing_on_rank_1", FailingOnRank1)
    let_accelerate_shard_on_cpus(patch)
    for name, scenario in SCENARIOS.items():
        choose_sharding(patch, use_fsdp=scenario.use_fsdp)
        patch.setattr(checkpoints, "PART_BYTES", 10_000 if name == "ddp-resumed" else PART_BYTES)
        recipe = load_recipe(recipe_file, [*SETTINGS, *scenario.overrides])
        sys.stdout.write(f"== {name}\n")
        sys.stdout.flush()
        try:
            distiller = tiny.trainer.Distiller(recipe, Path(name))
            distiller.run(scenario.session[1])
            Path(f"{name}-weights-{PartialState().process_index}.json").write_text(
                json.dumps(distiller.parts.hooks["balancing"].scalars() if "balancing" in distiller.parts.hooks else {})
            )
        except (ValueError, ArithmeticError, UserError) as error:
            error_file(name, PartialState().process_index).write_text(str(error))
    choose_sharding(patch, use_fsdp=False)
    try:
        run_recipe(load_recipe(recipe_file, SETTINGS), Path("locked"))
    except UserError as error:
        error_file("locked", PartialState().process_index).write_text(str(error))


def error_file(scenario: str, rank: int) -> Path:
    return Path(f"{scenario}-error-{rank}.txt")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which two processes have run all scenarios."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "tiny.yaml").write_text(tiny.RECIPE)
    write_pictures(folder / "pictures")
    write_stream(folder / "stream")
    with pytest.MonkeyPatch.context() as patch:
        prepare_this_process(patch, folder)
        for name, scenario in SCENARIOS.items():
            if scenario.session[0]:
                distil(name, *scenario.overrides, stop_at=scenario.session[0])
        os.truncate("ddp-damaged/checkpoints/step_00000002/optimizer.safetensors", 7)
        with sole_run(Path("locked")):
            run_two_processes(lambda: run_scenarios("tiny.yaml"), folder)
        yield folder


def write_pictures(folder: Path) -> None:
    """40 pictures, of which four are held out."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(40):
        Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    for number in range(7):
        path = folder.with_name("labeled") / f"{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (120 * (number % 2), 30 * number, 0)).save(path)


def write_stream(folder: Path) -> None:
    folder.mkdir()
    for shard, often in enumerate(OFTEN):
        recipes = [DataRecipe(source="noise", num_images=1, image_size_px=side, seed=side + shard) for side in (96, 64)]
        images = [tiny.NoiseImages(each, is_square=True) for each in recipes]
        rows = {"image": [encode_png(each.images[0]).numpy().tobytes() for each in images], "often": often}
        parquet.write_table(table(rows), folder / f"{shard}.parquet")


def install(patch: pytest.MonkeyPatch) -> None:
    tiny.install_tiny_world(patch)
    tiny.leave_progress_undrawn(patch)
    tiny.share_noise(patch)
    patch.setattr(tiny.trainer, "NORMALIZER_IMAGES", 40)


def prepare_this_process(patch: pytest.MonkeyPatch, folder: Path) -> None:
    install(patch)
    patch.chdir(folder)


def distil(output: str, *overrides: str, stop_at: int | None = None) -> None:
    tiny.distil("tiny.yaml", output, *SETTINGS, *overrides, stop_at=stop_at)


def assert_close_runs(two: str, one: str, atol: float = 1e-6) -> None:
    """Optimizer, average and statistics are compared as well: all that a checkpoint holds."""
    for read in (lambda run: tiny.last_state(run, 5), exported):
        assert_close_by_name(read(two), read(one), rtol=1e-5, atol=atol, what=two)


def exported(output: str) -> dict[str, Tensor]:
    return load_file(Path(output) / "final" / "model.safetensors")


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in SCENARIOS
        if not name.endswith(("-nan", "-passes", "-bf16", "-stale", "-damaged", "-normalizers", "-batch-norm"))
    ],
)
def test_two_processes_equal_one(two_ranks: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_this_process(monkeypatch, two_ranks)
    assert not error_file(name, 0).exists(), error_file(name, 0).read_text()
    if SCENARIOS[name].session[1] < 5:
        distil(name, *SCENARIOS[name].overrides)  # a single process ends what two went on with
    one = f"one-{name.partition('-')[2]}"
    if not Path(one).exists():
        distil(one, *SCENARIOS[name].overrides)
    assert_close_runs(name, one)
    assert names_in(two_ranks / name / "final") == names_in(two_ranks / one / "final")


@pytest.mark.parametrize("name", ["batch-norm", "few-batch-norm"])
def test_batch_norms_of_ranks_have_the_same_statistics_however_weights_are_held(
    two_ranks: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process alone has other batches for its norms."""
    prepare_this_process(monkeypatch, two_ranks)
    for own in (f"ddp-{name}", f"fsdp-{name}"):
        assert not error_file(own, 0).exists(), error_file(own, 0).read_text()
    # Norms over two images divide by small variances, which enlarges the rounding of the weights: 5e-6 was seen.
    assert_close_runs(f"fsdp-{name}", f"ddp-{name}", atol=2e-5 if name.startswith("few") else 1e-6)


@pytest.mark.parametrize("name", ["ddp-normalizers", "fsdp-normalizers"])
def test_two_processes_fit_the_normalizers_of_one(two_ranks: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compared by what they do: axes of nearly equal variances may turn with the rounding of the weights."""
    prepare_this_process(monkeypatch, two_ranks)
    assert not error_file(name, 0).exists(), error_file(name, 0).read_text()
    if not Path("one-normalizers").exists():
        distil("one-normalizers", *NORMALIZERS)
    two, one = (exported(run) for run in (name, "one-normalizers"))
    final, inner = "radio_model.feature_normalizer", "radio_model.inter_feature_normalizer"
    for key in (f"{final}.mean", f"{inner}.alphas", f"{inner}.means"):
        torch.testing.assert_close(two[key], one[key], rtol=1e-4, atol=1e-5)
    for state in (two, one):
        state["scale"] = state[f"{final}.tx"] @ state[f"{final}.tx"].T
    torch.testing.assert_close(two["scale"], one["scale"], rtol=1e-4, atol=1e-3)
    assert one[f"{final}.mean"].abs().max() > 0.01


def test_each_rank_saves_what_it_holds(two_ranks: Path) -> None:
    names = {"student", "ema", "optimizer"}
    parts = {f"{name}-0000{part}-of-00002.safetensors" for name in names for part in (1, 2)}
    whole = {"statistics.safetensors", "state.json", "manifest.json"}
    assert names_in(two_ranks / "fsdp-everything/checkpoints/step_00000005") == parts | whole
    assert names_in(two_ranks / "ddp-everything/checkpoints/step_00000005") == whole | {
        f"{name}.safetensors" for name in names
    }
    # Each rank with a copy writes a part of large tensors.
    taps = {f"taps-0000{part}-of-00002.safetensors" for part in (1, 2)}
    assert names_in(two_ranks / "ddp-resumed/checkpoints/step_00000004") == parts | taps | whole


@pytest.mark.parametrize("name", ["ddp-balanced", "fsdp-balanced"])
def test_ranks_weigh_teachers_alike(two_ranks: Path, name: str) -> None:
    weights = [json.loads((two_ranks / f"{name}-weights-{rank}.json").read_text()) for rank in range(2)]
    assert weights[0] == weights[1]
    assert len(weights[0]) == 4
    assert any(abs(weight - 1) > 1e-3 for weight in weights[0].values())


@pytest.mark.parametrize("name", ["ddp-everything", "fsdp-everything", "ddp-bound", "fsdp-bound"])
def test_losses_and_measurements_of_two_processes_are_those_of_one(
    two_ranks: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_this_process(monkeypatch, two_ranks)
    one = f"one-{name.partition('-')[2]}"
    if not Path(one).exists():
        distil(one, *SCENARIOS[name].overrides)
    series = [RunHistory(Path(run, "history.jsonl"), 5).series() for run in (name, one)]
    assert series[0].keys() == series[1].keys()
    expected = {"features@32px/semantic", "features@64px/segmenter"}
    if name.endswith("everything"):
        expected = {"mesa@32px", "features@64px/semantic", "shift_error/48px", "student/dense_fidelity/semantic/64px"}
        expected |= {"knn/64px", "student/knn/64px"}
        assert series[0]["fixed_pattern/32px"][0] == [3, 5]
        assert (two_ranks / name / "pictures" / "progress.png").is_file()
    assert expected <= series[0].keys()
    for key, (steps, values) in series[0].items():
        assert steps == series[1][key][0]
        assert values == pytest.approx(series[1][key][1], rel=1e-4, abs=1e-5), key


def test_sharded_bfloat16_keeps_float32_weights_near_those_of_one_process(
    two_ranks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_this_process(monkeypatch, two_ranks)
    assert not error_file("fsdp-bf16", 0).exists(), error_file("fsdp-bf16", 0).read_text()
    try:
        AcceleratorState._reset_state(reset_partial_state=True)  # a process has one precision
        distil("one-bf16", *SCENARIOS["fsdp-bf16"].overrides)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    one, two = exported("one-bf16"), exported("fsdp-bf16")
    assert {value.dtype for value in two.values() if value.is_floating_point()} == {torch.float32}
    assert_close_by_name(two, one, rtol=0.02, atol=0.005)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_both_processes_skip_a_step_and_name_teacher_and_rank(two_ranks: Path, kind: str) -> None:
    log = log_file(two_ranks, 0).read_text().partition(f"== {kind}-nan")[2]
    assert "Step 2 skipped: not finite: loss, features/segmenter on rank 1 (1 in a row)." in log.partition("== ")[0]
    errors = [(two_ranks / error_file(f"{kind}-nan", rank)).read_text() for rank in range(2)]
    assert errors[0] == errors[1]
    assert re.match(r"Step 3 skipped: .*on rank 1 \(2 in a row\). Giving up; the last checkpoint", errors[0])
    assert names_in(two_ranks / f"{kind}-nan" / "checkpoints") == {"step_00000002"}


def test_both_processes_refuse_a_stale_cache(two_ranks: Path) -> None:
    for rank in range(2):
        error = (two_ranks / error_file("ddp-stale", rank)).read_text()
        assert error.startswith("Feature cache 'cache' is stale (data.seed: 0 -> 1). Delete it")
    assert names_in(two_ranks / "cache") == {"cache.json", "shard_00000.safetensors"}


def test_what_the_first_rank_finds_ends_both_processes(two_ranks: Path) -> None:
    expected = {
        "ddp-damaged": "has no intact checkpoint: 'ddp-damaged",
        "locked": "Another run is at work in 'locked'.",
    }
    for scenario, message in expected.items():
        errors = [(two_ranks / error_file(scenario, rank)).read_text() for rank in range(2)]
        assert errors[0] == errors[1]
        assert message in errors[0]
    assert not (two_ranks / "locked").exists()


def test_sharded_ranks_need_equal_passes(two_ranks: Path) -> None:
    for rank in range(2):
        error = (two_ranks / error_file("fsdp-passes", rank)).read_text()
        assert error.startswith("`partitions` must have equally many forward passes per step on every rank with FSDP")
    assert not (two_ranks / "fsdp-passes" / "checkpoints").exists()


FOUR_RANKS = (
    *(each for each in EVERYTHING if not each.startswith("logging")),
    "partitions.high.batch_size=4",
    "checkpoints.every_steps=2",
)


def distil_with_copies_and_with_shards_of_copies(recipe_file: str) -> None:
    """Run by each of four processes: DDP, then HSDP on 2 x 2, which goes on from a checkpoint of its own."""
    patch = pytest.MonkeyPatch()
    tiny.install_tiny_world(patch)
    let_accelerate_shard_on_cpus(patch)
    for name, others in (("copies", ()), ("muon-copies", MUON[1:])):
        choose_sharding(patch, use_fsdp=False)
        tiny.distil(recipe_file, name, *SETTINGS, *FOUR_RANKS, *others)
    for name, others in (("shards", ()), ("muon-shards", MUON[1:])):
        choose_sharding(patch, use_fsdp=True, num_copies=2)
        for stop_at in (2, None):
            distiller = tiny.trainer.Distiller(load_recipe(recipe_file, [*SETTINGS, *FOUR_RANKS, *others]), Path(name))
            distiller.run(stop_at)
        weight = next(iter(distiller.parts.model.parameters()))
        assert isinstance(weight, DTensor)
        assert (weight.device_mesh.shape, weight.placements) == ((2, 2), (Replicate(), Shard(0)))


def test_shards_of_copies_equal_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.yaml").write_text(tiny.RECIPE)
    run_processes(lambda: distil_with_copies_and_with_shards_of_copies("tiny.yaml"), tmp_path, 4)
    monkeypatch.chdir(tmp_path)
    for name in ("", "muon-"):
        assert_close_runs(f"{name}shards", f"{name}copies")
        series = [RunHistory(Path(run, "history.jsonl"), 5).series() for run in (f"{name}shards", f"{name}copies")]
        for key, (_, values) in series[1].items():
            assert series[0][key][1] == pytest.approx(values, rel=1e-4, abs=1e-5), key
    files = names_in(tmp_path / "shards/checkpoints/step_00000005")
    assert {name for name in files if name.startswith("ema")} == {  # the second copy writes nothing
        f"ema-0000{part}-of-00002.safetensors" for part in (1, 2)
    }


SHARDED_TEACHER = (
    "partitions=[{name: low, sizes_px: [32, 48], token_budget: 12, rank_share: 1, teachers: [segmenter]},"
    " {name: high, sizes_px: [64], batch_size: 4, rank_share: 1, teachers: [semantic]}]",
    "views={is_square: false}",
    "teachers.segmenter.kind=deep",
    "teachers.segmenter.options.feature_dim=8",
)


def distil_with_a_teacher_on_two_ranks(recipe_file: str) -> None:
    """Run by each of four processes, with whole teachers and with a sharded one; they write what they hold of it."""
    patch = pytest.MonkeyPatch()
    tiny.install_tiny_world(patch)
    patch.setitem(tiny.modeling_radio.training.teachers.registry.TEACHER_KINDS, "deep", DeepTeacher)
    let_accelerate_shard_on_cpus(patch)
    for name, use_fsdp in (("whole", False), ("sharded", False), ("both-sharded", True)):
        choose_sharding(patch, use_fsdp=use_fsdp)
        settings = [*SETTINGS, *SHARDED_TEACHER, f"teachers.segmenter.shard={str(name != 'whole').lower()}"]
        distiller = tiny.trainer.Distiller(load_recipe(recipe_file, settings), Path(name))
        distiller.run()
        teachers = distiller.parts.source.teachers
        held = bytes_of([teachers["segmenter"].layers]) if "segmenter" in teachers else 0
        Path(f"{name}-held-{PartialState().process_index}").write_text(str(held))


def test_ranks_share_a_large_teacher_and_others_hold_nothing_of_it(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "tiny.yaml").write_text(tiny.RECIPE)
    run_processes(lambda: distil_with_a_teacher_on_two_ranks("tiny.yaml"), tmp_path, 4)
    monkeypatch.chdir(tmp_path)
    held = {
        name: [int(Path(f"{name}-held-{rank}").read_text()) for rank in range(4)]
        for name in ("whole", "sharded", "both-sharded")
    }
    whole = 4 * (8 * 8 + 8) * 4
    assert held["whole"] == [whole, whole, 0, 0]
    assert held["sharded"] == held["both-sharded"] == [whole // 2, whole // 2, 0, 0]
    tiny.assert_same_tensors(tiny.last_state("whole", 5), tiny.last_state("sharded", 5))
    assert_close_runs("both-sharded", "whole")


def distil_with_a_slow_rank_1(recipe_file: str) -> None:
    """Run by each of the two processes, with copies of the student and with shards."""
    patch = pytest.MonkeyPatch()
    tiny.install_tiny_world(patch)
    encode, clock, seconds_ahead = tiny.TinyTeacher.encode, time.perf_counter, 0

    def encode_slowly(teacher: tiny.TinyTeacher, pixel_values: Tensor) -> TeacherOutput:
        nonlocal seconds_ahead
        seconds_ahead += 1000 * PartialState().process_index  # by its clock, so that no load makes the other slower
        return encode(teacher, pixel_values)

    patch.setattr(tiny.TinyTeacher, "encode", encode_slowly)
    patch.setattr(monitoring, "time", SimpleNamespace(perf_counter=lambda: clock() + seconds_ahead))
    let_accelerate_shard_on_cpus(patch)
    for use_fsdp in (False, True):
        choose_sharding(patch, use_fsdp=use_fsdp)
        settings = [*SETTINGS, "schedule.num_steps=4", "logging.trackers=[tensorboard]"]
        tiny.trainer.Distiller(load_recipe(recipe_file, settings), Path(f"run-{use_fsdp}")).run()


def test_trackers_name_the_slow_rank(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(tiny.RECIPE)
    run_two_processes(lambda: distil_with_a_slow_rank_1("tiny.yaml"), tmp_path)
    for use_fsdp in (False, True):
        accumulator = EventAccumulator(str(tmp_path / f"run-{use_fsdp}" / "logs")).Reload()
        assert accumulator.Scalars("slowest_rank")[-1].value == 1  # in its second step DDP exchanges sizes of buckets
        least, most = (accumulator.Scalars(f"own_seconds/{part}")[-1].value for part in ("min", "max"))
        assert least + 900 < most


def test_shipped_configs_are_what_they_are_named() -> None:
    arguments = {path.stem: launcher_arguments(path) for path in CONFIGS.glob("*.yaml")}
    launched = {name: (a.num_processes, a.num_machines, a.use_fsdp) for name, a in arguments.items()}
    assert launched == {
        "one_gpu": (1, 1, False),
        "eight_gpus_ddp": (8, 1, False),
        "eight_gpus_fsdp": (8, 1, True),
        "many_nodes_ddp": (128, 16, False),
        "many_nodes_hsdp": (128, 16, True),
    }
    assert fsdp_settings()["FSDP_TRANSFORMER_CLS_TO_WRAP"] == RadioBlock.__name__


def test_fsdp_of_version_1_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(ValueError, match="`fsdp_version: 2`"):
        build_accelerator(load_recipe("demo"), Path("run"))
