"""Zero-shot tasks: an adaptor's summary or patches are compared with texts from its teacher's text tower.

The configuration describes the text tower: that of SigLIP, SigLIP2 or CLIP, or a sentence encoder: a text model of
transformers with mean pooling and a linear layer.
"""

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, CLIPModel, PreTrainedConfig, PreTrainedModel, Siglip2Model, SiglipModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, SemanticSegmenterOutput
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection, image_text_contrastive_loss
from transformers.models.siglip.configuration_siglip import SiglipTextConfig
from transformers.models.siglip.modeling_siglip import SiglipTextModel
from transformers.models.siglip2.configuration_siglip2 import Siglip2TextConfig
from transformers.models.siglip2.modeling_siglip2 import Siglip2TextModel
from transformers.processing_utils import Unpack
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils.generic import TransformersKwargs, can_return_tuple, is_flash_attention_requested

from .checks_radio import Resolution, check_choice, own_names
from .configuration_radio import RadioAdaptorConfig, RadioConfig
from .hub_radio import import_sibling
from .inputs_radio import StatesWanted, WindowSize, check_call_arguments, check_images, check_pack
from .layers_radio import ImagePack
from .library_config_radio import library_config
from .modeling_radio import ImageFeatures, RadioModel, build_network
from .outputs_radio import NetworkOutput, RadioZeroShotOutput, to_map
from .radseg_radio import (
    DENOISING,
    LEFT_OUT,
    SCALING,
    SLIDING,
    Scra,
    aggregate,
    check_denoising,
    check_scaling,
    check_sliding,
    choose_scra,
    encode_recursively,
    find_unlikely,
    slide,
    to_probabilities,
)
from .texts_radio import clean_text, clean_tokens


CLIP_LOGIT_SCALE = 2.6592
"""Logarithm of the factor on cosines, as in transformers' `CLIPConfig`: a temperature of 0.07."""


class SentenceTowerConfig(PreTrainedConfig):
    """Configuration of `SentenceTower`.

    Attributes:
        encoder: Configuration of the text model, of a type that transformers itself has; it runs no remote code.
        projection_dim: Width of the embeddings.
        max_position_embeddings: Longest text in tokens.
        logit_scale_init_value: Logarithm of the factor on cosines of images and texts.
    """

    model_type = "sentence_encoder"
    sub_configs = {"encoder": AutoConfig}  # pyrefly: ignore[bad-override]
    has_no_defaults_at_init = True  # older versions of transformers otherwise build one without an encoder to compare

    encoder: dict[str, Any] | PreTrainedConfig | None = None
    projection_dim: int = 512
    max_position_embeddings: int = 512
    logit_scale_init_value: float = CLIP_LOGIT_SCALE

    def __post_init__(self, **kwargs: Any) -> None:
        values: Any = self.encoder
        if not isinstance(values, PreTrainedConfig):
            model_type = values.get("model_type") if isinstance(values, dict) else None
            if model_type not in CONFIG_MAPPING:
                raise ValueError(
                    "`text_tower.encoder` must be the configuration of a text model of transformers, with its "
                    f"`model_type`, got {model_type if isinstance(values, dict) else values!r}. Take config.json of "
                    "the sentence encoder."
                )
            self.encoder = library_config(model_type, {key: values[key] for key in values if key != "model_type"})
        super().__post_init__(**kwargs)


