"""Each pair of what decides which exchanges ranks share, against one process.

Kinds of data, ranks, shards, orders of the teachers, and steps with fewer images than ranks: where ranks disagree about
the next exchange, they wait for each other until a timeout. Two and three processes run the cases, one after the other;
where one hangs, it ends after `LIMIT`, and those after it were not reached.
"""

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
import tiny_distillation as tiny
import torch
from comparisons import assert_close_by_name
from deep_teacher import DeepTeacher
from pyarrow import parquet, table
from torchvision.io import encode_png, write_png
from two_processes import choose_sharding, let_accelerate_shard_on_cpus, run_processes

from modeling_radio.core import ranks
from modeling_radio.core.ranks import rank_and_count
from modeling_radio.data.training_images import build_training_images
from modeling_radio.training.distillation import inputs, trainer


pytestmark = pytest.mark.tour

LIMIT = timedelta(seconds=60)
STEPS = 2
SETTINGS = (
    "optimizer={learning_rate: 0.1, eps: 1}",  # see `tiny_distillation.SPLIT_SETTINGS`
    f"schedule={{num_steps: {STEPS + 1}, warmup_steps: 1}}",  # the export is left out
    f"checkpoints.every_steps={STEPS}",
    "standardization={calibration_steps: 1, estimation_steps: 2}",
    "teachers=[{name: semantic, kind: deep, options: {num_blocks: 2}}, {name: segmenter, kind: deep, options: {}}]",
)
DATA = {
    "folder": ("data.source=images", "data.num_images=null"),
    "weighted": (
        "data={source: images, num_images: null, image_size_px: 64, num_workers: 0, weights: w, min_side_ratio: 0.5}",
    ),
    "cached": ("data.source=images", "data.num_images=null", "views={teachers: cached, cache_dir: cache}"),
    "streamed": ("data.source=stream", "data.num_images=null", "data.streaming=true", "data.shuffle_buffer=2"),
}
NUMBERS = {"many": ("batch_size: 6", "batch_size: 6"), "few": ("token_budget: 16", "token_budget: 9")}
SHARDS = ("none", "teachers", "all")


class Case(NamedTuple):
    """One run.

    Attributes:
        data: Key of `DATA`.
        order: Order of the partitions' teachers: the recipe's in both, an "other" one in the first, or such partitions
            that are "bound" to a rank each.
        number: "few" images are fewer than ranks in some steps.
        shards: What is sharded.
        num_ranks: Number of processes.
    """

    data: str
    order: str
    number: str
    shards: str = "none"
    num_ranks: int = 1

    @property
    def name(self) -> str:
        """Folder of the run."""
        return "-".join(map(str, self))

    def overrides(self) -> list[str]:
        """Return the settings."""
        low, high = NUMBERS[self.number]
        share = ", rank_share: 1" if self.order == "bound" else ""
        shares = (share, share.replace("1", str(max(self.num_ranks - 1, 1))))
        first = "[semantic, segmenter]" if self.order == "recipe" else "[segmenter, semantic]"
        partitions = (
            f"{{name: low, sizes_px: [32], {low}, teachers: {first}{shares[0]}}}, "
            f"{{name: high, sizes_px: [48], {high}, teachers: [semantic, segmenter]{shares[1]}}}"
        )
        sharded = str(self.shards != "none").lower()
        teachers = [f"teachers.{name}.shard={sharded}" for name in ("semantic", "segmenter")]
        return [*SETTINGS, *DATA[self.data], f"partitions=[{partitions}]", *teachers]


def pairwise(cases: list[Case]) -> list[Case]:
    """Return cases in which each pair of two values is that is in any: always that with the most new ones."""
    pairs = {case: set(itertools.combinations(enumerate(case), 2)) for case in cases}
    chosen, left = [], set().union(*pairs.values())
    while left:
        chosen.append(max(cases, key=lambda case: len(pairs[case] & left)))
        left -= pairs[chosen[-1]]
    return chosen


