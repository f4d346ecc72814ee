"""The list of hooks, and hooks of one's own."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from documentation import blocks
from tiny_distillation import assert_same_tensors, distil, last_state
from torch import nn

from modeling_radio.training.distillation.checkpoints import SavedTensors
from modeling_radio.training.distillation.hooks import extended
from modeling_radio.training.distillation.tracking import read_series
from modeling_radio.training.distillation.trainer import Distiller
from modeling_radio.training.hooks.base import StepHook
from modeling_radio.training.recipes.recipe import RecipeError, load_recipe


pytestmark = pytest.mark.usefixtures("one_thread", "tiny_world")

FOUR = ("schedule={num_steps: 4, warmup_steps: 1}", "checkpoints.every_steps=4", "logging.every_steps=2")
CHECKPOINT = "checkpoints/step_00000004"
OWN = "hooks=[my_hook:KoLeo]"


def names_of(recipe_file: str, *changes: str) -> list[str]:
    distiller = Distiller(load_recipe(recipe_file, changes), Path("run"))
    distiller.build()
    return list(distiller.parts.hooks)


def test_the_list_has_what_the_recipe_asks_for_in_one_order(recipe_file: str) -> None:
    at_one_size = "partitions.low.sizes_px=[32]"
    assert names_of(recipe_file, at_one_size) == ["statistics", "throughput", "bad_steps"]
    changes = [
        "spectral.is_used=true",
        "balancing.method=adaptive",
        "contrastive.weight=0.1",
        "taps.weight=0.25",
    ]
    roles = ["teachers.semantic.role=semantic", "teachers.segmenter.role=task"]
    assert names_of(recipe_file, *changes, *roles) == [
        *("spectral", "statistics", "balancing", "contrasts", "taps"),
        *("losses_by_size", "throughput", "bad_steps"),
    ]


@pytest.fixture
def documented(tiny_world: None) -> Iterator[None]:
    """The hook of the docs, in the working directory."""
    page = [block for block in blocks("python") if block.page == "docs/how-to/own_hook.md"]
    (code,) = [block.text for block in page if "class KoLeo" in block.text]
    Path("my_hook.py").write_text(code)
    yield
    sys.modules.pop("my_hook", None)


class Forgotten(StepHook):
    """Adds a head that it does not hold."""

    def extend(self, student: nn.Module) -> nn.Module:
        return nn.ModuleList([student, nn.Linear(2, 2)])


def test_a_trained_head_that_no_checkpoint_would_hold_is_refused() -> None:
    with pytest.raises(RecipeError, match="`hooks`"):
        extended(nn.Linear(2, 2), {"forgotten": Forgotten()})


@pytest.mark.usefixtures("documented")
def test_the_documented_hook_adds_its_loss_and_resumes_exactly(recipe_file: str) -> None:
    distil(recipe_file, "plain", *FOUR)
    distil(recipe_file, "whole", *FOUR, OWN)
    distil(recipe_file, "parts", *FOUR, OWN, stop_at=2)
    distil(recipe_file, "parts", *FOUR, OWN)
    assert_same_tensors(last_state("whole", 4), last_state("parts", 4))
    key = "student/radio_model.model.blocks.0.attn.qkv.weight"
    assert not torch.equal(last_state("plain", 4)[key], last_state("whole", 4)[key])
    whole, parts = (SavedTensors(Path(run, CHECKPOINT), "hook_KoLeo").read("mean") for run in ("whole", "parts"))
    assert torch.equal(whole, parts)
    assert whole != 0
    series = read_series(Path("whole/history.jsonl"))
    assert series["koleo"][0] == [2, 4]
    with pytest.raises(RecipeError, match="hooks"):
        distil(recipe_file, "whole", *FOUR)  # a run keeps its hooks


class Untrained(StepHook, nn.Module):
    """Has a layer that is no part of the module that is trained."""

    def __init__(self, recipe, student) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        nn.init.ones_(self.layer.weight)


class Extending(Untrained):
    """Trains its layer."""

    def extend(self, student: nn.Module) -> nn.Module:
        return Extended(student, self.layer)


class Extended(nn.Module):
    def __init__(self, student: nn.Module, layer: nn.Linear) -> None:
        super().__init__()
        self.student, self.layer = student, layer

    def forward(self, *args, **options):
        output = self.student(*args, **options)
        for head in output.adaptors.values():
            head.features = self.layer(head.features[..., None])[..., 0]
        return output


def test_a_layer_of_a_hook_is_trained_as_a_part_of_the_student(recipe_file: str) -> None:
    """After taps, which extend the student, too; the layer is no part of the trunk, which is frozen at first."""
    roles = ["teachers.semantic.role=semantic", "teachers.segmenter.role=task"]
    extending = f"hooks=['{__name__}:Extending']"
    distil(recipe_file, "run", *FOUR, *roles, "taps.weight=0.25", extending, "optimizer.trunk_frozen_steps=1")
    saved = SavedTensors(Path("run", CHECKPOINT), "hook_Extending")
    assert 0 < (saved.read("layer.weight") - 1).abs() < 0.1
    assert Path("run/final").is_dir()


@pytest.mark.parametrize("hooks", ["[KoLeo]", "[a:KoLeo, b:KoLeo]", "[torch:rand]", f"['{__name__}:Untrained']"])
def test_what_is_no_hook_is_refused(recipe_file: str, hooks: str) -> None:
    with pytest.raises(RecipeError, match="`hooks`"):
        Distiller(load_recipe(recipe_file, [f"hooks={hooks}"]), Path("run")).build()
