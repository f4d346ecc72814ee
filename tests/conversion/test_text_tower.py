"""A text tower packed with a converted checkpoint."""

import re
from pathlib import Path

import pytest
import torch
from nvidia_twin import TWINS, twin_config
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForZeroShotImageClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Siglip2Tokenizer,
    SiglipTextConfig,
    ViTConfig,
)

from modeling_radio import RadioConfig, RadioForZeroShotImageClassification
from modeling_radio.conversion.convert import main
from modeling_radio.conversion.from_nvidia import convert
from modeling_radio.conversion.text_tower import add_text_tower, canonicalizing, find_tower


CASE = "c_radio_v4_tiny"


@pytest.fixture
def checkpoint(reference):
    return reference / CASE / "checkpoint.pth.tar"


@pytest.fixture
def width(checkpoint):
    return {adaptor.name: adaptor for adaptor in convert(checkpoint).config.adaptor_configs}["siglip2-g"].summary_dim


@pytest.fixture
def save_teacher(build_dual_encoder, word_tokenizer, tmp_path):
    """Return a function that writes a tiny teacher's folder."""

    def save(kind, width):
        folder = tmp_path / f"{kind}-{width}"
        build_dual_encoder(kind, width).save_pretrained(folder)
        word_tokenizer.save_pretrained(folder)
        return folder

    return save


def test_command_packs_tower_and_tokenizer(reference, checkpoint, width, save_teacher, tmp_path):
    teacher, output = save_teacher("siglip", width), tmp_path / "output"
    verify = ["--verify", str(reference / CASE / "expected.safetensors")]
    assert main([str(checkpoint), str(output), "--text-tower", str(teacher), *verify]) == 0
    model = RadioForZeroShotImageClassification.from_pretrained(output).eval()
    assert model.config.text_adaptor == "siglip2-g"
    own, packed = load_file(teacher / "model.safetensors"), model.state_dict()
    for name in ("head.weight", "embeddings.token_embedding.weight", "final_layer_norm.bias"):
        assert torch.equal(packed[f"text_tower.{name}"], own[f"text_model.{name}"])
    assert torch.equal(model.logit_scale, own["logit_scale"].squeeze())
    assert torch.equal(model.logit_bias, own["logit_bias"].squeeze())
    tokenizer = AutoTokenizer.from_pretrained(output)
    tokens = tokenizer("This  is a Cat.", padding="max_length", return_tensors="pt")
    assert tokens.keys() == {"input_ids"}
    assert tokenizer.convert_ids_to_tokens(tokens["input_ids"][0][:6]) == ["this", "is", "a", "cat", "</s>", "<pad>"]
    assert tokens["input_ids"].shape == (1, 16)


def test_packed_folder_opens_with_trust_and_describes_itself(
    checkpoint, width, save_teacher, tmp_path, monkeypatch, capsys
):
    output = tmp_path / "output"
    assert main([str(checkpoint), str(output), "--text-tower", str(save_teacher("siglip", width))]) == 0
    model = AutoModelForZeroShotImageClassification.from_pretrained(output, trust_remote_code=True)
    texts = model.embed_classes(AutoTokenizer.from_pretrained(output), ["cat", "dog"])
    assert model.segment(torch.rand(1, 3, 64, 64), texts).logits.shape[:2] == (1, 2)
    text = (output / "README.md").read_text()
    assert f"siglip-{width}" in text
    assert str(tmp_path) not in text
    Image.new("RGB", (90, 60), (200, 120, 40)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", text.replace("ORG/NAME", "output"), flags=re.DOTALL))
    exec(code, {})
    assert "'label': 'a dog'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("Cat.", "cat"),
        ("this is a CAT!", "this is a cat"),
        ("ice_cream", "ice cream"),
        ("  a\tphoto \n of 'ice-cream' ", "a photo of icecream"),
        ("(a) {cat}", "a cat"),
    ],
)
def test_texts_are_read_in_canonical_form(word_tokenizer, text, canonical):
    canonicalize = canonicalizing(word_tokenizer, 16)
    assert canonicalize(text).input_ids == word_tokenizer(canonical).input_ids


def test_tokenizer_of_siglip2_keeps_its_own_steps(tmp_path):
    """Its spaces are letters, and its class is not the one that the folder names."""
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581", *"acdegot", "ca", "cat", "\u2581cat"]
    merges = [("c", "a"), ("ca", "t"), ("\u2581", "cat")]
    tokenizer = Siglip2Tokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, merges=merges)
    canonicalizing(tokenizer, 16).save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.tokenize("A,  Cat!") == ["a", "\u2581cat"] == tokenizer.tokenize("a cat")
    assert again("A,  Cat!").input_ids == tokenizer("a cat").input_ids
    assert tokenizer.tokenize("A,  Cat!") != ["a", "\u2581cat"]


