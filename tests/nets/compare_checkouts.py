"""Compares two checkouts of this project bit for bit, on one machine, in processes of one thread.

    python tests/nets/compare_checkouts.py OLD NEW [--cases demo_full classes ...] [--keep FOLDER]

Each side runs what `net_cases.py` describes: short distillations, every public class and the configuration of every
preset. A table in Markdown says what is equal and what differs; what does not run is a row too. The exit status is 1
where any row is not "equal". Nothing is fetched, and nothing is written into the checkouts.
"""

# ruff: noqa: T201

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path


SUPPORT = Path(__file__).parents[1] / "support"
sys.path.insert(0, str(SUPPORT))

import net_cases  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402


CASES = [*net_cases.RECIPES, "classes", "initial", "configs"]


def teacher_imports() -> str:
    """What differs between checkouts: where `Teacher` and `TeacherOutput` live."""
    return """
import importlib
import torch

def _find(name):
    for module in ("base", "answers", "teacher", "teachers", "kinds", ""):
        try:
            return vars(importlib.import_module(f"modeling_radio.training.teachers.{module}".rstrip(".")))[name]
        except (ImportError, KeyError):
            continue
    raise ImportError(name)

Teacher, TeacherOutput = _find("Teacher"), _find("TeacherOutput")
"""


def presets() -> list[str]:
    """What else differs between checkouts: where the names of the presets stand."""
    import modeling_radio.presets_radio

    return list(modeling_radio.presets_radio.PRESETS)


# What a side does, in a process of its own ---------------------------------------------------------------------------


def write_classes(folder: Path) -> None:
    """Write the outputs of every public class, one file each, and its error where it has none."""
    for name, run in net_cases.CLASSES.items():
        try:
            tensors = run()
        except Exception as error:  # noqa: BLE001, PERF203
            (folder / f"{name}.error").write_text(f"{type(error).__name__}: {str(error).splitlines()[0][:160]}")
        else:
            save_file(
                {key: value.contiguous().clone() for key, value in tensors.items()}, folder / f"{name}.safetensors"
            )


def write_initial(folder: Path) -> None:
    """Write the random weights of each public model, and the folder that `save_pretrained` writes of it."""
    import modeling_radio

    fields = {"RadioModel": {"adaptors": net_cases.ADAPTORS}}
    names = [
        name for name in modeling_radio.__all__ if name == "RadioModel" or "RadioFor" in name or "Backbone" in name
    ]
    for name in names:
        if "ZeroShot" in name:
            continue  # made of parts
        torch.manual_seed(0)
        config = modeling_radio.RadioConfig.from_preset("radio-test", **net_cases._HEADS, **fields.get(name, {}))
        vars(modeling_radio)[name](config).save_pretrained(folder / name)
    modeling_radio.save_attached(net_cases._sam3(), folder / "attached")


def write_configs(folder: Path) -> None:
    """Write the configuration and the processor's of each preset, and the list of public names."""
    import modeling_radio

    for name in presets():
        config = modeling_radio.RadioConfig.from_preset(name)
        config.save_pretrained(folder / name)
        modeling_radio.RadioImageProcessor.from_model_config(config).save_pretrained(folder / name)
    (folder / "all.json").write_text(json.dumps(modeling_radio.__all__))


def work(case: str, checkout: str, folder: str) -> None:
    """Do one case in this process."""
    import modeling_radio

    assert Path(modeling_radio.__file__).is_relative_to(checkout), modeling_radio.__file__
    torch.set_num_threads(1)
    {"classes": write_classes, "initial": write_initial, "configs": write_configs}[case](Path(folder))


def run_side(case: str, checkout: Path, folder: Path) -> str | None:
    """Run a case with a checkout's code and return its error, if it has one."""
    folder.mkdir(parents=True)
    command = [sys.executable, str(Path(__file__).resolve()), "--work", case, str(checkout), str(folder)]
    path = [str(checkout), str(SUPPORT)]
    if case in net_cases.RECIPES:
        net_cases.write_world(folder, teacher_imports())
        command = [sys.executable, "-m", "modeling_radio", "distill", *net_cases.arguments(case, "run")]
        path[1] = str(folder)
    settings = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    settings |= {"PYTHONPATH": os.pathsep.join(path), "HF_MODULES_CACHE": str(folder / "modules"), "TQDM_DISABLE": "1"}
    settings |= {"HF_DATASETS_CACHE": str(folder / "datasets")}
    done = subprocess.run(command, cwd=folder, env={**os.environ, **settings}, capture_output=True, text=True)
    (folder / "said.txt").write_text(done.stdout + done.stderr)
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or done.stderr.splitlines()
    return (lines or ["no message"])[-1][:300]


# What is compared ----------------------------------------------------------------------------------------------------


