"""A checkpoint small enough for pages in tests: teachers' spaces, blocks with windows, words."""

from pathlib import Path

import torch
from PIL import Image
from tiny_sentences import build_sentence_tower
from transformers import BertTokenizer, PreTrainedTokenizerFast

from modeling_radio import RadioConfig, RadioForZeroShotImageClassification, RadioImageProcessor, RadioModel


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "the", "sky", "rock", "##s", "otter", "."]
WORDS += ["object", "things", "stuff", "texture"]
WIDTH = 12
ADAPTORS = [
    {"name": "clip-a", "summary_dim": WIDTH, "feature_dim": WIDTH, "hidden_size": 16},
    {"name": "sam-b", "token_index": 1, "summary_dim": None, "feature_dim": 8, "hidden_size": 16, "upsample_factor": 2},
]
PHOTOGRAPH = Path(__file__).parents[3] / "docs" / "photograph.jpg"


def build_radio(**changes: object) -> RadioModel:
    """Return a random network of three blocks, two of which may have windows."""
    torch.manual_seed(0)
    fields = {"num_hidden_layers": 3, "vitdet_num_global": 1, "adaptors": ADAPTORS, **changes}
    return RadioModel(RadioConfig.from_preset("radio-test", **fields)).eval()


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of word pieces that gives tokens alone."""
    backend = BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)}).backend_tokenizer
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=["input_ids"], **special)


def save_words(folder: Path) -> Path:
    """Write that network with a random text tower in the space of "clip-a"."""
    torch.manual_seed(0)  # the same words whichever tests ran before
    tower = build_sentence_tower(WIDTH)
    model = RadioForZeroShotImageClassification.from_parts(build_radio(), tower, "clip-a")
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    RadioImageProcessor.from_model_config(model.config).save_pretrained(folder)
    return folder


def save_plain(folder: Path, **changes: object) -> Path:
    """Write that network alone."""
    build_radio(**changes).save_pretrained(folder)
    return folder


def save_image(path: Path, size: tuple[int, int] = (200, 141)) -> Path:
    """Write a picture that every decoder reads to the bit."""
    with Image.open(PHOTOGRAPH) as image:
        image.convert("RGB").resize(size).save(path)
    return path


def save_runtime(folder: Path, *, leave_out: str = "") -> Path:
    """Write stand-ins for the runtime's files, but for one."""
    names = ["ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm", "ort.webgpu.min.mjs"]
    names += ["ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm", "tokenizers.min.mjs"]
    for name in names:
        if name != leave_out:
            path = folder / "deep" / "dist" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"// {name}")
    return folder
