"""The page: what stands on it for each kind of model, its API, and, as part of the tour, itself in a browser."""

import socket
from contextlib import contextmanager
from pathlib import Path

import gradio as gr
import httpx
import numpy as np
import pytest
import torch
from browser import chromium, playwright, take_picture, watched
from gradio_client import Client, handle_file
from PIL import Image

import training.app
from modeling_radio import (
    RadioConfig,
    RadioForDepthEstimation,
    RadioForImageClassification,
    RadioForSemanticSegmentation,
    RadioModel,
)
from training.app.answers import Explorer
from training.app.page import App, build_page, launch_options


@pytest.fixture(scope="module")
def contacted():
    """Names of machines that are looked up while the page is built and served."""
    names = []
    patch = pytest.MonkeyPatch()
    find = socket.getaddrinfo
    patch.setattr(
        socket, "getaddrinfo", lambda host, *args, **kwargs: names.append(host) or find(host, *args, **kwargs)
    )
    yield names
    patch.undo()


@pytest.fixture(scope="module")
def app(texts):
    return App(str(texts), "cpu")


@pytest.fixture(scope="module")
def address(app, photograph, contacted):
    """Where the page of the model with texts is served."""
    page = build_page(app, [Path(photograph)])
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    yield url
    page.close()


@pytest.fixture(scope="module")
def client(address):
    return Client(address, verbose=False, analytics_enabled=False)


def tabs_of(page: gr.Blocks) -> list[str]:
    return [block.label for block in page.blocks.values() if isinstance(block, gr.Tab)]


def test_each_model_has_the_tabs_that_it_can_fill(app, save_tuned, tmp_path):
    assert tabs_of(build_page(app)) == ["Features", "Alike", "Words", "Windows"]
    classifier = App(str(save_tuned(RadioForImageClassification)), "cpu")
    assert tabs_of(build_page(classifier)) == ["Image classification", "Features", "Alike", "Windows"]
    merging = RadioConfig.from_preset("radio-test", downscale_levels=[3], decoder_depth=2)
    RadioModel(merging).save_pretrained(tmp_path / "1d")
    assert tabs_of(build_page(App(str(tmp_path / "1d"), "cpu"))) == ["Features", "Alike"]


def test_the_device_is_one_of_those_to_choose_from(app, monkeypatch):
    monkeypatch.setattr("training.app.page.devices", lambda: ["mps", "cpu"])
    monkeypatch.setattr(type(app.opened.model), "device", torch.device("mps:0"))  # what torch says of a model on "mps"
    (device,) = [block for block in build_page(app).blocks.values() if getattr(block, "label", None) == "Device"]
    assert device.value == "mps"
    assert "; on mps, float32." in app.describe()


def test_every_named_answer_is_in_the_api(client):
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(named) == {"/features", "/alike", "/words", "/windows"}
    assert (
        named["/features"]["description"].strip()
        == "Principal components of the features of a photograph, in every space."
    )


def test_the_api_answers_as_the_functions_do(client, app, photograph):
    gallery, said = client.predict(handle_file(photograph), 64, "off", api_name="/features")
    expected, _ = Explorer(app.opened).features(photograph, 64, "off")
    assert [each["caption"] for each in gallery] == [caption for _, caption in expected]
    np.testing.assert_array_equal(np.asarray(Image.open(gallery[1]["image"])), np.asarray(expected[1][0]))
    assert "112 x 64 px" in said
    gallery, said = client.predict(handle_file(photograph), 10, 90, 64, "off", api_name="/alike")
    assert [each["caption"] for each in gallery] == ["the place", "backbone", "siglip2-g", "dino_v2"]
    assert said.startswith("Patch 1 of 7 across, 4 of 4 down.")


def test_words_and_windows_over_the_api(client, photograph):
    image = handle_file(photograph)
    masks, told, scores, heats = client.predict(image, "cat, dog", "grass", "features", 64, "off", api_name="/words")
    assert {each["label"] for each in masks["annotations"]} <= {"cat", "dog"}
    assert told.startswith("Share of the photograph: ")
    assert {each["label"] for each in scores["confidences"]} == {"cat", "dog", "grass"}
    assert len(heats) == 2
    table, gallery, _ = client.predict(image, 128, ["2"], api_name="/windows")
    assert [row[0] for row in table["data"]] == ["off", "2"]
    assert len(gallery) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, 64, "off", "/features"), "must be a photograph, got none. Choose one first"),
        (("{photograph}", 64, "few", "/features"), "`windows` must be a number of patches"),
        (("{broken}", 64, "off", "/features"), "must be a picture in a format such as JPEG"),
        (("{photograph}", " ", "grass", "features", 64, "off", "/words"), "`words` must be words with commas"),
    ],
)
def test_bad_input_is_one_clear_error(client, photograph, tmp_path, arguments, message):
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    files = {"{photograph}": photograph, "{broken}": str(tmp_path / "broken.jpg")}
    *values, name = [handle_file(files[each]) if each in files else each for each in arguments]
    with pytest.raises(Exception, match=message) as caught:
        client.predict(*values, api_name=name)
    assert str(tmp_path) not in str(caught.value)


def test_files_of_the_server_cannot_be_asked_for(address, texts):
    """The page reads files that were uploaded to it, and no others."""
    for path in (str(texts / "config.json"), str(Path(__file__))):
        for said in ({}, {"meta": {"_type": "gradio.FileData"}}):
            asked = httpx.post(f"{address}gradio_api/call/features", json={"data": [{"path": path, **said}, 64, "off"]})
            answer = httpx.get(f"{address}gradio_api/call/features/{asked.json()['event_id']}", timeout=60).text
            assert "event: error" in answer
            assert "uploaded" in answer
        assert httpx.get(f"{address}gradio_api/file={path}").status_code == 403


