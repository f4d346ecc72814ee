import pytest
import torch
from tiny_upsampling import tiny_answers, tiny_trainer

from foundation.interruption import TrainingDivergedError
from training.upsampling.measurement import METHODS, measure, summarize


def test_training_lowers_the_loss_and_finds_the_pattern(tmp_path):
    trainer = tiny_trainer(tmp_path)
    losses = trainer.run(tmp_path)
    assert len(losses) == 60
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])
    truth = trainer.answers.teacher.pattern
    truth = (truth - truth.mean((1, 2), keepdim=True)).flatten()
    found = trainer.upsampler.centered_pattern().detach().flatten() * trainer.upsampler.scale
    assert torch.cosine_similarity(truth, found, dim=0) > 0.75


def test_views_of_other_images_agree_better_and_the_map_is_another(tmp_path):
    trainer = tiny_trainer(tmp_path, num_images=64)
    trainer.run(tmp_path)
    answers = tiny_answers(num_images=80)
    answers.images.images = answers.images.images[64:]  # those before are the ones that it was trained on
    example = answers.example([12, 13], [1, 2])
    with torch.no_grad():
        bilinear, _, tiles, sharp = (method(trainer.upsampler, example) for method in METHODS.values())
    for other in (bilinear, tiles):
        assert (sharp - other).square().mean() > 0.05 * other.var()
    summary = summarize(measure(trainer.upsampler, answers, num_images=16, num_views=3))
    for other in ("bilinear", "tiles"):
        assert summary["FeatSharp"]["to_larger"] < summary[other]["to_larger"]
    for other in summary.keys() - {"FeatSharp"}:
        assert summary["FeatSharp"]["views"] < 0.95 * summary[other]["views"]
        assert summary[other]["worse_on_views"] > 12


@pytest.mark.parametrize("largest", [1.0, 0.5])
def test_small_views_leave_out_what_the_teacher_says_of_the_whole(largest, tmp_path):
    trainer = tiny_trainer(tmp_path, largest_view=largest)
    trainer.fit_statistics()
    example = trainer.answers.example([0, 1], [1, 2])
    assert all((view.side == 0.5) == (largest == 0.5) for views in example.views[1:] for view in views)
    other = example._replace(targets=torch.cat([example.targets[:1] + 1, example.targets[1:]]))
    assert (trainer.loss(other) == trainer.loss(example)) == (largest == 0.5)


def test_a_run_that_was_stopped_ends_the_same(tmp_path):
    whole, first = (tiny_trainer(tmp_path / name, num_steps=10) for name in ("whole", "first"))
    whole.run(tmp_path / "whole")
    first.fit_statistics()
    for _ in range(6):
        first.train_step()
    first.save(tmp_path / "first" / "training.pt")
    second = tiny_trainer(tmp_path / "first", num_steps=10)
    assert len(second.run(tmp_path / "first")) == 4
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_state_of_other_settings_is_refused(tmp_path):
    tiny_trainer(tmp_path, num_steps=2).run(tmp_path)
    other = tiny_trainer(tmp_path, num_steps=2, learning_rate=1e-3)
    with pytest.raises(
        ValueError, match=r"training.pt' is of a run with other settings \(learning_rate: 0.01 -> 0.001\)"
    ):
        other.run(tmp_path)
    assert tiny_trainer(tmp_path, num_steps=2, save_every=7, memory_gb=1).run(tmp_path) == []


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    trainer = tiny_trainer(tmp_path)
    trainer.upsampler.scale.fill_(float("nan"))
    with pytest.raises(TrainingDivergedError, match=r"loss of step 0 is not finite. Lower `learning_rate`, 0.01"):
        trainer.train_step()


def test_a_gradient_that_is_not_finite_ends_the_run_and_moves_no_weight(tmp_path):
    trainer = tiny_trainer(tmp_path)
    trainer.fit_statistics()
    trainer.upsampler.pattern.register_hook(lambda gradient: gradient / 0)
    before = {name: value.clone() for name, value in trainer.state_dict().items()}
    with pytest.raises(TrainingDivergedError, match=r"gradient of step 0 is not finite"):
        trainer.train_step()
    assert all(torch.equal(value, before[name]) for name, value in trainer.state_dict().items())
