"""The folder of a page: what may be replaced, sample pictures, the card of a Space."""

import pytest
import yaml
from PIL import Image, ImageChops
from tiny_site import build_radio, save_picture

from conversion.web.site import (
    DESCRIPTION,
    PAGE,
    SITE,
    Sample,
    check_samples,
    copy_page,
    copy_samples,
    describe_model,
    write_space_card,
)
from core.files import check_output


def test_only_earlier_sites_are_replaced(tmp_path, monkeypatch):
    site = tmp_path / "site"
    check_output(site, overwrite=False, kind=SITE)
    site.mkdir()
    (site / DESCRIPTION).write_text("{}")
    with pytest.raises(ValueError, match="exists already"):
        check_output(site, overwrite=False, kind=SITE, name="site")
    check_output(site, overwrite=True, kind=SITE, name="site")
    monkeypatch.chdir(site)
    with pytest.raises(ValueError, match=r"`site` .*working directory"):
        check_output(site, overwrite=True, kind=SITE, name="site")
    monkeypatch.chdir(tmp_path)
    (site / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"replaces sites only.*thesis\.tex"):
        check_output(site, overwrite=True, kind=SITE, name="site")
    (site / "thesis.tex").unlink()
    (site / DESCRIPTION).rename(site / "README.md")
    with pytest.raises(ValueError, match=r"`site` .* is none"):
        check_output(site, overwrite=True, kind=SITE, name="site")
    with pytest.raises(ValueError, match="`site` must be a folder"):
        check_output(site / "README.md", overwrite=True, kind=SITE, name="site")


def test_pictures_that_browsers_do_not_open_are_refused(tmp_path):
    check_samples([Sample(save_picture(tmp_path / f"a.{ending}"), "a") for ending in ("png", "jpg", "webp")])
    with pytest.raises(ValueError, match=r"`pictures` must be JPEG, PNG, WEBP.*got TIFF"):
        check_samples([Sample(save_picture(tmp_path / "a.tiff"), "a")])
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(ValueError, match=r"`pictures` must be image files, got .*text\.jpg"):
        check_samples([Sample(tmp_path / "text.jpg", "a")])
    with pytest.raises(ValueError, match="`pictures` must be image files"):
        check_samples([Sample(tmp_path / "missing.jpg", "a")])
    Image.new("1", (30_000, 30_000)).save(tmp_path / "bomb.png")
    with pytest.raises(ValueError, match=r"`pictures` must be image files, got .*bomb\.png"):
        check_samples([Sample(tmp_path / "bomb.png", "a")])


def test_samples_are_copied(tmp_path):
    picture = save_picture(tmp_path / "my_otter.png")
    (told,) = copy_samples([Sample(picture, "my_otter")], tmp_path)
    assert told == {"file": "samples/1.png", "title": "my otter"}
    assert ImageChops.difference(Image.open(tmp_path / told["file"]), Image.open(picture)).getbbox() is None


def test_the_page_is_copied_with_its_index_in_the_root(tmp_path):
    copy_page(tmp_path)
    assert (tmp_path / "index.html").read_bytes() == (PAGE / "index.html").read_bytes()
    copied = {path.name for path in (tmp_path / "page").iterdir()}
    assert copied == {path.name for path in PAGE.iterdir()} - {"index.html"}


def test_the_card_is_that_of_a_static_space_with_threads(tmp_path):
    write_space_card('my "model": 32 wide', "a table", tmp_path)
    _, front_matter, text = (tmp_path / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    metadata = yaml.safe_load(front_matter)
    assert (metadata["sdk"], metadata["app_file"], metadata["title"]) == ("static", "index.html", 'my "model"')
    assert metadata["custom_headers"] == {
        "cross-origin-embedder-policy": "require-corp",
        "cross-origin-opener-policy": "same-origin",
    }
    assert "a table" in text
    assert "*.wasm filter=lfs" in (tmp_path / ".gitattributes").read_text()


def test_a_model_is_described_by_its_size():
    assert describe_model(build_radio(), "mine").startswith("mine: 32 wide, 3 blocks, ")
