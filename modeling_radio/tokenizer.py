"""Opens tokenizers of strangers' folders; this file is of the package alone: saved folders have no copy."""

from pathlib import Path

from transformers import AutoTokenizer
from transformers.tokenization_utils_base import PreTrainedTokenizerBase


def open_tokenizer(source: str | Path, name: str = "checkpoint") -> PreTrainedTokenizerBase:
    """Open the tokenizer of a folder or a repository of the Hub.

    Args:
        source: The folder, or the Hub id.
        name: Name of the setting that it comes from, for messages.

    Raises:
        ValueError: If there is no tokenizer, or it is damaged.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except ImportError:
        raise
    except Exception as error:
        raise ValueError(f"The tokenizer of `{name}` {str(source)!r} cannot be read: {error}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(f"`{name}` must have a tokenizer, got {str(source)!r} without one.")
    return tokenizer
