"""Text side of zero-shot tasks: the teachers' text towers, built from configuration, and prompt templates."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import CLIPModel, PreTrainedConfig, PreTrainedModel, Siglip2Model, SiglipModel
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection
from transformers.models.siglip.configuration_siglip import SiglipTextConfig
from transformers.models.siglip.modeling_siglip import SiglipTextModel
from transformers.models.siglip2.configuration_siglip2 import Siglip2TextConfig
from transformers.models.siglip2.modeling_siglip2 import Siglip2TextModel
from transformers.utils.generic import is_flash_attention_requested

from .configuration_radio import RadioConfig
from .messages_radio import check_choice


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
    """

    config_class: type[PreTrainedConfig]
    model_class: type[PreTrainedModel]
    width_field: str
    use_sigmoid: bool


TEXT_TOWERS = {
    "siglip_text_model": TextTowerKind(SiglipTextConfig, SiglipTextModel, "projection_size", use_sigmoid=True),
    "siglip2_text_model": TextTowerKind(Siglip2TextConfig, Siglip2TextModel, "projection_size", use_sigmoid=True),
    "clip_text_model": TextTowerKind(CLIPTextConfig, CLIPTextModelWithProjection, "projection_dim", use_sigmoid=False),
}
"""By `model_type` of the configuration. SigLIP2's published models of fixed resolution are of the first kind."""


def text_tower_kind(config: RadioConfig) -> TextTowerKind:
    """Return the kind of `config.text_tower`.

    Raises:
        ValueError: If there is none, or it is of no known kind.
    """
    if config.text_tower is None:
        raise ValueError(
            "`text_tower` of the configuration must be that of a text model, got None. Make a folder with one by "
            "`python -m conversion.from_nvidia ... --text-tower ID`, or a model by "
            "`RadioForZeroShotImageClassification.from_parts`."
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


def take_text_tower(dual_encoder: SiglipModel | Siglip2Model | CLIPModel) -> Any:
    """Return the text tower with the projection into the common space."""
    if isinstance(dual_encoder, (SiglipModel, Siglip2Model)):
        return dual_encoder.text_model
    if not isinstance(dual_encoder, CLIPModel):
        raise ValueError(
            f"`dual_encoder` must be transformers' SiglipModel, Siglip2Model or CLIPModel, got "
            f"{type(dual_encoder).__name__}."
        )
    config: Any = copy.deepcopy(dual_encoder.config.text_config)
    config.projection_dim = dual_encoder.config.projection_dim
    with torch.device("meta"):
        tower = CLIPTextModelWithProjection(config)
    tower.text_model, tower.text_projection = dual_encoder.text_model, dual_encoder.text_projection
    return tower
