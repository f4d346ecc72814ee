"""SAM3 on RADIO's features: transformers' models of SAM3 with RADIO and its sam3 adaptor in place of the trunk.

Importing this module registers the trunk with transformers, so that `Sam3Model.from_pretrained` opens a saved pair.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    Sam3Config,
    Sam3Model,
    Sam3TrackerConfig,
    Sam3TrackerModel,
    Sam3TrackerVideoConfig,
    Sam3TrackerVideoModel,
    Sam3VideoConfig,
    Sam3VideoModel,
)
from transformers.modeling_outputs import BaseModelOutput

from .configuration_radio import RadioConfig
from .modeling_radio import RadioModel
from .saving_radio import copy_source_files


class RadioSam3TrunkConfig(PreTrainedConfig):
    """Configuration of the trunk: the fields that SAM3 reads, and all of RADIO's.

    Attributes:
        hidden_size: Channels of the features, those of SAM3's own trunk.
        patch_size: Pixels of the image per feature, along a side.
        image_size: Side in pixels of the images, which gives SAM3's own number of features.
        radio: RADIO's configuration, a JSON object as in its `config.json`.
        adaptor_name: RADIO's adaptor for SAM3.
        window_size: ViTDet window in tokens, as in `RadioModel.forward`.
    """

    model_type = "radio_sam3_trunk"

    hidden_size: int = 1024
    patch_size: int = 16
    image_size: int = 1152
    radio: dict[str, Any] | None = None
    adaptor_name: str = "sam3"
    window_size: int | str | None = None


class RadioSam3Trunk(PreTrainedModel):
    """RADIO in the place of SAM3's trunk, `sam3_model.vision_encoder.backbone`.

    Shapes of `forward`: images as SAM3's processor makes them, in [-1, 1], `(batch, 3, image_size, image_size)`, to
    features in row-major order `(batch, rows * cols, hidden_size)`.
    """

    config_class = RadioSam3TrunkConfig
    config: RadioSam3TrunkConfig  # pyrefly: ignore[bad-override-mutable-attribute]
    main_input_name = "pixel_values"
    base_model_prefix = "backbone"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: RadioSam3TrunkConfig) -> None:
        super().__init__(config)
        radio_config = RadioConfig.from_dict(config.radio or {})
        radio_config._attn_implementation = config._attn_implementation
        self.radio = RadioModel(radio_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the patch projection."""
        return self.radio.get_input_embeddings()

    def forward(
        self,
        pixel_values: Tensor,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **_others: Any,  # SAM3 hands down all that it was called with, also its processor's `original_sizes`
    ) -> BaseModelOutput:
        config, side = self.config, self.config.image_size
        grid_size = side // config.patch_size
        if pixel_values.shape[-2:] != (side, side):
            raise ValueError(
                f"`pixel_values` must have {side} x {side} pixels for SAM3's {grid_size} x {grid_size} features, "
                f"got {tuple(pixel_values.shape[-2:])}. Call the processor with "
                f"`size={{'height': {side}, 'width': {side}}}`."
            )
        output = self.radio(
            ((pixel_values + 1) / 2).to(self.radio.dtype),
            window_size=config.window_size,
            adaptor_names=[config.adaptor_name],
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        return BaseModelOutput(
            last_hidden_state=output.adaptors[config.adaptor_name].features,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )


# Configurations and models have names of their own so that remote code can bring the trunk's class along.
class RadioSam3Config(Sam3Config):
    """SAM3's configuration."""


class RadioSam3Model(Sam3Model):
    """SAM3 on RADIO as `AutoModel` opens a folder of `save_attached` with `trust_remote_code=True`."""

    config_class = RadioSam3Config


class RadioSam3TrackerConfig(Sam3TrackerConfig):
    """Configuration of SAM3's masks of points and boxes."""


class RadioSam3TrackerModel(Sam3TrackerModel):
    """Masks of points and boxes on RADIO, as `RadioSam3Model`; `AutoModelForMaskGeneration` opens it too."""

    config_class = RadioSam3TrackerConfig


class RadioSam3TrackerVideoConfig(Sam3TrackerVideoConfig):
    """Configuration of SAM3's tracker of points and boxes in video."""


class RadioSam3TrackerVideoModel(Sam3TrackerVideoModel):
    """Tracker of points and boxes in video on RADIO, as `RadioSam3Model`."""

    config_class = RadioSam3TrackerVideoConfig


class RadioSam3VideoConfig(Sam3VideoConfig):
    """Configuration of SAM3's tracker of words in video."""


class RadioSam3VideoModel(Sam3VideoModel):
    """Tracker of words in video on RADIO, as `RadioSam3Model`."""

    config_class = RadioSam3VideoConfig


SAM3 = {
    Sam3Model: RadioSam3Model,
    Sam3TrackerModel: RadioSam3TrackerModel,
    Sam3TrackerVideoModel: RadioSam3TrackerVideoModel,
    Sam3VideoModel: RadioSam3VideoModel,
}
"""Models of transformers that RADIO can be attached to, and the classes that open their folders."""
Sam3 = Sam3Model | Sam3TrackerModel | Sam3TrackerVideoModel | Sam3VideoModel


# `exist_ok`: a checkpoint's own copy of this file may be in the process too.
AutoConfig.register(RadioSam3TrunkConfig.model_type, RadioSam3TrunkConfig, exist_ok=True)
AutoModel.register(RadioSam3TrunkConfig, RadioSam3Trunk, exist_ok=True)


def attach_to_sam3(
    sam3_model: Sam3, radio: RadioModel, adaptor_name: str = "sam3", window_size: int | str | None = None
) -> Any:
    """Let SAM3 run on RADIO's features: replace its trunk in place, and nothing else.

    The images must then be larger, since RADIO's patches are: 1152 pixels for SAM3's 72 x 72 features with 16-pixel
    patches. Everything else is as before: prompts of texts, points and boxes, memory of video, post-processing,
    `save_pretrained`.

    Args:
        sam3_model: Transformers' `Sam3Model`, `Sam3TrackerModel`, `Sam3TrackerVideoModel` or `Sam3VideoModel`. It is
            changed; its own trunk is let go.
        radio: RADIO with an adaptor for SAM3. Its weights are shared.
        adaptor_name: Name of that adaptor.
        window_size: ViTDet window in tokens, as in `RadioModel.forward`; `None` takes `vitdet_window_size` of RADIO.

    Returns:
        `sam3_model`.

    Raises:
        ValueError: If the model is of another class, RADIO has no such adaptor, its features are not as wide as those
            of SAM3's trunk, or SAM3's grid of features cannot be reached with its patches.

    Examples:
        >>> sam3 = attach_to_sam3(Sam3Model.from_pretrained("facebook/sam3"), radio, window_size=8)
        >>> processor = Sam3Processor.from_pretrained("facebook/sam3")
        >>> side = sam3.config.vision_config.image_size  # 1152
        >>> inputs = processor(image, text="person", size={"height": side, "width": side}, return_tensors="pt")
        >>> processor.post_process_instance_segmentation(sam3(**inputs), target_sizes=inputs["original_sizes"].tolist())

    References:
        C-RADIOv4 tech report, section 3.2. https://arxiv.org/abs/2601.17237
    """
    encoder = _vision_encoder(sam3_model)
    config = _trunk_config(encoder.config.backbone_config, radio, adaptor_name, window_size)
    radio.to(sam3_model.device)  # pyrefly: ignore[bad-argument-type]
    encoder.backbone = _wrap(config, radio).train(sam3_model.training)
    encoder.config.backbone_config = config
    if not isinstance(sam3_model, Sam3Model):
        _tell_tracker(sam3_model.tracker_model if isinstance(sam3_model, Sam3VideoModel) else sam3_model, config)
    return sam3_model


def _vision_encoder(sam3_model: Any) -> Any:
    """Return what holds the trunk.

    Raises:
        ValueError: If the model's class is not in `SAM3`.
    """
    if not isinstance(sam3_model, tuple(SAM3)):
        names = ", ".join(each.__name__ for each in SAM3)
        raise ValueError(f"`sam3_model` must be one of transformers' {names}, got {type(sam3_model).__name__}.")
    detector = sam3_model.detector_model if isinstance(sam3_model, Sam3VideoModel) else sam3_model
    return detector.vision_encoder


def _tell_tracker(tracker: Any, config: RadioSam3TrunkConfig) -> None:
    """Tell a tracker the size of the images, in which its prompts are measured; its grid stays."""
    tracker.config.vision_config.backbone_config = config
    prompts = tracker.config.prompt_encoder_config
    prompts.image_size, prompts.patch_size = config.image_size, config.patch_size
    tracker.prompt_encoder.input_image_size = config.image_size
    if isinstance(tracker, Sam3TrackerVideoModel):
        tracker.config.image_size = tracker.image_size = config.image_size


def save_attached(sam3_model: Sam3, folder: str | Path) -> None:
    """Save SAM3 on RADIO as one folder with its source files.

    `AutoModel.from_pretrained(folder, trust_remote_code=True)` opens it anywhere. `Sam3Model.from_pretrained(folder)`
    needs `import modeling_radio` before it and ends in `KeyError: 'radio_sam3_trunk'` without.

    Args:
        sam3_model: Model that `attach_to_sam3` returned.
        folder: Where to save; it is created.

    Raises:
        ValueError: If the model has a trunk of its own.
    """
    if not isinstance(_vision_encoder(sam3_model).backbone, RadioSam3Trunk):
        raise ValueError(
            "`sam3_model` must run on RADIO, got one on its own trunk. Call `attach_to_sam3` first, or use its "
            "`save_pretrained`."
        )
    own: Any = next(own for stock, own in SAM3.items() if isinstance(sam3_model, stock))
    opened = [AutoModel, AutoModelForMaskGeneration] if own is RadioSam3TrackerModel else [AutoModel]
    sam3_model.config.auto_map = {
        "AutoConfig": f"sam3_radio.{own.config_class.__name__}",
        **{auto_class.__name__: f"sam3_radio.{own.__name__}" for auto_class in opened},
    }
    # Under the names of the modules: transformers renames weights of its own classes alone when it opens them.
    sam3_model.save_pretrained(folder, save_original_format=False)
    copy_source_files(folder)


def _trunk_config(
    own: Any, radio: RadioModel, adaptor_name: str, window_size: int | str | None
) -> RadioSam3TrunkConfig:
    adaptor = radio.config.adaptor(adaptor_name, argument="adaptor_name")
    if adaptor.feature_dim != own.hidden_size:
        raise ValueError(
            f"`feature_dim` of adaptor {adaptor_name!r} must be {own.hidden_size}, the channels of SAM3's trunk, got "
            f"{adaptor.feature_dim}. It was distilled from another SAM."
        )
    patch_size, remainder = divmod(radio.config.patch_size, adaptor.upsample_factor)
    grid_size = own.image_size // own.patch_size
    image_size = grid_size * patch_size
    if remainder or image_size % radio.patch_size or image_size > radio.max_resolution:
        raise ValueError(
            f"`radio` must take images of {image_size} pixels a side for SAM3's {grid_size} x {grid_size} features, "
            f"since adaptor {adaptor_name!r} has one every {patch_size} pixels, got multiples of {radio.patch_size} up "
            f"to {radio.max_resolution}."
        )
    return RadioSam3TrunkConfig(
        hidden_size=own.hidden_size,
        patch_size=patch_size,
        image_size=image_size,
        radio=radio.config.to_dict(),
        adaptor_name=adaptor_name,
        window_size=window_size,
    )


def _wrap(config: RadioSam3TrunkConfig, radio: RadioModel) -> RadioSam3Trunk:
    """Return a trunk around `radio` itself."""
    with torch.device("meta"):
        trunk = RadioSam3Trunk(config)
    trunk.radio = radio
    return trunk
