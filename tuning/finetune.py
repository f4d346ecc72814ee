"""Tune a checkpoint for a task on labeled images: `radio finetune CHECKPOINT --task ... --data ...`."""

import argparse
import logging
import sys
from functools import partial
from typing import Any

from modeling_radio.core.command_line import Command
from modeling_radio.tuning.settings import FinetuneSettings


class _Lora(argparse.Action):
    """Short for `--tune lora --lora-rank RANK`; another `--tune` wins."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        vars(namespace).setdefault("tune", "lora")
        if values is not None:
            namespace.lora_rank = values


def _add_lora(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lora", nargs="?", action=_Lora, metavar="RANK", help="short for --tune lora --lora-rank RANK"
    )


COMMAND = Command(
    "radio finetune",
    "Tune a checkpoint for a task on labeled images. The same command continues an interrupted run.",
    FinetuneSettings,
    positionals=("checkpoint",),
    add_shorthands=_add_lora,
    examples=(
        "radio finetune builtin:lite --task image-classification --data pets/ --size 256",
        "radio finetune CHECKPOINT --task semantic-segmentation --data voc/ --lora --merge --output runs/voc",
        "radio finetune nvidia/C-RADIOv4-H --task object-detection --data coco/ --lora --size 640",
    ),
)


def run(settings: FinetuneSettings) -> dict[str, float]:
    """Tune as the settings say, and return the metrics on the validation images; as `FinetuningRun`."""
    if settings.quantize is None:
        # transformers imports bitsandbytes wherever it is installed, and that logs at once what it cannot download.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from modeling_radio.tuning.run import FinetuningRun  # takes seconds, which `--help` need not wait for

    return FinetuningRun(settings).run()


def _finetune(settings: FinetuneSettings) -> None:
    metrics = run(settings)
    from modeling_radio.core.ranks import rank_and_count  # imports torch, for which `--help` need not wait

    if rank_and_count()[0] == 0:
        shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        print(f"Validation: {shown}. Wrote {settings.output}.")


main = partial(COMMAND.run, _finetune, interrupted="interrupted; the same command goes on from the last checkpoint")


if __name__ == "__main__":
    sys.exit(main())
