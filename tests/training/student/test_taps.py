"""Heads on the trunk's way: where they are, what they read, how far their gradients go, and what is left of them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from small_recipes import small_recipe
from tiny_distillation import (
    PACKED,
    REGULARIZED,
    SPLIT_SETTINGS,
    TinyTeacher,
    assert_same_tensors,
    distil,
    last_state,
)
from torch import Tensor, nn

import training.teachers.registry
from modeling_radio import RadioConfig, RadioModel
from training.distillation.stages import run_recipe
from training.distillation.tracking import RunHistory
from training.recipe import Recipe, RecipeError, load_recipe
from training.recipe_sections import TAP_SCHEMES
from training.student.intermediate import Tap, TappedStudent, Taps, build_taps, plan_taps, tap_blocks, with_taps
from training.student.parameters import is_of_trunk, student_parameters
from training.teachers.outputs import TeacherOutput


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
    learner = with_taps(model, build_taps(recipe_of(depths=[0.25, 0.5, 1]), model))
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
def test_taps_are_on_global_blocks_wherever_a_step_may_have_windows(fields, free, snapped) -> None:
    config = config_of(**fields)
    assert tap_blocks(recipe_of(), config) == free
    assert tap_blocks(recipe_of(windows=[2]), config) == snapped
    assert all(config.is_global_block(block) for block in snapped)


def test_taps_on_the_same_block_are_added_up() -> None:
    config = config_of(num_hidden_layers=6, vitdet_num_global=2)
    assert plan_taps(recipe_of(windows=[2]), config) == [
        Tap(2, "a", 0.8 + 0.15),
        Tap(2, "b", 0.05 + 0.15),
        Tap(5, "a", 0.05),
        Tap(5, "b", 0.8),
    ]
    assert plan_taps(recipe_of(weight=0), config) == []
    taps = build_taps(recipe_of(windows=[2]), RadioModel(config))
    assert taps is not None
    assert taps.describe() == "Taps: block 2: a 0.95, b 0.2; block 5: a 0.05, b 0.8."


def test_who_gets_no_share_has_no_head() -> None:
    heads = build_taps(recipe_of(scheme="strict"), RadioModel(config_of(num_hidden_layers=3)))
    assert heads is not None
    assert list(heads.heads) == ["a@0", "b@2"]


def test_without_taps_the_student_is_what_is_run() -> None:
    model = RadioModel(config_of(num_hidden_layers=2))
    assert with_taps(model, build_taps(recipe_of(weight=0), model)) is model


def test_a_head_depends_on_the_seed_and_on_its_place_alone() -> None:
    model = RadioModel(config_of(num_hidden_layers=6))
    before = torch.get_rng_state()
    few, many = (
        Taps(taps, model, 0).state_dict() for taps in ([Tap(1, "a", 1.0)], plan_taps(recipe_of(), model.config))
    )
    other = Taps([Tap(1, "a", 1.0)], model, 1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert few.keys() < many.keys()
    assert all(torch.equal(few[key], many[key]) for key in few)
    key = "heads.a@1.features.fc1.weight"
    assert not torch.equal(few[key], other[key])
    assert few[key].std() == pytest.approx(model.config.initializer_range, rel=0.2)


def test_a_tap_reads_the_normed_tokens_of_its_block() -> None:
    learner, pixel_values = tapped(), images_of(2, 3, 32, 48)
    learner.eval()
    answers = learner(pixel_values, feature_format="NCHW", window_size="global").adaptors
    states = learner.student(pixel_values, output_hidden_states=True, window_size="global").hidden_states
    assert list(answers) == ["a", "b", "a@0", "b@0", "a@1", "b@1", "a@3", "b@3"]
    normed = torch.nn.functional.layer_norm(states[2], states[2].shape[-1:])
    head = learner.taps.heads["a@1"]
    prefix = learner.student.config.num_prefix_tokens
    expected = head.features(normed[:, prefix:]).transpose(1, 2).unflatten(2, (2, 3))
    torch.testing.assert_close(answers["a@1"].features, expected)
    torch.testing.assert_close(answers["a@1"].summary, head.summary(normed[:, 0]))
    assert answers["b@1"].summary is None
    assert answers["b@3"].features.shape == (2, 7, 2, 3)
    plain = learner.student(pixel_values, feature_format="NCHW", window_size="global").adaptors
    torch.testing.assert_close(answers["a"].features, plain["a"].features, rtol=0, atol=0)


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
    answer = learner(**inputs, window_size=window).adaptors["a@1"]
    (answer.features.square().mean() + answer.summary.square().mean()).backward()
    reached = {name for name, parameter in student_parameters(learner) if parameter.grad is not None}
    blocks = {name.split(".")[3] for name in reached if ".blocks." in name and is_of_trunk(name)}
    assert blocks == {"0", "1"}
    assert {name.split(".")[2] for name in reached if not is_of_trunk(name)} == {"a@1"}
    assert "radio_model.model.patch_generator.pos_embed" in reached
    for name, parameter in student_parameters(learner):
        if name in reached:
            assert parameter.grad.abs().max() > 0, name


def test_windows_have_no_seams_at_taps() -> None:
    """A patch of one window is heard of in the other, at the class token too: not so before the first global block."""
    learner = tapped(6, vitdet_num_global=2)  # blocks 2 and 5 are global
    taps = Taps([Tap(block, "a", 1.0) for block in (1, 2)], learner.student, 0)
    assert tap_blocks(recipe_of([2], depths=[0.4, 0.9, 1]), learner.student.config) == [2, 5, 5]
    learner = TappedStudent(learner.student.eval(), taps)
    pixel_values = images_of(1, 3, 32, 64).requires_grad_()  # two windows of 2 x 2 patches
    answers = learner(pixel_values, feature_format="NCHW", window_size=2).adaptors

    def heard(output: Tensor) -> float:
        (gradient,) = torch.autograd.grad(output.sum(), pixel_values, retain_graph=True)
        return float(gradient[..., 32:].abs().sum())

    left = {name: heard(answers[name].features[..., :2]) for name in ("a@1", "a@2")}
    tokens = {name: heard(answers[name].summary) for name in ("a@1", "a@2")}
    assert left["a@1"] == tokens["a@1"] == 0
    assert left["a@2"] > 0
    assert tokens["a@2"] > 0


class DeepTeacher(TinyTeacher):
    """The tiny teacher with three blocks before its answer."""

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
TWELVE = ("schedule={num_steps: 12, warmup_steps: 2}", "checkpoints.every_steps=12", "partitions.low.sizes_px=[32]")
FOUR = "schedule={num_steps: 4, warmup_steps: 1}"
QKV = "student/radio_model.model.blocks.{}.attn.qkv.weight"


def taps_of(output: str, step: int = 8) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in last_state(output, step).items() if key.startswith("taps/")}


@pytest.mark.usefixtures("one_thread", "tiny_world")
class TestRuns:
    def test_weight_0_is_no_taps_bit_for_bit(self, recipe_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
        distil(recipe_file, "off", *ON, "taps.weight=0")
        monkeypatch.setattr("training.distillation.build.build_taps", lambda *_: None)
        distil(recipe_file, "none", *ON)
        assert_same_tensors(last_state("off"), last_state("none"))
        assert not Path("off/checkpoints/step_00000008/taps.safetensors").exists()

    def test_every_scheme_acts_in_twelve_steps_at_its_defaults(self, recipe_file: str) -> None:
        distil(recipe_file, "off", *ON, *TWELVE, "taps.scheme=null")
        states = [last_state("off", 12)]
        for scheme in TAP_SCHEMES:
            distil(recipe_file, scheme, *ON, *TWELVE, f"taps.scheme={scheme}")
            states.append(last_state(scheme, 12))
        for number, state in enumerate(states):
            for other in states[:number]:
                assert not torch.equal(state[QKV.format(0)], other[QKV.format(0)])

    def test_losses_of_taps_are_recorded_and_add_to_the_sum(self, recipe_file: str) -> None:
        distil(recipe_file, "run", *ON, "logging.every_steps=1", "partitions.low.sizes_px=[32]")
        series = {name: values for name, (_, values) in RunHistory(Path("run/history.jsonl"), 8).series().items()}
        names = {"features/semantic", "summary/semantic", "features/segmenter"}
        taps = {name for name in series if name.startswith("tap_")}
        assert taps == {f"tap_{name}@{block}" for name in names for block in range(3)}
        assert series["weight/taps"][0] == 0.25
        assert series["weight/taps"][-1] == pytest.approx(0.0625)
        recipe = load_recipe(recipe_file, ON)
        for step in (0, 7):
            expected = sum(series[name][step] for name in names)
            for block, shares in enumerate(recipe.tap_shares()):
                for name in names:
                    own = series[f"tap_{name}@{block}"][step]
                    expected += series["weight/taps"][step] * shares[name.partition("/")[2]] * own
            assert series["loss"][step] == pytest.approx(expected, rel=1e-5)

    def test_nothing_of_taps_is_exported(self, recipe_file: str) -> None:
        for is_exported in ("true", "false"):
            final = distil(recipe_file, f"run-{is_exported}", *ON, f"ema.is_exported={is_exported}")
            assert final is not None
            with safe_open(final / "model.safetensors", "pt") as file:
                keys = set(file.keys())
            model = RadioModel.from_pretrained(final)
            assert keys == set(model.state_dict())
            assert not [key for key in keys if "tap" in key or "@" in key]
            assert "taps" not in (final / "config.json").read_text()
        assert len(taps_of("run-true")) == 3 * (3 * 6)

    @pytest.mark.parametrize(
        "others",
        [
            (*REGULARIZED, "optimizer.name=muon"),
            (*PACKED, "student.gradient_checkpointing=true"),
            ("optimizer.trunk_frozen_steps=3", "views.teachers=cached"),
        ],
        ids=["regularized", "packed", "frozen"],
    )
    def test_resume_is_exact(self, recipe_file: str, others: tuple[str, ...]) -> None:
        distil(recipe_file, "whole", *ON, *others)
        distil(recipe_file, "parts", *ON, *others, stop_at=4)
        distil(recipe_file, "parts", *ON, *others)
        assert_same_tensors(last_state("whole"), last_state("parts"))
        assert taps_of("whole")

    @pytest.mark.parametrize("others", [PACKED, ("balancing={method: teacher_dropping, ramp_steps: 0}",)])
    def test_accumulated_parts_equal_the_whole_batch(self, recipe_file: str, others: tuple[str, ...]) -> None:
        settings = (*ON, *SPLIT_SETTINGS, "student.config.drop_path_rate=0", *others)
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
        """A learning rate of 0 leaves refits alone to move a head, which keep what it says in the teacher's space."""
        settings = (*ON, "optimizer={learning_rate: 1e-30}", "checkpoints={every_steps: 1, keep: 9}")
        distil(recipe_file, "run", *settings)
        key = "taps/heads.segmenter@1.features.final.2"
        answers, heads = [], []
        for step in range(1, 9):
            weight, bias = (taps_of("run", step)[f"{key}.{part}"].double() for part in ("weight", "bias"))
            statistics = last_state("run", step)
            matrix, mean = (statistics[f"statistics/features.segmenter.{part}"].double() for part in ("matrix", "mean"))
            heads.append(weight)
            answers.append((torch.linalg.solve(matrix, weight), torch.linalg.solve(matrix, bias) + mean))
        assert not torch.allclose(heads[0], heads[-1], atol=1e-3)
        for weight, bias in answers[1:]:
            torch.testing.assert_close(weight, answers[0][0], rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(bias, answers[0][1], rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("method", ["adaptive", "teacher_dropping"])
    def test_methods_that_look_into_passes_take_taps(self, recipe_file: str, method: str) -> None:
        settings = (
            *ON,
            FOUR,
            f"balancing.method={method}",
            "teachers.segmenter.options.summary_dim=8",
            "taps.scheme=strict",
        )
        distil(recipe_file, "on", *settings)
        assert all(torch.isfinite(tensor).all() for tensor in last_state("on", 4).values())
        distil(recipe_file, "off", *settings, "taps.weight=0")
        assert not torch.equal(last_state("on", 4)[QKV.format(0)], last_state("off", 4)[QKV.format(0)])

    def test_targets_at_the_matching_depth(
        self, recipe_file: str, write_source: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(training.teachers.registry.TEACHER_KINDS, "deep", DeepTeacher)
        settings = (*ON, "teachers.semantic.kind=deep", "teachers.segmenter.kind=deep", "taps.targets=matching", FOUR)
        partition = "partitions=[{name: low, sizes_px: [32, 48], batch_size: 4, accumulation_steps: 2}]"
        folder = write_source("folder", 40)
        shown = f"logging={{picture_source: {folder}, metrics_every_steps: 4, picture_every_steps: 4, every_steps: 2}}"
        distil(recipe_file, "whole", *settings, partition, shown)
        assert Path("whole/pictures/step-4.png").is_file()
        distil(recipe_file, "parts", *settings, partition, stop_at=2)
        distil(recipe_file, "parts", *settings, partition)
        whole = last_state("whole", 4)
        assert_same_tensors(whole, last_state("parts", 4))
        inner = {key.split(".")[1] for key in whole if key.startswith("statistics/inner_features.")}
        assert inner == {f"{name}@{percent}%" for name in ("semantic", "segmenter") for percent in (33, 67)}
        distil(recipe_file, "last", *settings, partition, "taps.targets=last")
        assert not torch.equal(whole[QKV.format(0)], last_state("last", 4)[QKV.format(0)])
        series = [RunHistory(Path(run, "history.jsonl"), 4).series() for run in ("whole", "last")]
        for name in ("tap_features@48px/semantic@0", "tap_features@48px/segmenter@1"):
            assert series[0][name][1][0] != pytest.approx(series[1][name][1][0], rel=1e-3)
        name = "tap_features@48px/segmenter@2"  # at the end of both
        assert series[0][name][1][0] == pytest.approx(series[1][name][1][0], rel=0.1)

    def test_targets_that_cannot_be_had_are_refused(self, recipe_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
        matching = (*ON, "taps.targets=matching")
        with pytest.raises(RecipeError, match=r"`taps\.targets` must be 'last' with `views.teachers: cached`"):
            distil(recipe_file, "run", *matching, "views.teachers=cached")
        with pytest.raises(ValueError, match=r"^Teacher 'semantic': `taps\.targets` must be 'last'"):
            distil(recipe_file, "run", *matching)
        monkeypatch.setitem(training.teachers.registry.TEACHER_KINDS, "deep", DeepTeacher)
        deep = (*matching, "teachers.semantic.kind=deep", "teachers.segmenter.kind=deep")
        with pytest.raises(RecipeError, match=r"^`taps\.depths` must be such that each is a block of its own"):
            distil(recipe_file, "run", *deep, "student.config.vitdet_num_global=1", "partitions.low.vitdet_windows=[1]")
        assert not Path("run/checkpoints").exists()

    def test_a_stage_may_have_taps_of_its_own(self, recipe_file: str) -> None:
        stages = (
            "stages=[{name: one, taps: {scheme: soft}, schedule: {num_steps: 2}},"
            " {name: two, schedule: {num_steps: 2}}, {name: three, taps: {weight: 0.5}, schedule: {num_steps: 2}}]"
        )
        final = run_recipe(load_recipe(recipe_file, [*ON, "taps.scheme=null", stages]), Path("run"))
        heads = [set(taps_of(f"run/stages/{name}", 2)) for name in ("one", "two", "three")]
        assert heads[0]
        assert not heads[1]
        assert heads[2] == heads[0]  # of the same names, and new
        assert final is not None
        assert RadioModel.from_pretrained(final).radio_model.adaptors.keys() == {"semantic", "segmenter"}

    def test_teachers_of_one_partition_only(self, recipe_file: str) -> None:
        partitions = (
            "partitions=[{name: low, sizes_px: [32], batch_size: 2, teachers: [semantic]},"
            " {name: high, sizes_px: [64], batch_size: 2}]"
        )
        distil(recipe_file, "run", *ON, partitions)
        series = RunHistory(Path("run/history.jsonl"), 8).series()
        assert "tap_features@32px/semantic@1" in series
        assert "tap_features@64px/segmenter@1" in series
        assert "tap_features@32px/segmenter@1" not in series
