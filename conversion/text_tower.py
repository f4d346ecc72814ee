"""Joins a converted RADIO with the text tower and the tokenizer of one of its teachers."""

import re
import string
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from tokenizers import Regex, Tokenizer, normalizers
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast, SiglipTokenizer
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from modeling_radio import RadioConfig, RadioForZeroShotImageClassification, RadioModel
from modeling_radio.checks_radio import check_choice, own_name, own_names
from modeling_radio.conversion.pe_core import find_pe_adaptor, open_pe_core, pe_tokenizer
from modeling_radio.nvidia.fit import check_fit
from modeling_radio.nvidia.tensors import check_finite
from modeling_radio.tokenizer import open_tokenizer


DUAL_ENCODERS = ("siglip", "siglip2", "clip")
"""`model_type` of the teachers whose text tower `RadioForZeroShotImageClassification` can use."""

AUTO = "auto"
"""In place of a text tower: that of the model's text adaptor, by `TOWERS`."""
TOWERS = {
    "siglip2-g": "google/siglip2-giant-opt-patch16-384",
    "siglip2": "google/siglip2-so400m-patch16-naflex",
    "siglip": "google/siglip-so400m-patch14-384",
    "clip": "apple/DFN5B-CLIP-ViT-H-14-378",
}
"""By the name of an adaptor its teacher on the Hub; where there are several, the first one is taken.

SigLIP2: `_VERSION_MAP` of radio/siglip2_adaptor.py in NVlabs/RADIO (c0f3701), by the `model` of the teacher, which is
`siglip2-g-384` in C-RADIOv4 and `siglip2-so400m` in C-RADIOv3. SigLIP and DFN CLIP: the teachers of RADIOv2.5
(https://arxiv.org/abs/2412.07679), as transformers opens them.
"""

_IMAGE_PARTS = ("vision_model.", "visual_projection.")

CANONICAL_SAMPLE = "a photo of a cat"
"""A text that canonicalization does not change."""


def add_text_tower(
    model: RadioModel, source: str | Path, text_adaptor: str | None = None
) -> tuple[RadioForZeroShotImageClassification, PreTrainedTokenizerBase]:
    """Open a teacher's text tower and join it with RADIO.

    Args:
        model: RADIO with an adaptor for that teacher.
        source: Folder or Hub name of the teacher in transformers' format, with weights and tokenizer, for example
            "google/siglip2-giant-opt-patch16-384"; or Meta's file PE-Core-*.pt; or "auto", see `find_tower`.
        text_adaptor: As in `RadioForZeroShotImageClassification.from_parts`.

    Returns:
        The zero-shot model and its tokenizer.

    Raises:
        ValueError: If the source is no SigLIP, SigLIP2 or CLIP, fits no adaptor, has damaged or missing weights of its
            text tower, or a tokenizer that is missing, another tower's, or cannot be made to canonicalize texts.
        OSError: If the source cannot be read.
    """
    if source == AUTO:
        source, text_adaptor = find_tower(model.config, text_adaptor)
    if Path(source).is_file():
        teacher = open_pe_core(Path(source))
        adaptor = text_adaptor or find_pe_adaptor(model.config)
        joined = RadioForZeroShotImageClassification.from_parts(model, teacher, adaptor)
        joined.config.text_cleaning = "ftfy"
        return joined, pe_tokenizer(joined.max_text_length)
    if not Path(source).exists() and str(source).count("/") != 1:
        raise ValueError(f"`text_tower` must be a folder or a Hub name ORG/NAME, got {str(source)!r}.")
    model_type = AutoConfig.from_pretrained(source, trust_remote_code=False).model_type
    if model_type not in DUAL_ENCODERS:
        raise ValueError(
            f"`text_tower` must have both towers and one of the model types {', '.join(DUAL_ENCODERS)}, got "
            f"{model_type!r} in {str(source)!r}."
        )
    joined = RadioForZeroShotImageClassification.from_parts(model, _open_teacher(source), text_adaptor)
    tokenizer = _open_tokenizer(source, joined.text_tower.config.vocab_size)
    return joined, canonicalizing(tokenizer, joined.max_text_length) if joined.use_sigmoid else tokenizer


