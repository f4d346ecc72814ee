"""Puts pages that lie elsewhere in the repository on the site, with its version and address, and mends their links.

Sources link to each other as files, so that they can be followed in an editor and on a host of repositories alike.
"""

import os
import re
import subprocess
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page


ROOT = Path(__file__).parents[1]
OUTSIDE = {
    "README.md": "overview.md",
    "notebooks/README.md": "how-to/notebooks.md",
    "training/README.md": "training.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
OUTSIDE |= {str(path.relative_to(ROOT)): f"pictures/studies/{path.name}" for path in ROOT.glob("studies/*.webp")}
"""Pages and pictures of the site by the file that each is."""
LIVE_PAGE = ROOT / "build" / "try"
"""Folder of the page that runs a model in the browser, which `make docs` exports; `docs/try` stands in its place."""
_NOT_SHOWN = ("README.md", ".gitattributes")  # for a Space

_FENCED = re.compile(r"(^ *```.*?^ *```[^\n]*$)", re.DOTALL | re.MULTILINE)
_ATTRIBUTE = re.compile(r'\b(src|srcset|href)="([^"#]+)"')
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the version and the repository that this clone is from.

    The repository is a link of the menu: with `repo_url` every page would ask GitHub for the number of stars.
    """
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert version is not None
    config.site_name += f" {version[1]}"
    origin = ["git", "config", "--get", "remote.origin.url"]
    address = web_address(subprocess.run(origin, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip())
    if address and config.nav is not None:
        config.nav.append({"Repository": address})
    return config


def web_address(remote: str) -> str:
    """Return the page of a repository, as git names it; empty for a folder of this machine."""
    ssh = re.fullmatch(r"(?:ssh://)?git@([^:/]+)[:/](.+)", remote)
    address = f"https://{ssh[1]}/{ssh[2]}" if ssh else remote
    return re.sub(r"//[^/@]*@", "//", address).removesuffix(".git") if address.startswith("https://") else ""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the outside pages, and the page that runs a model if it was exported."""
    added = {page: ROOT / source for source, page in OUTSIDE.items()}
    for path in LIVE_PAGE.rglob("*"):
        if path.is_file() and path.name not in _NOT_SHOWN:
            added[f"try/{path.relative_to(LIVE_PAGE).as_posix()}"] = path
    for page, path in added.items():
        before = files.get_file_from_path(page)
        if before is not None:
            files.remove(before)
        files.append(File.generated(config, page, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page's text with the site's links."""
    return with_site_links(markdown, page.file.src_uri)


def with_site_links(markdown: str, page: str) -> str:
    """Return a text whose links to files lead to the pages that these are.

    What is not on the site, such as source files, is named without a link.

    Args:
        markdown: As in the file.
        page: Where the text stands on the site, such as "how-to/open.md".
    """
    source = {name: path for path, name in OUTSIDE.items()}.get(page, f"docs/{page}")

    def path_within(target: str) -> tuple[str, str | None]:
        """Return the path of a file in the repository, and its place on the site as seen from the page."""
        path = os.path.normpath(os.path.join(os.path.dirname(source), target))
        place = OUTSIDE.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        return path, place and os.path.relpath(place, os.path.dirname(page) or ".")

    def replace_link(link: re.Match[str]) -> str:
        mark, text, target, anchor = link.groups(default="")
        path, place = (target, target) if re.match(r"\w+:", target) else path_within(target)
        if place is not None:
            return f"{mark}[{text}]({place}{anchor})"
        return text if (ROOT / path).exists() else link[0]

    def replace_attribute(attribute: re.Match[str]) -> str:
        """Return an attribute of HTML, which mkdocs leaves as it is, as seen from the page's folder."""
        name, target = attribute.groups()
        place = None if re.match(r"\w+:", target) else path_within(target)[1]
        is_folder = os.path.basename(page) != "index.md"
        return attribute[0] if place is None else f'{name}="{"../" * is_folder}{place}"'

    def replace(text: str) -> str:
        return _ATTRIBUTE.sub(replace_attribute, _LINK.sub(replace_link, text))

    parts = _FENCED.split(markdown)
    return "".join(part if part.lstrip().startswith("```") else replace(part) for part in parts)
