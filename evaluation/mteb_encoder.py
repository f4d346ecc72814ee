"""Encoder of `mteb` from any model of the evaluations, for images and, with a text tower, texts.

    import mteb
    from modeling_radio.evaluation.mteb_encoder import mteb_encoder
    from modeling_radio.evaluation.models.radio import RadioFeatures

    encoder = mteb_encoder(RadioFeatures.open(Path("runs/mine/final")))
    mteb.evaluate(encoder, mteb.get_tasks(tasks=["CIFAR10Clustering"]))

`mteb` has a class of its own for NVIDIA's repositories; it unpacks their pair of outputs, and so also opens folders of
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
from modeling_radio.metrics.feature_model import FeatureModel, TextModel


def mteb_encoder(model: FeatureModel, *, num_parameters: int | None = None) -> Any:
    """Return an encoder for `mteb.evaluate`: summaries of images and vectors of texts, compared by cosine.

    Args:
        model: Model; images get its summaries, or those of its text adaptor if it has texts.
        num_parameters: Number of parameters in the results.

    Raises:
        ImportError: If `mteb` is not installed.
    """
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction

    has_texts = isinstance(model, TextModel)

    class Encoder(AbsEncoder):
        """The interface of encoders in `mteb`."""

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
    """Return unit vectors; for an image with a text their sum, as the CLIPs of `mteb` do for composed queries."""
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
    """Return a vector for each image, `(num_images, dim)`, float32 on the CPU.

    It is the summary, or that of the text adaptor if the model has texts; without a summary the mean of the features.

    Args:
        model: Model in eval mode.
        images: PIL images of any mode, or tensors `(channels, height, width)`: uint8, or floats in [0, 1].
    """
    adaptor = model.text_adaptor if isinstance(model, TextModel) else None
    pixels = [model.preprocess(_rgb(image)) for image in images]
    same_size = len({each.shape for each in pixels}) == 1
    batches = [torch.stack(pixels)] if same_size else [each[None] for each in pixels]
    vectors = []
    for batch in batches:
        encoding = model.encode(batch.to(model.device), [] if adaptor is None else [adaptor])
        output = encoding if adaptor is None else encoding.adaptors[adaptor]
        vectors.append(output.features.mean(dim=(2, 3)) if output.summary is None else output.summary)
    return torch.cat(vectors).float().cpu()


def _rgb(image: Any) -> Tensor:
    """Return an image as uint8 RGB, `(3, height, width)`."""
    if not isinstance(image, Tensor):
        return pil_to_tensor(to_eight_bits(image))
    pixels = (image * 255).round().to(torch.uint8) if image.is_floating_point() else image
    return pixels.expand(3, -1, -1) if len(pixels) == 1 else pixels[:3]
