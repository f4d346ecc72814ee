"""A NaViT as student: packs, windows and matryoshka widths, an exact resume, and what is refused."""

from pathlib import Path

import pytest
import torch
from tiny_distillation import PACKED, assert_same_tensors, distil, last_state
from tiny_navit import build_navit

from modeling_radio import RadioModel
from modeling_radio.navit_radio import kept_channels, matryoshka_widths
from modeling_radio.training.recipes.recipe import RecipeError, load_recipe
from modeling_radio.training.student.build import check_student_views
from modeling_radio.tuning.adapters import valid_targets


pytestmark = pytest.mark.usefixtures("one_thread", "tiny_world")
STUDENT = (
    "student.preset=null",
    "student.architecture=navit_tiny",
    "student.config={hidden_size: 256, num_attention_heads: 2, num_registers: 1}",
)


def test_a_resumed_run_of_packs_and_widths_equals_an_undisturbed_one_bit_for_bit(recipe_file):
    own = [*STUDENT, *PACKED, "student.matryoshka=true", "student.arguments={norm_method: peri, pool_type: attn}"]
    own += ["mesa={weight: 0.5, start_step: 1}"]
    distil(recipe_file, "whole", *own)
    assert distil(recipe_file, "parts", *own, stop_at=4) is None
    assert distil(recipe_file, "parts", *own) == Path("parts/final")
    assert_same_tensors(last_state("whole"), last_state("parts"))
    model = RadioModel.from_pretrained("parts/final").eval()
    assert model.config.navit == {
        "norm_method": "peri",
        "pool_type": "attn",
        "matryoshka": True,
        "inner_summary_idxs": [0],
    }
    with torch.no_grad():
        out = model(torch.rand(1, 3, 48, 80))
    assert out.summary.shape == (1, 2 * 256)
    assert (out.features != 0).all()
    assert valid_targets(model) == ["qkv", "proj", "fc1", "fc2"]


def test_wider_features_are_more_likely():
    assert matryoshka_widths(384) == [128, 256, 384]
    assert matryoshka_widths(128) == [128]
    kept = kept_channels((torch.arange(7) + 0.5) / 7, 384)
    assert kept.sum(dim=(1, 2)).tolist() == [128, 256, 256, 384, 384, 384, 384]
    assert (kept[1, 0, :256] == 1).all()


@torch.no_grad()
def test_a_pack_in_training_cuts_each_image_by_its_own_number():
    model = build_navit({"matryoshka": True}, hidden_size=256, num_registers=0).train()
    draws = torch.rand(2, model.num_draws)
    draws[:, 0] = torch.tensor([0.1, 0.9])  # 128 and 256 channels
    patches = torch.rand(6 + 4, 48)
    out = model(patches, image_grid_hw=torch.tensor([[2, 3], [2, 2]]), draws=draws, adaptor_names=[])
    assert (out.features[:6, 128:] == 0).all()
    assert (out.features[6:] != 0).all()
    assert (out.summary[0].view(2, 256)[:, 128:] == 0).all()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (["student.matryoshka=true"], "student.matryoshka"),
        ([*STUDENT, "student.config.hidden_size=64", "student.matryoshka=true"], "student.matryoshka"),
        ([*STUDENT, "student.positions=sincos"], "student.positions"),
        ([*STUDENT, "student.arguments={norm: pre}"], "navit.norm"),
        ([*STUDENT, "student.config.navit={}"], "config"),
        ([*STUDENT, "student.frozen_stages=1"], "frozen_stages"),
        ([*STUDENT, "student.frozen_statistics=true"], "frozen_statistics"),
        ([*STUDENT, "student.arguments={heads: {}}"], "arguments"),
        (["student.preset=navit_tiny"], "preset"),
    ],
)
def test_what_a_navit_does_not_have_is_refused(changes, named, recipe_file):
    with pytest.raises(RecipeError, match=f"`{named}`"):
        check_student_views(load_recipe(recipe_file, changes))
