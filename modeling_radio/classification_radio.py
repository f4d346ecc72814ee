"""RADIO for classification of images and clips: a linear layer on the summary, or on it and the mean features."""

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils.generic import TransformersKwargs, can_return_tuple

from .call_arguments_radio import check_call_arguments
from .configuration_radio import RadioConfig
from .heads_radio import RadioTaskModel, count_classes, weighted_cross_entropy
from .messages_radio import check_choice
from .outputs_radio import RadioModelOutput
from .readout_radio import read_out
from .requested_outputs_radio import StatesWanted
from .views_radio import ViewOptions, mean_of_probabilities, require_pixels
from .window_choice_radio import WindowSize


ProblemType = Literal["regression", "single_label_classification", "multi_label_classification"]

IGNORED_LABEL = -100  # torch's and transformers' value for single labels


class RadioClassifier(nn.Sequential):
    """Layer norm and one linear layer, `(batch, in_features)` to `(batch, out_features)`."""

    def __init__(self, in_features: int, out_features: int, eps: float) -> None:
        super().__init__(nn.LayerNorm(in_features, eps=eps), nn.Linear(in_features, out_features))
        self.in_features, self.out_features = in_features, out_features


class RadioForImageClassification(RadioTaskModel):
    """RADIO with an image classifier; see `forward`.

    The classifier normalizes what it reads: RADIO has no final norm, and its scale would else decide which learning
    rate works. Another head reads the same `(batch, model.classifier.in_features)`, not normalized.

    Examples:
        >>> model = RadioForImageClassification.from_pretrained(backbone_folder, num_labels=5)
        >>> model(pixel_values, labels=torch.tensor([4, 0])).loss.backward()
    """

    def __init__(self, config: RadioConfig) -> None:
        super().__init__(config)
        config = self.config
        width = config.hidden_size * len(config.summary_idxs or [])
        if config.classifier_pooling == "summary_and_features":
            width += config.hidden_size
        self.classifier = RadioClassifier(width, count_classes(config), config.layer_norm_eps)
        self.post_init()

    @property
    def accepts_loss_kwargs(self) -> bool:
        """Whether `Trainer` gives `num_items_in_batch`, which counts all classes alike."""
        return self.config.class_weights is None

    @can_return_tuple
    def forward(  # noqa: D417
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        window_size: WindowSize = None,
        output_hidden_states: StatesWanted = None,
        output_attentions: bool | None = None,
        pixel_mask: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        pixel_values_videos: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        """Classify images or clips; `RadioTaskModel` has the arguments that are not listed here.

        Args:
            pixel_values: RGB images in [0, 1], `(batch, channels, height, width)`, sides multiples of the patch.
            labels: By `config.problem_type`: classes `(batch,)` in [0, num_labels), -100 being ignored
                ("single_label_classification"); probabilities, mostly 0 or 1, `(batch, num_labels)`
                ("multi_label_classification"); or numbers `(batch, num_labels)`, also `(batch,)` of a single one
                ("regression"). Where the type is `None`, the first labels decide, as in transformers: one output is
                regression, integers are single labels, and floats multiple ones.
            num_items_in_batch: Labels in all batches of an optimizer's step. It divides the sum of losses and not the
                number of labels here, so that steps of several batches learn as one large batch does.
            pixel_values_videos: In place of images clips, as in `RadioModel.forward`. The classifier reads the mean of
                what it would read of each group of frames: CLIP4Clip's mean pooling, section 3.3 of
                https://arxiv.org/abs/2104.08860.

        Returns:
            `logits` `(batch, num_labels)`, and with labels the `loss`, scalar: cross-entropy, binary cross-entropy or
            squared error.

        Raises:
            ValueError: On labels that cannot be right; otherwise as `RadioModel.forward`.
        """
        check_call_arguments(self, kwargs)
        given = pixel_values if pixel_values_videos is None else pixel_values_videos
        if labels is not None and isinstance(given, Tensor):
            labels = self._check_labels(labels, len(given))
        passed = self.radio_model(
            pixel_values,
            window_size=window_size,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            pixel_values_videos=pixel_values_videos,
        )
        output = read_out(self.radio_model, passed)
        pooled = self._pool(output)
        logits = self.classifier(pooled if passed.num_clips is None else pooled.mean(dim=1))
        return ImageClassifierOutput(
            loss=None if labels is None else self._loss(logits.float(), labels.to(logits.device), num_items_in_batch),
            logits=logits,
            hidden_states=output.hidden_states,  # pyrefly: ignore[bad-argument-type]
            attentions=output.attentions,
        )

    @torch.no_grad()
    def predict(self, pixel_values: Tensor, window_size: WindowSize = None, **options: Any) -> ImageClassifierOutput:
        """Classify images by several looks at each, whose probabilities are averaged.

        Args:
            pixel_values: As in `forward`.
            window_size: As in `forward`.
            options: Of `ViewOptions`: `scales`, `flip`; a tile would show a part of what is classified.

        Returns:
            `logits` `(batch, num_labels)`.

        Raises:
            ValueError: If an option cannot be; otherwise as `forward`.
        """
        require_pixels(pixel_values)
        chosen = ViewOptions(**options)
        chosen.refuse("tile_size", "a class is that of a whole image")
        views = chosen.take(self.config, pixel_values)
        logits = [self(view.pixel_values, window_size=window_size, return_dict=True).logits for view in views]
        return ImageClassifierOutput(logits=mean_of_probabilities(logits, self.config))

    def _pool(self, output: RadioModelOutput) -> Tensor:
        """Return what the classifier reads, `(batch, width)`, or of clips `(batch, groups, width)`."""
        assert output.summary is not None
        assert output.features is not None
        if self.config.classifier_pooling == "summary":
            return output.summary
        return torch.cat([output.summary, output.features.mean(dim=-2)], dim=-1)

    def _loss(self, logits: Tensor, labels: Tensor, num_items: Tensor | int | None) -> Tensor:
        """Return the mean loss of the labels, or their sum divided by `num_items`."""
        if isinstance(num_items, Tensor):
            num_items = num_items.to(logits.device)
        reduction = "mean" if num_items is None else "sum"
        if self.config.problem_type == "regression":
            loss = F.mse_loss(logits, labels, reduction=reduction)
        elif self.config.problem_type == "multi_label_classification":
            weights = self.class_weights(logits)
            loss = F.binary_cross_entropy_with_logits(logits, labels, weight=weights, reduction=reduction)
        else:
            return weighted_cross_entropy(logits, labels, self.class_weights(logits), IGNORED_LABEL, num_items)
        return loss if num_items is None else loss / num_items

    def _check_labels(self, labels: Tensor, batch_size: int) -> Tensor:
        """Return labels in the type that the loss needs, after checks; the first ones decide what they are."""
        if not isinstance(labels, Tensor):
            raise ValueError(f"`labels` must be a tensor, got a {type(labels).__name__}. Use `torch.tensor(labels)`.")
        problem_type = self.config.problem_type or self._guess_problem_type(labels)
        check_choice("problem_type", problem_type, get_args(ProblemType))
        if problem_type == "single_label_classification":
            labels = self._check_single_labels(labels, batch_size)
        else:
            labels = self._check_rows(labels, batch_size, problem_type)
        self.config.problem_type = problem_type
        return labels

    def _guess_problem_type(self, labels: Tensor) -> ProblemType:
        if self.config.num_labels == 1:
            return "regression"
        return "multi_label_classification" if labels.is_floating_point() else "single_label_classification"

    def _check_single_labels(self, labels: Tensor, batch_size: int) -> Tensor:
        if labels.shape != (batch_size,) or labels.is_floating_point():
            raise ValueError(
                f"`labels` must be integers of the shape ({batch_size},) for single labels, got {labels.dtype} of "
                f"{tuple(labels.shape)}. For several labels an image set `problem_type` to "
                "'multi_label_classification'."
            )
        labels = labels.long()
        self.check_classes(labels, IGNORED_LABEL)
        return labels

    def _check_rows(self, labels: Tensor, batch_size: int, problem_type: ProblemType) -> Tensor:
        expected = (batch_size, self.config.num_labels)
        if self.config.num_labels == 1 and labels.shape == (batch_size,):
            labels = labels.unsqueeze(1)
        if labels.shape != expected:
            raise ValueError(
                f"`labels` must have the shape {expected} for `problem_type` {problem_type!r}, got "
                f"{tuple(labels.shape)}."
            )
        return labels.float()
