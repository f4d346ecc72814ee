"""Packages of the wheel: the clone's folders become parts of `modeling_radio`; the rest stands in pyproject.toml."""

from setuptools import find_packages, setup


FOLDERS = ("core", "training", "conversion", "model_cards")

setup(
    packages=["modeling_radio", "modeling_radio.nvidia"]
    + [f"modeling_radio.{name}" for name in find_packages() if name.partition(".")[0] in FOLDERS],
    package_dir={f"modeling_radio.{folder}": folder for folder in FOLDERS},
    py_modules=["modeling_radio_cli"],
)