class SentenceTower(PreTrainedModel):
    """Encodes sentences into the space of an image adaptor; see `forward`.

    It averages the encoder's last hidden states over the tokens, makes the mean a unit vector, as sentence-transformers
    does, and applies a linear map that was learned from pairs of both spaces. The map is on the side of the texts, so
    images are compared with them as with those of any other tower. Such a map also leads to fewer texts that are near
    all images than a map from images to texts does (https://arxiv.org/abs/1507.00825).
    """

    config_class = SentenceTowerConfig
    main_input_name = "input_ids"
    input_modalities = ["text"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: SentenceTowerConfig) -> None:
        super().__init__(config)
        encoder: Any = config.encoder
        # The encoder's own configuration may name another type, but the whole model has that of `from_pretrained`.
        self.encoder = AutoModel.from_config(encoder, dtype=torch.get_default_dtype())
        self.projection = nn.Linear(encoder.hidden_size, config.projection_dim)
        self.post_init()

    @classmethod
    def from_parts(
        cls, encoder: PreTrainedModel, projection: nn.Linear, *, max_length: int, logit_scale: float = CLIP_LOGIT_SCALE
    ) -> "SentenceTower":
        """Join a text model and a linear layer; weights are shared, not copied.

        Args:
            encoder: As `AutoModel` opens it.
            projection: Maps its hidden states into the space of an adaptor's summary.
            max_length: Longest text in tokens.
            logit_scale: As `logit_scale_init_value`.

        Raises:
            ValueError: If the layer does not take the encoder's hidden states.
        """
        width: int = encoder.config.hidden_size
        if projection.in_features != width:
            raise ValueError(
                f"`projection` must take {width} numbers, the width of the encoder, got {projection.in_features}."
            )
        config = SentenceTowerConfig(
            encoder=encoder.config,
            projection_dim=projection.out_features,
            max_position_embeddings=max_length,
            logit_scale_init_value=logit_scale,
        )
        with torch.device("meta"):
            tower = cls(config)
        tower.encoder, tower.projection = encoder, projection
        return tower

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        output_hidden_states: Any = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """Encode texts.

        Args:
            input_ids: Tokens, `(num_texts, length)`.
            attention_mask: 1 on tokens, 0 on padding; `None` masks the encoder's padding token.
            position_ids: Positions of the tokens, `(num_texts, length)`; `None` numbers them in order.
            output_hidden_states: Also return the encoder's hidden states.
            output_attentions: Also return the encoder's attention weights.
            return_dict: Ignored: the output always has names.

        Returns:
            `pooler_output` `(num_texts, projection_dim)`, not normalized, and the encoder's own outputs.
        """
        if attention_mask is None:
            padding = self.encoder.config.pad_token_id
            attention_mask = torch.ones_like(input_ids) if padding is None else (input_ids != padding).long()
        positions = {} if position_ids is None else {"position_ids": position_ids}
        output = self.encoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
            **positions,
        )
        states = output.last_hidden_state
        is_token = attention_mask[..., None].to(states.dtype)
        mean = (states * is_token).sum(dim=1) / is_token.sum(dim=1).clamp(min=1)
        return BaseModelOutputWithPooling(
            last_hidden_state=states,
            pooler_output=self.projection(F.normalize(mean, dim=-1)),
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )


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
    """One kind of text tower.

    Attributes:
        config_class: Class of its configuration.
        model_class: Class of the tower.
        width_field: Field of its configuration with the width of the embeddings.
        use_sigmoid: Whether each text has a probability of its own (SigLIP: sigmoid, with a bias) or those of all texts
            sum to 1 (CLIP: softmax). SigLIP's towers read the last position, so texts must be padded to full length.
        family: Word in the names of its teachers' adaptors; `None` if any adaptor may fit.
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
    """The folder has no text tower.

    This is no `ValueError`: after one of those, transformers' pipelines try the native backbone, find no tokenizer, and
    fail with a message about sentencepiece.
    """


def text_tower_kind(config: RadioConfig) -> TextTowerKind:
    """Return the kind of `config.text_tower`.

    Raises:
        MissingTextTowerError: If the model has no text tower.
        ValueError: If its kind is unknown.
    """
    if config.text_tower is None:
        raise MissingTextTowerError(
            "`text_tower` of the configuration must be that of a text model, got None. Make a folder with one by "
            "`radio convert ... --text-tower ID`, of the demo's student by "
            "`radio add-words`, or a model by `RadioForZeroShotImageClassification.from_parts`."
        )
    model_type = config.text_tower.get("model_type")
    check_choice("text_tower.model_type", model_type, TEXT_TOWERS)
    return TEXT_TOWERS[str(model_type)]


def text_tower_config(config: RadioConfig) -> Any:
    """Return `config.text_tower` as transformers' configuration; raises the errors of `text_tower_kind`."""
    return text_tower_kind(config).config_class.from_dict(config.text_tower or {})


def tower_attention(kind: TextTowerKind, implementation: str) -> str:
    """Return the attention implementation of a tower: the backbone's, or sdpa if the tower does not support that."""
    is_flash = is_flash_attention_requested(requested_attention_implementation=implementation)
    lacks_flash = is_flash and not kind.model_class._supports_flash_attn
    lacks_flex = implementation == "flex_attention" and not kind.model_class._supports_flex_attn
    return "sdpa" if lacks_flash or lacks_flex else implementation


def build_text_tower(config: RadioConfig) -> Any:
    """Return the tower of `config.text_tower` with new weights; raises the errors of `text_tower_kind`."""
    kind, tower_config = text_tower_kind(config), text_tower_config(config)
    tower_config._attn_implementation = tower_attention(kind, str(config._attn_implementation))
    return kind.model_class(tower_config)


