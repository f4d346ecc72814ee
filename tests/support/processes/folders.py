"""Folders of source that the installed package has, as `setup.py` lists them."""

import ast
from pathlib import Path


ROOT = Path(__file__).parents[3]
_LISTS = [node for node in ast.parse((ROOT / "setup.py").read_text()).body if isinstance(node, ast.Assign)]
FOLDERS: tuple[str, ...] = next(
    ast.literal_eval(node.value) for node in _LISTS if ast.unparse(node.targets[0]) == "FOLDERS"
)
OURS = (*FOLDERS, "modeling_radio", "benchmarks", "notebooks")
"""All packages of this repository, by the names that a clone has at its root."""
