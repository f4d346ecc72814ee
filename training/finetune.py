"""Tune a checkpoint for a task on labeled images: `python -m training.finetune CHECKPOINT --task ... --data ...`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foundation.command import run_command
from training.finetuning.settings import BALANCED, BOX_FORMATS, PRECISIONS, TASKS, TUNE_METHODS, FinetuneSettings


NOT_SETTINGS = ("lora", "config")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    interrupted = "interrupted; the same command goes on from the last checkpoint"
    return run_command(_parser(), _finetune, arguments, interrupted=interrupted)


def _finetune(options: argparse.Namespace) -> None:
    settings = read_settings(options)
    from training.finetuning.run import FinetuningRun  # takes seconds, which `--help` need not wait for

    run = FinetuningRun(settings)
    metrics = run.run()
    if run.trainer.is_world_process_zero():
        shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        print(f"Validation: {shown}. Wrote {settings.output}.")


def read_settings(options: argparse.Namespace) -> FinetuneSettings:
    """Return the settings that the parsed options stand for.

    Raises:
        ValueError: If an option or an override cannot be right.
    """
    values: dict[str, Any] = {name: value for name, value in vars(options).items() if name not in NOT_SETTINGS}
    if "lora" in options:
        values = {"tune": "lora", **values}
        if options.lora is not None:
            values["lora_rank"] = options.lora
    values.setdefault("output", Path("runs") / f"finetune-{options.task}")
    if "config" in options:
        values["config"] = dict(_read_override(entry) for entry in options.config)
    return FinetuneSettings(**values)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.finetune",
        description="Tune a checkpoint for a task on labeled images. A run that was stopped goes on with the same "
        "command. training/FINETUNING.md has a recipe for each task.",
        argument_default=argparse.SUPPRESS,  # FinetuneSettings has the defaults
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder or Hub id of the backbone")
    parser.add_argument("--task", required=True, choices=TASKS)
    parser.add_argument("--data", required=True, metavar="SOURCE", help="folder, file or Hub id of labeled images")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the run (default: runs/finetune-TASK)")
    _add_method_options(parser.add_argument_group("what is trained"))
    _add_data_options(parser.add_argument_group("data"))
    _add_schedule_options(parser.add_argument_group("schedule"))
    return parser


def _add_method_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--tune", choices=TUNE_METHODS, help="the head alone, adapters, or everything (default: head)")
    group.add_argument("--lora", nargs="?", type=int, metavar="RANK", help="short for --tune lora --lora-rank RANK")
    group.add_argument("--lora-rank", type=int, metavar="R", help="rank of the adapters (default: 16)")
    group.add_argument("--lora-alpha", type=float, metavar="A", help="scale of the adapters (default: twice the rank)")
    group.add_argument("--lora-dropout", type=float, metavar="P", help="dropout before the adapters (default: 0)")
    group.add_argument("--lora-targets", type=_names, metavar="qkv,proj", help="layers with adapters (default: all)")
    group.add_argument("--merge", action="store_true", help="also write the merged model as a plain folder")
    group.add_argument("--quantize", type=int, choices=(4, 8), help="bits of the frozen weights (needs bitsandbytes)")
    group.add_argument("--config", nargs="+", metavar="field=value", help="changes of the model's configuration")
    group.add_argument(
        "--window-size", type=_window, metavar="TOKENS|global|auto", help="ViTDet window (default: the checkpoint's)"
    )


def _add_data_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--size", type=_size, metavar="PX|HxW", help="image size (default: the checkpoint's preferred)")
    group.add_argument("--classes", type=_names, metavar="a,b,c", help="names of the classes in the order of their ids")
    group.add_argument("--class-weights", type=_class_weights, metavar=f"{BALANCED}|1,2,1", help="in the loss")
    group.add_argument("--image-column", metavar="NAME", help="column of the images (default: found)")
    group.add_argument("--target-column", metavar="NAME", help="column of labels, masks, boxes, depth (default: found)")
    group.add_argument("--box-format", choices=BOX_FORMATS, help="of data sets that are not COCO json (default: xywh)")
    group.add_argument(
        "--depth-scale", type=float, metavar="UNITS", help="stored units in a meter (default: 1000 or 1)"
    )
    group.add_argument("--validation-share", type=float, metavar="S", help="held out where no split is given (0.1)")
    group.add_argument("--crop-area-min", type=float, metavar="S", help="smallest random crop; 1 for none (0.35)")
    group.add_argument("--flip-probability", type=float, metavar="P", help="of a horizontal flip (0.5)")
    group.add_argument("--color-jitter", type=float, metavar="S", help="strength, 0 for none (0.2)")
    group.add_argument("--num-workers", type=int, metavar="N", help="processes that load images (2)")


def _add_schedule_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--epochs", type=float, metavar="N", help="passes over the training images (10)")
    group.add_argument("--steps", type=int, metavar="N", help="optimizer steps; overrides --epochs")
    group.add_argument("--batch-size", type=int, metavar="N", help="images a device and forward pass (16)")
    group.add_argument("--accumulation", type=int, metavar="N", help="forward passes a step (1)")
    group.add_argument("--learning-rate", type=float, metavar="LR", help="of adapters (5e-4) or backbone (5e-5)")
    group.add_argument("--head-learning-rate", type=float, metavar="LR", help="of the head (1e-3; detection 1e-4)")
    group.add_argument("--layer-decay", type=float, metavar="F", help="of the learning rate per block downwards (1)")
    group.add_argument("--weight-decay", type=float, metavar="W", help="of matrices (0.01)")
    group.add_argument("--warmup-share", type=float, metavar="S", help="share of steps with rising rate (0.1)")
    group.add_argument("--max-grad-norm", type=float, metavar="G", help="gradients are clipped to this (1)")
    group.add_argument("--precision", choices=PRECISIONS, help="(default: bf16 on a GPU that has it)")
    group.add_argument("--gradient-checkpointing", action="store_true", help="less memory, a third more time")
    group.add_argument("--evaluate-every", type=int, metavar="STEPS", help="(default: every epoch)")
    group.add_argument("--patience", type=int, metavar="N", help="end after N evaluations without a better one")
    group.add_argument("--seed", type=int, metavar="N", help="(0)")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def _window(text: str) -> int | str:
    return int(text) if text.removeprefix("-").isdecimal() else text


def _class_weights(text: str) -> str | tuple[float, ...]:
    return text if text == BALANCED else tuple(float(weight) for weight in text.split(","))


def _read_override(entry: str) -> tuple[str, Any]:
    name, sign, value = entry.partition("=")
    if not sign:
        raise ValueError(f"{entry!r} must have the form field=value, such as detection_num_queries=50.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


if __name__ == "__main__":
    sys.exit(main())
