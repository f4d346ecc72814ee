"""Zero-shot classification, also for teachers that have a classifier head instead of a text tower.

ConSE (Norouzi et al., 2014, https://arxiv.org/abs/1312.5650) places an image in the space of a sentence
encoder as the mean of the names of its likeliest classes. An adaptor's summary passes through its teacher's
own classifier first, just as RADIO's SigLIP2 adaptor is compared with the texts of SigLIP2's own tower.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def conse_embeddings(class_logits: Tensor, class_name_embeddings: Tensor, *, top_k: int) -> Tensor:
    """Embed images in text space by the names of their likeliest classes.

    Args:
        class_logits: The classifier's answer, `(num_images, num_classes)`.
        class_name_embeddings: Sentence embeddings of the class names, `(num_classes, text_dim)`.
        top_k: Classes that contribute.

    Returns:
        Unit vectors, `(num_images, text_dim)`.
    """
    probabilities, classes = class_logits.softmax(dim=1).topk(top_k, dim=1)
    return F.normalize(torch.einsum("nk,nkd->nd", probabilities, class_name_embeddings[classes]), dim=1)


def centered(embeddings: Tensor, mean: Tensor) -> Tensor:
    """Return unit vectors of `embeddings`, `(num_texts, text_dim)`, about `mean`, `(text_dim,)`.

    A prompt such as "a photo of a ..." adds one common direction to all names, which would make all alike.
    """
    return F.normalize(embeddings - mean, dim=1)


def zero_shot_predictions(image_embeddings: Tensor, label_embeddings: Tensor) -> Tensor:
    """Return the label whose embedding is nearest to each image's, `(num_images,)`.

    Args:
        image_embeddings: `(num_images, text_dim)`.
        label_embeddings: `(num_labels, text_dim)`.
    """
    similarity = F.normalize(image_embeddings, dim=1) @ F.normalize(label_embeddings, dim=1).T
    return similarity.argmax(dim=1)
