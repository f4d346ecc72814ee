"""Methods of NVIDIA's names that few models are asked for; a plain model opens this file when they are called."""

import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .configuration_radio import RadioConfig
from .hub_radio import import_sibling
from .layers_radio import RadioInputConditioner, is_compiling_or_tracing


class OutsideConditioner(RadioInputConditioner):
    """Stands where pixels come normalized: it changes nothing, and warns if its first images are not normalized.

    Mean and deviation stay, so that a folder saved from here normalizes inside, like every other.
    """

    is_new = True

    def forward(self, pixel_values: Tensor) -> Tensor:
        if self.is_new and not is_compiling_or_tracing():
            self.is_new = not look_for_raw_pixels(pixel_values)
        return pixel_values


def look_for_raw_pixels(pixel_values: Tensor) -> bool:
    """Warn if all pixels lie in [0, 1], where those of normalized images do not; return whether they tell anything.

    Pixels that are all equal, with which programs warm up, do not.
    """
    low, high = (bound.item() for bound in pixel_values.detach()[..., ::4, ::4].aminmax())
    if 0 <= low < high <= 1:
        warnings.warn(
            f"`pixel_values` lie in [{low:.2f}, {high:.2f}] and look not normalized. Since "
            "`make_preprocessor_external()` was called, the model does not normalize them: call it as "
            "`model(conditioner(pixel_values))`, with the conditioner that was returned.",
            stacklevel=2,
        )
    return low < high


def conditioners(
    inside: RadioInputConditioner, config: RadioConfig
) -> tuple[RadioInputConditioner, RadioInputConditioner]:
    """Return what normalizes pixels for the caller of a model, and what stands in its place inside."""
    outside = OutsideConditioner(config).to(inside.norm_mean)
    outside.load_state_dict(inside.state_dict())
    return inside, outside


def windows_of(network: Any, argument: str) -> Any:
    """Return the trunk whose windows can be set.

    Args:
        network: The `radio_model`.
        argument: Argument of a call that other networks have instead, for the message.

    Raises:
        ValueError: If the network is not an E-RADIO.
    """
    if network.config.eradio is None:
        raise ValueError(
            f"Windows can be set only for E-RADIO. Call this model with {argument}, or set `config.vitdet_window_size`."
        )
    return network.model


class AdaptorTexts:
    """Texts in the space of an adaptor, for `model.adaptors[name].tokenizer` and `.encode_text`.

    The folder's tokenizer and its text tower are opened with the first text.

    Args:
        model: As `from_pretrained` opened it.
    """

    _processor: Any = None

    def __init__(self, model: Any) -> None:
        self.model = model

    def give_to(self, adaptor: Any) -> None:
        """Give an adaptor the two methods; they are no part of its weights."""
        adaptor.tokenizer, adaptor.encode_text = self.tokenizer, self.encode_text

    def tokenizer(self, texts: str | Sequence[str]) -> Tensor:
        """Return tokens of texts, padded and cut as the tower was trained, `(num_texts, length)`.

        Raises:
            LookupError: If the model was not opened from a folder with a text tower.
        """
        if self._processor is None:
            if self.model.source is None:
                raise LookupError(
                    "`tokenizer` needs the folder of a text tower, and this model was not opened from one."
                )
            name, options = self.model.source
            self._processor = import_sibling("processing_radio").RadioProcessor.from_pretrained(name, **options)
        return self._processor(text=[texts] if isinstance(texts, str) else list(texts), return_tensors="pt")[
            "input_ids"
        ]

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Return embeddings of tokens `(num_texts, length)`, `(num_texts, summary_dim)`; on request unit vectors."""
        embeds = self.model.get_text_features(text, return_dict=True).pooler_output
        return embeds / embeds.norm(dim=-1, keepdim=True) if normalize else embeds
