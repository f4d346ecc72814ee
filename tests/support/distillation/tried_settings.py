"""A value for every setting of a recipe, and the tiny runs in which it is tried: with it, without it, on two ranks."""

import functools
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from annotated_types import Le, Lt
from deep_teacher import DeepTeacher
from photographs import flat, picture
from PIL import Image
from safetensors.torch import load_file
from tiny_distillation import leave_progress_undrawn, share_noise, tensors_of
from tiny_networks import CONVNEXT, RESNET
from torch import Tensor, nn

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.core.settings import INDECISIVE, choices_of, kinds_of, list_settings, marked, section_of
from modeling_radio.training.distillation import trainer
from modeling_radio.training.distillation.stages import run_recipe
from modeling_radio.training.hooks.base import StepHook
from modeling_radio.training.losses.terms import LossTerm, teacher_of
from modeling_radio.training.recipes.recipe import Recipe, load_recipe
from modeling_radio.training.student.build import check_student_views
from modeling_radio.training.teachers.featsharp import FeatSharp, UpsampledTeacher, UpsamplerConfig, save_upsampler
from modeling_radio.training.teachers.outputs import TeacherOutput
from modeling_radio.training.views.plan import PlannedBatch


# Two steps. A large epsilon: Adam would turn the rounding of a gradient that should be zero into a full step.
BASE = """
name: tried
mixed_precision: "no"
student:
  preset: radio-test
  config: {num_hidden_layers: 3, vitdet_num_global: 1}
  adaptor: {hidden_size: 24, num_inner_blocks: 0}
teachers:
  - {name: semantic, kind: "tried_settings:TriedTeacher", options: {summary_dim: 10, feature_dim: 12}}
  - {name: segmenter, kind: "tried_settings:TriedTeacher", options: {feature_dim: 9}}
data: {source: images, image_size_px: 64, num_workers: 0}
views: {max_shift_patches: 1}
partitions:
  - {name: low, sizes_px: [32, 48], batch_size: 5}
  - {name: high, sizes_px: [64], batch_size: 3}
standardization: {calibration_steps: 1, estimation_steps: 1}
optimizer: {learning_rate: 0.1, eps: 1.0}
schedule: {num_steps: 2, warmup_steps: 1}
ema: {decay: 0.9}
checkpoints: {every_steps: 2, keep: 2}
logging: {every_steps: 2, trackers: [], metrics_every_steps: null}
"""

EXCEPTIONS = {
    "data.split": "needs the Hub: only its data sets have splits",
    "data.mixed_in.0.split": "needs the Hub: only its data sets have splits",
    "data.seed": "needs the network: it is of the demo's images, which are made from packages",
    "teachers.semantic.device": "needs a GPU: a CPU is one device",
}
"""Settings that are not tried, and the reason: only those that need a GPU or the network."""

