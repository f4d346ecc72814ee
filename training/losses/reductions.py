"""From one number for each image to one for a batch: how much an image counts, by the number of its valid tokens."""

from collections.abc import Sequence

from torch import Tensor


REDUCTIONS = {"images": 0.0, "sqrt_tokens": 0.5, "tokens": 1.0}
"""The power of its number of valid tokens that an image counts with: all alike, by the square root, or by tokens.

"images" is what C-RADIOv4's Eq 1 says, a mean over each image's overlap; the other two are those of NVIDIA's TAO
toolkit (Apache-2.0): `per_ex_weight_alpha`, and its mean over all valid tokens of all ranks.
"""


def reduce_images(losses: Tensor, tokens: Tensor, all_tokens: Sequence[int], reduction: str) -> Tensor:
    """Return the mean of an image's loss, weighted by its number of valid tokens.

    Weights are relative to the mean of the whole batch that the images are a part of, as if all its tokens were valid.
    So parts need to hear of no other, and the batch's result is the sum of theirs, weighted by their images.

    Args:
        losses: `(images,)`, each the mean over the image's valid tokens.
        tokens: `(images,)`, numbers of valid tokens, in patches of the student.
        all_tokens: Patches, valid or not, of all images that are trained together, over all ranks and accumulated
            parts.
        reduction: A key of `REDUCTIONS`.

    Returns:
        Scalar; 0 if nothing is valid.
    """
    power = REDUCTIONS[reduction]
    if power == 0:
        return losses.mean()
    mean_weight = sum(count**power for count in all_tokens) / len(all_tokens)
    return (losses * tokens.to(losses.dtype).pow(power)).mean() / mean_weight
