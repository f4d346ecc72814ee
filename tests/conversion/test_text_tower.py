"""A text tower packed with a converted checkpoint."""

import re

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForZeroShotImageClassification,
    AutoTokenizer,
    BertConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    Siglip2Tokenizer,
    Siglip2VisionConfig,
    SiglipTextConfig,
    SiglipVisionConfig,
    VisionTextDualEncoderConfig,
    ViTConfig,
)

from conversion.from_nvidia import convert, main
from conversion.text_tower import add_text_tower, canonicalizing
from modeling_radio import RadioForZeroShotImageClassification


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


def test_command_packs_tower_and_tokenizer(checkpoint, width, save_teacher, tmp_path):
    teacher, output = save_teacher("siglip", width), tmp_path / "output"
    assert main([str(checkpoint), str(output), "--text-tower", str(teacher)]) == 0
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


def test_packed_folder_still_equals_the_reference(reference, checkpoint, width, save_teacher, tmp_path):
    expected = str(reference / CASE / "expected.safetensors")
    command = [str(checkpoint), str(tmp_path / "output"), "--text-tower", str(save_teacher("siglip", width))]
    assert main([*command, "--verify", expected]) == 0


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


def test_adaptor_is_chosen_by_name(checkpoint, width, save_teacher, tmp_path, capsys):
    command = [str(checkpoint), str(tmp_path / "output"), "--text-tower", str(save_teacher("siglip", width))]
    assert main([*command, "--text-adaptor", "siglip2-g"]) == 0
    assert main([*command, "--overwrite", "--text-adaptor", "siglip-g"]) == 1
    error = capsys.readouterr().err
    assert "`text_adaptor` must be one of" in error
    assert "got 'siglip-g'. Did you mean 'siglip2-g'?" in error


def test_tower_of_another_width_is_refused(checkpoint, width, save_teacher, tmp_path, capsys):
    output = tmp_path / "output"
    assert main([str(checkpoint), str(output), "--text-tower", str(save_teacher("siglip", width + 4))]) == 1
    error = capsys.readouterr().err
    assert f"embeddings {width + 4} wide, got None, and no adaptor would fit" in error
    assert f"siglip2-g ({width})" in error
    assert not output.exists()


def test_adaptor_without_a_tower_is_refused(checkpoint, tmp_path, capsys):
    assert main([str(checkpoint), str(tmp_path / "output"), "--text-adaptor", "siglip2-g"]) == 1
    assert "`text_adaptor` siglip2-g needs `text_tower`" in capsys.readouterr().err