ROLES = {"teachers.semantic.role": "basic", "teachers.segmenter.role": "task"}
TAPS = {**ROLES, "taps.weight": 0.25}
CACHED = {"views.teachers": "cached"}
FILES = {"data.source": "arrays", "data.mixed_in": [], "student.init_from": None}
ARRAYS = {**FILES, "data.num_channels": 4}
STREAMED = {"data.source": "tables", "data.streaming": True}
MIXED = {"data.mixed_in": [{"source": "others", "weight": 0.4}]}
METRICS = {"logging.picture_source": "pictures", "logging.metrics_every_steps": 1}
FIXED = {"teachers.semantic.run_mode": "fixed", "teachers.semantic.input_size_px": 32}
SHARPENED = {  # the teacher of `upsampler`
    **FIXED,
    "teachers.semantic.kind": "tried_settings:TriedTeacher",
    "teachers.semantic.source": None,
    "teachers.semantic.options": {"summary_dim": 10, "feature_dim": 12},
}
MOVING = {**ROLES, "balancing.method": "adaptive", "balancing.start_step": 0, "balancing.ramp_steps": 0}
FEWER = {"student.config": {"num_hidden_layers": 3, "downscale_levels": [1], "decoder_depth": 1}}
FEWER |= {"partitions.low.sizes_px": [32, 64]}
WRAPPED = {"student.preset": None, "student.config": None, "partitions.low.sizes_px": [64]}
NETWORK = {**WRAPPED, "student.architecture": CONVNEXT.architecture, "student.arguments": CONVNEXT.arguments}
BATCH_NORM = {**WRAPPED, "student.architecture": RESNET.architecture, "student.arguments": RESNET.arguments}
BATCH_NORM |= {"damp.sigma": 0.0, "spectral.is_used": False}
TRUNK = {
    "student.preset": "radio-test",
    "student.config": {"num_hidden_layers": 3, "vitdet_num_global": 1},
}
NAVIT = {"student.preset": None, "student.architecture": "navit_tiny"}
NAVIT |= {"student.config": {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}}
WINDOWS = {"partitions.low.sizes_px": [48], "partitions.low.vitdet_windows": [1]}
ALWAYS = {**WINDOWS, "partitions.low.vitdet_probability": 1.0}
RAGGED = {**ALWAYS, "partitions.low.sizes_px": [48, 64], "partitions.low.vitdet_windows": [1, 2, 2, 2]}
RAGGED |= {"partitions.low.probabilities": [1.0, 0.0]}


CONTEXTS: dict[str, dict[str, Any]] = {
    "data.weights": {"data.source": "tables"},
    "data.column": {"data.source": "tables"},
    "data.mixed_in": MIXED,
    "data.mixed_in.0.weights": {"data.mixed_in": [{"source": "tables", "weight": 0.4}]},
    "data.mixed_in.0.column": {"data.mixed_in": [{"source": "tables", "weight": 0.4}]},
    "data.streaming": {"data.source": "tables"},
    "data.shuffle_buffer": STREAMED,
    "data.image_size_px": CACHED,
    "data.num_channels": FILES,
    "data.rgb_channels": ARRAYS,
    "data.rgb_white": ARRAYS,
    "views.cache_dir": CACHED,
    "views.aspect_steps": {"views.is_square": False},
    "views.parts_at_once": {"partitions.low.accumulation_steps": 2},
    "partitions.low.windows_px": CACHED,
    "partitions.low.vitdet_windows": {"partitions.low.sizes_px": [48], "partitions.low.vitdet_probability": 1.0},
    "partitions.low.vitdet_ragged": RAGGED,
    "partitions.low.vitdet_probability": ALWAYS,
    "partitions.low.rank_share": {"partitions.high.rank_share": 1},
    "student.arguments": NETWORK,
    "student.levels": NETWORK,
    "student.frozen_stages": NETWORK,
    "student.frozen_statistics": BATCH_NORM,
    "student.init_from": TRUNK,
    "student.init_blocks": {**TRUNK, "student.init_from": "start"},
    "student.num_tokens": FEWER,
    "student.matryoshka": NAVIT,
    "student.passes_at_once": {"partitions.low.accumulation_steps": 2},
    "teachers.semantic.run_mode": {"teachers.semantic.options": {"summary_dim": None}},  # or it cannot be a mosaic
    "teachers.semantic.input_size_px": FIXED,
    "teachers.semantic.upsample": SHARPENED,
    "teachers.semantic.upsampler": SHARPENED,
    "teachers.semantic.role": TAPS,
    "loss.border": FIXED,  # 2 x 2 positions for up to 4 x 4 patches
    "contrastive": {"teachers.semantic.options": {"summary_dim": 10, "feature_dim": 12}},  # a summary to compare
    "contrastive.bank_size": {"contrastive.weight": 0.5, "schedule.num_steps": 3},
    "balancing": MOVING,
    "balancing.method": {**ROLES, "balancing.method": "fixed", "balancing.start_step": 0, "balancing.ramp_steps": 0},
    "balancing.period_steps": {"schedule.num_steps": 4},
    "taps": TAPS,
    "optimizer.fallback_lr_scale": {"optimizer.name": "muon"},
    "optimizer.trunk_warmup_steps": {"optimizer.trunk_frozen_steps": 1},
    "mesa.start_step": {"mesa.weight": 0.5},
    "stages": {"export.feature_normalizer": False, "export.intermediate_normalizers": "none"},  # see `is_rotated`
    "checkpoints.keep": {"checkpoints.every_steps": 1},
    "export": {"student.architecture": "radio", **TRUNK},  # others have no normalizers
    "export.fold_layer_scale": {"student.config": {**TRUNK["student.config"], "use_layer_scale": True}},
    "logging.picture_source": METRICS,
    "logging.metrics_every_steps": METRICS,
    "logging.metrics_sizes_px": METRICS,
    "logging.knn_every_steps": {"logging.knn_data": "labeled"},
}
"""Other settings of both runs, with and without a setting, so that it can act. A section's are for its settings too."""