COMBINATIONS = [Case(*each) for each in itertools.product(DATA, ("other", "bound"), NUMBERS, SHARDS, (2, 3))]
# Ranks fill a cache with whole teachers.
CASES = pairwise([case for case in COMBINATIONS if (case.data, case.shards) != ("cached", "teachers")])
CASES += sorted({case._replace(shards="none") for case in CASES if case.data == "streamed"} - {*CASES})  # compared with


def install_world(patch: pytest.MonkeyPatch) -> None:
    tiny.install_tiny_world(patch)
    tiny.leave_progress_undrawn(patch)
    patch.setitem(tiny.modeling_radio.training.teachers.registry.TEACHER_KINDS, "deep", DeepTeacher)
    patch.setattr(inputs, "build_training_images", build_training_images)
    patch.setenv("RADIO_CACHE", os.path.abspath("radio_cache"))
    patch.setattr("datasets.config.HF_DATASETS_CACHE", Path("datasets_cache").absolute())


def run_cases(cases: list[Case]) -> None:
    """Run by each process, until a case fails."""
    patch = pytest.MonkeyPatch()
    install_world(patch)
    let_accelerate_shard_on_cpus(patch)
    for module in (ranks, trainer, inputs):
        for name in ("TIMEOUT", "STEP_TIMEOUT"):
            patch.setattr(module, name, LIMIT, raising=False)
    for case in cases:
        choose_sharding(patch, use_fsdp=case.shards == "all")
        sys.stdout.write(f"== {case.name}\n")
        sys.stdout.flush()
        tiny.distil("tiny.yaml", case.name, *case.overrides(), stop_at=STEPS)
        (Path(case.name) / f"ended-{rank_and_count()[0]}").touch()


def write_images() -> None:
    """Twelve images as a folder with weights, and as a stream of six shards."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(12, 3, 4, 4, generator=generator)
    images = (torch.nn.functional.interpolate(coarse, (64, 64), mode="bilinear") * 255).byte()
    for folder in ("images", "stream"):
        Path(folder).mkdir(parents=True)
    names = [f"{number:02}.png" for number in range(12)]
    for name, image in zip(names, images, strict=True):
        write_png(image, f"images/{name}")
    contents = [encode_png(image).numpy().tobytes() for image in images]
    for shard in range(6):
        rows = {"image": contents[shard::6]}
        parquet.write_table(table(rows), f"stream/part-{shard}.parquet")
    weights = [f"{name},{3 if number < 3 else 1}" for number, name in enumerate(names)]
    Path("images/metadata.csv").write_text("\n".join(["file_name,w", *weights]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which all cases have run; what hung or failed there fails in its own test."""
    path = tmp_path_factory.mktemp("exchanges")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        Path("tiny.yaml").write_text(tiny.RECIPE)
        write_images()
        for count in (2, 3):
            cases = [case for case in CASES if case.num_ranks == count]
            with pytest.MonkeyPatch.context() as own:
                install_world(own)
                try_processes(lambda cases=cases: run_cases(cases), path, count)
        yield path


def try_processes(work: Callable[[], None], path: Path, count: int) -> None:
    """Run processes, whose logs are kept beside the results if they fail."""
    try:
        run_processes(work, path, count)
    except AssertionError as error:
        (path / f"failed-{count}.txt").write_text(str(error))


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_ranks_agree_about_their_exchanges(folder: Path, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    install_world(monkeypatch)
    log = folder / f"failed-{case.num_ranks}.txt"
    ended = sum(Path(case.name, f"ended-{rank}").exists() for rank in range(case.num_ranks))
    assert ended == case.num_ranks, log.read_text()[-6000:]
    if case.data == "streamed":  # ranks read streams of their own
        expected = case._replace(shards="none")
    else:
        expected = Case(case.data, "recipe", case.number)
        if not Path(expected.name).exists():
            tiny.distil("tiny.yaml", expected.name, *expected.overrides(), stop_at=STEPS)
    two, one = (tiny.last_state(each.name, STEPS) for each in (case, expected))
    assert_close_by_name(two, one, rtol=1e-5, atol=1e-6, what=case.name)
