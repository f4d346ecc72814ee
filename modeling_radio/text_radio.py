"""Text side of zero-shot tasks: the teachers' text towers, built from configuration, and prompt templates."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPModel, PreTrainedConfig, PreTrainedModel, Siglip2Model, SiglipModel
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection
from transformers.models.siglip.configuration_siglip import SiglipTextConfig
from transformers.models.siglip.modeling_siglip import SiglipTextModel
from transformers.models.siglip2.configuration_siglip2 import Siglip2TextConfig
from transformers.models.siglip2.modeling_siglip2 import Siglip2TextModel
from transformers.utils.generic import is_flash_attention_requested

from .adaptors_config_radio import RadioAdaptorConfig
from .configuration_radio import RadioConfig
from .messages_radio import check_choice
from .sentences_radio import SentenceTower, SentenceTowerConfig


PLAIN_TEMPLATES = ("{}",)
"""The class name alone."""

SIMPLE_TEMPLATES = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
"""The seven of OpenAI's templates that score nearly as well as all 80 ("itap": I took a picture).

https://github.com/openai/CLIP/blob/main/notebooks/Prompt_Engineering_for_ImageNet.ipynb (MIT)
"""

_QUALITIES = ("bad", "low resolution", "cropped", "bright", "dark", "close-up", "black and white", "pixelated")
_QUALITIES += ("jpeg corrupted", "blurry", "good")
_TRAITS = ("hard to see", "clean", "dirty", "cool", "large", "nice", "weird", "small")
_WORKS = ("a sculpture", "a rendering", "graffiti", "a tattoo", "a drawing", "a painting", "a doodle", "a sketch")
_WORKS += ("a rendition", "art", "itap", "a photo")
_MATERIALS = ("embroidered", "plastic", "origami", "toy", "cartoon", "plushie")

OPENAI_TEMPLATES = (
    *(f"a {quality} photo of {article} {{}}." for quality in _QUALITIES for article in ("a", "the")),
    *(f"a photo of {article} {trait} {{}}." for trait in _TRAITS for article in ("a", "the")),
    *(f"{work} of {article} {{}}." for work in _WORKS for article in ("a", "the")),
    *(f"{article} {material} {{}}." for material in _MATERIALS for article in ("a", "the")),
    *("a {} in a video game.", "the {} in a video game.", "a photo of many {}.", "a photo of one {}."),
    *("a photo of my {}.", "itap of my {}."),
)
"""OpenAI's 80 templates for ImageNet, whose embeddings are averaged."""


@dataclass(frozen=True)
class TextTowerKind:
    """What there is to know of one kind of text tower.

    Attributes:
        config_class: Class of its configuration.
        model_class: Class of the tower.
        width_field: Where its configuration has the width of the embeddings.
        use_sigmoid: Each text for itself (SigLIP: sigmoid, with a bias) instead of one of all (CLIP: softmax). SigLIP's
            towers read the last position, so that texts must be padded to their full length.
        family: What the names of its teachers' adaptors have in them; `None` where any adaptor may be the one.
    """

    config_class: type[PreTrainedConfig]
    model_class: type[PreTrainedModel]
    width_field: str
    use_sigmoid: bool
    family: str | None


TEXT_TOWERS = {
    "siglip_text_model": TextTowerKind(SiglipTextConfig, SiglipTextModel, "projection_size", True, "siglip"),
    "siglip2_text_model": TextTowerKind(Siglip2TextConfig, Siglip2TextModel, "projection_size", True, "siglip"),
    "clip_text_model": TextTowerKind(CLIPTextConfig, CLIPTextModelWithProjection, "projection_dim", False, "clip"),
    "sentence_encoder": TextTowerKind(SentenceTowerConfig, SentenceTower, "projection_dim", False, None),
}
"""By `model_type` of the configuration. SigLIP2's published models of fixed resolution are of the first kind."""


class MissingTextTowerError(LookupError):
    """A folder without texts was opened for them.

    No `ValueError`: at one of these transformers' pipelines go on with the native backbone, and stop for want of a
    tokenizer, with words about sentencepiece.
    """


def text_tower_kind(config: RadioConfig) -> TextTowerKind:
    """Return the kind of `config.text_tower`.

    Raises:
        MissingTextTowerError: If there is none.
        ValueError: If it is of no known kind.
    """
    if config.text_tower is None:
        raise MissingTextTowerError(
            "`text_tower` of the configuration must be that of a text model, got None. Make a folder with one by "
            "`python -m conversion.from_nvidia ... --text-tower ID`, of the demo's student by "
            "`python -m training.demo_kit.add_words`, or a model by `RadioForZeroShotImageClassification.from_parts`."
        )
    model_type = config.text_tower.get("model_type")
    check_choice("text_tower.model_type", model_type, TEXT_TOWERS)
    return TEXT_TOWERS[str(model_type)]