VALUES: dict[str, Sequence[Any]] = {
    "name": ["another"],
    "student.architecture": [CONVNEXT.architecture],
    "student.arguments": [{**CONVNEXT.arguments, "dims": [8, 16, 24, 40]}],
    "student.levels": [[-2, -1]],
    "student.preset": ["tried_settings:another_student"],
    "student.config": [{"num_hidden_layers": 2}],
    "student.adaptor": [{"hidden_size": 20}],
    "student.attention": ["eager"],
    "student.init_from": ["start"],
    "student.init_blocks": [[1, 0, 2]],
    "teachers.semantic.name": ["renamed"],
    "teachers.semantic.upsampler": ["upsampler"],
    "teachers.semantic.input_size_px": [48],
    "teachers.semantic.kind": ["tried_settings:OtherTeacher"],
    "teachers.semantic.source": ["elsewhere"],
    "teachers.semantic.options": [{"feature_dim": 11, "summary_dim": 10}],
    "teachers.semantic.adaptor": [{"hidden_size": 20}],
    "partitions.low.accumulation_steps": [2],
    "data.source": ["others"],
    "data.column": ["picture"],
    "data.mixed_in.0.source": ["images"],
    "data.mixed_in.0.column": ["picture"],
    "data.shuffle_buffer": [3],
    "data.num_images": [9],
    "data.image_size_px": [96],  # also for students and teachers with patches of 32 px
    "data.num_channels": [4],
    "data.rgb_channels": [(2, 1, 3)],
    "data.rgb_white": [0.5],
    "data.min_side_ratio": [1.0],
    "data.weights": ["often"],
    "data.mixed_in.0.weights": ["often"],
    "views.cache_dir": ["elsewhere"],
    "views.aspect_steps": [2],
    "partitions.low.name": ["renamed"],
    "partitions.low.sizes_px": [[64]],
    "partitions.low.probabilities": [[1.0, 0.0]],
    "partitions.low.token_budget": [40],
    "partitions.low.rank_share": [1],
    "partitions.low.teachers": [["segmenter"]],
    "partitions.low.teachers_per_image": [1],
    "partitions.low.crop_scale": [(0.2, 0.4)],
    "partitions.low.windows_px": [[64]],
    "partitions.low.vitdet_windows": [[1]],
    "contrastive.bank_size": [3],
    "balancing.period_steps": [2],
    "balancing.start_step": [1],
    "balancing.ramp_steps": [3],
    "hooks": [["tried_settings:Halved"]],
    "taps.weight": [0.5],
    "optimizer.clip_norm": [0.01],
    "optimizer.trunk_warmup_steps": [3],
    "ema.decay": [0.05],  # less than it rises from
    "checkpoints.every_steps": [1],
    "checkpoints.keep": [1],
    "logging.every_steps": [1],
    "stages": [[{"name": "first"}, {"name": "second"}]],
    "logging.trackers": [["tensorboard"]],
    "logging.picture_source": ["others"],
    "logging.metrics_every_steps": [2],
    "logging.metrics_sizes_px": [[32]],
    "logging.knn_data": ["labeled"],
    "logging.knn_every_steps": [1],
}
"""Values of settings that cannot be made from their types."""

