"""Images of several shapes in one forward pass against each image alone; and nested dropout of RADIO1D's tokens."""

from pathlib import Path

import pytest
import tiny_distillation as tiny
import torch

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.training.distillation import step
from modeling_radio.training.distillation.trainer import Distiller
from modeling_radio.training.recipes.recipe import RecipeError, load_recipe
from modeling_radio.training.student.packing import NUM_DRAWS, check_packing, counts_from, forward_groups


@pytest.fixture(scope="module")
def model() -> RadioModel:
    adaptors = [
        {"name": "plain", "summary_dim": 5, "feature_dim": 6, "hidden_size": 8},
        {"name": "fine", "feature_dim": 4, "hidden_size": 8, "upsample_factor": 2},
    ]
    return RadioModel(RadioConfig.from_preset("radio-test", adaptors=adaptors, use_cropped_positions=False)).eval()


@pytest.mark.parametrize("sizes", [[(2, 48, 32)], [(2, 48, 32), (1, 32, 80), (3, 32, 32)]], ids=["one", "several"])
def test_outputs_equal_those_of_each_group_alone(model: RadioModel, sizes: list[tuple[int, int, int]]) -> None:
    groups = [torch.rand(count, 3, height, width) for count, height, width in sizes]
    answer = forward_groups(model, groups, 16, window_size="global")
    alone = [model(images, feature_format="NCHW", window_size="global") for images in groups]
    assert answer.summaries["fine"] is None
    summaries = torch.cat([each.adaptors["plain"].summary for each in alone])
    torch.testing.assert_close(answer.summaries["plain"], summaries)
    for number, each in enumerate(alone):
        torch.testing.assert_close(answer.backbone[number], each.features)
        for name in ("plain", "fine"):
            torch.testing.assert_close(answer.features[name][number], each.adaptors[name].features)


@pytest.mark.parametrize(
    ("draw", "mean", "below_half"), [("triangular", 1 / 3, 0.75), ("uniform", 1 / 2, 0.5), ("beta", 1 / 3, 0.8125)]
)
def test_distributions(draw: str, mean: float, below_half: float) -> None:
    draws = torch.rand(20_000, NUM_DRAWS, generator=torch.Generator().manual_seed(0))
    shares = (torch.tensor(counts_from(draw, draws, 1001)).double() - 1) / 1000
    assert shares.mean().item() == pytest.approx(mean, abs=0.01)
    assert (shares < 0.5).double().mean().item() == pytest.approx(below_half, abs=0.01)
    if draw == "beta":
        assert torch.histc(shares, 10, 0, 1).argmax().item() == 2  # a quarter


def test_triangular_is_the_published_formula() -> None:
    draws = torch.tensor([0.0, 0.25, 0.999, 0.5])[:, None].expand(-1, NUM_DRAWS)
    assert counts_from("triangular", draws, 256) == [256, 129, 1, round((1 - 0.5**0.5) * 255) + 1]


@pytest.mark.parametrize("draw", ["triangular", "uniform", "beta", "fixed"])
def test_counts_are_between_one_and_all(draw: str) -> None:
    for available in (1, 2, 7):
        counts = set(counts_from(draw, torch.rand(5000, NUM_DRAWS), available))
        assert counts == ({available} if draw == "fixed" else set(range(1, available + 1)))


MERGED = ("student.config.downscale_levels=[1]", "student.config.decoder_depth=1", "partitions.low.sizes_px=[64]")


@pytest.mark.usefixtures("one_thread", "tiny_world")
class TestNestedDropout:
    def test_it_acts_follows_from_the_step_and_resumes_exactly(self, recipe_file: str, monkeypatch) -> None:
        """Whatever part an image is in; with gradient checkpointing, which covers the decoder, too."""
        seen = []

        def record(student, groups, patch_size, **options):
            if "draws" in options:
                seen.append(options.get("num_tokens"))
            return forward_groups(student, groups, patch_size, **options)

        monkeypatch.setattr(step, "forward_groups", record)
        settings = (*MERGED, "student.num_tokens=triangular", "schedule.num_steps=4")
        tiny.distil(recipe_file, "whole", *settings)
        whole = list(seen)
        assert len({count for counts in whole for count in counts}) > 1
        seen.clear()
        tiny.distil(recipe_file, "split", *settings, "partitions.low.accumulation_steps=2")
        assert [first + second for first, second in zip(seen[::2], seen[1::2], strict=True)] == whole
        seen.clear()
        tiny.distil(recipe_file, "fixed", *MERGED, "student.num_tokens=fixed", "schedule.num_steps=4")
        assert seen == [None] * 4
        checkpointing = "student.gradient_checkpointing=true"
        assert tiny.distil(recipe_file, "parts", *settings, checkpointing, stop_at=2) is None
        distiller = Distiller(load_recipe(recipe_file, [*settings, checkpointing]), Path("parts"))
        distiller.run()
        assert all(block.gradient_checkpointing for block in distiller.parts.model.radio_model.model.decoder.blocks)
        states = [tiny.last_state(name, 4) for name in ("whole", "parts", "fixed")]
        tiny.assert_same_tensors(*states[:2])
        assert any(
            not torch.equal(each, states[2][key]) for key, each in states[0].items() if key.startswith("student/")
        )

    @pytest.mark.parametrize(
        ("settings", "named"),
        [
            (["student.num_tokens=uniform"], "`student.num_tokens`"),
            ([*MERGED, "student.compile=true"], "`student.compile`"),
            (
                [*MERGED[:2], "partitions=[{name: low, sizes_px: [32], token_budget: 40}]"],
                "`partitions.low.token_budget`",
            ),
            (
                [*MERGED, "taps.weight=0.25", "teachers.semantic.role=basic", "teachers.segmenter.role=task"],
                "`taps.weight`",
            ),
        ],
    )
    def test_impossible_for_merged_tokens_is_refused(self, recipe_file: str, settings: list[str], named: str) -> None:
        recipe = load_recipe(recipe_file, settings)
        config = RadioConfig.from_preset("radio-test", **recipe.student.config)
        with pytest.raises(RecipeError, match=rf"^{named} .*`student\.config\.downscale_levels`"):
            check_packing(recipe, config)

    def test_packs_are_not_compiled(self, recipe_file: str) -> None:
        changes = ["student.compile=true", "partitions=[{name: low, sizes_px: [32], token_budget: 40}]"]
        with pytest.raises(RecipeError, match=r"^`student\.compile` .*`partitions\.low\.token_budget`"):
            check_packing(load_recipe(recipe_file, changes), RadioConfig.from_preset("radio-test"))
