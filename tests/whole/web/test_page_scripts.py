"""The page and the package compute the same: preprocessing, components, masks."""

import numpy as np
import pytest
import torch
from node import run_module
from PIL import Image
from tiny_site import build_radio, build_tokenizer, save_image

from modeling_radio import RadioImageProcessor
from modeling_radio.figures.features import fit_pca_basis, pca_colors
from modeling_radio.radseg_radio import DENOISING, find_unlikely


@pytest.mark.parametrize(
    ("width", "height", "longest", "step"),
    [(200, 141, 96, 16), (141, 200, 64, 64), (70, 50, 128, 16), (300, 20, 96, 16), (97, 97, 96, 32), (96, 64, 96, 16)],
)
def test_pixels_are_the_processors(tmp_path, width, height, longest, step):
    picture = Image.open(save_image(tmp_path / "a.png", (width, height)))
    config = build_radio().config
    processor = RadioImageProcessor.from_model_config(config, size={"longest_edge": longest}, size_divisor=step)
    wanted = processor(picture, return_tensors="np")["pixel_values"][0]
    given = {"bytes": np.asarray(picture).flatten().tolist(), "from": {"height": height, "width": width}}
    size = run_module("preprocessing.js", f"page.outputSize({height}, {width}, {longest}, {step})")
    assert (size["height"], size["width"]) == wanted.shape[1:]
    setup = "const bytes = page.resize(Uint8ClampedArray.from(given.bytes), given.from, given.to);"
    found = run_module("preprocessing.js", "page.toPixelValues(bytes, given.to)", {**given, "to": size}, setup=setup)
    pixels = np.array(found, dtype=np.float32).reshape(wanted.shape)
    assert np.array_equal(pixels, wanted)


def test_sizes_are_the_processors():
    generator = torch.Generator().manual_seed(0)
    config = build_radio().config
    sides = torch.randint(1, 3000, (60, 2), generator=generator).tolist()
    cases = [(*each, longest, step) for each in sides for longest, step in ((96, 16), (128, 64), (112, 14))]
    found = run_module("preprocessing.js", "given.map((each) => page.outputSize(...each))", cases)
    for (height, width, longest, step), size in zip(cases, found, strict=True):
        processor = RadioImageProcessor.from_model_config(
            config, size={"longest_edge": longest}, size_divisor=step, patch_size=step, max_img_size=8 * longest
        )
        assert processor.get_output_size(height, width) == (size["height"], size["width"])


def test_colors_are_those_of_our_pictures():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(20, 20, generator=generator) * torch.linspace(3, 0.1, 20)[:, None]
    features = (torch.randn(48, 20, generator=generator) @ mixing + 5).T.reshape(1, 20, 6, 8)
    wanted = 255 * pca_colors(features, fit_pca_basis(features))[0]
    given = features[0].flatten(1).T.flatten().tolist()
    found = run_module("components.js", "page.componentColors(Float32Array.from(given), 48, 20)", given)
    colors = torch.tensor(found).view(6, 8, 4)
    assert (colors[..., 3] == 255).all()
    assert (colors[..., :3] - wanted).abs().amax() <= 1.5  # rounding, and a little of the iteration


def test_relevancy_is_the_smallest_probability_beside_a_reference():
    generator = torch.Generator().manual_seed(0)
    patches, words, references = (
        torch.nn.functional.normalize(torch.randn(count, 5, generator=generator), dim=1) for count in (7, 2, 4)
    )
    pairs = [torch.stack([patches @ word, patches @ other]) for word in words for other in references]
    wanted = torch.stack([(10 * pair).softmax(dim=0)[0] for pair in pairs]).view(2, 4, 7).amin(dim=1)
    given = {"patches": patches.flatten().tolist(), "words": words.tolist(), "references": references.tolist()}
    call = "page.relevancies(Float32Array.from(given.patches), 7, 5, given.words, given.references, 10)"
    found = torch.tensor(run_module("words.js", call, given))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_words_that_no_patch_is_sure_of_are_those_of_the_model():
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.nn.functional.normalize(torch.randn(shape, generator=generator), dim=-1)  # noqa: E731
    patches, words = draw(4, 7, 5), draw(4, 6, 5)
    words[3] = words[3, :1]  # of equal words none is likely, and all stay
    cosines = torch.einsum("bpd,bwd->bwp", patches, words)[..., None]
    wanted = find_unlikely(cosines, DENOISING)[..., 0, 0].tolist()
    assert [any(each) for each in wanted] == [True, True, True, False]
    given = {"patches": patches.flatten(1).tolist(), "words": words.tolist()}
    call = "given.words.map((words, i) => page.findUnlikely(Float32Array.from(given.patches[i]), 7, 5, words))"
    assert run_module("words.js", call, given) == wanted


def test_the_best_names_have_their_share_of_all():
    logits, labels = torch.randn(7, generator=torch.Generator().manual_seed(0)), list("abcdefg")
    found = run_module("words.js", "page.bestNames(Float32Array.from(given[0]), given[1])", [logits.tolist(), labels])
    best = logits.softmax(dim=0).topk(5)
    assert [each["name"] for each in found] == [labels[number] for number in best.indices]
    assert [each["share"] for each in found] == pytest.approx(best.values.tolist())


def test_the_map_of_a_name_is_its_logits_and_the_probability_where_they_are_highest():
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    found = run_module("words.js", "page.nameMap(Float32Array.from(given), 6, 4, 2)", logits.flatten().tolist())
    best = int(logits[:, 2].argmax())
    assert (found["map"], found["best"]) == (pytest.approx(logits[:, 2].tolist()), best)
    assert found["share"] == pytest.approx(logits[best].softmax(dim=0)[2].item())


def test_texts_that_are_too_long_keep_their_end_as_the_tokenizer_does():
    tokenizer = build_tokenizer()
    texts = ["a photo of the sky .", "otter"]
    sequences = {text: tokenizer(text)["input_ids"] for text in texts}
    for padding, to in (("longest", True), ("max_length", "max_length")):
        wanted = tokenizer(texts, padding=to, truncation=True, max_length=5, return_tensors="np")["input_ids"]
        settings = {"max_length": 5, "padding": {"id": tokenizer.pad_token_id, "to": padding}}
        given = {"sequences": sequences, "texts": texts, "settings": settings}
        setup = "const tokenizer = { encode: (text) => ({ ids: given.sequences[text] }) };"
        found = run_module("words.js", "page.tokenize(tokenizer, given.texts, given.settings)", given, setup=setup)
        assert np.array(found["tokens"]).reshape(found["dims"]).tolist() == wanted.tolist()


def test_words_are_means_of_their_prompts():
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randn(6, 4, generator=generator)
    normalize = torch.nn.functional.normalize
    wanted = normalize(normalize(prompts, dim=1).view(2, 3, 4).mean(dim=1), dim=1)
    call = "page.classVectors(Float32Array.from(given), 2, 3, 4)"
    torch.testing.assert_close(torch.tensor(run_module("words.js", call, prompts.flatten().tolist())), wanted)
