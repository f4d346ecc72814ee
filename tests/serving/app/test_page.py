"""The app: its results, the page for each kind of model, its API, and the page in a browser."""

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
from tiny_folders import overflow, save_words

import modeling_radio.serving.app
from modeling_radio import RadioConfig, RadioForImageClassification, RadioForSemanticSegmentation, RadioModel
from modeling_radio.serving.app import page
from modeling_radio.serving.app.page import (
    KEPT_PASSES,
    App,
    build_page,
    clear_errors,
    fit_basis,
    launch_options,
    read_window,
    read_words,
)


SPACES = ["backbone", "siglip2-g", "dino_v2"]


def test_every_space_is_drawn_at_the_resolution(app, photograph):
    pictures, said = app.features(photograph, 128, "off")
    dimensions = ["backbone, 32 dimensions", "siglip2-g, 16 dimensions", "dino_v2, 24 dimensions"]
    assert [caption for _, caption in pictures] == dimensions
    assert {picture.size for picture, _ in pictures} == {(640, 360)}
    coarse = app.features(photograph, 64, "off")[0][0][0]
    assert len({picture.tobytes() for picture in (coarse, *(each for each, _ in pictures))}) == 4
    assert said.startswith("224 x 128 px, 14 x 8 patches, ")
    assert said.endswith(" ms with 2 adaptors on cpu, float32.")


def test_the_place_is_most_alike_itself(app, photograph):
    pictures, said = app.alike(photograph, 99, 1, 128, "off")
    assert [caption for _, caption in pictures] == ["the place", *SPACES]
    for picture, _ in pictures[1:]:
        brightness = np.asarray(picture).astype(int).sum(axis=2)
        row, col = np.unravel_index(brightness.argmax(), brightness.shape)
        assert row < 360 / 8
        assert col > 640 * 13 / 14
    assert said.startswith("Patch 14 of 14 across, 1 of 8 down. ")
    corner, _ = app.alike(photograph, 100, 100, 128, "off")
    assert corner[1][0].tobytes() != pictures[1][0].tobytes()


def test_windows_are_compared_with_none(app, photograph, tmp_path):
    rows, pictures, said = app.windows(photograph, 128, ["2", "off", "2", "auto"])
    assert [row[0] for row in rows] == ["off", "2", "auto"]
    assert rows[0][2:] == [1.0, 1.0]
    assert rows[1][3] < 0.99999
    assert all(row[1] > 0 for row in rows)
    assert [caption.split(",")[0] for _, caption in pictures] == ["windows: off", "windows: 2", "windows: auto"]
    assert pictures[0][0].tobytes() != pictures[1][0].tobytes()
    assert said.startswith("224 x 128 px on cpu, float32")
    config = RadioConfig.from_preset("radio-test", vitdet_num_global=2, num_hidden_layers=2)
    RadioModel(config).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="has no effect"):
        rows, _, said = App(str(tmp_path), "cpu").windows(photograph, 64, ["2"])
    assert rows[1][3] == 1.0
    assert "windows change nothing" in said


def test_answers_that_are_not_finite_are_errors_of_their_photograph(save_tuned, photograph, tmp_path):
    app = App(str(overflow(save_tuned(RadioForSemanticSegmentation))), "cpu")
    words = App(str(overflow(save_words(tmp_path / "words"))), "cpu")
    for ask in (
        lambda: app.predict(photograph, 0.5, False),
        lambda: app.features(photograph, 64, "off"),
        lambda: app.windows(photograph, 64, ["2"]),
        lambda: words.words(photograph, "red", "blue", "features", 64, "off"),
    ):
        with pytest.raises(ValueError, match="not finite"):
            ask()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((None, 50, 50, 64, "off"), "`image`"),
        (("{photograph}", 120, 50, 64, "off"), "`across`"),
        (("{photograph}", 50, -1, 64, "off"), "`down`"),
        (("{photograph}", 50, 50, 65, "off"), "`resolution`"),
        (("{photograph}", 50, 50, 64, "few"), "`windows`"),
        (("{photograph}", 50, 50, 64, "0"), "`window_size`"),
    ],
)
def test_bad_input_is_refused(app, photograph, arguments, named):
    with pytest.raises(ValueError, match=named):
        app.alike(*(photograph if each == "{photograph}" else each for each in arguments))


