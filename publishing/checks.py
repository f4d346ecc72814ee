"""Checks of a folder before it is published: it opens elsewhere, has a license, and names nothing of this machine."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors import SafetensorError, safe_open
from transformers.utils import CONFIG_NAME

from modeling_radio import RadioImageProcessor
from modeling_radio.checks_radio import check_choice, read_json
from modeling_radio.core.errors import SECRET, first_few
from modeling_radio.core.files import hash_file
from modeling_radio.core.interruption import raised_signals
from modeling_radio.core.opening import MODELS, check_stored, is_finite, load
from modeling_radio.core.trust import clean_environment, code_beside, foreign_code, our_modules
from modeling_radio.extraction.shards import SUMS, naming_damaged, read_sums
from modeling_radio.model_cards.licenses import License
from modeling_radio.model_cards.rendering import read_card
from modeling_radio.publishing.publication import CARD, Publication
from modeling_radio.publishing.reopen import reopen_elsewhere
from modeling_radio.saving_radio import module_files, source_files
from modeling_radio.tasks_radio import task_of


TEXTS = ("", ".json", ".md", ".txt", ".yaml", ".yml", ".html", ".jinja")
"""Endings of names of text files; LICENSE has none."""
NO_PATHS = ("nvidia_source", "id2label", "label2id")
"""Fields of `config.json` that are not searched for paths: NVIDIA's own training arguments, and labels."""
_PICKLE_START = re.compile(rb"\x80[\x02-\x05]")
_LOCAL_PATH = re.compile(
    r"""(?:^|(?<=[\s"'`=(,:\[]))(?:file://|~/|[A-Za-z]:\\\\?\w|/(?:[\w.-]+/)+[\w.-]*|/(?:home|root|tmp|mnt)\b)"""
)
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.parquet$")
_SIZE_PX = 64
"""Side of the image that the folder is opened with: our choice, small, since only opening is tested."""
_MAX_NAMES = 4

COMPLETED_BY_EXTRACTION = "`radio extract`, with its options as before, completes it; add `license: ID` to README.md."

OPEN_ADAPTER = """
import sys
import transformers

folder, name = sys.argv[1:]
model = getattr(transformers, name).from_pretrained(folder, trust_remote_code=True)
assert model.peft_config
transformers.AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
"""


class UnfitError(ValueError):
    """A folder that should not be published; the message says why and what helps."""


def check_publication(publication: Publication, *, trusts_remote_code: bool = False) -> None:
    """Check everything that can be checked without the Hub, the slowest last.

    Args:
        publication: Folder to be uploaded.
        trusts_remote_code: Whether to allow, and run, code of others that the folder or its base names.

    Raises:
        UnfitError: At the first fault.
    """
    check_card(publication)
    check_files(publication)
    check_code(publication, trusts_remote_code=trusts_remote_code)
    check_opens(publication, trusts_remote_code=trusts_remote_code)


def check_card(publication: Publication) -> None:
    """Refuse a card without metadata, license or code to use it; results are optional."""
    is_dataset = publication.kind == "dataset"
    remedy = f"`radio card {publication.store} --license ID` writes a complete card."
    remedy = COMPLETED_BY_EXTRACTION if is_dataset else remedy
    card = publication.read(CARD).decode()
    try:
        data = read_card(card).data
    except ValueError as error:
        raise UnfitError(f"{error} {remedy}") from error
    wanted = ("license", "tags") if is_dataset else ("license", "library_name", "pipeline_tag")
    missing = [name for name in wanted if not data.get(name)]
    if "```python" not in card:
        missing.append("code to use it")
    if missing:
        raise UnfitError(f"{CARD} lacks {', '.join(missing)}. {remedy}")
    try:
        License(str(data.get("license")), data.get("license_name"), data.get("license_link"))
    except ValueError as error:
        raise UnfitError(f"{CARD}: {error}") from error


def check_files(publication: Publication) -> None:
    """Refuse pickles, damaged files, unfit weights, and paths and secrets in texts and metadata."""
    sums = read_sums(publication.store) if SUMS in publication.files else {}
    for name in sorted(sums.keys() - publication.files.keys()):
        raise UnfitError(f"{SUMS} lists {name}, which is not there. {COMPLETED_BY_EXTRACTION}")
    for name in publication.files:
        with publication.store.reading(name) as path:
            if name in sums and hash_file(path) not in sums[name]:
                raise UnfitError(
                    f"{name} has another sum than in {SUMS}: it has changed. Remove it. {COMPLETED_BY_EXTRACTION}"
                )
            if not isinstance(publication.files[name], bytes) and _is_pickle(path):
                raise UnfitError(f"{name} is, or may hold, a pickle, which can run code where it is opened: remove it.")
            if name.endswith(".safetensors"):
                _check_weights(publication, name, path)
            for text in _texts(publication, name, path):
                _check_text(name, text)