def text_tower_config(config: RadioConfig) -> Any:
    """Return `config.text_tower` as transformers' configuration; errors as of `text_tower_kind`."""
    return text_tower_kind(config).config_class.from_dict(config.text_tower or {})


def tower_attention(kind: TextTowerKind, implementation: str) -> str:
    """Return the attention implementation of a tower: the backbone's, or sdpa where the tower lacks that."""
    is_flash = is_flash_attention_requested(requested_attention_implementation=implementation)
    lacks_flash = is_flash and not kind.model_class._supports_flash_attn
    lacks_flex = implementation == "flex_attention" and not kind.model_class._supports_flex_attn
    return "sdpa" if lacks_flash or lacks_flex else implementation


def fill_templates(class_name: str, templates: Sequence[str]) -> list[str]:
    """Return one prompt for each template.

    Raises:
        ValueError: If there is no template, or one does not have the placeholder `{}` exactly once.
    """
    if not templates:
        raise ValueError("`templates` must have at least one, got none. Give '{}' for the class name alone.")
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"`templates` must have the placeholder {{}} exactly once, got {template!r}.")
    return [template.replace("{}", class_name) for template in templates]


TextSource = SiglipModel | Siglip2Model | CLIPModel | SentenceTower
"""Whose texts: a teacher with both towers, or a sentence encoder with a map into an adaptor's space."""


def take_text_tower(source: TextSource) -> Any:
    """Return the text tower with the projection into the common space."""
    if isinstance(source, (SiglipModel, Siglip2Model)):
        return source.text_model
    if isinstance(source, SentenceTower):
        return source
    if not isinstance(source, CLIPModel):
        raise ValueError(
            "`text_source` must be transformers' SiglipModel, Siglip2Model or CLIPModel, or a SentenceTower, got "
            f"{type(source).__name__}."
        )
    config: Any = copy.deepcopy(source.config.text_config)
    config.projection_dim = source.config.projection_dim
    with torch.device("meta"):
        tower = CLIPTextModelWithProjection(config)
    tower.text_model, tower.text_projection = source.text_model, source.text_projection
    return tower


def take_logit_scale(source: TextSource) -> Tensor:
    """Return the logarithm of what cosines are multiplied by, a scalar."""
    if isinstance(source, SentenceTower):
        return torch.tensor(source.config.logit_scale_init_value)
    return source.logit_scale.detach().reshape(())


def check_text_adaptor(config: RadioConfig, width: int) -> RadioAdaptorConfig:
    """Return the adaptor of the text tower's teacher.

    Raises:
        ValueError: If none is named, or it is not as wide as the texts.
    """
    if config.text_adaptor is None:
        raise ValueError(f"`text_adaptor` of the configuration must name an adaptor, got None. {_widths(config)}")
    adaptor = config.adaptor(config.text_adaptor, argument="text_adaptor")
    if adaptor.summary_dim != width:
        raise ValueError(
            f"`summary_dim` of adaptor {adaptor.name!r} must be {width}, the width of the text tower's embeddings, got "
            f"{adaptor.summary_dim}. Take the text tower of its teacher. {_widths(config)}"
        )
    return adaptor


def find_text_adaptor(config: RadioConfig) -> str:
    """Return the one adaptor of the text tower's family and width.

    Raises:
        ValueError: If there is none, or more than one.
    """
    kind = text_tower_kind(config)
    width = text_tower_config(config).to_dict()[kind.width_field]
    fitting = [
        adaptor.name
        for adaptor in config.adaptor_configs
        if adaptor.summary_dim == width
        and (kind.family is None or kind.family in adaptor.name)
        and (kind.family != "clip" or "siglip" not in adaptor.name)
    ]
    if len(fitting) != 1:
        model = "model" if kind.family is None else f"{kind.family} model"
        raise ValueError(
            f"`text_adaptor` must name the adaptor of the text tower's teacher, a {model} with embeddings {width} "
            f"wide, got None, and {fitting or 'no adaptor'} would fit. {_widths(config)}"
        )
    return fitting[0]


def _widths(config: RadioConfig) -> str:
    widths = ", ".join(f"{adaptor.name} ({adaptor.summary_dim})" for adaptor in config.adaptor_configs)
    return f"Adaptors and their `summary_dim`: {widths or 'none'}."