@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2"])
def test_teachers_of_any_kind_are_packed(kind, checkpoint, width, save_teacher):
    teacher = save_teacher(kind, width)
    model, tokenizer = add_text_tower(convert(checkpoint), teacher, "siglip2-g")
    assert model.use_sigmoid == (kind != "clip")
    if kind == "clip":  # it keeps its tokenizer
        assert tokenizer("Cat.").input_ids == AutoTokenizer.from_pretrained(teacher)("Cat.").input_ids


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--text-adaptor", "siglip2-g"], "`text_adaptor` siglip2-g needs `text_tower`"),
        (["--text-tower", "teacher", "--text-adaptor", "siglip-g"], "`text_adaptor`.*Did you mean 'siglip2-g'"),
        (["--text-tower", "wide"], "no adaptor would fit"),
        (["--text-tower", "nowhere"], "`text_tower` .*nowhere"),
        (["--text-tower", "vit"], "`text_tower` .*'vit'"),
        (["--text-tower", "siglip_text_model"], "`text_tower` .*'siglip_text_model'"),
        (["--text-tower", "mine"], "contains custom code"),
        (["--text-tower", "cut"], "`text_tower` .*damaged"),
    ],
)
def test_what_is_no_tower_of_this_checkpoint_is_one_line(
    words, message, checkpoint, width, save_teacher, tmp_path, monkeypatch, capsys
):
    """Code of a tower is neither run nor asked about."""
    monkeypatch.chdir(tmp_path)
    save_teacher("siglip", width).rename("teacher")
    save_teacher("siglip", width + 4).rename("wide")
    for config in (ViTConfig(), SiglipTextConfig()):
        config.save_pretrained(config.model_type)
    Path("mine").mkdir()
    Path("mine/mine.py").write_text("import os\nos.mkdir('touched')\nclass Mine: pass\n")
    Path("mine/config.json").write_text('{"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}')
    file = save_teacher("siglip", width).rename("cut") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])
    assert main([str(checkpoint), "output", *words]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not Path("touched").exists()
    assert not Path("output").exists()


class SlowTokenizer:
    is_fast = False


class Shouting(PreTrainedTokenizerFast):
    def __call__(self, text, **options):
        return super().__call__(text.upper(), **options)


def test_tokenizers_that_no_file_can_canonicalize_are_refused(word_tokenizer):
    shouting = Shouting(tokenizer_object=word_tokenizer.backend_tokenizer, unk_token="<unk>")
    for tokenizer in (SlowTokenizer(), shouting):
        with pytest.raises(ValueError, match=type(tokenizer).__name__):
            canonicalizing(tokenizer, 16)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (None, None),
        (("encoder.layers.0.mlp.fc1.bias", lambda tensor: None), "missing: text_model"),
        (("head.weight", lambda tensor: torch.ones(3, 3)), "shape: text_model"),
        (("head.weight", lambda tensor: tensor.fill_(float("nan"))), "infinity: text_model"),
    ],
)
def test_a_damaged_text_tower_is_refused_by_name_and_images_may_be_missing(
    change, named, checkpoint, width, save_teacher
):
    folder = save_teacher("siglip", width)
    tensors = {key: value for key, value in load_file(folder / "model.safetensors").items() if "vision" not in key}
    if change is not None:
        key = f"text_model.{change[0]}"
        tensors[key] = change[1](tensors[key])
    kept = {key: value for key, value in tensors.items() if value is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    if named is None:
        add_text_tower(convert(checkpoint), folder)
        return
    with pytest.raises(ValueError, match=named.replace("text_model", rf"text_model\.{change[0]}")):
        add_text_tower(convert(checkpoint), folder)


@pytest.mark.parametrize("text", [None, "{", '{"x": 0}', "of another tower"])
def test_a_tower_without_its_own_tokenizer_is_refused(text, checkpoint, width, save_teacher, word_tokenizer):
    folder = save_teacher("siglip", width)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    if text == "of another tower":
        word_tokenizer.add_tokens([f"word{index}" for index in range(40)] + ["of"])
        backend = word_tokenizer.backend_tokenizer
        backend.model = WordLevel({**backend.get_vocab(), "photo": 99}, unk_token="<unk>")
        word_tokenizer.save_pretrained(folder)
    elif text is not None:
        (folder / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match="`text_tower`"):
        add_text_tower(convert(checkpoint), folder)


@pytest.mark.parametrize(
    ("release", "asked", "tower"),
    [
        ("nvidia/C-RADIOv4-H", None, "google/siglip2-giant-opt-patch16-384"),
        ("nvidia/C-RADIOv3-B", None, "google/siglip2-so400m-patch16-naflex"),
        ("nvidia/C-RADIOv3-B", "clip", "apple/DFN5B-CLIP-ViT-H-14-378"),
        ("nvidia/RADIO-L", None, "google/siglip-so400m-patch14-384"),
    ],
)
def test_auto_takes_the_tower_of_the_text_adaptor(release, asked, tower):
    config = twin_config(TWINS[release])
    assert find_tower(config, asked) == (tower, asked or TWINS[release].teachers[0 if "v4" in release else 1].name)


def test_auto_goes_by_the_teachers_network_and_names_what_it_knows():
    config = twin_config(TWINS["nvidia/C-RADIOv3-B"])
    config.nvidia_source["args"]["teachers"][1]["model"] = "siglip2-g-384"
    assert find_tower(config)[0] == "google/siglip2-giant-opt-patch16-384"
    with pytest.raises(ValueError, match=r"`text_adaptor` .*'siglip2'"):
        find_tower(config, "siglip2-g")
    with pytest.raises(ValueError, match=r"`text_tower`.*siglip2-g, siglip2, siglip, clip"):
        find_tower(RadioConfig.from_preset("radio-test"))
