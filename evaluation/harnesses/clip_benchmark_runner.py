"""`clip-benchmark` on zero-shot folders: its own command, with a model type of ours.

    python -m modeling_radio.evaluation.harnesses.clip_benchmark_runner eval --model_type radio --model FOLDER
        --pretrained - --task zeroshot_classification --dataset wds/mine --dataset_root DIR --output result.json

`wds/NAME` are webdatasets in its layout: `test/0.tar` with images and `.cls`, `test/nshards.txt`, `classnames.txt`
and `zeroshot_classification_templates.txt`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from modeling_radio import RadioForZeroShotImageClassification, RadioImageProcessor
from modeling_radio.tokenizer import open_tokenizer


MODEL_TYPE = "radio"


class OpenClipLike(nn.Module):
    """The interface of models in `clip-benchmark`.

    Args:
        model: Model with a text tower, in eval mode.
    """

    def __init__(self, model: RadioForZeroShotImageClassification) -> None:
        super().__init__()
        self.model = model

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """Return vectors of images, `(batch, text_dim)`."""
        return self.model.get_image_features(pixel_values, return_dict=True).pooler_output

    def encode_text(self, input_ids: Tensor) -> Tensor:
        """Return vectors of tokenized texts, `(num_texts, text_dim)`."""
        return self.model.get_text_features(input_ids, return_dict=True).pooler_output


Loaded = tuple[OpenClipLike, Callable[[Image.Image], Tensor], Callable[[Sequence[str]], Tensor]]


def load_zero_shot(model_name: str, pretrained: str, cache_dir: str | None, device: str | torch.device) -> Loaded:
    """Return model, preprocessing and tokenizer of a zero-shot folder, as `clip-benchmark` loads its own models.

    Args:
        model_name: The folder.
        pretrained: Unused: the weights are in the folder.
        cache_dir: Unused.
        device: Device of the model.
    """
    folder = Path(model_name)
    model = RadioForZeroShotImageClassification.from_pretrained(folder).eval().to(device)  # pyrefly: ignore[bad-argument-type]
    processor = RadioImageProcessor.from_pretrained(folder)
    tokenizer = open_tokenizer(folder)

    def transform(image: Image.Image) -> Tensor:
        return processor(image, return_tensors="pt")["pixel_values"][0]

    def tokenize(texts: Sequence[str]) -> Tensor:
        return model.tokenize(tokenizer, texts)

    return OpenClipLike(model), transform, tokenize


def register() -> None:
    """Add the model type `radio` to `clip-benchmark`, and an accuracy that runs with numpy 2.4.

    Raises:
        ImportError: If `clip-benchmark` is not installed.
    """
    from clip_benchmark import models
    from clip_benchmark.metrics import zeroshot_classification

    if MODEL_TYPE not in models.TYPE2FUNC:
        models.TYPE2FUNC[MODEL_TYPE] = load_zero_shot
        models.MODEL_TYPES.append(MODEL_TYPE)
    # Its own (1.6.2) converts an array of one number to a float, which is an error since numpy 2.4.
    zeroshot_classification.accuracy = _accuracy


def _accuracy(output: Tensor, target: Tensor, topk: Sequence[int] = (1,)) -> list[float]:
    is_right = output.topk(max(topk), dim=1).indices == target[:, None]
    return [is_right[:, :k].any(dim=1).double().mean().item() for k in topk]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command of `clip-benchmark`; return its exit status."""
    register()
    from clip_benchmark import cli

    sys.argv[1:] = sys.argv[1:] if arguments is None else list(arguments)
    return cli.main() or 0


if __name__ == "__main__":
    sys.exit(main())
