"""Taps: their blocks, their input, how far their gradients go, and runs with them."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from small_recipes import small_recipe
from tiny_distillation import PACKED, REGULARIZED, SPLIT_SETTINGS, assert_same_tensors, distil, last_state
from torch import Tensor

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.training.auxiliary.heads import (
    TAPS,
    Tap,
    TappedStudent,
    Taps,
    build_heads,
    plan_heads,
    tap_blocks,
    weight_at,
    with_heads,
)
from modeling_radio.training.distillation.stages import run_recipe
from modeling_radio.training.distillation.tracking import RunHistory
from modeling_radio.training.recipes.recipe import Recipe, load_recipe
from modeling_radio.training.student.parameters import is_of_trunk, student_parameters


def config_of(**fields) -> RadioConfig:
    adaptors = [
        {"name": "a", "summary_dim": 5, "feature_dim": 6, "hidden_size": 8, "token_index": 0},
        {"name": "b", "summary_dim": None, "feature_dim": 7, "hidden_size": 8, "token_index": 1},
    ]
    return RadioConfig.from_preset("radio-test", num_cls_tokens=2, summary_idxs=[0], adaptors=adaptors, **fields)


def recipe_of(windows: list[int] | None = None, **taps) -> Recipe:
    partitions = [{"sizes_px": [64], "vitdet_windows": windows}, {"name": "high", "sizes_px": [96]}]
    teachers = [{"name": "a", "kind": "k", "role": "basic"}, {"name": "b", "kind": "k", "role": "task"}]
    return small_recipe(teachers=teachers, partitions=partitions, taps={"weight": 0.25, **taps})


def tapped(num_layers: int = 4, **fields) -> TappedStudent:
    model = RadioModel(config_of(num_hidden_layers=num_layers, **fields)).train()
    learner = with_heads(model, build_heads(recipe_of(), model))
    assert isinstance(learner, TappedStudent)
    return learner


def images_of(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("fields", "free", "snapped"),
    [
        # C-RADIOv4-H and -SO400M attend globally in 7, 15, 23, 31 and in 5, 11, 17, 23, 26.
        ({"num_hidden_layers": 32, "vitdet_num_global": 4}, [10, 20, 31], [7, 23, 31]),
        ({"num_hidden_layers": 27, "vitdet_num_global": 4}, [8, 17, 26], [11, 17, 26]),  # 8 is as near to 5 as to 11
        ({"num_hidden_layers": 6, "vitdet_num_global": 2}, [1, 3, 5], [2, 2, 5]),
        ({"num_hidden_layers": 1}, [0, 0, 0], [0, 0, 0]),
    ],
)
def test_taps_are_on_global_blocks_if_a_step_may_have_windows(fields, free, snapped) -> None:
    config = config_of(**fields)
    assert tap_blocks(recipe_of(), config) == free
    assert tap_blocks(recipe_of(windows=[2]), config) == snapped
    assert all(config.is_global_block(block) for block in snapped)


def test_shares_of_taps_at_the_same_block_are_added_up() -> None:
    config = config_of(num_hidden_layers=6, vitdet_num_global=2)
    taps = (Tap(2, "a", 0.8 + 0.15), Tap(2, "b", 0.05 + 0.15), Tap(5, "a", 0.05), Tap(5, "b", 0.8))
    assert plan_heads(recipe_of(windows=[2]), config) == taps
    model = RadioModel(config)
    line = build_heads(recipe_of(windows=[2]), model).describe()
    assert line == "Taps: block 2: a 0.95, b 0.2; block 5: a 0.05, b 0.8."
    assert with_heads(model, build_heads(recipe_of(weight=0), model)) is model


@pytest.mark.parametrize("num_steps", [12, 1400])
def test_the_weight_fades_out_over_the_last_three_tenths(num_steps: int) -> None:
    recipe = recipe_of(weight=0.5).replace(schedule={"num_steps": num_steps})
    weights = [weight_at(recipe, step) for step in range(num_steps)]
    first = num_steps - -(-3 * num_steps // 10)
    assert weights[: first + 1] == [0.5] * (first + 1)
    assert all(before > after for before, after in zip(weights[first:], weights[first + 1 :], strict=False))
    assert 0 < weights[-1] < 0.1
    assert weights[num_steps - (num_steps - first) // 2] == pytest.approx(0.25, abs=0.01)


def test_roles_decide_who_counts_where_and_not_the_order_of_teachers() -> None:
    config = config_of(num_hidden_layers=6)
    planned = {(tap.block, tap.teacher): tap.share for tap in plan_heads(recipe_of(), config)}
    assert planned == {(1, "a"): 0.8, (1, "b"): 0.05, (3, "a"): 0.15, (3, "b"): 0.15, (5, "a"): 0.05, (5, "b"): 0.8}
    turned = recipe_of().replace(teachers=recipe_of().teachers[::-1])
    assert {(tap.block, tap.teacher): tap.share for tap in plan_heads(turned, config)} == planned
    for row in zip(*(by_role.values() for by_role in TAPS.values()), strict=True):
        assert sum(row) == pytest.approx(1)  # over the taps of a role


def test_weights_of_a_head_depend_on_the_seed_and_its_tap_alone() -> None:
    model, tap = RadioModel(config_of(num_hidden_layers=6)), Tap(1, "a", 1.0)
    before = torch.get_rng_state()
    few, many, other = (
        Taps(taps, model, recipe_of().replace(seed=seed)).state_dict()
        for taps, seed in (((tap,), 0), (plan_heads(recipe_of(), model.config), 0), ((tap,), 1))
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert few.keys() < many.keys()
    assert all(torch.equal(few[key], many[key]) for key in few)
    key = "heads.a@1.features.fc1.weight"
    assert not torch.equal(few[key], other[key])
    assert few[key].std() == pytest.approx(model.config.initializer_range, rel=0.2)


def test_a_tap_reads_the_normed_tokens_of_its_block() -> None:
    learner, pixel_values = tapped().eval(), images_of(2, 3, 32, 48)
    outputs = learner(pixel_values, feature_format="NCHW", window_size="global").adaptors
    states = learner.student(pixel_values, output_hidden_states=True, window_size="global").hidden_states
    assert list(outputs) == ["a", "b", "a@0", "b@0", "a@2", "b@2", "a@3", "b@3"]
    normed = torch.nn.functional.layer_norm(states[3], states[3].shape[-1:])
    head, prefix = learner.taps.heads["a@2"], learner.student.config.num_prefix_tokens
    expected = head.features(normed[:, prefix:]).transpose(1, 2).unflatten(2, (2, 3))
    torch.testing.assert_close(outputs["a@2"].features, expected)
    torch.testing.assert_close(outputs["a@2"].summary, head.summary(normed[:, 0]))
    assert outputs["b@2"].summary is None
    plain = learner.student(pixel_values, feature_format="NCHW", window_size="global").adaptors
    torch.testing.assert_close(outputs["a"].features, plain["a"].features, rtol=0, atol=0)


@pytest.mark.parametrize("window", ["global", 1])
def test_packed_images_are_read_as_alone(window) -> None:
    learner = tapped(vitdet_num_global=2).eval()
    images = [images_of(1, 3, *size) for size in ((32, 48), (48, 16), (32, 48))]
    grids = [[side // 16 for side in each.shape[2:]] for each in images]
    patches = [torch.nn.functional.pixel_unshuffle(each, 16).flatten(2).transpose(1, 2)[0] for each in images]
    packed = learner(torch.cat(patches), image_grid_hw=torch.tensor(grids), window_size=window).adaptors
    alone = [learner(each, window_size=window).adaptors for each in images]
    for name in ("a@0", "a@2", "b@3"):
        torch.testing.assert_close(packed[name].features, torch.cat([each[name].features[0] for each in alone]))
    torch.testing.assert_close(packed["a@2"].summary, torch.cat([each["a@2"].summary for each in alone]))


@pytest.mark.parametrize("window", ["global", 1])
@pytest.mark.parametrize("is_packed", [False, True])
def test_gradients_of_a_tap_end_at_its_block(window, is_packed: bool) -> None:
    learner = tapped(vitdet_num_global=2)  # blocks 1 and 3 are global
    inputs = {"pixel_values": images_of(2, 3, 32, 48)}
    if is_packed:
        inputs = {"pixel_values": images_of(6 + 3, 3 * 16 * 16), "image_grid_hw": torch.tensor([[2, 3], [3, 1]])}
    output = learner(**inputs, window_size=window).adaptors["a@2"]
    (output.features.square().mean() + output.summary.square().mean()).backward()
    reached = {name: p.grad for name, p in student_parameters(learner) if p.grad is not None}
    assert {name.split(".")[3] for name in reached if ".blocks." in name and is_of_trunk(name)} == {"0", "1", "2"}
    assert {name.split(".")[2] for name in reached if not is_of_trunk(name)} == {"a@2"}
    assert "radio_model.model.patch_generator.pos_embed" in reached
    assert all(gradient.abs().max() > 0 for gradient in reached.values())


def test_windows_have_no_seams_at_taps() -> None:
    """Patches of one window affect the other, and the class token, from the first global block on."""
    student = tapped(6, vitdet_num_global=2).student.eval()  # blocks 2 and 5 are global
    taps = tuple(Tap(block, "a", 1.0) for block in (1, 2))
    learner = TappedStudent(student, Taps(taps, student, recipe_of()))
    pixel_values = images_of(1, 3, 32, 64).requires_grad_()  # two windows of 2 x 2 patches
    outputs = learner(pixel_values, feature_format="NCHW", window_size=2).adaptors

    def effect_of_the_right(output: Tensor) -> float:
        (gradient,) = torch.autograd.grad(output.sum(), pixel_values, retain_graph=True)
        return float(gradient[..., 32:].abs().sum())

    for name, is_reached in (("a@1", False), ("a@2", True)):
        left, token = outputs[name].features[..., :2], outputs[name].summary
        assert [effect_of_the_right(left) > 0, effect_of_the_right(token) > 0] == [is_reached] * 2


ON = (
    "student.config={num_hidden_layers: 3}",
    "teachers.semantic.role=semantic",
    "teachers.segmenter.role=task",
    "taps.weight=0.25",
    "checkpoints.every_steps=8",
)
QKV = "student/radio_model.model.blocks.0.attn.qkv.weight"


def taps_of(output: str, step: int = 8) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in last_state(output, step).items() if key.startswith("taps/")}


def series_of(output: str, step: int = 8) -> dict[str, tuple]:
    return RunHistory(Path(output, "history.jsonl"), step).series()


@pytest.mark.usefixtures("one_thread", "tiny_world")
class TestRuns:
    def test_weight_0_is_no_taps_bit_for_bit(self, recipe_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
        distil(recipe_file, "on", *ON)
        distil(recipe_file, "off", *ON, "taps.weight=0")
        monkeypatch.setattr("modeling_radio.training.auxiliary.heads.plan_heads", lambda *_: ())
        distil(recipe_file, "none", *ON)
        assert_same_tensors(last_state("off"), last_state("none"))
        assert not torch.equal(last_state("off")[QKV], last_state("on")[QKV])
        assert not Path("off/checkpoints/step_00000008/taps.safetensors").exists()

    def test_losses_of_taps_are_recorded_and_add_to_the_sum(self, recipe_file: str) -> None:
        distil(recipe_file, "run", *ON, "logging.every_steps=1", "partitions.low.sizes_px=[32]")
        series = {name: values for name, (_, values) in series_of("run").items()}
        names = {"features/semantic", "summary/semantic", "features/segmenter"}
        taps = {name for name in series if name.startswith("tap_")}
        assert taps == {f"tap_{name}@{block}" for name in names for block in range(3)}
        weights = series["weight/taps"]
        assert (weights[0], weights[-1]) == (0.25, pytest.approx(0.0625))
        all_shares = [{"semantic": row["semantic"], "segmenter": row["task"]} for row in TAPS.values()]
        for step in (0, 7):
            expected = sum(series[name][step] for name in names)
            for block, shares in enumerate(all_shares):
                own = {name: shares[name.partition("/")[2]] * series[f"tap_{name}@{block}"][step] for name in names}
                expected += weights[step] * sum(own.values())
            assert series["loss"][step] == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("is_average", ["true", "false"])
    def test_nothing_of_taps_is_exported(self, recipe_file: str, is_average: str) -> None:
        final = distil(recipe_file, "run", *ON, f"ema.is_exported={is_average}")
        with safe_open(final / "model.safetensors", "pt") as file:
            keys = set(file.keys())
        assert keys == set(RadioModel.from_pretrained(final).state_dict())
        assert not [key for key in keys if "tap" in key or "@" in key]
        assert "taps" not in (final / "config.json").read_text()
        assert len(taps_of("run")) == 3 * (3 * 6)

    @pytest.mark.parametrize(
        "others", [(*REGULARIZED, "optimizer.name=muon"), (*PACKED, "student.gradient_checkpointing=true")]
    )
    def test_resume_is_exact(self, recipe_file: str, others: tuple[str, ...]) -> None:
        distil(recipe_file, "whole", *ON, *others)
        distil(recipe_file, "parts", *ON, *others, stop_at=4)
        distil(recipe_file, "parts", *ON, *others)
        assert_same_tensors(last_state("whole"), last_state("parts"))
        assert taps_of("whole")

    def test_accumulated_parts_equal_the_whole_batch(self, recipe_file: str) -> None:
        weighed = "balancing={method: adaptive, ramp_steps: 0}"
        settings = (*ON, *SPLIT_SETTINGS, "student.config.drop_path_rate=0", *PACKED, weighed)
        distil(recipe_file, "whole", *settings)
        distil(recipe_file, "parts", *settings, "partitions.low.accumulation_steps=2")
        whole, parts = last_state("whole"), last_state("parts")
        assert whole.keys() == parts.keys() > taps_of("whole").keys()
        for key in whole:
            torch.testing.assert_close(parts[key], whole[key], rtol=1e-3, atol=1e-5)

    def test_parts_at_once_equal_parts_one_after_the_other_bit_for_bit(self, recipe_file: str) -> None:
        settings = [*ON, "views.teachers=cached", "partitions.low.accumulation_steps=2"]
        distil(recipe_file, "one", *settings)
        distil(recipe_file, "two", *settings, "student.passes_at_once=2")
        assert_same_tensors(last_state("one"), last_state("two"))
        assert taps_of("one")

    def test_heads_follow_refits_of_their_targets(self, recipe_file: str) -> None:
        """With a learning rate of 0 only refits move a head; its predictions stay in the teacher's own space."""
        distil(recipe_file, "run", *ON, "optimizer={learning_rate: 1e-30}", "checkpoints={every_steps: 1, keep: 9}")
        key, own_space, heads = "taps/heads.segmenter@1.features.final.2", [], []
        for step in range(1, 9):
            weight, bias = (taps_of("run", step)[f"{key}.{part}"].double() for part in ("weight", "bias"))
            statistics = last_state("run", step)
            matrix, mean = (statistics[f"statistics/features.segmenter.{part}"].double() for part in ("matrix", "mean"))
            heads.append(weight)
            own_space.append((torch.linalg.solve(matrix, weight), torch.linalg.solve(matrix, bias) + mean))
        assert not torch.allclose(heads[0], heads[-1], atol=1e-3)
        for each in own_space[1:]:
            torch.testing.assert_close(each, own_space[0], rtol=1e-3, atol=1e-4)

    def test_a_stage_may_have_taps_of_its_own(self, recipe_file: str) -> None:
        stages = (
            "stages=[{name: one, taps: {weight: 0.25}, schedule: {num_steps: 2}},"
            " {name: two, schedule: {num_steps: 2}}, {name: three, taps: {weight: 0.5}, schedule: {num_steps: 2}}]"
        )
        final = run_recipe(load_recipe(recipe_file, [*ON, "taps.weight=0", stages]), Path("run"))
        heads = [set(taps_of(f"run/stages/{name}", 2)) for name in ("one", "two", "three")]
        assert heads[0] == heads[2] > heads[1] == set()
        assert RadioModel.from_pretrained(final).radio_model.adaptors.keys() == {"semantic", "segmenter"}