ALSO: dict[str, dict[str, Any]] = {
    "student.architecture": {**WRAPPED, "student.arguments": CONVNEXT.arguments},
    "partitions.low.token_budget": {"partitions.low.batch_size": None},
    "teachers.semantic.run_mode": {"teachers.semantic.input_size_px": 32},
    "teachers.semantic.upsampler": {"teachers.semantic.upsample": "featsharp"},
    "teachers.semantic.upsample=featsharp": {"teachers.semantic.upsampler": "upsampler"},
}
"""Settings that must change together with a setting, or with one of its values."""

WATCHED: dict[str, dict[str, Any]] = {
    "optimizer.max_bad_steps": {"teachers.segmenter.kind": "tried_settings:FailingTeacher", "schedule.num_steps": 30},
}
"""Other settings of the runs that show whether a setting acts; not of runs that must end well."""

TOLERANCES: dict[str, float] = {
    "mixed_precision": 0.05,  # two ranks round other sums to bfloat16
    "data.streaming": 1e6,  # each rank reads files of its own: these are other images than one process sees
}
"""Largest difference between two ranks and one process, where it is not `ROUNDING`."""
ROUNDING = 1e-4
"""Our choice: several settings in one run differed by up to 4.4e-5, at a learning rate of .1."""

ON_RANKS = ("teachers.semantic.shard", "partitions.low.rank_share")
"""Settings that have no effect in a single process: two ranks show whether they act."""

AS_DEFAULT = {
    "student.num_tokens": "fixed",
    "teachers.semantic.run_mode": "native",
}
"""Values that say what null stands for."""


class TriedTeacher(DeepTeacher):
    """Another network for each source, with a summary."""

    def __init__(self, name: str, *, source: str | None = None, feature_dim: int, summary_dim: int | None = None):
        super().__init__(name, feature_dim=feature_dim)
        self.summary_dim = summary_dim
        with torch.random.fork_rng():
            torch.manual_seed(len(source or ""))
            self.last = nn.Linear(feature_dim, feature_dim)
        self.freeze()

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        features = super().encode(pixel_values).features.movedim(1, -1)
        features = self.last(features).movedim(-1, 1)
        summary = None if self.summary_dim is None else features.mean((2, 3))[:, : self.summary_dim]
        return TeacherOutput(summary, features)


class OtherTeacher(TriedTeacher):
    """Another kind."""

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        return super().encode(pixel_values.square())


class FailingTeacher(TriedTeacher):
    """Gives no numbers after the first batches."""

    num_calls = 0

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        self.num_calls += 1
        output = super().encode(pixel_values)
        return output._replace(features=output.features * (float("nan") if self.num_calls > 6 else 1))


class Halved(StepHook):
    """One teacher counts half."""

    def __init__(self, recipe: Recipe, student: RadioModel) -> None:
        pass

    def weigh(self, batch: PlannedBatch, terms: Mapping[str, LossTerm]) -> dict[str, Tensor]:
        return {name: 0.5 * term.value for name, term in terms.items() if teacher_of(name) == "segmenter"}


def another_student(**fields: Any) -> RadioConfig:
    """A preset of a user's own."""
    return RadioConfig.from_preset("radio-test", **{**fields, "num_registers": 1})


class Trial(NamedTuple):
    """A value of a setting.

    Attributes:
        path: Path of the setting.
        value: The value that is tried.
        before: Other settings, of the run with it and of the run without it.
        changes: The setting, and those that must change with it.
    """

    path: str
    value: Any
    before: dict[str, Any]
    changes: dict[str, Any]

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.path}={json.dumps(self.value)}"

    @property
    def is_decisive(self) -> bool:
        """Whether it must move the weights: others may change between two sessions of a run."""
        parts = tuple(part for part in self.path.split(".") if part not in ("semantic", "low", "0"))
        return not any(parts[: len(path)] == path for path in marked(Recipe, INDECISIVE))