@pytest.mark.parametrize(
    "config",
    [
        BertConfig(),
        ViTConfig(),
        CLIPTextConfig(),
        CLIPVisionConfig(),
        SiglipTextConfig(),
        SiglipVisionConfig(),
        Siglip2VisionConfig(),
        VisionTextDualEncoderConfig.from_vision_text_configs(ViTConfig(), BertConfig()),
    ],
    ids=lambda config: config.model_type,
)
def test_source_that_is_no_dual_encoder_is_refused(config, checkpoint, tmp_path, capsys):
    config.save_pretrained(tmp_path / "tower")
    assert main([str(checkpoint), str(tmp_path / "output"), "--text-tower", str(tmp_path / "tower")]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    rule = "`text_tower` must have both towers and one of the model types siglip, siglip2, clip, got "
    assert error == f"from_nvidia: error: {rule}{config.model_type!r} in {str(tmp_path / 'tower')!r}."
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2"])
def test_whole_teachers_of_any_kind_are_packed(kind, checkpoint, width, save_teacher, tmp_path):
    arguments = ["--text-tower", str(save_teacher(kind, width)), "--text-adaptor", "siglip2-g"]
    assert main([str(checkpoint), str(tmp_path / "output"), *arguments]) == 0
    model = RadioForZeroShotImageClassification.from_pretrained(tmp_path / "output")
    assert model.use_sigmoid == (kind != "clip")


def test_code_of_a_tower_is_neither_run_nor_asked_about(checkpoint, tmp_path, capsys):
    code = f"import os\nos.mkdir({str(tmp_path / 'touched')!r})\nclass Mine: pass\n"
    (tmp_path / "tower").mkdir()
    (tmp_path / "tower" / "mine.py").write_text(code)
    (tmp_path / "tower" / "config.json").write_text('{"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}')
    assert main([str(checkpoint), str(tmp_path / "output"), "--text-tower", str(tmp_path / "tower")]) == 1
    assert f"from_nvidia: error: The repository {tmp_path / 'tower'} contains custom code" in capsys.readouterr().err
    assert not (tmp_path / "touched").exists()


def test_missing_source_is_one_clear_line(checkpoint, tmp_path, capsys):
    assert main([str(checkpoint), str(tmp_path / "output"), "--text-tower", str(tmp_path / "nowhere")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("from_nvidia: error: `text_tower` must be a folder or a Hub name ORG/NAME, got '")
    assert error.endswith("nowhere'.\n")


def test_clip_keeps_its_tokenizer(checkpoint, save_teacher, width):
    teacher = save_teacher("clip", width)
    model, tokenizer = add_text_tower(convert(checkpoint), teacher, "siglip2-g")
    assert not model.use_sigmoid
    assert tokenizer("Cat.").input_ids == AutoTokenizer.from_pretrained(teacher)("Cat.").input_ids


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


def test_slow_tokenizers_are_refused(word_tokenizer):
    class SlowTokenizer:
        is_fast = False

    with pytest.raises(
        ValueError, match="a SlowTokenizer, cannot be made to canonicalize texts: it must be a fast one"
    ):
        canonicalizing(SlowTokenizer(), 16)


def test_tokenizers_that_do_more_than_their_file_are_refused(word_tokenizer):
    class Shouting(type(word_tokenizer)):
        def __call__(self, text, **options):
            return super().__call__(text.upper(), **options)

    tokenizer = Shouting(tokenizer_object=word_tokenizer.backend_tokenizer, unk_token="<unk>")
    with pytest.raises(ValueError, match="a Shouting, tokenizes 'a photo of a cat' differently once"):
        canonicalizing(tokenizer, 16)


def drop_layer(tensors):
    for key in [key for key in tensors if key.startswith("text_model.encoder.layers.0.mlp")]:
        del tensors[key]


DAMAGES = {
    "missing": (drop_layer, r"4 missing: text_model\.encoder\.layers\.0\.mlp\.fc1\.bias, "),
    "misshapen": (
        lambda tensors: tensors.update({"text_model.head.weight": torch.ones(3, 3)}),
        r"1 of another shape: text_model\.head\.weight",
    ),
    "nan": (
        lambda tensors: tensors["text_model.head.weight"].view(-1)[:1].fill_(float("nan")),
        r"1 hold NaN or infinity: text_model\.head\.weight",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_towers_are_refused_by_name(damage, checkpoint, width, save_teacher):
    edit, message = DAMAGES[damage]
    folder = save_teacher("siglip", width)
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        add_text_tower(convert(checkpoint), folder)


def test_images_of_a_tower_may_be_missing(checkpoint, width, save_teacher):
    folder = save_teacher("siglip", width)
    tensors = {key: value for key, value in load_file(folder / "model.safetensors").items() if "vision" not in key}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    add_text_tower(convert(checkpoint), folder)


def test_a_cut_file_of_a_tower_is_one_line(checkpoint, width, save_teacher, tmp_path, capsys):
    file = save_teacher("siglip", width) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])
    assert main([str(checkpoint), str(tmp_path / "output"), "--text-tower", str(file.parent)]) == 1
    assert f"error: The weights of `text_tower` {str(file.parent)!r} are damaged: " in capsys.readouterr().err
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "must know words|cannot be read"),
        ("{", "cannot be read: "),
        ("", "cannot be read: "),
        ('{"x": 0}', "cannot be read: "),
    ],
)
def test_a_tower_without_its_tokenizer_is_refused(text, message, checkpoint, width, save_teacher):
    folder = save_teacher("siglip", width)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    if text is not None:
        (folder / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match=f"The tokenizer of `text_tower` '.*' ({message})"):
        add_text_tower(convert(checkpoint), folder)


def test_a_tokenizer_of_another_tower_is_refused(checkpoint, width, save_teacher, word_tokenizer):
    folder = save_teacher("siglip", width)
    word_tokenizer.add_tokens([f"word{index}" for index in range(40)] + ["of"])
    backend = word_tokenizer.backend_tokenizer
    vocabulary = {**backend.get_vocab(), "photo": 99}
    backend.model = WordLevel(vocabulary, unk_token="<unk>")
    word_tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match="must be the tower's, which has 32 tokens, got token 99"):
        add_text_tower(convert(checkpoint), folder)
