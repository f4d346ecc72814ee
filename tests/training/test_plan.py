"""Counting a run on the meta device, with the published architecture of one small enough teacher."""

from pathlib import Path

import pytest

from training.plan import Networks, Plan, main, plan_stage
from training.recipe import Recipe, load_recipe


RECIPE = """
student:
  preset: radio-test
  config: {num_hidden_layers: 2, max_img_size: 256}
  adaptor: {hidden_size: 24, num_inner_blocks: 0}
teachers:
  - {name: siglip2-g, kind: siglip2, source: google/siglip2-giant-opt-patch16-384, run_mode: native}
  - {name: sam3, kind: sam3, source: facebook/sam3, run_mode: mosaic}
partitions:
  - {name: low, sizes_px: [32, 64], probabilities: [1, 3], batch_size: 8}
  - {name: high, sizes_px: [128], batch_size: 2, teachers: [siglip2-g]}
schedule: {num_steps: 10}
"""
SIGLIP2_PARAMETERS = 1_163_659_776  # C-RADIOv4, https://arxiv.org/abs/2601.17237, counts 1.16 billion


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    path = tmp_path_factory.mktemp("recipes") / "tiny.yaml"
    path.write_text(RECIPE)
    return load_recipe(str(path), ["data.source=unopened"])


@pytest.fixture(scope="module")
def plan(recipe: Recipe) -> Plan:
    return Plan(recipe, 2, mfu=0.5)


@pytest.fixture(scope="module")
def networks(plan: Plan) -> Networks:
    return plan.networks


