import torch

from modeling_radio.core.seeds import derive_seed, make_generator


def test_numbers_of_running_checkpoints_stay_the_same():
    assert derive_seed(0) == 4761921975702974394
    assert derive_seed(0, "flip", "low", 3) == 1212689203864778886
    assert make_generator(1, "a").initial_seed() == 475944544596965755


def test_labels_part_and_repeat_streams():
    labels = [("flip", "low", 3), ("flip", "low", 4), ("flip", "high", 3), ("flip", "low3"), ("fliplow", 3)]
    seeds = [derive_seed(0, *each) for each in labels] + [derive_seed(1, *labels[0])]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert torch.equal(torch.rand(4, generator=make_generator(5, "a")), torch.rand(4, generator=make_generator(5, "a")))
