"""What is known of a package before it is fetched: its hash, size, license and the files that are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from foundation.errors import UserError
from foundation.fields import read_yaml


class PackageError(UserError):
    """A package could not be fetched or unpacked; the message is one line for the user."""


class PackageUnavailableError(PackageError):
    """The client is missing or the registry does not serve the package: callers may fall back to another."""


class PackageCorruptError(PackageError):
    """The archive is not the pinned one, or it holds an unsafe path: never a reason to fall back silently."""


class DiskSpaceError(PackageError):
    """The cache folder's disk is too full for the archive and its unpacked files."""


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Package:
    """One pinned package; fields of other names or types, and packages without a hash, are refused.

    Attributes:
        ecosystem: Which client fetches it.
        name: Name in its registry.
        version: Pinned version. Debian releases may serve another one, see `fetch_package`.
        sha256: Hash of the archive.
        archive_bytes: Size of the download, bytes.
        unpacked_bytes: Size of the kept files, bytes, rounded up.
        license: License of the files that we keep.
        purpose: What the project uses it for.
        keep: Patterns (`fnmatch`, on the path inside the archive) of the files to unpack.
        client_options: Extra options of the client.
    """

    ecosystem: Literal["pypi", "npm", "debian"]
    name: str
    version: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    archive_bytes: int
    unpacked_bytes: int
    license: str
    purpose: str
    keep: tuple[str, ...]
    client_options: tuple[str, ...] = ()

    @property
    def slug(self) -> str:
        """Return the name of the package's folder in the cache."""
        return f"{self.ecosystem}-{self.name.strip('@').replace('/', '-')}-{self.version}".replace(":", "-")


def read_packages(path: Path) -> dict[str, Package]:
    """Read pinned packages from a YAML file, by name.

    Raises:
        ValueError: If an entry lacks a field, or has one of another name or type than those of `Package`.
    """
    packages = {}
    for name, entry in read_yaml(path.read_text(encoding="utf-8")).items():
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()
        }
        packages[name] = Package(name=name, **fields)
    return packages