def fill_templates(class_name: str, templates: Sequence[str]) -> list[str]:
    """Return one prompt for each template.

    Raises:
        ValueError: If there is no template, or one does not hold the placeholder `{}` exactly once.
    """
    if not templates:
        raise ValueError("`templates` must have at least one, got none. Give '{}' for the class name alone.")
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"`templates` must have the placeholder {{}} exactly once, got {template!r}.")
    return [template.replace("{}", class_name) for template in templates]


TextSource = SiglipModel | Siglip2Model | CLIPModel | SentenceTower
"""Source of a text tower: a teacher with both towers, or a sentence encoder with a map into an adaptor's space."""


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


def check_text_adaptor(config: RadioConfig, width: int) -> RadioAdaptorConfig:
    """Return the adaptor of the text tower's teacher.

    Raises:
        ValueError: If the configuration names no text adaptor, or its summary is not as wide as the texts.
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
    """Return the name of the only adaptor of the text tower's family and width.

    Raises:
        ValueError: If no adaptor fits, or several do.
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


DenseSource = Literal["summary_head", "features"]

# Initial values. CLIP has a temperature of 0.07 (https://arxiv.org/abs/2103.00020, section 2.5). SigLIP has one of 0.1
# and a bias of -10, since most pairs do not match (https://arxiv.org/abs/2303.15343, section 3.2).
_SIGLIP_LOGIT_SCALE = 2.3026
_SIGLIP_LOGIT_BIAS = -10.0