def all_paths() -> Iterator[tuple[str, Any]]:
    """Yield every setting of a recipe with its declaration; lists have the entries of `BASE`."""

    def walk(settings: Iterator) -> Iterator[tuple[str, Any]]:
        for setting in settings:
            inner = next(filter(None, map(section_of, kinds_of(setting.field.annotation))), None)
            if inner is None:
                yield setting.path, setting.field
            else:
                yield from walk(list_settings(inner, prefix=f"{setting.path}."))

    names = {"teachers.NAME": "teachers.semantic", "partitions.NAME": "partitions.low", "mixed_in.NUMBER": "mixed_in.0"}
    for path, field in walk(list_settings(Recipe)):
        for general, own in names.items():
            path = path.replace(general, own)
        yield path, field


def value_at(values: Any, path: str) -> Any:
    """Return the value of a setting in plain data; None where it is not."""
    for key in path.split("."):
        if isinstance(values, list):
            found = [each for number, each in enumerate(values) if key in (each.get("name"), str(number))]
            values = found[0] if found else None
        else:
            values = (values or {}).get(key)
    return values


def other_values(path: str, field: Any, value: Any) -> Sequence[Any]:
    """Return what a setting is tried with in place of a value: from its type, or from `VALUES`."""
    if path in VALUES:
        return VALUES[path]
    choices, kinds = choices_of(field), kinds_of(field.annotation)
    if kinds == {bool}:
        return [not value]
    if choices is not None:
        return [choice for choice in choices if choice not in (value, AS_DEFAULT.get(path))]
    most = min([rule.le for rule in field.metadata if isinstance(rule, Le)] or [float("inf")])
    below = min([rule.lt for rule in field.metadata if isinstance(rule, Lt)] or [float("inf")])
    if value is not None and kinds <= {int, float, tuple, type(None)}:
        return [_scaled(value, most, below)]
    return []


def _scaled(value: Any, most: float, below: float) -> Any:
    if isinstance(value, tuple | list):
        return [0.8 * number for number in value]
    if isinstance(value, int):
        return 2 * value or 1
    larger = 2 * value or 0.5
    return larger if larger <= most and larger < below else value / 2


def trials(path: str, field: Any) -> list[Trial]:
    """Return the trials of a setting."""
    before: dict[str, Any] = {}
    for key in sorted((key for key in CONTEXTS if path == key or path.startswith(f"{key}.")), key=len):
        before |= CONTEXTS[key]
    value = value_at(values_of(before), path)
    return [
        Trial(path, other, before, {**ALSO.get(path, {}), **ALSO.get(f"{path}={other}", {}), path: other})
        for other in other_values(path, field, value)
    ]


def all_trials() -> dict[str, list[Trial]]:
    """Return the trials of all settings but for `EXCEPTIONS`, by path."""
    return {path: trials(path, field) for path, field in all_paths() if path not in EXCEPTIONS}


def recipe_of(settings: Mapping[str, Any]) -> Recipe:
    """Return the base recipe of the working folder with other settings."""
    return _recipe_with(_as_changes(settings))


def values_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return that recipe as plain data."""
    return _values_with(_as_changes(settings))


def _as_changes(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return words of a command line: sections come before what lies in them, and names last."""
    order = sorted(settings, key=lambda path: (path.endswith(".name"), path.count(".")))
    return tuple(f"{path}={json.dumps(settings[path])}" for path in order)


@functools.cache
def _recipe_with(changes: tuple[str, ...]) -> Recipe:
    return load_recipe("base.yaml", changes)


@functools.cache
def _values_with(changes: tuple[str, ...]) -> dict[str, Any]:
    return _recipe_with(changes).to_dict()


