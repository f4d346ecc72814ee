"""Taps: their blocks, their input, how far their gradients go, and runs with them."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from small_recipes import small_recipe
from tiny_distillation import PACKED, REGULARIZED, SPLIT_SETTINGS, TinyTeacher, assert_same_tensors, distil, last_state
from torch import Tensor, nn

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.training.auxiliary.heads import (
    Tap,
    TappedStudent,
    Taps,
    build_heads,
    plan_heads,
    tap_blocks,
    with_heads,
)
from modeling_radio.training.distillation.stages import run_recipe
from modeling_radio.training.distillation.tracking import RunHistory
from modeling_radio.training.recipes.recipe import Recipe, RecipeError, load_recipe
from modeling_radio.training.recipes.sections import TAP_SCHEMES
from modeling_radio.training.student.parameters import is_of_trunk, student_parameters
from modeling_radio.training.teachers.outputs import TeacherOutput
from modeling_radio.training.teachers.registry import TEACHER_KINDS


def config_of(**fields) -> RadioConfig:
    adaptors = [
        {"name": "a", "summary_dim": 5, "feature_dim": 6, "hidden_size": 8, "token_index": 0},
        {"name": "b", "summary_dim": None, "feature_dim": 7, "hidden_size": 8, "token_index": 1},
    ]
    return RadioConfig.from_preset("radio-test", num_cls_tokens=2, summary_idxs=[0], adaptors=adaptors, **fields)


def recipe_of(windows: list[int] | None = None, **taps) -> Recipe:
    partitions = [{"sizes_px": [64], "vitdet_windows": windows}, {"name": "high", "sizes_px": [96]}]
    teachers = [{"name": "a", "kind": "k", "role": "basic"}, {"name": "b", "kind": "k", "role": "task"}]
    return small_recipe(teachers=teachers, partitions=partitions, taps={"scheme": "soft", **taps})


def tapped(num_layers: int = 4, **fields) -> TappedStudent:
    model = RadioModel(config_of(num_hidden_layers=num_layers, **fields)).train()
    learner = with_heads(model, build_heads(recipe_of(depths=[0.25, 0.5, 1]), model))
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


def test_shares_of_taps_at_the_same_block_are_added_up_and_a_share_of_0_has_no_head() -> None:
    config = config_of(num_hidden_layers=6, vitdet_num_global=2)
    taps = (Tap(2, "a", 0.8 + 0.15), Tap(2, "b", 0.05 + 0.15), Tap(5, "a", 0.05), Tap(5, "b", 0.8))
    assert plan_heads(recipe_of(windows=[2]), config) == taps
    model = RadioModel(config)
    line = build_heads(recipe_of(windows=[2]), model).describe()
    assert line == "Taps: block 2: a 0.95, b 0.2; block 5: a 0.05, b 0.8."
    assert list(build_heads(recipe_of(scheme="strict"), model).heads) == ["a@1", "b@5"]
    assert with_heads(model, build_heads(recipe_of(weight=0), model)) is model


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
    assert list(outputs) == ["a", "b", "a@0", "b@0", "a@1", "b@1", "a@3", "b@3"]
    normed = torch.nn.functional.layer_norm(states[2], states[2].shape[-1:])
    head, prefix = learner.taps.heads["a@1"], learner.student.config.num_prefix_tokens
    expected = head.features(normed[:, prefix:]).transpose(1, 2).unflatten(2, (2, 3))
    torch.testing.assert_close(outputs["a@1"].features, expected)
    torch.testing.assert_close(outputs["a@1"].summary, head.summary(normed[:, 0]))
    assert outputs["b@1"].summary is None
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
    for name in ("a@0", "a@1", "b@3"):
        torch.testing.assert_close(packed[name].features, torch.cat([each[name].features[0] for each in alone]))
    torch.testing.assert_close(packed["a@1"].summary, torch.cat([each["a@1"].summary for each in alone]))


@pytest.mark.parametrize("window", ["global", 1])
@pytest.mark.parametrize("is_packed", [False, True])
def test_gradients_of_a_tap_end_at_its_block(window, is_packed: bool) -> None:
    learner = tapped(vitdet_num_global=2)  # blocks 1 and 3 are global
    inputs = {"pixel_values": images_of(2, 3, 32, 48)}
    if is_packed:
        inputs = {"pixel_values": images_of(6 + 3, 3 * 16 * 16), "image_grid_hw": torch.tensor([[2, 3], [3, 1]])}
    output = learner(**inputs, window_size=window).adaptors["a@1"]
    (output.features.square().mean() + output.summary.square().mean()).backward()
    reached = {name: p.grad for name, p in student_parameters(learner) if p.grad is not None}
    assert {name.split(".")[3] for name in reached if ".blocks." in name and is_of_trunk(name)} == {"0", "1"}
    assert {name.split(".")[2] for name in reached if not is_of_trunk(name)} == {"a@1"}
    assert "radio_model.model.patch_generator.pos_embed" in reached
    assert all(gradient.abs().max() > 0 for gradient in reached.values())


def test_windows_have_no_seams_at_taps() -> None:
    """Patches of one window affect the other, and the class token, from the first global block on."""
    student = tapped(6, vitdet_num_global=2).student.eval()  # blocks 2 and 5 are global
    assert tap_blocks(recipe_of([2], depths=[0.4, 0.9, 1]), student.config) == [2, 5, 5]
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


class DeepTeacher(TinyTeacher):
    """The tiny teacher with three blocks before its output."""

    def __init__(
        self, name: str, *, source: str | None = None, feature_dim: int, summary_dim: int | None = None
    ) -> None:
        super().__init__(name, source=source, feature_dim=feature_dim, summary_dim=summary_dim)
        self.layers = nn.ModuleList([nn.Linear(feature_dim, feature_dim) for _ in range(3)])
        for parameter in self.layers.parameters():
            parameter.data.normal_(generator=torch.Generator().manual_seed(0))

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        summary, features = super().encode(pixel_values)
        features = features.movedim(1, -1)
        for layer in self.layers:
            features = layer(features)
        return TeacherOutput(summary, features.movedim(-1, 1))

    def blocks(self) -> nn.ModuleList:
        return self.layers


ON = (
    "student.config={num_hidden_layers: 3}",
    "teachers.semantic.role=semantic",
    "teachers.segmenter.role=task",
    "taps.scheme=soft",
    "checkpoints.every_steps=8",
)
FOUR = "schedule={num_steps: 4, warmup_steps: 1}"
DEEP = ("teachers.semantic.kind=deep", "teachers.segmenter.kind=deep", "taps.targets=matching")
QKV = "student/radio_model.model.blocks.0.attn.qkv.weight"


def taps_of(output: str, step: int = 8) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in last_state(output, step).items() if key.startswith("taps/")}


def series_of(output: str, step: int = 8) -> dict[str, tuple]:
    return RunHistory(Path(output, "history.jsonl"), step).series()


@pytest.mark.usefixtures("one_thread", "tiny_world")
class TestRuns:
    def test_weight_0_is_no_taps_bit_for_bit(self, recipe_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
        distil(recipe_file, "off", *ON, "taps.weight=0")
        monkeypatch.setattr("modeling_radio.training.auxiliary.heads.plan_heads", lambda *_: ())
        distil(recipe_file, "none", *ON)
        assert_same_tensors(last_state("off"), last_state("none"))
        assert not Path("off/checkpoints/step_00000008/taps.safetensors").exists()

    def test_every_scheme_acts_in_twelve_steps_at_its_defaults(self, recipe_file: str) -> None:
        twelve = (
            "schedule={num_steps: 12, warmup_steps: 2}",
            "checkpoints.every_steps=12",
            "partitions.low.sizes_px=[32]",
        )
        weights = []
        for scheme in ("null", *TAP_SCHEMES):
            distil(recipe_file, scheme, *ON, *twelve, f"taps.scheme={scheme}")
            weights.append(last_state(scheme, 12)[QKV])
        assert len({tuple(weight.flatten().tolist()) for weight in weights}) == len(weights)

    def test_losses_of_taps_are_recorded_and_add_to_the_sum(self, recipe_file: str) -> None:
        distil(recipe_file, "run", *ON, "logging.every_steps=1", "partitions.low.sizes_px=[32]")
        series = {name: values for name, (_, values) in series_of("run").items()}
        names = {"features/semantic", "summary/semantic", "features/segmenter"}
        taps = {name for name in series if name.startswith("tap_")}
        assert taps == {f"tap_{name}@{block}" for name in names for block in range(3)}
        weights = series["weight/taps"]
        assert (weights[0], weights[-1]) == (0.25, pytest.approx(0.0625))
        all_shares = load_recipe(recipe_file, ON).tap_shares()
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

    def test_targets_at_the_matching_depth(self, recipe_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(TEACHER_KINDS, "deep", DeepTeacher)
        partition = "partitions=[{name: low, sizes_px: [32, 48], batch_size: 4, accumulation_steps: 2}]"
        settings = (*ON, *DEEP, FOUR, partition)
        distil(recipe_file, "whole", *settings)
        distil(recipe_file, "parts", *settings, stop_at=2)
        distil(recipe_file, "parts", *settings)
        whole = last_state("whole", 4)
        assert_same_tensors(whole, last_state("parts", 4))
        inner = {key.split(".")[1] for key in whole if key.startswith("statistics/inner_features.")}
        assert inner == {f"{name}@{percent}%" for name in ("semantic", "segmenter") for percent in (33, 67)}
        distil(recipe_file, "last", *settings, "taps.targets=last")
        assert not torch.equal(whole[QKV], last_state("last", 4)[QKV])
        whole, last = (series_of(run, 4) for run in ("whole", "last"))
        for tap in ("semantic@0", "segmenter@1"):
            name = f"tap_features@48px/{tap}"
            assert whole[name][1][0] != pytest.approx(last[name][1][0], rel=1e-3)
        name = "tap_features@48px/segmenter@2"  # at the end of both
        assert whole[name][1][0] == pytest.approx(last[name][1][0], rel=0.1)

    def test_impossible_targets_are_refused(self, recipe_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(RecipeError, match=r"`taps\.targets`.*`views\.teachers: cached`"):
            distil(recipe_file, "run", *ON, "taps.targets=matching", "views.teachers=cached")
        with pytest.raises(ValueError, match=r"'semantic': `taps\.targets`"):
            distil(recipe_file, "run", *ON, "taps.targets=matching")
        monkeypatch.setitem(TEACHER_KINDS, "deep", DeepTeacher)
        windows = ("student.config.vitdet_num_global=1", "partitions.low.vitdet_windows=[1]")
        with pytest.raises(RecipeError, match=r"^`taps\.depths`"):
            distil(recipe_file, "run", *ON, *DEEP, *windows)
        assert not Path("run/checkpoints").exists()

    def test_a_stage_may_have_taps_of_its_own(self, recipe_file: str) -> None:
        stages = (
            "stages=[{name: one, taps: {scheme: soft}, schedule: {num_steps: 2}},"
            " {name: two, schedule: {num_steps: 2}}, {name: three, taps: {weight: 0.5}, schedule: {num_steps: 2}}]"
        )
        final = run_recipe(load_recipe(recipe_file, [*ON, "taps.scheme=null", stages]), Path("run"))
        heads = [set(taps_of(f"run/stages/{name}", 2)) for name in ("one", "two", "three")]
        assert heads[0] == heads[2] > heads[1] == set()
        assert RadioModel.from_pretrained(final).radio_model.adaptors.keys() == {"semantic", "segmenter"}