def test_windows_and_words_are_read_as_they_are_entered():
    chosen = ["the checkpoint's", "off", "auto", "8", " 12 "]
    assert [read_window(text) for text in chosen] == [None, "global", "auto", 8, 12]
    assert read_words(" cat,  a  dog\nice,, cat ") == ["cat", "a dog", "ice"]


def test_a_pass_holds_the_models_output_and_the_last_ones_are_kept(app, photograph, monkeypatch):
    monkeypatch.setattr(page, "FINE_GRID", 1)
    app.encode_photograph.cache_clear()
    found = app.encode_photograph(photograph, 64, "off")
    pixels = app.pixels(app.photograph(photograph), 64)
    assert pixels.shape[-2:] == (64, 112)
    with torch.no_grad():
        expected = app.opened.backbone(pixels, window_size="global", feature_format="NCHW", return_dict=True)
    assert list(found.maps) == SPACES
    torch.testing.assert_close(found.maps["backbone"], expected.features)
    torch.testing.assert_close(found.maps["dino_v2"], expected.adaptors["dino_v2"].features)
    windowed, whole = (app.encode_photograph(photograph, 128, window).maps["backbone"] for window in ("2", "off"))
    assert not torch.allclose(windowed, whole)
    first = app.encode_photograph(photograph, 64, "off")
    assert app.encode_photograph(photograph, 64, "off") is first
    for side in range(KEPT_PASSES):
        app.encode_photograph(photograph, 80 + 16 * side, "off")
    assert app.encode_photograph(photograph, 64, "off") is not first
    panorama = torch.zeros(3, 40, 400, dtype=torch.uint8)
    assert app.pixels(panorama, 128).shape[-1] == app.opened.model.config.max_img_size
    app.encode_photograph.cache_clear()


