"""A sentence encoder as a text tower: a text model of transformers, the mean of its tokens, and one linear layer."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.auto.configuration_auto import CONFIG_MAPPING


CLIP_LOGIT_SCALE = 2.6592
"""Logarithm of what cosines are multiplied by, as transformers' CLIPConfig has it: a temperature of 0.07."""


class SentenceTowerConfig(PreTrainedConfig):
    """Configuration of `SentenceTower`.

    Attributes:
        encoder: Configuration of the text model, of a type that transformers itself has; it runs no remote code.
        projection_dim: Width of the embeddings.
        max_position_embeddings: Longest text in tokens.
        logit_scale_init_value: Logarithm of what cosines of images and texts are multiplied by.
    """

    model_type = "sentence_encoder"
    sub_configs = {"encoder": AutoConfig}  # pyrefly: ignore[bad-override]
    has_no_defaults_at_init = True  # earlier transformers would build one without an encoder to compare with

    encoder: dict[str, Any] | PreTrainedConfig | None = None
    projection_dim: int = 512
    max_position_embeddings: int = 512
    logit_scale_init_value: float = CLIP_LOGIT_SCALE

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.encoder, PreTrainedConfig):
            self.encoder = _read_encoder(self.encoder)
        super().__post_init__(**kwargs)


def _read_encoder(values: Any) -> PreTrainedConfig:
    """Return the configuration of a text model."""
    model_type = values.get("model_type") if isinstance(values, dict) else None
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            "`text_tower.encoder` must be the configuration of a text model of transformers, with its `model_type`, "
            f"got {model_type if isinstance(values, dict) else values!r}. Take config.json of the sentence encoder."
        )
    return AutoConfig.for_model(**values)


class SentenceTower(PreTrainedModel):
    """Sentences in the space of an image adaptor; see `forward`.

    A sentence is the mean of the encoder's last hidden states over its tokens, made a unit vector as
    sentence-transformers do, and then mapped linearly. The map is what was learned from pairs of both spaces; it stands
    on this side, so that images are compared with texts as with those of any other tower, and since maps from texts to
    images make fewer texts the neighbors of everything than those from images to texts
    (https://arxiv.org/abs/1507.00825).
    """

    config_class = SentenceTowerConfig
    main_input_name = "input_ids"
    input_modalities = ["text"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: SentenceTowerConfig) -> None:
        super().__init__(config)
        encoder: Any = config.encoder
        # Not in the type that its own configuration names: `dtype` of `from_pretrained` is for the whole model.
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
            projection: From its hidden states to the space of an adaptor's summary.
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
            attention_mask: 1 on tokens, 0 on padding; `None` takes every token but the encoder's padding token.
            position_ids: Positions of the tokens, `(num_texts, length)`; `None` counts them.
            output_hidden_states: Also return those of the encoder.
            output_attentions: Also return its attention weights.
            return_dict: Accepted and passed over: outputs are by name.

        Returns:
            `pooler_output` `(num_texts, projection_dim)`, not normalized, beside the encoder's own outputs.
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
