"""Links between files become links of the site."""

import importlib.util
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
pytest.importorskip("mkdocs")


@pytest.fixture(scope="module")
def hook():
    spec = importlib.util.spec_from_file_location("outside_pages", ROOT / "docs" / "outside_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("overview.md", "[a](docs/how-to/open.md#b)", "[a](how-to/open.md#b)"),
        ("overview.md", "![a](docs/photograph.jpg)", "![a](photograph.jpg)"),
        ("how-to/open.md", "[a](../glossary.md)", "[a](../glossary.md)"),
        ("how-to/open.md", "[`a`](deploy.md)", "[`a`](deploy.md)"),
        ("training.md", "[a [b] c](../docs/how-to/tune.md)", "[a [b] c](how-to/tune.md)"),
        ("training.md", "[a](../docs/glossary.md)", "[a](glossary.md)"),
        ("explanation/studies.md", "![a](../../studies/taps.webp)", "![a](../pictures/studies/taps.webp)"),
        ("overview.md", "[license](LICENSE)", "license"),
        ("overview.md", "[a](https://arxiv.org/abs/1)", "[a](https://arxiv.org/abs/1)"),
        ("overview.md", "[a](docs/nothing.md)", "[a](nothing.md)"),
        ("overview.md", '<img src="docs/pictures/a.svg">', '<img src="../pictures/a.svg">'),
        ("index.md", '<img src="pictures/a.svg">', '<img src="pictures/a.svg">'),
        ("overview.md", '<a href="https://arxiv.org">', '<a href="https://arxiv.org">'),
        ("overview.md", "[a](nothing.md)", "[a](nothing.md)"),
        ("overview.md", "```python\nx[0](docs/how-to/open.md)\n```", "```python\nx[0](docs/how-to/open.md)\n```"),
    ],
)
def test_links_of_files_are_links_of_the_site(hook, page, link, expected):
    assert hook.with_site_links(f"See {link}.", page).startswith("See ")
    assert hook.with_site_links(f"\n{link}\n", page) == f"\n{expected}\n"


def test_an_exported_page_takes_the_place_of_the_one_in_docs(hook, tmp_path, monkeypatch):
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import File, Files

    for name in ("index.html", "README.md", "model/model.weights"):
        (tmp_path / "page" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "page" / name).write_text("exported")
    monkeypatch.setattr(hook, "LIVE_PAGE", tmp_path / "page")
    config = MkDocsConfig()
    config.load_dict({"site_name": "a", "docs_dir": str(ROOT / "docs"), "site_dir": str(tmp_path / "site")})
    config.validate()
    config.plugins._current_plugin = "outside_pages"  # which mkdocs sets while a hook runs
    files = hook.on_files(Files([File("try/index.html", str(ROOT / "docs"), str(tmp_path / "site"), False)]), config)
    of_page = {each.src_uri: each.content_string for each in files if each.src_uri.startswith("try/")}
    assert of_page == {"try/index.html": "exported", "try/model/model.weights": "exported"}


def test_outside_pages_exist(hook):
    assert [source for source in hook.OUTSIDE if not (ROOT / source).is_file()] == []


@pytest.mark.parametrize(
    ("remote", "address"),
    [
        ("git@host.org:a/b.git", "https://host.org/a/b"),
        ("ssh://git@host.org/a/b.git", "https://host.org/a/b"),
        ("https://name:secret@host.org/a/b.git", "https://host.org/a/b"),
        ("/srv/me/b", ""),
        ("", ""),
    ],
)
def test_the_repositorys_page_follows_from_the_remote(hook, remote, address):
    assert hook.web_address(remote) == address