def test_a_coarse_map_is_made_finer_by_moving_the_image(app, photograph, monkeypatch):
    app.encode_photograph.cache_clear()
    fine = app.encode_photograph(photograph, 64, "off")
    assert (fine.patches, {each.shape[2:] for each in fine.maps.values()}) == ((4, 7), {(16, 28)})
    patch = app.opened.backbone.config.patch_size
    pixels = app.pixels(app.photograph(photograph), 64)
    moved = torch.nn.functional.pad(pixels, [patch // 2] * 4, mode="replicate")[..., 2:66, 6:118]
    expected, _ = app.encode(moved, "global", app.opened.dense_adaptors)
    for name, features in expected.items():
        torch.testing.assert_close(fine.maps[name][..., 0::4, 1::4], features)
    app.encode_photograph.cache_clear()


def find(app, photograph, wanted="cat, dog", others="grass", source="features", windows="off"):
    (picture, regions), _, scores, heats = app.words(photograph, wanted, others, source, 128, windows)
    return picture, regions, scores, heats


def test_regions_are_those_of_the_models_own_segmentation(app, photograph):
    picture, regions, scores, heats = find(app, photograph)
    pixels = app.opened.processor.process_image(picture, do_convert_rgb=True)
    inputs = app.opened.processor(pixels, size={"shortest_edge": 128}, return_tensors="pt")["pixel_values"]
    embeds = app.opened.model.embed_classes(app.opened.tokenizer, ["cat", "dog", "grass"])
    with torch.no_grad():
        outputs = app.opened.model.segment(inputs, embeds, "features", window_size="global", denoising=None)
    expected = app.opened.processor.post_process_semantic_segmentation(outputs, [(360, 640)])[0].numpy()
    for mask, word in regions:
        np.testing.assert_array_equal(mask, expected == ["cat", "dog"].index(word))
    assert sum(mask.sum() for mask, _ in regions) == (expected < 2).sum()
    assert [(caption, heat.size) for heat, caption in heats] == [("cat", (640, 360)), ("dog", (640, 360))]
    assert list(scores) == ["cat", "dog", "grass"]
    assert all(0 < score < 1 for score in scores.values())
    assert len(set(scores.values())) == 3
    for other in ({"source": "summary_head"}, {"windows": "2"}):
        changed = find(app, photograph, **other)[3]
        assert [one.tobytes() for one, _ in changed] != [one.tobytes() for one, _ in heats], "it acts"


def test_bad_words_are_refused(app, photograph, monkeypatch, tmp_path):
    RadioModel(RadioConfig.from_preset("radio-test")).save_pretrained(tmp_path)
    without_texts = App(str(tmp_path), "cpu")
    monkeypatch.setattr(page, "MAX_WORDS", 2)
    for asked, options, named in (
        (app, {"wanted": " , "}, "`words`"),
        (app, {"wanted": "cat", "others": ""}, "`others`"),
        (app, {"source": "feature"}, "`source`"),
        (app, {}, "`words` .* 2 .* got 3"),
        (without_texts, {}, "`words` need a checkpoint with a text tower"),
    ):
        with pytest.raises(ValueError, match=named):
            find(asked, photograph, **options)


def test_refused_input_is_one_sentence_on_the_page_and_bugs_stay_bugs():
    for error in (ValueError("`a` must be 1,\n  got 2."), OSError("`a` must be 1, got 2.")):
        with pytest.raises(gr.Error) as caught, clear_errors():
            raise error
        assert caught.value.message == "`a` must be 1, got 2."
        assert not caught.value.print_exception
    with pytest.raises(gr.Error, match="smaller resolution"), clear_errors():
        raise torch.OutOfMemoryError
    with pytest.raises(TypeError), clear_errors():
        raise TypeError


@pytest.fixture(scope="module")
def contacted():
    """Names of machines that are looked up while the page is built and served."""
    names, patch, look_up = [], pytest.MonkeyPatch(), socket.getaddrinfo
    patch.setattr(socket, "getaddrinfo", lambda host, *args, **how: names.append(host) or look_up(host, *args, **how))
    yield names
    patch.undo()


@pytest.fixture(scope="module")
def address(app, photograph, contacted):
    """Address of the page of the model with texts."""
    shown = build_page(app, [Path(photograph)])
    _, url, _ = shown.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    yield url
    shown.close()


@pytest.fixture(scope="module")
def client(address):
    return Client(address, verbose=False, analytics_enabled=False)


def test_each_model_has_the_tabs_that_it_can_fill(app, save_tuned, tmp_path):
    merging = RadioConfig.from_preset("radio-test", downscale_levels=[3], decoder_depth=2)
    RadioModel(merging).save_pretrained(tmp_path / "1d")
    everywhere = RadioConfig.from_preset("radio-test", vitdet_num_global=2, num_hidden_layers=2)
    RadioModel(everywhere).save_pretrained(tmp_path / "global")
    for shown, tabs in (
        (app, ["Features", "Similar places", "Words", "Windows"]),
        (
            App(str(save_tuned(RadioForImageClassification)), "cpu"),
            ["Image classification", "Features", "Similar places", "Windows"],
        ),
        (App(str(tmp_path / "1d"), "cpu"), ["Features", "Similar places"]),
        (App(str(tmp_path / "global"), "cpu"), ["Features", "Similar places"]),
    ):
        blocks = build_page(shown).blocks.values()
        assert [block.label for block in blocks if isinstance(block, gr.Tab)] == tabs


def test_the_api_gives_the_functions_results(client, app, photograph):
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(named) == {"/features", "/alike", "/words", "/windows"}
    assert named["/features"]["description"].startswith("Principal components of the features")
    image = handle_file(photograph)
    gallery, said = client.predict(image, 64, "off", api_name="/features")
    expected, _ = app.features(photograph, 64, "off")
    assert [each["caption"] for each in gallery] == [caption for _, caption in expected]
    np.testing.assert_array_equal(np.asarray(Image.open(gallery[1]["image"])), np.asarray(expected[1][0]))
    assert "112 x 64 px" in said
    gallery, said = client.predict(image, 10, 90, 64, "off", api_name="/alike")
    assert [each["caption"] for each in gallery] == ["the place", *SPACES]
    assert said.startswith("Patch 1 of 7 across, 4 of 4 down.")
    masks, told, scores, heats = client.predict(image, "cat, dog", "grass", "features", 64, "off", api_name="/words")
    assert {each["label"] for each in masks["annotations"]} <= {"cat", "dog"}
    assert told.startswith("Share of the photograph: ")
    assert {each["label"] for each in scores["confidences"]} == {"cat", "dog", "grass"}
    assert len(heats) == 2
    table, gallery, _ = client.predict(image, 128, ["2"], api_name="/windows")
    assert [row[0] for row in table["data"]] == ["off", "2"]
    assert len(gallery) == 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((None, 64, "off", "/features"), "`image`"),
        (("{photograph}", 64, "few", "/features"), "`windows`"),
        (("{broken}", 64, "off", "/features"), "`image`"),
        (("{photograph}", " ", "grass", "features", 64, "off", "/words"), "`words`"),
    ],
)
def test_bad_input_is_one_clear_error(client, photograph, tmp_path, arguments, named):
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    files = {"{photograph}": photograph, "{broken}": str(tmp_path / "broken.jpg")}
    *values, name = [handle_file(files[each]) if each in files else each for each in arguments]
    with pytest.raises(Exception, match=named) as caught:
        client.predict(*values, api_name=name)
    assert str(tmp_path) not in str(caught.value)


