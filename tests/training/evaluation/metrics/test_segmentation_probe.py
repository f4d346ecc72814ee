import pytest
import torch

from training.evaluation.metrics.segmentation_probe import fit_segmentation_probe, segmentation_probe_miou


def _blocks(num_images: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks of 8 px blocks of three classes, and 4x4 features that tell the class with little noise."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(3, (num_images, 4, 4), generator=generator)
    features = torch.nn.functional.one_hot(classes, 3).movedim(-1, 1).float()
    features = features + 0.1 * torch.randn(features.shape, generator=generator)
    return features, classes.repeat_interleave(8, 1).repeat_interleave(8, 2)


def test_probe_reads_linear_features_and_not_noise():
    train, test = _blocks(24, seed=0), _blocks(12, seed=1)
    readable = segmentation_probe_miou(*train, *test, 3, num_steps=60)
    noise = torch.randn(train[0].shape, generator=torch.Generator().manual_seed(2))
    unreadable = segmentation_probe_miou(noise, train[1], noise[:12], test[1], 3, num_steps=60)
    assert readable > 0.75
    assert unreadable < 0.4


def test_probe_depends_on_its_seed_alone():
    features, masks = _blocks(8, seed=0)
    weights = []
    for global_seed, seed in [(1, 0), (2, 0), (2, 7)]:
        torch.manual_seed(global_seed)
        weights.append(fit_segmentation_probe(features, masks, 3, num_steps=5, seed=seed)[1].weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_probe_leaves_the_global_random_state_alone():
    features, masks = _blocks(4, seed=0)
    before = torch.get_rng_state()
    fit_segmentation_probe(features, masks, 3, num_steps=2)
    assert torch.equal(before, torch.get_rng_state())


def test_bad_input_is_named():
    features, masks = _blocks(4, seed=0)
    with pytest.raises(ValueError, match="`masks` must be one for each of the 4 feature maps, got 3"):
        fit_segmentation_probe(features, masks[:3], 3)
    with pytest.raises(ValueError, match="`masks` must have classes below 2, got 2"):
        fit_segmentation_probe(features, masks, 2)