def test_a_task_over_its_function(save_tuned, photograph):
    page = build_page(App(str(save_tuned(RadioForDepthEstimation)), "cpu"))
    (predict,) = [fn for fn in page.fns.values() if fn.api_name == "predict"]
    told, scores, picture, regions = predict.fn(photograph, 0.5, True)
    assert told.startswith("Depth from ")
    assert (scores, regions) == (None, None)
    assert picture.size == (640, 360)


def test_another_type_opens_the_checkpoint_again(texts):
    app = App(str(texts), "cpu")
    before = app.opened
    assert app.reopen("cpu", "bfloat16").endswith("on cpu, bfloat16.")
    assert app.opened.dtype == "bfloat16"
    app.reopen("cpu", "float32")
    weights = [model.model.radio_model.model.blocks[0].attn.qkv.weight for model in (before, app.opened)]
    assert (weights[0] == weights[1]).all(), "nothing was rounded"
    with pytest.raises(ValueError, match="`device` must be one of"):
        app.reopen("tpu", "float32")
    assert app.opened.dtype == "float32"


def test_nothing_is_asked_of_other_machines(client, contacted):
    assert set(contacted) <= {"localhost", "127.0.0.1", None}


def test_gradio_writes_nothing_beside_the_sources(app):
    assert not list(Path(training.app.__file__).parent.glob("*.pyi"))


def test_names_of_a_checkpoint_are_no_markdown(texts):
    picture = "![seen](http://2130706433/a)<img src=x>$x$"
    page = build_page(App(str(texts), title=picture))
    title = next(block.value for block in page.blocks.values() if isinstance(block, gr.Markdown))
    assert title == r"# !\[seen](http://2130706433/a)\<img src=x>\$x\$"


def test_titles_tell_folders_of_one_name_apart(app, texts):
    assert app.title == f"{texts.parent.name}/texts"
    assert "0.1" in app.describe()
    assert "siglip2-g, dino_v2" in app.describe()


# From here on the tour: the page in Chromium.


@pytest.fixture(scope="module")
def browser():
    with playwright() as started, chromium(started) as opened:
        yield opened


@contextmanager
def visit(browser, address: str, shown: str = ".pictures:visible img", **options):
    """Open the page, which in the end must have asked for nothing elsewhere and complained of nothing."""
    with watched(browser, **options) as watch:
        watch.page.goto(address)
        watch.page.wait_for_selector(shown, state="attached" if shown.startswith("#") else "visible")
        yield watch
    assert watch.outside(address) == []
    assert watch.errors == []


def wait_for(page, name: str, text: str) -> None:
    page.locator(f"#{name}-said", has_text=text).wait_for()


@pytest.mark.tour
def test_a_visit(browser, address, tmp_path):
    with visit(browser, address) as watch:
        page = watch.page
        assert "224 x 128 px" in page.locator("#features-said").inner_text(), "the first photograph is answered at once"
        box = page.locator("#photograph img").bounding_box()
        page.mouse.click(box["x"] + box["width"] * 0.9, box["y"] + box["height"] * 0.5)
        wait_for(page, "alike", "Patch 13 of 14 across")
        page.get_by_role("tab", name="Words").click()
        page.get_by_role("textbox", name="With commas between").fill("cat, dog")
        page.get_by_role("textbox", name="With commas between").press("Enter")
        wait_for(page, "words", "Share of the photograph")
        page.get_by_role("tab", name="Windows").click()
        page.get_by_role("button", name="Compare").click()
        wait_for(page, "windows", "median of")
        (tmp_path / "broken.jpg").write_bytes(b"no picture")
        page.locator("#photograph").get_by_label("Remove Image").first.click()
        page.locator("#photograph input[type=file]").set_input_files(tmp_path / "broken.jpg")
        page.get_by_text("which cannot be read").wait_for()
        assert [text for text in watch.errors if "broken" not in text and "404" not in text] == []


@pytest.mark.tour
def test_a_visit_to_a_tuned_model(browser, save_tuned, photograph):
    page = build_page(App(str(save_tuned(RadioForSemanticSegmentation)), "cpu"), [Path(photograph)])
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    with visit(browser, address, shown="#task-said") as watch:
        watch.page.get_by_role("button", name="Show the answer").click()
        wait_for(watch.page, "task", "Share of the photograph")
        assert watch.page.get_by_label("Least score").count() == 0, "which is for objects"
    page.close()


@pytest.mark.tour
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("name", "width", "height"), [("phone", 390, 844), ("desktop", 1280, 860)])
def test_nothing_is_wider_than_the_screen(browser, address, name, width, height, scheme, tmp_path):
    """Set RADIO_SCREENSHOTS to a folder to look at it."""
    with visit(browser, address, width=width, height=height, dark=scheme == "dark") as watch:
        for tab in ("Alike", "Words", "Windows", "Features"):
            watch.page.get_by_role("tab", name=tab).click()
            assert watch.page.evaluate("document.documentElement.scrollWidth") <= width
        take_picture(watch.page, f"app-{name}-{scheme}", tmp_path)
        dark = watch.page.evaluate("document.body.classList.contains('dark')")
        assert dark == (scheme == "dark")


@pytest.mark.tour
def test_it_can_be_used_from_the_keyboard(browser, address):
    with visit(browser, address) as watch:
        page = watch.page
        page.get_by_role("tab", name="Features").focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        page.get_by_role("tab", name="Alike").press("Enter")
        page.get_by_label("Across").first.focus()
        page.get_by_role("button", name="Show what is alike").press("Enter")
        wait_for(page, "alike", "Patch 8 of 14 across, 5 of 8 down.")
        assert all(page.locator(".pictures:visible img").nth(index).get_attribute("alt") for index in range(4))