def _check_weights(publication: Publication, name: str, path: Path) -> None:
    try:
        with safe_open(path, "pt") as weights:
            broken = [key for key in sorted(weights.keys()) if not is_finite(weights.get_tensor(key))]
    except SafetensorError as error:
        raise UnfitError(f"{name} cannot be read: {error}. Save it again.") from error
    if broken:
        raise UnfitError(
            f"{name} must hold finite weights, but {len(broken)} hold NaN or infinity: "
            f"{first_few(broken, _MAX_NAMES)}. They are damaged, or of a run that diverged."
        )
    is_model = publication.kind != "dataset"
    if is_model and _read_json(publication, CONFIG_NAME).get("quantization_config") is None:
        try:
            check_stored(path.parent, (path.name,))
        except ValueError as error:
            raise UnfitError(f"{name}: {error} Save it again.") from error


def _check_text(name: str, text: str) -> None:
    found = _LOCAL_PATH.search(text)
    if found:
        shown = text[found.start() : found.start() + 60].split("\n")[0]
        raise UnfitError(
            f"{name} names a path of this machine, {shown!r}: write a path that works "
            "elsewhere, such as a relative one. Commands write the paths that you give."
        )
    if SECRET.search(text):
        raise UnfitError(
            f"{name} holds a secret: an address with a password, a signature or a token, a token of the Hub, or a "
            "private key. Remove it, and revoke it if others may have seen it."
        )


def check_code(publication: Publication, *, trusts_remote_code: bool = False) -> None:
    """Refuse code other than the installed one: `trust_remote_code` must run only tested code."""
    own = [module_files(has_text_tower=has_text_tower) for has_text_tower in (False, True)]
    for name in publication.files:
        values = _read_json(publication, name) if name.endswith(".json") else None
        foreign = foreign_code(values, our_modules())
        if foreign and not trusts_remote_code:
            raise UnfitError(
                f"{name} names code that is not of modeling_radio, {first_few(foreign, _MAX_NAMES):.200}, which runs "
                "where the folder is opened. Remove the entries, or give `--trust-remote-code` if you know that code."
            )
        if name in own[0] and all(values != files[name] for files in own) and not trusts_remote_code:
            raise UnfitError(
                f"{name} is not what `save_pretrained` writes: sentence-transformers imports what it names. Save the "
                "folder again, or give `--trust-remote-code` if you know that code."
            )
    there = {name: publication.read(name) for name in publication.files if name.endswith((".py", ".pyc"))}
    wanted = {} if publication.kind == "dataset" else source_files()
    trusted = code_beside(publication.store.folder) if trusts_remote_code and publication.store.folder else []
    names = (there.keys() | wanted.keys()).difference(trusted)
    differing = sorted(name for name in names if there.get(name) != wanted.get(name))
    if differing:
        raise UnfitError(
            f"Python files differ from the installed code: {first_few(differing, _MAX_NAMES)}. Open the folder and "
            "save it again with `save_pretrained`, which writes the installed code; remove other Python files."
        )


def check_opens(publication: Publication, *, trusts_remote_code: bool = False) -> None:
    """Open the folder as others would, in a new process without this repository.

    An adapter would run the code of its base's repository there, so without trust it is opened with the installed code.
    """
    if publication.kind == "dataset":
        _open_data_set(publication)
        return
    assert publication.store.folder is not None  # addresses are those of data sets
    folder = publication.store.folder.resolve()
    if publication.kind == "model":
        reopen_elsewhere(folder, Image.new("RGB", (_SIZE_PX, _SIZE_PX), "gray"))
    elif trusts_remote_code:
        _open_adapter_elsewhere(folder)
    else:
        _open_adapter(folder)


def _open_adapter(folder: Path) -> None:
    model_class = MODELS[_class_of(folder)]
    try:
        load(model_class, folder)
        RadioImageProcessor.from_pretrained(folder)
    except (ValueError, OSError, SafetensorError) as error:
        raise UnfitError(f"{folder} does not open: {str(error).strip().splitlines()[0]}") from error


def _class_of(folder: Path) -> str:
    """Return the class that an adapter's `config.json` names."""
    (name,) = (read_json(folder / "config.json").get("architectures") or ["RadioModel"])[:1]
    check_choice("architectures", name, MODELS, error=UnfitError)
    return name


