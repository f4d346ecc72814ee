"""Packages of the wheel: the clone's folders become parts of `modeling_radio`; the rest stands in pyproject.toml."""

import gzip
import os
import tarfile
import time

from setuptools import find_packages, setup
from setuptools.command.sdist import sdist


FOLDERS = (
    "api",
    "conversion",
    "core",
    "data",
    "demo",
    "evaluation",
    "extraction",
    "figures",
    "metrics",
    "model_cards",
    "prediction",
    "publishing",
    "serving",
    "studies",
    "training",
    "tuning",
)


class DatedSdist(sdist):
    """An sdist whose files all have the time `SOURCE_DATE_EPOCH`: equal sources make equal bytes."""

    def make_archive(self, base_name, format, root_dir=None, base_dir=None, owner=None, group=None):
        assert format == "gztar"
        moment = int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))

        def dated(entry: tarfile.TarInfo) -> tarfile.TarInfo:
            return entry.replace(mtime=moment, uid=0, gid=0, uname="", gname="", deep=False)

        path = f"{base_name}.tar.gz"
        with (
            open(path, "wb") as file,
            gzip.GzipFile("", "wb", fileobj=file, mtime=moment) as packed,
            tarfile.open(fileobj=packed, mode="w") as archive,
        ):
            archive.add(base_dir, filter=dated)
        return path


setup(
    packages=["modeling_radio", "modeling_radio.nvidia"]
    + [f"modeling_radio.{name}" for name in find_packages() if name.partition(".")[0] in FOLDERS],
    package_dir={f"modeling_radio.{folder}": folder for folder in FOLDERS},
    py_modules=["modeling_radio_cli"],
    cmdclass={"sdist": DatedSdist},
)