def test_only_uploaded_files_can_be_read_and_no_other_machine_is_contacted(address, texts, contacted):
    for path in (str(texts / "config.json"), str(Path(__file__))):
        for said in ({}, {"meta": {"_type": "gradio.FileData"}}):
            asked = httpx.post(f"{address}gradio_api/call/features", json={"data": [{"path": path, **said}, 64, "off"]})
            answer = httpx.get(f"{address}gradio_api/call/features/{asked.json()['event_id']}", timeout=60).text
            assert "event: error" in answer
            assert "uploaded" in answer
        assert httpx.get(f"{address}gradio_api/file={path}").status_code == 403
    assert set(contacted) <= {"localhost", "127.0.0.1", None}
    assert not list(Path(modeling_radio.serving.app.__file__).parent.glob("*.pyi")), (
        "Gradio writes nothing beside the sources"
    )


def test_another_type_opens_the_checkpoint_again(texts, photograph):
    app = App(str(texts), "cpu")
    before = app.opened
    assert app.reopen("cpu", "bfloat16").endswith("on cpu, bfloat16.")
    assert app.features(photograph, 64, "off")[1].endswith("bfloat16.")
    assert app.encode_photograph(photograph, 64, "off").maps["backbone"].dtype == torch.float32
    app.reopen("cpu", "float32")
    weights = [model.model.radio_model.model.blocks[0].attn.qkv.weight for model in (before, app.opened)]
    assert (weights[0] == weights[1]).all(), "nothing was rounded"
    with pytest.raises(ValueError, match="`device`"):
        app.reopen("tpu", "float32")
    assert app.opened.dtype == "float32"


def test_titles_name_the_folder_and_are_no_markdown(app, texts):
    assert app.title == f"{texts.parent.name}/texts"
    assert "siglip2-g, dino_v2" in app.describe()
    shown = build_page(App(str(texts), title="![seen](http://2130706433/a)<img src=x>$x$"))
    title = next(block.value for block in shown.blocks.values() if isinstance(block, gr.Markdown))
    assert title == r"# !\[seen](http://2130706433/a)\<img src=x>\$x\$"


