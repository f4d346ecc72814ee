"""Plants the faults of `mutations.yaml` one by one in a copy of the tree, and tells which test finds each.

It is no test, and outside of continuous integration: it takes a quarter of an hour on two idle cores.
"""

import argparse
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml


ROOT = Path(__file__).parents[1]
LIST = Path(__file__).with_name("mutations.yaml")
GONE = "the line is gone"
USUAL = "not slow and not gpu and not hub and not tour"
SECONDS = 300  # of one selection of tests
# Tests of several files that CONTRIBUTING's table names for a folder.
WIDER = {
    "modeling_radio": ["whole/test_contract.py", "nets", "whole/nvidia", "whole/ecosystem"],
    "conversion": ["whole/nvidia", "whole/web"],
    "training": ["nets", "whole/runs"],
    "tuning": ["whole/runs", "nets"],
}
# Imported once, before each run of tests is forked: nothing of ours, and nothing that reads the variables of tests.
SHARED = ["torch", "torchvision", "pandas", "pyarrow", "scipy", "sklearn", "matplotlib.pyplot", "hypothesis", "psutil"]


def main() -> None:
    """Plant all faults or some, and print for each where it was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("numbers", nargs="*", type=int, help="places in the list, from 0; all by default")
    parser.add_argument(
        "--again", action="store_true", help="run whole files and folders, not first what `found_by` names"
    )
    parser.add_argument("--write", action="store_true", help="write what was found into mutations.yaml")
    given = parser.parse_args()
    faults = yaml.safe_load(LIST.read_text(encoding="utf-8"))
    numbers = given.numbers or range(len(faults))
    multiprocessing.set_forkserver_preload(SHARED)
    with tempfile.TemporaryDirectory() as folder:
        tree = copy_tree(Path(folder) / "tree")
        found = {number: run(faults[number], tree, again=given.again) for number in numbers}
    lost = [number for number, name in found.items() if name is None and faults[number]["found_by"]]
    gone = [number for number, name in found.items() if name == GONE]
    seen = len(found) - len(gone) - sum(name is None for name in found.values())
    print(f"{len(found)} faults, {seen} found; lines gone: {gone or 'none'}; found no longer: {lost or 'none'}")
    if given.write:
        for number, name in found.items():
            faults[number]["found_by"] = faults[number]["found_by"] if name == GONE else name
        head = "".join(line for line in LIST.read_text(encoding="utf-8").splitlines(True) if line.startswith("#"))
        LIST.write_text(head + yaml.safe_dump(faults, sort_keys=False, width=1000), encoding="utf-8")
    sys.exit(bool(lost))


def copy_tree(target: Path) -> Path:
    """Copy what git tracks, as it is now in the working tree."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def run(fault: dict, tree: Path, *, again: bool) -> str | None:
    """Plant a fault, run tests until one fails that passes without it, and return its name."""
    path, text = find(fault, tree)
    if path is None:
        print(f"GONE   {fault['path']}: {fault['old']}", flush=True)
        return GONE
    lines = [
        fault["new"].join(line.split(fault["old"])) if line.strip() == fault["old"] else line
        for line in text.split("\n")
    ]
    planted, tried, name = "\n".join(lines), [], None
    try:
        for tests in selections(path.relative_to(tree), tree, None if again else fault["found_by"]):
            plant(path, planted)
            while (name := first_failure(tree, tests, tried)) is not None:
                plant(path, text)
                if first_failure(tree, name, []) is None:
                    break
                tried.append(name)
                plant(path, planted)
            if name is not None:
                break
            tried.append(tests)
    finally:
        plant(path, text)
    print(
        f"{'found ' if name else 'MISSED'} {fault['path']}: {fault['new']}\n       {name or ' '.join(tried)}",
        flush=True,
    )
    return name


def find(fault: dict, tree: Path) -> tuple[Path | None, str]:
    """Return the file that has the line, which may have moved, and its text."""
    others = [path for path in tree.rglob("*.py") if path.relative_to(tree).parts[0] != "tests"]
    for path in (tree / fault["path"], *others):
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if sum(line.strip() == fault["old"] for line in text.splitlines()) == 1:
            return path, text
    return None, ""


def plant(path: Path, text: str) -> None:
    """Write a file, and remove its bytecode, which Python would take for fresh if both have one length and second."""
    path.write_text(text, encoding="utf-8")
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
        compiled.unlink()


def selections(path: Path, tree: Path, known: str | None) -> Iterator[str]:
    """Yield the tests of a file from near to far: what found the fault before, its own, its callers', and the wider."""
    line = re.compile(
        rf"^ *from \S*\b{path.parent.name}\.{path.stem} import|^ *from \.{path.stem} import", re.MULTILINE
    )
    callers = [each.relative_to(tree) for each in sorted(tree.rglob("*.py")) if line.search(each.read_text("utf-8"))]
    modules = [path, *(each for each in callers if each.parts[0] != "tests")]
    near = [f"tests/{each.with_name(f'test_{each.name}')}" for each in modules]
    near += [f"tests/{path.parent}", *(str(each) for each in callers if each.name.startswith("test_"))]
    names = [known, *near, *(f"tests/{name}" for name in WIDER.get(path.parts[0], ()))]
    yield from (name for name in dict.fromkeys(names) if name and (tree / name.partition("::")[0]).exists())


def first_failure(tree: Path, tests: str, without: list[str]) -> str | None:
    """Return the first test that fails, in a process of its own; a selection that does not end counts as none."""
    output = tree.parent / "output.txt"
    skipped = [word for name in without for word in ("--deselect" if "::" in name else "--ignore", name)]
    usual = [] if "::" in tests else ["-m", USUAL]  # what found a fault may be a longer test
    arguments = ["-q", "-x", "-p", "no:cacheprovider", "--timeout", "120", *usual, tests, *skipped]
    process = multiprocessing.get_context("forkserver").Process(target=run_pytest, args=(tree, arguments, output))
    process.start()
    process.join(SECONDS)
    if process.is_alive():
        os.killpg(process.pid, signal.SIGKILL)
        print(f"       {tests} did not end in {SECONDS} s", flush=True)
    failed = re.search(
        r"^(?:FAILED|ERROR) (\S+(?:\[.*?\])?)(?= - |$)", output.read_text(errors="replace"), re.MULTILINE
    )
    return failed and failed[1]


def run_pytest(tree: Path, arguments: list[str], output: Path) -> None:
    """Run tests of a tree and write what they print to a file."""
    os.setsid()
    os.chdir(tree)
    multiprocessing.set_start_method(None, force=True)  # loaders of tests start workers as usual
    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree)}
    sys.path[0] = str(tree)
    import pytest

    sys.exit(pytest.main(arguments))


if __name__ == "__main__":
    main()
