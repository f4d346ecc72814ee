"""What the page runs on: ONNX Runtime Web and the tokenizers, out of their npm packages or a folder."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from core.packages import PackageUnavailableError, fetch_package, read_packages


PACKAGES = read_packages(Path(__file__).with_name("packages.yaml"))
ORT, TOKENIZERS = "onnxruntime-web", "@huggingface/tokenizers"
TOKENIZER_SCRIPT = "tokenizers.min.mjs"
FOLDER = "runtime"
"""Of a site."""


@dataclass(frozen=True)
class Build:
    """One build of ONNX Runtime Web: names of its files.

    Attributes:
        script: What the page imports.
        loader: What starts the binary.
        binary: WebAssembly.
    """

    script: str
    loader: str
    binary: str


BUILDS = {
    "wasm": Build("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"),
    "webgpu": Build(
        "ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm"
    ),
}
"""By execution provider."""


def find_runtime(folder: Path | None, *, backends: list[str], with_tokenizers: bool) -> dict[str, Path]:
    """Return the files that a page needs, by name.

    Args:
        folder: Where they lie, at any depth, such as a `node_modules`; `None` fetches the pinned npm packages, whose
            SHA-256 is verified.
        backends: Keys of `BUILDS`.
        with_tokenizers: Whether the page reads words.

    Raises:
        ValueError: If a file is not in the folder.
        PackageError: If a package cannot be fetched or is not the pinned one.
    """
    names = {ORT: [name for each in backends for name in vars(BUILDS[each]).values()]}
    if with_tokenizers:
        names[TOKENIZERS] = [TOKENIZER_SCRIPT]
    found = {}
    for package, wanted in names.items():
        place = _fetch(package) if folder is None else folder
        for name in wanted:
            paths = sorted(place.rglob(name), key=lambda path: (len(path.parts), path))
            if not paths:
                raise ValueError(
                    f"`runtime` must be a folder with {name} of the npm package {package} in it, got {str(place)!r}. "
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
    """Copy the files into a site; return what the page is told of them, by backend, and "tokenizers"."""
    (site / FOLDER).mkdir()
    for name, path in files.items():
        shutil.copyfile(path, site / FOLDER / name)
    told: dict[str, dict[str, str | int] | str] = {
        backend: {
            **{role: f"{FOLDER}/{name}" for role, name in vars(build).items()},
            "bytes": files[build.binary].stat().st_size,
        }
        for backend, build in BUILDS.items()
        if build.script in files
    }
    if TOKENIZER_SCRIPT in files:
        told["tokenizers"] = f"{FOLDER}/{TOKENIZER_SCRIPT}"
    return told
