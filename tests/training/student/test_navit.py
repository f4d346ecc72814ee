"""A NaViT as student: packs, windows, matryoshka widths, cross-attention, an exact resume, and what is refused."""

from pathlib import Path

import pytest
import torch
from mean_colors import CPU, NUM_IMAGES, PATCH, SIDE, Images, MeanColor, recipe_with
from tiny_distillation import PACKED, assert_same_tensors, distil, last_state
from tiny_navit import build_navit

from modeling_radio import RadioModel
from modeling_radio.checks_radio import Resolution
from modeling_radio.conversion.from_nvidia import convert
from modeling_radio.conversion.to_nvidia import training_file_content
from modeling_radio.navit_radio import kept_channels, matryoshka_widths
from modeling_radio.training.recipes.recipe import RecipeError, ViewsRecipe, load_recipe
from modeling_radio.training.student.build import check_student_views
from modeling_radio.training.student.navit import answering
from modeling_radio.training.student.packing import forward_groups
from modeling_radio.training.targets.online import OnlineTargets
from modeling_radio.training.views.plan import BatchPlan
from modeling_radio.tuning.adapters import valid_targets
from modeling_radio.xattn_radio import WANTED, crop_warp


pytestmark = pytest.mark.usefixtures("one_thread", "tiny_world")
STUDENT = (
    "student.preset=null",
    "student.architecture=navit_tiny",
    "student.config={hidden_size: 256, num_attention_heads: 2, num_registers: 1}",
)


HEADS = "{semantic: {num_layers: 1, num_heads: 2}, segmenter: {num_layers: 1, num_heads: 4}}"


def test_a_resumed_run_of_packs_and_widths_equals_an_undisturbed_one_bit_for_bit(recipe_file):
    own = [*STUDENT, *PACKED, "student.matryoshka=true"]
    own += [f"student.arguments={{norm_method: peri, pool_type: attn, heads: {HEADS}}}"]
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
        "heads": {"semantic": {"num_layers": 1, "num_heads": 2}, "segmenter": {"num_layers": 1, "num_heads": 4}},
    }
    images = torch.rand(1, 3, 48, 80)
    torch.save(training_file_content(model), "there.pth.tar")
    with torch.no_grad():
        out, again = model(images), convert(Path("there.pth.tar"))(images)
    assert out.summary.shape == (1, 2 * 256)
    assert out.adaptors["segmenter"].summary is again.adaptors["segmenter"].summary is None
    for name, answer in out.adaptors.items():
        assert answer.features.shape[1] == 15
        torch.testing.assert_close(again.adaptors[name].features, answer.features, rtol=0, atol=1e-5)
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


class Ramps(Images):
    """The values grow with the row in red, with the column in green; blue is full, but beside the image."""

    def __getitem__(self, index):
        rows = (3 * torch.arange(SIDE)).byte().expand(SIDE, -1).T
        return torch.stack([rows, rows.T, torch.full_like(rows, 255)])


class FixedSize(MeanColor):
    """Five by five cells, whatever the student's grid."""

    def input_sizes(self, rows, cols):
        return ((60, 60),)

    def output_sides(self, rows, cols):
        return 5, 5


def crops_of_ramps(is_square, **partition):
    views = ViewsRecipe(max_shift_patches=1, crop_scale=(0.2, 0.4), is_square=is_square)
    recipe = recipe_with(views, **partition)
    teachers = {"coarse": FixedSize(12), "fine": MeanColor(8, has_summary=False)}
    source = OnlineTargets(recipe, PATCH, Ramps(), teachers, CPU)
    return source.examples(lambda: BatchPlan(recipe, NUM_IMAGES, patch_size=PATCH).steps(0, 4))


TWO_HEADS = {"coarse": {"num_layers": 1, "num_heads": 2}, "fine": {"num_layers": 1, "num_heads": 2}}
TEACHERS = [
    {"name": "coarse", "token_index": 0, "summary_dim": 3, "feature_dim": 3, "hidden_size": 16},
    {"name": "fine", "token_index": 1, "feature_dim": 3, "hidden_size": 16},
]


