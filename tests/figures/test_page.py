"""The page is one file that makes no request, escapes names, and describes its images."""

import base64
import io
import re
from html.parser import HTMLParser

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from modeling_radio.figures.page import (
    CaptionedImage,
    Drawing,
    ImageRow,
    Section,
    check_page,
    source_section,
    write_page,
)
from modeling_radio.metrics.results import Measurement, Source, build_tables


NASTY = 'a <script>alert("x")</script> | b\n& "c" {{ d }}'
MEASUREMENTS = [
    Measurement("student", "knn", "accuracy", "mine", 0.612),
    Measurement(NASTY, "knn", "accuracy", "mine", 0.5),
    Measurement(NASTY, "knn", "accuracy, mean features", "mine", 0.1),
]
FETCHING = {"src", "href", "srcset", "data", "action", "poster", "background", "formaction", "xlink:href", "ping"}


class Reader(HTMLParser):
    """Collects elements and texts, and checks that each element is closed."""

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


@pytest.fixture
def page(tmp_path):
    pictures = [
        CaptionedImage(torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8), f"Query {NASTY}", "query"),
        CaptionedImage(torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8), "Map", NASTY, is_grid=True, is_right=False),
    ]
    sections = [
        Section("Measurements", tables=build_tables(MEASUREMENTS), items=["See https://example.org."]),
        Section("Pictures", "How to read.", rows=[ImageRow("row", pictures)], legend=[("cat", "rgb(1, 2, 3)")]),
        Section("Figure", drawing=Drawing.of(Figure((2, 1), dpi=50), f"Curves of {NASTY}")),
        Section("Next", steps={"Run": f"python {NASTY}"}),
        *source_section([Source("mine", "test images", "MIT", "https://example.org/images", "9 images")]),
    ]
    write_page(tmp_path / "results.html", f"Title {NASTY}", f"radio evaluate {NASTY}", sections)
    return (tmp_path / "results.html").read_text(encoding="utf-8")


@pytest.fixture
def read(page):
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


def test_it_makes_no_request(page, read):
    for tag, attributes in read.elements:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form"}
        for name in FETCHING & attributes.keys():
            assert attributes[name].startswith("data:image/"), (tag, name)
        assert not [name for name in attributes if name.startswith("on")]
    styles = " ".join(re.findall(r"<style>(.*?)</style>", page, re.DOTALL))
    assert "url(" not in styles
    assert "@import" not in styles
    policies = [each["content"] for tag, each in read.elements if each.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_images_are_inside_and_described(read):
    images = [attributes for tag, attributes in read.elements if tag == "img"]
    assert [image["alt"] for image in images] == [f"Query {NASTY}", "Map", f"Curves of {NASTY}"]
    for image in images:
        (content,) = re.fullmatch(r"data:image/(?:webp|png);base64,(.*)", image["src"]).groups()
        opened = Image.open(io.BytesIO(base64.b64decode(content)))
        assert (str(opened.width), str(opened.height)) == (image["width"], image["height"])


def test_maps_keep_every_pixel_and_photographs_take_less():
    pixels = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    uris = [CaptionedImage(pixels, "", is_grid=is_grid).uri for is_grid in (True, False)]
    grid, photograph = (base64.b64decode(uri.partition(",")[2]) for uri in uris)
    assert torch.equal(pil_to_tensor(Image.open(io.BytesIO(grid)).convert("RGB")), pixels)
    assert len(photograph) < len(grid)


def test_names_are_escaped_and_it_is_readable_on_a_phone_and_in_the_dark(page, read):
    assert sum(NASTY in text for text in read.texts) >= 5  # title, text, a row of the table, a caption, a step
    assert "0.612" in read.texts
    assert "\u2013" in read.texts  # of the student's mean features nothing is known
    assert "mine: test images, 9 images (https://example.org/images; MIT)" in read.texts
    for part in ('name="viewport" content="width=device-width', "prefers-color-scheme: dark", '<html lang="en">'):
        assert part in page


def test_only_pages_are_replaced_and_a_full_disk_leaves_nothing(tmp_path, full_disk):
    path = tmp_path / "page.html"
    with full_disk(), pytest.raises(OSError, match=r"page\.html"):
        write_page(path, "Title", "", [])
    assert list(tmp_path.iterdir()) == []
    check_page(path)
    write_page(path, "Title", "", [])
    check_page(path)
    path.write_text("<html>precious</html>")
    with pytest.raises(ValueError, match=r"`output` .*page\.html"):
        check_page(path)
