"""Images of webdataset shards: tar archives in which neighbors whose names are the same up to a dot are one sample.

Nothing but images is read, so that no sidecar can spoil a sample, and damage is an error wherever it lies.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import IO, Any

from training.data.image_folder import pillow_suffixes


NUM_FIRST_SAMPLES = 5
"""Whose files decide what is taken for the image. As many as `datasets` looks at."""

_NAME = re.compile(r"((?:.*/)?(?!__)[^./]+)\.([^/]*)")
"""What the files of a sample share, and the field, which tells them apart. Hidden files have other names."""


class _Header(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        """Read a header; `tarfile` itself takes a damaged one for the end of the archive, which is empty."""
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf.strip(b"\0"):
                raise tarfile.ReadError(f"damaged header ({error})") from error
            raise


def is_image(field: str) -> bool:
    """Return whether files of a field, for example "jpg" or "left.png", are images that Pillow opens."""
    return Path(f"name.{field}").suffix.lower() in pillow_suffixes()


def first_fields(shards: Sequence[str]) -> list[str]:
    """Return the fields of the first samples of the first shard in which a sample can be read.

    Raises:
        ValueError: If there is no such shard.
    """
    damage = ""
    for shard in shards:
        fields: dict[str, None] = {}
        try:
            for _, files in islice(_samples(shard), NUM_FIRST_SAMPLES):
                fields |= dict.fromkeys(field for _, field, _ in files)
        except tarfile.TarError as error:
            damage = damage or f": {shard}: {error}"
        if fields:
            return list(fields)
    raise ValueError(f"no sample can be read from any of its {len(shards)} shards{damage}")


def read_samples(shards: Sequence[str], column: str, *, takes_others: bool) -> Iterator[dict[str, Any]]:
    """Yield the image of each sample, as `{"image": {"path": ..., "bytes": ...}, "__url__": shard}`.

    Args:
        shards: Paths or addresses.
        column: The field that is the image.
        takes_others: Take the first other image of a sample that has none there. Without any, `bytes` is empty.

    Raises:
        tarfile.TarError: If a shard is damaged or cannot be read; the message names it.
    """
    for shard in shards:
        yield from _read_shard(shard, column, takes_others=takes_others)


def _read_shard(shard: str, column: str, *, takes_others: bool) -> Iterator[dict[str, Any]]:
    try:
        for key, files in _samples(shard):
            name, content = key, b""
            for _, field, file in files:
                if field == column or (takes_others and not content and is_image(field)):
                    name, content = f"{key}.{field}", file.read()
            yield {"image": {"path": name, "bytes": content}, "__url__": shard}
    except (tarfile.TarError, OSError) as error:
        raise tarfile.ReadError(f"{shard}: {error}") from error


def _samples(shard: str) -> Iterator[tuple[str, Iterator[tuple[str, str, IO[bytes]]]]]:
    """Yield the key of each sample and its files, which are to be read before the next one."""
    return groupby(_files(shard), key=itemgetter(0))


def _files(shard: str) -> Iterator[tuple[str, str, IO[bytes]]]:
    """Yield key, field and content of each file that has a name of a sample's."""
    from datasets.utils.file_utils import xopen  # reads addresses too, and tries again when a connection breaks

    with (
        xopen(shard, "rb", block_size=0) as stream,
        tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Header) as archive,
    ):
        for member in archive:
            archive.members = []  # pyrefly: ignore[missing-attribute] (which would gather in memory)
            name = _NAME.fullmatch(member.name)
            file = archive.extractfile(member) if member.isreg() else None
            if name is not None and file is not None:
                yield name[1], name[2], file
