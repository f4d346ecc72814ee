"""The page in a browser: what it computes, what it asks for, keys, screens, and what it says where it cannot work."""

import io
import json
import re

import numpy as np
import pytest
import torch
from browser import chromium, playwright, take_picture, watched
from local_server import serve
from PIL import Image
from tiny_site import save_image, save_words
from torch.nn import functional as F
from transformers import AutoTokenizer

from modeling_radio import RadioForZeroShotImageClassification, RadioImageProcessor, RadioModel
from modeling_radio.conversion.to_web import main
from modeling_radio.conversion.web.site import (
    SampleImage,
    copy_page,
    copy_runtime,
    copy_samples,
    find_runtime,
    write_description,
)
from modeling_radio.core.packages import PackageUnavailableError
from modeling_radio.radseg_radio import LEFT_OUT


pytestmark = pytest.mark.tour
TIMES = "\N{MULTIPLICATION SIGN}"
FLAGS = ["--sizes", "64,96", "--window-size", "2", "--precision", "fp32"]
ASK = """async ([address, backend, questions]) => {
  const { Engine } = await import(address + "page/client.js");
  const engine = new Engine(() => {});
  const opened = await engine.ask("open", { address, backend });
  const { readPicture } = await import(address + "page/picture.js");
  const blob = await (await fetch(address + opened.site.samples[0].file)).blob();
  const { rgba, height, width } = await readPicture(blob);
  const answers = [];
  for (const [command, given] of questions) {
    answers.push(await engine.ask(command, command === "see" ? { rgba, height, width, ...given } : given));
  }
  const plain = (_, value) => (ArrayBuffer.isView(value) ? Array.from(value) : value);
  return JSON.stringify({ opened, answers }, plain);
}"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_words(tmp_path_factory.mktemp("page") / "tiny")


@pytest.fixture(scope="module")
def site(checkpoint):
    try:
        find_runtime(None, backends=["wasm", "webgpu"], with_tokenizers=True)
    except PackageUnavailableError as error:
        pytest.skip(f"the runtime cannot be fetched: {error}")
    picture, folder = save_image(checkpoint.parent / "otter.png"), checkpoint.parent / "site"
    assert main([str(checkpoint), str(folder), *FLAGS, "--pictures", str(picture)]) == 0
    return folder


@pytest.fixture(scope="module")
def driver():
    with playwright() as started:
        yield started


@pytest.fixture(scope="module")
def browser(driver):
    with chromium(driver) as opened:
        yield opened


@pytest.fixture(scope="module")
def address(site):
    with serve(site) as url:
        yield f"{url}/"


@pytest.fixture
def watch(browser, address):
    """The page, loaded; nothing may have gone wrong or gone out when the test is over."""
    with watched(browser) as opened:
        opened.page.goto(address)
        opened.wait('html[data-state="ready"]:not([data-busy])')
        yield opened
        assert opened.errors == []
        assert opened.outside(address) == []
        assert any("model.weights" in url for url in opened.requests), "requests of the page's worker are seen too"


def text(watch, selector):
    return " ".join(watch.page.locator(selector).inner_text().split())


def settle(watch):
    """Wait until the page has done what was asked of it."""
    watch.page.wait_for_timeout(50)
    watch.wait("html:not([data-busy])")


def ask(watch, address, *questions, backend="wasm"):
    found = json.loads(watch.page.evaluate(ASK, [address, backend, list(questions)]))
    return found["opened"], found["answers"]


def as_array(answer):
    return np.array(answer["features"], dtype=np.float32).reshape(answer["count"], answer["width"])


@pytest.mark.parametrize("window", [None, 2])
def test_features_are_those_of_pytorch_and_onnxruntime(watch, address, site, checkpoint, window):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = RadioModel.from_pretrained(checkpoint).eval()
    step = 16 * (window or 1)
    processor = RadioImageProcessor.from_model_config(model.config, size={"longest_edge": 96}, size_divisor=step)
    pixels = processor(Image.open(site / "samples" / "1.png"), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        output = model(pixels, window_size=window or "global", adaptor_names=["clip-a", "sam-b"])
    names = {"backbone": output.features, **{name: each.features for name, each in output.adaptors.items()}}
    questions = [["see", {"size": 96, "windows": bool(window)}], *(["features", {"name": name}] for name in names)]
    opened, (seen, *answers) = ask(watch, address, *questions)
    assert (opened["backend"], opened["precision"]) == ("wasm", "fp32")
    assert (seen["height"], seen["width"]) == tuple(pixels.shape[-2:])
    graph = site / "model" / "fp32" / ("windows.onnx" if window else "global.onnx")
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    for answer, (name, wanted) in zip(answers, names.items(), strict=True):
        found = as_array(answer)
        np.testing.assert_allclose(found, wanted[0].numpy(), atol=1e-3, rtol=0)
        output_name = "features" if name == "backbone" else f"{name}_features"
        (native,) = session.run([output_name], {"pixel_values": pixels.numpy()})
        np.testing.assert_allclose(found, native[0], atol=1e-3, rtol=0)
    if window:
        assert 0.5 < seen["comparison"]["agreement"] < 0.99999  # windows act


def test_what_is_alike_and_words_are_those_of_the_model(watch, address, site, checkpoint):
    model = RadioForZeroShotImageClassification.from_pretrained(checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    processor = RadioImageProcessor.from_model_config(model.config, size={"longest_edge": 64})
    pixels = processor(Image.open(site / "samples" / "1.png"), return_tensors="pt")["pixel_values"]
    words, references = ["otter", "the rocks"], ["object", "things", "stuff", "texture"]
    with torch.no_grad():
        classes = model.embed_classes(tokenizer, [*words, *references])
        whole = {"sliding": None, "denoising": None}
        logits = model.segment(pixels, classes, source="features", **whole).logits[0].flatten(1)
        denoised = model.segment(pixels, classes[:2], source="features", sliding=None).logits[0].flatten(1)
        output = RadioModel.from_pretrained(checkpoint).eval()(pixels, adaptor_names=["clip-a", "sam-b"])
    wanted = torch.sigmoid(logits[:2] - logits[2:].amax(dim=0))
    questions = (["see", {"size": 64, "windows": False}], ["alike", {"x": 0.9, "y": 0.1}], ["words", {"words": words}])
    _, (seen, alike, found) = ask(watch, address, *questions)
    np.testing.assert_allclose(np.array(found["maps"]), wanted.numpy(), atol=1e-3)
    assert found["unlikely"] == (denoised == LEFT_OUT).all(dim=1).tolist()
    assert [each["name"] for each in alike] == ["backbone", "clip-a", "sam-b"]
    maps = {"backbone": output.features, **{name: each.features for name, each in output.adaptors.items()}}
    for each, (name, scale) in zip(alike, {"backbone": 1, "clip-a": 1, "sam-b": 2}.items(), strict=True):
        units = F.normalize(maps[name][0], dim=1)
        rows, cols = seen["rows"] * scale, seen["cols"] * scale
        assert len(units) == rows * cols
        cosines = units @ units[int(0.1 * rows) * cols + int(0.9 * cols)]
        np.testing.assert_allclose(np.array(each["cosines"]), cosines.numpy(), atol=1e-3)


def test_webgpu_gives_the_same_features(driver, address):
    """On a GPU that Chromium computes on the CPU (SwiftShader), where that is built in."""
    questions = (["see", {"size": 64, "windows": False}], ["features", {"name": "backbone"}])
    gpu = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan")
    with chromium(driver, *gpu) as browser, watched(browser) as watch:
        watch.page.goto(address)
        watch.wait('html[data-state="ready"]:not([data-busy])')
        has_adapter = watch.page.evaluate("async () => Boolean(await navigator.gpu?.requestAdapter())")
        if not has_adapter:
            pytest.skip("this Chromium has no WebGPU adapter in software")
        assert text(watch, "#backend").startswith("WebAssembly"), "an adapter without a GPU is slower by far"
        answers = [ask(watch, address, *questions, backend=backend) for backend in ("wasm", "webgpu")]
        assert [opened["backend"] for opened, _ in answers] == ["wasm", "webgpu"]
        first, second = (as_array(features) for _, (_, features) in answers)
        np.testing.assert_allclose(second, first, atol=1e-3)
        assert watch.errors == []


@pytest.mark.parametrize("precision", [pytest.param("fp16", marks=pytest.mark.slow), "int8"])
def test_smaller_weights_give_features_alike(browser, checkpoint, site, tmp_path, precision):
    """What "auto" takes where it agrees: of these random weights, 8 bits keep less."""
    flags = [*FLAGS[:-1], precision, "--no-words", "--no-webgpu", "--pictures", str(checkpoint.parent / "otter.png")]
    assert main([str(checkpoint), str(tmp_path / "site"), *flags]) == 0
    answers = []
    for folder in (site, tmp_path / "site"):
        with serve(folder) as url, watched(browser) as watch:
            watch.page.goto(f"{url}/")
            watch.wait('html[data-state="ready"]:not([data-busy])')
            questions = (["see", {"size": 96, "windows": False}], ["features", {"name": "backbone"}])
            opened, (_, features) = ask(watch, f"{url}/", *questions)
            assert f"thread · {opened['precision']}" in text(watch, "#backend")
            assert watch.errors == []
            answers.append(torch.tensor(as_array(features)))
    assert opened["precision"] == precision
    assert F.cosine_similarity(*answers).mean() > {"fp16": 0.9999, "int8": 0.99}[precision]
    assert not torch.equal(*answers)


def test_keys_alone_reach_everything(watch):
    page = watch.page
    page.locator("#picture").focus()
    page.keyboard.press("ArrowRight")  # shows the cursor in the middle
    settle(watch)
    rows, cols = 4, 6
    assert text(watch, "#announce").startswith(f"Row {rows // 2 + 1}, column {cols // 2 + 1}. Similar: Backbone")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowUp")
    settle(watch)
    assert text(watch, "#announce").startswith(f"Row {rows // 2}, column {cols // 2 + 2}.")
    page.keyboard.press("Shift+ArrowLeft")
    settle(watch)
    assert text(watch, "#announce").startswith(f"Row {rows // 2}, column 1.")
    assert page.locator("#maps canvas").first.get_attribute("aria-label").endswith("of the picture is similar.")
    page.keyboard.press("Escape")
    settle(watch)
    assert "principal components" in page.locator("#maps canvas").first.get_attribute("aria-label")

    page.locator('#sizes input[value="96"]').focus()
    page.keyboard.press("ArrowLeft")
    settle(watch)
    assert f"64 {TIMES} 48 pixels, 4 {TIMES} 3 patches" in text(watch, "#time")
    page.locator("#windows").focus()
    page.keyboard.press("Space")
    settle(watch)
    assert re.search(
        rf"64 {TIMES} 32 pixels.* with windows, \d+ ms without\. Features agree to [01]\.\d\d\d\.", text(watch, "#time")
    )
    page.locator("#words").fill("otter, sky, otter")
    page.keyboard.press("Enter")
    settle(watch)
    assert [item.split("\n")[0] for item in page.locator("#legend li").all_inner_texts()] == ["otter", "sky"]
    before = text(watch, "#legend")
    page.locator("#threshold").focus()
    for _ in range(30):
        page.keyboard.press("ArrowRight")
    assert text(watch, "#threshold-value") == "80 %"
    assert text(watch, "#legend") != before
    page.locator("#words").fill("otter, sky, rock, a photo, texture")
    page.keyboard.press("Enter")
    settle(watch)
    assert "left out" in text(watch, "#legend")
    page.locator("#denoising").press("Space")
    assert "left out" not in text(watch, "#legend")
    page.locator("#forget").press("Enter")
    settle(watch)
    assert not page.locator("#found").is_visible()


@pytest.mark.parametrize(
    ("name", "width", "height", "dark"), [("desktop-light", 1280, 860, False), ("phone-dark", 360, 740, True)]
)
def test_screens(browser, address, tmp_path, name, width, height, dark):
    """Nothing sticks out of a phone; set RADIO_SCREENSHOTS to a folder to look at them."""
    with watched(browser, width=width, height=height, dark=dark) as watch:
        watch.page.goto(address)
        watch.wait('html[data-state="ready"]:not([data-busy])')
        assert watch.page.evaluate("document.documentElement.scrollWidth") <= width
        for selector in ("#picture", "#sizes", "#words", "#maps figure:last-child"):
            box = watch.page.locator(selector).bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
        shot = take_picture(watch.page, name, tmp_path)
        pixels = np.asarray(Image.open(io.BytesIO(shot)).convert("L"))
        assert (np.median(pixels) < 64) == dark
        assert len(np.unique(pixels)) > 100  # there is a picture
        watch.page.locator("#windows").click()
        watch.page.locator("#words").fill("otter, sky")
        watch.page.keyboard.press("Enter")
        settle(watch)
        watch.page.locator("#maps canvas").first.click()
        settle(watch)
        assert watch.page.evaluate("document.documentElement.scrollWidth") <= width
        asked = take_picture(watch.page, f"{name}-asked", tmp_path)
        assert asked != shot
        assert watch.errors == []
        assert watch.outside(address) == []


def save_named(folder, runtime):
    """Write a page of three classes, the colors; its model has the mean color of each patch as logits and features."""
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node
    nodes = [
        node("AveragePool", ["pixel_values"], ["means"], kernel_shape=[16, 16], strides=[16, 16]),
        node("Reshape", ["means", "flat"], ["rows"]),
        node("Transpose", ["rows"], ["features"], perm=[0, 2, 1]),
        node("Mul", ["features", "scale"], ["patch_logits"]),
        node("ReduceMean", ["patch_logits", "axis"], ["logits"], keepdims=0),
    ]
    value = lambda name, shape: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)  # noqa: E731
    constants = {"flat": np.array([0, 3, -1]), "scale": np.float32([4]), "axis": np.array([1])}
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()]
    outputs = [value("features", [1, None, 3]), value("patch_logits", [1, None, 3]), value("logits", [1, 3])]
    graph = onnx.helper.make_graph(nodes, "g", [value("pixel_values", [1, 3, None, None])], outputs, tensors)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    (folder / "model").mkdir(parents=True)
    onnx.save(model, folder / "model" / "global.onnx")
    (folder / "model" / "model.weights").write_bytes(bytes(64))
    pixels = [[[255, 0, 0]] * 32 + [[0, 0, 255]] * 64] * 64
    Image.fromarray(np.array(pixels, dtype=np.uint8)).save(folder / "a.png")
    wasm = {
        "precision": "fp32",
        "weights": "model/model.weights",
        "graphs": {"global": "model/global.onnx"},
        "bytes": 64,
    }
    facts = {
        "title": "Colors",
        "patch_size": 16,
        "step": 16,
        "window": None,
        "sizes": [96],
        "default_size": 96,
        "spaces": [{"name": "backbone", "title": "Backbone", "output": "features", "width": 3, "scale": 1}],
        "models": {"wasm": wasm},
        "texts": None,
        "names": {"output": "logits", "patches": "patch_logits", "labels": ["red", "green", "blue"]},
        "runtime": copy_runtime(runtime, folder),
        "samples": copy_samples([SampleImage(folder / "a.png", "Red and blue")], folder),
    }
    copy_page(folder)
    write_description(facts, folder)
    return folder


def test_names_are_shown_where_they_are_seen_by_keys_alone(browser, site, tmp_path):
    """A third of the picture is red, the rest blue; nothing is fetched for words."""
    folder = save_named(tmp_path / "named", find_runtime(site, backends=["wasm"], with_tokenizers=False))
    light = "() => { const c = document.getElementById('picture'); const d = c.getContext('2d'); "
    light += "return [0.1, 0.9].map((x) => Math.max(...d.getImageData(x * c.width, 9, 1, 1).data.slice(0, 3))); }"
    with serve(folder) as url, watched(browser, width=360, height=740) as watch:
        watch.page.goto(f"{url}/")
        watch.wait('html[data-state="ready"]:not([data-busy])')
        assert [item.split()[0] for item in watch.page.locator("#names li").all_inner_texts()] == [
            "blue",
            "red",
            "green",
        ]
        assert watch.page.evaluate(light) == [255, 255]
        watch.page.locator("#names button").first.press("Enter")
        settle(watch)
        assert text(watch, "#announce") == text(watch, "#named")
        assert re.search(r'"blue", most of all in row 1, column 3\..* 96 %', text(watch, "#named"))
        dark, bright = watch.page.evaluate(light)
        assert dark < 60 < 250 < bright
        watch.page.locator("#picture").press("ArrowLeft")
        settle(watch)
        assert "this patch alone: blue 96 %" in text(watch, "#point")
        watch.page.locator("#name").fill("red")
        watch.page.locator("#name").press("Enter")
        settle(watch)
        assert watch.page.locator('#names button[aria-pressed="true"]').all_inner_texts()[0].startswith("red")
        watch.page.locator("#name").fill("violet")
        watch.page.locator("#name").press("Enter")
        settle(watch)
        assert "violet" in text(watch, "#notice")
        watch.page.locator("#unname").press("Enter")
        settle(watch)
        assert watch.page.evaluate(light) == [255, 255]
        assert not watch.page.locator("#words-form").is_visible()
        assert "46 MB" in text(watch, "#no-words")
        assert watch.page.evaluate("document.documentElement.scrollWidth") <= 360
        assert watch.errors == []
        assert watch.outside(f"{url}/") == []


def test_a_page_opened_as_a_file_says_how_to_serve_it(browser, site):
    with watched(browser) as watch:
        watch.page.goto((site / "index.html").as_uri())
        watch.wait('html[data-state="unable"]')
        assert "python -m http.server" in text(watch, "#trouble")
        assert watch.page.locator("#trouble").is_visible()
        assert not watch.page.locator("#loading").is_visible()
