"""PE-Core's text tower from Meta's file: tokens and embeddings of NVIDIA's code, and refused files."""

import json
import shutil

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor, AutoTokenizer, pipeline

from modeling_radio import texts_radio
from modeling_radio.conversion import pe_core
from modeling_radio.conversion.convert import main
from modeling_radio.conversion.from_nvidia import convert
from modeling_radio.conversion.pe_core import find_pe_adaptor, open_pe_core
from modeling_radio.conversion.text_tower import add_text_tower
from modeling_radio.training.recipes.recipe import load_recipe
from modeling_radio.training.recipes.sections import RunOptions
from modeling_radio.training.student.build import build_student
from modeling_radio.training.student.provenance import lineage_of
from modeling_radio.training.teachers.registry import build_teacher


@pytest.fixture
def case(reference):
    return reference / "pe_core_text_tiny"


@pytest.fixture
def expected(case):
    return load_file(case / "expected.safetensors")


@pytest.fixture
def state(case):
    """The tensors of Meta's file."""
    tensors = load_file(case / "text_tower.safetensors")
    table = torch.zeros(49408, 12, dtype=torch.float16)
    table[tensors.pop("token_embedding.rows")] = tensors["token_embedding.weight"]
    return tensors | {"token_embedding.weight": table}


@pytest.fixture
def write(case, tmp_path):
    """Return a function that writes Meta's file."""

    def write_file(content):
        shutil.copy(case / "text_config.json", tmp_path)
        torch.save(content, tmp_path / "PE-Core-G14-448.pt")
        return tmp_path / "PE-Core-G14-448.pt"

    return write_file


@pytest.fixture
def _merges(case, tmp_path, monkeypatch):
    path = tmp_path / "package" / pe_core.MERGES.keep[0]
    path.parent.mkdir(parents=True)
    shutil.copy(case / "merges.txt.gz", path)
    monkeypatch.setattr(pe_core, "fetch_package", lambda package: tmp_path / "package")


@pytest.mark.usefixtures("_merges")
@torch.no_grad()
def test_all_ways_to_texts_give_nvidias_tokens_and_embeddings(case, expected, state, write, tmp_path):
    output = tmp_path / "output"
    assert main([str(case / "checkpoint.pth.tar"), str(output), "--text-tower", str(write(state))]) == 0
    texts = json.loads((case / "texts.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(output)
    model = AutoModelForZeroShotImageClassification.from_pretrained(output).eval()
    adaptor = AutoModel.from_pretrained(output).eval().adaptors["pe_core"]
    for tokens in (
        model.tokenize(tokenizer, texts),
        AutoProcessor.from_pretrained(output)(text=texts, return_tensors="pt")["input_ids"],
        adaptor.tokenizer(texts),
    ):
        assert torch.equal(tokens, expected["texts/tokens"])
        for encoder in (model, adaptor):
            torch.testing.assert_close(encoder.encode_text(tokens), expected["texts/embeddings"], rtol=0, atol=1e-5)
    torch.testing.assert_close(model.embed_texts(tokenizer, texts), expected["texts/normalized"], rtol=0, atol=1e-5)
    # AutoTokenizer alone pads with the end token and knows neither entities nor curly quotes.
    plain = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    plain = plain["input_ids"] * (expected["texts/tokens"] != 0)
    assert [torch.equal(*rows) for rows in zip(plain, expected["texts/tokens"], strict=True)].count(False) == 2

    classify = pipeline("zero-shot-image-classification", model=str(output), trust_remote_code=True)
    labels = ["CAT &amp;lt;", "cat <"]
    inputs = classify.preprocess(Image.new("RGB", (96, 64)), candidate_labels=labels)
    assert inputs["candidate_labels"] == labels
    assert torch.equal(*inputs["text_inputs"][0]["input_ids"])


@pytest.mark.parametrize("key", ["weights", "state_dict"])
def test_wrapped_files_open(state, expected, write, key):
    model = open_pe_core(write({key: {f"module.{name}": tensor for name, tensor in state.items()}}))
    found = model.get_text_features(expected["texts/tokens"]).pooler_output
    torch.testing.assert_close(found, expected["texts/embeddings"], rtol=0, atol=1e-5)


def test_foreign_files_are_refused(state, write):
    first = "transformer.resblocks.0.attn.in_proj_weight"
    for changes, named in (
        ({"ln_middle.weight": torch.ones(12)}, "ln_middle.weight"),
        ({"ln_final.bias": torch.ones(13)}, "final_layer_norm.bias"),
        ({first: state[first] * float("nan")}, first),
        ({"visual.proj": "a string"}, "text_tower"),
    ):
        with pytest.raises(ValueError, match=named):
            open_pe_core(write(state | changes))
    with pytest.raises(ValueError, match="positional_embedding"):
        open_pe_core(write({name: tensor for name, tensor in state.items() if name != "positional_embedding"}))
    with pytest.raises(ValueError, match="print"):
        open_pe_core(write(state | {"run": print}))


def test_an_adaptor_of_pe_core_is_needed(reference, state, write):
    model = convert(reference / "c_radio_v4_tiny" / "checkpoint.pth.tar")
    with pytest.raises(ValueError, match="text_adaptor"):
        find_pe_adaptor(model.config)
    with pytest.raises(ValueError, match="text_adaptor"):
        add_text_tower(model, write(state))


@pytest.mark.usefixtures("_merges")
def test_a_permissive_student_of_timms_network_gets_its_texts(state, write, tmp_path):
    entry = {"name": "pe_core", "kind": "timm", "source": "vit_pe_core_tiny_patch16_384.fb", "role": "semantic"}
    options = {"summary": "projected", "weights": "random"}
    settings = {"base": "permissive", "teachers": [{**entry, "options": options}]}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    recipe = load_recipe(str(path), ["data.source=images", "student.preset=radio-test"])
    native = RunOptions(run_mode="native")
    teacher = build_teacher("pe_core", kind="timm", source=entry["source"], grid_stride=16, run=native, **options)
    student = build_student(recipe, {"pe_core": teacher}).eval()
    answer = teacher.extract_features(torch.rand(1, 3, 32, 48))
    assert (answer.summary.shape, answer.features.shape) == ((1, 512), (1, 192, 2, 3))
    text = write(state | {"text_projection": torch.randn(12, 512)})
    model, tokenizer = add_text_tower(student, text)
    found = model(**tokenizer(["a cat"], return_tensors="pt"), pixel_values=torch.rand(2, 3, 32, 48))
    assert found.logits_per_image.shape == (2, 1)
    (source,) = lineage_of(model.config, recipe).teachers
    assert (source.license, source.role) == ("apache-2.0", "summary (512), features (192)")


def test_texts_are_not_read_without_ftfy(monkeypatch):
    monkeypatch.setattr(texts_radio, "ftfy", None)
    with pytest.raises(ImportError, match="ftfy"):
        texts_radio.clean_text("a cat")
