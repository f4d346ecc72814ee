"""Any model of the evaluations as an encoder of `mteb`, of images and, with a text tower, of texts.

    import mteb
    from training.evaluation.harnesses.mteb_encoder import mteb_encoder
    from training.evaluation.models.radio import open_radio

    encoder = mteb_encoder(open_radio(Path("runs/mine/final")))
    mteb.evaluate(encoder, mteb.get_tasks(tasks=["CIFAR10Clustering"]))

`mteb` has a class of its own for NVIDIA's repositories; it unpacks the pair that these return, and so opens folders of
ours that were made with `--nvidia-outputs`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import pil_to_tensor

from modeling_radio.image_processing_radio import to_eight_bits
from training.evaluation.models.base import FeatureModel, TextModel


def mteb_encoder(model: FeatureModel, *, num_parameters: int | None = None) -> Any:
    """Return the model as an encoder for `mteb.evaluate`: summaries of images, vectors of texts, compared by cosine.

    Args:
        model: Whose summaries, or those of its text adaptor where it has texts, stand for images.
        num_parameters: For the record.

    Raises:
        ImportError: If `mteb` is not installed.
    """
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction

    has_texts = isinstance(model, TextModel)

    class Encoder(AbsEncoder):
        """What `mteb` asks of a model."""

        def __init__(self) -> None:
            settings = {
                "name": f"local/{model.name.strip('/').replace('/', '_')}",  # mteb wants ORG/NAME
                "revision": "local",
                "modalities": ["image", "text"] if has_texts else ["image"],
                "n_parameters": num_parameters,
                "framework": ["PyTorch"],
                "similarity_fn_name": ScoringFunction.COSINE,
            }
            self.mteb_model_meta = ModelMeta.create_empty(settings)

        def encode(self, inputs: Iterable[dict[str, Any]], **_: Any) -> Tensor:
            """Return a vector for each input of batches that hold images, texts, or both, `(num_inputs, dim)`."""
            return torch.cat([_encode_batch(model, batch) for batch in inputs])

    return Encoder()


def _encode_batch(model: FeatureModel, batch: dict[str, Any]) -> Tensor:
    """Return unit vectors; of an image with a text their sum, as the CLIPs of `mteb` answer composed queries."""
    vectors = []
    if batch.get("image"):
        vectors.append(F.normalize(image_vectors(model, batch["image"]), dim=1))
    if batch.get("text"):
        if not isinstance(model, TextModel):
            raise ValueError(f"{model.name!r} must have a text tower for texts. Choose tasks of images alone.")
        vectors.append(model.embed_texts(batch["text"]))
    return F.normalize(torch.stack(vectors).sum(0), dim=1)


@torch.no_grad()
def image_vectors(model: FeatureModel, images: Sequence[Any]) -> Tensor:
    """Return what stands for images, `(num_images, dim)`, float32 on the CPU.

    The summary, that of the text adaptor where the model has texts; the features' mean where there is no summary.

    Args:
        model: In eval mode.
        images: PIL images of any mode, or tensors `(channels, height, width)`: uint8, or floats in [0, 1].
    """
    adaptor = model.text_adaptor if isinstance(model, TextModel) else None
    pixels = [model.preprocess(_rgb(image)) for image in images]
    same_size = len({each.shape for each in pixels}) == 1
    batches = [torch.stack(pixels)] if same_size else [each[None] for each in pixels]
    vectors = []
    for batch in batches:
        encoding = model.encode(batch.to(model.device), [] if adaptor is None else [adaptor])
        answer = encoding if adaptor is None else encoding.adaptors[adaptor]
        vectors.append(answer.features.mean(dim=(2, 3)) if answer.summary is None else answer.summary)
    return torch.cat(vectors).float().cpu()


def _rgb(image: Any) -> Tensor:
    """Return an image as uint8 RGB, `(3, height, width)`."""
    if not isinstance(image, Tensor):
        return pil_to_tensor(to_eight_bits(image))
    pixels = (image * 255).round().to(torch.uint8) if image.is_floating_point() else image
    return pixels.expand(3, -1, -1) if len(pixels) == 1 else pixels[:3]
