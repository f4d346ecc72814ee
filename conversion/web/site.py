"""The folder of a page: its files, its runtime, the description of the model, sample images, the Space's card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.core.files import FolderKind
from modeling_radio.core.images import IMAGE_FORMATS, copy_image
from modeling_radio.core.packages import PackageUnavailableError, fetch_package, read_packages
from modeling_radio.image_processing_radio import UNREADABLE, open_image_file


PACKAGES = read_packages(Path(__file__).with_name("packages.yaml"))
ORT, TOKENIZERS = "onnxruntime-web", "@huggingface/tokenizers"
TOKENIZER_SCRIPT = "tokenizers.min.mjs"
RUNTIME_FOLDER = "runtime"
"""Folder in a site."""


BUILDS = {
    backend: {"script": f"ort.{backend}.min.mjs", "loader": f"{binary}.mjs", "binary": f"{binary}.wasm"}
    for backend, binary in (("wasm", "ort-wasm-simd-threaded"), ("webgpu", "ort-wasm-simd-threaded.asyncify"))
}
"""Builds of ONNX Runtime Web by execution provider: the script of the page, and the loader of the binary."""
PAGE = Path(__file__).with_name("page")
DESCRIPTION = "site.json"
SITE = FolderKind(
    "sites",
    ("index.html", "page", "runtime", "model", "samples", DESCRIPTION, "README.md", ".gitattributes"),
    lambda folder: (folder / DESCRIPTION).is_file(),
)
ISOLATION = ("cross-origin-embedder-policy: require-corp", "cross-origin-opener-policy: same-origin")
"""Headers with which browsers give WebAssembly several threads."""


def find_runtime(folder: Path | None, *, backends: list[str], with_tokenizers: bool) -> dict[str, Path]:
    """Return the files that a page needs by name.

    Args:
        folder: Folder with the files at any depth, such as a `node_modules`; `None` fetches the pinned npm packages,
            whose SHA-256 is verified.
        backends: Keys of `BUILDS`.
        with_tokenizers: Whether the page has words.

    Raises:
        ValueError: If a file is not in the folder.
        PackageError: If a package cannot be fetched or is not the pinned one.
    """
    names = {ORT: [name for each in backends for name in BUILDS[each].values()]}
    if with_tokenizers:
        names[TOKENIZERS] = [TOKENIZER_SCRIPT]
    found = {}
    for package, wanted in names.items():
        root = _fetch(package) if folder is None else folder
        for name in wanted:
            paths = sorted(root.rglob(name), key=lambda path: (len(path.parts), path))
            if not paths:
                raise ValueError(
                    f"`runtime` must be a folder with {name} of the npm package {package} in it, got {str(root)!r}. "
                    f"`npm install {package}` makes one, node_modules; without --runtime the package is fetched."
                )
            found[name] = paths[0]
    return found


def _fetch(name: str) -> Path:
    try:
        return fetch_package(PACKAGES[name])
    except PackageUnavailableError as error:
        raise PackageUnavailableError(f"{error} Or give a folder that has it: --runtime DIR.") from error


def copy_runtime(files: dict[str, Path], site: Path) -> dict[str, dict[str, str | int] | str]:
    """Copy the files into a site; return their description by backend, and "tokenizers"."""
    (site / RUNTIME_FOLDER).mkdir()
    for name, path in files.items():
        shutil.copyfile(path, site / RUNTIME_FOLDER / name)
    facts: dict[str, dict[str, str | int] | str] = {
        backend: {
            **{role: f"{RUNTIME_FOLDER}/{name}" for role, name in build.items()},
            "bytes": files[build["binary"]].stat().st_size,
        }
        for backend, build in BUILDS.items()
        if build["script"] in files
    }
    if TOKENIZER_SCRIPT in files:
        facts["tokenizers"] = f"{RUNTIME_FOLDER}/{TOKENIZER_SCRIPT}"
    return facts


@dataclass(frozen=True)
class SampleImage:
    """A sample image of the page.

    Attributes:
        path: Its file.
        title: Its caption.
    """

    path: Path
    title: str


def check_samples(samples: Sequence[SampleImage]) -> None:
    """Refuse sample images that browsers do not open.

    Raises:
        ValueError: If one cannot be read, or is of another format than `IMAGE_FORMATS`.
    """
    for path in (sample.path for sample in samples):
        try:
            with open_image_file(path) as image:
                image.load()
                kind = image.format
        except UNREADABLE as error:
            raise ValueError(f"`pictures` must be image files, got {str(path)!r}: {error}.") from error
        if kind not in IMAGE_FORMATS:
            raise ValueError(
                f"`pictures` must be {', '.join(IMAGE_FORMATS)}, which all browsers open, got {kind}: {str(path)!r}."
            )


def copy_samples(samples: Sequence[SampleImage], site: Path) -> list[dict[str, str]]:
    """Write sample images into a site as `copy_image` does; return their description."""
    (site / "samples").mkdir()
    facts = []
    for number, sample in enumerate(samples, start=1):
        file = copy_image(sample.path, site / "samples" / str(number))
        facts.append({"file": f"samples/{file.name}", "title": sample.title.replace("_", " ").replace("-", " ")})
    return facts


def copy_page(site: Path) -> None:
    """Copy the page itself: `index.html` to the site's root, all else to `page/`."""
    shutil.copytree(PAGE, site / "page")
    (site / "page" / "index.html").replace(site / "index.html")


def describe_model(model: RadioModel, name: str) -> str:
    """Return a line that describes a model."""
    config: RadioConfig = model.config
    millions = sum(parameter.numel() for parameter in model.radio_model.model.parameters()) / 1e6
    return f"{name}: {config.hidden_size} wide, {config.num_hidden_layers} blocks, {millions:.1f} M parameters"


def write_description(facts: Mapping[str, Any], site: Path) -> None:
    """Write the description of the model that the page reads."""
    (site / DESCRIPTION).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def write_space_card(title: str, measured: str, site: Path) -> None:
    """Write the card that makes the folder a static Space of the Hub, and the list of files for LFS."""
    front_matter = [
        f"title: {json.dumps(title.partition(':')[0])}",
        "emoji: 🔭",
        "colorFrom: blue",
        "colorTo: green",
        "sdk: static",
        "app_file: index.html",
        "pinned: false",
        "custom_headers:",
        *(f"  {header}" for header in ISOLATION),
    ]
    text = [
        "---",
        *front_matter,
        "---",
        "",
        "# RADIO in this browser",
        "",
        f"{title}. A page without a server: the model runs in the browser, on the visitor's device, and images never",
        "leave it. `python -m http.server` in this folder serves it too, at http://localhost:8000.",
        "",
        "Precisions that were measured (ONNX Runtime against float32; WebAssembly in Node.js, one thread):",
        "",
        "```",
        measured,
        "```",
        "",
        "`runtime/` is ONNX Runtime Web (MIT) and, where there are words, tokenizers.js by Hugging Face (Apache-2.0).",
        "The weights are under the license of the checkpoint that they come from.",
        "",
    ]
    (site / "README.md").write_text("\n".join(text), encoding="utf-8")
    large = ("*.wasm", "*.onnx", "*.weights")
    (site / ".gitattributes").write_text("".join(f"{each} filter=lfs diff=lfs merge=lfs -text\n" for each in large))
