"""The validation images of a source that has no split of its own."""

from collections.abc import Hashable, Sequence

import torch


def split_images(classes: Sequence[Sequence[Hashable]], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Return the indices of training and of validation images, both ascending.

    Every class gets its share of validation images, at least one, and keeps at least one for training: a class with one
    image is not in the validation images. Images without a class are shared out as if they were a class.

    Args:
        classes: Classes of each image, `(num_images,)`.
        share: Share of the images to hold out, in (0, 1).
        seed: Seed of the choice.

    Raises:
        ValueError: If no class has two images.

    References:
        Sechidis et al., 2011, On the stratification of multi-label data: the rarest class is served first.
    """
    images: dict[Hashable, list[int]] = {}
    own = [list(dict.fromkeys(several)) or [None] for several in classes]
    for index in torch.randperm(len(own), generator=torch.Generator().manual_seed(seed)).tolist():
        for name in own[index]:
            images.setdefault(name, []).append(index)
    in_training = {name: len(found) for name, found in images.items()}
    held_out: set[int] = set()
    for name, found in sorted(images.items(), key=lambda item: len(item[1])):
        wanted = max(round(share * len(found)), 1)
        for index in found:
            if len(found) - in_training[name] >= wanted:
                break
            if index not in held_out and all(in_training[each] > 1 for each in own[index]):
                held_out.add(index)
                for each in own[index]:
                    in_training[each] -= 1
    if not held_out:
        raise ValueError(f"{len(own)} images, no two of one class: none is left for validation.")
    return [index for index in range(len(own)) if index not in held_out], sorted(held_out)
