import pytest
import torch

from training.evaluation.metrics.dense import (
    ProbeTraining,
    fit_dense_probe,
    log_depth_loss,
    mean_iou,
    segmentation_loss,
    upsampled,
)


def _blocks(num_images: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks of 8 px blocks of three classes, and 4x4 features that tell the class with little noise."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(3, (num_images, 4, 4), generator=generator)
    features = torch.nn.functional.one_hot(classes, 3).movedim(-1, 1).float()
    features = features + 0.1 * torch.randn(features.shape, generator=generator)
    return features, classes.repeat_interleave(8, 1).repeat_interleave(8, 2)


def _fit(features, targets, num_outputs=3, loss=segmentation_loss, **training):
    read = lambda rows: (features[rows], targets[rows])  # noqa: E731
    return fit_dense_probe(read, len(features), num_outputs, loss, ProbeTraining(**training))


def _miou(train, test) -> float:
    probe = _fit(*train, num_steps=60)
    with torch.no_grad():
        return mean_iou(upsampled(probe(test[0]), test[1].shape[1:]).argmax(1), test[1], 3)


def test_probe_reads_linear_features_and_not_noise():
    train, test = _blocks(24, seed=0), _blocks(12, seed=1)
    noise = torch.randn(train[0].shape, generator=torch.Generator().manual_seed(2))
    assert _miou(train, test) > 0.75
    assert _miou((noise, train[1]), (noise[:12], test[1])) < 0.4


def test_probe_reads_depth():
    generator = torch.Generator().manual_seed(0)
    logs = torch.rand(16, 1, 4, 4, generator=generator)
    depth = upsampled(logs, (16, 16))[:, 0].exp()
    depth[:, :2] = 0  # unknown
    probe = _fit(
        torch.cat([logs, torch.randn(16, 2, 4, 4, generator=generator)], 1), depth, 1, log_depth_loss, num_steps=300
    )
    with torch.no_grad():
        answer = upsampled(probe(torch.cat([logs, torch.zeros(16, 2, 4, 4)], 1)), (16, 16))
    assert log_depth_loss(answer, depth) < 0.08


def test_probe_depends_on_its_seed_alone():
    features, masks = _blocks(8, seed=0)
    weights = []
    for global_seed, seed in [(1, 0), (2, 0), (2, 7)]:
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        weights.append(_fit(features, masks, num_steps=5, seed=seed)[1].weight)
        assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_the_probe_and_its_batches_are_on_the_device_that_is_asked_for():
    features, masks = _blocks(8, seed=0)
    seen = []

    def loss(logits, targets):
        seen.append((logits.device.type, targets.device.type))
        return segmentation_loss(logits, targets)

    read = lambda rows: (features[rows], masks[rows])  # noqa: E731
    probe = fit_dense_probe(read, 8, 3, loss, ProbeTraining(num_steps=1), device="meta")
    assert seen == [("meta", "meta")]
    assert {each.device.type for each in probe.state_dict().values()} == {"meta"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_probe_of_the_gpu_is_that_of_the_cpu():
    features, masks = _blocks(24, seed=0)
    read = lambda rows: (features[rows], masks[rows])  # noqa: E731
    training = ProbeTraining(num_steps=60)
    probes = [fit_dense_probe(read, 24, 3, segmentation_loss, training, device=name) for name in ("cpu", "cuda")]
    assert probes[1][1].weight.device.type == "cuda"
    with torch.no_grad():
        answers = [probe(features.to(probe[1].weight.device)).cpu() for probe in probes]
    assert (answers[0].argmax(1) == answers[1].argmax(1)).float().mean() > 0.98


def test_schedules_change_the_probe():
    features, masks = _blocks(8, seed=0)
    options = ({}, {"schedule": "linear"}, {"warmup_steps": 3}, {"learning_rate": 1e-3})
    weights = [_fit(features, masks, num_steps=6, **each)[1].weight for each in options]
    for number, one in enumerate(weights):
        assert all(not torch.equal(one, other) for other in weights[:number])


def test_pixels_that_do_not_count():
    logits = torch.randn(2, 3, 4, 4)
    masks = torch.randint(0, 3, (2, 4, 4))
    expected = torch.nn.functional.cross_entropy(logits, masks)
    torch.testing.assert_close(segmentation_loss(logits, masks), expected)
    assert segmentation_loss(logits, torch.full((2, 4, 4), 255)) == 0
    assert log_depth_loss(logits[:, :1], torch.zeros(2, 4, 4)) == pytest.approx(0)
