"""Refits of PHI-S: the targets turn, what the student says in the teachers' own spaces stays."""

from pathlib import Path
from typing import cast

import pytest
import torch
from tiny_distillation import REGULARIZED
from torch import Tensor

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.training.distillation import trainer
from modeling_radio.training.hooks import student as student_hooks
from modeling_radio.training.recipes.recipe import load_recipe
from modeling_radio.training.student.refits import rebase_heads, standardize_heads, unstandardize_heads
from modeling_radio.training.targets.phi_s import PhiS
from modeling_radio.training.targets.statistics import TeacherStatistics


CHANNELS = 12


class RefitWatch:
    """What a run's student and moving average predict in the teachers' own spaces before and after each refit."""

    def __init__(self, distiller: trainer.Distiller) -> None:
        self.distiller = distiller
        self.steps: list[int] = []
        self.turns: list[float] = []

    def install(self, patch: pytest.MonkeyPatch) -> None:
        begin_step = TeacherStatistics.begin_step

        def begin(statistics: TeacherStatistics, step: int):
            self.before = self.predict()
            return begin_step(statistics, step)

        def follow_and_compare(changes, *others) -> None:
            rebase_heads(changes, *others)
            if changes:
                self.compare()

        patch.setattr(TeacherStatistics, "begin_step", begin)
        patch.setattr(student_hooks, "rebase_heads", follow_and_compare)

    def compare(self) -> None:
        self.steps.append(self.distiller.step)
        for (standardized, own), (standardized_before, own_before) in zip(self.predict(), self.before, strict=True):
            torch.testing.assert_close(own, own_before, rtol=0, atol=1e-5)
            self.turns.append((standardized - standardized_before).abs().max().item())

    @torch.no_grad()
    def predict(self) -> list[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        images, answers = torch.rand(2, 3, 32, 48, generator=generator), []
        for model in (self.distiller.parts.model, cast(RadioModel, self.distiller.parts.average)):
            is_training = model.training
            output = model.eval()(images, window_size="global", feature_format="NCHW", return_dict=True)
            model.train(is_training)
            for name, standardizer in self.distiller.parts.statistics.standardizers().items():
                features = output.adaptors[name].features
                answers.append((features, standardizer.invert(features)))
        return answers


@pytest.mark.usefixtures("one_thread", "tiny_world")
@pytest.mark.parametrize("optimizer", ["lamb", "muon"])
def test_refits_leave_predictions_where_they_are(
    recipe_file: str, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    settings = [*REGULARIZED, f"optimizer.name={optimizer}", "student.config.use_feature_normalizer=true"]
    distiller = trainer.Distiller(load_recipe(recipe_file, settings), Path("run"))
    watch = RefitWatch(distiller)
    watch.install(monkeypatch)
    final = distiller.run()
    assert watch.steps == [1, 2, 4, 6]
    assert max(watch.turns) > 0.1, "no refit turned anything: the test shows nothing"
    assert final is not None
    exported = RadioModel.from_pretrained(final).radio_model.adaptor("segmenter").last_dense_linear
    average = cast(RadioModel, distiller.parts.average).radio_model.adaptor("segmenter").last_dense_linear
    distiller.parts.statistics.standardizers()["segmenter"].fold_inverse_into_linear(average)
    torch.testing.assert_close(exported.weight, average.weight, rtol=0, atol=0)


def head_and_standardizer(upsample: int) -> tuple[RadioModel, PhiS]:
    """Return a model with one dense head, and a standardizer that has seen a first batch."""
    torch.manual_seed(0)
    adaptor = {"name": "teacher", "feature_dim": CHANNELS, "upsample_factor": upsample, "hidden_size": 16}
    model = RadioModel(RadioConfig.from_preset("radio-test", adaptors=[adaptor]))
    standardizer = PhiS(CHANNELS)
    look_at(standardizer, seed=1)
    standardizer.refit()
    return model, standardizer


def look_at(standardizer: PhiS, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(CHANNELS, CHANNELS, generator=generator)
    tokens = torch.randn(4, 4, 4, CHANNELS, generator=generator) @ mixing + 2
    standardizer.update(tokens.movedim(-1, 1))
    standardizer.end_step()


@pytest.mark.parametrize("upsample", [1, 2])
def test_running_gradient_is_the_one_of_the_new_target(upsample: int) -> None:
    """The gradient of a squared error after the refit is the turned gradient before it, at weight and bias."""
    model, standardizer = head_and_standardizer(upsample)
    linear = model.radio_model.adaptor("teacher").last_dense_linear
    images = torch.rand(2, 3, 32, 32)
    target = torch.randn(2, CHANNELS, 2 * upsample, 2 * upsample)

    def gradients() -> list[Tensor]:
        predicted = model(images, feature_format="NCHW").adaptors["teacher"].features
        loss = (predicted - standardizer.standardize(target)).square().mean()
        return list(torch.autograd.grad(loss, [linear.weight, linear.bias]))

    model.eval()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    before = gradients()
    for parameter, gradient in zip((linear.weight, linear.bias), before, strict=True):
        optimizer.state[parameter] = {"step": torch.tensor(3.0), "exp_avg": gradient.clone()}
        optimizer.state[parameter]["exp_avg_sq"] = gradient.square()
    look_at(standardizer, seed=2)
    change = standardizer.refit()
    rebase_heads({"teacher": change}, [model], optimizer)
    after = gradients()
    assert (after[0] - before[0]).abs().max() > 0.1 * before[0].abs().max()
    for parameter, gradient, old in zip((linear.weight, linear.bias), after, before, strict=True):
        state = optimizer.state[parameter]
        torch.testing.assert_close(state["exp_avg"], gradient, rtol=1e-4, atol=1e-6)
        parts = old.square().double().unflatten(0, (-1, CHANNELS))
        expected = torch.einsum("ij,nj...->ni...", change.matrix.square(), parts).flatten(0, 1)
        torch.testing.assert_close(state["exp_avg_sq"], expected.float())
        assert state["exp_avg_sq"].min() >= 0
        assert state["step"] == 3


@torch.no_grad()
def test_heads_are_standardized_and_back() -> None:
    model, standardizer = head_and_standardizer(1)
    images = torch.rand(2, 3, 32, 32)

    def predict() -> Tensor:
        return model.eval()(images, feature_format="NCHW").adaptors["teacher"].features

    before = predict()
    standardize_heads(model, ["teacher"], {"teacher": standardizer, "other": standardizer})
    torch.testing.assert_close(predict(), standardizer.standardize(before), rtol=1e-4, atol=1e-5)
    unstandardize_heads(model, {"teacher": standardizer})
    torch.testing.assert_close(predict(), before, rtol=1e-4, atol=1e-4)
