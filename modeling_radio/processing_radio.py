"""The processor of `AutoProcessor`: images of one size, and texts where the folder has a text tower.

Libraries that are written for CLIP (sentence-transformers, Daft, FiftyOne) stack what it returns, whatever images they
get. `RadioImageProcessor`, which `AutoImageProcessor` opens, keeps the aspect ratio of each image.
"""

from .version_radio import MINIMUM as MINIMUM  # first: later imports fail with an older transformers


# isort: split
import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedConfig
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import SizeDict
from transformers.processing_utils import ProcessorMixin
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from .checks_radio import did_you_mean, find_builtin
from .image_processing_radio import RadioImageProcessor
from .texts_radio import clean_tokens


# Arguments of `from_pretrained` that say where files come from. All else is for the image processor.
SOURCE_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "token", "revision", "subfolder")
# Our choice: an image of average shape and size, for a `size` that only bounds an area.
REFERENCE_SIDE = 512


def with_one_size(image_processor: RadioImageProcessor) -> RadioImageProcessor:
    """Return a copy that resizes every image to one size, as CLIP's, SigLIP's and DINOv2's processors do.

    An exact `size` stays. In place of any other one comes the size that a square image would get, so that images
    of other shapes lose their aspect ratio.
    """
    height, width = image_processor.get_output_size(REFERENCE_SIDE, REFERENCE_SIDE)
    image_processor = copy.copy(image_processor)
    image_processor.size = SizeDict(height=height, width=width)  # pyrefly: ignore[bad-assignment]
    return image_processor


class RadioProcessor(ProcessorMixin):
    """Image processor and tokenizer in one; see `__call__`.

    Attributes:
        image_processor: A copy of the folder's that makes images of one size, see `with_one_size`.
        tokenizer: The folder's.
        max_text_length: Longest text in tokens.
        pad_to_max: Whether texts are padded to that length, as SigLIP's towers were trained, or to the longest.
        text_cleaning: As in `RadioConfig`.

    Examples:
        >>> processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        >>> inputs = processor(images=[wide, tall], text=["a cat", "a dog"], return_tensors="pt")
        >>> inputs["pixel_values"].shape, inputs["input_ids"].shape
        (torch.Size([2, 3, 512, 512]), torch.Size([2, 64]))
    """

    def __init__(
        self,
        image_processor: RadioImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        max_text_length: int,
        pad_to_max: bool = False,
        text_cleaning: str | None = None,
    ) -> None:
        super().__init__(with_one_size(image_processor), tokenizer)
        self.max_text_length, self.pad_to_max, self.text_cleaning = max_text_length, pad_to_max, text_cleaning

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:  # pyrefly: ignore
        """Open the processor of a folder, of one without a text tower its image processor alone, with one size.

        Args:
            pretrained_model_name_or_path: Folder or Hub id.
            kwargs: Where files come from, as transformers takes it, and settings of the image processor.
        """
        pretrained_model_name_or_path = find_builtin(pretrained_model_name_or_path)
        options = {name: kwargs[name] for name in SOURCE_OPTIONS if name in kwargs}
        values, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **options)
        images = RadioImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs)
        tower = values.get("text_tower")
        if not isinstance(tower, Mapping):
            return with_one_size(images)
        tokenizer: Any = AutoTokenizer.from_pretrained(
            pretrained_model_name_or_path, trust_remote_code=False, **options
        )
        longest = tower.get("max_position_embeddings", tokenizer.model_max_length)
        pad_to_max = str(tower.get("model_type")).startswith("siglip")
        return cls(images, tokenizer, longest, pad_to_max, values.get("text_cleaning"))

    def __call__(  # noqa: PLR0913  # pyrefly: ignore[bad-override]  (what consumers of CLIP-shaped models give)
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        *,
        return_tensors: str | None = None,
        padding: Any = None,
        truncation: Any = None,
        max_length: Any = None,
        text_kwargs: Mapping[str, Any] | None = None,
        images_kwargs: Mapping[str, Any] | None = None,
        common_kwargs: Mapping[str, Any] | None = None,
        audio_kwargs: Any = None,
        videos_kwargs: Any = None,
        **settings: Any,
    ) -> BatchFeature:
        """Return the inputs of `get_image_features` and `get_text_features`, or of the zero-shot model.

        Args:
            images: As `RadioImageProcessor` takes them; they become `pixel_values`
                `(num_images, channels, height, width)`.
            text: One or several; they become `input_ids` `(num_texts, length)`. There is no mask: SigLIP was trained
                without one, and the other towers find the padding themselves.
            return_tensors: "pt", or `None` for lists.
            padding: Ignored, like `truncation` and `max_length`, here and in `text_kwargs`: texts are padded and
                cut as the tower was trained. Otherwise their vectors would be others.
            truncation: See `padding`.
            max_length: See `padding`.
            text_kwargs: Further settings of the tokenizer.
            images_kwargs: Further settings of the image processor.
            common_kwargs: `return_tensors`, or settings of the image processor.
            audio_kwargs: Ignored.
            videos_kwargs: Ignored.
            settings: Settings of the image processor.

        Raises:
            ValueError: If there are neither images nor texts; otherwise as `RadioImageProcessor`.
            TypeError: If a setting is unknown.
        """
        if images is None and text is None:
            raise ValueError("`images` or `text` must be given, got None for both.")
        settings = {"return_tensors": return_tensors, **settings, **(common_kwargs or {}), **(images_kwargs or {})}
        known = self.image_processor._valid_kwargs_names
        for name in settings:
            if name not in known:
                hint = did_you_mean(name, known)
                raise TypeError(f"`{name}` is no option of {type(self).__name__}.{hint}")
        inputs = {}
        if text is not None:
            inputs |= self._tokenize(text, {"return_tensors": settings["return_tensors"], **(text_kwargs or {})})
        if images is not None:
            inputs |= self.image_processor(images, **settings)
        return BatchFeature(inputs)

    def _tokenize(self, text: str | list[str], options: dict[str, Any]) -> dict[str, Any]:
        """Return the tokens of texts as the tower was trained."""
        if self.text_cleaning is not None:
            tokens = clean_tokens(self.tokenizer, [text] if isinstance(text, str) else text, self.max_text_length)
            return dict(BatchFeature({"input_ids": tokens.tolist()}, tensor_type=options["return_tensors"]))
        own = {
            "padding": "max_length" if self.pad_to_max else True,
            "truncation": True,
            "max_length": self.max_text_length,
            "return_attention_mask": False,
        }
        return dict(self.tokenizer(text, **{**options, **own}))

    @property
    def model_input_names(self) -> list[str]:
        """Names of what a call can return."""
        return ["input_ids", "pixel_values"]

    def to_dict(self) -> dict[str, Any]:
        """Return `processor_config.json`: settings of images stand in `preprocessor_config.json` beside it."""
        values = super().to_dict()
        values.pop("image_processor", None)
        return values

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> list[str]:  # pyrefly: ignore
        """Save all settings and the tokenizer, with `preprocessor_config.json`, which `AutoImageProcessor` reads."""
        self.image_processor.save_pretrained(save_directory)
        return super().save_pretrained(str(save_directory), **kwargs)


# With this `save_pretrained` copies this file and names it in `auto_map`, also when it runs as remote code.
RadioProcessor.register_for_auto_class("AutoProcessor")
