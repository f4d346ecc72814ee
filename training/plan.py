"""Plan a run before paying for it: `radio plan --recipe c_radio_v4_h --gpus 128` prints time, memory and cost.

GPU hours, memory, disk and network of a recipe on named cards, or on cards of given numbers. The recipe's networks are
built on the meta device, without weights or a download, and their passes are counted by PyTorch's `FlopCounterMode`:
matrix products and convolutions, 2 operations per multiply-add. Times follow from the peak of a card and a stated share
of it (model FLOPs utilization, MFU). Nothing is timed.
"""

import sys
from functools import partial
from typing import Annotated

from pydantic import Field

from modeling_radio.core.command_line import Command
from modeling_radio.training.recipes.recipe import Recipe, RecipeCommand


DEFAULT_MFU = 0.35
"""Our choice; measure yours, and give it with `--mfu`. For comparison, PHI-S's 14,080 A100-hours for a ViT-B (its
table 10) are by this count 17 % of the peak if each teacher had images of its own, as in stage 1, and 38 % if all
teachers had all images."""

DEFAULT_IMAGE_KB = 100
"""Our choice: about a JPEG of 512 px a side; web photographs of full size have more."""


DEFAULT_START_US = 6.0
"""Our choice: launching a kernel takes some microseconds of the processor, and Python and PyTorch's dispatcher as much
again. PyTorch's profiler shows yours."""


class PlanSettings(RecipeCommand):
    """Settings of a plan.

    Attributes:
        gpus: Number of GPUs; of several numbers only time, balance and memory of a step are compared.
        gpu: Name of a card, or NAME:TFLOPS:GIB of any other: its dense bfloat16 operations per second, in 10^12, and
            its memory; by default all known cards, as the table lists them.
        mfu: Share of a card's peak that the run is assumed to reach.
        image_kb: Mean size of an image file, in 1,000 bytes; workers prepare small files faster.
        start_us: Microseconds that the start of a kernel takes.
        days: Print the numbers of steps with which the run takes so many days.
        price: Price of a GPU hour, in any currency.
        verbose: Print also Markdown tables of all cards, networks, steps, memory, disk and network.
    """

    recipe: str
    gpus: list[Annotated[int, Field(gt=0)]] = Field([8], min_length=1)
    gpu: str | None = None
    mfu: float = Field(DEFAULT_MFU, gt=0, le=1)
    image_kb: float = Field(DEFAULT_IMAGE_KB, gt=0)
    start_us: float = Field(DEFAULT_START_US, ge=0)
    days: float | None = Field(None, gt=0)
    price: float | None = Field(None, gt=0)
    verbose: bool = False


COMMAND = Command(
    "radio plan",
    "Count what a run costs on your cards before anything is loaded: GPU hours, memory, disk, network.",
    PlanSettings,
    changes=Recipe,
    examples=(
        "radio plan --recipe demo --gpus 1",
        "radio plan --recipe c_radio_v4_h --gpus 128 --price 2.5",
        "radio plan --recipe c_radio_v4_h --gpus 128 --verbose",
        "radio plan --recipe c_radio_v4_h --gpus 8,64,256",
        "radio plan --recipe radio_s --gpus 8 --days 7",
        "radio plan --recipe c_radio_v3 --gpus 8 --gpu RTX-5090:209.5:32",
    ),
)


def _plan(settings: PlanSettings) -> None:
    # These import torch, for which `--help` need not wait.
    from modeling_radio.training.planning.costs import choose_cards, simulated_card
    from modeling_radio.training.planning.plan import Plan, describe, describe_ranks, steps_in, summarize
    from modeling_radio.training.planning.simulation import Speed

    cards = choose_cards(settings.gpu)
    # The images are not opened: a recipe that leaves their source to the command line can be planned without.
    recipe = settings.load_recipe("data.source=unopened")
    card, (first, *others) = simulated_card(cards), settings.gpus
    plan = Plan(recipe, first, card=card)
    speed = Speed(card, settings.mfu, settings.image_kb, settings.start_us)
    if others:
        plans = [plan, *(Plan(recipe, number, plan.networks, card) for number in others)]
        print(describe_ranks(plans, speed))
        if settings.days is not None:
            print("\n".join(f"- {each.num_gpus} GPUs. {steps_in(each, speed, settings.days)}" for each in plans))
        return
    print(summarize(plan, speed, settings.price, settings.days))
    print(describe(plan, cards, speed) if settings.verbose else "`--verbose` prints more.")


main = partial(COMMAND.run, _plan)


if __name__ == "__main__":
    sys.exit(main())