# From here on the tour: the page in Chromium.


@pytest.fixture(scope="module")
def browser():
    with playwright() as started, chromium(started) as opened:
        yield opened


@contextmanager
def visit(browser, address, shown=".pictures:visible img", **options):
    """Open the page; in the end it must have requested nothing elsewhere and logged no error."""
    with watched(browser, **options) as watch:
        watch.page.goto(address)
        watch.page.wait_for_selector(shown, state="attached" if shown.startswith("#") else "visible")
        yield watch
    assert watch.outside(address) == []
    assert watch.errors == []


def wait_for(page, name, text):
    page.locator(f"#{name}-said", has_text=text).wait_for()


@pytest.mark.tour
def test_a_visit(browser, address, tmp_path):
    with visit(browser, address) as watch:
        page = watch.page
        assert "224 x 128 px" in page.locator("#features-said").inner_text(), "the first photograph is shown at once"
        box = page.locator("#photograph img").bounding_box()
        page.mouse.click(box["x"] + box["width"] * 0.9, box["y"] + box["height"] * 0.5)
        wait_for(page, "alike", "Patch 13 of 14 across")
        page.get_by_role("tab", name="Words").click()
        wait_for(page, "words", "Share of the photograph")
        page.get_by_role("textbox", name="With commas between").fill("cat, dog")
        page.get_by_role("textbox", name="With commas between").press("Enter")
        wait_for(page, "words", "Share of the photograph")
        page.get_by_role("tab", name="Windows").click()
        wait_for(page, "windows", "median of")
        (tmp_path / "broken.jpg").write_bytes(b"no picture")
        page.locator("#photograph").get_by_label("Remove Image").first.click()
        page.locator("#photograph input[type=file]").set_input_files(tmp_path / "broken.jpg")
        page.get_by_text("which cannot be read").wait_for()
        assert [text for text in watch.errors if "broken" not in text and "404" not in text] == []


@pytest.mark.tour
def test_a_visit_to_a_tuned_model(browser, save_tuned, photograph):
    shown = build_page(App(str(save_tuned(RadioForSemanticSegmentation)), "cpu"), [Path(photograph)])
    _, address, _ = shown.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    with visit(browser, address, shown="#task-said") as watch:
        wait_for(watch.page, "task", "Share of the photograph")
        assert watch.page.get_by_label("Least score").count() == 0, "which is for objects"
    shown.close()


@pytest.mark.tour
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("name", "width", "height"), [("phone", 390, 844), ("desktop", 1280, 860)])
def test_nothing_is_wider_than_the_screen(browser, address, name, width, height, scheme, tmp_path):
    """Set RADIO_SCREENSHOTS to a folder to see it."""
    with visit(browser, address, width=width, height=height, dark=scheme == "dark") as watch:
        for tab in ("Similar places", "Words", "Windows", "Features"):
            watch.page.get_by_role("tab", name=tab).click()
            assert watch.page.evaluate("document.documentElement.scrollWidth") <= width
        take_picture(watch.page, f"app-{name}-{scheme}", tmp_path)
        assert watch.page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")


@pytest.mark.tour
def test_it_can_be_used_from_the_keyboard(browser, address):
    with visit(browser, address) as watch:
        page = watch.page
        page.get_by_role("tab", name="Features").focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        page.get_by_role("tab", name="Similar places").press("Enter")
        page.get_by_label("Across").first.focus()
        page.get_by_role("button", name="Show similar places").press("Enter")
        wait_for(page, "alike", "Patch 8 of 14 across, 5 of 8 down.")
        assert all(page.locator(".pictures:visible img").nth(index).get_attribute("alt") for index in range(4))


def test_features_with_fewer_channels_than_colors_are_refused():
    with pytest.raises(ValueError, match="`features`"):
        fit_basis(torch.randn(1, 2, 4, 6))
