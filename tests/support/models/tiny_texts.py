"""Teachers with text towers and a tokenizer, small enough for tests."""

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
)


VISION = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32, "patch_size": 16}
TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 32,
    "max_position_embeddings": 16,
    "bos_token_id": 1,
    "eos_token_id": 3,
}


def build_dual_encoder(kind: str, width: int) -> CLIPModel | SiglipModel | Siglip2Model:
    """Return a tiny random teacher with an image and a text tower."""
    if kind == "clip":
        config = CLIPConfig(text_config=TEXT, vision_config=VISION | {"hidden_size": 16}, projection_dim=width)
        return CLIPModel(config).eval()
    text, vision = TEXT | {"projection_size": width}, VISION | {"hidden_size": width}
    if kind == "siglip2":
        return Siglip2Model(Siglip2Config(text_config=text, vision_config=vision)).eval()
    return SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval()


def build_word_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole words that tells `cat`, `Cat` and `cat.` apart, as canonicalizing ones do not."""
    words = ["<pad>", "<unk>", "<s>", "</s>", "a", "photo", "of", "this", "is", "cat", "dog", "grass"]
    words += ["Cat", "cat.", "dog.", "This", "ice", "cream"]
    backend = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 3)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", eos_token="</s>")
