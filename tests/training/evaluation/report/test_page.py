"""The page is one file that asks nothing of any server, says names as they are, and describes its pictures."""

import base64
import io
import re
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from model_cards.results import Measurement, Results, Source
from training.evaluation.report.page import Picture, Row, Section, write_page


NASTY = 'a <script>alert("x")</script> | b\n& "c" {{ d }}'

MEASUREMENTS = [
    Measurement("student", "knn", "accuracy", "mine", 0.612),
    Measurement(NASTY, "knn", "accuracy", "mine", 0.5),
    Measurement("student", "resolution_consistency", "128 to 512 px", "mine", 0.91),
    Measurement("student", "resolution_consistency", "256 to 512 px", "mine", 0.97),
    Measurement(NASTY, "resolution_consistency", "128 to 512 px", "mine", 0.4),
    Measurement(NASTY, "resolution_consistency", "128 to 512 px, centered", "mine", -0.1),
]
FETCHING = {"src", "href", "srcset", "data", "action", "poster", "background", "formaction", "xlink:href", "ping"}


class Reader(HTMLParser):
    """Collects elements and texts, and checks that what is opened is closed."""

    def __init__(self):
        super().__init__()
        self.elements, self.texts, self.open = [], [], []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "br", "link", "input"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def read(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    assert reader.open == []
    return reader


@pytest.fixture
def page(tmp_path):
    pictures = [
        Picture(torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8), f"Query {NASTY}", "query"),
        Picture(torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8), "Map", NASTY, is_grid=True, is_right=False),
    ]
    results = Results(
        MEASUREMENTS,
        datasets=[Source("mine", "test images", "MIT", "https://example.org/images", "9 images")],
        run={"date": "2026-11-25", "command": f"python -m training.evaluate {NASTY}"},
        remarks=["See https://example.org."],
    )
    path = tmp_path / "results.html"
    write_page(path, results, [Section("Pictures", "How to read.", [Row("row", pictures)], [("cat", "rgb(1, 2, 3)")])])
    return path


def test_no_request_leaves_it(page):
    reader = read(page)
    for tag, attributes in reader.elements:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form"}
        for name in FETCHING & attributes.keys():
            assert attributes[name].startswith("data:image/"), (tag, name)
        assert not [name for name in attributes if name.startswith("on")]
    styles = " ".join(re.findall(r"<style>(.*?)</style>", page.read_text(), re.DOTALL))
    assert "url(" not in styles
    assert "@import" not in styles
    policies = [each["content"] for tag, each in reader.elements if each.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_pictures_are_inside_and_described(page):
    images = [attributes for tag, attributes in read(page).elements if tag == "img"]
    assert [image["alt"] for image in images] == [f"Query {NASTY}", "Map"]
    for image in images:
        (content,) = re.fullmatch(r"data:image/webp;base64,(.*)", image["src"]).groups()
        opened = Image.open(io.BytesIO(base64.b64decode(content)))
        assert (str(opened.width), str(opened.height)) == (image["width"], image["height"])


def test_maps_keep_every_pixel_and_photographs_take_less():
    pixels = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    uris = [Picture(pixels, "", is_grid=is_grid).uri for is_grid in (True, False)]
    grid, photograph = (base64.b64decode(uri.partition(",")[2]) for uri in uris)
    assert torch.equal(pil_to_tensor(Image.open(io.BytesIO(grid)).convert("RGB")), pixels)
    assert len(photograph) < len(grid)


def test_names_are_shown_as_they_are(page):
    texts = read(page).texts
    assert sum(NASTY in text for text in texts) >= 3  # a row of the table, a caption, a legend
    assert "alert" not in "".join(tag for tag, _ in read(page).elements)
    assert "0.612" in texts
    assert "\u2013" in texts  # the student has no centered value


def test_it_is_readable_on_a_phone_and_in_the_dark(page):
    text = page.read_text()
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert "prefers-color-scheme: dark" in text
    assert re.search(r'<html lang="en">', text)


def test_curves_have_a_line_for_each_model(page):
    elements = read(page).elements
    assert sum(tag == "svg" for tag, _ in elements) == 2  # plain and centered
    assert sum(tag == "polyline" for tag, _ in elements) == 3
    (plain, _) = (attributes["aria-label"] for tag, attributes in elements if tag == "svg")
    assert "student: 128 px 0.910, 256 px 0.970." in plain


def test_without_pictures_and_curves(tmp_path):
    write_page(tmp_path / "page.html", Results(MEASUREMENTS[:1]))
    elements = read(tmp_path / "page.html").elements
    assert not [tag for tag, _ in elements if tag in {"svg", "img"}]


def test_a_full_disk_leaves_nothing(tmp_path, full_disk):
    with full_disk(), pytest.raises(OSError, match=r"page\.html"):
        write_page(tmp_path / "page.html", Results(MEASUREMENTS))
    assert list(tmp_path.iterdir()) == []