def test_a_teacher_takes_two_operations_per_weight_and_token(networks: Networks) -> None:
    weights = sum(parameter.numel() for parameter in networks.teachers["siglip2-g"].parameters())
    assert weights == SIGLIP2_PARAMETERS
    tokens = (128 // 16) ** 2
    assert networks.teacher_flops("siglip2-g", 128, 1) == pytest.approx(2 * weights * tokens, rel=0.05)
    assert networks.teacher_flops("siglip2-g", 128, 3) == 3 * networks.teacher_flops("siglip2-g", 128, 1)


def test_images_of_a_mosaic_share_a_pass(networks: Networks) -> None:
    one = networks.teacher_flops("sam3", 64, 1)
    assert networks.teacher_flops("sam3", 64, 300) == one  # 18 x 18 images of 4 x 4 cells
    assert networks.teacher_flops("sam3", 64, 325) == 2 * one


def test_student_counts_forward_and_backward_and_what_it_keeps(networks: Networks) -> None:
    small, large = networks.student_cost(64), networks.student_cost(256)
    assert large.flops > 10 * small.flops
    assert small.kept_checkpointed < 0.7 * small.kept
    # Without attention weights, which would make it grow with the square of the number of tokens.
    assert large.kept < 16 * small.kept


def test_a_student_that_answers_in_pairs_is_counted_too(networks: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks.student.config, "return_dict", False)
    assert networks.student_cost(32).flops < networks.student_cost(48).flops < networks.student_cost(64).flops


def test_step_averages_over_sizes_and_counts_each_partitions_teachers(networks: Networks, recipe: Recipe) -> None:
    low, high = plan_stage(networks, recipe, 2)
    expected = 8 * (0.25 * networks.student_cost(32).flops + 0.75 * networks.student_cost(64).flops)
    assert low.student_flops == pytest.approx(expected)
    assert (low.images_per_pass, high.images_per_pass) == (4, 1)
    assert low.teacher_flops.keys() == {"siglip2-g", "sam3"}
    assert high.teacher_flops == {"siglip2-g": pytest.approx(2 * networks.teacher_flops("siglip2-g", 128, 1))}
    assert high.flops == high.student_flops + high.teacher_flops["siglip2-g"]
    # 2 bytes a number, 4 images at the largest size
    assert low.activations == (8 * networks.student_cost(64).kept, 8 * networks.student_cost(64).kept_checkpointed)


def test_a_token_budget_costs_what_its_images_do(networks: Networks, recipe: Recipe) -> None:
    """Of one size, so that the number of images is known."""
    low = recipe.partitions[0]
    patches = (low.sizes_px[0] // 16) ** 2
    by_images = recipe.replace(partitions=[low.replace(sizes_px=low.sizes_px[:1], probabilities=None)])
    budget = {"batch_size": None, "token_budget": low.batch_size * patches}
    by_tokens = recipe.replace(partitions=[by_images.partitions[0].replace(**budget)])
    (expected,), (cost,) = plan_stage(networks, by_images, 1), plan_stage(networks, by_tokens, 1)
    assert (cost.images, cost.student_flops) == (expected.images, expected.student_flops)
    assert cost.activations == pytest.approx(expected.activations)
    assert cost.teacher_flops == expected.teacher_flops


def test_taps_are_counted(recipe: Recipe, plan: Plan) -> None:
    """Three operations of two for each weight of a head, on every patch that it reads: forward, and both ways back."""
    tapped = recipe.replace(taps={"scheme": "all", "depths": [0.5, 1]})
    plain, plan = plan, Plan(tapped, 2, mfu=0.5)
    taps = plan.networks.taps_of(tapped)
    assert [tap.name for tap in taps] == ["siglip2-g@0", "sam3@0", "siglip2-g@1", "sam3@1"]
    heads = plan.networks.tap_heads(taps)
    assert heads is not None
    dense = [head.features for head in heads.heads.values()]
    weights = sum(each.fc1.weight.numel() + each.final[2].weight.numel() for each in dense)
    costs = [networks.student_cost(128, taps) for networks, taps in ((plain.networks, ()), (plan.networks, taps))]
    assert costs[1].flops - costs[0].flops == pytest.approx(6 * 64 * weights, rel=0.1)
    assert costs[1].kept > costs[0].kept
    assert plan.gpu_days("A100") > plain.gpu_days("A100")
    assert "| heads of 4 taps | " in plan.networks_table()
    assert "taps" not in plain.networks_table()


def test_days_follow_from_operations_peak_and_utilization(plan: Plan) -> None:
    (costs,) = plan.costs.values()
    flops = 10 * sum(cost.flops for cost in costs)
    assert plan.gpu_days("A100") == pytest.approx(flops / (0.5 * 312e12) / 86_400)
    student = 10 * sum(cost.student_flops for cost in costs)
    assert plan.gpu_days("H100", with_teachers=False) == pytest.approx(student / (0.5 * 989e12) / 86_400)


def test_command_prints_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tiny.yaml"
    without_sam3 = "\n".join(line for line in RECIPE.splitlines() if "name: sam3" not in line)
    path.write_text(without_sam3 + "\nstages:\n  - {name: first, schedule: {num_steps: 3}}\n  - {name: second}\n")
    partitions = "partitions=[{name: low, sizes_px: [64], batch_size: 8}, {name: high, sizes_px: [128], batch_size: 2}]"
    assert main(["--recipe", str(path), "--gpus", "2", partitions]) == 0
    output = capsys.readouterr().out
    for text in (
        "| siglip2-g | 1,164 | 2.2 |",
        "| first | low | 8 | 64 |",
        "| second | high | 2 | 128 |",
        "35% of the",
    ):
        assert text in output
    assert "could not run" not in output
    assert main(["--recipe", str(path), "--gpus", "4", partitions]) == 0
    output = capsys.readouterr().out
    assert (
        "- This many GPUs could not run stage second as it is: `partitions.high.batch_size` must be at least 4"
        in output
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "0"], "`gpus` must be an integer above 0, got 0."),
        (["--mfu", "2"], "`mfu` must be a number in (0, 1], got 2."),
        (["partitions.low.rank_share=3"], "1 or a multiple of 3, got 8. Use 9 ranks"),
        (["teachers.sam3.kind=efficientnet-lite0"], "'efficientnet-lite0' has no option 'weights'"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    assert main(["--recipe", str(path), *arguments]) == 1
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("plan: error: ")]
    assert message in error


def test_teachers_that_ship_with_their_weights_cannot_be_counted(capsys):
    assert main(["--recipe", "demo"]) == 1
    assert (
        "teacher 'efficientnet-lite0' of recipe 'demo' comes with its weights in a package" in capsys.readouterr().err
    )