def find_tower(config: RadioConfig, text_adaptor: str | None = None) -> tuple[str, str]:
    """Return the Hub name of the text tower of a model's text adaptor, and that adaptor.

    Args:
        config: Configuration of the model.
        text_adaptor: An adaptor in `TOWERS`; None takes the first of them that the model has.

    Raises:
        ValueError: If the model has no adaptor of `TOWERS`, or `text_adaptor` is another adaptor.
    """
    names = [name for name in TOWERS if name in config.all_adaptor_names]
    if not names:
        raise ValueError(
            f"`text_tower` must be a folder or a Hub name, got {AUTO!r} for the adaptors {config.all_adaptor_names}: "
            f"known are the towers of {', '.join(TOWERS)}."
        )
    given = own_names("text_adaptor", names[:1] if text_adaptor is None else [text_adaptor], names)
    check_choice("text_adaptor", given[0], names)
    teachers = ((config.nvidia_source or {}).get("args") or {}).get("teachers") or []
    models = [str(teacher.get("model")) for teacher in teachers if teacher["name"] == given[0]]
    return TOWERS.get(own_name(models[0], TOWERS) if models else "", TOWERS[given[0]]), given[0]


def _open_teacher(source: str | Path) -> Any:
    """Open both towers; weights of the image tower, which is not used, may be missing.

    Raises:
        ValueError: If weights of the text tower are damaged, missing, of another shape or not finite.
    """
    try:
        teacher, loaded = AutoModel.from_pretrained(
            source,
            dtype="auto",
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except SafetensorError as error:
        raise ValueError(f"The weights of `text_tower` {str(source)!r} are damaged: {error}.") from error
    missing = sorted(key for key in loaded["missing_keys"] if not key.startswith(_IMAGE_PARTS))
    misshapen = sorted(key for key, *_ in loaded["mismatched_keys"] if not key.startswith(_IMAGE_PARTS))
    check_fit([], missing, misshapen)
    check_finite({key: value for key, value in teacher.state_dict().items() if not key.startswith(_IMAGE_PARTS)}, {})
    return teacher


def _open_tokenizer(source: str | Path, vocabulary_size: int) -> PreTrainedTokenizerBase:
    """Open the tokenizer of a text tower.

    Raises:
        ValueError: If it cannot be read, has no words, or has more tokens than the tower.
    """
    tokenizer = open_tokenizer(source, "text_tower")
    tokens = tokenizer(CANONICAL_SAMPLE).input_ids
    if not set(tokens) - set(tokenizer.all_special_ids):  # empty, where there are no files
        raise ValueError(
            f"The tokenizer of `text_tower` {str(source)!r} must know words, got none of {CANONICAL_SAMPLE!r}. Add the "
            "files of the teacher's tokenizer, such as tokenizer.json."
        )
    if max(tokens) >= vocabulary_size:
        raise ValueError(
            f"The tokenizer of `text_tower` {str(source)!r} must be the tower's, which has {vocabulary_size} tokens, "
            f"got token {max(tokens)}."
        )
    tokenizer._processor_class = None  # that of the teacher, which `AutoProcessor` would open for the whole folder
    return tokenizer


def canonicalizing(tokenizer: PreTrainedTokenizerBase, max_length: int) -> PreTrainedTokenizerBase:
    """Return a tokenizer for a SigLIP tower that canonicalizes texts.

    As OpenCLIP's `canonicalize`: underscores become spaces, punctuation is removed, letters become lowercase, runs of
    white space become one space. The steps are part of `tokenizer.json`, so that no user can forget them.

    Args:
        tokenizer: The tower's own. transformers' `SiglipTokenizer` does this already and is returned unchanged.
        max_length: Length of padded and truncated texts in tokens.

    Raises:
        ValueError: If the tokenizer is not one of the `tokenizers` library, or would tokenize canonical texts
            differently.

    References:
        https://github.com/NVlabs/RADIO/pull/142
    """
    if isinstance(tokenizer, SiglipTokenizer):
        return tokenizer
    if not tokenizer.is_fast:
        raise ValueError(
            f"The text tower's tokenizer, a {type(tokenizer).__name__}, cannot be made to canonicalize texts: it must "
            "be a fast one, with a `tokenizer.json`."
        )
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    own_steps = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = normalizers.Sequence([*_canonical_steps(), *own_steps])
    result = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=max_length,
        padding_side="right",
        model_input_names=["input_ids"],  # SigLIP was trained without a mask
        **tokenizer.special_tokens_map,
    )
    if result(CANONICAL_SAMPLE).input_ids != tokenizer(CANONICAL_SAMPLE).input_ids:
        raise ValueError(
            f"The text tower's tokenizer, a {type(tokenizer).__name__}, tokenizes {CANONICAL_SAMPLE!r} differently "
            "once it is written as `tokenizer.json`: it does more than that file can express."
        )
    return result


def _canonical_steps() -> list[Any]:
    return [
        normalizers.Replace("_", " "),
        normalizers.Replace(Regex(f"[{re.escape(string.punctuation)}]"), ""),
        normalizers.Lowercase(),
        normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Strip(),
    ]
