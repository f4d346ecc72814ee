"""The command `radio`: `radio distill ...` is the command of `modeling_radio.training.distill`.

This module stands beside the package, since importing `modeling_radio` imports transformers, which takes seconds that
`--help` need not wait for.
"""

import argparse
import difflib
import importlib
import importlib.metadata
import importlib.util
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


COMMANDS = {
    "distill": ("training.distill", "distill several teachers into one student"),
    "finetune": ("tuning.finetune", "tune a checkpoint on a task, with or without LoRA"),
    "merge": ("tuning.merge", "merge a tuned adapter into its base"),
    "evaluate": ("evaluation.evaluate", "measure a checkpoint, and compare it with other models"),
    "label": ("prediction.label", "draw boxes and masks of words as labels, by RADIO or SAM3"),
    "predict": ("prediction.predict", "answer for a folder of images: classes, boxes, masks, depth"),
    "extract": ("extraction.extract", "write the features of images as a data set"),
    "search": ("extraction.search", "find images in such a data set by an image or a text"),
    "plan": ("training.plan", "estimate time, memory and cost of a run"),
    "demo": ("demo.__main__", "distill a small student from real teachers in some minutes"),
    "convert": (
        "conversion.convert",
        "convert NVIDIA's checkpoint to a folder; with `--to` to nvidia, timm, network, folded, nemotron",
    ),
    "export": ("conversion.export", "export to ONNX; with `--to` to web or sam3"),
    "card": ("model_cards.card", "write the model card of a folder"),
    "publish": ("publishing.publish", "upload a folder to the Hub, after checks"),
    "app": ("serving.app.__main__", "look at features and masks in the browser"),
    "serve": ("serving.serve", "serve answers or features over HTTP"),
    "doctor": (
        "core.doctor",
        "print versions, devices, missing packages; with a folder, which engines hold it",
    ),
}
MORE_COMMANDS = {
    "add-words": "demo.add_words",
    "compare-release": "conversion.compare_release",
    "completion": "core.completion",
    "export-checkpoint": "training.export_checkpoint",
    "study": "studies.__main__",
    "upsampler": "training.upsampler",
}
FORMATS = {
    "convert": {
        "nvidia": "conversion.to_nvidia",
        "timm": "conversion.to_timm",
        "network": "conversion.to_network",
        "folded": "conversion.to_folded",
        "nemotron": "conversion.to_nemotron",
    },
    "export": {"web": "conversion.to_web", "sam3": "conversion.graphs.sam3_to_onnx"},
}
"""Modules of the commands that take `--to FORMAT`."""
THREADS = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "3000"}
"""Waiting of threads, unless the environment has another. Two that spin slow each other down many times when anything
else runs; those that never spin cost the demo a tenth of its steps. Our choice: the shortest wait of GNU's OpenMP that
wins it back."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `radio` and return its exit status.

    Args:
        arguments: Words after `radio`; None for those of this process.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    if "_ARGCOMPLETE" in os.environ:
        complete(os.environ["COMP_LINE"].split()[1:])
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0
    if words == ["--version"]:
        print(f"radio {importlib.metadata.version('modeling-radio')}")
        return 0
    name, *words = words
    module, words = find_module(name, words)
    if module is None:
        print(f"radio: error: {words[0]}", file=sys.stderr)
        return 2
    for variable, value in THREADS.items():  # read when torch is imported
        os.environ.setdefault(variable, value)
    _add_package()
    try:
        return importlib.import_module(f"modeling_radio.{module}").main(words)
    except ImportError as error:
        if error.name is not None:  # a package that is absent, or a bug; without a name: an old transformers
            raise
        print(f"radio {name}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # while libraries are imported, before the command handles it
        print(f"radio {name}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def usage() -> str:
    """Return the text of `radio --help`."""
    lines = [f"  {name:<11} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: radio COMMAND ...\n",
            "RADIO vision backbones: distill, tune, measure, convert, publish.\n",
            *lines,
            f"\nAlso: {', '.join(MORE_COMMANDS)}.",
            "`radio COMMAND --help` lists the options of a command, `radio --version` prints the version.",
        ]
    )


def find_module(name: str, words: list[str]) -> tuple[str | None, list[str]]:
    """Return the module of a command and the words without `--to FORMAT`; None and a message if there is none."""
    modules = {**{each: module for each, (module, _) in COMMANDS.items()}, **MORE_COMMANDS}
    if name not in modules:
        near = difflib.get_close_matches(name, modules, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return None, [f"Unknown command {name!r}.{hint} `radio --help` lists all."]
    formats = FORMATS.get(name, {})
    chosen, rest, following = None, [], iter(words)
    for word in following:
        flag, is_joined, value = word.partition("=")
        if flag == "--to":
            chosen = value if is_joined else next(following, "")
        else:
            rest.append(word)
    if not formats or chosen is None:
        return modules[name], words
    if chosen not in formats:
        return None, [f"`--to` of `radio {name}` must be one of {', '.join(formats)}, got {chosen!r}."]
    return formats[chosen], rest


def complete(words: list[str]) -> None:
    """Answer the shell's tab key and end; `radio completion` prints what makes a shell ask.

    Args:
        words: Words after `radio`, of which the last may not be complete.
    """
    import argcomplete

    parser = argparse.ArgumentParser("radio")
    commands = parser.add_subparsers()
    for name in (*COMMANDS, *MORE_COMMANDS):
        commands.add_parser(name, help=COMMANDS.get(name, ("", ""))[1])
    module = None
    if words:
        module = find_module(words[0], words[1:])[0] or find_module(words[0], [])[0]  # `--to` may have no value yet
    if module is not None:
        _add_package()
        chosen = importlib.import_module(f"modeling_radio.{module}").COMMAND.completing()
        if words[0] in FORMATS:
            chosen.add_argument("--to", choices=FORMATS[words[0]])
        commands.choices[words[0]] = chosen
    argcomplete.autocomplete(parser)


def open_package() -> None:
    """Run `modeling_radio/__init__.py` where `radio` has put that off."""
    package = sys.modules.get("modeling_radio")
    is_put_off = package is not None and vars(package).pop("__getattr__", None) is not None
    if is_put_off and package.__spec__ is not None and package.__spec__.loader is not None:
        package.__spec__.loader.exec_module(package)


def _add_package() -> None:
    """Let `modeling_radio.training` be imported before `modeling_radio/__init__.py` and its long imports have run.

    So help and mistakes are answered at once. The package is opened by the first name that is imported from it, at the
    latest by `core.command_line.Command` before it runs a command.
    """
    spec = importlib.util.find_spec("modeling_radio")
    if "modeling_radio" in sys.modules or spec is None:
        return
    package = importlib.util.module_from_spec(spec)
    clone = Path(__file__).parent
    if (clone / "pyproject.toml").is_file():  # as `modeling_radio/__init__.py` does
        package.__path__.append(str(clone))

    def open_and_get(name: str) -> Any:
        if not name.startswith("__"):
            open_package()
        try:
            return vars(package)[name]
        except KeyError:
            raise AttributeError(f"module 'modeling_radio' has no attribute {name!r}") from None

    package.__getattr__ = open_and_get
    sys.modules["modeling_radio"] = package


if __name__ == "__main__":
    sys.exit(main())