def _open_adapter_elsewhere(folder: Path) -> None:
    values = read_json(folder / "config.json")
    task = task_of(values.get("architectures"), values.get("auto_map"))
    auto_class = "AutoModel" if task is None else task.auto_classes[0]
    with tempfile.TemporaryDirectory() as elsewhere:
        command = [sys.executable, "-I", "-c", OPEN_ADAPTER, str(folder), auto_class]
        environment = clean_environment(HF_MODULES_CACHE=str(Path(elsewhere) / "modules"))
        with raised_signals():
            process = subprocess.run(
                command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False
            )
    if process.returncode != 0:
        reason = (process.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UnfitError(f"{folder} does not open in a new process: {reason}")


def _open_data_set(publication: Publication) -> None:
    from datasets import load_dataset

    parts = [match for name in publication.files if (match := _PART.search(name))]
    for beginning, count in sorted({(match.string[: match.start()], match[2]) for match in parts}):
        found = sum(match.string[: match.start()] == beginning and match[2] == count for match in parts)
        if found != int(count):
            raise UnfitError(
                f"{publication.store} has {found} of {int(count)} files of {beginning}. {COMPLETED_BY_EXTRACTION}"
            )
    with _folder_of_data_set(publication) as folder:
        splits = load_dataset(str(folder), streaming=True)
        rows = [next(iter(split.decode(False)), None) for split in splits.values()]  # a row may name any address
    if any(row is None for row in rows):
        raise UnfitError(f"{publication.store} has a split without rows.")


@contextmanager
def _folder_of_data_set(publication: Publication) -> Iterator[Path]:
    """Yield the folder of a data set; of one at an address a folder with its card and one row of each set of files."""
    from pyarrow import Table
    from pyarrow.parquet import ParquetFile, ParquetWriter

    store = publication.store
    if store.folder is not None:
        yield store.folder.resolve()
        return
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, CARD).write_bytes(publication.read(CARD))
        begun = set[str]()
        for name in sorted(name for name in publication.files if name.endswith(".parquet")):
            beginning = _PART.split(name)[0]  # all of the name if it is the only file
            if beginning in begun:
                continue
            with store.open(name) as file, ParquetFile(file) as table:
                rows = Table.from_batches(itertools.islice(table.iter_batches(1), 1), table.schema_arrow)
            Path(folder, name).parent.mkdir(exist_ok=True)
            with ParquetWriter(Path(folder, name), rows.schema) as writer:
                if rows.num_rows:  # `datasets` cannot read a group of no rows
                    writer.write_table(rows)
                    begun.add(beginning)
        yield Path(folder)


def _read_json(publication: Publication, name: str) -> Any:
    try:
        return json.loads(publication.read(name))
    except (ValueError, RecursionError) as error:
        raise UnfitError(f"{Path(name).name} is no valid JSON: {error}.") from error


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        starts_as_pickle = _PICKLE_START.match(file.read(2)) is not None
    try:
        if starts_as_pickle or not zipfile.is_zipfile(path):
            return starts_as_pickle and path.suffix != ".safetensors"  # whose first bytes are a length
        with zipfile.ZipFile(path) as archive:
            return any(member.endswith(".pkl") for member in archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, OSError):  # damaged: its contents cannot be checked
        return path.suffix != ".safetensors"


def _texts(publication: Publication, file: str, path: Path) -> Iterator[str]:
    """Yield the texts of a file to check; of tables and weights they are read from its path on this machine."""
    name = Path(file)
    if name.suffix == ".safetensors":
        with safe_open(path, "pt") as weights:
            yield from (weights.metadata() or {}).values()
    elif name.suffix == ".parquet":
        with naming_damaged(publication.store, file):
            yield from _texts_of_table(path)
    elif name.suffix == ".json" and name.name not in ("tokenizer.json", "vocab.json"):
        value = _read_json(publication, file)
        if name.name == "config.json" and isinstance(value, dict):
            value = {field: entry for field, entry in value.items() if field not in NO_PATHS}
        yield from _strings(value)
    elif name.suffix in TEXTS and name.suffix != ".json":
        yield publication.read(file).decode(errors="replace")


def _texts_of_table(path: Path) -> Iterator[str]:
    """Yield the texts of a table that begin like a path, as captions may have slashes within, or hold a secret."""
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as table:
        names = [field.name for field in table.schema_arrow if "string" in str(field.type)]  # also lists of texts
        for batch in table.iter_batches(columns=names) if names else ():
            for text in _strings([column.to_pylist() for column in batch.columns]):
                if _LOCAL_PATH.match(text) or SECRET.search(text):
                    yield text


def _strings(value: Any) -> Iterator[str]:
    """Yield all texts of a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for entry in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from _strings(entry)