class TextFeatures(nn.Module):
    """Methods of models with a text tower, for vectors of texts."""

    config: Any
    text_tower: Any
    _warned_of_text_length = False

    @property
    def use_sigmoid(self) -> bool:
        """True if each text has a probability of its own (SigLIP), False if those of all texts sum to 1 (CLIP)."""
        return text_tower_kind(self.config).use_sigmoid

    @property
    def max_text_length(self) -> int:
        """Longest text in tokens; a SigLIP tower needs all texts padded to it."""
        return self.text_tower.config.max_position_embeddings

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        output_hidden_states: StatesWanted = None,
        output_attentions: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode texts; `pooler_output` is `(num_texts, text_dim)`, not normalized. Arguments as in `forward`."""
        check_call_arguments(self, kwargs, "get_text_features")
        self._check_text_length(input_ids.shape[-1])
        config = self.config
        output = self.text_tower(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            output_hidden_states=config.output_hidden_states if output_hidden_states is None else output_hidden_states,
            output_attentions=config.output_attentions if output_attentions is None else output_attentions,
            return_dict=True,
        )
        embeds = (
            output.text_embeds if isinstance(self.text_tower, CLIPTextModelWithProjection) else output.pooler_output
        )
        return BaseModelOutputWithPooling(
            last_hidden_state=output.last_hidden_state,
            pooler_output=embeds,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    def encode_text(self, texts: Tensor | Mapping[str, Tensor], normalize: bool = False) -> Tensor:
        """Return embeddings of tokenized texts, `(num_texts, text_dim)`: NVIDIA's name for `get_text_features`.

        Args:
            texts: Tokens `(num_texts, length)`, or the tokenizer's output, whose mask is not read.
            normalize: Return unit vectors.
        """
        input_ids = texts if isinstance(texts, Tensor) else texts["input_ids"]
        embeds = cast(Tensor, self.get_text_features(input_ids, return_dict=True).pooler_output)
        return _normalize(embeds) if normalize else embeds

    def _check_text_length(self, length: int) -> None:
        longest = self.max_text_length
        if length > longest:
            raise ValueError(f"`input_ids` must have at most {longest} tokens, got {length}. Use `truncation=True`.")
        if self.use_sigmoid and length < longest and not self._warned_of_text_length:
            self._warned_of_text_length = True
            warnings.warn(
                f"`input_ids` has {length} tokens, but SigLIP's text towers were trained on texts padded to {longest}, "
                f"and read the last token: tokenize with `padding='max_length', max_length={longest}`.",
                stacklevel=3,
            )


class RadioTextTower(TextFeatures, PreTrainedModel):
    """The text tower of a folder alone, for models of the folder that are built without it; see `text_tower_of`."""

    config_class = RadioConfig
    main_input_name = "input_ids"
    input_modalities = ["text"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _keys_to_ignore_on_load_unexpected = [r"^(?!text_tower\.)"]

    def __init__(self, config: RadioConfig) -> None:
        super().__init__(config)
        self.text_tower = build_text_tower(config)
        self.post_init()


def text_tower_of(model: Any) -> Any:
    """Return the text tower of the folder that a `RadioModel` was opened from, on its device.

    It is opened in the first call, and kept beside the model: it is not a submodule, so it is neither trained nor
    saved with it.

    Raises:
        MissingTextTowerError: If the folder has no text tower, or the model is from no folder.
    """
    tower = vars(model).get("_text_tower")
    if tower is None:
        if model.source is None:
            raise MissingTextTowerError(
                "`get_text_features` needs a model that `from_pretrained` opened from a folder with a text tower, got "
                "one from no folder. Open the folder with AutoModel."
            )
        name, options = model.source
        config = RadioConfig.from_pretrained(name, **options)
        text_tower_kind(config)
        config._attn_implementation = model.config._attn_implementation
        tower = RadioTextTower.from_pretrained(name, config=config, dtype=model.dtype, **options).eval()
        object.__setattr__(model, "_text_tower", tower)
    return tower if tower.device == model.device else tower.to(model.device)


class RadioForZeroShotImageClassification(TextFeatures, ImageFeatures):
    """RADIO with a text tower in the space of one adaptor; see `forward`, `embed_classes` and `segment`.

    `config.text_tower` is the tower's configuration. `config.text_adaptor` names the adaptor whose summary is in the
    space of the texts: the tower is that of the adaptor's teacher, or a sentence encoder with a map into that teacher's
    space (`SentenceTower`). The folder's tokenizer canonicalizes texts if the teacher needs it: NVIDIA measured that
    SigLIP2 otherwise loses 12 points of accuracy (https://github.com/NVlabs/RADIO/pull/142).

    Examples:
        >>> model = AutoModelForZeroShotImageClassification.from_pretrained(folder, trust_remote_code=True)
        >>> processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
        >>> tokenizer = AutoTokenizer.from_pretrained(folder)
        >>> texts = tokenizer(["a cat", "a dog"], padding="max_length", truncation=True, return_tensors="pt")
        >>> out = model(**texts, **processor(image, return_tensors="pt"))
        >>> model.probabilities(out.logits_per_image)
    """

    input_modalities = ["image", "text"]
    main_input_name = "input_ids"

    def __init__(self, config: RadioConfig) -> None:
        super().__init__(config)
        config = self.config
        kind = text_tower_kind(config)
        self.text_width: int = text_tower_config(config).to_dict()[kind.width_field]
        self.image_adaptor = check_text_adaptor(config, self.text_width)
        self.radio_model = build_network(config)
        self.text_tower = build_text_tower(config)
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.logit_bias = nn.Parameter(torch.empty(())) if kind.use_sigmoid else None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, RadioForZeroShotImageClassification):
            init.constant_(module.logit_scale, CLIP_LOGIT_SCALE if module.logit_bias is None else _SIGLIP_LOGIT_SCALE)
            if module.logit_bias is not None:
                init.constant_(module.logit_bias, _SIGLIP_LOGIT_BIAS)

    @classmethod
    @torch.inference_mode(mode=False)
    def from_parts(
        cls, radio: RadioModel, text_source: TextSource, text_adaptor: str | None = None
    ) -> "RadioForZeroShotImageClassification":
        """Join RADIO and a text tower for one of its adaptors; weights are shared, not copied.

        Args:
            radio: The backbone with the adaptor.
            text_source: The adaptor's teacher as transformers' model, of which the image tower is not used, or a
                `SentenceTower` with a map into the teacher's space.
            text_adaptor: Name of the teacher's adaptor; `None` takes the only one whose summary is as wide as the texts
                and whose name holds "siglip" or "clip" if the tower is of that family.

        Raises:
            ValueError: If the source is of another kind, or no adaptor or several fit.
        """
        tower = take_text_tower(text_source)
        config = copy.deepcopy(radio.config)
        config.text_tower = tower.config.to_dict()
        given = own_names("text_adaptor", [text_adaptor] if text_adaptor else [], config.all_adaptor_names)
        config.text_adaptor = given[0] if given else find_text_adaptor(config)
        with torch.device("meta"):
            model = cls(config)
        model.radio_model.load_state_dict(radio.radio_model.state_dict(), assign=True)
        model.text_tower = tower
        if isinstance(text_source, SentenceTower):
            logit_scale = torch.tensor(text_source.config.logit_scale_init_value)
        else:
            logit_scale = text_source.logit_scale.detach().reshape(())
        model.logit_scale = nn.Parameter(logit_scale)
        if isinstance(text_source, (SiglipModel, Siglip2Model)):
            model.logit_bias = nn.Parameter(cast(Tensor, text_source.logit_bias).detach().reshape(()))
        return model.train(radio.training)

    @property
    def usual_dense_source(self) -> DenseSource:
        """The usual `source` for `segment`: "features" with a sentence encoder, otherwise "summary_head"."""
        return "features" if isinstance(self.text_tower, SentenceTower) else "summary_head"

    @property
    def base_model(self) -> RadioModel:
        """The backbone, as in every model; its `get_text_features` is that of this model."""
        base = super().base_model
        object.__setattr__(base, "_text_tower", self)  # not a submodule
        return base

    @can_return_tuple
    def forward(  # noqa: PLR0913
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_loss: bool | None = None,
        window_size: WindowSize = None,
        pixel_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        output_hidden_states: StatesWanted = None,
        output_attentions: bool | None = None,
        text_embeds: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> RadioZeroShotOutput:
        """Compare images with texts.

        Args:
            input_ids: Tokens of the texts, `(num_texts, length)`; for a SigLIP tower padded to `max_text_length`.
            pixel_values: RGB images in [0, 1], `(num_images, channels, height, width)`, as in `RadioModel.forward`.
            attention_mask: 1 on tokens, 0 on padding. SigLIP was trained without a mask.
            return_loss: Also return the teacher's contrastive loss; image and text of one index are a pair.
            window_size: As in `RadioModel.forward`.
            pixel_mask: As in `RadioModel.forward`.
            position_ids: Positions of the tokens in the text tower, `(num_texts, length)`; `None` numbers them in
                order.
            output_hidden_states: As in `RadioModel.forward`, also for the text tower.
            output_attentions: As in `RadioModel.forward`, also for the text tower, which returns weights only with
                `attn_implementation="eager"`.
            text_embeds: Output of `embed_texts` or `embed_classes`, `(num_texts, text_dim)`, instead of `input_ids`.
            kwargs: As in `RadioModel.forward`.

        Returns:
            `RadioZeroShotOutput`.

        Raises:
            ValueError: If images are missing, if texts are missing, too long or given twice, or if the loss gets
                unequal numbers of images and texts; otherwise as `RadioModel.forward`.
        """
        check_call_arguments(self, kwargs)
        asked: Any = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        if pixel_values is None:
            raise ValueError("`pixel_values` must be given, got None.")
        if (input_ids is None) == (text_embeds is None):
            raise ValueError("Either `input_ids` or `text_embeds` must be given, got both or neither.")
        images = self.get_image_features(pixel_values, window_size, return_dict=True, **asked)
        texts = BaseModelOutputWithPooling(pooler_output=text_embeds)
        if input_ids is not None:
            texts = self.get_text_features(input_ids, attention_mask, position_ids, return_dict=True, **asked)
        has_more = images.hidden_states is not None or images.attentions is not None
        image_embeds = _normalize(cast(Tensor, images.pooler_output))
        text_embeds = _normalize(cast(Tensor, texts.pooler_output))
        text_embeds = text_embeds.to(image_embeds)  # towers may be on different devices
        logits_per_text = self._to_logits(text_embeds @ image_embeds.t())
        return RadioZeroShotOutput(
            loss=self._contrastive_loss(logits_per_text) if return_loss else None,
            logits_per_image=logits_per_text.t(),
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=texts if has_more else None,
            vision_model_output=images if has_more else None,
        )

    def probabilities(self, logits_per_image: Tensor, dim: int = -1) -> Tensor:
        """Return probabilities in [0, 1]: sigmoid with a SigLIP tower, softmax over `dim`, the texts, with CLIP's.

        Args:
            logits_per_image: `(num_images, num_texts)`, or of any shape with texts along `dim`.
            dim: Axis of the texts.

        Returns:
            The shape of `logits_per_image`.
        """
        return logits_per_image.sigmoid() if self.use_sigmoid else logits_per_image.softmax(dim=dim)

    @torch.no_grad()
    def embed_texts(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Return unit vectors of texts, `(num_texts, text_dim)`; they get the padding of the tower's training.

        Args:
            tokenizer: The folder's.
            texts: At least one.
            batch_size: Texts per forward pass of the tower.

        Raises:
            ValueError: If there are no texts.
        """
        if not texts:
            raise ValueError("`texts` must have at least one text, got none.")
        embeds: list[Tensor] = []
        for start in range(0, len(texts), batch_size):
            tokens = self.tokenize(tokenizer, texts[start : start + batch_size])
            output = self.get_text_features(tokens.to(self.device), return_dict=True)
            embeds.append(cast(Tensor, output.pooler_output))
        return _normalize(torch.cat(embeds))

    def tokenize(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Tensor:
        """Return the tokens of texts as the tower was trained on them, padded and cut, `(num_texts, length)`.

        They need no mask: SigLIP was trained without one, CLIP reads the end token, which attends to no later token,
        and `SentenceTower` masks the padding token itself.
        """
        length = self.max_text_length
        if self.config.text_cleaning is not None:
            return clean_tokens(tokenizer, texts, length)
        padding = "max_length" if self.use_sigmoid else True
        tokens = tokenizer(list(texts), padding=padding, truncation=True, max_length=length, return_tensors="pt")
        return cast(Tensor, tokens["input_ids"])

    def clean_texts(self, texts: Sequence[str]) -> list[str]:
        """Return texts as the tokenizer expects them: cleaned, where `config.text_cleaning` says so."""
        return list(texts) if self.config.text_cleaning is None else [clean_text(text) for text in texts]

    def embed_classes(
        self,
        tokenizer: PreTrainedTokenizerBase,
        class_names: Sequence[str],
        templates: Sequence[str] = SIMPLE_TEMPLATES,
        batch_size: int = 256,
    ) -> Tensor:
        """Return a unit vector for each class, the mean over its prompts' unit vectors, `(num_classes, text_dim)`.

        Args:
            tokenizer: The folder's.
            class_names: Names such as `["tabby cat", "goldfish"]`.
            templates: Prompts with the placeholder `{}`; `zero_shot_radio` has `PLAIN_TEMPLATES`, `SIMPLE_TEMPLATES`
                and `OPENAI_TEMPLATES`.
            batch_size: Prompts per forward pass of the tower.

        Raises:
            ValueError: If there are no classes or a template has no placeholder.

        References:
            CLIP, section 3.1.4 (prompt ensembling). https://arxiv.org/abs/2103.00020
        """
        prompts = [prompt for name in class_names for prompt in fill_templates(name, templates)]
        embeds = self.embed_texts(tokenizer, prompts, batch_size)
        return _normalize(embeds.unflatten(0, (len(class_names), len(templates))).mean(dim=1))

    def segment(  # noqa: PLR0913
        self,
        pixel_values: Tensor,
        text_embeds: Tensor,
        source: DenseSource = "summary_head",
        window_size: WindowSize = None,
        pixel_mask: Tensor | None = None,
        image_grid_hw: Tensor | None = None,
        scra: Scra = "auto",
        scga: float | None = SCALING,
        sliding: tuple[int, int] | None = SLIDING,
        denoising: float | None = DENOISING,
        sam: Any = None,
    ) -> SemanticSegmenterOutput:
        """Compare every patch with texts: segmentation with an open vocabulary, as RADSeg does it.

        Each step of RADSeg can be left out with `None`; without any of them this is NaRADIO. `radseg_radio` explains
        them; the defaults are those of the authors' code.

        Args:
            pixel_values: As in `forward`, or packed as in `RadioModel.forward`.
            text_embeds: One vector per class, `(num_classes, text_dim)`, as `embed_classes` returns them.
            source: Mapping of patches into the space of the texts. "summary_head" applies the adaptor's summary
                head to patch tokens, as NaRADIO and RADSeg do: class tokens and patch tokens share a space, but the
                patches of SigLIP and CLIP themselves are not aligned with texts, since they precede the pooling.
                "features" takes the adaptor's dense features, for a teacher whose patches are aligned.
            window_size: As in `RadioModel.forward`; the last block, that of `scra`, is global in any case.
            pixel_mask: Mask that `RadioImageProcessor` returns with `do_pad=True`: each image is segmented without its
                padding, which would count in the means over the image and in `denoising`. Logits of padding are -1e4,
                and the post-processing cuts them off.
            image_grid_hw: As in `RadioModel.forward`.
            scra: Factor of the recursive attention in the last block. "auto" is 10, the paper's, for RADIO's ViTs, and
                `None` for E-RADIO, RADIO1D and networks of libraries, which have no such block.
            scga: Factor of the aggregation over the whole image.
            sliding: Side of the windows and step between them in pixels, rounded to whole patches; an image within one
                window is seen as a whole.
            denoising: Least probability of a class at its best patch; other classes are left out of the image, unless
                all would be.
            sam: Transformers' `Sam3TrackerModel`, on its own trunk or on RADIO (`attach_to_sam3`): it draws the outline
                of each region anew, as RADSeg+ does; see `regions_radio.refine_by_sam`.

        Returns:
            `logits` `(num_images, num_classes, rows, cols)`: similarities of patches and texts, scaled as in `forward`;
            of packed images `(total_patches, num_classes)`; with `sam` logarithms of probabilities `(num_images,
            num_classes, height, width)`. `RadioImageProcessor.post_process_semantic_segmentation` turns maps into maps
            of labels.

        Raises:
            ValueError: If an argument has another value, or the width of `source` is not that of the texts; otherwise
                as `forward`.

        References:
            RayFronts (NaRADIO), https://arxiv.org/abs/2504.06994; RADSeg, https://arxiv.org/abs/2511.19704
        """
        width = self.text_width
        if text_embeds.ndim != 2 or text_embeds.shape[1] != width:
            raise ValueError(
                f"`text_embeds` must have the shape (num_classes, {width}), got {tuple(text_embeds.shape)}."
            )
        check_denoising(denoising)
        steps: Any = {"scra": scra, "scga": scga, "sliding": sliding}
        options = {**steps, "source": source, "window_size": window_size, "denoising": denoising, "sam": sam}
        if image_grid_hw is not None:
            pack = check_pack(pixel_values, image_grid_hw, self.config)
            return self._segment_pack(pixel_values, text_embeds, pack, options)
        if pixel_mask is not None and not pixel_mask.all():
            return self._segment_padded(pixel_values, text_embeds, pixel_mask, options)
        patches = self.aligned_patches(pixel_values, source, window_size, **steps)
        if sam is None:
            return SemanticSegmenterOutput(logits=self.compare_patches(patches, text_embeds, denoising))
        cosines, is_out = _cosines_of_patches(patches, text_embeds, denoising)
        likely = to_probabilities(cosines).masked_fill(is_out, 0.0)
        refined = import_sibling("regions_radio").refine_by_sam(sam, pixel_values, likely)
        return SemanticSegmenterOutput(logits=refined.clamp(min=torch.finfo(refined.dtype).tiny).log())

    def compare_patches(self, patches: Tensor, text_embeds: Tensor, denoising: float | None = DENOISING) -> Tensor:
        """Return the logits of `segment`, `(num_images, num_classes, rows, cols)`, for patches of `aligned_patches`."""
        cosines, is_out = _cosines_of_patches(patches, text_embeds, denoising)
        return self._to_logits(cosines).masked_fill(is_out, LEFT_OUT)

    def _segment_pack(
        self, patches: Tensor, text_embeds: Tensor, pack: ImagePack, options: dict[str, Any]
    ) -> SemanticSegmenterOutput:
        """Segment the images of each size of a pack together; see `segment`."""
        if options["sam"] is not None:
            raise ValueError("`sam` must be None with `image_grid_hw`: refine images of one size.")
        side, grouped = self.config.patch_size, []
        for grid, group in zip(pack.groups, pack.group_patches(patches), strict=True):
            cells = group.unflatten(1, tuple(grid)).unflatten(-1, (-1, side, side))
            # (images, rows, cols, channels, side, side) -> (images, channels, rows * side, cols * side)
            images = cells.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
            grouped.append(cast(Tensor, self.segment(images, text_embeds, **options).logits).flatten(2).mT)
        return SemanticSegmenterOutput(logits=torch.cat(pack.ungroup(grouped)))

    def _segment_padded(
        self, pixel_values: Tensor, text_embeds: Tensor, pixel_mask: Tensor, options: dict[str, Any]
    ) -> SemanticSegmenterOutput:
        """Segment the images of each size without their padding; see `segment`."""
        if pixel_mask.shape != pixel_values[:, 0].shape:
            expected = tuple(pixel_values[:, 0].shape)
            raise ValueError(f"`pixel_mask` must have the shape {expected}, got {tuple(pixel_mask.shape)}.")
        height, width = pixel_values.shape[2:]
        sizes = [(int(mask[:, 0].sum()), int(mask[0].sum())) for mask in pixel_mask]
        padded: dict[int, Tensor] = {}
        for rows, cols in dict.fromkeys(sizes):
            numbers = [number for number, size in enumerate(sizes) if size == (rows, cols)]
            own = cast(Tensor, self.segment(pixel_values[numbers, :, :rows, :cols], text_embeds, **options).logits)
            below, right = (height - rows) * own.shape[2] // rows, (width - cols) * own.shape[3] // cols
            padded |= dict(zip(numbers, F.pad(own, (0, right, 0, below), value=LEFT_OUT), strict=True))
        return SemanticSegmenterOutput(logits=torch.stack([padded[number] for number in range(len(sizes))]))

    def aligned_patches(
        self,
        pixel_values: Tensor,
        source: DenseSource = "summary_head",
        window_size: WindowSize = None,
        scra: Scra = None,
        scga: float | None = None,
        sliding: tuple[int, int] | None = None,
    ) -> Tensor:
        """Return the patches in the space of the texts, `(num_images, text_dim, rows, cols)`; see `segment`."""
        check_choice("source", source, get_args(DenseSource))
        check_scaling("scga", scga)
        check_sliding(sliding)
        network, adaptor, width = self.radio_model, self.image_adaptor, self.text_width
        factor = choose_scra(network, scra)
        if source == "features" and adaptor.feature_dim != width:
            raise ValueError(
                f"`feature_dim` of adaptor {adaptor.name!r} must be {width}, the width of the texts, for "
                f"`source='features'`, got {adaptor.feature_dim}. Use 'summary_head'."
            )

        def encode(images: Tensor) -> Tensor:
            """Return the patch tokens as a map, `(batch, hidden, rows, cols)`."""
            passed, tokens = encode_recursively(network, images, window_size, factor)
            return to_map(network.patch_features(tokens), passed.grid)

        if sliding is None:
            features = encode(pixel_values)
        else:
            check_images(pixel_values, self.config)
            features = slide(pixel_values, sliding, self.config.resolution_step, encode)
        grid = Resolution(*features.shape[2:])
        patches = features.flatten(2).mT
        if scga is not None:
            patches = aggregate(patches, scga)
        return align_patches(network, adaptor.name, patches, grid, source)

    def _to_logits(self, cosines: Tensor) -> Tensor:
        logits = cosines * self.logit_scale.exp().to(cosines.device)
        return logits if self.logit_bias is None else logits + self.logit_bias.to(cosines.device)

    def _contrastive_loss(self, logits_per_text: Tensor) -> Tensor:
        """Return the loss of SigLIP (https://arxiv.org/abs/2303.15343, eq. 1) or of CLIP."""
        num_texts, num_images = logits_per_text.shape
        if num_texts != num_images:
            raise ValueError(f"`return_loss` must be of pairs, got {num_images} images and {num_texts} texts.")
        if not self.use_sigmoid:
            return image_text_contrastive_loss(logits_per_text)
        is_pair = 2 * torch.eye(num_texts, device=logits_per_text.device) - 1
        return -F.logsigmoid(is_pair * logits_per_text).sum(dim=-1).mean()


def align_patches(network: Any, name: str, patches: Tensor, grid: Resolution, source: DenseSource) -> Tensor:
    """Map patches into the space of texts, `(batch, text_dim, rows, cols)`.

    Args:
        network: The `RadioNetwork`.
        name: Its adaptor for texts.
        patches: Backbone features, before any head, `(batch, patches, hidden)`.
        grid: Their rows and columns.
        source: See `RadioForZeroShotImageClassification.segment`.

    Raises:
        ValueError: If the summary head does not read single tokens, but the whole image.
    """
    if source == "summary_head":
        if name in ((network.config.navit or {}).get("heads") or {}):
            raise ValueError(
                f"`source` must be 'features' for adaptor {name!r}, got 'summary_head': its head cross-attends to all "
                "patches, so it maps none alone."
            )
        return to_map(network.adaptor(name).head_mlp(patches), grid)
    # Dense heads read patches alone; the prefix only has to be there.
    tokens = F.pad(patches, (0, 0, network.config.num_prefix_tokens, 0))
    output = network.make_output(NetworkOutput(tokens, tokens, {}, None, None, grid), [name], "NCHW")
    return cast(dict[str, Any], output.adaptors)[name].features


def _cosines_of_patches(patches: Tensor, text_embeds: Tensor, denoising: float | None) -> tuple[Tensor, Tensor]:
    """Return cosines, `(num_images, num_classes, rows, cols)`, and which classes are left out of each image."""
    # One patch of zeros must not switch denoising off: its cosines are 0, where `_normalize` would give NaN.
    cosines = torch.einsum("bdrc,nd->bnrc", F.normalize(patches, dim=1), _normalize(text_embeds).to(patches))
    return cosines, find_unlikely(cosines, 0.0 if denoising is None else denoising)


def _normalize(embeds: Tensor) -> Tensor:
    """Return unit vectors; no epsilon, as in the teachers' code."""
    return embeds / embeds.norm(p=2, dim=-1, keepdim=True)