def write_world(folder: Path) -> None:
    """Write what the trials read: images of several kinds, an upsampler and the base recipe."""
    from pyarrow import parquet, table

    (folder / "base.yaml").write_text(BASE)
    odd = [picture(0, 90, 60), picture(1, 48, 40), flat(50), flat(70), picture(30, 400, 80)]
    for name, first in (("images", 0), ("others", 40), ("pictures", 80)):
        (folder / name).mkdir()
        for number in range(20):
            picture(first + number, 420, 300).save(folder / name / f"{number:02}.jpg")
    for number in range(6):
        (folder / f"labeled/{number % 2}").mkdir(parents=True, exist_ok=True)
        picture(120 + number, 64, 48).save(folder / f"labeled/{number % 2}/{number}.png")
    for number, image in enumerate(odd):
        image.save(folder / "images" / f"odd-{number}.png")
    name, width = "tried_settings:TriedTeacher", 12
    own = UpsampledTeacher(name, None, {"summary_dim": 10, "feature_dim": width}, width, input_size_px=32, grid=2)
    torch.manual_seed(0)
    save_upsampler(
        FeatSharp(UpsamplerConfig(**own._asdict(), width=16, num_heads=2, window=3)).eval(), folder / "upsampler"
    )
    (folder / "arrays").mkdir()
    for number in range(20):
        image = np.asarray(picture(160 + number, 84, 60))
        Image.fromarray(image).save(folder / f"arrays/{number:02}.png")
        np.save(folder / f"arrays/{number:02}.npy", np.concatenate([image, image[..., :1] // 2], axis=2))
    (folder / "tables").mkdir()
    for part in range(4):
        paths = sorted((folder / "others").iterdir())[part::4]
        images = [path.read_bytes() for path in paths]
        parquet.write_table(
            table({"image": images, "picture": images[::-1], "often": [0, 1, 2, 3, 4]}),
            folder / "tables" / f"part-{part}.parquet",
        )


WORLD = (
    "base.yaml",
    "images",
    "labeled",
    "others",
    "pictures",
    "arrays",
    "tables",
    "start",
    "upsampler",
)


def install(patch: pytest.MonkeyPatch, world: Path) -> None:
    """Let runs of this process write below a world where they would write to the user's caches."""
    patch.setattr("datasets.config.HF_DATASETS_CACHE", world / "datasets")
    patch.setenv("RADIO_CACHE", "cache")
    leave_progress_undrawn(patch)
    share_noise(patch)
    patch.setattr(trainer, "NORMALIZER_IMAGES", 8)
    patch.setattr("modeling_radio.training.distillation.held_out.MEASUREMENTS_PER_FIGURE", 1)
    patch.setattr("modeling_radio.training.views.crops.SHIFT_DEVIATION_PATCHES", 3.0)  # so that their limit acts
    # Inductor would run a C++ compiler for minutes; what Dynamo makes of the code is enough.
    patch.setattr(torch._TorchCompileInductorWrapper, "__call__", lambda compiler, graph, inputs: graph.forward)


def make_folder(folder: Path, world: Path) -> Path:
    """Make a folder for a run, which finds the world by links."""
    folder.mkdir(parents=True)
    for name in WORLD:
        (folder / name).symlink_to(world / name)
    return folder


def run_in(folder: Path, settings: Mapping[str, Any]) -> None:
    """Run the base recipe with other settings in a folder."""
    _run(_begin_in(folder, settings))


def _begin_in(folder: Path, settings: Mapping[str, Any]) -> Recipe:
    os.chdir(folder)
    AcceleratorState._reset_state(reset_partial_state=True)
    return recipe_of(settings)


def _run(recipe: Recipe) -> None:
    run_recipe(recipe, Path("runs") / recipe.name)


class Observation(NamedTuple):
    """The effects of a run.

    Attributes:
        weights: A hash of each tensor.
        written: Hash of each file; keys of a log.
        calls: How often functions of `training`, of some parts of PyTorch and of tqdm were called.
    """

    weights: dict[str, str]
    written: dict[str, str]
    calls: Counter[str]


def count_calls(folder: Path, settings: Mapping[str, Any], *, with_calls: bool = True) -> Counter[str]:
    """Run as `run_in`, and return `Observation.calls`; an error that ends the run counts as one."""
    codes: Counter[CodeType] = Counter()
    error: ArithmeticError | None = None

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            codes[frame.f_code] += 1

    recipe = _begin_in(folder, settings)
    if with_calls:
        sys.setprofile(note)
    try:
        _run(recipe)
    except ArithmeticError as raised:
        error = raised
    finally:
        sys.setprofile(None)
    calls = Counter([str(error)])
    for code, count in codes.items():
        if any(
            part in code.co_filename for part in ("/training/", "/torch/utils/", "/torch/distributed/", "/tqdm/std")
        ):
            calls[f"{code.co_filename}:{code.co_name}"] += count
    return calls


def observe(folder: Path, settings: Mapping[str, Any], *, with_calls: bool) -> Observation:
    """Run, and return the effects."""
    calls = count_calls(folder, settings, with_calls=with_calls)
    written = {
        _without_times(path.relative_to(folder)): _digest(path)
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("recipe.yaml", "run.txt")
    }
    weights = {key: _hash(tensor.numpy().tobytes()) for key, tensor in tensors(folder).items()}
    return Observation(weights, written, calls)


def tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of all checkpoints and of the exported model of the run in a folder."""
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("runs/*/**/checkpoints/step_*")):
        found |= {f"{path.name}/{key}": tensor for key, tensor in tensors_of(path).items()}
    for path in sorted(folder.glob("runs/*/final/model.safetensors")):
        found |= {f"final/{key}": tensor for key, tensor in load_file(path).items()}
    return found


def _without_times(path: Path) -> str:
    return str(path.with_name("events")) if path.name.startswith("events.") else str(path)


def _digest(path: Path) -> str:
    if path.suffix == ".jsonl":
        return _hash(str([sorted(json.loads(line)) for line in path.read_text().splitlines()]).encode())
    return "" if path.name.startswith(("events.", "state", "manifest")) else _hash(path.read_bytes())


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


NUM_PACKS = 11


ALONE = {
    "spectral.is_used",
    "damp.sigma",
    "student.frozen_statistics",
    "logging.metrics_sizes_px",
}
"""Settings that run alone: a student of convolutions has no linear layer, or patches of 32 px."""


def pack(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Return all trials in about a dozen runs: each is in the smallest where all settings hold beside the others."""
    packs: list[list[Trial]] = [[] for _ in range(NUM_PACKS)]
    for trial in trials:
        for each in sorted(packs, key=len):
            if not each or (tolerance_of(each) == tolerance_of([trial]) and _fit([*each, trial])):
                each.append(trial)
                break
        else:
            packs.append([trial])
    alone = [trial for each in packs for trial in each if ALONE & trial.changes.keys()]
    return [*([trial for trial in each if trial not in alone] for each in packs), *([trial] for trial in alone)]


def tolerance_of(trials: Sequence[Trial]) -> float:
    """Return how far two ranks may be from one process, the same for all trials of a pack."""
    return max(TOLERANCES.get(path, ROUNDING) for path in settings_of(trials))


def settings_of(trials: Sequence[Trial]) -> dict[str, Any]:
    """Return the settings of a run with several trials."""
    return {path: value for trial in trials for path, value in (trial.before | trial.changes).items()}


def _fit(trials: Sequence[Trial]) -> bool:
    """Return whether the settings of all trials hold in one recipe."""
    settings = settings_of(trials)
    try:
        check_student_views(recipe_of(settings))
    except ValueError:
        return False
    values = values_of(settings)
    return all(
        value_at(values, path) == value_at(values_of(own), path)
        for own in (settings_of([trial]) for trial in trials)
        for path in own
        if not path.endswith(".name")
    )