@pytest.mark.usefixtures("far_shifts")
@pytest.mark.parametrize("partition", [{}, {"batch_size": None, "token_budget": 60}], ids=["squares", "packs"])
def test_cells_of_heads_lie_where_their_teachers_see_them(partition):
    """Under shifts, crops, mirroring and any two grids: the student's ramp, read there, has the teacher's values."""
    model, compared, warps = build_navit({"heads": TWO_HEADS}, adaptors=TEACHERS), 0, []
    for batch, example in crops_of_ramps(not partition, **partition):
        with answering(model.config, batch, example.targets):
            wanted = WANTED.get()
        for index, (shape, _) in enumerate(batch.groups):
            ours = MeanColor().extract_features(example.pixel_values[index]).features
            for name, target in example.targets.items():
                grid, warp = wanted[name][shape.grid]
                x, y = model.adaptors[name].head_mlp.places(warp, grid).unflatten(1, grid).unbind(-1)
                first, last = (ours[:, :2, place, place, None, None] for place in (0, -1))
                read = first + (last - first) * (torch.stack([y, x], dim=1) + 1) / 2
                maps = target.alignments[index].compare_cells(read, target.features[index][:, :2])
                is_inside = ours[:, 2].amin((1, 2)) > 0.999
                errors = (maps.student - maps.teacher).abs().amax(1)[is_inside][maps.valid[is_inside]]
                assert (errors < 0.012).all()  # of a slope of at least 0.1 a patch
                compared += len(errors)
                warps.append(warp[is_inside])
    assert compared > 300
    assert torch.cat(warps)[:, :2, 2].abs().max() > 0.5


def test_a_warp_is_exact():
    warp = crop_warp(Resolution(4, 1), Resolution(6, 3), torch.tensor([[1, -2], [0, 0]]))
    (x, y), steps = warp[:, :2, 2].unbind(1), torch.linspace(-1, 1, 4)
    rows = ((warp[:, 1, 1, None] * steps + y[:, None] + 1) / 2) * 5
    expected = torch.tensor([0.25, 1.75, 3.25, 4.75])  # a cell is one and a half patches
    torch.testing.assert_close(rows, torch.stack([expected + 1, expected]), rtol=0, atol=1e-6)
    torch.testing.assert_close((-warp[:, 0, 0] + x + 1) / 2 * 2, torch.tensor([-1.0, 1.0]), rtol=0, atol=1e-6)
    same = crop_warp(Resolution(4, 7), Resolution(4, 7), torch.zeros(1, 2))
    torch.testing.assert_close(same, torch.eye(3)[None], rtol=0, atol=1e-7)


@torch.no_grad()
def test_an_image_of_a_pack_is_answered_for_as_if_it_were_alone():
    model = build_navit({"heads": TWO_HEADS}, adaptors=TEACHERS, patch_size=PATCH).train()
    batch, example = next(iter(crops_of_ramps(False, batch_size=None, token_budget=60)))
    assert len(batch.groups) > 1
    with answering(model.config, batch, example.targets) as grids:
        output, wanted = forward_groups(model, example.pixel_values, PATCH, grids), WANTED.get()
    for index, (shape, group) in enumerate(batch.groups):
        for name, adaptor in model.adaptors.items():
            grid, warp = wanted[name][shape.grid]
            assert output.features[name][index].shape == example.targets[name].features[index].shape
            alone = model(example.pixel_values[index][-1:], adaptor_names=[]).last_hidden_state
            token, features = alone[:, adaptor.token_index], alone[:, model.config.num_prefix_tokens :]
            summary, cells = adaptor.head_mlp(token, features, warp[-1:], [shape.grid], grid)
            found = output.features[name][index][-1].flatten(1).T
            torch.testing.assert_close(found, cells[0], rtol=0, atol=1e-5)
            if name == "coarse":
                torch.testing.assert_close(output.summaries[name][group][-1], summary[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_cells_of_a_grid_of_its_own_divide_the_image_where_nobody_says_otherwise():
    own = {"num_layers": 1, "num_heads": 2, "target_grid": [4, 2], "align_corners": False}
    model = build_navit({"heads": {"coarse": own}}, adaptors=TEACHERS)
    head, token, features = model.adaptors["coarse"].head_mlp, torch.randn(1, 16), torch.randn(1, 18, 16)
    warp = crop_warp(Resolution(4, 2), Resolution(6, 3), torch.zeros(1, 2))
    expected = head(token, features, warp, [(6, 3)])[1]
    assert torch.equal(head(token, features, grid_sizes=[(6, 3)])[1], expected)
    with pytest.raises(ValueError, match=r"`navit\.heads\.coarse\.target_grid`"):
        training_file_content(model)


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
        ([*STUDENT, "student.arguments={heads: {semantik: {num_heads: 2}}}"], "student.arguments.heads"),
        ([*STUDENT, "student.arguments={heads: {semantic: {layers: 2}}}"], "navit.heads.semantic.layers"),
        (
            [*STUDENT, f"student.arguments={{heads: {HEADS}}}", "student.adaptor.upsample_factor=2"],
            "student.adaptor.upsample_factor",
        ),
        (
            [
                *(*STUDENT, *PACKED, f"student.arguments={{heads: {HEADS}}}"),
                *("views.teachers=cached", "partitions.low.windows_px=[32, 48]"),
            ],
            "partitions.low.windows_px",
        ),
        (["student.preset=navit_tiny"], "preset"),
    ],
)
def test_what_a_navit_does_not_have_is_refused(changes, named, recipe_file):
    with pytest.raises(RecipeError, match=f"`{named}`"):
        check_student_views(load_recipe(recipe_file, changes))