def numbers_of(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Tensors by the file that they were read from."""
    paths = [path for path in sorted(folder.rglob("*.safetensors")) if not path.is_relative_to(folder / "cache")]
    return {str(path.relative_to(folder)): load_file(path) for path in paths}


def documents_of(folder: Path) -> dict[str, dict[str, object]]:
    """Values by their way in each written JSON, without caches, states and times."""
    found = {}
    for path in sorted([*folder.rglob("*.json"), *folder.rglob("history.jsonl")]):
        name = str(path.relative_to(folder))
        if name.startswith(("modules", "datasets", "cache")) or "checkpoints" in path.parts:
            continue
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        found[name] = dict(leaves([json.loads(line) for line in lines], ""))
    return found


def leaves(value: object, way: str) -> Iterator[tuple[str, object]]:
    """Yield the values of a JSON by their way."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None or not value:
        yield way, value
        return
    for key, part in items:
        yield from leaves(part, f"{way}.{key}".strip("."))


def is_time(way: str) -> bool:
    return any(word in way for word in ("second", "time", "speed", "memory", "minutes", "written"))


def compare_tensors(old: dict[str, torch.Tensor], new: dict[str, torch.Tensor]) -> tuple[str, str]:
    words = [f"only OLD: {name}" for name in old.keys() - new.keys()] + [
        f"only NEW: {n}" for n in new.keys() - old.keys()
    ]
    worst, count = 0.0, 0
    for name in old.keys() & new.keys():
        one, two = old[name], new[name]
        if one.shape != two.shape or one.dtype != two.dtype:
            words.append(f"{name}: {one.dtype} {tuple(one.shape)} -> {two.dtype} {tuple(two.shape)}")
        elif not torch.equal(one.nan_to_num(), two.nan_to_num()) or not torch.equal(one.isnan(), two.isnan()):
            count += 1
            difference = (one.double() - two.double()).abs().max().item()
            worst = max(worst, difference / max(one.double().abs().max().item(), 1e-30))
            words.append(f"{name} by {difference:.1e}")
    return (
        f"{len(old)} tensors",
        "equal" if not words else shown(words, f"{count} differ, most by {worst:.1e} of the largest: "),
    )


def compare_documents(old: dict[str, object], new: dict[str, object]) -> tuple[str, str]:
    old, new = ({way: value for way, value in each.items() if not is_time(way)} for each in (old, new))
    words = []
    for way in {**old, **new}:
        one, two = old.get(way, "absent"), new.get(way, "absent")
        both_nan = isinstance(one, float) and isinstance(two, float) and math.isnan(one) and math.isnan(two)
        if one != two and not both_nan:
            words.append(f"{way}: {one!r} -> {two!r}")
    return f"{len(old)} values", shown(words) if words else "equal"


def shown(words: list[str], before: str = "") -> str:
    more = f"; and {len(words) - 6} more" if len(words) > 6 else ""
    return (before + "; ".join(sorted(words)[:6]) + more).replace("|", "\\|")


def rows_of(case: str, sides: dict[str, Path], errors: dict[str, str | None]) -> Iterator[tuple[str, str, str]]:
    """Yield case, what was compared, and the result; files that are equal share a row."""
    for side, error in errors.items():
        if error is not None:
            yield case, "nothing", f"fails in {side}: {error}"
    for word, read, compare in (("tensors", numbers_of, compare_tensors), ("values", documents_of, compare_documents)):
        old, new = (read(folder) for folder in sides.values())
        num_files = count = 0
        for name in {**old, **new}:
            if name not in old or name not in new:
                yield f"{case}: {name}", "a file", f"only in {'OLD' if name in old else 'NEW'}"
                continue
            what, result = compare(old[name], new[name])
            if result != "equal":
                yield f"{case}: {name}", what, result
                continue
            num_files, count = num_files + 1, count + int(what.split()[0])
        if num_files:
            yield case, f"{num_files} files, {count} {word}", "equal"
    texts = [{path.name: path.read_text() for path in folder.glob("*.error")} for folder in sides.values()]
    for name in {**texts[0], **texts[1]}:
        old, new = (text.get(name) for text in texts)
        yield f"{case}: {name}", "an error", "equal (fails in both)" if old == new else f"OLD: {old}; NEW: {new}"
    names = [names_of(folder / "run") for folder in sides.values()]
    if names != [set(), set()]:
        differ = sorted(names[0] ^ names[1])
        yield f"{case}: names of files", f"{len(names[0])}", f"only on one side: {differ[:8]}" if differ else "equal"


def names_of(folder: Path) -> set[str]:
    """Return what a run wrote, but for the code, whose files may be others."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix != ".py"}


def main() -> int:
    if sys.argv[1:2] == ["--work"]:
        work(*sys.argv[2:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--keep", type=Path, help="folder for what both sides write, which must not exist")
    given = parser.parse_args()
    root = given.keep.resolve() if given.keep else Path(tempfile.mkdtemp(prefix="nets-"))
    print("| case | compared | result |\n| --- | --- | --- |", flush=True)
    is_equal = True
    for case in given.cases:
        sides = {"OLD": root / "old" / case, "NEW": root / "new" / case}
        checkouts = {"OLD": given.old.resolve(), "NEW": given.new.resolve()}
        errors = {side: run_side(case, checkouts[side], sides[side]) for side in sides}
        for row in rows_of(case, sides, errors):
            is_equal = is_equal and row[2].startswith("equal")
            print("| " + " | ".join(row) + " |", flush=True)
    return 0 if is_equal else 1


if __name__ == "__main__":
    sys.exit(main())
