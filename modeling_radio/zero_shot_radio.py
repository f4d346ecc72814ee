"""RADIO for zero-shot tasks: an adaptor's summary or patches beside texts that its teacher's text tower encodes."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Siglip2Model, SiglipModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, SemanticSegmenterOutput
from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection, image_text_contrastive_loss
from transformers.processing_utils import Unpack
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils.generic import TransformersKwargs, can_return_tuple

from .call_arguments_radio import check_call_arguments
from .configuration_radio import RadioConfig
from .messages_radio import check_choice
from .modeling_radio import RadioModel, RadioPreTrainedModel
from .nvidia_interface_radio import build_network
from .outputs_radio import RadioZeroShotOutput, to_map
from .readout_radio import read_out
from .requested_outputs_radio import StatesWanted
from .sentences_radio import SentenceTower
from .text_radio import (
    SIMPLE_TEMPLATES,
    TextSource,
    check_text_adaptor,
    fill_templates,
    find_text_adaptor,
    take_logit_scale,
    take_text_tower,
    text_tower_config,
    text_tower_kind,
    tower_attention,
)
from .window_choice_radio import WindowSize


DenseSource = Literal["summary_head", "features"]

# Where training starts: CLIP's temperature of 0.07 (https://arxiv.org/abs/2103.00020, section 2.5), and SigLIP's of 0.1
# with a bias of -10, since most pairs do not match (https://arxiv.org/abs/2303.15343, section 3.2).
_CLIP_LOGIT_SCALE = 2.6592
_SIGLIP_LOGIT_SCALE = 2.3026
_SIGLIP_LOGIT_BIAS = -10.0


class RadioForZeroShotImageClassification(RadioPreTrainedModel):
    """RADIO with a text tower in the space of one adaptor; see `forward`, `embed_classes` and `segment`.

    `config.text_tower` is the tower's configuration, `config.text_adaptor` the adaptor whose summary lives in the space
    of the tower's texts: the tower is that of the adaptor's teacher, or a sentence encoder with a map into that
    teacher's space (`SentenceTower`). The folder's tokenizer canonicalizes texts by itself where the teacher needs it:
    without, NVIDIA measured SigLIP2 to lose 12 points of accuracy (https://github.com/NVlabs/RADIO/pull/142).

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

    _warned_of_text_length = False

    def __init__(self, config: RadioConfig) -> None:
        super().__init__(config)
        config = self.config
        kind = text_tower_kind(config)
        tower_config = text_tower_config(config)
        self.text_width: int = tower_config.to_dict()[kind.width_field]
        self.image_adaptor = check_text_adaptor(config, self.text_width)
        self.radio_model = build_network(config)
        tower_config._attn_implementation = tower_attention(kind, str(self.config._attn_implementation))
        self.text_tower = kind.model_class(tower_config)
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.logit_bias = nn.Parameter(torch.empty(())) if kind.use_sigmoid else None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, RadioForZeroShotImageClassification):
            init.constant_(module.logit_scale, _CLIP_LOGIT_SCALE if module.logit_bias is None else _SIGLIP_LOGIT_SCALE)
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
            text_source: The adaptor's teacher as transformers has it, whose image tower is not used, or a
                `SentenceTower`, which maps a sentence encoder's texts into the teacher's space.
            text_adaptor: Which adaptor is the teacher's; `None` takes the one with a summary as wide as the tower's
                texts, and with the family of a SigLIP or CLIP in its name.

        Raises:
            ValueError: If the source is of another kind, or no adaptor or several fit.
        """
        tower = take_text_tower(text_source)
        config = copy.deepcopy(radio.config)
        config.text_tower = tower.config.to_dict()
        config.text_adaptor = text_adaptor or find_text_adaptor(config)
        with torch.device("meta"):
            model = cls(config)
        model.radio_model.load_state_dict(radio.radio_model.state_dict(), assign=True)
        model.text_tower = tower
        model.logit_scale = nn.Parameter(take_logit_scale(text_source))
        if isinstance(text_source, (SiglipModel, Siglip2Model)):
            model.logit_bias = nn.Parameter(cast(Tensor, text_source.logit_bias).detach().reshape(()))
        return model.train(radio.training)

    @property
    def use_sigmoid(self) -> bool:
        """Whether each text is judged for itself (SigLIP), or one of all is right (CLIP)."""
        return self.logit_bias is not None

    @property
    def usual_dense_source(self) -> DenseSource:
        """Where patches are among texts, for `segment`: in the dense features beside a sentence encoder's texts."""
        return "features" if isinstance(self.text_tower, SentenceTower) else "summary_head"

    @property
    def max_text_length(self) -> int:
        """Longest text in tokens; for a SigLIP tower the length that all texts are padded to."""
        return self.text_tower.config.max_position_embeddings

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
            attention_mask: 1 on tokens, 0 on padding. SigLIP was trained without.
            return_loss: Also return the teacher's contrastive loss; image and text of one index are a pair.
            window_size: As in `RadioModel.forward`.
            pixel_mask: As in `RadioModel.forward`.
            position_ids: Positions of the tokens in the text tower, `(num_texts, length)`; `None` counts them.
            output_hidden_states: As in `RadioModel.forward`, of the text tower too.
            output_attentions: As in `RadioModel.forward`, and of the text tower, which gives none but with
                `attn_implementation="eager"`.
            text_embeds: In place of `input_ids` what `embed_texts` or `embed_classes` returned, `(num_texts,
                text_dim)`.
            kwargs: As in `RadioModel.forward`.

        Returns:
            `RadioZeroShotOutput`.

        Raises:
            ValueError: If images are missing, texts are missing, too long or given twice, or the loss is wanted of
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
        text_embeds = text_embeds.to(image_embeds)  # towers may be on different devices, and texts of an earlier call
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

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: Tensor,
        window_size: WindowSize = None,
        pixel_mask: Tensor | None = None,
        output_hidden_states: StatesWanted = None,
        output_attentions: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode images; `pooler_output` is the adaptor's summary `(num_images, text_dim)`, not normalized.

        Arguments as in `forward`. The adaptor's dense head does not run.
        """
        check_call_arguments(self, kwargs, "get_image_features")
        passed = self.radio_model(
            pixel_values,
            window_size=window_size,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        return BaseModelOutputWithPooling(
            last_hidden_state=passed.tokens,
            pooler_output=self._align(passed.tokens[:, self.image_adaptor.token_index]),
            hidden_states=passed.hidden_states,
            attentions=passed.attentions,
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

    def encode_text(self, texts: Tensor | Mapping[str, Tensor], normalize: bool = False) -> Tensor:
        """Return embeddings of tokenized texts, `(num_texts, text_dim)`: NVIDIA's name for `get_text_features`.

        Args:
            texts: Tokens `(num_texts, length)`, or what the tokenizer returned; its mask is not read.
            normalize: Return unit vectors.
        """
        input_ids = texts if isinstance(texts, Tensor) else texts["input_ids"]
        embeds = cast(Tensor, self.get_text_features(input_ids, return_dict=True).pooler_output)
        return _normalize(embeds) if normalize else embeds

    @torch.no_grad()
    def embed_texts(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Return unit vectors of texts, `(num_texts, text_dim)`, with the padding that the tower was trained with.

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
            tokens = tokenizer(
                list(texts[start : start + batch_size]),
                padding="max_length" if self.use_sigmoid else True,
                truncation=True,
                max_length=self.max_text_length,
                return_tensors="pt",
            )
            # No mask: SigLIP was trained without, CLIP reads the end token, which attends to nothing after it, and a
            # sentence encoder's tower knows its padding token.
            output = self.get_text_features(tokens["input_ids"].to(self.device), return_dict=True)
            embeds.append(cast(Tensor, output.pooler_output))
        return _normalize(torch.cat(embeds))

    def embed_classes(
        self,
        tokenizer: PreTrainedTokenizerBase,
        class_names: Sequence[str],
        templates: Sequence[str] = SIMPLE_TEMPLATES,
        batch_size: int = 256,
    ) -> Tensor:
        """Return one unit vector per class: the mean of its prompts' unit vectors, `(num_classes, text_dim)`.

        Args:
            tokenizer: The folder's.
            class_names: For example `["tabby cat", "goldfish"]`.
            templates: Prompts with the placeholder `{}`; `text_radio` has `PLAIN_TEMPLATES`, `SIMPLE_TEMPLATES` and
                `OPENAI_TEMPLATES`.
            batch_size: Prompts per forward pass of the tower.

        Raises:
            ValueError: If there are no classes or a template has no placeholder.

        References:
            CLIP, section 3.1.4 (prompt ensembling). https://arxiv.org/abs/2103.00020
        """
        prompts = [prompt for name in class_names for prompt in fill_templates(name, templates)]
        embeds = self.embed_texts(tokenizer, prompts, batch_size)
        return _normalize(embeds.unflatten(0, (len(class_names), len(templates))).mean(dim=1))

    def segment(
        self,
        pixel_values: Tensor,
        text_embeds: Tensor,
        source: DenseSource = "summary_head",
        window_size: WindowSize = None,
        pixel_mask: Tensor | None = None,
    ) -> SemanticSegmenterOutput:
        """Compare every patch with texts: segmentation with an open vocabulary.

        Args:
            pixel_values: As in `forward`.
            text_embeds: One vector per class, `(num_classes, text_dim)`, as `embed_classes` returns them.
            source: Where a patch gets its place among the texts. "summary_head" applies the adaptor's summary head to
                patch tokens, as NaRADIO and RADSeg do by hand: class tokens and patch tokens share a space, and the
                patches of SigLIP and CLIP themselves are not aligned with texts, since their pooling comes after them.
                "features" takes the adaptor's dense features, for a teacher whose patches are aligned.
            window_size: As in `RadioModel.forward`.
            pixel_mask: As in `RadioModel.forward`; the post-processing cuts padding off.

        Returns:
            `logits` `(num_images, num_classes, rows, cols)`: similarities of patches and texts, scaled as in `forward`.
            `RadioImageProcessor.post_process_semantic_segmentation` makes a label map of them.

        Raises:
            ValueError: If `source` is unknown or has another width than the texts; otherwise as `forward`.

        References:
            RayFronts (NaRADIO), https://arxiv.org/abs/2504.06994; RADSeg, https://arxiv.org/abs/2511.19704
        """
        width = self.text_width
        if text_embeds.ndim != 2 or text_embeds.shape[1] != width:
            raise ValueError(
                f"`text_embeds` must have the shape (num_classes, {width}), got {tuple(text_embeds.shape)}."
            )
        patches = self.aligned_patches(pixel_values, source, window_size)
        cosines = torch.einsum("bdrc,nd->bnrc", _normalize(patches, dim=1), _normalize(text_embeds).to(patches))
        return SemanticSegmenterOutput(logits=self._to_logits(cosines))

    def aligned_patches(
        self, pixel_values: Tensor, source: DenseSource = "summary_head", window_size: WindowSize = None
    ) -> Tensor:
        """Return the patches in the space of the texts, `(num_images, text_dim, rows, cols)`; see `segment`."""
        check_choice("source", source, get_args(DenseSource))
        if source == "features":
            return self._dense_features(pixel_values, window_size)
        passed = self.radio_model(pixel_values, window_size=window_size)
        return to_map(self._align(self.radio_model.patch_features(passed.tokens)), passed.grid)

    def _dense_features(self, pixel_values: Tensor, window_size: WindowSize) -> Tensor:
        adaptor, width = self.image_adaptor, self.text_width
        if adaptor.feature_dim != width:
            raise ValueError(
                f"`feature_dim` of adaptor {adaptor.name!r} must be {width}, the width of the texts, for "
                f"`source='features'`, got {adaptor.feature_dim}. Use 'summary_head'."
            )
        passed = self.radio_model(pixel_values, window_size=window_size)
        output = read_out(self.radio_model, passed, [adaptor.name], "NCHW")
        return cast(dict[str, Any], output.adaptors)[adaptor.name].features

    def _align(self, tokens: Tensor) -> Tensor:
        """Apply the summary head of the teacher's adaptor: `(..., hidden)` to `(..., text_dim)`."""
        head = self.radio_model.adaptor(self.image_adaptor.name).head_mlp
        assert head is not None  # its width was checked
        return head(tokens)

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


def _normalize(embeds: Tensor, dim: int = -1) -> Tensor:
    """Return unit vectors; no epsilon, as in the teachers' code."""
    return embeds / embeds.norm(p=2, dim=dim, keepdim=True)
